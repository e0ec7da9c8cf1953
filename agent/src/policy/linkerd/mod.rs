//! Linkerd's policy: which ports of a workload a Server takes, who is authorized there, and what holds
//! elsewhere.
//!
//! Everything here admits; nothing denies by name. So whatever cannot be understood admits nobody, and a
//! Server or route that cannot be understood keeps what it may be for from falling to something that admits.

mod clients;
mod compiled;
mod defaults;
mod explain;
mod filters;
mod inbound;
mod matching;
mod route;
mod routes;
mod server;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::object::Object;
use super::read::{self, Faults};
use super::resource::{Defect, DefectKind, Kind, ResourceRef};
use super::rules::Policy;
use super::set::{Lists, Subject};
use super::settings::{InboundDefault, Settings};

pub use defaults::ANNOTATIONS;
pub use filters::{Filter, NoLocation, RouteFilters};
pub use inbound::{Authorization, Authorizations, Inbound, Otherwise, PortPolicy, Route};
pub use matching::{Host, Path, Pattern, RequestMatch, Text};
pub use routes::Routes;
pub use server::Protocol;

use clients::{Authentications, Servers, Target};
use defaults::{Defaults, with_identity};
use route::{RouteSpec, RuleSpec};
use server::{Server, Taken};

/// `apiVersion`'s first part.
pub const GROUP: &str = "policy.linkerd.io";
const LINKERD_GROUP: &str = GROUP;
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Linkerd's resources of the mesh, understood.
#[derive(Debug)]
pub struct Linkerd {
    settings: Settings,
    /// By namespace; the first that selects a port takes it.
    servers: HashMap<Arc<str>, Vec<(Server, Arc<PortPolicy>)>>,
    annotations: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<str>>>,
    defects: Vec<Defect>,
    kept: Kept,
}

/// What the next state can have of this one.
#[derive(Debug, Default)]
struct Kept {
    /// Each beside what it was read from.
    routes: HashMap<Key, (Arc<Object>, Arc<RouteSpec>)>,
    /// The rules of each, with who is admitted.
    rules: HashMap<Key, Vec<Arc<Route>>>,
    authorizations: HashMap<Key, Arc<Authorization>>,
    lists: Lists,
    /// By namespace and name of the Server.
    policies: HashMap<(Arc<str>, Arc<str>), Arc<PortPolicy>>,
}

/// Kind, namespace and name.
type Key = (Kind, Arc<str>, Arc<str>);

impl Linkerd {
    /// Takes those of its own kinds, routes of the Gateway API, and namespaces. Of several of one name the
    /// last counts.
    pub fn new(objects: &[Arc<Object>], settings: &Settings) -> Self {
        Self::after(&Kept::default(), objects, settings)
    }

    /// What comes after this one. What is the same in both is not compiled again.
    pub fn next(&self, objects: &[Arc<Object>], settings: &Settings) -> Self {
        Self::after(&self.kept, objects, settings)
    }

    fn after(before: &Kept, objects: &[Arc<Object>], settings: &Settings) -> Self {
        let mut by_kind: BTreeMap<(Kind, &str, &str), &Arc<Object>> = BTreeMap::new();
        let mut annotations = HashMap::new();
        for object in objects {
            if object.is("", "Namespace") {
                annotations.insert(object.meta.name.clone(), object.meta.annotations.clone());
            } else if let Some((kind, _)) = kind_of(object) {
                by_kind.insert((kind, &object.meta.namespace, &object.meta.name), object);
            }
        }
        let kept = Kept { lists: before.lists.in_use(), ..Kept::default() };
        let mut builder = Builder { settings, by_kind, before, kept, defects: Vec::new() };
        let servers = builder.servers();
        let (kept, mut defects) = (builder.kept, builder.defects);
        for (namespace, annotations) in &annotations {
            // What a namespace says wrong is told once, and not for each of its pods.
            Defaults::read(InboundDefault::Deny, namespace, None, annotations, &mut defects);
        }
        defects.sort();
        Self { settings: settings.clone(), servers, annotations, defects, kept }
    }

    /// What could not be taken as it is written.
    pub fn defects(&self) -> &[Defect] {
        &self.defects
    }

    pub fn inbound(&self, subject: &Subject<'_>) -> Inbound {
        let facts = subject.facts;
        let mut taken: BTreeMap<u16, PortPolicyOf<'_>> = BTreeMap::new();
        let mut rest = None;
        for (server, policy) in self.servers.get(subject.namespace).into_iter().flatten() {
            match server.takes(facts) {
                None => {}
                Some(Taken::Rest) => drop(rest.get_or_insert(policy)),
                Some(Taken::Ports(ports)) => {
                    for port in ports {
                        taken.entry(port).or_insert_with(|| PortPolicyOf::new(policy)).also(&policy.by);
                    }
                }
            }
        }
        let mut probes: BTreeMap<u16, Vec<Arc<str>>> = BTreeMap::new();
        for probe in &facts.probes {
            probes.entry(probe.port).or_default().push(probe.path.clone());
        }
        let with_probes = |policy: Arc<PortPolicy>, port| match probes.get(&port) {
            Some(paths) => self.with_probes(policy, paths),
            None => policy,
        };
        let mut ports: BTreeMap<_, _> =
            taken.into_iter().map(|(port, policy)| (port, with_probes(policy.done(), port))).collect();

        let mut defects = Vec::new();
        let namespace: Arc<str> = subject.namespace.into();
        let defaults = Defaults::read(
            self.settings.default_inbound_policy,
            &namespace,
            self.annotations.get(subject.namespace),
            &facts.annotations,
            &mut defects,
        );
        let linkerd_namespace = self.settings.linkerd_namespace.clone();
        if let Some(server) = rest {
            return Inbound { ports, other: server.clone(), linkerd_namespace, defects };
        }
        let plain = self.by_default(&defaults, defaults.access);
        let identified = self.by_default(&defaults, with_identity(defaults.access));
        let all_identified = defaults.with_identity.are_all();
        for port in probes.keys().copied() {
            ports.entry(port).or_insert_with(|| {
                let identity = defaults.with_identity.contain(port);
                let policy = if identity { identified.clone() } else { plain.clone() };
                if defaults.opaque.contain(port) { policy } else { with_probes(policy, port) }
            });
        }
        if !all_identified && identified != plain {
            for port in defaults.with_identity.iter() {
                ports.entry(port).or_insert_with(|| identified.clone());
            }
        }
        let other = if all_identified { identified } else { plain };
        Inbound { ports, other, linkerd_namespace, defects }
    }

    fn by_default(&self, defaults: &Defaults, access: InboundDefault) -> Arc<PortPolicy> {
        let name = access.as_str().into();
        let by = ResourceRef { kind: Kind::LinkerdDefault, namespace: defaults.namespace.clone(), name };
        let admits = clients::by_default(&by, access, &self.settings);
        Arc::new(PortPolicy {
            by: Arc::new(by),
            protocol: Protocol::Unknown,
            routes: Arc::default(),
            authorizations: Authorizations::new(
                admits.map(Authorization::new).into_iter().collect(),
                &Lists::default(),
            ),
            otherwise: Otherwise::of(access),
            broken: defaults.broken.clone(),
            shadowed: Vec::new(),
        })
    }

    /// Probes are admitted by themselves where no route says what becomes of requests.
    fn with_probes(&self, policy: Arc<PortPolicy>, paths: &[Arc<str>]) -> Arc<PortPolicy> {
        let apart = policy.protocol.has_requests() && policy.routes.is_empty() && policy.broken.is_none();
        if !apart || self.settings.probe_networks.is_empty() {
            return policy;
        }
        let resource = ResourceRef { kind: Kind::LinkerdDefault, namespace: "".into(), name: "probe".into() };
        let mut policy = (*policy).clone();
        let probes = clients::probes(&resource, paths.to_vec(), &self.settings);
        policy.authorizations.probes = Some(Authorization::new(probes));
        Arc::new(policy)
    }
}

impl Otherwise {
    fn of(access: InboundDefault) -> Self {
        if access == InboundDefault::Audit { Self::Audit } else { Self::Deny }
    }
}

/// A port's policy while it is found out who else would take the port.
struct PortPolicyOf<'a> {
    policy: &'a Arc<PortPolicy>,
    shadowed: Vec<Arc<ResourceRef>>,
}

impl<'a> PortPolicyOf<'a> {
    fn new(policy: &'a Arc<PortPolicy>) -> Self {
        Self { policy, shadowed: Vec::new() }
    }

    fn also(&mut self, server: &Arc<ResourceRef>) {
        if self.policy.by != *server && !self.shadowed.contains(server) {
            self.shadowed.push(server.clone());
        }
    }

    fn done(self) -> Arc<PortPolicy> {
        match self.shadowed.is_empty() {
            true => self.policy.clone(),
            false => Arc::new(PortPolicy { shadowed: self.shadowed, ..(**self.policy).clone() }),
        }
    }
}

/// Which of the kinds an object is of, and the versions that there are of it.
fn kind_of(object: &Object) -> Option<(Kind, &'static [&'static str])> {
    const ALPHA: &[&str] = &["v1alpha1"];
    const BETA: &[&str] = &["v1alpha1", "v1beta1"];
    const ALL: &[&str] = &["v1alpha1", "v1beta1", "v1beta2", "v1beta3"];
    const GATEWAY: &[&str] = &["v1", "v1beta1", "v1alpha2"];
    Some(match (&*object.group, &*object.kind) {
        (LINKERD_GROUP, "Server") => (Kind::Server, ALL),
        (LINKERD_GROUP, "ServerAuthorization") => (Kind::ServerAuthorization, BETA),
        (LINKERD_GROUP, "AuthorizationPolicy") => (Kind::LinkerdAuthorizationPolicy, ALPHA),
        (LINKERD_GROUP, "MeshTLSAuthentication") => (Kind::MeshTlsAuthentication, ALPHA),
        (LINKERD_GROUP, "NetworkAuthentication") => (Kind::NetworkAuthentication, ALPHA),
        (LINKERD_GROUP, "HTTPRoute") => (Kind::LinkerdHttpRoute, ALL),
        (LINKERD_GROUP, "HTTPLocalRateLimitPolicy") => (Kind::RateLimit, ALPHA),
        (GATEWAY_GROUP, "HTTPRoute") => (Kind::HttpRoute, GATEWAY),
        (GATEWAY_GROUP, "GRPCRoute") => (Kind::GrpcRoute, GATEWAY),
        _ => return None,
    })
}

/// Reads everything once, and puts each Server's things together.
struct Builder<'a> {
    settings: &'a Settings,
    by_kind: BTreeMap<(Kind, &'a str, &'a str), &'a Arc<Object>>,
    before: &'a Kept,
    kept: Kept,
    defects: Vec<Defect>,
}

/// By namespace and name of the Server.
type RoutesOf = HashMap<(Arc<str>, Arc<str>), Vec<Arc<Route>>>;

/// Who is authorized for what, in one namespace.
#[derive(Default)]
struct Authorized {
    by_server: HashMap<Arc<str>, Vec<Arc<Authorization>>>,
    by_labels: Vec<(super::object::LabelSelector, Arc<Authorization>)>,
    everywhere: Vec<Arc<Authorization>>,
    /// Names of routes in lower case.
    by_route: HashMap<(Kind, String), Vec<Arc<Authorization>>>,
}

impl<'a> Builder<'a> {
    /// Reads each of a kind.
    fn each<T>(
        &self,
        kind: Kind,
        holds: &'static str,
        read: impl Fn(&Arc<Object>, &mut Faults) -> T,
    ) -> Vec<(Faults, T)> {
        let mut all = Vec::new();
        for ((_, namespace, name), object) in self.by_kind.range((kind, "", "")..) {
            let Some((found, versions)) = kind_of(object).filter(|(found, _)| *found == kind) else { break };
            let resource = ResourceRef { kind: found, namespace: (*namespace).into(), name: (*name).into() };
            let mut faults = Faults::new(resource, holds);
            if !versions.contains(&&*object.version) {
                faults.invalid("apiVersion", format_args!("there is no {} of it", object.version));
            }
            let read = read(object, &mut faults);
            all.push((faults, read));
        }
        all
    }

    fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.by_kind.contains_key(&(kind, namespace, name))
    }

    fn servers(&mut self) -> HashMap<Arc<str>, Vec<(Server, Arc<PortPolicy>)>> {
        self.rate_limits();
        let authorized = self.authorized();
        let mut routes = self.routes(&authorized);
        let nobody = Authorized::default();
        let mut servers: HashMap<Arc<str>, Vec<_>> = HashMap::new();
        let read = |object: &Arc<Object>, faults: &mut Faults| Server::read(object, faults);
        for (faults, server) in self.each(Kind::Server, server::HOLDS, read) {
            self.defects.extend(faults.defects);
            let namespace = server.resource.namespace.clone();
            let of = authorized.get(&namespace).unwrap_or(&nobody);
            let routes = routes.remove(&(namespace.clone(), server.resource.name.clone()));
            let policy = self.server(&server, of, routes.unwrap_or_default());
            servers.entry(namespace).or_default().push((server, policy));
        }
        for servers in servers.values_mut() {
            let age = |server: &Server| (server.created, server.resource.name.clone());
            servers.sort_by_key(|(server, _)| age(server));
        }
        servers
    }

    /// Requests are not counted, and whoever wrote a limit has to know.
    fn rate_limits(&mut self) {
        const HOLDS: &str = "no request is refused by it";
        for (mut faults, server) in self.each(Kind::RateLimit, HOLDS, clients::limited) {
            if let Some(server) = server {
                self.check(&mut faults, "spec.targetRef", Kind::Server, &server);
            }
            self.defects.extend(faults.defects);
        }
    }

    fn server(&mut self, server: &Server, of: &Authorized, mut routes: Vec<Arc<Route>>) -> Arc<PortPolicy> {
        let by = Arc::new(server.resource.clone());
        let own = of.by_server.get(&by.name).into_iter().flatten();
        let selected = of.by_labels.iter().filter(|(labels, _)| labels.selects(&server.labels));
        let mut authorizations: Vec<_> =
            own.chain(selected.map(|(_, one)| one)).chain(&of.everywhere).cloned().collect();
        let access = clients::by_default(&by, server.access, self.settings);
        authorizations.extend(access.map(|policy| self.authorization(policy)));
        if !server.protocol.has_requests() {
            for route in routes.drain(..) {
                let message = format!("{by} is of a protocol without requests, so it is for none");
                let resource = (*route.by).clone();
                let field = "spec.parentRefs".to_string();
                self.defects.push(Defect { resource, field, kind: DefectKind::Unsupported, message });
            }
        }
        routes.sort_by(|a, b| {
            let age = |route: &Route| (route.created, route.by.name.clone(), route.by.kind, route.rule);
            age(a).cmp(&age(b))
        });
        let key = (by.namespace.clone(), by.name.clone());
        let before = self.before.policies.get(&key);
        let lists = &self.kept.lists;
        let routes = match before {
            Some(before) if *before.routes.all() == routes => before.routes.clone(),
            _ => Arc::new(Routes::new(routes, lists)),
        };
        let policy = PortPolicy {
            by,
            protocol: server.protocol,
            routes,
            authorizations: Authorizations::new(authorizations, lists),
            otherwise: Otherwise::of(server.access),
            broken: server.broken.clone(),
            shadowed: Vec::new(),
        };
        let policy = match before {
            Some(before) if **before == policy => before.clone(),
            _ => Arc::new(policy),
        };
        self.kept.policies.insert(key, policy.clone());
        policy
    }

    fn routes(&mut self, authorized: &HashMap<Arc<str>, Authorized>) -> RoutesOf {
        let mut routes = RoutesOf::new();
        for kind in [Kind::LinkerdHttpRoute, Kind::HttpRoute, Kind::GrpcRoute] {
            let before = self.before;
            let read = |object: &Arc<Object>, faults: &mut Faults| {
                let key = (kind, object.meta.namespace.clone(), object.meta.name.clone());
                let spec = match before.routes.get(&key) {
                    Some((same, spec)) if *same == *object => spec.clone(),
                    _ => Arc::new(RouteSpec::read(object, faults)),
                };
                // Those are the route's.
                faults.defects.clear();
                (object.clone(), key, spec)
            };
            for (mut faults, (object, key, spec)) in self.each(kind, route::HOLDS, read) {
                let namespace = &spec.resource.namespace;
                self.defects.extend(spec.defects.iter().cloned());
                for server in &spec.servers {
                    if !self.has(Kind::Server, namespace, server) {
                        let message =
                            format!("there is no Server {namespace}/{server}; it is for nothing there");
                        faults.tell(DefectKind::Dangling, "spec.parentRefs", message);
                    }
                }
                self.defects.extend(faults.defects);
                let of_route = (kind, spec.resource.name.to_ascii_lowercase());
                let authorizations = authorized
                    .get(namespace)
                    .and_then(|of| of.by_route.get(&of_route))
                    .cloned()
                    .unwrap_or_default();
                let rules = self.rules(&key, &spec, Authorizations::new(authorizations, &self.kept.lists));
                for server in &spec.servers {
                    let of = routes.entry((namespace.clone(), server.clone())).or_default();
                    of.extend(rules.iter().cloned());
                }
                self.kept.rules.insert(key.clone(), rules);
                self.kept.routes.insert(key, (object, spec));
            }
        }
        routes
    }

    /// Those of before where neither the route nor who is admitted has changed.
    fn rules(&self, key: &Key, spec: &Arc<RouteSpec>, authorizations: Authorizations) -> Vec<Arc<Route>> {
        let same = self.before.routes.get(key).is_some_and(|(_, before)| Arc::ptr_eq(before, spec));
        if let Some(rules) = self.before.rules.get(key)
            && same
            && rules.iter().all(|rule| rule.authorizations == authorizations)
        {
            return rules.clone();
        }
        let by = Arc::new(spec.resource.clone());
        let rule = |(rule, of): (u32, &RuleSpec)| Route {
            by: by.clone(),
            rule,
            hostnames: spec.hostnames.clone(),
            matches: of.matches.clone(),
            filters: of.filters.clone(),
            created: spec.created,
            authorizations: authorizations.clone(),
            broken: spec.broken.clone(),
        };
        (0..).zip(&spec.rules).map(rule).map(Arc::new).collect()
    }

    /// The one of before where it is the same.
    fn authorization(&mut self, policy: Policy) -> Arc<Authorization> {
        let key = (policy.kind, policy.namespace.clone(), policy.name.clone());
        let one = match self.before.authorizations.get(&key) {
            Some(before) if *before.policy == policy => before.clone(),
            _ => Authorization::new(policy),
        };
        self.kept.authorizations.insert(key, one.clone());
        one
    }

    /// By namespace.
    fn authorized(&mut self) -> HashMap<Arc<str>, Authorized> {
        let settings = self.settings;
        let known = self.authentications();
        let mut authorized: HashMap<Arc<str>, Authorized> = HashMap::new();
        let read = |object: &Arc<Object>, faults: &mut Faults| {
            clients::server_authorization(object, settings, faults)
        };
        for (mut faults, (servers, policy)) in self.each(Kind::ServerAuthorization, clients::HOLDS, read) {
            let namespace = policy.namespace.clone();
            let of = authorized.entry(namespace.clone()).or_default();
            let authorization = self.authorization(policy);
            match servers {
                None => {}
                Some(Servers::Selected(labels)) => of.by_labels.push((labels, authorization)),
                Some(Servers::Named(name)) => {
                    self.check(&mut faults, "spec.server.name", Kind::Server, &name);
                    of.by_server.entry(name).or_default().push(authorization);
                }
            }
            self.defects.extend(faults.defects);
        }
        let read = |object: &Arc<Object>, faults: &mut Faults| {
            clients::authorization_policy(object, &known, settings, faults)
        };
        for (mut faults, (target, policy)) in
            self.each(Kind::LinkerdAuthorizationPolicy, clients::HOLDS, read)
        {
            let of = authorized.entry(policy.namespace.clone()).or_default();
            let authorization = self.authorization(policy);
            match target {
                None => {}
                Some(Target::Namespace) => of.everywhere.push(authorization),
                Some(Target::Server(name)) => {
                    self.check(&mut faults, "spec.targetRef", Kind::Server, &name);
                    of.by_server.entry(name).or_default().push(authorization);
                }
                Some(Target::Route(kind, name)) => {
                    self.check(&mut faults, "spec.targetRef", kind, &name);
                    let key = (kind, name.to_ascii_lowercase());
                    of.by_route.entry(key).or_default().push(authorization);
                }
            }
            self.defects.extend(faults.defects);
        }
        authorized
    }

    /// What an authorization is for has to be there.
    fn check(&self, faults: &mut Faults, field: &str, kind: Kind, name: &str) {
        let namespace = faults.resource.namespace.clone();
        if !self.has(kind, &namespace, name) && !self.has(kind, &namespace, &name.to_ascii_lowercase()) {
            let message = format!("there is no {kind} {namespace}/{name}; it is for nothing");
            faults.tell(DefectKind::Dangling, field, message);
        }
    }

    fn authentications(&mut self) -> Authentications {
        let settings = self.settings;
        let mut known = Authentications::default();
        let read = |object: &Arc<Object>, faults: &mut Faults| {
            clients::mesh_tls_authentication(object, settings, faults)
        };
        for (faults, identities) in self.each(Kind::MeshTlsAuthentication, clients::HOLDS, read) {
            let key = (faults.resource.namespace.clone(), faults.resource.name.clone());
            known.mesh_tls.insert(key, faults.broken().map_or(Ok(identities), Err));
            self.defects.extend(faults.defects);
        }
        let read =
            |object: &Arc<Object>, faults: &mut Faults| clients::network_authentication(object, faults);
        for (faults, networks) in self.each(Kind::NetworkAuthentication, clients::HOLDS, read) {
            let key = (faults.resource.namespace.clone(), faults.resource.name.clone());
            known.networks.insert(key, faults.broken().map_or(Ok(networks), Err));
            self.defects.extend(faults.defects);
        }
        known
    }
}

#[cfg(test)]
mod tests;
