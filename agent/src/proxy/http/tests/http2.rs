use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::poll_fn;
use http::{HeaderMap, StatusCode, Version};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;

use super::*;

/// A body whose frames a test gives one by one.
struct Frames(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

fn frames() -> (mpsc::UnboundedSender<Frame<Bytes>>, Frames) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Frames(receiver))
}

fn whole(text: &'static str) -> Frames {
    let (sender, frames) = frames();
    if !text.is_empty() {
        let _ = sender.send(Frame::data(Bytes::from_static(text.as_bytes())));
    }
    frames
}

async fn next(body: &mut (impl Body<Data = Bytes, Error = hyper::Error> + Unpin)) -> Option<Frame<Bytes>> {
    let frame = timeout(LONG, poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))).await;
    frame.expect("no frame came").transpose().expect("the body broke")
}

async fn data(body: &mut Incoming) -> Bytes {
    loop {
        let data = next(body).await.expect("the end").into_data().expect("data");
        if !data.is_empty() {
            return data;
        }
    }
}

type Taken = (http::Request<Incoming>, tokio::sync::oneshot::Sender<http::Response<Frames>>);

/// A client of the rig, and what the application is asked, to be answered by the test.
struct Http2 {
    client: SendRequest<Frames>,
    requests: mpsc::UnboundedReceiver<Taken>,
    application: JoinHandle<hyper::Result<()>>,
    served: JoinHandle<Outcome>,
    judge: Arc<TestJudge>,
    log: Arc<Log>,
    stop: Stop,
}

impl Http2 {
    async fn new(judge: Arc<TestJudge>) -> Self {
        Self::with(judge, Limits::default()).await
    }

    async fn with(judge: Arc<TestJudge>, limits: Limits) -> Self {
        let rig = Rig::with(judge, limits).await;
        let (taken, requests) = mpsc::unbounded_channel::<Taken>();
        let service = service_fn(move |request| {
            let taken = taken.clone();
            async move {
                let (answer, answered) = tokio::sync::oneshot::channel();
                let _ = taken.send((request, answer));
                answered.await
            }
        });
        let application = tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .auto_date_header(false)
                .enable_connect_protocol()
                .serve_connection(TokioIo::new(rig.application), service),
        );
        let (client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(rig.client))
            .await
            .unwrap();
        tokio::spawn(connection);
        let (judge, log, stop) = (rig.judge, rig.log, rig.stop);
        Self { client, requests, application, served: rig.served, judge, log, stop }
    }

    async fn open() -> Self {
        Self::new(TestJudge::new(|_| true)).await
    }

    /// Sends, and does not wait for the answer.
    fn ask(&self, request: http::Request<Frames>) -> JoinHandle<hyper::Result<http::Response<Incoming>>> {
        let mut client = self.client.clone();
        tokio::spawn(async move { client.send_request(request).await })
    }

    async fn take(&mut self) -> Taken {
        timeout(LONG, self.requests.recv()).await.expect("nothing was asked").unwrap()
    }
}

fn get(path: &str) -> http::Request<Frames> {
    http::Request::get(format!("http://shop{path}")).body(whole("")).unwrap()
}

fn grpc(path: &str, body: Frames) -> http::Request<Frames> {
    http::Request::post(format!("http://shop{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn streams_flow_side_by_side_with_all_that_is_in_them() {
    let mut http2 = Http2::open().await;
    let (up, body) = frames();
    let request = http::Request::post("http://shop/a?x=1")
        .header("x-two", "1")
        .header("x-two", "2")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let first = http2.ask(request);
    let (asked, answer) = http2.take().await;
    assert_eq!((asked.method().as_str(), asked.version()), ("POST", Version::HTTP_2));
    assert_eq!(asked.uri(), "http://shop/a?x=1");
    assert_eq!(asked.headers().get_all("x-two").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(asked.headers()["te"], "trailers");
    assert_eq!(asked.headers().len(), 3, "nothing was added: {:?}", asked.headers());
    // Before the first is answered, another is.
    let second = http2.ask(get("/b"));
    let (_, other) = http2.take().await;
    let _ = other.send(http::Response::builder().status(204).body(whole("")).unwrap());
    assert_eq!(second.await.unwrap().unwrap().status(), 204);
    // The answer begins before the request ends, and each frame arrives by itself.
    let (down, body) = frames();
    let _ = answer.send(http::Response::builder().header("x-a", "b").body(body).unwrap());
    let answer = first.await.unwrap().unwrap();
    assert_eq!((answer.headers()["x-a"].to_str().unwrap(), answer.headers().len()), ("b", 1));
    let (mut asked, mut answer) = (asked.into_body(), answer.into_body());
    for word in ["one", "two"] {
        up.send(Frame::data(Bytes::from_static(word.as_bytes()))).unwrap();
        assert_eq!(data(&mut asked).await, word);
        down.send(Frame::data(Bytes::from_static(word.as_bytes()))).unwrap();
        assert_eq!(data(&mut answer).await, word);
    }
    let trailers =
        |value: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), value.parse().unwrap())]);
    up.send(Frame::trailers(trailers("1"))).unwrap();
    drop(up);
    assert_eq!(next(&mut asked).await.unwrap().into_trailers().unwrap(), trailers("1"));
    down.send(Frame::trailers(trailers("0"))).unwrap();
    drop(down);
    assert_eq!(next(&mut answer).await.unwrap().into_trailers().unwrap(), trailers("0"));
    assert!(next(&mut answer).await.is_none());
    assert_eq!(http2.log.0.lock().unwrap().len(), 2);
    drop((http2.client, asked, answer));
    assert_eq!(timeout(LONG, http2.served).await.unwrap().unwrap().cause, Cause::Closed);
}

#[tokio::test]
async fn a_denied_stream_is_answered_and_the_others_go_on() {
    let mut http2 = Http2::new(TestJudge::new(|request| request.path == "/allowed")).await;
    let allowed = http2.ask(get("/allowed"));
    let (_, answer) = http2.take().await;
    let denied = http2.ask(get("/x/../secret")).await.unwrap().unwrap();
    assert_eq!(denied.status(), 403);
    assert_eq!(data(&mut denied.into_body()).await, "denied by policy\n");
    let (up, body) = frames();
    up.send(Frame::data(Bytes::from_static(b"never asked for"))).unwrap();
    let refused = http2.ask(grpc("/pkg.Service/Method", body)).await.unwrap().unwrap();
    assert_eq!(refused.status(), StatusCode::OK);
    assert_eq!(refused.headers()["grpc-status"], "7");
    assert_eq!(refused.headers()["content-type"], "application/grpc+proto");
    assert!(refused.body().is_end_stream(), "trailers only");
    let _ = answer.send(http::Response::new(whole("")));
    assert_eq!(allowed.await.unwrap().unwrap().status(), 200);
    assert!(http2.requests.try_recv().is_err(), "what is denied does not arrive");
    assert_eq!(
        *http2.log.0.lock().unwrap(),
        ["GET /secret 403 denied", "POST /pkg.Service/Method 200 denied", "GET /allowed 200 allowed"]
    );
}

#[tokio::test]
async fn exactly_the_streams_that_policy_takes_back_end() {
    let mut http2 = Http2::open().await;
    let (mut answers, mut asked) = (Vec::new(), Vec::new());
    for (path, is_grpc) in [("/keep", false), ("/lose", false), ("/lose", true), ("/lose/unanswered", false)]
    {
        let request = if is_grpc { grpc(path, whole("")) } else { get(path) };
        asked.push(http2.ask(request));
        answers.push(http2.take().await.1);
    }
    let unanswered = answers.pop().unwrap();
    let mut downs = Vec::new();
    for answer in answers {
        let (down, body) = frames();
        down.send(Frame::data(Bytes::from_static(b"begun"))).unwrap();
        let _ = answer.send(http::Response::new(body));
        downs.push(down);
    }
    let waiting = asked.pop().unwrap();
    let mut bodies = Vec::new();
    for asked in asked {
        let mut body = asked.await.unwrap().unwrap().into_body();
        assert_eq!(data(&mut body).await, "begun");
        bodies.push(body);
    }
    http2.judge.change(|request| request.path == "/keep");
    assert_eq!(waiting.await.unwrap().unwrap().status(), 403);
    assert!(timeout(LONG, async { drop(unanswered) }).await.is_ok());
    let mut grpc = bodies.pop().unwrap();
    assert_eq!(next(&mut grpc).await.unwrap().into_trailers().unwrap()["grpc-status"], "7");
    let mut lost = bodies.pop().unwrap();
    let broken = timeout(LONG, poll_fn(|cx| Pin::new(&mut lost).poll_frame(cx))).await.unwrap();
    let broken = broken.unwrap().unwrap_err();
    assert_eq!(reason(&broken), Some(h2::Reason::CANCEL), "{broken:?}");
    // The application learns it too.
    timeout(LONG, downs[1].closed()).await.expect("the application still sends what nobody may hear");
    downs[0].send(Frame::data(Bytes::from_static(b"still"))).unwrap();
    assert_eq!(data(&mut bodies[0]).await, "still");
    assert!(!http2.served.is_finished());
}

fn reason(e: &hyper::Error) -> Option<h2::Reason> {
    std::error::Error::source(e)?.downcast_ref::<h2::Error>()?.reason()
}

#[tokio::test]
async fn resets_go_both_ways() {
    let mut http2 = Http2::open().await;
    // The client's.
    let asked = http2.ask(get("/"));
    let (_request, mut answer) = http2.take().await;
    asked.abort();
    timeout(LONG, answer.closed()).await.expect("the application still works on it");
    // The application's.
    let (up, body) = frames();
    let asked = http2.ask(http::Request::post("http://shop/").body(body).unwrap());
    let (request, answer) = http2.take().await;
    drop((request, answer));
    assert!(asked.await.unwrap().is_err());
    timeout(LONG, up.closed()).await.expect("the client still sends what nobody reads");
    // Neither costs the others anything.
    let asked = http2.ask(get("/"));
    let _ = http2.take().await.1.send(http::Response::new(whole("")));
    assert_eq!(asked.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_websocket_goes_through_http2() {
    let mut http2 =
        Http2::new(TestJudge::new(|request| request.method == "GET" && request.path == "/ws")).await;
    // Its client waits for the SETTINGS that allow it.
    let first = http2.ask(get("/ws"));
    let _ = http2.take().await.1.send(http::Response::new(whole("")));
    first.await.unwrap().unwrap();
    let mut request = http::Request::connect("http://shop/ws").body(whole("")).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let asked = http2.ask(request);
    let (mut request, answer) = http2.take().await;
    assert_eq!(request.extensions().get::<hyper::ext::Protocol>().unwrap().as_str(), "websocket");
    assert_eq!(request.uri(), "http://shop/ws");
    let _ = answer.send(http::Response::new(whole("")));
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    let mut client = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut application = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
    let mut got = [0; 4];
    client.write_all(b"ping").await.unwrap();
    application.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
    application.write_all(b"pong").await.unwrap();
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"pong");
    http2.judge.change(|_| false);
    let ended = timeout(LONG, client.read(&mut got)).await.unwrap();
    assert!(!matches!(ended, Ok(n) if n > 0));
    assert!(!http2.served.is_finished(), "other streams go on");
}

#[tokio::test]
async fn goaway_is_passed_on() {
    let mut http2 = Http2::open().await;
    let asked = http2.ask(get("/"));
    let (_, answer) = http2.take().await;
    http2.application.abort();
    assert!(asked.await.unwrap().is_err());
    drop(answer);
    let outcome = timeout(LONG, http2.served).await.expect("the client was not told").unwrap();
    assert!(matches!(outcome.cause, Cause::ServerReset | Cause::Closed), "{outcome:?}");
    assert!(timeout(LONG, http2.client.ready()).await.unwrap().is_err() || http2.client.is_closed());
}

#[tokio::test]
async fn bodies_wait_for_whoever_reads_them() {
    let mut http2 = Http2::open().await;
    let (up, body) = frames();
    let _asked = http2.ask(http::Request::post("http://shop/").body(body).unwrap());
    let (request, _answer) = http2.take().await;
    const PIECE: usize = 64 << 10;
    let many = 32 << 20;
    for _ in 0..many / PIECE {
        up.send(Frame::data(Bytes::from(vec![b'x'; PIECE]))).unwrap();
    }
    drop(up);
    let mut body = request.into_body();
    let mut got = 0;
    while let Some(frame) = next(&mut body).await {
        got += frame.into_data().unwrap().len();
    }
    assert_eq!(got, many);
}

#[tokio::test]
async fn a_stop_ends_every_stream() {
    let mut http2 = Http2::open().await;
    let asked = http2.ask(get("/"));
    let (_request, mut answer) = http2.take().await;
    http2.stop.end(Cause::PolicyRevoked);
    assert_eq!(timeout(LONG, http2.served).await.unwrap().unwrap().cause, Cause::PolicyRevoked);
    assert!(asked.await.unwrap().is_err());
    timeout(LONG, answer.closed()).await.expect("the application still works on it");
}

#[tokio::test]
async fn a_connection_without_streams_is_ended_where_that_is_asked_for_and_one_with_is_not() {
    let idle = Duration::from_millis(50);
    let limits = Limits { idle: Some(idle), streams: 1, ..Limits::default() };
    let mut http2 = Http2::with(TestJudge::new(|_| true), limits).await;
    let first = http2.ask(get("/1"));
    let (_, answer) = http2.take().await;
    let second = http2.ask(get("/2"));
    tokio::time::sleep(3 * idle).await;
    assert!(http2.requests.try_recv().is_err(), "more at once than is configured");
    let _ = answer.send(http::Response::new(whole("")));
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    let (_, answer) = http2.take().await;
    let _ = answer.send(http::Response::new(whole("")));
    assert_eq!(second.await.unwrap().unwrap().status(), 200);
    assert_eq!(timeout(LONG, http2.served).await.unwrap().unwrap().cause, Cause::Closed);
}

#[tokio::test]
async fn a_route_s_filters_hold_for_every_stream() {
    let judge = TestJudge::new(|_| true);
    *judge.filters.lock().unwrap() = RouteFilters::from_yaml(
        "/",
        "[{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-User, value: mesh}], remove: [X-Admin]}},
          {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-debug]}}]",
    );
    let mut http2 = Http2::new(judge).await;
    let (up, body) = frames();
    let request = http::Request::post("http://shop/a")
        .header("x-user", "root")
        .header("x-user", "toor")
        .header("x-admin", "1")
        .header("x-admin", "2")
        .header("x-kept", "1")
        .body(body)
        .unwrap();
    let asking = http2.ask(request);
    let (asked, answer) = http2.take().await;
    let user: Vec<_> = asked.headers().get_all("x-user").iter().collect();
    assert_eq!(user, ["mesh"]);
    assert!(!asked.headers().contains_key("x-admin") && asked.headers().contains_key("x-kept"));
    let trailers = |names: &[&str]| {
        HeaderMap::from_iter(names.iter().map(|name| (name.parse().unwrap(), "1".parse().unwrap())))
    };
    up.send(Frame::trailers(trailers(&["x-admin", "x-user", "x-sum"]))).unwrap();
    drop(up);
    let mut asked = asked.into_body();
    assert_eq!(next(&mut asked).await.unwrap().into_trailers().unwrap(), trailers(&["x-sum"]));
    let (down, body) = frames();
    let _ = answer.send(http::Response::builder().header("x-debug", "1").body(body).unwrap());
    down.send(Frame::trailers(trailers(&["x-debug"]))).unwrap();
    drop(down);
    let answer = asking.await.unwrap().unwrap();
    assert!(!answer.headers().contains_key("x-debug"));
    let last = next(&mut answer.into_body()).await;
    assert!(last.is_none_or(|frame| frame.into_trailers().is_ok_and(|trailers| trailers.is_empty())));
}

#[tokio::test]
async fn a_stream_that_is_led_elsewhere_does_not_arrive() {
    let judge = TestJudge::new(|_| true);
    *judge.filters.lock().unwrap() =
        RouteFilters::from_yaml("/", "[{type: RequestRedirect, requestRedirect: {scheme: https}}]");
    let mut http2 = Http2::new(judge).await;
    let (up, body) = frames();
    up.send(Frame::data(Bytes::from_static(b"never asked for"))).unwrap();
    let request = http::Request::post("http://shop:80/a?b=c").body(body).unwrap();
    let answer = http2.ask(request).await.unwrap().unwrap();
    assert_eq!(answer.status(), 302);
    assert_eq!(answer.headers()["location"], "https://shop:80/a?b=c");
    assert!(answer.body().is_end_stream());
    assert!(http2.requests.try_recv().is_err());
}
