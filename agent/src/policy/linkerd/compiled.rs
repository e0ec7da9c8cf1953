//! Judges connections and requests by what holds on a port.

use std::sync::Arc;

use super::super::compiled::Conn;
use super::super::peer::Peer;
use super::super::request::Request;
use super::super::resource::ResourceRef;
use super::super::tri::Tri;
use super::inbound::{Authorization, Inbound, Otherwise, PortPolicy, Route};
use super::matching::{Closeness, closeness};
use super::server::Protocol;

/// What Linkerd's resources say of a connection or request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Allow {
        by: Arc<ResourceRef>,
        /// No authorization admits it; it is let through to be told of.
        audited: bool,
    },
    Deny {
        by: Arc<ResourceRef>,
        /// Of a route.
        rule: Option<u32>,
        why: Refusal,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No authorization admits the client.
    Unauthorized,
    /// There are routes, and the request is none of theirs.
    NoRoute,
    /// There are routes, and what is sent is not HTTP.
    NotHttp,
    Defective(Arc<str>),
}

impl Inbound {
    /// Of a request, or of a stream that is not HTTP where there is none.
    pub fn judge(&self, conn: &Conn, request: Option<&Request<'_>>) -> Answer {
        let peer = Peer::new(conn, request, &self.linkerd_namespace);
        self.on_port(conn.destination_port).judge(&peer)
    }

    /// The answer, where it is the same whatever is sent.
    pub fn whatever(&self, conn: &Conn) -> Option<Answer> {
        self.on_port(conn.destination_port).whatever(&Peer::new(conn, None, &self.linkerd_namespace))
    }
}

impl PortPolicy {
    /// Of a request, or of a stream that is not HTTP where there is none.
    pub(in super::super) fn judge(&self, peer: &Peer<'_>) -> Answer {
        if let Some(why) = &self.broken {
            return self.deny(Refusal::Defective(why.clone()));
        }
        if self.routes.is_empty() {
            return self.by_server(peer);
        }
        match peer.request {
            // A Server that says nothing of its protocol takes other streams too.
            None if self.protocol == Protocol::Unknown => self.by_server(peer),
            None => self.deny(Refusal::NotHttp),
            Some(request) => self.by_route(peer, request),
        }
    }

    /// The answer, where it is the same whatever is sent.
    pub(in super::super) fn whatever(&self, peer: &Peer<'_>) -> Option<Answer> {
        if let Some(why) = &self.broken {
            return Some(self.deny(Refusal::Defective(why.clone())));
        }
        let judged = self.judged(peer);
        let server = judged == Tri::Yes || self.otherwise == Otherwise::Audit;
        if self.routes.is_empty() {
            return (server || judged == Tri::No).then(|| self.by_server(peer));
        }
        if !server && !self.routes.iter().any(|route| admits(&route.authorizations, peer).is_some()) {
            return Some(self.deny(Refusal::Unauthorized));
        }
        let everything = |route: &Arc<Route>| {
            route.hostnames.is_empty() && route.matches.iter().any(super::RequestMatch::is_any)
        };
        let sound = self.routes.iter().all(|route| route.broken.is_none());
        let streams = self.protocol == Protocol::Unknown;
        (server && sound && streams && self.routes.iter().any(everything)).then(|| self.by_server(peer))
    }

    fn judged(&self, peer: &Peer<'_>) -> Tri {
        Tri::any(self.authorizations.iter().map(|one| one.matcher.judge(peer)))
    }

    fn by_server(&self, peer: &Peer<'_>) -> Answer {
        match admits(&self.authorizations, peer) {
            Some(by) => Answer::Allow { by: by.clone(), audited: false },
            None => self.unauthorized(&self.by, None),
        }
    }

    fn by_route(&self, peer: &Peer<'_>, request: &Request<'_>) -> Answer {
        let mut closest: Option<(Closeness, &Route)> = None;
        for route in &self.routes {
            let Some(close) = closeness(&route.hostnames, &route.matches, request) else { continue };
            // Which requests it means to take from other routes nobody knows.
            if let Some(why) = &route.broken {
                let (by, rule) = (route.by.clone(), Some(route.rule));
                return Answer::Deny { by, rule, why: Refusal::Defective(why.clone()) };
            }
            // Of several as close the first, which is the oldest.
            if closest.is_none_or(|(best, _)| close > best) {
                closest = Some((close, route));
            }
        }
        let Some((_, route)) = closest else { return self.deny(Refusal::NoRoute) };
        match admits(&route.authorizations, peer).or_else(|| admits(&self.authorizations, peer)) {
            Some(by) => Answer::Allow { by: by.clone(), audited: false },
            None => self.unauthorized(&route.by, Some(route.rule)),
        }
    }

    fn unauthorized(&self, by: &Arc<ResourceRef>, rule: Option<u32>) -> Answer {
        match self.otherwise {
            Otherwise::Audit => Answer::Allow { by: self.by.clone(), audited: true },
            Otherwise::Deny => Answer::Deny { by: by.clone(), rule, why: Refusal::Unauthorized },
        }
    }

    fn deny(&self, why: Refusal) -> Answer {
        Answer::Deny { by: self.by.clone(), rule: None, why }
    }
}

/// Which of them does.
fn admits<'a>(authorizations: &'a [Arc<Authorization>], peer: &Peer<'_>) -> Option<&'a Arc<ResourceRef>> {
    let one = authorizations.iter().find(|one| one.matcher.judge(peer) == Tri::Yes)?;
    Some(&one.matcher.resource)
}
