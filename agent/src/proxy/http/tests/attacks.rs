use super::*;

/// What the application got, and what the client was answered, when the client says `words` and no more.
async fn attack(words: impl AsRef<[u8]>) -> (String, String, Rig) {
    let mut rig = Rig::new(TestJudge::new(|request| !request.path.starts_with("/admin"))).await;
    rig.say(words).await;
    let _ = rig.client.shutdown().await;
    let heard = rest(&mut rig.client).await.0;
    let arrived = rest(&mut rig.application).await.0;
    (arrived, heard, rig)
}

#[tokio::test]
async fn what_two_parsers_could_read_in_two_ways_is_refused() {
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}");
    let get = |line: &str, fields: &str| format!("{line}\r\n{fields}\r\n");
    let hidden = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let many: String = (0..120).map(|n| format!("X-{n}: 1\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "x".repeat(70_000));
    let table = [
        ("two lengths", post("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"), "400"),
        ("a list of lengths", post("Content-Length: 3, 4\r\n", "abcd"), "400"),
        ("a signed length", post("Content-Length: +3\r\n", "abc"), "400"),
        ("a length that overflows", post("Content-Length: 99999999999999999999\r\n", "abc"), "400"),
        ("a strange coding", post("Transfer-Encoding: xchunked\r\n", hidden), "400"),
        ("chunked is not last", post("Transfer-Encoding: chunked, identity\r\n", hidden), "400"),
        ("a coding with a tab", post("Transfer-Encoding: chunked\tx\r\n", hidden), "400"),
        (
            "chunked in 1.0",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            "400",
        ),
        ("a folded field", post("X-A: 1\r\n Transfer-Encoding: chunked\r\n", ""), "400"),
        ("a space before the colon", post("Transfer-Encoding : chunked\r\n", hidden), "400"),
        ("a space before the name", get("GET / HTTP/1.1", "Host: a\r\n X: y\r\n"), "400"),
        ("a name with a NUL", get("GET / HTTP/1.1", "Host: a\r\nX\0: y\r\n"), "400"),
        ("a value with a NUL", get("GET / HTTP/1.1", "Host: a\r\nX: \0\r\n"), "400"),
        ("a bare CR", get("GET / HTTP/1.1", "Host: a\r\nX: y\rTransfer-Encoding: chunked\r\n"), "400"),
        ("no name", get("GET / HTTP/1.1", "Host: a\r\n: y\r\n"), "400"),
        ("no host", get("GET / HTTP/1.1", "X: y\r\n"), "400"),
        ("two hosts", get("GET / HTTP/1.1", "Host: a\r\nHost: b\r\n"), "400"),
        ("two equal hosts", get("GET / HTTP/1.1", "Host: a\r\nHost: a\r\n"), "400"),
        ("a target that differs", get("GET http://b/ HTTP/1.1", "Host: a\r\n"), "400"),
        ("a host with a path", get("GET / HTTP/1.1", "Host: a/admin\r\n"), "400"),
        ("a host with a user", get("GET / HTTP/1.1", "Host: x@a\r\n"), "400"),
        ("a host with a space", get("GET / HTTP/1.1", "Host: a b\r\n"), "400"),
        ("an encoded NUL", get("GET /a%00 HTTP/1.1", "Host: a\r\n"), "400"),
        ("encoded twice", get("GET /.%%32e/admin HTTP/1.1", "Host: a\r\n"), "400"),
        ("a relative target", get("GET admin HTTP/1.1", "Host: a\r\n"), "400"),
        ("HTTP/2 without its preface", get("GET / HTTP/2.0", "Host: a\r\n"), "400"),
        ("two spaces", get("GET /  HTTP/1.1", "Host: a\r\n"), "400"),
        ("a field of the framing named", get("GET / HTTP/1.1", "Host: a\r\nConnection: Host\r\n"), "400"),
        ("CONNECT", get("CONNECT a:80 HTTP/1.1", "Host: a:80\r\n"), "405"),
        ("many fields", get("GET / HTTP/1.1", &format!("Host: a\r\n{many}")), "431"),
        ("a long field", get("GET / HTTP/1.1", &format!("Host: a\r\n{long}")), "431"),
        ("a long target", get(&format!("GET /{} HTTP/1.1", "x".repeat(65_600)), "Host: a\r\n"), "4"),
    ];
    for (what, words, status) in table {
        let (arrived, heard, mut rig) = attack(words).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {heard}");
        assert_eq!(heard.matches("HTTP/1.1 ").count(), 1, "{what}: one answer, and the end: {heard}");
        assert_eq!(arrived, "", "{what}");
        assert!(rig.judge.asked().is_empty(), "{what}: {:?}", rig.judge.asked());
        let outcome = rig.outcome().await;
        assert!(matches!(outcome.cause, Cause::BadRequest | Cause::Closed), "{what}: {outcome:?}");
    }
}

/// Where hyper takes a request that is not quite one, it is written anew in one unambiguous form.
#[tokio::test]
async fn what_is_taken_is_written_anew_and_nothing_hides_in_it() {
    let body = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let len = body.len();
    let table = [
        (
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\nTransfer-Encoding: chunked\r\n\r\n{body}"),
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: {len}\r\n\r\n{body}"),
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("GET / HTTP/1.1\nHost: a\nX: y\n\n".into(), "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"),
        ("GET /x#/admin HTTP/1.1\r\nHost: a\r\n\r\n".into(), "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("GET /./x/../y HTTP/1.1\r\nHost: a\r\n\r\n".into(), "GET /y HTTP/1.1\r\nHost: a\r\n\r\n"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok".into(),
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=\"y\"\r\nok\r\n0\r\n\r\n".into(),
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-User, close\r\nX-User: root\r\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
    ];
    for (words, expected) in table {
        let mut rig = Rig::new(TestJudge::new(|request| !request.path.starts_with("/admin"))).await;
        rig.say(&words).await;
        rig.gets(expected).await;
        rig.answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        rig.hears("\r\n\r\n").await;
        let _ = rig.client.shutdown().await;
        rest(&mut rig.client).await;
        let more = rest(&mut rig.application).await.0;
        assert!(more.is_empty(), "{words}: {more}");
        let asked = rig.judge.asked();
        assert!(asked.iter().skip(1).all(|asked| asked == "GET a/admin"), "{words}: {asked:?}");
    }
}

#[tokio::test]
async fn a_path_is_judged_in_its_one_form() {
    for path in
        ["/admin", "/x/../admin", "/%61dmin", "/x/%2e%2e/admin", "/./admin/", "/x\\..\\admin", "/admin#x"]
    {
        let mut rig = Rig::new(TestJudge::new(|request| !request.path.starts_with("/admin"))).await;
        rig.say(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(rig.hears("policy\n").await.starts_with("HTTP/1.1 403 "), "{path}");
        rig.ends().await;
        assert_eq!(rest(&mut rig.application).await.0, "", "{path}");
    }
}

#[tokio::test]
async fn chunks_that_are_none_end_the_connection() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extension = format!("1;{}\r\n", "x".repeat(100_000));
    let cases = [
        "g\r\n",
        "-1\r\n",
        "0x1\r\n",
        "1\nx\n",
        "1\r\nxy\r\n",
        "ffffffffffffffffff\r\n",
        &*extension,
        "1 ;\n",
    ];
    for chunk in cases {
        let mut rig = Rig::open().await;
        rig.say(head).await;
        rig.arrives("\r\n\r\n").await;
        // It may be gone before all is said.
        let _ = rig.client.write_all(format!("{chunk}0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n").as_bytes()).await;
        let arrived = rest(&mut rig.application).await.0;
        assert!(!arrived.contains("0\r\n\r\n") && !arrived.contains("admin"), "{chunk}: {arrived}");
        assert_ne!(rig.outcome().await.cause, Cause::Closed, "{chunk}");
        assert_eq!(rig.judge.asked().len(), 1, "{chunk}");
    }
}

#[tokio::test]
async fn an_application_that_switches_unasked_is_not_heard() {
    let mut rig = Rig::open().await;
    rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.arrives("\r\n\r\n").await;
    rig.answer(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nHTTP/1.1 200 OK\r\n",
    )
    .await;
    let (heard, in_order) = rest(&mut rig.client).await;
    assert_eq!((&*heard, in_order), ("", false));
}
