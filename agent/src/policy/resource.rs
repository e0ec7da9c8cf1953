//! Which Kubernetes resource something was written in, and what of it could not be taken as it stands.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// The kinds that decide. Two of them are called AuthorizationPolicy: the group tells them apart, everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `istio.security.Authorization`, as istiod sends it, and the mesh file's `policies`.
    #[serde(rename = "Authorization")]
    Authorization,
    #[serde(rename = "AuthorizationPolicy.security.istio.io")]
    IstioAuthorizationPolicy,
    #[serde(rename = "PeerAuthentication.security.istio.io")]
    PeerAuthentication,
    #[serde(rename = "AuthorizationPolicy.policy.linkerd.io")]
    LinkerdAuthorizationPolicy,
    #[serde(rename = "Server.policy.linkerd.io")]
    Server,
    #[serde(rename = "ServerAuthorization.policy.linkerd.io")]
    ServerAuthorization,
    #[serde(rename = "MeshTLSAuthentication.policy.linkerd.io")]
    MeshTlsAuthentication,
    #[serde(rename = "NetworkAuthentication.policy.linkerd.io")]
    NetworkAuthentication,
    #[serde(rename = "HTTPRoute.policy.linkerd.io")]
    LinkerdHttpRoute,
    #[serde(rename = "HTTPRoute.gateway.networking.k8s.io")]
    HttpRoute,
    #[serde(rename = "GRPCRoute.gateway.networking.k8s.io")]
    GrpcRoute,
    #[serde(rename = "HTTPLocalRateLimitPolicy.policy.linkerd.io")]
    RateLimit,
    /// Linkerd's default inbound policy: of the mesh, or by annotation of a namespace or pod.
    #[serde(rename = "default-inbound-policy.linkerd.io")]
    LinkerdDefault,
    /// The default stance of the mesh or of a namespace.
    #[serde(rename = "stance.underpass.io")]
    Stance,
    /// How far policy is enforced while a mesh moves in.
    #[serde(rename = "Enforcement.underpass.io")]
    Enforcement,
    /// Who may stay in plaintext for a while.
    #[serde(rename = "PlaintextException.underpass.io")]
    PlaintextException,
}

impl Kind {
    /// `Kind.group`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authorization => "Authorization",
            Self::IstioAuthorizationPolicy => "AuthorizationPolicy.security.istio.io",
            Self::PeerAuthentication => "PeerAuthentication.security.istio.io",
            Self::LinkerdAuthorizationPolicy => "AuthorizationPolicy.policy.linkerd.io",
            Self::Server => "Server.policy.linkerd.io",
            Self::ServerAuthorization => "ServerAuthorization.policy.linkerd.io",
            Self::MeshTlsAuthentication => "MeshTLSAuthentication.policy.linkerd.io",
            Self::NetworkAuthentication => "NetworkAuthentication.policy.linkerd.io",
            Self::LinkerdHttpRoute => "HTTPRoute.policy.linkerd.io",
            Self::HttpRoute => "HTTPRoute.gateway.networking.k8s.io",
            Self::GrpcRoute => "GRPCRoute.gateway.networking.k8s.io",
            Self::RateLimit => "HTTPLocalRateLimitPolicy.policy.linkerd.io",
            Self::LinkerdDefault => "default-inbound-policy.linkerd.io",
            Self::Stance => "stance.underpass.io",
            Self::Enforcement => "Enforcement.underpass.io",
            Self::PlaintextException => "PlaintextException.underpass.io",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ResourceRef {
    pub kind: Kind,
    /// Empty for what is the whole mesh's.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for ResourceRef {
    /// `namespace/name` for what came over xDS, as Istio writes it; `Kind.group/namespace/name` otherwise.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Authorization => write!(f, "{}/{}", self.namespace, self.name),
            kind => write!(f, "{kind}/{}/{}", self.namespace, self.name),
        }
    }
}

/// A part of a resource that cannot be taken as it stands, and what that means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Defect {
    pub resource: ResourceRef,
    /// `spec.rules[0].from[1].source.ipBlocks[0]`
    pub field: String,
    pub kind: DefectKind,
    /// What is wrong, and what holds instead: `\"10.0.0.0/33\" is no address range; the rule admits nobody`.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefectKind {
    /// The value cannot be right.
    Invalid,
    /// It is right, and nothing that a node agent can do (JWT, CUSTOM).
    Unsupported,
    /// What it refers to is not there.
    Dangling,
}
