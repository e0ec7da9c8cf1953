//! The policies of one workload, ready to be asked about connections.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{MtlsMode, SpiffeId};

use super::matcher::Matcher;
use super::mtls::{EffectiveMtls, MtlsOrigin};
use super::peer::Peer;
use super::tri::Tri;

/// What is known of a connection when it is judged, at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conn {
    /// Proven by the peer's certificate; none on plaintext.
    pub source: Option<SpiffeId>,
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
        Self { source, source_ip, destination_ip, destination_port, sni: None }
    }
}

/// Everything that decides about connections to one workload. Comparable, so that an unchanged policy
/// can be recognised after an unrelated change of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub(super) mtls: EffectiveMtls,
    pub(super) blocks: Vec<Block>,
    pub(super) deny: Vec<Arc<Matcher>>,
    pub(super) allow: Vec<Arc<Matcher>>,
    pub(super) audit: Vec<Arc<Matcher>>,
    /// With the dry-run policies in force as well; none where none applies.
    pub(super) would: Option<Box<Compiled>>,
}

impl Compiled {
    /// Deny wins over allow. When there are ALLOW policies, one of them has to match.
    pub fn evaluate(&self, conn: &Conn) -> Verdict {
        if let Some(block) = self.blocks.first() {
            return block.verdict();
        }
        let (mode, origin) = self.mtls.on_port(conn.destination_port);
        if conn.source.is_none() && mode == MtlsMode::Strict {
            return Verdict::Deny { by: None, why: Why::Strict(origin) };
        }
        let peer = Peer::new(conn, None, "linkerd");
        if let Some(policy) = self.deny.iter().find(|policy| policy.judge(&peer) != Tri::No) {
            return Verdict::Deny { by: Some(policy.name().clone()), why: Why::DenyMatched };
        }
        if self.allow.is_empty() {
            return Verdict::Allow { by: None };
        }
        match self.allow.iter().find(|policy| policy.judge(&peer) == Tri::Yes) {
            Some(policy) => Verdict::Allow { by: Some(policy.name().clone()) },
            None => Verdict::Deny { by: None, why: Why::NoAllowMatched(self.allow.len()) },
        }
    }

    /// What the answer would be if the dry-run policies were in force. None where none applies.
    pub fn dry_run(&self, conn: &Conn) -> Option<Verdict> {
        self.would.as_ref().map(|would| would.evaluate(conn))
    }

    /// Whether what is sent to this port has to be read as HTTP: some policy looks at requests.
    pub fn needs_http(&self, port: u16) -> bool {
        let mut policies = self.deny.iter().chain(&self.allow).chain(&self.audit);
        policies.any(|policy| policy.looks_at_requests(port))
            || self.would.as_ref().is_some_and(|would| would.needs_http(port))
    }

    /// For a pod whose own workload nobody knows, and with it which policies apply: nobody gets in.
    pub fn deny_unknown_workload() -> Self {
        Self { blocks: vec![Block { by: None, why: Why::UnknownWorkload }], ..Self::new(STRICT) }
    }

    pub fn mtls(&self) -> &EffectiveMtls {
        &self.mtls
    }

    /// `namespace/name` of each policy in force, DENY policies first.
    pub fn policy_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.deny.iter().chain(&self.allow).map(|policy| policy.name())
    }

    /// Why everything is denied, if it is, whoever asks.
    pub fn blocked(&self) -> Option<Verdict> {
        self.blocks.first().map(Block::verdict)
    }

    pub(super) fn new(mtls: EffectiveMtls) -> Self {
        Self { mtls, blocks: Vec::new(), deny: Vec::new(), allow: Vec::new(), audit: Vec::new(), would: None }
    }

    pub(super) fn block(&mut self, block: Block) {
        self.blocks.push(block);
    }
}

const STRICT: EffectiveMtls = EffectiveMtls {
    mode: MtlsMode::Strict,
    origin: MtlsOrigin::Workload,
    ports: std::collections::BTreeMap::new(),
};

/// The answer about one connection, with what decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow {
        /// `namespace/name` of the ALLOW policy that matched; none where no ALLOW policy applies.
        by: Option<Arc<str>>,
    },
    Deny {
        /// `namespace/name` of the policy that refused, where it was one.
        by: Option<Arc<str>>,
        why: Why,
    },
}

impl Verdict {
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// The policy that decided, for the access log.
    pub fn by(&self) -> Option<&Arc<str>> {
        match self {
            Self::Allow { by } | Self::Deny { by, .. } => by.as_ref(),
        }
    }
}

/// Why a connection is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A DENY policy matches.
    DenyMatched,
    /// There are this many ALLOW policies, and none matches.
    NoAllowMatched(usize),
    /// It is plaintext, and the mode set at this level is STRICT.
    Strict(MtlsOrigin),
    /// The workload names a policy that nobody has sent.
    UnknownPolicy,
    /// The policy could not be understood.
    Defective(Arc<str>),
    /// The pod's own workload is not known, and with it which policies apply.
    UnknownWorkload,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow { by: Some(policy) } => write!(f, "allowed by policy {policy}"),
            Self::Allow { by: None } => f.write_str("allowed: no ALLOW policy applies"),
            Self::Deny { by: Some(policy), why } => write!(f, "denied by policy {policy}: {why}"),
            Self::Deny { by: None, why } => write!(f, "denied: {why}"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DenyMatched => f.write_str("its DENY rules match"),
            Self::NoAllowMatched(n) => write!(f, "none of {n} ALLOW policies matches"),
            Self::Strict(origin) => write!(f, "plaintext, and mutual TLS is STRICT (set for the {origin})"),
            Self::UnknownPolicy => f.write_str("the workload names it, but it is not known"),
            Self::Defective(defect) => write!(f, "it could not be understood: {defect}"),
            Self::UnknownWorkload => f.write_str("the destination's own workload is not known"),
        }
    }
}

/// A reason to deny everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    by: Option<Arc<str>>,
    why: Why,
}

impl Block {
    pub(super) fn unknown_policy(key: &Arc<str>) -> Self {
        Self { by: Some(key.clone()), why: Why::UnknownPolicy }
    }

    pub(super) fn defective_policy(key: &Arc<str>, defect: &Arc<str>) -> Self {
        Self { by: Some(key.clone()), why: Why::Defective(defect.clone()) }
    }

    fn verdict(&self) -> Verdict {
        Verdict::Deny { by: self.by.clone(), why: self.why.clone() }
    }
}
