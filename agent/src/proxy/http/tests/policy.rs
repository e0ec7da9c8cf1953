use super::*;

#[tokio::test]
async fn a_denied_request_is_told_so_and_no_more() {
    let mut rig = Rig::new(TestJudge::new(|request| request.method == "GET")).await;
    for body in ["", "hello"] {
        rig.say(format!("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        let heard = rig.hears("policy\n").await;
        assert_eq!(
            heard,
            "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 17\r\n\r\ndenied by policy\n"
        );
    }
    // The connection goes on.
    rig.say("GET /b HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(rig.arrives("\r\n\r\n").await, "GET /b HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(rig.seen(), ["PUT /a 403 denied", "PUT /a 403 denied"]);
}

#[tokio::test]
async fn a_denied_body_that_is_long_ends_the_connection() {
    for fields in ["Content-Length: 10000000\r\n", "Content-Length: 9\r\nExpect: 100-continue\r\n"] {
        let mut rig = Rig::new(TestJudge::new(|_| false)).await;
        rig.say(format!("PUT / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
        let (heard, in_order) = rest(&mut rig.client).await;
        assert!(heard.starts_with("HTTP/1.1 403 ") && heard.contains("connection: close"), "{heard}");
        assert!(in_order);
        assert_eq!(rest(&mut rig.application).await.0, "");
        assert_eq!(rig.outcome().await.cause, Cause::Closed);
    }
}

#[tokio::test]
async fn a_request_that_policy_takes_back_ends_with_that_cause() {
    for answered in [false, true] {
        let mut rig = Rig::open().await;
        rig.say("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
        rig.arrives("\r\n\r\n").await;
        if answered {
            rig.answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await;
            rig.hears("half").await;
        }
        // A change that leaves it allowed leaves it alone.
        rig.judge.change(|request| request.path == "/events");
        rig.judge.change(|_| false);
        let (heard, in_order) = rest(&mut rig.client).await;
        if answered {
            assert_eq!((&*heard, in_order), ("", false));
        } else {
            assert!(heard.starts_with("HTTP/1.1 403 "), "{heard}");
        }
        rest(&mut rig.application).await;
        assert_eq!(rig.outcome().await.cause, Cause::PolicyRevoked);
    }
}

#[tokio::test]
async fn a_websocket_that_policy_takes_back_ends_with_that_cause() {
    let mut rig = Rig::open().await;
    rig.say("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    rig.answer("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        .await;
    rig.hears("hi").await;
    rig.judge.change(|request| request.path == "/ws");
    rig.answer("still").await;
    rig.hears("still").await;
    rig.judge.change(|_| false);
    assert!(!rest(&mut rig.client).await.1);
    assert!(!rest(&mut rig.application).await.1);
    assert_eq!(rig.outcome().await.cause, Cause::PolicyRevoked);
}

#[tokio::test]
async fn a_connection_that_is_ended_resets_both() {
    let mut rig = Rig::open().await;
    rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    rig.stop.end(Cause::PolicyRevoked);
    assert_eq!(rig.outcome().await.cause, Cause::PolicyRevoked);
    assert!(!rest(&mut rig.client).await.1);
    rest(&mut rig.application).await;
}
