//! Linkerd's policy by its public documentation, and against an evaluator of its own.

mod authorizations;
mod defaults;
mod defects;
mod explained;
mod filters;
mod many;
mod oracle;
mod routes;
mod servers;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::workload::{ContainerPort, HttpProbe, PodFacts, WorkloadMtls};

use super::super::compiled::Conn;
use super::super::explain::{Considered, RuleTrace};
use super::super::object::Object;
use super::super::peer::Peer;
use super::super::request::Request;
use super::super::set::Subject;
use super::super::settings::Settings;
use super::super::verdict::{Connection, Verdict};
use super::Linkerd;

pub(super) fn objects(yaml: &str) -> Vec<Arc<Object>> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(yaml).expect("YAML");
    let documents = documents.into_iter().filter(|document| !document.is_null());
    documents.map(|document| Arc::new(Object::read(document).expect("an object"))).collect()
}

pub(super) fn settings() -> Settings {
    Settings::new("cluster.local".parse().expect("a trust domain"))
}

/// Resources, and one pod that is asked about.
pub(super) struct Mesh {
    linkerd: Linkerd,
    namespace: String,
    facts: PodFacts,
}

impl Mesh {
    /// A pod `app: web` of the namespace `shop` with a port `http` 8080.
    pub(super) fn of(yaml: &str) -> Self {
        Self::with(yaml, &settings())
    }

    pub(super) fn with(yaml: &str, settings: &Settings) -> Self {
        let facts = PodFacts {
            labels: [("app".into(), "web".into())].into(),
            ports: vec![ContainerPort { name: "http".into(), port: 8080 }],
            ..PodFacts::NONE
        };
        Self { linkerd: Linkerd::new(&objects(yaml), settings), namespace: "shop".into(), facts }
    }

    pub(super) fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    pub(super) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.facts.annotations.insert(key.into(), value.into());
        self
    }

    pub(super) fn port(mut self, name: &str, port: u16) -> Self {
        self.facts.ports.push(ContainerPort { name: name.into(), port });
        self
    }

    pub(super) fn probe(mut self, port: u16, path: &str) -> Self {
        self.facts.probes.push(HttpProbe { port, path: path.into() });
        self
    }

    /// What becomes of a stream that is not HTTP.
    pub(super) fn tcp(&self, from: &str, port: u16) -> String {
        self.ask(from, port, None)
    }

    /// `GET /path?query header=value …`, to host `web`, unless a header `host` says otherwise.
    pub(super) fn http(&self, from: &str, port: u16, request: &str) -> String {
        self.with_request(request, |request| self.ask(from, port, Some(request)))
    }

    fn with_request<T>(&self, request: &str, then: impl FnOnce(&Request<'_>) -> T) -> T {
        let mut words = request.split_whitespace();
        let (method, target) = (words.next().expect("a method"), words.next().expect("a path"));
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let (mut headers, mut host) = (HeaderMap::new(), "web");
        for word in words {
            let (name, value) = word.split_once('=').expect("name=value");
            match name {
                "host" => host = value,
                name => drop(headers.append(
                    name.parse::<HeaderName>().expect("a name"),
                    HeaderValue::from_str(value).expect("a value"),
                )),
            }
        }
        then(&Request { method, host, path, query, headers: &headers })
    }

    /// A line for each resource: `+` where it matched, its note, and its rules.
    pub(super) fn explain(&self, from: &str, port: u16, request: &str) -> Vec<String> {
        let line = |one: Considered| {
            let sign = |matched| if matched { "+" } else { "-" };
            let rule = |rule: &RuleTrace| format!("#{} {} {}", rule.index, sign(rule.matched), rule.because);
            let parts: Vec<_> = one.note.clone().into_iter().chain(one.rules.iter().map(rule)).collect();
            format!("{} {}: {}", sign(one.matched), one.resource.name, parts.join("; "))
        };
        let mut lines = Vec::new();
        self.with_request(request, |request| {
            self.inbound(|inbound| {
                let conn = conn(from, port);
                let peer = Peer::new(&conn, Some(request), "linkerd");
                lines.extend(inbound.on_port(port).explain(&peer).into_iter().map(line));
            });
        });
        let mtls = WorkloadMtls::default();
        let subject = Subject { namespace: &self.namespace, policies: &[], mtls: &mtls, facts: &self.facts };
        lines.extend(self.linkerd.passed_over(&subject, port).into_iter().map(line));
        lines
    }

    /// The same answer whatever is sent, or `per request`.
    pub(super) fn whatever(&self, from: &str, port: u16) -> String {
        self.inbound(|inbound| match inbound.on_connection(&conn(from, port)) {
            Connection::Allow(verdict) | Connection::Deny(verdict) => text(verdict, false),
            Connection::PerRequest => "per request".into(),
        })
    }

    pub(super) fn defects(&self) -> Vec<String> {
        let own = self.inbound(|inbound| inbound.defects.clone());
        self.linkerd
            .defects()
            .iter()
            .chain(&own)
            .map(|d| format!("{} {}", d.resource.name, d.field))
            .collect()
    }

    pub(super) fn ask(&self, from: &str, port: u16, request: Option<&Request<'_>>) -> String {
        self.inbound(|inbound| {
            let conn = conn(from, port);
            let verdict = inbound.evaluate(&conn, request);
            // What is said of everything holds of this too.
            match inbound.on_connection(&conn) {
                Connection::Allow(_) => assert!(verdict.is_allow(), "{verdict}"),
                Connection::Deny(_) => assert!(!verdict.is_allow(), "{verdict}"),
                Connection::PerRequest => assert!(inbound.on_port(port).looks_at_requests()),
            }
            text(verdict, inbound.audited(&conn, request).is_some())
        })
    }

    pub(super) fn inbound<T>(&self, then: impl FnOnce(super::Inbound) -> T) -> T {
        let mtls = WorkloadMtls::default();
        let subject = Subject { namespace: &self.namespace, policies: &[], mtls: &mtls, facts: &self.facts };
        then(self.linkerd.inbound(&subject))
    }
}

/// `account.namespace`, a SPIFFE id, or `plaintext`; and after an `@` the address, which is 10.1.0.1 otherwise.
fn conn(from: &str, port: u16) -> Conn {
    let (who, address) = from.split_once('@').unwrap_or((from, "10.1.0.1"));
    let source = match who {
        "plaintext" => None,
        id if id.starts_with("spiffe://") => Some(id.parse().expect("an id")),
        name => {
            let (account, namespace) = name.split_once('.').expect("account.namespace");
            Some(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().expect("an id"))
        }
    };
    let address = address.parse().expect("an address");
    Conn::new(source, address, "10.2.0.1".parse().expect("an address"), port)
}

fn text(verdict: Verdict, audited: bool) -> String {
    match verdict {
        Verdict::Allow { by } => {
            let word = if audited { "audit" } else { "allow" };
            format!("{word} {}", by[0].resource.name)
        }
        Verdict::Deny { by, why } => {
            let by = by.expect("a resource");
            let rule = by.rule.map(|rule| format!("#{rule}")).unwrap_or_default();
            format!("deny {} {}{rule}", why.cause(), by.resource.name)
        }
    }
}
