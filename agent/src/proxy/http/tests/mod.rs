//! Real sockets at both ends; attacks and wire forms are bytes by hand, the rest is hyper.

mod attacks;
mod detect;
mod filters;
mod http1;
mod http2;
mod policy;
mod tunnelled;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::judge::{About, Became, Seen};
use super::*;
use crate::policy::linkerd::RouteFilters;
use crate::policy::{PathNormalization, Request};

type Rule = Box<dyn Fn(&Request<'_>) -> bool + Send + Sync>;

/// Allows what `rule` says, and remembers what it was asked.
struct TestJudge {
    rule: Mutex<Rule>,
    asked: Mutex<Vec<String>>,
    changes: watch::Sender<u64>,
    /// What is not HTTP as well.
    takes_bytes: AtomicBool,
    filters: Mutex<RouteFilters>,
}

impl TestJudge {
    fn new(rule: impl Fn(&Request<'_>) -> bool + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            rule: Mutex::new(Box::new(rule)),
            asked: Mutex::default(),
            changes: watch::Sender::new(0),
            takes_bytes: AtomicBool::new(false),
            filters: Mutex::default(),
        })
    }

    fn change(&self, rule: impl Fn(&Request<'_>) -> bool + Send + Sync + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
        self.changes.send_modify(|n| *n += 1);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Judge for TestJudge {
    fn judge(&self, request: &Request<'_>) -> Ruling {
        let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
        let line = format!("{} {}{}{query}", request.method, request.host, request.path);
        self.asked.lock().unwrap().push(line);
        if (self.rule.lock().unwrap())(request) {
            Ruling::Allow { by: None, filters: self.filters.lock().unwrap().clone() }
        } else {
            Ruling::Deny { by: None, cause: "deny_matched", why: "secret".into() }
        }
    }

    fn not_http(&self) -> Ruling {
        if self.takes_bytes.load(Ordering::Relaxed) {
            return Ruling::Allow { by: None, filters: RouteFilters::default() };
        }
        Ruling::Deny { by: None, cause: "not_http", why: String::new() }
    }

    fn advise(&self, _: Option<&Request<'_>>) -> Advice {
        Advice::default()
    }

    fn normalization(&self) -> PathNormalization {
        PathNormalization::Base
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Observer for Log {
    fn request(&self, seen: &Seen<'_>) {
        let status = seen.status.map_or("-".to_owned(), |status| status.as_str().to_owned());
        let became = match seen.became {
            Became::Allowed { .. } => "allowed",
            Became::Denied { .. } => "denied",
            Became::Revoked => "revoked",
            Became::Refused { .. } => "refused",
        };
        self.0.lock().unwrap().push(format!("{} {} {status} {became}", seen.method, seen.path));
    }

    fn refused(&self, ruling: &Ruling) {
        let cause = if let Ruling::Deny { cause, .. } = ruling { cause } else { "allowed" };
        self.0.lock().unwrap().push(format!("stream {cause}"));
    }

    fn advised(&self, _: About<'_>, _: &Advice) {}
}

/// A client and an application with the code under test between them.
struct Rig {
    client: TcpStream,
    application: TcpStream,
    served: JoinHandle<Outcome>,
    judge: Arc<TestJudge>,
    log: Arc<Log>,
    stop: Stop,
    counts: Arc<Counts>,
}

impl Rig {
    async fn new(judge: Arc<TestJudge>) -> Self {
        Self::with(judge, Limits::default()).await
    }

    /// One that allows everything.
    async fn open() -> Self {
        Self::new(TestJudge::new(|_| true)).await
    }

    async fn with(judge: Arc<TestJudge>, limits: Limits) -> Self {
        let (client, server) = pair().await;
        let (up, application) = pair().await;
        let (log, stop, counts) = (Arc::<Log>::default(), Stop::default(), Arc::<Counts>::default());
        let service =
            Service { judge: judge.clone(), observer: log.clone(), limits, client: Stop::default() };
        let served = tokio::spawn({
            let (stop, counts) = (stop.clone(), Arc::clone(&counts));
            async move { serve(Socket::new(server), Socket::new(up), service, &counts, &stop).await }
        });
        Self { client, application, served, judge, log, stop, counts }
    }

    async fn say(&mut self, text: impl AsRef<[u8]>) {
        self.client.write_all(text.as_ref()).await.unwrap();
    }

    async fn answer(&mut self, text: impl AsRef<[u8]>) {
        self.application.write_all(text.as_ref()).await.unwrap();
    }

    /// The application reads until what it read ends with `end`.
    async fn arrives(&mut self, end: &str) -> String {
        until(&mut self.application, end).await
    }

    /// The client does.
    async fn hears(&mut self, end: &str) -> String {
        until(&mut self.client, end).await
    }

    /// Exactly this arrives next.
    async fn gets(&mut self, expected: &str) {
        exactly(&mut self.application, expected).await;
    }

    /// The client hears exactly this next.
    async fn told(&mut self, expected: &str) {
        exactly(&mut self.client, expected).await;
    }

    fn seen(&self) -> Vec<String> {
        self.log.0.lock().unwrap().clone()
    }

    /// The client is through.
    async fn ends(&mut self) -> Outcome {
        self.client.shutdown().await.unwrap();
        self.outcome().await
    }

    async fn outcome(&mut self) -> Outcome {
        timeout(LONG, &mut self.served).await.expect("it never ended").unwrap()
    }
}

/// Nothing takes this long unless it hangs.
const LONG: Duration = Duration::from_secs(30);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = TcpStream::connect(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(dial, listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    let reading = async {
        while !got.ends_with(end.as_bytes()) {
            match stream.read_u8().await {
                Ok(byte) => got.push(byte),
                Err(_) => break,
            }
        }
    };
    let done = timeout(LONG, reading).await.is_ok();
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(done && got.ends_with(end), "expected {end:?} at the end of {got:?}");
    got
}

async fn exactly(stream: &mut TcpStream, expected: &str) {
    let mut got = vec![0; expected.len()];
    let mut n = 0;
    let reading = async {
        while n < got.len() && got[..n] == expected.as_bytes()[..n] {
            match stream.read(&mut got[n..]).await {
                Ok(more) if more > 0 => n += more,
                _ => break,
            }
        }
    };
    let _ = timeout(LONG, reading).await;
    assert_eq!(String::from_utf8_lossy(&got[..n]), expected);
}

/// All that comes, and whether it ended in order.
async fn rest(stream: &mut TcpStream) -> (String, bool) {
    let mut got = Vec::new();
    let ended = timeout(LONG, stream.read_to_end(&mut got)).await.expect("it never ended");
    (String::from_utf8_lossy(&got).into_owned(), ended.is_ok())
}
