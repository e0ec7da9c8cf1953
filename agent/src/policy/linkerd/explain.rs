//! What was looked at on a port, and why it did or did not decide.

use std::fmt;
use std::sync::Arc;

use super::super::explain::{Considered, RuleTrace, considered};
use super::super::peer::Peer;
use super::super::request::Request;
use super::super::resource::{Kind, ResourceRef};
use super::super::set::Subject;
use super::Linkerd;
use super::filters::Filter;
use super::inbound::{Authorization, Otherwise, PortPolicy, Route};
use super::matching::{Host, Path, RequestMatch, Text, host_name};

impl PortPolicy {
    /// The Server or default policy, Servers that it keeps from the port, routes, and authorizations.
    pub(in super::super) fn explain(&self, peer: &Peer<'_>) -> Vec<Considered> {
        // A default policy is its own authorization.
        let is_own = |one: &&Arc<Authorization>| *one.matcher.resource == *self.by;
        let mut first = match self.authorizations.iter().find(is_own) {
            Some(own) => considered(&own.matcher, peer),
            None => of_target(self.by.clone(), true, String::new()),
        };
        first.note = Some(self.says());
        let mut all = vec![first];
        all.extend(self.shadowed.iter().map(|server| {
            let note = format!("{} takes the port, which is older or comes first by name", self.by);
            of_target(server.clone(), false, note)
        }));
        let chosen = peer.request.map(|request| self.routes.of(request));
        for routes in self.routes.all().chunk_by(|a, b| a.by == b.by) {
            all.push(of_route(routes, peer.request, chosen.as_ref()));
        }
        for one in self.authorizations.iter().filter(|one| !is_own(one)) {
            all.push(considered(&one.matcher, peer));
        }
        for routes in self.routes.all().chunk_by(|a, b| a.by == b.by) {
            let Some(route) = routes.first() else { continue };
            let taken = match chosen {
                None => None,
                Some(Ok(chosen)) => Some(chosen.is_some_and(|chosen| chosen.by == route.by)),
                Some(Err(_)) => Some(false),
            };
            all.extend(route.authorizations.iter().map(|one| of_routes(one, route, taken, peer)));
        }
        all
    }

    fn says(&self) -> String {
        if let Some(why) = &self.broken {
            return format!("it could not be understood, so nobody is admitted: {why}");
        }
        let takes = match self.by.kind {
            Kind::LinkerdDefault => "no Server takes the port",
            _ => "it takes the port",
        };
        let otherwise = match (self.otherwise, self.authorizations.iter().next()) {
            (Otherwise::Audit, _) => "whom nothing authorizes is let through, and told of",
            (Otherwise::Deny, None) if self.routes.is_empty() => "nothing authorizes anybody",
            (Otherwise::Deny, _) => "whom nothing authorizes is denied",
        };
        format!("{takes}; {otherwise}")
    }
}

impl Linkerd {
    /// Servers of the namespace that do not take the port, and why.
    pub fn passed_over(&self, subject: &Subject<'_>, port: u16) -> Vec<Considered> {
        let servers = self.servers.get(subject.namespace).into_iter().flatten();
        let missed = servers.filter_map(|(server, policy)| {
            let why = server.misses(subject.facts, port)?;
            Some(of_target(policy.by.clone(), false, why))
        });
        missed.collect()
    }
}

fn of_target(resource: Arc<ResourceRef>, matched: bool, note: String) -> Considered {
    Considered { resource, action: None, dry_run: false, matched, rules: Vec::new(), note: Some(note) }
}

type Chosen<'a> = Result<Option<&'a Route>, &'a Route>;

fn of_route(rules: &[Arc<Route>], request: Option<&Request<'_>>, chosen: Option<&Chosen<'_>>) -> Considered {
    let trace = |route: &Arc<Route>| {
        let is = |other: &Route| std::ptr::eq(&raw const **route, other);
        let (matched, because) = match (request, chosen) {
            (Some(request), Some(chosen)) => match (route.misses(request), chosen) {
                (Some(why), _) => (false, why),
                (None, Ok(Some(chosen)) | Err(chosen)) if is(chosen) => {
                    (true, format!("the request is its{}", told(&route.filters)))
                }
                (None, Ok(Some(other)) | Err(other)) => (
                    false,
                    format!("{}#{} meets the request more closely, or comes first", other.by, other.rule),
                ),
                (None, Ok(None)) => (false, "the request is none of its".to_string()),
            },
            _ => (false, "it depends on the request, which is not known".to_string()),
        };
        RuleTrace { index: route.rule, matched, because }
    };
    let rules_traced: Vec<_> = rules.iter().map(trace).collect();
    let broken = rules.iter().find_map(|route| route.broken.as_ref());
    Considered {
        resource: rules[0].by.clone(),
        action: None,
        dry_run: false,
        matched: rules_traced.iter().any(|rule| rule.matched),
        rules: rules_traced,
        note: broken.map(|why| {
            format!("it could not be understood, so nobody is admitted to what it may be for: {why}")
        }),
    }
}

fn told(filters: &[Filter]) -> String {
    filters.iter().map(|filter| format!("; {filter}")).collect()
}

/// An authorization for a route, which the request may be of.
fn of_routes(one: &Authorization, route: &Route, taken: Option<bool>, peer: &Peer<'_>) -> Considered {
    let mut considered = considered(&one.matcher, peer);
    let by = &route.by;
    considered.note = Some(match taken {
        Some(true) => format!("for {by}, which the request is of"),
        Some(false) => format!("for {by}, which the request is not of"),
        None => format!("for {by}, and the request is not known"),
    });
    considered.matched &= taken == Some(true);
    considered
}

impl Route {
    /// Why a request is none of its. None: it is.
    fn misses(&self, request: &Request<'_>) -> Option<String> {
        let name = host_name(request.host);
        if !self.hostnames.is_empty() && !self.hostnames.iter().any(|host| host.fits(&name)) {
            return Some(format!("hostnames: {name:?} is none of {}", list(&self.hostnames)));
        }
        let mut why = Vec::new();
        for one in &self.matches {
            why.push(one.misses(request)?);
        }
        if why.is_empty() { Some("it has no rules".to_string()) } else { Some(why.join(", and ")) }
    }
}

impl RequestMatch {
    fn misses(&self, request: &Request<'_>) -> Option<String> {
        if let Some(method) = &self.method
            && **method != *request.method
        {
            return Some(format!("method: {:?} is not {method}", request.method));
        }
        if !self.path.fits(request) {
            return Some(format!("path: {:?} is not {}", request.path, self.path));
        }
        if let Some((name, text)) = self.headers.iter().find(|header| !RequestMatch::sends(header, request)) {
            return Some(format!("headers[{name}]: none that is sent is {text}"));
        }
        let query = self.queries.iter().find(|query| !RequestMatch::asks(query, request));
        query.map(|(name, text)| format!("queryParams[{name}]: none that is sent is {text}"))
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(", "))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "{text:?}"),
            Self::Pattern(pattern) => write!(f, "like {:?}", pattern.as_str()),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "{path:?}"),
            Self::Prefix(prefix) => write!(f, "at or below \"{prefix}/\""),
            Self::Pattern(pattern) => write!(f, "like {:?}", pattern.as_str()),
            Self::Rpc { service, method } => {
                f.write_str("a call")?;
                service.iter().try_for_each(|service| write!(f, " of service {service}"))?;
                method.iter().try_for_each(|method| write!(f, " of method {method}"))
            }
        }
    }
}
