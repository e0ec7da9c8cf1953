//! Our server against plain `h2` clients with ztunnel's settings, and against hostile ones.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use h2::client::{self, SendRequest};
use http::{HeaderMap, HeaderValue, Method, Version};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::super::testing::*;
use super::super::wire::*;
use super::super::{BaggageFields, Target};
use super::*;

/// `serve` in a task, with its requests on a channel.
struct Server {
    requests: mpsc::UnboundedReceiver<Inbound>,
    drain: Drain,
    ended: JoinHandle<Ended>,
}

fn start(settings: ServerSettings) -> (DuplexStream, Server) {
    let (near, far) = duplex(64 * 1024);
    let (sender, requests) = mpsc::unbounded_channel();
    let drain = Drain::default();
    let ended = tokio::spawn({
        let drain = drain.clone();
        async move {
            let take = move |inbound| {
                let _ = sender.send(inbound);
            };
            serve(far, &settings, drain, take).await
        }
    });
    (near, Server { requests, drain, ended })
}

/// As ztunnel's client is set.
async fn ztunnel_client(transport: DuplexStream) -> SendRequest<Bytes> {
    let (sender, connection) = client::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .max_header_list_size(16 << 10)
        .initial_max_send_streams(100)
        .max_send_buffer_size(4 << 20)
        .enable_push(false)
        .handshake(transport)
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn connect_to(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).version(Version::HTTP_2).body(()).unwrap()
}

async fn status_of(sender: &SendRequest<Bytes>, request: Request<()>) -> Result<StatusCode, h2::Error> {
    let (response, _send) = sender.clone().send_request(request, false)?;
    response.await.map(|r| r.status())
}

/// The whole life of one stream as ztunnel would have it.
#[tokio::test(start_paused = true)]
async fn a_stream_from_ztunnel() {
    let (near, mut server) = start(ServerSettings::default());
    let mut sender = ztunnel_client(near).await;
    let mut request = connect_to("10.0.0.9:8080");
    let headers: HeaderMap = [
        ("baggage", "k8s.namespace.name=ns,service.name=web"),
        ("forwarded", r#"for="10.0.0.1:4711""#),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
    ]
    .into_iter()
    .map(|(k, v)| (http::HeaderName::from_static(k), HeaderValue::from_static(v)))
    .collect();
    *request.headers_mut() = headers;
    let (response, mut send) = sender.send_request(request, false).unwrap();
    let mut response = pin!(response);

    let inbound = server.requests.recv().await.unwrap();
    assert_eq!(inbound.connect.target, Target::Address("10.0.0.9:8080".parse().unwrap()));
    assert_eq!(inbound.connect.baggage.as_ref().unwrap().fields().service, "web");
    assert_eq!(inbound.connect.forwarded.unwrap().client, "10.0.0.1:4711".parse().unwrap());
    // No answer before the application's connection stands.
    assert!(tokio::time::timeout(Duration::from_secs(5), &mut response).await.is_err());
    let own = Baggage::new(&BaggageFields { service: "server", ..BaggageFields::default() });
    let mut stream = inbound.respond.accept(Some(&own)).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["baggage"], "service.name=server");

    // ztunnel half-closes with an empty frame; the other way goes on.
    let mut recv = response.into_body();
    send.send_data(Bytes::from_static(b"question"), false).unwrap();
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "question");
    assert_eq!(next(&mut stream).await.unwrap(), None);
    stream.send(Bytes::from_static(b"answer")).unwrap();
    stream.finish().unwrap();
    assert_eq!(recv.data().await.unwrap().unwrap(), "answer");
    assert_eq!(recv.data().await.unwrap().unwrap(), "", "END_STREAM in a frame of its own");
    assert!(recv.data().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn resets_keep_their_reason_both_ways() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    for reason in [Reason::CONNECT_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let (response, mut send) = sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap();
        let mut stream = server.requests.recv().await.unwrap().respond.accept(None).unwrap();
        response.await.unwrap();
        send.send_data(Bytes::from_static(b"x"), false).unwrap();
        sleep(Duration::from_millis(1)).await;
        send.send_reset(reason);
        assert_eq!(next(&mut stream).await.unwrap().unwrap(), "x", "bytes come before the reset");
        assert_eq!(next(&mut stream).await, Err(StreamError::Reset(reason)));
        assert_eq!(stream.send(Bytes::from_static(b"y")), Err(super::super::Over));
        let why = poll_fn(|cx| stream.poll_reset(cx)).await;
        assert_eq!(why, Err(StreamError::Reset(reason)));

        let (response, _send) = sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap();
        let mut stream = server.requests.recv().await.unwrap().respond.accept(None).unwrap();
        let mut recv = response.await.unwrap().into_body();
        stream.send(Bytes::from_static(b"x")).unwrap();
        poll_fn(|cx| stream.poll_flushed(cx)).await;
        stream.reset(reason);
        assert_eq!(recv.data().await.unwrap().unwrap(), "x");
        assert_eq!(recv.data().await.unwrap().unwrap_err().reason(), Some(reason));
    }
}

/// NO_ERROR is "I have all I want" (RFC 9113, 8.1), not a failure.
#[tokio::test(start_paused = true)]
async fn a_reset_without_error_is_an_end() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let (response, mut send) = sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap();
    let mut stream = server.requests.recv().await.unwrap().respond.accept(None).unwrap();
    response.await.unwrap();
    send.send_reset(Reason::NO_ERROR);
    assert_eq!(next(&mut stream).await, Ok(None));
    assert_eq!(poll_fn(|cx| stream.poll_reset(cx)).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_answered_400_and_never_handed_out() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let mut post = Request::new(());
    *post.method_mut() = Method::POST;
    *post.uri_mut() = "https://10.0.0.9:80/".parse().unwrap();
    for request in [
        post,
        connect_to("10.0.0.9"),
        connect_to("10.0.0.9:0"),
        connect_to("10.0.0.9:99999"),
        connect_to("127.1:80"),
        connect_to("user@10.0.0.9:80"),
        connect_to("-:80"),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(status_of(&sender, request).await.unwrap(), 400, "{shown}");
    }
    assert!(server.requests.try_recv().is_err());
    // The tunnel is none the worse.
    let late = tokio::spawn(async move { status_of(&sender, connect_to("10.0.0.9:80")).await });
    server.requests.recv().await.unwrap().respond.reject(StatusCode::UNAUTHORIZED);
    assert_eq!(late.await.unwrap().unwrap(), 401);
}

#[tokio::test(start_paused = true)]
async fn one_slow_answer_delays_no_other() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let (mut asked, mut owed) = (Vec::new(), Vec::new());
    for _ in 0..199 {
        asked.push(sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap());
        owed.push(server.requests.recv().await.unwrap());
    }
    let started = Instant::now();
    let quick = tokio::spawn(async move { status_of(&sender, connect_to("10.0.0.9:80")).await });
    server.requests.recv().await.unwrap().respond.accept(None).unwrap();
    assert_eq!(quick.await.unwrap().unwrap(), 200);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_respond_that_is_dropped_resets_the_stream() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let asked = tokio::spawn(async move { status_of(&sender, connect_to("10.0.0.9:80")).await });
    drop(server.requests.recv().await.unwrap());
    assert!(asked.await.unwrap().unwrap_err().is_reset());
}

#[tokio::test(start_paused = true)]
async fn the_handler_learns_that_the_client_left() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let (response, send) = sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap();
    let mut inbound = server.requests.recv().await.unwrap();
    assert_eq!(inbound.respond.cancelled().now_or_never(), None);
    drop((response, send));
    assert_eq!(inbound.respond.cancelled().await, StreamError::Reset(Reason::CANCEL));
    assert!(inbound.respond.accept(None).is_err());
}

/// 20 streams at once are more than 10: `h2` refuses them as the settings say, and takes others later.
#[tokio::test(start_paused = true)]
async fn streams_beyond_the_limit_are_refused() {
    let (mut near, mut server) = start(ServerSettings { max_streams: 10, ..ServerSettings::default() });
    // One that does not care for our SETTINGS.
    let mut bytes = preface();
    for n in 0..20 {
        bytes.extend(connect(2 * n + 1));
    }
    near.write_all(&bytes).await.unwrap();
    let refused = read_frames(&mut near, 3, 10).await;
    assert!(refused.iter().all(|f| f.error() == 7), "REFUSED_STREAM");
    for _ in 0..10 {
        server.requests.recv().await.unwrap();
    }
    assert!(server.requests.try_recv().is_err());
}

/// CVE-2023-44487: requests and resets without end. The tunnel ends, and no task survives it.
#[tokio::test(start_paused = true)]
async fn rapid_reset_ends_the_tunnel() {
    let live = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (mut near, far) = duplex(1 << 20);
    let (live_now, seen) = (Arc::clone(&live), Arc::clone(&most));
    let ended = tokio::spawn(async move {
        let settings = ServerSettings::default();
        serve(far, &settings, Drain::default(), move |mut inbound: Inbound| {
            let live = Arc::clone(&live_now);
            seen.fetch_max(live.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::spawn(async move {
                inbound.respond.cancelled().await;
                live.fetch_sub(1, Ordering::SeqCst);
            });
        })
        .await
    });
    near.write_all(&preface()).await.unwrap();
    let mut id = 1;
    let flood = async {
        loop {
            let mut bytes = Vec::new();
            for _ in 0..500 {
                bytes.extend(connect(id));
                bytes.extend(frame(3, 0, id, &8u32.to_be_bytes()));
                id += 2;
            }
            if near.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    flood.await;
    assert!(
        matches!(ended.await.unwrap(), Ended::Failed(e) if e.reason() == Some(Reason::ENHANCE_YOUR_CALM))
    );
    eventually("every handler has gone", || live.load(Ordering::SeqCst) == 0).await;
    assert!(most.load(Ordering::SeqCst) <= 400, "{most:?} handlers at once");
}

/// Headers beyond 64 KiB, by one frame or by CONTINUATION without end, are refused in bounded memory.
#[tokio::test(start_paused = true)]
async fn header_bombs_are_refused() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let mut big = connect_to("10.0.0.9:80");
    big.headers_mut().insert("x", HeaderValue::from_str(&"y".repeat(70 * 1024)).unwrap());
    assert_eq!(status_of(&sender, big).await.unwrap(), 431);
    let asked = tokio::spawn(async move { status_of(&sender, connect_to("10.0.0.9:80")).await });
    server.requests.recv().await.unwrap().respond.accept(None).unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), 200, "the tunnel lives on");

    let (mut near, mut server) = start(ServerSettings::default());
    near.write_all(&preface()).await.unwrap();
    near.write_all(&frame(1, 0, 1, &connect_block())).await.unwrap();
    // A literal field that is never indexed: "a" with an empty value, again and again.
    let continuation = frame(9, 0, 1, &[0x10, 1, b'a', 0].repeat(4000));
    while near.write_all(&continuation).await.is_ok() {}
    assert!(matches!(server.ended.await.unwrap(), Ended::Failed(_)));
    assert!(server.requests.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn peers_that_speak_something_else_or_nothing_are_left() {
    let (mut near, server) = start(ServerSettings::default());
    near.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(matches!(server.ended.await.unwrap(), Ended::Failed(_)));

    let started = Instant::now();
    let (_near, server) = start(ServerSettings::default());
    assert!(matches!(server.ended.await.unwrap(), Ended::NoPreface));
    assert_eq!(started.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn draining_lets_streams_go_on_and_takes_no_new_ones() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let (response, mut send) = sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap();
    let mut stream = server.requests.recv().await.unwrap().respond.accept(None).unwrap();
    let mut recv = response.await.unwrap().into_body();
    server.drain.begin.cancel();
    sleep(Duration::from_secs(3600)).await;
    let refused = status_of(&sender, connect_to("10.0.0.9:80")).await.unwrap_err();
    assert!(refused.is_go_away() && refused.reason() == Some(Reason::NO_ERROR), "{refused}");
    assert!(!server.ended.is_finished());
    send.send_data(Bytes::from_static(b"still"), true).unwrap();
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "still");
    stream.send(Bytes::from_static(b"here")).unwrap();
    stream.finish().unwrap();
    assert_eq!(recv.data().await.unwrap().unwrap(), "here");
    drop((stream, recv, send));
    assert!(matches!(server.ended.await.unwrap(), Ended::Drained));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_cuts_streams_with_their_cause() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let (response, _send) = sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap();
    let mut stream = server.requests.recv().await.unwrap().respond.accept(None).unwrap();
    let mut recv = response.await.unwrap().into_body();
    let (_response, _send) = sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap();
    let mut unanswered = server.requests.recv().await.unwrap().respond;
    server.drain.begin.cancel();
    server.drain.cut.end(Cause::PodGone);
    assert_eq!(unanswered.cancelled().await.cause(), Cause::PodGone);
    let lost = next(&mut stream).await.unwrap_err();
    assert!(matches!(lost, StreamError::Lost { cause: Cause::PodGone, .. }), "{lost}");
    let lost = poll_fn(|cx| stream.poll_reset(cx)).await.unwrap_err();
    assert!(matches!(lost, StreamError::Lost { cause: Cause::PodGone, .. }), "{lost}");
    assert!(recv.data().await.unwrap().is_err(), "for the client it is no end in order");
    assert!(matches!(server.ended.await.unwrap(), Ended::Cut(Cause::PodGone)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_left_after_a_ping() {
    let (mut near, server) = start(ServerSettings::default());
    let started = Instant::now();
    near.write_all(&preface()).await.unwrap();
    assert!(matches!(server.ended.await.unwrap(), Ended::PingTimeout));
    assert_eq!(started.elapsed().as_secs(), 30);
    let goaway = read_frames(&mut near, 7, 1).await.remove(0);
    assert_eq!(goaway.error(), 0, "NO_ERROR");
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed_in_order() {
    let (near, mut server) = start(ServerSettings::default());
    let sender = ztunnel_client(near).await;
    let (response, send) = sender.clone().send_request(connect_to("10.0.0.9:80"), false).unwrap();
    let stream = server.requests.recv().await.unwrap().respond.accept(None).unwrap();
    response.await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert!(!server.ended.is_finished(), "a stream keeps it");
    drop((stream, send));
    sleep(Duration::from_secs(14 * 60)).await;
    assert!(!server.ended.is_finished());
    sleep(Duration::from_secs(2 * 60)).await;
    let ended = server.ended.await.unwrap();
    assert!(matches!(ended, Ended::Closed), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn our_settings_on_the_wire() {
    let (mut near, _server) = start(ServerSettings::default());
    near.write_all(&preface()).await.unwrap();
    let first = read_frames(&mut near, 4, 1).await.remove(0);
    assert_eq!(first.settings(), [(3, 200), (4, 4 << 20), (5, 1 << 20), (6, 64 << 10)]);
    let update = read_frames(&mut near, 8, 1).await.remove(0);
    assert_eq!(update.word(0), (16 << 20) - 65_535);
}
