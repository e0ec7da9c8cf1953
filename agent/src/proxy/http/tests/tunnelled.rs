use bytes::Bytes;

use super::*;
use crate::proxy::tunnel::testing::{Peers, key, next, pool, request};
use crate::proxy::tunnel::{
    ClientSettings, Drain, Inbound, Reason, ServerSettings, StreamError, TunnelStream,
};

/// A client's stream in a tunnel, its application, and what ends it.
async fn through_a_tunnel(judge: Arc<TestJudge>) -> (TunnelStream, TcpStream, Stop, JoinHandle<Outcome>) {
    let (up, application) = pair().await;
    let stop = Stop::default();
    let (served, mut serving) = tokio::sync::mpsc::unbounded_channel();
    let up = Arc::new(Mutex::new(Some(up)));
    let of_server = stop.clone();
    let peers = Peers::new(move |transport, _| {
        let (served, up, stop, judge) = (served.clone(), up.clone(), of_server.clone(), judge.clone());
        async move {
            let take = |inbound: Inbound| {
                let stream = inbound.respond.accept(None).unwrap();
                let up = up.lock().unwrap().take().unwrap();
                let stop = stop.clone();
                let service = Service {
                    judge: judge.clone(),
                    observer: Arc::<Log>::default(),
                    limits: Limits::default(),
                    client: stop.child(),
                };
                let _ = served.send(tokio::spawn(async move {
                    let client = Tunnelled::new(stream, service.client.clone());
                    serve(client, Socket::new(up), service, &Arc::default(), &stop).await
                }));
            };
            let _ =
                crate::proxy::tunnel::serve(transport, &ServerSettings::default(), Drain::default(), take)
                    .await;
        }
    });
    let pool = pool(ClientSettings::default());
    let stream = pool.open(&key(1), &request(), || peers.dial()).await.unwrap();
    let served = serving.recv().await.unwrap();
    // The tunnel lives as long as its pool does.
    std::mem::forget(pool);
    (stream, application, stop, served)
}

async fn heard(stream: &mut TunnelStream, until: &str) -> String {
    let mut got = String::new();
    while !got.ends_with(until) {
        let bytes = timeout(LONG, next(stream)).await.expect("nothing came").unwrap().expect("the end");
        stream.release(bytes.len());
        got.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    got
}

#[tokio::test]
async fn requests_in_a_tunnel_are_judged_and_its_end_is_in_order() {
    let judge = TestJudge::new(|request| request.path != "/secret");
    let (mut client, mut application, _, served) = through_a_tunnel(judge).await;
    let secret = "GET /secret HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(Bytes::from_static(secret.as_bytes())).unwrap();
    assert!(heard(&mut client, "policy\n").await.starts_with("HTTP/1.1 403 "));
    let allowed = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(Bytes::from_static(allowed.as_bytes())).unwrap();
    exactly(&mut application, allowed).await;
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}!", 1 << 20, "x".repeat((1 << 20) - 1));
    application.write_all(answer.as_bytes()).await.unwrap();
    assert_eq!(heard(&mut client, "!").await, answer);
    // More than any window holds: what was read must give its room back.
    const MANY: usize = 8 << 20;
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {MANY}\r\n\r\n");
    client.send(Bytes::from(head.clone())).unwrap();
    client.send(Bytes::from(vec![b'x'; MANY])).unwrap();
    exactly(&mut application, &head).await;
    let mut body = vec![0; MANY];
    timeout(LONG, application.read_exact(&mut body)).await.expect("the body stopped").unwrap();
    application.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    heard(&mut client, "\r\n\r\n").await;
    client.finish().unwrap();
    assert!(timeout(LONG, next(&mut client)).await.unwrap().unwrap().is_none(), "an end in order");
    assert_eq!(served.await.unwrap().cause, Cause::Closed);
    assert_eq!(rest(&mut application).await, (String::new(), true));
}

#[tokio::test]
async fn what_ends_early_is_reset_and_a_revocation_says_so() {
    for (cause, expected) in
        [(Cause::PolicyRevoked, crate::proxy::deliver::REVOKED), (Cause::Drained, Reason::CONNECT_ERROR)]
    {
        let (mut client, mut application, stop, served) = through_a_tunnel(TestJudge::new(|_| true)).await;
        client.send(Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        until(&mut application, "\r\n\r\n").await;
        stop.end(cause);
        let ended = timeout(LONG, next(&mut client)).await.unwrap();
        assert!(matches!(ended, Err(StreamError::Reset(reason)) if reason == expected), "{ended:?}");
        assert_eq!(served.await.unwrap().cause, cause);
        assert!(!rest(&mut application).await.1);
    }
}

#[tokio::test]
async fn what_is_no_http_is_told_so() {
    let (mut client, mut application, _, served) = through_a_tunnel(TestJudge::new(|_| true)).await;
    client.send(Bytes::from_static(b"\0\x01 no request\r\n")).unwrap();
    let ended = timeout(LONG, next(&mut client)).await.unwrap();
    let not_http = crate::proxy::deliver::NOT_HTTP;
    assert!(matches!(ended, Err(StreamError::Reset(reason)) if reason == not_http), "{ended:?}");
    assert_eq!(served.await.unwrap().cause, Cause::NotHttp);
    assert_eq!(rest(&mut application).await.0, "");
}

#[tokio::test]
async fn an_answer_that_policy_breaks_off_says_so() {
    let judge = TestJudge::new(|_| true);
    let (mut client, mut application, _, served) = through_a_tunnel(judge.clone()).await;
    client.send(Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
    until(&mut application, "\r\n\r\n").await;
    application.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await.unwrap();
    heard(&mut client, "abc").await;
    judge.change(|_| false);
    let ended = timeout(LONG, next(&mut client)).await.unwrap();
    let revoked = crate::proxy::deliver::REVOKED;
    assert!(matches!(ended, Err(StreamError::Reset(reason)) if reason == revoked), "{ended:?}");
    assert_eq!(served.await.unwrap().cause, Cause::PolicyRevoked);
}
