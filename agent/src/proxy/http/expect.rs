//! `Expect: 100-continue`: the client's body is asked for when the application asks for it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{self, HeaderMap};
use http::{Request, StatusCode};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Holds back a body. The first poll of it behind the gate makes hyper send `100 Continue` to the client.
pub(super) struct Gate {
    asked: Pin<Box<WaitForCancellationFutureOwned>>,
    /// An application that knows nothing of `Expect` waits for the body in silence.
    patience: Pin<Box<Sleep>>,
}

/// For a request that waits to be asked for its body, a gate that the application's answer opens.
pub(super) fn gate<B>(request: &mut Request<B>) -> Option<Gate> {
    if !is_expected(request.headers()) {
        return None;
    }
    let asked = CancellationToken::new();
    let opened = Box::pin(asked.clone().cancelled_owned());
    hyper::ext::on_informational(request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            asked.cancel();
        }
    });
    Some(Gate { asked: opened, patience: Box::pin(tokio::time::sleep(PATIENCE)) })
}

pub(super) fn is_expected(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl Gate {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.asked.as_mut().poll(cx).is_ready() || self.patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// As long as clients wait before they send the body unasked.
const PATIENCE: Duration = Duration::from_secs(1);
