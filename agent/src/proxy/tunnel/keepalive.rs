//! PING at either end, so that a peer that vanished without a word is noticed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use super::KeepaliveSettings;

pub(super) struct Keepalive {
    ping: PingPong,
    settings: KeepaliveSettings,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// The peer answered; the next PING goes out an interval later.
    Alive,
    TimedOut,
}

impl Keepalive {
    pub(super) fn new(ping: PingPong, settings: &KeepaliveSettings) -> Self {
        let timer = Box::pin(sleep(settings.interval));
        Self { ping, settings: settings.clone(), timer, waiting: false }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        loop {
            if self.waiting {
                if self.ping.poll_pong(cx).map(|pong| pong.is_ok()) == Poll::Ready(true) {
                    self.restart(false);
                    return Poll::Ready(Beat::Alive);
                }
                ready!(self.timer.as_mut().poll(cx));
                return Poll::Ready(Beat::TimedOut);
            }
            ready!(self.timer.as_mut().poll(cx));
            // Refused only when the connection is over, which its own poll tells.
            let _ = self.ping.send_ping(Ping::opaque());
            self.restart(true);
        }
    }

    fn restart(&mut self, waiting: bool) {
        self.waiting = waiting;
        let after = if waiting { self.settings.timeout } else { self.settings.interval };
        self.timer.as_mut().reset(Instant::now() + after);
    }
}
