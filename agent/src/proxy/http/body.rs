//! Bodies on their way through: frame by frame, never gathered, and ended when policy takes them back.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::answer;
use super::expect::Gate;
use super::open::Serving;
use crate::policy::linkerd::RouteFilters;

/// The client's, on its way to the application.
pub(super) struct Upload {
    body: Incoming,
    gate: Option<Gate>,
    filters: RouteFilters,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    _serving: Arc<Serving>,
}

impl Upload {
    pub(super) fn new(
        body: Incoming,
        gate: Option<Gate>,
        filters: RouteFilters,
        serving: Arc<Serving>,
    ) -> Self {
        let revoked = Box::pin(serving.revoked.clone().cancelled_owned());
        Self { body, gate, filters, revoked, _serving: serving }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        if this.revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Broken::Revoked(cancel()))));
        }
        if let Some(gate) = &mut this.gate {
            if gate.poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.gate = None;
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        Poll::Ready(carried(frame, |trailers| this.filters.change_request_trailers(trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What the client gets: the application's answer, or ours.
pub(super) enum Answer {
    Ours(Option<Bytes>),
    Theirs(Box<Theirs>),
}

pub(super) struct Theirs {
    body: Incoming,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    is_grpc: bool,
    is_over: bool,
    /// Of a 304: the length of what it does not carry.
    claimed: Option<u64>,
    filters: RouteFilters,
    on_revoked: Option<Box<dyn FnOnce() + Send + Sync>>,
    _serving: Arc<Serving>,
}

impl Answer {
    pub(super) fn empty() -> Self {
        Self::Ours(None)
    }

    pub(super) fn text(text: &str) -> Self {
        Self::Ours(Some(Bytes::from(format!("{text}\n"))))
    }

    pub(super) fn theirs(
        body: Incoming,
        is_grpc: bool,
        claimed: Option<u64>,
        filters: RouteFilters,
        serving: Arc<Serving>,
        on_revoked: impl FnOnce() + Send + Sync + 'static,
    ) -> Self {
        let revoked = Box::pin(serving.revoked.clone().cancelled_owned());
        let on_revoked: Box<dyn FnOnce() + Send + Sync> = Box::new(on_revoked);
        Self::Theirs(Box::new(Theirs {
            body,
            revoked,
            is_grpc,
            is_over: false,
            claimed,
            filters,
            on_revoked: Some(on_revoked),
            _serving: serving,
        }))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let theirs = match &mut *self {
            Self::Ours(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Theirs(theirs) => theirs,
        };
        if theirs.is_over {
            return Poll::Ready(None);
        }
        if theirs.revoked.as_mut().poll(cx).is_ready() {
            if let Some(tell) = theirs.on_revoked.take() {
                tell();
            }
            theirs.is_over = true;
            let end = if theirs.is_grpc {
                Ok(Frame::trailers(answer::denied_trailers()))
            } else {
                Err(Broken::Revoked(cancel()))
            };
            return Poll::Ready(Some(end));
        }
        let theirs = &mut **theirs;
        let frame = ready!(Pin::new(&mut theirs.body).poll_frame(cx));
        Poll::Ready(carried(frame, |trailers| theirs.filters.change_response_trailers(trailers)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Ours(text) => text.is_none(),
            Self::Theirs(theirs) => theirs.is_over || theirs.claimed.is_none() && theirs.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Ours(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Theirs(theirs) => {
                theirs.claimed.map_or_else(|| theirs.body.size_hint(), SizeHint::with_exact)
            }
        }
    }
}

type Next<E> = Option<Result<Frame<Bytes>, E>>;

fn carried(frame: Next<hyper::Error>, change: impl FnOnce(&mut HeaderMap)) -> Next<Broken> {
    frame.map(|frame| {
        let mut frame = frame.map_err(Broken::Carried)?;
        frame.trailers_mut().map(change);
        Ok(frame)
    })
}

/// Why a body, or a request, ends before its end. hyper resets the stream with the reason of the h2 error
/// that it finds at the end of the sources.
#[derive(Debug)]
pub(super) enum Broken {
    Carried(hyper::Error),
    /// Never reached the application: the client may try again.
    Unsent(h2::Error),
    Revoked(h2::Error),
}

impl Broken {
    pub(super) fn unsent() -> Self {
        Self::Unsent(h2::Reason::REFUSED_STREAM.into())
    }
}

fn cancel() -> h2::Error {
    h2::Reason::CANCEL.into()
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Carried(e) => e.fmt(f),
            Self::Unsent(_) => f.write_str("the application takes no more requests"),
            Self::Revoked(_) => f.write_str("policy no longer allows this request"),
        }
    }
}

impl StdError for Broken {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Carried(e) => Some(e),
            Self::Unsent(e) | Self::Revoked(e) => Some(e),
        }
    }
}
