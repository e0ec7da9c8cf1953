use super::*;

/// Short, for what never comes anyway.
fn impatient() -> Limits {
    Limits { first_bytes: Duration::from_millis(50), head: Duration::from_millis(50), ..Limits::default() }
}

#[tokio::test]
async fn what_is_not_http_never_reaches_the_application() {
    for words in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"EHLO mail.example\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"GET key\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ] {
        let mut rig = Rig::open().await;
        rig.say(words).await;
        let outcome = rig.outcome().await;
        assert_eq!(outcome.cause, Cause::NotHttp, "{words:?}: {:?}", outcome.detail);
        assert_eq!(rest(&mut rig.client).await, (String::new(), false), "{words:?}");
        assert_eq!(rest(&mut rig.application).await.0, "", "{words:?}");
        assert!(rig.judge.asked().is_empty());
        assert_eq!(*rig.log.0.lock().unwrap(), ["stream not_http"], "{words:?}");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_the_application_to_speak_is_ended() {
    for begun in ["", "GET /slow"] {
        let mut rig = Rig::with(TestJudge::new(|_| true), impatient()).await;
        rig.answer("220 mail.example ready\r\n").await;
        rig.say(begun).await;
        let outcome = rig.outcome().await;
        assert_eq!(outcome.cause, Cause::NotHttp);
        assert!(outcome.detail.unwrap().contains("50ms"));
        assert_eq!(rest(&mut rig.client).await.0, "", "the application's words must not come through");
    }
}

#[tokio::test]
async fn what_is_not_http_passes_whole_where_policy_lets_it() {
    let judge = TestJudge::new(|_| false);
    judge.takes_bytes.store(true, Ordering::Relaxed);
    // Whoever speaks first, and whatever looked like a request for a while.
    for (words, banner) in [("GET key\r\n", ""), ("", "220 mail.example ready\r\n"), ("GET /slow", "")] {
        let mut rig = Rig::with(judge.clone(), impatient()).await;
        rig.answer(banner).await;
        rig.say(words).await;
        if !banner.is_empty() {
            assert_eq!(rig.hears("\r\n").await, banner);
        }
        rig.say("\0 and more\n").await;
        assert_eq!(rig.arrives("more\n").await, format!("{words}\0 and more\n"));
        rig.answer("yes\n").await;
        assert_eq!(rig.hears("yes\n").await, "yes\n");
        rig.application.shutdown().await.unwrap();
        assert_eq!(rig.ends().await.cause, Cause::Closed);
    }
    let mut rig = Rig::with(judge.clone(), impatient()).await;
    rig.say("GET key\r\n").await;
    rig.arrives("\r\n").await;
    rig.stop.end(Cause::PolicyRevoked);
    assert_eq!(rig.outcome().await.cause, Cause::PolicyRevoked);
}

#[tokio::test]
async fn a_client_that_says_nothing_and_leaves_is_no_error() {
    let mut rig = Rig::open().await;
    assert_eq!(rig.ends().await.cause, Cause::Closed);
}

#[tokio::test]
async fn a_head_that_takes_too_long_is_answered_with_408() {
    let mut rig = Rig::with(TestJudge::new(|_| true), impatient()).await;
    rig.say("GET / HTTP/1.1\r\nHost: a\r\nX-Slow").await;
    let (answer, in_order) = rest(&mut rig.client).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(in_order);
    assert_eq!(rig.outcome().await.cause, Cause::BadRequest);
    assert_eq!(rest(&mut rig.application).await.0, "");
}

#[tokio::test]
async fn a_connection_that_is_kept_for_later_is_not_slow() {
    let mut rig = Rig::with(TestJudge::new(|_| true), impatient()).await;
    for _ in 0..2 {
        rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        rig.arrives("\r\n\r\n").await;
        // Neither is an application that takes its time, nor a client that has nothing to ask.
        tokio::time::sleep(3 * impatient().head).await;
        rig.answer("HTTP/1.1 204 No Content\r\n\r\n").await;
        rig.hears("\r\n\r\n").await;
        tokio::time::sleep(3 * impatient().head).await;
    }
    assert_eq!(rig.ends().await.cause, Cause::Closed);
}

#[tokio::test]
async fn a_connection_without_requests_is_ended_in_order_where_that_is_asked_for() {
    let limits = Limits { idle: Some(Duration::from_millis(50)), ..Limits::default() };
    let mut rig = Rig::with(TestJudge::new(|_| true), limits).await;
    rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    // Nobody waits for the client here.
    tokio::time::sleep(3 * limits.idle.unwrap()).await;
    rig.answer("HTTP/1.1 204 No Content\r\n\r\n").await;
    rig.hears("\r\n\r\n").await;
    assert_eq!(rest(&mut rig.client).await, (String::new(), true));
    assert_eq!(rest(&mut rig.application).await, (String::new(), true));
    assert_eq!(rig.outcome().await.cause, Cause::Closed);
}

#[tokio::test]
async fn heads_are_held_to_what_is_configured() {
    let limits = Limits { head_bytes: 8 << 10, fields: 3, ..Limits::default() };
    for (more, status) in [
        (format!("X: {}\r\n", "y".repeat(7 << 10)), "204"),
        (format!("X: {}\r\n", "y".repeat(9 << 10)), "431"),
        ("X: 1\r\nY: 1\r\n".to_owned(), "204"),
        ("X: 1\r\nY: 1\r\nZ: 1\r\n".to_owned(), "431"),
    ] {
        let mut rig = Rig::with(TestJudge::new(|_| true), limits).await;
        rig.say(format!("GET / HTTP/1.1\r\nHost: a\r\n{more}\r\n")).await;
        if status == "204" {
            rig.arrives("\r\n\r\n").await;
            rig.answer("HTTP/1.1 204 No Content\r\n\r\n").await;
        }
        let answer = rig.hears("\r\n\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}
