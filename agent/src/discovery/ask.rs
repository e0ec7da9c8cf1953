//! A question about two ends that are told in words: what policy would say if one called the other.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Snapshot;
use super::manifest::Manifest;
use super::phases::{self, WorkloadPhase};
use crate::model::workload::NetworkMode;
use crate::model::workload::TunnelProtocol;
use crate::model::{MtlsMode, SpiffeId, Workload};
use crate::policy::analyze::{Report, analyze};
use crate::policy::own::{self, Phase};
use crate::policy::{
    Compiled, Conn, Connection, Considered, Defect, DefectKind, Explanation, Kind, MtlsDefaults, NotNormal,
    PathNormalization, PolicySet, Request, ResourceRef, Resources, Settings, Subject, Verdict, Why,
    is_method,
};

/// As it is typed, and as the agent is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Asked {
    /// A pod (`namespace/name`), a SPIFFE id, or `plaintext`.
    pub from: String,
    /// A pod.
    pub to: String,
    /// A number, or the name of one of the pod's ports. Left out: the first that the pod declares, or 80.
    #[serde(default)]
    pub port: Option<String>,
    #[serde(default)]
    pub method: Option<String>,
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    pub host: Option<String>,
    /// `key=value`
    #[serde(default)]
    pub headers: Vec<String>,
    #[serde(default)]
    pub sni: Option<String>,
    #[serde(default)]
    pub from_ip: Option<IpAddr>,
}

/// The same, understood.
#[derive(Clone, Debug)]
pub struct Question {
    pub to: Arc<Workload>,
    pub conn: Conn,
    /// None: what is sent is no HTTP, or nothing was said of it.
    pub request: Option<AskedRequest>,
    /// Why the request would be refused unjudged wherever requests are judged.
    pub bad: Option<Arc<str>>,
    /// Why a pod that was named proves no identity.
    pub plaintext: Option<String>,
}

#[derive(Clone, Debug)]
pub struct AskedRequest {
    method: String,
    host: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl AskedRequest {
    pub fn as_request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

/// What policy says, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub verdict: Word,
    /// One word: that of the refusal, or how it was allowed.
    pub cause: String,
    /// The same as a sentence.
    pub reason: String,
    /// The resources that decided, with the rule.
    pub decided_by: Vec<String>,
    /// Who calls, as it was understood: identity (none is plaintext) and address.
    pub from: From,
    /// `namespace/name` of the pod that is called.
    pub to: String,
    pub port: u16,
    /// Mutual TLS on this port, and who asks for it.
    pub mtls: Mtls,
    /// Every policy that was considered, in the order in which they are asked, with each rule.
    pub policies: Vec<serde_json::Value>,
    /// What of these policies could not be taken as it stands, and what holds instead.
    pub defects: Vec<String>,
    /// What it would be if the policies that only run dry were in force; none where there are none.
    pub dry_run: Option<DryRun>,
    /// How far policy is enforced for the pod, and who says so.
    #[serde(default)]
    pub phase: Option<InPhase>,
    /// What it would be in the phase Enforce; none where that is the phase.
    #[serde(default)]
    pub enforced: Option<DryRun>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPhase {
    pub phase: Phase,
    /// `mesh`, `namespace` or `workload`: the level that set it; none where none does.
    pub level: Option<String>,
    /// The Enforcement that set it.
    pub resource: Option<String>,
}

impl InPhase {
    fn of(given: &own::InPhase) -> Self {
        let by = given.by.as_ref();
        Self {
            phase: given.phase,
            level: by.map(|(_, level)| level.to_string()),
            resource: by.map(|(resource, _)| resource.to_string()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct From {
    pub identity: Option<String>,
    /// None: it is not known, and in no range but those of every address.
    pub address: Option<IpAddr>,
    /// Why a pod that was named has no identity.
    #[serde(default)]
    pub note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtls {
    pub mode: MtlsMode,
    /// `mesh`, `namespace`, `workload` or `port`: the level that set it.
    pub level: String,
    /// The PeerAuthentication that set it; none where none does.
    pub resource: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRun {
    pub verdict: Word,
    pub cause: String,
    pub reason: String,
}

impl DryRun {
    fn of(verdict: &Verdict) -> Self {
        Self { verdict: Word::of(verdict), cause: cause(verdict).into(), reason: verdict.to_string() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    Allow,
    Deny,
}

impl Word {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    fn of(verdict: &Verdict) -> Self {
        if verdict.is_allow() { Self::Allow } else { Self::Deny }
    }
}

impl Question {
    /// `policy` is what `set` says of the pod that is called.
    pub fn answer(&self, policy: &Compiled, set: &PolicySet) -> Answer {
        let resources = set.resources();
        let request = self.request.as_ref().map(AskedRequest::as_request);
        let Explanation { verdict, considered } = policy.explain(&self.conn, request.as_ref());
        let verdict = self.unless_bad(verdict, policy.on_connection(&self.conn) == Connection::PerRequest);
        let dry_run = policy.with_dry_run_policies(&self.conn, request.as_ref());
        let dry_run = dry_run.map(|verdict| self.unless_bad(verdict, false));
        let in_phase = policy.phase();
        let enforced =
            (in_phase.phase != Phase::Enforce).then(|| policy.enforced(&self.conn, request.as_ref()));
        let enforced = enforced.map(|verdict| self.unless_bad(verdict, false));
        let subject = Subject::from(&*self.to);
        let port = self.conn.destination_port;
        let mut policies: Vec<Considered> = set.peer_authentications(&subject, port);
        policies.extend(considered);
        let left = resources.iter().flat_map(|resources| resources.istio.left_to_others(&subject));
        policies.extend(resources.iter().flat_map(|resources| resources.linkerd.passed_over(&subject, port)));
        policies.extend(left.map(|(resource, target)| left_to(resource, &target, &subject)));
        let elsewhere = resources.iter().flat_map(|resources| resources.istio.passed_over(&subject));
        policies.extend(elsewhere.map(|resource| other(resource, "its selector selects other pods".into())));
        if self.conn.source.is_none() {
            let broken =
                resources.iter().flat_map(|resources| resources.own.broken_exceptions(subject.namespace));
            policies.extend(
                broken
                    .map(|resource| other(resource, "it could not be understood, and admits nobody".into())),
            );
        }
        let (mode, level, by) = policy.mtls_on(self.conn.destination_port);
        Answer {
            verdict: Word::of(&verdict),
            cause: cause(&verdict).into(),
            reason: verdict.to_string(),
            from: From {
                identity: self.conn.source.as_ref().map(ToString::to_string),
                address: Some(self.conn.source_ip).filter(|ip| !ip.is_unspecified()),
                note: self.plaintext.clone(),
            },
            to: format!("{}/{}", self.to.namespace, self.to.name),
            port: self.conn.destination_port,
            mtls: Mtls { mode, level: level.to_string(), resource: by.map(ToString::to_string) },
            defects: defects(&policies, &self.to.namespace, set),
            policies: policies.iter().filter_map(|one| serde_json::to_value(one).ok()).collect(),
            decided_by: match &verdict {
                Verdict::Allow { by } => by.iter().map(ToString::to_string).collect(),
                Verdict::Deny { by, .. } => by.iter().map(ToString::to_string).collect(),
            },
            dry_run: dry_run.as_ref().map(DryRun::of),
            phase: Some(InPhase::of(in_phase)),
            enforced: enforced.as_ref().map(DryRun::of),
        }
    }
}

impl Question {
    /// A bad request is asked about as what is no request, and refused where one had to be judged.
    fn unless_bad(&self, verdict: Verdict, judged: bool) -> Verdict {
        let Some(bad) = &self.bad else { return verdict };
        let depends = matches!(verdict, Verdict::Deny { why: Why::NotHttp, .. });
        if judged || depends {
            Verdict::Deny { by: None, why: Why::BadRequest(bad.clone()) }
        } else {
            verdict
        }
    }
}

/// A policy that another proxy enforces, or nobody.
fn left_to(resource: ResourceRef, target: &str, subject: &Subject<'_>) -> Considered {
    let note = match &subject.facts.waypoint {
        Some(waypoint) => format!("it is aimed at {target} and left to the waypoint {waypoint}"),
        None => format!("it is aimed at {target}, and no waypoint serves this pod: nobody enforces it here"),
    };
    other(resource, note)
}

/// One that decides nothing here.
fn other(resource: ResourceRef, note: String) -> Considered {
    Considered {
        resource: Arc::new(resource),
        action: None,
        dry_run: false,
        matched: false,
        rules: Vec::new(),
        note: Some(note),
    }
}

/// Those of the policies that were considered, and what is for nobody in the pod's namespace: it may have been
/// meant for the pod.
fn defects(policies: &[Considered], namespace: &str, set: &PolicySet) -> Vec<String> {
    let considered = |defect: &&Defect| {
        let resource = &defect.resource;
        let adrift = defect.kind == DefectKind::Dangling && *resource.namespace == *namespace;
        adrift || policies.iter().any(|policy| *policy.resource == *resource)
    };
    let all = set.defects().filter(considered).map(|d| format!("{}: {}: {}", d.resource, d.field, d.message));
    // Whatever it was to be for: nobody applies it.
    let objects = set.resources().into_iter().flat_map(|resources| &resources.objects);
    let unknown = objects.filter_map(|object| {
        let why = object.no_such_kind()?;
        Some(format!("{}/{}: kind: {why}", object.meta.namespace, object.meta.name))
    });
    all.chain(unknown).collect()
}

fn cause(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Allow { by } if by.is_empty() => "no_policy",
        Verdict::Allow { by } if by.iter().any(|by| by.resource.kind == Kind::Enforcement) => "not_enforced",
        Verdict::Allow { by } if by[0].resource.kind == Kind::PlaintextException => "plaintext_exception",
        Verdict::Allow { .. } => "allow_matched",
        Verdict::Deny { why, .. } => why.cause(),
    }
}

/// A mesh that is only written down.
#[derive(Debug)]
pub struct Offline {
    pods: Vec<Arc<Workload>>,
    pub(super) set: PolicySet,
    pub(super) resources: Arc<Resources>,
}

impl Offline {
    pub fn new(manifest: Manifest, settings: Settings) -> Self {
        let objects: Vec<_> = manifest.objects.into_iter().map(Arc::new).collect();
        let resources = Resources { replaced: manifest.replaced, ..Resources::new(&objects, settings) };
        let resources = Arc::new(resources);
        let set = PolicySet::default().next([], MtlsDefaults::default(), Some(resources.clone()));
        let set = set.at(OffsetDateTime::now_utc());
        Self { pods: manifest.pods.into_iter().map(Arc::new).collect(), set, resources }
    }

    /// The same at another moment than now.
    pub fn at(self, moment: OffsetDateTime) -> Self {
        Self { set: self.set.at(moment), ..self }
    }

    /// # Errors
    /// The question names what is not there, or is not well formed.
    pub fn answer(&self, asked: &Asked) -> Result<Answer, AskError> {
        let question = asked.resolve(self, self.resources.settings.path_normalization)?;
        let policy = self.set.compile(&Subject::from(&*question.to));
        Ok(question.answer(&policy, &self.set))
    }

    /// What is amiss in the policies.
    pub fn analyze(&self) -> Report {
        analyze(&self.set, &self.pods)
    }

    /// How far policy is enforced, workload by workload.
    pub fn phases(&self) -> Vec<WorkloadPhase> {
        phases::of(&self.set, self.pods.iter().map(|pod| &**pod))
    }

    /// Each pod with what decides about connections to it, in the order in which they were read.
    pub fn compiled(&self) -> impl Iterator<Item = (Arc<Workload>, Arc<Compiled>)> {
        let compile = |pod: &Arc<Workload>| Arc::new(self.set.compile(&Subject::from(&**pod)));
        self.pods.iter().map(move |pod| (pod.clone(), compile(pod)))
    }

    /// What of the resources could not be taken as it stands.
    pub fn defects(&self) -> Vec<Defect> {
        self.resources.defects().cloned().collect()
    }
}

/// The mesh as the agent knows it now.
impl Snapshot {
    /// # Errors
    /// The question names what is not there, or is not well formed.
    pub fn answer(&self, asked: &Asked) -> Result<Answer, AskError> {
        let normalization = self.policies().resources().map(|r| r.settings.path_normalization);
        let question = asked.resolve(self, normalization.unwrap_or_default())?;
        Ok(question.answer(&self.policies_for(&question.to), self.policies()))
    }

    /// What is amiss in the policies.
    pub fn analyze(&self) -> Report {
        analyze(self.policies(), self.workloads())
    }

    /// How far policy is enforced, workload by workload of the mesh.
    pub fn phases(&self) -> Vec<WorkloadPhase> {
        let meshed = self.workloads().filter(|pod| pod.protocol == TunnelProtocol::Hbone);
        phases::of(self.policies(), meshed.map(|pod| &**pod))
    }
}

impl Pods for Snapshot {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        self.workloads().find(|pod| *pod.namespace == *namespace && *pod.name == *name).cloned()
    }

    fn at(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.workload(ip).cloned()
    }

    fn names(&self) -> String {
        names(self.workloads().map(|pod| &**pod))
    }
}

impl Pods for Offline {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        self.pods.iter().find(|pod| *pod.namespace == *namespace && *pod.name == *name).cloned()
    }

    fn at(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        let own = |pod: &&Arc<Workload>| pod.network_mode != NetworkMode::HostNetwork;
        let has =
            |pod: &&Arc<Workload>| pod.addresses.iter().any(|own| own.to_canonical() == ip.to_canonical());
        self.pods.iter().filter(own).find(has).cloned()
    }

    fn names(&self) -> String {
        names(self.pods.iter().map(|pod| &**pod))
    }
}

fn names<'a>(pods: impl Iterator<Item = &'a Workload>) -> String {
    let few = first_names(pods, MANY);
    if few.is_empty() { "none".into() } else { few }
}

/// `namespace/name` of so many, and how many more there are.
pub fn first_names<'a>(pods: impl IntoIterator<Item = &'a Workload>, most: usize) -> String {
    let mut all: Vec<String> =
        pods.into_iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    all.sort();
    let more = all.len().saturating_sub(most);
    all.truncate(most);
    match more {
        0 => all.join(", "),
        more => format!("{} and {more} more", all.join(", ")),
    }
}

const MANY: usize = 10;

/// Why a question cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("{0:?} is neither a pod (namespace/name) nor a SPIFFE id nor plaintext")]
    From(String),
    #[error("{0:?} is no pod: write namespace/name")]
    To(String),
    #[error("there is no pod {0}; known are: {1}")]
    NoPod(String, String),
    #[error("{0:?} is no port from 1 to 65535, and none of the pod's is called so")]
    Port(String),
    #[error("{0:?} is no header: write key=value")]
    Header(String),
    #[error("{0}")]
    Method(#[from] NoMethod),
    #[error("{0}")]
    Host(#[from] NoHost),
    #[error("the request is for two hosts, {0:?} and {1:?}: --host and --header host=… have to agree")]
    Hosts(String, String),
}

/// Where the pods that are asked about are found.
pub trait Pods {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>>;
    /// Who is known to have an address.
    fn at(&self, ip: IpAddr) -> Option<Arc<Workload>>;
    /// Some names, for whoever has mistyped one.
    fn names(&self) -> String;
}

impl Asked {
    /// # Errors
    /// It names what is not there, or is not well formed.
    pub fn resolve(&self, pods: &impl Pods, normalization: PathNormalization) -> Result<Question, AskError> {
        let to = find(pods, &self.to, AskError::To)?;
        let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let mut plaintext = None;
        let (source, ip) = if self.from == "plaintext" {
            (None, None)
        } else if self.from.starts_with("spiffe://") {
            let id = SpiffeId::from_str(&self.from).map_err(|_| AskError::From(self.from.clone()))?;
            (Some(id), None)
        } else {
            let from = find(pods, &self.from, AskError::From)?;
            plaintext = outside(&from);
            let identity = plaintext.is_none().then(|| from.identity.clone());
            (identity, from.addresses.first().copied())
        };
        let mut conn = Conn::new(
            source,
            self.from_ip.or(ip).unwrap_or(nobody),
            to.addresses.first().copied().unwrap_or(nobody),
            self.port(&to)?,
        );
        if conn.source.is_none() {
            conn.at_source = pods.at(conn.source_ip).map(|known| known.identity.clone());
        }
        conn.sni = self.sni.as_deref().map(Arc::from);
        let (request, bad) = match self.request(normalization)? {
            Some(Ok(request)) => (Some(request), None),
            Some(Err(bad)) => (None, Some(bad.to_string().into())),
            None => (None, None),
        };
        Ok(Question { to, conn, request, bad, plaintext })
    }

    fn port(&self, to: &Workload) -> Result<u16, AskError> {
        let ports = &to.facts.ports;
        let Some(text) = &self.port else { return Ok(ports.first().map_or(80, |port| port.port)) };
        let named = || ports.iter().find(|port| *port.name == **text).map(|port| port.port);
        let number = text.parse::<u16>().ok().filter(|port| *port > 0);
        number.or_else(named).ok_or_else(|| AskError::Port(text.clone()))
    }

    fn request(
        &self,
        normalization: PathNormalization,
    ) -> Result<Option<Result<AskedRequest, BadRequest>>, AskError> {
        if self.method.is_none() && self.path.is_none() && self.host.is_none() && self.headers.is_empty() {
            return Ok(None);
        }
        let mut host = self.host.as_deref().map(self::host).transpose()?;
        let mut headers = HeaderMap::new();
        for text in &self.headers {
            let header = text.split_once('=').and_then(|(key, value)| {
                Some((HeaderName::from_str(key.trim()).ok()?, HeaderValue::from_str(value).ok()?, value))
            });
            let (key, value, text) = header.ok_or_else(|| AskError::Header(text.clone()))?;
            if key == header::HOST {
                let named = self::host(text)?;
                if let Some(host) = host.filter(|host| !host.eq_ignore_ascii_case(&named)) {
                    return Err(AskError::Hosts(host, named));
                }
                host = Some(named);
            }
            headers.append(key, value);
        }
        let method = self.method.as_deref().map(self::method).transpose()?.unwrap_or_else(|| "GET".into());
        let sent = self.path.as_deref().unwrap_or("/");
        let request = |(path, query)| AskedRequest {
            method: method.clone(),
            host: host.unwrap_or_default(),
            path,
            query,
            headers,
        };
        Ok(Some(match is_method(&method) {
            false => Err(BadRequest::Method(method)),
            true => target(sent, normalization).map(request),
        }))
    }
}

/// Why a request is refused wherever requests are judged, as Envoy refuses it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum BadRequest {
    #[error("the method {0:?} is none: methods are in capitals")]
    Method(String),
    #[error("the path {0:?} has a fragment, which a client keeps to itself; %23 is a # that belongs to it")]
    Fragment(String),
    #[error("the path {0:?} does not begin with /")]
    Relative(String),
    #[error("the path {0:?}: {1}")]
    Path(String, NotNormal),
}

/// Path and query.
fn target(sent: &str, how: PathNormalization) -> Result<(String, Option<String>), BadRequest> {
    if sent.contains('#') {
        return Err(BadRequest::Fragment(sent.into()));
    }
    let (path, query) = match sent.split_once('?') {
        Some((path, query)) => (path, Some(query.to_string())),
        None => (sent, None),
    };
    let path = match path.strip_prefix('\\') {
        Some(rest) if how != PathNormalization::None => Cow::Owned(format!("/{rest}")),
        _ => Cow::Borrowed(path),
    };
    if !path.starts_with('/') && path != "*" && how != PathNormalization::None {
        return Err(BadRequest::Relative(sent.into()));
    }
    let path = crate::policy::normalize(&path, how).map_err(|why| BadRequest::Path(sent.into(), why))?;
    Ok((path.into_owned(), query))
}

/// Why a pod proves no identity: it cannot be of the mesh.
fn outside(pod: &Workload) -> Option<String> {
    if pod.network_mode == NetworkMode::HostNetwork {
        return Some("plaintext, as a pod in its node's network (hostNetwork) is not of the mesh".into());
    }
    (pod.protocol != TunnelProtocol::Hbone).then(|| {
        "plaintext, as the pod is not of the mesh (for files: the label istio.io/dataplane-mode or \
         underpass.io/mesh, on the pod or its namespace)"
            .into()
    })
}

/// # Errors
/// It is no token (RFC 9110, 5.6.2).
pub fn method(text: &str) -> Result<String, NoMethod> {
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) => Ok(method.to_string()),
        Err(_) => Err(NoMethod(text.into())),
    }
}

/// # Errors
/// It is no host, with or without a port.
pub fn host(text: &str) -> Result<String, NoHost> {
    match text.parse::<Authority>() {
        Ok(_) if !text.contains('@') => Ok(text.into()),
        _ => Err(NoHost(text.into())),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no method: write GET, POST …")]
pub struct NoMethod(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no host: write a name or an address, with or without a port")]
pub struct NoHost(String);

fn find(
    pods: &impl Pods,
    text: &str,
    malformed: impl Fn(String) -> AskError,
) -> Result<Arc<Workload>, AskError> {
    let (namespace, name) = text
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
        .ok_or_else(|| malformed(text.to_string()))?;
    pods.pod(namespace, name).ok_or_else(|| AskError::NoPod(text.to_string(), pods.names()))
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
