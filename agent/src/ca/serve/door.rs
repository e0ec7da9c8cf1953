//! Who may send a message: decided by what TLS and the headers show, before a byte of the message is read.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Status};

use super::metrics::{Following, Outcome};
use super::places::Place;
use super::refusals::Cause;
use super::{Service, TRUST};
use crate::ca::attest::{NodeName, Papers, PublicKeyPin, Refusal};

/// What belongs to the connection that a request came by.
#[derive(Clone)]
pub(super) struct Shown {
    from: SocketAddr,
    /// The key of the certificate that the caller has shown in TLS.
    key: Option<PublicKeyPin>,
    place: Arc<Place>,
    /// For requests of a connection that has proven nothing yet.
    unproven: Arc<Semaphore>,
}

/// Who it is that calls, and what it has shown.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) node: NodeName,
    pub(super) papers: Papers,
}

impl Shown {
    pub(super) fn new(from: SocketAddr, key: Option<PublicKeyPin>, place: Arc<Place>) -> Self {
        Self { from, key, place, unproven: Arc::new(Semaphore::new(UNPROVEN)) }
    }
}

impl Caller {
    /// Of a request that came through the door.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::unauthenticated("the caller was not asked who it is"))
    }
}

impl Service {
    /// Notes in the request who sends it.
    ///
    /// # Errors
    /// The whole answer, to whoever is not known.
    pub(super) async fn admit<B>(&self, shown: &Shown, request: &mut http::Request<B>) -> Result<(), Status> {
        match self.caller(shown, request.headers()).await {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Ok(())
            }
            Err(stranger) => Err(self.send_away(&stranger, shown.from, request.uri().path())),
        }
    }

    async fn caller(&self, shown: &Shown, headers: &http::HeaderMap) -> Result<Caller, Stranger> {
        let from = shown.place.origin();
        let _unproven = match from.proven {
            true => None,
            // Refused rather than queued: what waits takes room.
            false => Some(shown.unproven.try_acquire().map_err(|_| Stranger::TooMany)?),
        };
        let token = headers.get("authorization").and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| value.split_once(' '));
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, t)| t.trim());
        let mut papers = Papers { key: shown.key, token: token.map(str::to_owned), from };
        if papers.key.is_none() && papers.token.is_none() {
            return Err(Stranger::NoPapers);
        }
        let node = self.attestor.who(&papers).await.map_err(Stranger::Refused)?;
        shown.place.prove();
        papers.from.proven = true;
        Ok(Caller { node, papers })
    }

    /// Why goes to the log; a caller that is not known learns only that.
    fn send_away(&self, stranger: &Stranger, from: SocketAddr, path: &str) -> Status {
        let unknown =
            || Status::unauthenticated("the caller is not known here: see the controller's log for why");
        let (cause, outcome, following, status) = match stranger {
            Stranger::NoPapers => {
                (Cause::NoPapers, Outcome::UnknownCaller, Following::UnknownCaller, unknown())
            }
            Stranger::Refused(Refusal::Unknown(_) | Refusal::NotYours(_)) => {
                (Cause::Unknown, Outcome::UnknownCaller, Following::UnknownCaller, unknown())
            }
            Stranger::Refused(Refusal::Unavailable(why)) => {
                (Cause::Unavailable, Outcome::Unavailable, Following::Unavailable, Status::unavailable(why))
            }
            Stranger::TooMany => {
                let status = Status::resource_exhausted(stranger.to_string());
                (Cause::TooMany, Outcome::TooMany, Following::TooMany, status)
            }
        };
        if path.starts_with(TRUST) {
            self.metrics.follows(following);
        } else {
            self.metrics.decided(outcome);
        }
        self.refusals.note(cause, from, stranger);
        status
    }
}

/// Why nothing more is read of a request.
#[derive(Debug, thiserror::Error)]
enum Stranger {
    #[error("unknown caller: it shows neither a certificate nor a token")]
    NoPapers,
    #[error("it has {UNPROVEN} requests under way and has not shown yet which node it is")]
    TooMany,
    #[error(transparent)]
    Refused(Refusal),
}

/// An agent that comes back has eight requests under way, and follows.
pub(super) const UNPROVEN: usize = 16;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
impl Service {
    /// For tests of what stands behind the door: a request as it would come through.
    pub(in crate::ca) async fn let_in<T>(&self, request: Request<T>) -> Result<Request<T>, Status> {
        let (metadata, _, message) = request.into_parts();
        let mut asked = http::Request::new(());
        *asked.headers_mut() = metadata.into_headers();
        let places = super::Places::new(super::Most::default());
        let (place, _) = places.take([127, 0, 0, 1].into()).unwrap();
        self.admit(&Shown::new(([127, 0, 0, 1], 7).into(), None, Arc::new(place)), &mut asked).await?;
        let (asked, ()) = asked.into_parts();
        let metadata = tonic::metadata::MetadataMap::from_headers(asked.headers);
        Ok(Request::from_parts(metadata, asked.extensions, message))
    }
}
