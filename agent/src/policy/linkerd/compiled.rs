//! Judges connections and requests by what holds on a port.

use std::sync::Arc;

use super::super::compiled::{Conn, Decision};
use super::super::peer::Peer;
use super::super::request::Request;
use super::super::tri::Tri;
use super::super::verdict::{By, Connection, Verdict, Why};
use super::filters::RouteFilters;
use super::inbound::{Inbound, Otherwise, PortPolicy, Route};
use super::server::Protocol;

impl Inbound {
    /// About a request, or about a stream that is not HTTP where there is none.
    pub fn evaluate(&self, conn: &Conn, request: Option<&Request<'_>>) -> Verdict {
        let peer = Peer::new(conn, request, &self.linkerd_namespace);
        match self.on_port(conn.destination_port).judge(&peer) {
            Decision::Allow(by) => Verdict::Allow { by },
            Decision::Deny(by, why) => Verdict::Deny { by, why },
            Decision::Depends(by) => Verdict::Deny { by, why: Why::NotHttp },
        }
    }

    /// About a connection of which nothing was read yet.
    pub fn on_connection(&self, conn: &Conn) -> Connection {
        let peer = Peer::new(conn, None, &self.linkerd_namespace);
        match self.on_port(conn.destination_port).whatever(&peer) {
            Decision::Allow(by) => Connection::Allow(Verdict::Allow { by }),
            Decision::Deny(by, why) => Connection::Deny(Verdict::Deny { by, why }),
            Decision::Depends(_) => Connection::PerRequest,
        }
    }

    /// What lets it through only to tell of it: nothing authorizes it.
    pub fn audited(&self, conn: &Conn, request: Option<&Request<'_>>) -> Option<By> {
        let peer = Peer::new(conn, request, &self.linkerd_namespace);
        self.on_port(conn.destination_port).audited(&peer)
    }
}

impl PortPolicy {
    /// Whether its answers may depend on requests.
    pub(in super::super) fn looks_at_requests(&self) -> bool {
        self.broken.is_none() && (!self.routes.is_empty() || self.authorizations.probes.is_some())
    }

    /// About a request, or about a stream that is not HTTP where there is none. Never depends.
    pub(in super::super) fn judge(&self, peer: &Peer<'_>) -> Decision {
        if let Some(why) = &self.broken {
            return self.deny(Why::Defective(why.clone()));
        }
        if self.routes.is_empty() {
            return self.by_server(peer);
        }
        match peer.request {
            // A Server that says nothing of its protocol takes other streams too.
            None if self.protocol == Protocol::Unknown => self.by_server(peer),
            None => self.deny(Why::NotHttp),
            Some(request) => self.by_route(peer, request),
        }
    }

    /// About a connection of which nothing was read yet.
    pub(in super::super) fn whatever(&self, peer: &Peer<'_>) -> Decision {
        if let Some(why) = &self.broken {
            return self.deny(Why::Defective(why.clone()));
        }
        let found = self.authorizations.judge(peer);
        let server = found == Tri::Yes || self.otherwise == Otherwise::Audit;
        let depends = || Decision::Depends(Some(By::whole(self.by.clone())));
        if self.routes.is_empty() {
            return if server || found == Tri::No { self.by_server(peer) } else { depends() };
        }
        // Of clients whose address is not known, as the kernel's plan asks, some may be admitted.
        if !server && found == Tri::No && self.routes.admit(peer) == Tri::No {
            return self.deny(Why::Unauthorized);
        }
        let streams = self.protocol == Protocol::Unknown;
        match server && streams && self.routes.take_everything() {
            true => self.by_server(peer),
            false => depends(),
        }
    }

    /// Whether something is done with requests that are admitted.
    pub(in super::super) fn has_filters(&self) -> bool {
        self.broken.is_none() && self.routes.have_filters()
    }

    /// What becomes of a request if it is admitted.
    pub(in super::super) fn filters(&self, request: &Request<'_>) -> RouteFilters {
        if self.has_filters() { self.routes.filters(request) } else { RouteFilters::default() }
    }

    /// The Server or default policy that lets it through only to tell of it.
    pub(in super::super) fn audited(&self, peer: &Peer<'_>) -> Option<By> {
        if self.otherwise == Otherwise::Deny {
            return None;
        }
        // Nobody else allows in its own name.
        match self.judge(peer) {
            Decision::Allow(by) => by.into_iter().find(|by| by.resource == self.by),
            _ => None,
        }
    }

    fn by_server(&self, peer: &Peer<'_>) -> Decision {
        match self.authorizations.admit(peer) {
            Some(by) => Decision::Allow(vec![By::whole(by)]),
            None => self.unauthorized(By::whole(self.by.clone())),
        }
    }

    fn by_route(&self, peer: &Peer<'_>, request: &Request<'_>) -> Decision {
        match self.routes.of(request) {
            Err(broken) => Decision::Deny(Some(broken.name()), Why::Defective(broken.reason())),
            Ok(None) => self.deny(Why::NoRoute),
            Ok(Some(route)) => {
                match route.authorizations.admit(peer).or_else(|| self.authorizations.admit(peer)) {
                    Some(by) => Decision::Allow(vec![By::whole(by)]),
                    None => self.unauthorized(route.name()),
                }
            }
        }
    }

    fn unauthorized(&self, by: By) -> Decision {
        match self.otherwise {
            Otherwise::Audit => Decision::Allow(vec![By::whole(self.by.clone())]),
            Otherwise::Deny => Decision::Deny(Some(by), Why::Unauthorized),
        }
    }

    fn deny(&self, why: Why) -> Decision {
        Decision::Deny(Some(By::whole(self.by.clone())), why)
    }
}

impl Route {
    fn name(&self) -> By {
        By { resource: self.by.clone(), rule: Some(self.rule) }
    }

    fn reason(&self) -> Arc<str> {
        self.broken.clone().unwrap_or_default()
    }
}
