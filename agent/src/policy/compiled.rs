//! The policies of one workload, ready to be asked about connections and requests.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{MtlsMode, SpiffeId};

use super::linkerd::{Inbound, PortPolicy, RouteFilters};
use super::mtls::{EffectiveMtls, MtlsOrigin};
use super::own::{Exceptions, InPhase, Phase};
use super::peer::Peer;
use super::request::Request;
use super::resource::{Kind, ResourceRef};
use super::rule_list::RuleList;
use super::settings::{InboundDefault, Stance};
use super::verdict::{By, Connection, Verdict, Why};

/// What is known of a connection when it is judged, at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conn {
    /// Proven by the peer's certificate; none on plaintext.
    pub source: Option<SpiffeId>,
    /// Who is known to be at `source_ip`, of a client that proves nothing: no proof, whatever has the address. It
    /// counts for exceptions from mutual TLS only.
    pub at_source: Option<SpiffeId>,
    pub source_ip: IpAddr,
    /// The application's address and (target) port: not a service's, not the tunnel's.
    pub destination_ip: IpAddr,
    pub destination_port: u16,
    /// The server name in the application's own TLS, where it is known.
    pub sni: Option<Arc<str>>,
}

impl Conn {
    pub fn new(
        source: Option<SpiffeId>,
        source_ip: IpAddr,
        destination_ip: IpAddr,
        destination_port: u16,
    ) -> Self {
        Self { source, at_source: None, source_ip, destination_ip, destination_port, sni: None }
    }
}

/// Everything that decides about connections to one workload. Comparable, so that an unchanged policy
/// can be recognised after an unrelated change of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub(super) mtls: EffectiveMtls,
    /// The resources that set its mode and its ports' modes, where they are known.
    pub(super) mtls_by: [Option<Arc<ResourceRef>>; 2],
    /// How far all of it is enforced.
    pub(super) phase: InPhase,
    pub(super) exceptions: Exceptions,
    pub(super) blocks: Vec<Block>,
    pub(super) deny: Arc<RuleList>,
    pub(super) allow: Arc<RuleList>,
    pub(super) audit: Arc<RuleList>,
    /// None where there is no Linkerd dialect at all.
    pub(super) linkerd: Option<Arc<Inbound>>,
    pub(super) stance: Stance,
    pub(super) linkerd_namespace: Arc<str>,
    /// With the dry-run policies in force as well; none where none applies.
    pub(super) would: Option<Box<Compiled>>,
}

/// The default inbound policy that lets everybody in.
const OPEN: &str = InboundDefault::AllUnauthenticated.as_str();

impl Compiled {
    /// About one request; or, without one, about a connection on which something is sent that is not HTTP:
    /// a policy that allows does not match what cannot be known then, and one that denies does.
    ///
    /// STRICT before DENY before ALLOW before the default stance. When there are ALLOW policies, one of them
    /// has to match. That holds as far as the workload's phase enforces it.
    pub fn evaluate(&self, conn: &Conn, request: Option<&Request<'_>>) -> Verdict {
        self.in_phase(&self.peer(conn, request), PortPolicy::judge).on_request()
    }

    /// About a connection of which nothing was read yet.
    pub fn on_connection(&self, conn: &Conn) -> Connection {
        self.in_phase(&self.peer(conn, None), PortPolicy::whatever).on_connection()
    }

    /// What [`Compiled::evaluate`] would say in the phase Enforce.
    pub fn enforced(&self, conn: &Conn, request: Option<&Request<'_>>) -> Verdict {
        self.decide(&self.peer(conn, request), PortPolicy::judge, Phase::Enforce).on_request()
    }

    /// The same with the dry-run policies in force. None where none applies.
    pub fn with_dry_run_policies(&self, conn: &Conn, request: Option<&Request<'_>>) -> Option<Verdict> {
        self.would.as_ref().map(|would| would.enforced(conn, request))
    }

    /// What [`Compiled::evaluate`] would say if everything were in force: in the phase Enforce, and where nothing
    /// is refused then with the dry-run policies. None where everything is.
    pub fn dry_run(&self, conn: &Conn, request: Option<&Request<'_>>) -> Option<Verdict> {
        let dry = || self.with_dry_run_policies(conn, request);
        if self.phase.phase == Phase::Enforce {
            return dry();
        }
        match self.enforced(conn, request) {
            allowed if allowed.is_allow() => dry().or(Some(allowed)),
            denied => Some(denied),
        }
    }

    /// What becomes of a request that is allowed, by its route. Nothing where it would have been allowed anyway, in
    /// the phase Observe.
    pub fn filters(&self, conn: &Conn, request: &Request<'_>) -> RouteFilters {
        self.filtering(conn).map(|policy| policy.filters(request)).unwrap_or_default()
    }

    /// About a connection that has passed as bytes so far, and may be requests for all that is known: where something
    /// becomes of those, it cannot go on.
    pub fn unread(&self, conn: &Conn) -> Verdict {
        match self.evaluate(conn, None) {
            Verdict::Allow { .. } if self.filtering(conn).is_some() => {
                Verdict::Deny { by: None, why: Why::NotHttp }
            }
            verdict => verdict,
        }
    }

    fn filtering(&self, conn: &Conn) -> Option<&PortPolicy> {
        let policy = self.on_port(Some(conn.destination_port))?;
        (self.phase.phase != Phase::Observe && policy.has_filters()).then_some(policy)
    }

    /// How far policy is enforced, and who says so.
    pub fn phase(&self) -> &InPhase {
        &self.phase
    }

    /// The exception by which a client without identity gets as far as policies where mutual TLS is asked for.
    pub fn exception(&self, conn: &Conn) -> Option<Arc<ResourceRef>> {
        let asked = self.stance == Stance::Mtls || self.strict(Some(conn.destination_port)).is_some();
        let found = if asked { self.exceptions.admit(&self.peer(conn, None)) } else { None };
        found.map(|by| by.resource)
    }

    /// The AUDIT policies that match, each with the first rule that does.
    pub fn audited(&self, conn: &Conn, request: Option<&Request<'_>>) -> Vec<By> {
        let linkerd = self.linkerd.as_ref().and_then(|linkerd| linkerd.audited(conn, request));
        self.audit.all(&self.peer(conn, request)).into_iter().chain(linkerd).collect()
    }

    /// [`Compiled::dry_run`] about a connection of which nothing was read yet.
    pub fn dry_run_on_connection(&self, conn: &Conn) -> Option<Connection> {
        let enforced =
            |of: &Self| of.decide(&of.peer(conn, None), PortPolicy::whatever, Phase::Enforce).on_connection();
        let dry = || self.would.as_deref().map(enforced);
        if self.phase.phase == Phase::Enforce {
            return dry();
        }
        match enforced(self) {
            allowed @ Connection::Allow(_) => dry().or(Some(allowed)),
            other => Some(other),
        }
    }

    /// [`Compiled::audited`], as far as it holds whatever is requested.
    pub fn audited_on_connection(&self, conn: &Conn) -> Vec<By> {
        let port = conn.destination_port;
        let linkerd = self.linkerd.as_ref().filter(|linkerd| !linkerd.audits_requests(port));
        let linkerd = linkerd.and_then(|linkerd| linkerd.audited(conn, None));
        self.audit.all(&self.peer(conn, None)).into_iter().chain(linkerd).collect()
    }

    /// Whether what decides nothing (dry-run policies, audits) depends on what is requested.
    pub fn advises_on_requests(&self, conn: &Conn) -> bool {
        let port = conn.destination_port;
        self.needs_http(port)
            && (self.dry_run_on_connection(conn) == Some(Connection::PerRequest)
                || self.audit.looks_at_requests(port) && self.audit.depends(&self.peer(conn, None))
                || self.linkerd.as_ref().is_some_and(|linkerd| linkerd.audits_requests(port)))
    }

    /// Whether some policy looks at requests to this port, be it one that decides nothing.
    pub fn needs_http(&self, port: u16) -> bool {
        [&self.deny, &self.allow, &self.audit].iter().any(|rules| rules.looks_at_requests(port))
            || self.linkerd.as_ref().is_some_and(|linkerd| linkerd.on_port(port).looks_at_requests())
            || self.would.as_ref().is_some_and(|would| would.needs_http(port))
    }

    /// For a pod whose own workload nobody knows, and with it which policies apply: nobody gets in.
    pub fn deny_unknown_workload() -> Self {
        Self { blocks: vec![Block { by: None, why: Why::UnknownWorkload }], ..Self::new(STRICT) }
    }

    pub fn mtls(&self) -> &EffectiveMtls {
        &self.mtls
    }

    /// The mode on a port, the level that set it, and the resource, where it is known.
    pub fn mtls_on(&self, port: u16) -> (MtlsMode, MtlsOrigin, Option<&Arc<ResourceRef>>) {
        let (mode, origin) = self.mtls.on_port(port);
        let [by_mode, by_ports] = &self.mtls_by;
        (mode, origin, if origin == MtlsOrigin::Port { by_ports.as_ref() } else { by_mode.as_ref() })
    }

    /// `namespace/name` of each policy in force, DENY policies first.
    pub fn policy_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.deny.policies().iter().chain(self.allow.policies()).map(|policy| policy.name())
    }

    /// Why everything is denied, if it is, whoever asks.
    pub fn blocked(&self) -> Option<Verdict> {
        let enforced = self.phase.phase != Phase::Observe;
        self.blocks
            .first()
            .filter(|_| enforced)
            .map(|block| Verdict::Deny { by: block.by.clone(), why: block.why.clone() })
    }

    pub(super) fn new(mtls: EffectiveMtls) -> Self {
        Self {
            mtls,
            mtls_by: [None, None],
            phase: InPhase::default(),
            exceptions: Exceptions::default(),
            blocks: Vec::new(),
            deny: Arc::default(),
            allow: Arc::default(),
            audit: Arc::default(),
            linkerd: None,
            stance: Stance::Allow,
            linkerd_namespace: "linkerd".into(),
            would: None,
        }
    }

    /// With the same done to what it would be with the dry-run policies.
    #[allow(dead_code, reason = "for what comes from neither policies nor workloads")]
    pub(super) fn with(mut self, change: impl Fn(&mut Self)) -> Self {
        self.would.iter_mut().for_each(|would| change(would));
        change(&mut self);
        self
    }

    pub(super) fn peer<'a>(&'a self, conn: &'a Conn, request: Option<&'a Request<'a>>) -> Peer<'a> {
        Peer::new(conn, request, &self.linkerd_namespace)
    }

    /// What holds whatever the request is.
    pub(super) fn whatever(&self, peer: &Peer<'_>) -> Decision {
        self.in_phase(peer, PortPolicy::whatever)
    }

    /// What policy says, as far as it is enforced. Who is let in for that reason only is by the resource that
    /// says so.
    fn in_phase(&self, peer: &Peer<'_>, by_linkerd: ByLinkerd) -> Decision {
        let phase = self.phase.phase;
        if phase == Phase::Enforce {
            return self.decide(peer, by_linkerd, phase);
        }
        let lifted = self.phase.by.iter().map(|(by, _)| By::whole(by.clone()));
        match self.decide(peer, by_linkerd, Phase::Enforce) {
            allowed @ Decision::Allow(_) => allowed,
            _ if phase == Phase::Observe => Decision::Allow(lifted.collect()),
            Decision::Deny(_, Why::Strict(_)) => match self.decide(peer, by_linkerd, phase) {
                Decision::Allow(by) => Decision::Allow(lifted.chain(by).collect()),
                other => other,
            },
            other => other,
        }
    }

    /// Both systems have to admit. In a phase other than Enforce STRICT asks for nothing.
    fn decide(&self, peer: &Peer<'_>, by_linkerd: ByLinkerd, phase: Phase) -> Decision {
        if let Some(block) = self.blocks.first() {
            return Decision::Deny(block.by.clone(), block.why.clone());
        }
        let excepted = self.exceptions.admit(peer);
        let asked = peer.identity.is_none() && phase == Phase::Enforce;
        let strict = if asked { self.strict(peer.port) } else { None };
        let was_strict = strict.is_some();
        if let Some(strict) = strict.filter(|_| excepted.is_none()) {
            return strict;
        }
        let decision = self.rules(peer).and(|| match self.on_port(peer.port) {
            Some(policy) => by_linkerd(policy, peer),
            None => Decision::Allow(Vec::new()),
        });
        match decision {
            Decision::Allow(by) => self.stance(peer, by, excepted, was_strict),
            other => other,
        }
    }

    fn on_port(&self, port: Option<u16>) -> Option<&PortPolicy> {
        let linkerd = self.linkerd.as_ref()?;
        Some(match port {
            Some(port) => linkerd.on_port(port),
            None => &linkerd.other,
        })
    }

    fn strict(&self, port: Option<u16>) -> Option<Decision> {
        let (mode, origin, by) = match port {
            Some(port) => self.mtls_on(port),
            None => (self.mtls.mode, self.mtls.origin, self.mtls_by[0].as_ref()),
        };
        (mode == MtlsMode::Strict).then(|| Decision::Deny(by.cloned().map(By::whole), Why::Strict(origin)))
    }

    /// Deny wins over allow.
    fn rules(&self, peer: &Peer<'_>) -> Decision {
        let denied = self.deny.find(peer);
        if let Some(at) = denied.yes {
            return Decision::Deny(self.deny.by(at), Why::DenyMatched);
        }
        let denied = match denied.depends {
            Some(at) => Decision::Depends(self.deny.by(at)),
            None => Decision::Allow(Vec::new()),
        };
        denied.and(|| {
            if self.allow.is_empty() {
                return Decision::Allow(Vec::new());
            }
            let found = self.allow.find(peer);
            match (found.yes, found.depends) {
                (Some(at), _) => Decision::Allow(self.allow.by(at).into_iter().collect()),
                (None, Some(at)) => Decision::Depends(self.allow.by(at)),
                (None, None) => Decision::Deny(None, Why::NoAllowMatched(self.allow.policies().len())),
            }
        })
    }

    /// Only where no policy has allowed it by name.
    fn stance(&self, peer: &Peer<'_>, mut by: Vec<By>, excepted: Option<By>, was_strict: bool) -> Decision {
        // What holds where nobody says anything is no name.
        by.retain(|by| !(by.resource.kind == Kind::LinkerdDefault && *by.resource.name == *OPEN));
        let named = by.iter().any(|by| by.resource.kind != Kind::LinkerdDefault);
        let open = match self.stance {
            Stance::Allow => true,
            Stance::Mtls => peer.identity.is_some() || excepted.is_some(),
            Stance::Deny => false,
        };
        if !named && !open {
            return Decision::Deny(Some(By::whole(stance_resource())), Why::DefaultDeny);
        }
        // The last: it lets nobody in by itself.
        let rests_on_it = was_strict || (self.stance == Stance::Mtls && !named);
        by.extend(excepted.filter(|_| rests_on_it));
        Decision::Allow(by)
    }
}

fn stance_resource() -> Arc<ResourceRef> {
    Arc::new(ResourceRef { kind: Kind::Stance, namespace: "".into(), name: "default".into() })
}

/// How Linkerd's part is asked: about a request, or whatever is requested.
type ByLinkerd = fn(&PortPolicy, &Peer<'_>) -> Decision;

const STRICT: EffectiveMtls = EffectiveMtls {
    mode: MtlsMode::Strict,
    origin: MtlsOrigin::Workload,
    ports: std::collections::BTreeMap::new(),
};

/// What comes of some of the requirements, all of which have to be met.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Allow(Vec<By>),
    Deny(Option<By>, Why),
    /// On the request; for a policy that looks at it.
    Depends(Option<By>),
}

impl Decision {
    /// About one request, or bytes that are none.
    fn on_request(self) -> Verdict {
        match self {
            Self::Allow(by) => Verdict::Allow { by },
            Self::Deny(by, why) => Verdict::Deny { by, why },
            Self::Depends(by) => Verdict::Deny { by, why: Why::NotHttp },
        }
    }

    fn on_connection(self) -> Connection {
        match self {
            Self::Allow(by) => Connection::Allow(Verdict::Allow { by }),
            Self::Deny(by, why) => Connection::Deny(Verdict::Deny { by, why }),
            Self::Depends(_) => Connection::PerRequest,
        }
    }

    /// This one and the next. What is denied is denied, whatever else depends.
    pub(super) fn and(self, next: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Deny(..) => self,
            Self::Allow(mut by) => match next() {
                Self::Allow(more) => {
                    by.extend(more);
                    Self::Allow(by)
                }
                other => other,
            },
            Self::Depends(by) => match next() {
                Self::Deny(by, why) => Self::Deny(by, why),
                Self::Allow(_) | Self::Depends(_) => Self::Depends(by),
            },
        }
    }
}

/// A reason to deny everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) by: Option<By>,
    pub(super) why: Why,
}

impl Block {
    pub(super) fn unknown_policy(key: &str) -> Self {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let resource =
            ResourceRef { kind: Kind::Authorization, namespace: namespace.into(), name: name.into() };
        Self { by: Some(By::whole(Arc::new(resource))), why: Why::UnknownPolicy }
    }

    pub(super) fn defective_policy(resource: &Arc<ResourceRef>, defect: &Arc<str>) -> Self {
        Self { by: Some(By::whole(resource.clone())), why: Why::Defective(defect.clone()) }
    }
}
