//! Who is admitted: ServerAuthorization, and AuthorizationPolicy with its authentications.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::TrustDomain;

use super::super::object::{LabelSelector, Object};
use super::super::resource::{DefectKind, Kind, ResourceRef};
use super::super::rules::{Action, Group, Match, Policy, Rule, Scope, StringMatch};
use super::super::settings::{InboundDefault, Settings};
use super::read::{Faults, Node, Reference};
use super::{GATEWAY_GROUP, LINKERD_GROUP};

pub(super) const HOLDS: &str = "it admits nobody";

/// A client's identity, as it is written.
#[derive(Clone)]
pub(super) enum Identity {
    /// Any that is proven.
    Any,
    Spiffe(Arc<str>),
    /// `<account>.<namespace>.serviceaccount.identity.<control plane's namespace>.<trust domain>`, or the
    /// end of one.
    Linkerd(StringMatch),
}

impl Identity {
    fn read(node: &Node<'_>, faults: &mut Faults) -> Option<Self> {
        let text = node.text(faults)?;
        let identity = match text {
            "*" => Some(Self::Any),
            _ if text.starts_with("spiffe://") => is_spiffe(text).then(|| Self::Spiffe(text.into())),
            _ => match text.strip_prefix("*.") {
                Some(rest) => {
                    let suffix = || Self::Linkerd(StringMatch::Suffix(format!(".{rest}").into()));
                    is_dns(rest).then(suffix)
                }
                None => is_dns(text).then(|| Self::Linkerd(StringMatch::Exact(text.into()))),
            },
        };
        if identity.is_none() {
            faults.invalid(&node.path, format_args!("{text:?} is no identity"));
        }
        identity
    }

    fn of_account(namespace: &str, account: &str, settings: &Settings) -> Self {
        let tail = tail(settings);
        Self::Linkerd(StringMatch::Exact(format!("{account}.{namespace}.{tail}").into()))
    }

    fn of_namespace(namespace: &str, settings: &Settings) -> Self {
        Self::Linkerd(StringMatch::Suffix(format!(".{namespace}.{}", tail(settings)).into()))
    }
}

/// What stands behind account and namespace in every identity of this mesh.
fn tail(settings: &Settings) -> String {
    format!("serviceaccount.identity.{}.{}", settings.linkerd_namespace, settings.trust_domain.as_str())
}

fn is_dns(name: &str) -> bool {
    name.split('.').all(is_dns_label)
}

pub(super) fn is_dns_label(label: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.first().copied().is_some_and(plain)
        && bytes.last().copied().is_some_and(plain)
        && bytes.iter().all(|b| plain(*b) || *b == b'-')
}

fn is_spiffe(id: &str) -> bool {
    let rest = id.trim_start_matches("spiffe://");
    let (domain, path) = rest.split_once('/').unwrap_or((rest, "x"));
    let segment = |segment: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        !matches!(segment, "" | "." | "..") && segment.bytes().all(known)
    };
    id.len() <= 2048 && domain.parse::<TrustDomain>().is_ok() && path.split('/').all(segment)
}

/// Addresses of clients.
#[derive(Clone)]
pub(super) struct Network {
    cidr: IpNet,
    except: Vec<IpNet>,
}

impl Network {
    fn read(node: &Node<'_>, faults: &mut Faults) -> Option<Self> {
        let fields = node.fields(&["cidr", "except"], faults);
        let cidr = fields.required("cidr", faults)?.network(faults)?;
        let mut except = Vec::new();
        for node in fields.items("except", faults) {
            let excepted = node.network(faults)?;
            if !cidr.contains(&excepted) && !excepted.contains(&cidr) {
                let message = format!("{excepted} lies outside of {cidr}, so it excepts nothing");
                faults.tell(DefectKind::Invalid, &node.path, message);
            } else if excepted.contains(&cidr) {
                faults.tell(DefectKind::Invalid, &node.path, format!("nothing of {cidr} remains"));
            }
            except.push(excepted);
        }
        Some(Self { cidr, except })
    }
}

impl From<IpNet> for Network {
    fn from(cidr: IpNet) -> Self {
        Self { cidr, except: Vec::new() }
    }
}

fn anywhere() -> [IpNet; 2] {
    let four = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    let six = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0);
    [four.into(), six.into()]
}

/// One of the identities is proven. Of none, nobody's.
fn proven(identities: &[Identity]) -> Rule {
    let (mut spiffe, mut linkerd) = (Vec::new(), Vec::new());
    for identity in identities {
        match identity {
            Identity::Any => spiffe.push(StringMatch::Presence),
            Identity::Spiffe(id) => spiffe.push(StringMatch::Exact(id.clone())),
            Identity::Linkerd(name) => linkerd.push(name.clone()),
        }
    }
    let spiffe = Match { principals: spiffe, ..Match::default() };
    let linkerd = Match { linkerd_identities: linkerd, ..Match::default() };
    // One without any value never holds, which is what an empty list means.
    let matches = match (spiffe.principals.is_empty(), linkerd.linkerd_identities.is_empty()) {
        (_, true) => vec![spiffe],
        (true, false) => vec![linkerd],
        (false, false) => vec![spiffe, linkerd],
    };
    Rule { matches }
}

/// The client's address is in one of the networks.
fn from(networks: &[Network]) -> Rule {
    let one = |network: &Network| Match {
        source_ips: vec![network.cidr],
        not_source_ips: network.except.clone(),
        ..Match::default()
    };
    let nowhere = || vec![Match::default()];
    let matches: Vec<_> = networks.iter().map(one).collect();
    Rule { matches: if matches.is_empty() { nowhere() } else { matches } }
}

fn policy(resource: &ResourceRef, group: Group) -> Policy {
    Policy {
        kind: resource.kind,
        namespace: resource.namespace.clone(),
        name: resource.name.clone(),
        scope: Scope::WorkloadSelector,
        action: Action::Allow,
        dry_run: false,
        groups: vec![group],
        defect: None,
    }
}

/// What a default policy, or a Server's `accessPolicy`, admits by itself. None: nobody; `audit` is told by
/// who asks.
pub(super) fn by_default(
    resource: &ResourceRef,
    access: InboundDefault,
    settings: &Settings,
) -> Option<Policy> {
    let cluster = cluster(settings);
    let mesh = || proven(&[Identity::Any]);
    let rules = match access {
        InboundDefault::AllUnauthenticated => vec![],
        InboundDefault::AllAuthenticated => vec![mesh()],
        InboundDefault::ClusterAuthenticated => vec![mesh(), from(&cluster)],
        InboundDefault::ClusterUnauthenticated => vec![from(&cluster)],
        InboundDefault::Deny | InboundDefault::Audit => return None,
    };
    Some(policy(resource, Group { rules, never: None }))
}

/// What counts as the cluster where a policy names no networks. A client whose address is not known counts too:
/// no connection has the unspecified address, only a question in which the address was left out.
fn cluster(settings: &Settings) -> Vec<Network> {
    let unknown =
        [IpNet::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)), IpAddr::from(Ipv6Addr::UNSPECIFIED).into()];
    settings.cluster_networks.iter().copied().chain(unknown).map(Network::from).collect()
}

/// The kubelet's probes: GET of these paths, from where probes come.
pub(super) fn probes(resource: &ResourceRef, paths: Vec<Arc<str>>, settings: &Settings) -> Policy {
    use super::super::rules::PathMatch;
    let exact = |path| PathMatch::String(StringMatch::Exact(path));
    let request = Match {
        methods: vec![StringMatch::Exact("GET".into())],
        paths: paths.into_iter().map(exact).collect(),
        ..Match::default()
    };
    let networks: Vec<Network> = settings.probe_networks.iter().copied().map(Network::from).collect();
    policy(resource, Group { rules: vec![from(&networks), Rule { matches: vec![request] }], never: None })
}

/// `spec.server` of a ServerAuthorization.
pub(super) enum Servers {
    Named(Arc<str>),
    Selected(LabelSelector),
}

pub(super) fn server_authorization(
    object: &Object,
    settings: &Settings,
    faults: &mut Faults,
) -> (Option<Servers>, Policy) {
    let fields = Node::spec(&object.spec).fields(&["server", "client"], faults);
    let servers = fields.required("server", faults).and_then(|node| Servers::read(&node, faults));
    let mut rules = Vec::new();
    if let Some(node) = fields.required("client", faults) {
        let client = node.fields(&["networks", "unauthenticated", "meshTLS"], faults);
        let mut networks = Vec::new();
        for node in client.items("networks", faults) {
            networks.extend(Network::read(&node, faults));
        }
        // Not said is the cluster's.
        if networks.is_empty() {
            networks = cluster(settings);
        }
        rules.push(from(&networks));
        let anybody = client.get("unauthenticated").and_then(|node| node.truth(faults)).unwrap_or(false);
        match (anybody, client.get("meshTLS")) {
            (true, None) => {}
            (false, Some(mesh)) => {
                rules.push(proven(&mesh_tls(&mesh, &object.meta.namespace, settings, faults)));
            }
            (true, Some(mesh)) => faults.invalid(&mesh.path, "it excludes unauthenticated"),
            (false, None) => faults.invalid(&node.path, "it says neither unauthenticated nor meshTLS"),
        }
    }
    (servers, policy(&faults.resource, Group { rules, never: faults.broken() }))
}

impl Servers {
    fn read(node: &Node<'_>, faults: &mut Faults) -> Option<Self> {
        let fields = node.fields(&["name", "selector"], faults);
        match (fields.get("name"), fields.get("selector")) {
            (Some(name), None) => Some(Self::Named(name.name(faults)?.into())),
            (None, Some(selector)) => Some(Self::Selected(selector.selector(faults))),
            _ => {
                faults.invalid(&node.path, "it needs one of name and selector");
                None
            }
        }
    }
}

fn mesh_tls(node: &Node<'_>, namespace: &str, settings: &Settings, faults: &mut Faults) -> Vec<Identity> {
    let fields = node.fields(&["unauthenticatedTLS", "identities", "serviceAccounts"], faults);
    let mut identities = Vec::new();
    for node in fields.items("identities", faults) {
        identities.extend(Identity::read(&node, faults));
    }
    for node in fields.items("serviceAccounts", faults) {
        let fields = node.fields(&["name", "namespace"], faults);
        let name = fields.required("name", faults).and_then(|node| node.name(faults));
        let namespace = match fields.get("namespace") {
            None => Some(namespace),
            Some(node) => node.name(faults),
        };
        if let (Some(name), Some(namespace)) = (name, namespace) {
            identities.push(Identity::of_account(namespace, name, settings));
        }
    }
    let unproven = fields.get("unauthenticatedTLS").and_then(|node| node.truth(faults)).unwrap_or(false);
    match (unproven, identities.is_empty()) {
        // Our TLS is always mutual: whoever has TLS has an identity.
        (true, true) => vec![Identity::Any],
        (true, false) => {
            let path = fields.path("unauthenticatedTLS");
            faults.invalid(&path, "it excludes identities and serviceAccounts");
            identities
        }
        (false, true) => {
            faults.invalid(&node.path, "it names nobody");
            identities
        }
        (false, false) => identities,
    }
}

pub(super) fn mesh_tls_authentication(
    object: &Object,
    settings: &Settings,
    faults: &mut Faults,
) -> Vec<Identity> {
    let fields = Node::spec(&object.spec).fields(&["identities", "identityRefs"], faults);
    if fields.get("identities").is_some() == fields.get("identityRefs").is_some() {
        faults.invalid("spec", "it needs one of identities and identityRefs");
    }
    let mut identities = Vec::new();
    for node in fields.items("identities", faults) {
        identities.extend(Identity::read(&node, faults));
    }
    for node in fields.items("identityRefs", faults) {
        let Some(named) = Reference::read(&node, &REFERENCE, faults) else { continue };
        if named.is("", "ServiceAccount") {
            let namespace = named.namespace.unwrap_or(&object.meta.namespace);
            identities.push(match named.name {
                // Every one of its namespace.
                "" => Identity::of_namespace(namespace, settings),
                name => Identity::of_account(namespace, name, settings),
            });
        } else if named.is("", "Namespace") && !named.name.is_empty() && named.namespace.is_none() {
            identities.push(Identity::of_namespace(named.name, settings));
        } else if named.is("", "Namespace") {
            faults.invalid(&node.path, "a namespace is named by name, and by nothing else");
        } else {
            faults.invalid(&node.path, format_args!("{} is nobody's identity", named.title()));
        }
    }
    if identities.is_empty() {
        faults.invalid("spec", "it names nobody");
    }
    identities
}

pub(super) fn network_authentication(object: &Object, faults: &mut Faults) -> Vec<Network> {
    let fields = Node::spec(&object.spec).fields(&["networks"], faults);
    let mut networks = Vec::new();
    if let Some(node) = fields.required("networks", faults) {
        for node in node.items(faults) {
            networks.extend(Network::read(&node, faults));
        }
        if networks.is_empty() {
            faults.invalid(&node.path, "it names no network");
        }
    }
    networks
}

/// `spec.targetRef` of an AuthorizationPolicy.
pub(super) enum Target {
    Server(Arc<str>),
    /// All Servers of its namespace.
    Namespace,
    Route(Kind, Arc<str>),
}

/// By namespace and name; what is broken, with the reason, admits nobody whoever requires it.
type Named<T> = BTreeMap<(Arc<str>, Arc<str>), Result<Vec<T>, Arc<str>>>;

#[derive(Default)]
pub(super) struct Authentications {
    pub(super) mesh_tls: Named<Identity>,
    pub(super) networks: Named<Network>,
}

const REFERENCE: [&str; 4] = ["group", "kind", "name", "namespace"];

pub(super) fn authorization_policy(
    object: &Object,
    known: &Authentications,
    settings: &Settings,
    faults: &mut Faults,
) -> (Option<Target>, Policy) {
    let fields = Node::spec(&object.spec).fields(&["targetRef", "requiredAuthenticationRefs"], faults);
    let target = fields.required("targetRef", faults).and_then(|node| Target::read(&node, object, faults));
    let mut rules = Vec::new();
    if let Some(node) = fields.required("requiredAuthenticationRefs", faults) {
        for node in node.items(faults) {
            rules.extend(required(&node, &object.meta.namespace, known, settings, faults));
        }
        // Anybody, and it says so.
        if rules.is_empty() {
            rules.push(from(&anywhere().map(Network::from)));
        }
    }
    (target, policy(&faults.resource, Group { rules, never: faults.broken() }))
}

/// The Server whose requests an HTTPLocalRateLimitPolicy is to limit.
pub(super) fn limited(object: &Arc<Object>, faults: &mut Faults) -> Option<Arc<str>> {
    let fields = Node::spec(&object.spec).any_fields(faults);
    let node = fields.required("targetRef", faults)?;
    let named = Reference::read(&node, &["group", "kind", "name"], faults)?;
    if !named.is(LINKERD_GROUP, "Server") || named.name.is_empty() {
        faults
            .invalid(&node.path, format_args!("{} is nothing whose requests can be limited", named.title()));
        return None;
    }
    let what =
        format!("requests are not counted: whoever is admitted to {} is admitted at any rate", named.name);
    faults.tell(DefectKind::Unsupported, "spec", what);
    Some(named.name.into())
}

impl Target {
    fn read(node: &Node<'_>, object: &Object, faults: &mut Faults) -> Option<Self> {
        let named = Reference::read(node, &["group", "kind", "name"], faults)?;
        let name: Arc<str> = named.name.into();
        if name.is_empty() {
            faults.invalid(&node.path, "it has no name");
            return None;
        }
        let routes = [
            (LINKERD_GROUP, "HTTPRoute", Kind::LinkerdHttpRoute),
            (GATEWAY_GROUP, "HTTPRoute", Kind::HttpRoute),
            (GATEWAY_GROUP, "GRPCRoute", Kind::GrpcRoute),
        ];
        if named.is(LINKERD_GROUP, "Server") {
            return Some(Self::Server(name));
        }
        if let Some((_, _, kind)) = routes.into_iter().find(|(group, kind, _)| named.is(group, kind)) {
            return Some(Self::Route(kind, name));
        }
        if !named.is("", "Namespace") {
            let what = format!("{} is nothing that access can be given to", named.title());
            faults.refuse(DefectKind::Unsupported, &node.path, what);
            return None;
        }
        if name != object.meta.namespace {
            faults.invalid(&node.path, "it can only be for its own namespace");
            return None;
        }
        Some(Self::Namespace)
    }
}

fn required(
    node: &Node<'_>,
    namespace: &Arc<str>,
    known: &Authentications,
    settings: &Settings,
    faults: &mut Faults,
) -> Option<Rule> {
    let named = Reference::read(node, &REFERENCE, faults)?;
    if named.name.is_empty() {
        faults.invalid(&node.path, "it has no name");
        return None;
    }
    let namespace: Arc<str> = named.namespace.map_or_else(|| namespace.clone(), Arc::from);
    let key = (namespace.clone(), Arc::from(named.name));
    let rule = if named.is("", "ServiceAccount") {
        Some(Ok(proven(&[Identity::of_account(&namespace, named.name, settings)])))
    } else if named.is(LINKERD_GROUP, "MeshTLSAuthentication") {
        known.mesh_tls.get(&key).map(|found| found.as_deref().map(proven))
    } else if named.is(LINKERD_GROUP, "NetworkAuthentication") {
        known.networks.get(&key).map(|found| found.as_deref().map(from))
    } else {
        let what = format!("{} authenticates nobody", named.title());
        faults.refuse(DefectKind::Unsupported, &node.path, what);
        return None;
    };
    let title = format!("{} {namespace}/{}", named.kind, named.name);
    match rule {
        Some(Ok(rule)) => Some(rule),
        Some(Err(why)) => {
            faults.invalid(&node.path, format_args!("{title} could not be understood ({why})"));
            None
        }
        None => {
            faults.refuse(DefectKind::Dangling, &node.path, format_args!("there is no {title}"));
            None
        }
    }
}
