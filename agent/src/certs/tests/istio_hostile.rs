//! Authorities that are no authorities: what is at the address speaks something else, says nothing, or does not
//! end. Each error says who asked whom for what.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use futures::StreamExt;
use http::Response;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, SanType};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::istio::{Place, answer};
use super::istio_server::{Asked, Hierarchy, Server, config, tls};
use super::support::{CART, id};
use crate::certs::{CertError, CertState, Config, Issuer, IstioConfig, IstioIssuer, Manager};

type Expected = fn(&CertError) -> bool;

#[tokio::test]
async fn what_is_no_answer_of_grpc_is_told_with_who_asked() {
    let ok = || Response::builder().header("content-type", "application/grpc");
    let refused: Expected = |e| matches!(e, CertError::Refused { .. });
    let failed: Expected = |e| matches!(e, CertError::Issuer(_));
    let unreadable: Expected = |e| matches!(e, CertError::Answer(_));
    type Make = Box<dyn Fn() -> Response<Body> + Send + Sync>;
    let answers: Vec<(&str, Make, Expected, &str)> = vec![
        ("a proxy's error", Box::new(|| status(503, "upstream gone")), failed, "503 Service Unavailable"),
        ("a page", Box::new(|| status(404, "<html>")), failed, "something else answers there"),
        ("a redirect", Box::new(|| status(302, "")), failed, "302"),
        ("a proxy's refusal", Box::new(|| status(403, "forbidden")), failed, "403 Forbidden"),
        ("a proxy's refusal without a page", Box::new(|| status(403, "")), refused, "HTTP status code 403"),
        ("a proxy's error without a page", Box::new(|| status(502, "")), failed, "HTTP status code 502"),
        ("a page in place of the answer", Box::new(|| status(200, "<html>welcome")), unreadable, "flag"),
        (
            "a status without a body",
            Box::new(move || {
                let trailers_only =
                    ok().header("grpc-status", "16").header("grpc-message", "who%20are%20you");
                trailers_only.body(Body::empty()).unwrap()
            }),
            refused,
            "who are you",
        ),
        (
            "a status that is none",
            Box::new(move || ok().header("grpc-status", "many").body(Body::empty()).unwrap()),
            failed,
            "Unknown",
        ),
        (
            "nothing",
            Box::new(move || ok().body(Body::empty()).unwrap()),
            failed,
            "see the authority's own log",
        ),
        (
            "what is compressed",
            Box::new(move || ok().header("grpc-encoding", "gzip").body(frame(1, b"x")).unwrap()),
            unreadable,
            "compressed with `gzip`",
        ),
        (
            "what claims to be compressed",
            Box::new(move || ok().body(frame(1, b"x")).unwrap()),
            unreadable,
            "compressed-flag",
        ),
        ("a strange flag", Box::new(move || ok().body(frame(9, b"x")).unwrap()), unreadable, "flag"),
        (
            "garbage in place of a message",
            Box::new(move || ok().body(frame(0, b"\x0a\xff\xff\xff\xff\x0f")).unwrap()),
            unreadable,
            "failed to decode Protobuf message",
        ),
        (
            "a text that is none",
            Box::new(move || ok().body(frame(0, b"\x0a\x02\xff\xfe")).unwrap()),
            unreadable,
            "failed to decode Protobuf message",
        ),
        (
            "a message of 4 GiB",
            Box::new(move || ok().body(Body::from(&b"\0\xff\xff\xff\xff"[..])).unwrap()),
            unreadable,
            "message length too large",
        ),
        (
            "a message that is cut off",
            Box::new(move || ok().body(Body::from(&b"\0\0\0\0\x10\x0a"[..])).unwrap()),
            failed,
            "EOF",
        ),
    ];
    for (what, answer, expected, part) in answers {
        let place = Place::new();
        let answer = Arc::new(answer);
        let server = Raw::start(&place, &[b"h2"], move |stream| {
            let answer = answer.clone();
            async move {
                let service = service_fn(move |_| {
                    let answer = answer.clone();
                    async move { Ok::<_, std::convert::Infallible>(answer()) }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            }
        });
        let error = server.await.ask(&place).await;
        assert!(expected(&error), "{what} gave {error:?}");
        told(&error.to_string(), &[part], what);
    }
}

#[tokio::test]
async fn a_server_that_does_not_agree_to_http_2_is_not_shown_the_token() {
    for alpn in [&[][..], &[b"http/1.1".as_slice()][..]] {
        let place = Place::new();
        let read = Arc::new(AtomicUsize::new(0));
        let seen = read.clone();
        let server = Raw::start(&place, alpn, move |mut stream| {
            let seen = seen.clone();
            async move {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.ok();
                seen.fetch_add(bytes.len(), Ordering::SeqCst);
            }
        })
        .await;
        let error = server.ask(&place).await.to_string();
        told(&error, &[if alpn.is_empty() { "agree to HTTP/2" } else { "NoApplicationProtocol" }], "ALPN");
        server.stop().await;
        assert_eq!(read.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_costs_one_deadline() {
    let place = Place::new();
    place.write("root-cert.pem", &place.root.pem);
    // Before TLS, and after it.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let issuer = IstioIssuer::new(quick(config(silent.local_addr().unwrap(), place.scratch.path()))).unwrap();
    let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 0.5 s"), "{error}");
    let server = Raw::start(&place, &[b"h2"], |mut stream: TlsStream<TcpStream>| async move {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.ok();
    });
    told(&server.await.ask(&place).await.to_string(), &["no answer within 0.5 s"], "silence");
}

#[tokio::test]
async fn an_answer_that_trickles_costs_one_deadline() {
    let place = Place::new();
    let server = Raw::start(&place, &[b"h2"], |stream| async move {
        let service = service_fn(|_| async {
            let trickle = futures::stream::iter(b"\0\0\x0f\xff\xff".iter().copied())
                .chain(futures::stream::repeat(b'x'))
                .then(async |byte| {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok::<_, std::io::Error>(vec![byte])
                });
            let answer = Response::builder().header("content-type", "application/grpc");
            Ok::<_, std::convert::Infallible>(answer.body(Body::from_stream(trickle)).unwrap())
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    });
    told(&server.await.ask(&place).await.to_string(), &["no answer within 0.5 s"], "a trickle");
}

#[tokio::test]
async fn headers_that_do_not_end_are_not_collected() {
    let place = Place::new();
    let taken = Arc::new(AtomicUsize::new(0));
    let written = taken.clone();
    let server = Raw::start(&place, &[b"h2"], move |mut stream| {
        let written = written.clone();
        async move {
            let frame = |kind: u8, flags: u8, on: u8, payload: &[u8]| {
                let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
                [&length[1..], &[kind, flags, 0, 0, 0, on], payload].concat()
            };
            let (settings, headers, continuation) = (4, 1, 9);
            let begin =
                [frame(settings, 0, 0, &[]), frame(settings, 1, 0, &[]), frame(headers, 0, 1, &[0x88])];
            // `a: b`, a literal, over and over.
            let more = frame(continuation, 0, 1, &[0, 1, b'a', 1, b'b'].repeat(3000));
            let mut sent = stream.write_all(&begin.concat()).await;
            while sent.is_ok() && written.load(Ordering::SeqCst) < 256 << 20 {
                sent = stream.write_all(&more).await;
                written.fetch_add(more.len(), Ordering::SeqCst);
            }
        }
    });
    let server = server.await;
    let error = server.ask(&place).await;
    told(&error.to_string(), &[], "headers without an end");
    server.stop().await;
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken < 64 << 20, "{taken} bytes of headers were taken");
}

#[tokio::test]
async fn a_server_whose_certificate_is_over_or_not_yet_valid_is_not_asked() {
    let now = SystemTime::now();
    type Change = Box<dyn Fn(&mut CertificateParams)>;
    let changes: [(&str, Change); 2] = [
        ("expired", Box::new(move |leaf| leaf.not_after = (now - Duration::from_secs(10)).into())),
        ("not valid yet", Box::new(move |leaf| leaf.not_before = (now + Duration::from_secs(600)).into())),
    ];
    for (why, change) in changes {
        let place = Place::new();
        let tls = tls(&place.root, &[b"h2"], |leaf| {
            leaf.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
            change(leaf);
        });
        let server = Raw::with_tls(&place, tls, |_| async {}).await;
        told(&server.ask(&place).await.to_string(), &[why], why);
    }
}

#[tokio::test]
async fn a_thousand_identities_need_one_connection() {
    let place = Place::new();
    let server = place.server(Hierarchy::new()).await;
    let issuer = IstioIssuer::new(server.config(&place.scratch)).unwrap();
    let manager = Manager::new(Arc::new(issuer), &Config::default());
    let leases: Vec<_> =
        (0..1000).map(|n| manager.lease(&id(&format!("spiffe://mesh.test/ns/shop/sa/s{n}")))).collect();
    for lease in &leases {
        let identity = lease.ready().await.unwrap();
        assert_eq!(identity.certificate().identity(), lease.identity());
    }
    assert_eq!(server.asked.lock().unwrap().len(), 1000, "one call for each");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_authority_that_is_down_leaves_the_certificate_and_renews_it_when_it_is_back() {
    let place = Place::new();
    let hierarchy = Arc::new(Hierarchy::new());
    // Half of its life is over at once.
    let brief = move |asked: Asked| {
        let (now, part) = (SystemTime::now(), Duration::from_secs(20));
        let chain = hierarchy.issue_with(&asked, |leaf| {
            (leaf.not_before, leaf.not_after) = ((now - part).into(), (now + part).into());
        });
        answer(Ok(chain))
    };
    let server = place.server_that(brief.clone()).await;
    let issuer = IstioIssuer::new(server.config(&place.scratch)).unwrap();
    let manager = Manager::new(Arc::new(issuer), &Config::default());
    let lease = manager.lease(&id(CART));
    let first = lease.ready().await.unwrap();
    let address = server.address;
    server.stop().await;
    until(|| manager.list()[0].state == CertState::RenewalFailing).await;
    assert_eq!(lease.current().unwrap().number(), first.number());
    told(manager.list()[0].last_error.as_ref().unwrap(), &["up and reachable"], "an authority that is down");

    let shown = SanType::IpAddress(Ipv4Addr::LOCALHOST.into());
    let tls = tls(&place.root, &[b"h2"], |leaf| leaf.subject_alt_names = vec![shown]);
    let _server = Server::with_tls(address, tls, brief).await;
    until(|| lease.current().unwrap().number() != first.number()).await;
    assert_eq!(manager.list()[0].state, CertState::Valid);
}

async fn until(mut happened: impl FnMut() -> bool) {
    let wait = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it does not happen");
}

/// The error names everybody, and says `parts`.
fn told(error: &str, parts: &[&str], what: &str) {
    let asked =
        [CART, "node-1", "istio-system/underpass-x7", "service account underpass", "https://127.0.0.1:"];
    for part in asked.iter().chain(parts) {
        assert!(error.contains(part), "{what}: {part} is not in: {error}");
    }
    assert!(error.len() < 2000 && !error.contains('\n'), "{what}: {error}");
}

fn status(code: u16, body: &'static str) -> Response<Body> {
    Response::builder().status(code).header("content-type", "text/html").body(Body::from(body)).unwrap()
}

/// gRPC's: a flag, a length, a message.
fn frame(flag: u8, message: &[u8]) -> Body {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    Body::from([&[flag], &length[..], message].concat())
}

fn quick(config: IstioConfig) -> IstioConfig {
    IstioConfig { deadline: Duration::from_millis(500), ..config }
}

/// TLS, and then whatever the test does. Gone with the value.
struct Raw {
    address: std::net::SocketAddr,
    task: JoinHandle<()>,
}

impl Raw {
    async fn start<F>(
        place: &Place,
        alpn: &[&[u8]],
        handle: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = SanType::IpAddress(Ipv4Addr::LOCALHOST.into());
        let tls = tls(&place.root, alpn, |leaf| leaf.subject_alt_names = vec![address]);
        Self::with_tls(place, tls, handle).await
    }

    async fn with_tls<F>(
        place: &Place,
        tls: Arc<ServerConfig>,
        handle: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        place.write("root-cert.pem", &place.root.pem);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            // One connection: nobody asks twice.
            let (tcp, _) = listener.accept().await.unwrap();
            if let Ok(stream) = TlsAcceptor::from(tls).accept(tcp).await {
                handle(stream).await;
            }
        });
        Self { address, task }
    }

    /// How asking it fails.
    async fn ask(&self, place: &Place) -> CertError {
        let issuer = IstioIssuer::new(quick(config(self.address, place.scratch.path()))).unwrap();
        issuer.issue(&id(CART)).await.unwrap_err()
    }

    /// Once the connection is over.
    async fn stop(mut self) {
        let over = tokio::time::timeout(Duration::from_secs(30), &mut self.task).await;
        over.expect("the connection is still open").unwrap();
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}
