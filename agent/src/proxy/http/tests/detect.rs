use super::*;

/// Short, for what never comes anyway.
const IMPATIENT: Limits = Limits { first_bytes: Duration::from_millis(50), head: Duration::from_millis(50) };

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
    }
}

#[tokio::test]
async fn a_client_that_waits_for_the_application_to_speak_is_ended() {
    for begun in ["", "GET /slow"] {
        let mut rig = Rig::with(TestJudge::new(|_| true), IMPATIENT).await;
        rig.answer("220 mail.example ready\r\n").await;
        rig.say(begun).await;
        let outcome = rig.outcome().await;
        assert_eq!(outcome.cause, Cause::NotHttp);
        assert!(outcome.detail.unwrap().contains("50ms"));
        assert_eq!(rest(&mut rig.client).await.0, "", "the application's words must not come through");
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_and_leaves_is_no_error() {
    let mut rig = Rig::open().await;
    assert_eq!(rig.ends().await.cause, Cause::Closed);
}

#[tokio::test]
async fn a_head_that_takes_too_long_is_answered_with_408() {
    let mut rig = Rig::with(TestJudge::new(|_| true), IMPATIENT).await;
    rig.say("GET / HTTP/1.1\r\nHost: a\r\nX-Slow").await;
    let (answer, in_order) = rest(&mut rig.client).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(in_order);
    assert_eq!(rig.outcome().await.cause, Cause::BadRequest);
    assert_eq!(rest(&mut rig.application).await.0, "");
}

#[tokio::test]
async fn a_connection_that_is_kept_for_later_is_not_slow() {
    let mut rig = Rig::with(TestJudge::new(|_| true), IMPATIENT).await;
    for _ in 0..2 {
        rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        rig.arrives("\r\n\r\n").await;
        // Neither is an application that takes its time, nor a client that has nothing to ask.
        tokio::time::sleep(3 * IMPATIENT.head).await;
        rig.answer("HTTP/1.1 204 No Content\r\n\r\n").await;
        rig.hears("\r\n\r\n").await;
        tokio::time::sleep(3 * IMPATIENT.head).await;
    }
    assert_eq!(rig.ends().await.cause, Cause::Closed);
}
