//! Why a verdict is what it is: every policy and rule that was considered, and which field decided about it.
//!
//! Read from the policies as they are written, not from their compiled form, and so never in a decision's way.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::model::SpiffeId;

use super::compiled::{Block, Compiled, Conn};
use super::listed::Listed;
use super::matcher::Matcher;
use super::peer::{Peer, header};
use super::request::Request;
use super::resource::ResourceRef;
use super::rules::{Action, Group, Match, PathMatch, Rule, ServiceAccount, StringMatch};
use super::tri::Tri;
use super::verdict::Verdict;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    #[serde(flatten)]
    pub verdict: Verdict,
    /// In the order in which they are asked: exceptions from mutual TLS, DENY, ALLOW, AUDIT.
    pub considered: Vec<Considered>,
}

/// One policy that applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Considered {
    #[serde(serialize_with = "as_text")]
    pub resource: Arc<ResourceRef>,
    /// None: it is not known; or it only says what others are for, as Linkerd's Servers and routes do.
    pub action: Option<Action>,
    pub dry_run: bool,
    pub matched: bool,
    pub rules: Vec<RuleTrace>,
    /// What else there is to say of it as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One rule of a policy: in its own words one that lets in or keeps out by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleTrace {
    /// Counted from 0, as in [`super::By::rule`].
    pub index: u32,
    pub matched: bool,
    /// `source.namespaces: "prod" is none of [test, dev*]`
    pub because: String,
}

impl Compiled {
    /// [`Compiled::evaluate`] with everything that was looked at.
    pub fn explain(&self, conn: &Conn, request: Option<&Request<'_>>) -> Explanation {
        let peer = self.peer(conn, request);
        // Those in force and the others.
        let all = self.would.as_deref().unwrap_or(self);
        let unknown = self.blocks.iter().filter_map(|block| unknown(block, all));
        let policies = [&all.deny, &all.allow, &all.audit].into_iter().flat_map(|rules| rules.policies());
        let istio = policies.map(|policy| considered(policy, &peer));
        let linkerd = self.linkerd.iter().flat_map(|all| all.on_port(conn.destination_port).explain(&peer));
        let exceptions = self.exceptions.explain(&peer);
        let considered = unknown.chain(exceptions).chain(istio).chain(linkerd).collect();
        Explanation { verdict: self.evaluate(conn, request), considered }
    }
}

/// What blocks everything and is none of the policies that are there.
fn unknown(block: &Block, all: &Compiled) -> Option<Considered> {
    let resource = &block.by.as_ref()?.resource;
    let mut there = [&all.deny, &all.allow, &all.audit].into_iter().flat_map(|rules| rules.policies());
    if there.any(|policy| policy.resource == *resource) {
        return None;
    }
    Some(Considered {
        resource: resource.clone(),
        action: None,
        dry_run: false,
        matched: false,
        rules: Vec::new(),
        note: Some(format!("{}; it denies everything", block.why)),
    })
}

pub(super) fn considered(matcher: &Matcher, peer: &Peer<'_>) -> Considered {
    let policy = &matcher.policy;
    let action = policy.action;
    let trace = |(index, group): (usize, &Group)| {
        let (holds, because) = trace_group(group, peer);
        let matched = match action {
            Action::Deny => holds != Tri::No,
            Action::Allow | Action::Audit => holds == Tri::Yes,
        };
        RuleTrace { index: u32::try_from(index).unwrap_or(u32::MAX), matched, because }
    };
    let rules: Vec<_> = policy.groups.iter().enumerate().map(trace).collect();
    let mut note = policy.defect.as_ref().map(|defect| {
        format!("it could not be understood: {defect}; it denies everything that it applies to")
    });
    if note.is_none() && rules.is_empty() {
        note = Some("it has no rules, so it never matches".to_string());
    }
    Considered {
        resource: matcher.resource.clone(),
        action: Some(action),
        dry_run: policy.dry_run,
        matched: rules.iter().any(|rule| rule.matched),
        rules,
        note,
    }
}

fn trace_group(group: &Group, peer: &Peer<'_>) -> (Tri, String) {
    if let Some(why) = &group.never {
        return (Tri::No, format!("it cannot be evaluated, so it never matches: {why}"));
    }
    let mut weakest = Tri::Yes;
    let mut reasons: Vec<String> = Vec::new();
    for rule in &group.rules {
        let (holds, because) = trace_rule(rule, peer);
        if holds < weakest {
            // What stands in the way is what is told of.
            reasons.clear();
            weakest = holds;
        }
        if holds == weakest {
            reasons.extend(because);
        }
        if holds == Tri::No {
            break;
        }
    }
    match reasons.is_empty() {
        true => (weakest, "it asks for nothing".to_string()),
        false => (weakest, reasons.join("; ")),
    }
}

fn trace_rule(rule: &Rule, peer: &Peer<'_>) -> (Tri, Option<String>) {
    if rule.matches.is_empty() {
        return (Tri::Yes, None);
    }
    let traces: Vec<_> = rule.matches.iter().map(|m| trace_match(m, peer)).collect();
    let strongest = traces.iter().map(|(holds, _)| *holds).max().unwrap_or(Tri::No);
    let reasons = traces.into_iter().filter(|(holds, _)| *holds == strongest).map(|(_, because)| because);
    // One alternative that holds is enough; of those that fail each has its own reason.
    let most = if strongest == Tri::No { MOST_REASONS } else { 1 };
    let all = reasons.clone().count();
    let mut told: Vec<String> = reasons.take(most).collect();
    told.dedup();
    if strongest == Tri::No && all > most {
        told.push(format!("and so for {} more", all - most));
    }
    (strongest, Some(told.join(", and ")))
}

const MOST_REASONS: usize = 4;

fn trace_match(m: &Match, peer: &Peer<'_>) -> (Tri, String) {
    let fields = fields(m, peer);
    if fields.is_empty() {
        return (Tri::No, "a match in which no field has values never holds".to_string());
    }
    let weakest = fields.iter().map(Field::holds).min().unwrap_or(Tri::No);
    let told = fields.iter().filter(|field| field.holds() == weakest);
    // The first that fails says enough; of those that hold every one counts.
    let most = if weakest == Tri::No { 1 } else { usize::MAX };
    let told: Vec<_> = told.take(most).map(ToString::to_string).collect();
    (weakest, told.join(", "))
}

/// One field of a match beside what it is compared with.
struct Field<'a> {
    name: &'a str,
    /// For a header, which.
    key: Option<&'a str>,
    negative: bool,
    values: Listed<'a>,
    given: Given<'a>,
}

/// What values are compared with.
#[derive(Clone)]
pub(super) enum Given<'a> {
    /// The request is not known.
    Unknown,
    /// There is no such thing, and nothing fits it.
    Nothing(&'static str),
    Text(std::borrow::Cow<'a, [u8]>),
    Ip(IpAddr),
    Port(u16),
    Account(&'a str, &'a str),
}

impl<'a> Given<'a> {
    fn text(text: &'a str) -> Self {
        Self::Text(text.as_bytes().into())
    }
}

impl Field<'_> {
    fn holds(&self) -> Tri {
        Tri::of(self.values.fit(&self.given).map(|fit| fit != self.negative))
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, name) = self.name.rsplit_once('.').unwrap_or(("", self.name));
        match (self.negative, self.key) {
            (false, None) => write!(f, "{place}.{name}: ")?,
            (true, None) => {
                let (first, rest) = name.split_at(1);
                write!(f, "{place}.not{}{rest}: ", first.to_ascii_uppercase())?;
            }
            (false, Some(key)) => write!(f, "{place}.{name}[{key}]: ")?,
            (true, Some(key)) => write!(f, "not {place}.{name}[{key}]: ")?,
        }
        match &self.given {
            Given::Unknown => return write!(f, "depends on the request, of {}", self.values),
            Given::Nothing(what) => f.write_str(what)?,
            Given::Text(text) => write!(f, "{:?}", shorten(&String::from_utf8_lossy(text)))?,
            Given::Ip(ip) if ip.is_unspecified() => f.write_str("an address that is not known")?,
            Given::Ip(ip) => write!(f, "{ip}")?,
            Given::Port(port) => write!(f, "{port}")?,
            Given::Account(namespace, account) => write!(f, "{namespace}/{account}")?,
        }
        let fits = self.values.fit(&self.given) == Some(true);
        write!(f, " is {} {}", if fits { "one of" } else { "none of" }, self.values)
    }
}

fn shorten(text: &str) -> String {
    const MOST: usize = 120;
    match text.char_indices().nth(MOST) {
        None => text.to_string(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

fn fields<'a>(m: &'a Match, peer: &'a Peer<'_>) -> Vec<Field<'a>> {
    const NOBODY: Given<'static> = Given::Nothing("a client without identity");
    const NO_ACCOUNT: Given<'static> = Given::Nothing("a client that is no service account");
    let ip = |ip: Option<IpAddr>| ip.map_or(Given::Unknown, Given::Ip);
    let identity = |text: Option<&'a str>| text.map_or(NOBODY, Given::text);
    let request = |text: Option<&'a str>| text.map_or(Given::Unknown, Given::text);
    let mut all = Fields::default();
    let strings = |values: &'a [StringMatch]| Listed::Strings(values);
    let nets = |values: &'a [IpNet]| Listed::Nets(values);
    let ports = |values: &'a [u16]| Listed::Ports(values);
    let accounts = |values: &'a [ServiceAccount]| Listed::Accounts(values);
    let paths = |values: &'a [PathMatch]| Listed::Paths(values);
    let of_account = |id: &'a SpiffeId| {
        id.account().map_or(NO_ACCOUNT, |(namespace, account)| Given::Account(namespace, account))
    };
    let account = peer.identity.map_or(NOBODY, of_account);
    let port = peer.port.map_or(Given::Nothing("another port"), Given::Port);
    let sni = peer.sni.map_or(Given::Unknown, Given::text);
    all.both("to.ports", &port, ports(&m.destination_ports), ports(&m.not_destination_ports));
    all.both("source.ipBlocks", &ip(peer.source_ip), nets(&m.source_ips), nets(&m.not_source_ips));
    all.both("source.remoteIpBlocks", &ip(peer.source_ip), nets(&m.remote_ips), nets(&m.not_remote_ips));
    let to = ip(peer.destination_ip);
    all.both("destination.ip", &to, nets(&m.destination_ips), nets(&m.not_destination_ips));
    // A client without identity is of the namespace, and the trust domain, that is called ""; one that is no
    // service account of the namespace only.
    let domain = Given::text(peer.trust_domain());
    all.both("source.trustDomains", &domain, strings(&m.trust_domains), strings(&m.not_trust_domains));
    let namespace = Given::text(peer.namespace());
    all.both("source.namespaces", &namespace, strings(&m.namespaces), strings(&m.not_namespaces));
    let (one_of, none_of) = (accounts(&m.service_accounts), accounts(&m.not_service_accounts));
    all.both("source.serviceAccounts", &account, one_of, none_of);
    let (one_of, none_of) = (Listed::Principals(&m.principals), Listed::Principals(&m.not_principals));
    all.both("source.principals", &identity(peer.principal()), one_of, none_of);
    let linkerd = match (peer.identity, peer.linkerd_identity()) {
        (Some(_), None) => NO_ACCOUNT,
        (_, name) => identity(name),
    };
    all.both("source.identities", &linkerd, strings(&m.linkerd_identities), strings(&[]));
    all.both("connection.sni", &sni, strings(&m.snis), strings(&m.not_snis));
    let method = request(peer.request.map(|request| request.method));
    all.both("to.methods", &method, strings(&m.methods), strings(&m.not_methods));
    all.both("to.hosts", &request(peer.host()), Listed::Hosts(&m.hosts), Listed::Hosts(&m.not_hosts));
    let path = request(peer.request.map(|request| request.path));
    all.both("to.paths", &path, paths(&m.paths), paths(&m.not_paths));
    for wanted in &m.headers {
        let given = match peer.request.map(|request| header(request, &wanted.name)) {
            None => Given::Unknown,
            Some(None) => Given::Nothing("a header that is not sent"),
            Some(Some(value)) => Given::Text(value),
        };
        all.key = Some(&wanted.name);
        all.both("request.headers", &given, strings(&wanted.one_of), strings(&wanted.none_of));
    }
    all.fields
}

#[derive(Default)]
struct Fields<'a> {
    fields: Vec<Field<'a>>,
    key: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn both(&mut self, name: &'a str, given: &Given<'a>, one_of: Listed<'a>, none_of: Listed<'a>) {
        for (negative, values) in [(false, one_of), (true, none_of)] {
            if !values.is_empty() {
                self.fields.push(Field { name, key: self.key, negative, values, given: given.clone() });
            }
        }
    }
}

fn as_text<S: Serializer>(resource: &ResourceRef, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(resource)
}
