use super::*;

/// What is said and what arrives, byte for byte.
#[tokio::test]
async fn requests_and_answers_arrive_as_they_were_sent() {
    let table = [
        (
            "GET /a?b=%2e#c HTTP/1.1\r\nHost: a\r\nX-CamelCase: 1\r\nx-two: 1\r\nX-Two: 2\r\nAccept: */*\r\n\r\n",
            "HTTP/1.1 200 Quite OK\r\nX-Camel: 1\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 201 Created\r\nServer: theirs\r\nDate: then\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 204 No Content\r\nX-Y: z\r\n\r\n"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        ("BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n"),
        (
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        ),
    ];
    let mut kept = Rig::open().await;
    for (request, answer) in table {
        let sent = request.replace("#c ", " ");
        let mut fresh = Rig::open().await;
        // On a connection of its own, and on one that had others before.
        for rig in [&mut kept, &mut fresh] {
            rig.say(request).await;
            rig.gets(&sent).await;
            rig.answer(answer).await;
            rig.told(answer).await;
        }
        assert_eq!(fresh.ends().await, Outcome { cause: Cause::Closed, detail: None }, "{request}");
    }
    let sent = kept.counts.sent.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(sent as usize, table.iter().map(|(request, _)| request.len()).sum::<usize>());
    assert_eq!(kept.seen()[0], "GET /a 200 allowed");
    assert_eq!(kept.judge.asked()[0], "GET a/a?b=%2e");
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_does() {
    let mut rig = Rig::open().await;
    rig.say("GET / HTTP/1.0\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    rig.answer("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    rig.application.shutdown().await.unwrap();
    let (answer, in_order) = rest(&mut rig.client).await;
    assert_eq!((&*answer, in_order), ("HTTP/1.0 200 OK\r\n\r\nuntil the end", true));
    assert_eq!(rig.outcome().await.cause, Cause::Closed);
    // To a client that can, its end is told.
    let mut rig = Rig::open().await;
    rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    rig.answer("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end").await;
    rig.application.shutdown().await.unwrap();
    let (answer, in_order) = rest(&mut rig.client).await;
    assert!(answer.ends_with("D\r\nuntil the end\r\n0\r\n\r\n") && in_order, "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "HTTP/1.1 20", ""] {
        let mut rig = Rig::open().await;
        rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        rig.arrives("\r\n\r\n").await;
        rig.answer(answer).await;
        drop(std::mem::replace(&mut rig.application, pair().await.0));
        assert!(!rest(&mut rig.client).await.1, "{answer}");
        assert_eq!(rig.outcome().await.cause, Cause::ServerReset, "{answer}");
    }
}

#[tokio::test]
async fn requests_sent_ahead_are_judged_and_answered_one_by_one() {
    let mut rig = Rig::new(TestJudge::new(|request| request.path != "/2")).await;
    let request = |n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
    rig.say([request(1), request(2), request(3)].concat()).await;
    for n in [1, 3] {
        assert_eq!(rig.arrives("\r\n\r\n").await, request(n));
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}");
        rig.answer(&answer).await;
        rig.told(&answer).await;
        if n == 1 {
            let denied = rig.hears("policy\n").await;
            assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
        }
    }
    assert_eq!(rig.ends().await.cause, Cause::Closed);
    assert_eq!(rig.seen(), ["GET /1 200 allowed", "GET /2 403 denied", "GET /3 200 allowed"]);
}

#[tokio::test]
async fn a_client_is_asked_for_its_body_when_the_application_asks() {
    let head = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let mut rig = Rig::open().await;
    rig.say(head).await;
    assert_eq!(rig.arrives("\r\n\r\n").await, head);
    rig.answer("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(rig.hears("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    rig.say("body").await;
    assert_eq!(rig.arrives("body").await, "body");
    rig.answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert!(rig.hears("\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(rig.ends().await.cause, Cause::Closed);

    // One that wants no body is not given one, and neither is the client asked.
    let mut rig = Rig::open().await;
    rig.say(head).await;
    rig.arrives("\r\n\r\n").await;
    rig.answer("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
    assert!(rig.hears("\r\n\r\n").await.starts_with("HTTP/1.1 413 "));

    // One that knows nothing of it gets the body all the same.
    let mut rig = Rig::open().await;
    rig.say(head).await;
    rig.arrives("\r\n\r\n").await;
    assert_eq!(rig.hears("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    rig.say("body").await;
    assert_eq!(rig.arrives("body").await, "body");
}

#[tokio::test]
async fn a_websocket_goes_both_ways_after_its_switch() {
    let request = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut rig = Rig::open().await;
    rig.say(request).await;
    assert_eq!(rig.arrives("\r\n\r\n").await, request);
    rig.answer([answer, "first"].concat()).await;
    assert_eq!(rig.hears("first").await, [answer, "first"].concat());
    for _ in 0..3 {
        rig.say("GET /not-http HTTP/1.1\r\n\r\n").await;
        rig.arrives("\r\n\r\n").await;
        rig.answer("pong").await;
        rig.hears("pong").await;
    }
    // Each way ends by itself.
    rig.client.shutdown().await.unwrap();
    assert_eq!(rest(&mut rig.application).await, (String::new(), true));
    rig.answer("last").await;
    rig.application.shutdown().await.unwrap();
    assert_eq!(rest(&mut rig.client).await, ("last".to_owned(), true));
    assert_eq!(rig.outcome().await.cause, Cause::Closed);
    assert_eq!(rig.seen(), ["GET /ws 101 allowed"]);
}

#[tokio::test]
async fn an_application_that_declines_to_switch_is_spoken_to_in_http() {
    let mut rig = Rig::open().await;
    rig.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    rig.answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    rig.hears("\r\n\r\n").await;
    rig.say("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    assert_eq!(rig.judge.asked().len(), 2);
}

#[tokio::test]
async fn bodies_wait_for_whoever_reads_them() {
    const MANY: usize = 64 << 20;
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {MANY}\r\n\r\n");
    let mut rig = Rig::open().await;
    rig.say(head).await;
    let (_, mut client) = rig.client.into_split();
    let counts = Arc::clone(&rig.counts);
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while sent < MANY {
            sent += client.write(&[b'x'; 65536][..65536.min(MANY - sent)]).await.unwrap();
        }
        client
    });
    // Until nothing more is taken from the client.
    let taken = || counts.sent.load(std::sync::atomic::Ordering::Relaxed);
    let mut before = u64::MAX;
    while before != taken() {
        before = taken();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(taken() < 32 << 20, "{} bytes were taken of a body that nobody reads", taken());
    assert!(!sending.is_finished());
    let mut got = 0;
    let mut buf = vec![0; 1 << 20];
    while got < MANY {
        got += timeout(LONG, rig.application.read(&mut buf)).await.unwrap().unwrap();
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let mut rig = Rig::open().await;
    rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    crate::proxy::deliver::reset(std::mem::replace(&mut rig.client, pair().await.0));
    rest(&mut rig.application).await;
    assert_eq!(rig.outcome().await.cause, Cause::ClientReset);
}
