//! For the fuzz target and a property test.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::HOST;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::watch;

use super::body::Answer;
use super::judge::{About, Seen};
use super::{Advice, Judge, Limits, Observer, Ruling, Service, Tap, serve};
use crate::lifecycle::Stop;
use crate::policy::linkerd::RouteFilters;
use crate::policy::{PathNormalization, Request, Verdict, Why};
use crate::proxy::deliver::Watch;

/// A client says `said` to an application where `/admin` is forbidden, and to one where nothing is.
///
/// # Panics
/// When the application is asked anything that was not judged and allowed just so, and in that order; or when
/// what is heard of requests depends on how they are cut.
#[doc(hidden)]
pub fn fuzz_requests(said: &[u8]) -> bool {
    // Deadlines come at once, as nothing else happens then.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { return false };
    let judge = Arc::new(Strict::default());
    let asked = Arc::new(Mutex::new(Vec::new()));
    runtime.block_on(exchange(said, Arc::clone(&judge), Arc::clone(&asked)));
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let allowed = judge.allowed.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(allowed.starts_with(&asked), "{:?} was asked, {:?} was allowed", *asked, *allowed);
    assert_eq!(overheard(said.chunks(1)), overheard([said]), "by bytes, and at once");
    !asked.is_empty()
}

/// Where nothing is decided.
fn overheard<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let heard = Arc::new(Heard::default());
    let service = Service {
        judge: Arc::new(Lenient),
        observer: heard.clone(),
        limits: Limits::default(),
        client: Stop::default(),
    };
    let mut tap = Tap::new(service);
    pieces.into_iter().for_each(|piece| tap.bytes(piece));
    tap.finish();
    std::mem::take(&mut *heard.0.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn exchange(said: &[u8], judge: Arc<Strict>, asked: Arc<Mutex<Vec<String>>>) {
    let (mut client, server) = duplex(64 * 1024);
    let (up, application) = duplex(64 * 1024);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = request.uri().authority().map_or(host, |authority| Some(authority.as_str()));
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        let line = format!("{} {} {target}", request.method(), host.unwrap_or_default());
        asked.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        std::future::ready(Ok::<_, Infallible>(http::Response::new(Answer::empty())))
    });
    let is_http2 = said.starts_with(b"PRI * HTTP/2.0\r\n");
    let serving = async {
        let application = TokioIo::new(application);
        let _ = match is_http2 {
            true => {
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(application, service)
                    .await
            }
            false => hyper::server::conn::http1::Builder::new().serve_connection(application, service).await,
        };
    };
    let observer = Arc::new(Nobody);
    let service = Service { judge, observer, limits: Limits::default(), client: Stop::default() };
    let (counts, stop) = (Arc::default(), Stop::default());
    let said = said.to_vec();
    let talking = async move {
        let _ = client.write_all(&said).await;
        // The answers to what was sent ahead need somebody who is still there.
        let mut heard = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(60), client.read_to_end(&mut heard)).await;
    };
    let all = futures::future::join3(serving, serve(server, up, service, &counts, &stop), talking);
    let _ = tokio::time::timeout(Duration::from_secs(120), all).await;
}

/// Allows all but `/admin`, and remembers what.
#[derive(Default)]
struct Strict {
    allowed: Mutex<Vec<String>>,
}

impl Judge for Strict {
    fn judge(&self, request: &Request<'_>) -> Ruling {
        if request.path.starts_with("/admin") {
            return Ruling::Deny { by: None, cause: "deny_matched", why: String::new() };
        }
        let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
        let line = format!("{} {} {}{query}", request.method, request.host, request.path);
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ruling::Allow { by: None, filters: RouteFilters::default() }
    }

    fn not_http(&self) -> Ruling {
        Ruling::Deny { by: None, cause: "not_http", why: String::new() }
    }

    fn advise(&self, _: Option<&Request<'_>>) -> Advice {
        Advice::default()
    }

    fn normalization(&self) -> PathNormalization {
        PathNormalization::Base
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

/// Decides nothing, and would deny everything.
struct Lenient;

impl Judge for Lenient {
    fn binding(&self) -> bool {
        false
    }

    fn judge(&self, _: &Request<'_>) -> Ruling {
        Ruling::Allow { by: None, filters: RouteFilters::default() }
    }

    fn not_http(&self) -> Ruling {
        Ruling::Deny { by: None, cause: "not_http", why: String::new() }
    }

    fn advise(&self, _: Option<&Request<'_>>) -> Advice {
        Advice { would: Some(Verdict::Deny { by: None, why: Why::DenyMatched }), audited: Vec::new() }
    }

    fn normalization(&self) -> PathNormalization {
        PathNormalization::Base
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Observer for Heard {
    fn request(&self, _: &Seen<'_>) {}

    fn refused(&self, _: &Ruling) {}

    fn advised(&self, about: About<'_>, _: &Advice) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{about:?}"));
    }
}

struct Nobody;

impl Observer for Nobody {
    fn request(&self, _: &Seen<'_>) {}

    fn refused(&self, _: &Ruling) {}

    fn advised(&self, _: About<'_>, _: &Advice) {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of requests, and of what hides requests in them.
    const PIECES: [&str; 32] = [
        "GET / HTTP/1.1\r\n",
        "GET /admin HTTP/1.1\r\n",
        "GET /x/../admin HTTP/1.1\r\n",
        "GET /%61dmin?a=b HTTP/1.1\r\n",
        "POST /a/./b HTTP/1.1\r\n",
        "POST http://a/ HTTP/1.1\r\n",
        "PUT / HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "HEAD / HTTP/1.1\r\n",
        "Host: a\r\n",
        "Host: a\r\n\r\n",
        "host:b\n",
        "Content-Length: 4\r\n",
        "Content-Length: 40\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding:\tchunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive, X\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Expect: 100-continue\r\n",
        "X: y\r\n",
        " folded\r\n",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "0\r\n\r\n",
        "4\r\nabcd\r\n",
        "4;x=y\r\nGET \r\n",
        "abcd",
        "\0",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn the_application_is_asked_what_was_judged_and_nothing_else(
            pieces in proptest::collection::vec(0..PIECES.len(), 0..24),
            well_formed in 0..4usize,
        ) {
            let mut said = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n".repeat(well_formed);
            pieces.into_iter().for_each(|piece| said.push_str(PIECES[piece]));
            let was_asked = fuzz_requests(said.as_bytes());
            prop_assert!(was_asked || well_formed == 0);
        }
    }
}
