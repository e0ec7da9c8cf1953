//! What is read of those who have not shown who they are: their headers.

use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Semaphore;

use super::door::UNPROVEN;
use super::*;
use crate::ca::attest::{Changes, NodeName, Papers, Refusal};
use crate::model::SpiffeId;

const PATHS: [&str; 3] = [
    "/istio.v1.auth.IstioCertificateService/CreateCertificate",
    "/underpass.v1.TrustService/Follow",
    "/no.Service/Method",
];
const CHUNK: usize = 1 << 10;

/// A request whose body never ends, and how much of it was taken.
fn endless(path: &str, taken: &Arc<AtomicUsize>) -> http::Request<tonic::body::Body> {
    let taken = Arc::clone(taken);
    let chunks = futures::stream::repeat_with(move || {
        taken.fetch_add(CHUNK, Ordering::SeqCst);
        Ok::<_, std::io::Error>(Bytes::from_static(&[0; CHUNK]))
    });
    // As cooperative as a network: it must not keep its own connection's task.
    let body = chunks.then(|chunk| async {
        tokio::task::yield_now().await;
        chunk
    });
    let request =
        http::Request::post(format!("http://{NAME}{path}")).header("content-type", "application/grpc");
    request.body(tonic::body::Body::new(axum::body::Body::from_stream(body))).unwrap()
}

/// The gRPC status of the answer, which is in its headers when nothing follows.
async fn call(mut channel: Channel, request: http::Request<tonic::body::Body>) -> String {
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let answer = in_time(channel.call(request)).await.unwrap();
    answer.headers()["grpc-status"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_stranger_is_refused_before_it_has_sent_a_message() {
    let w = World::start().await;
    let foreign = Papered::new().shows();
    for shows in [None, Some(&foreign)] {
        for path in PATHS {
            let silent = axum::body::Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>());
            let request = http::Request::post(format!("http://{NAME}{path}"));
            let request = request.body(tonic::body::Body::new(silent)).unwrap();
            assert_eq!(call(w.channel(shows), request).await, "16", "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_stream_bodies_are_refused_and_a_node_is_served_meanwhile() {
    let w = World::start().await;
    let taken = Arc::default();
    let flood: Vec<_> = (0..8)
        .flat_map(|_| {
            let channel = w.channel(None);
            (0..64).map(move |at| (channel.clone(), PATHS[at % PATHS.len()]))
        })
        .map(|(channel, path)| tokio::spawn(call(channel, endless(path, &taken))))
        .collect();
    assert!(w.ask(&w.n1, CART).await.is_ok());
    for answer in flood {
        assert_eq!(answer.await.unwrap(), "16");
    }
    assert!(w.ask(&w.n1, CART).await.is_ok());
}

/// Knows everybody as n1, once it may.
struct Slow {
    asked: Arc<AtomicUsize>,
    may: Arc<Semaphore>,
}

impl Attestor for Slow {
    fn who<'a>(&'a self, papers: &'a Papers) -> BoxFuture<'a, Result<NodeName, Refusal>> {
        async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.may.acquire().await.unwrap().forget();
            match papers.token.as_deref() {
                Some("good") => Ok(NodeName::proven("n1")),
                _ => Err(Refusal::Unknown("bad token".into())),
            }
        }
        .boxed()
    }

    fn runs<'a>(&'a self, _: &'a NodeName, _: &'a SpiffeId) -> BoxFuture<'a, Result<(), Refusal>> {
        std::future::ready(Ok(())).boxed()
    }

    fn expected(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn changes(&self) -> Changes {
        futures::stream::pending().boxed()
    }
}

async fn reaches(count: &AtomicUsize, least: usize) {
    in_time(async {
        while count.load(Ordering::SeqCst) < least {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn bearing(token: &str, mut request: http::Request<tonic::body::Body>) -> http::Request<tonic::body::Body> {
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_is_found_out_who_calls_nothing_is_read() {
    let (asked, may) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let slow = Slow { asked: Arc::clone(&asked), may: Arc::clone(&may) };
    let w = World::with(|service| service.attestor = Arc::new(slow)).await;
    let (channel, taken) = (w.channel(None), Arc::default());
    let flood: Vec<_> = (0..UNPROVEN)
        .map(|_| tokio::spawn(call(channel.clone(), bearing("bad", endless(PATHS[0], &taken)))))
        .collect();
    reaches(&asked, UNPROVEN).await;
    let window = UNREAD_OF_ALL as usize;
    reaches(&taken, window).await;
    // One more is not even looked at.
    assert_eq!(call(channel.clone(), bearing("bad", endless(PATHS[0], &taken))).await, "8");
    assert_eq!(asked.load(Ordering::SeqCst), UNPROVEN);
    let most = window + (UNPROVEN + 1) * 2 * CHUNK;
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken <= most, "{taken} bytes were taken, and {most} are what fits on the way");
    may.add_permits(1 << 20);
    for answer in flood {
        assert_eq!(answer.await.unwrap(), "16");
    }
    // The connection is as good as any other then, and once it is a node's it may have more under way.
    let ask = |token: &'static str| {
        let mut request = tonic::Request::new(message(CART, csr(CART)));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        async move { in_time(client.create_certificate(request)).await }
    };
    assert!(ask("good").await.is_ok());
    let answers = futures::future::join_all((0..48).map(|_| ask("good"))).await;
    assert!(answers.iter().all(Result::is_ok));
}
