//! Every finding that there can be. A code never changes its meaning, and one that is given up is not used again.

use super::Severity;

/// One kind of finding.
#[derive(Debug)]
pub struct Code {
    /// `UP` and four digits.
    pub code: &'static str,
    pub severity: Severity,
    /// What was found.
    pub title: &'static str,
    /// What to do.
    pub hint: &'static str,
}

macro_rules! codes {
    ($($name:ident = $code:literal $severity:ident $title:literal, $hint:literal;)*) => {
        $(pub(super) const $name: Code =
            Code { code: $code, severity: Severity::$severity, title: $title, hint: $hint };)*
        /// All of them, by code.
        pub const CODES: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    NO_PODS = "UP0001" Info "There are no pods among what was read",
        "give the pods, or what makes them, too: without them selectors, ports and service accounts are not looked at";

    INVALID = "UP0101" Error "A value cannot be right; what holds instead admits less or denies more",
        "correct the value";
    UNSUPPORTED = "UP0102" Warning "A feature that a node agent refuses: JWT, CUSTOM and what needs a proxy of its own",
        "let a waypoint enforce this policy, by targetRefs, or say the same without the feature";
    DANGLING = "UP0103" Error "A reference to a resource that is not there",
        "make the resource, or correct the reference";
    BAD_ANNOTATION = "UP0104" Error "An annotation of Linkerd's with a value that there is not; nobody is admitted instead",
        "correct the annotation: all-unauthenticated, all-authenticated, cluster-authenticated, cluster-unauthenticated, deny or audit; ports are numbers and ranges";
    UNKNOWN_KIND = "UP0105" Warning "A policy resource of a kind that the agent does nothing with",
        "do not count on it: say the same with another resource, or let a waypoint enforce it";
    UNKNOWN_VERSION = "UP0106" Error "A version of a kind that there is not",
        "write a version that the API server has";
    TWICE = "UP0107" Error "One resource is there twice",
        "keep one: of two the API server keeps the one that is applied last";
    NO_SUCH_KIND = "UP0108" Error "A kind that there is not: the API server would refuse it, and it does nothing here",
        "correct kind, letter by letter, or the group in apiVersion";

    SELECTS_NOTHING = "UP0201" Warning "A selector selects no pod",
        "compare the selector's labels with those of the pods, and the namespaces of both";
    EMPTY_NAMESPACE = "UP0202" Info "A policy for a whole namespace in which there is no pod",
        "nothing, if pods are to come; otherwise move or remove the policy";
    NO_NAMESPACE = "UP0203" Info "A policy in a namespace that is not there",
        "give the namespace too, or correct the policy's metadata.namespace";
    NO_WAYPOINT = "UP0204" Warning "A policy aimed at a waypoint or gateway, where no waypoint serves any pod: nobody enforces it",
        "label the namespace or its pods with istio.io/use-waypoint, or select the pods by labels instead of targetRefs";
    SERVER_PORT = "UP0205" Warning "A Server's port that no pod which it selects declares",
        "correct spec.port, or declare the port in the pods' containers";
    NO_SERVER = "UP0206" Warning "An authorization for Servers, and no Server is one of its",
        "make the Server, or correct the labels or the namespace";
    SERVER_CLOSED = "UP0207" Info "A Server whose port nobody is authorized for",
        "nothing, if it is to be closed; otherwise add an AuthorizationPolicy, or an accessPolicy";
    UNUSED = "UP0208" Info "An authentication that no AuthorizationPolicy requires",
        "require it in an AuthorizationPolicy, or remove it";

    CONTRADICTION = "UP0301" Warning "A rule that can never match: what it asks for it also excludes",
        "remove the values that exclude each other";
    UNDECLARED_PORT = "UP0302" Warning "A rule for a port that no selected pod declares",
        "write the pod's own port, not the Service's, or declare it in the pod's containers";
    UNKNOWN_NAMESPACE = "UP0303" Warning "A rule for clients of a namespace that is not there",
        "correct the namespace, or give it and its pods too";
    UNKNOWN_ACCOUNT = "UP0304" Warning "A rule for clients of a service account that no pod runs as",
        "correct the service account, or give the pods that run as it too";
    ALLOWS_NOBODY = "UP0305" Info "An ALLOW policy without rules: it allows nobody, which denies everything that no other policy allows",
        "nothing, if that is meant; to allow everybody write rules: [{}]";
    NEVER_MATCHES = "UP0306" Warning "A DENY, AUDIT or CUSTOM policy without rules: it never matches",
        "add rules, or remove the policy; to match everything write rules: [{}]";
    ALLOWS_EVERYBODY = "UP0307" Warning "An ALLOW rule without any condition: whoever connects is allowed, in plaintext too",
        "name who may connect; for whoever proves an identity: from: [{source: {principals: [\"*\"]}}]";
    ALLOWS_ANY_IDENTITY = "UP0308" Info "An ALLOW rule that admits every identity of the mesh",
        "nothing, if mutual TLS is all that is asked; otherwise name the service accounts or namespaces";
    HTTP_ON_TCP = "UP0309" Warning "A rule about requests on a port that is no HTTP: ALLOW never matches there, DENY denies whatever its other conditions match",
        "remove hosts, methods, paths and headers from the rule, or rename the port: http, http2 or grpc, with a suffix or without";
    DENY_NOOP_AMBIENT = "UP0310" Info "A DENY rule that is enforced here, and is without effect in Istio's ambient mode without a waypoint",
        "nothing for this agent; where ztunnel enforces it too, add ports, principals or namespaces beside the HTTP fields";
    EMPTY_LIST = "UP0311" Warning "An empty list: it asks for nothing, as if it was not there",
        "remove it, or write the values that were meant";
    NEGATIVE_ONLY = "UP0312" Info "An ALLOW rule that only says who is not meant: clients without identity, in plaintext, are allowed",
        "add principals: [\"*\"] to the source, which leaves whoever proves an identity";

    NOT_THE_OLDEST = "UP0401" Warning "Several PeerAuthentications at one level: the oldest holds, and this one does nothing",
        "keep one of them";
    ROOT_SELECTOR = "UP0402" Warning "A PeerAuthentication with a selector in the root namespace: it is ignored",
        "put it in the namespace of the pods that it is for";
    PORTS_WITHOUT_SELECTOR = "UP0403" Warning "portLevelMtls without a selector: it is ignored",
        "add a selector: ports are set for selected workloads only";
    OPENS = "UP0404" Warning "Plaintext is let in by a PeerAuthentication below one that says STRICT",
        "remove it once no client needs plaintext any more";
    SETS_NOTHING = "UP0405" Info "A PeerAuthentication that sets no mode: what is above holds, and others at its level that are younger do not",
        "set a mode, or remove it";
    MTLS_PORT = "UP0406" Warning "portLevelMtls for a port that no selected pod declares",
        "write the pod's own port, not the Service's, or declare it in the pod's containers";
    DISABLED = "UP0407" Info "DISABLE: on a node it is the same as PERMISSIVE; clients of the mesh still come by mutual TLS",
        "write PERMISSIVE";

    DENIED_ANYWAY = "UP0501" Warning "An ALLOW policy without effect: a DENY policy denies everything to all that it applies to",
        "narrow the DENY policy, or remove this one";
    ALLOWED_ANYWAY = "UP0502" Warning "An ALLOW policy without effect: another allows everybody to all that it applies to",
        "narrow the other policy, or remove this one";
    SERVERS_SHARE = "UP0503" Warning "Servers that take one port: the oldest holds, by name where they are of one age",
        "let each port of a pod have one Server";
    SAME_NAME = "UP0504" Info "Two AuthorizationPolicies of one name, one of Istio's and one of Linkerd's",
        "name them with their group (authorizationpolicies.security.istio.io, authorizationpolicies.policy.linkerd.io), or rename one";

    PLAINTEXT = "UP0601" Info "Workloads that take plaintext",
        "make the namespace STRICT once no client needs plaintext: a PeerAuthentication with mtls: {mode: STRICT}";
    REQUIRES_NOTHING = "UP0602" Warning "requiredAuthenticationRefs is empty: everybody is admitted, from anywhere and in plaintext",
        "require a MeshTLSAuthentication or a NetworkAuthentication";
    UNAUTHENTICATED = "UP0603" Info "Clients without identity are admitted",
        "require meshTLS once every client is of the mesh";
    LAPSED = "UP0604" Warning "A PlaintextException that has lapsed: it admits nobody any more",
        "delete it; if its clients still need plaintext, set spec.until later";
    LAPSES_SOON = "UP0605" Warning "A PlaintextException that lapses within 14 days",
        "move its clients into the mesh, or set spec.until later";
    NEEDLESS = "UP0606" Info "A PlaintextException where mutual TLS is not asked for",
        "delete it, unless STRICT is to come";

    OBSERVED = "UP0701" Warning "An Enforcement in the phase Observe: policy refuses nothing at the pods that it is for",
        "see what would be refused with underpass migrate report, then turn to Permissive or Enforce";
    PERMITTED = "UP0702" Warning "An Enforcement in the phase Permissive: plaintext is let in where mutual TLS is STRICT",
        "turn to Enforce once no client needs plaintext any more; underpass migrate report says who does";
    NOT_THE_OLDEST_PHASE = "UP0703" Warning "Several Enforcements for one mesh, namespace or selector: the oldest holds, and this one does nothing",
        "keep one of them";
}
