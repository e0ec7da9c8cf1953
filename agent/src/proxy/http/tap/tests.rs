use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::watch;

use super::super::judge::Seen;
use super::super::{Advice, Judge, Limits, Observer, Ruling};
use super::*;
use crate::lifecycle::Stop;
use crate::policy::{PathNormalization, Verdict, Why};

/// Would deny everything, and binds nobody.
struct Dry;

impl Judge for Dry {
    fn binding(&self) -> bool {
        false
    }

    fn judge(&self, _: &Request<'_>) -> Ruling {
        panic!("nothing is decided")
    }

    fn not_http(&self) -> Ruling {
        panic!("nothing is decided")
    }

    fn advise(&self, request: Option<&Request<'_>>) -> Advice {
        let why = if request.is_some() { Why::DenyMatched } else { Why::NotHttp };
        Advice { would: Some(Verdict::Deny { by: None, why }), audited: Vec::new() }
    }

    fn normalization(&self) -> PathNormalization {
        PathNormalization::Base
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Observer for Log {
    fn request(&self, _: &Seen<'_>) {
        panic!("nothing is answered")
    }

    fn refused(&self, _: &Ruling) {
        panic!("nothing is refused")
    }

    fn advised(&self, about: About<'_>, _: &Advice) {
        self.0.lock().unwrap().push(match about {
            About::Request { method, host, path } => format!("{method} {host}{path}"),
            About::Unreadable { .. } => "unreadable".into(),
            About::Stream => "stream".into(),
        });
    }
}

fn heard<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let log = Arc::<Log>::default();
    let limits = Limits::default();
    let mut tap =
        Tap::new(Service { judge: Arc::new(Dry), observer: log.clone(), limits, client: Stop::default() });
    pieces.into_iter().for_each(|piece| tap.bytes(piece));
    tap.finish();
    std::mem::take(&mut log.0.lock().unwrap())
}

/// However it is cut.
#[track_caller]
fn hears(said: &[u8], expected: &[&str]) {
    for size in [said.len().max(1), 1, 7] {
        assert_eq!(heard(said.chunks(size)), expected, "{} by {size}", String::from_utf8_lossy(said));
    }
}

#[test]
fn every_request_is_heard_whatever_lies_between() {
    for (said, expected) in [
        ("", &[][..]),
        ("GET /a/../b?c HTTP/1.1\r\nHost: x\r\n\r\n", &["GET x/b"]),
        ("\r\n\r\nGET / HTTP/1.1\nHost: x\n\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", &["GET x/", "GET x/2"]),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\nGET / HTTP/1.1\r\nPUT / HTTP/1.1\r\nHost: y\r\n\r\n",
            &["POST x/", "PUT y/"],
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nGET /\r\n10\r\n\
             0123456789abcdef\r\n0\r\nTrailer: t\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
            &["POST x/", "GET x/2"],
        ),
        // Where policy binds, the client would be refused; here only nobody knows what follows.
        ("GET / HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", &["unreadable", "GET x/2"]),
        ("GET / HTTP/1.1\r\nHost : x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", &["unreadable"]),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
            &["unreadable"],
        ),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nGET /2 HTTP/1.1\r\n", &["unreadable"]),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
            &["GET x/"],
        ),
        ("GET / HTTP/1.0\r\nHost: x\r\n\r\n\0\x01garbage", &["GET x/"]),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n\0\x01garbage\n\n", &["GET x/", "unreadable"]),
        // What is no request.
        ("\x16\x03\x01\x02\0", &["stream"]),
        ("EHLO mail\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", &["stream"]),
        ("GET", &["stream"]),
        ("GET / HTTP/1.1\x0c\r\nHost: x\r\n\r\n", &["stream"]),
        ("\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", &["stream"]),
    ] {
        hears(said.as_bytes(), expected);
    }
}

#[test]
fn what_a_request_turns_into_is_not_taken_for_requests_unless_it_is() {
    let ask = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    hears(&[ask.as_bytes(), b"\x81\x85\0\0\0\0GET /"].concat(), &["GET x/ws"]);
    // It stayed HTTP, or turned into HTTP/2.
    hears(format!("{ask}GET /2 HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(), &["GET x/ws", "GET x/2"]);
    let block = b"\x82\x84\x86\x41\x01y";
    let headers = [&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, 1][..], block].concat();
    hears(&[ask.as_bytes(), super::super::detect::PREFACE, &headers].concat(), &["GET x/ws", "GET y/"]);
    hears(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n\0\0\x01anything", &["unreadable"]);
}

#[test]
fn a_head_without_end_is_told_of_once_and_held_no_longer() {
    let endless = [&b"GET / HTTP/1.1\r\n"[..], &b"X: y\r\n".repeat(20_000)].concat();
    hears(&endless, &["unreadable"]);
    let line = [&b"GET /"[..], &[b'a'; 200_000]].concat();
    hears(&line, &["unreadable"]);
    let fields: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    hears(format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes(), &["unreadable"]);
}

#[test]
fn frames_that_do_not_fit_end_the_reading_of_http2() {
    let preface = super::super::detect::PREFACE;
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1][..], payload].concat()
    };
    let request: &[u8] = b"\x82\x84\x86\x41\x01y";
    let good = frame(1, 4, request);
    // Settings and data between, padding, priority, and a block in pieces.
    let all = [
        preface,
        &frame(4, 0, &[]),
        &good,
        &frame(0, 1, b"GET /"),
        &frame(1, 4 | 8 | 0x20, &[&[2, 0, 0, 0, 0, 9][..], request, &[0, 0]].concat()),
        &frame(1, 0, &request[..2]),
        &frame(9, 4, &request[2..]),
    ];
    hears(&all.concat(), &["GET y/"; 3]);
    for bad in [
        frame(9, 4, request),
        [frame(1, 0, request), frame(0, 0, b"x")].concat(),
        frame(1, 4 | 8, &[200, 1]),
        frame(1, 4, &[0xff; 5]),
    ] {
        hears(&[preface, &bad, &good].concat(), &["unreadable"]);
    }
    // One stream's own fault.
    hears(&[preface, &frame(1, 4, b"\x82\x82"), &good].concat(), &["unreadable", "GET y/"]);
}

/// Whatever a real client makes of its table of headers.
#[tokio::test]
async fn a_real_clients_requests_are_heard_in_http2() {
    let (client, ours) = duplex(1 << 16);
    let (theirs, server) = duplex(1 << 16);
    let (mut from_client, mut to_client) = tokio::io::split(ours);
    let (mut from_server, mut to_server) = tokio::io::split(theirs);
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let listening = tokio::spawn(async move {
        let (mut said, mut buffer) = (Vec::new(), [0; 512]);
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            said.push(buffer[..n].to_vec());
            to_server.write_all(&buffer[..n]).await.unwrap();
        }
        said
    });
    tokio::spawn(async move {
        let mut server = h2::server::handshake(server).await.unwrap();
        while let Some(Ok((_, mut respond))) = server.accept().await {
            respond.send_response(http::Response::new(()), true).unwrap();
        }
    });
    let (sender, connection) = h2::client::handshake(client).await.unwrap();
    let driven = tokio::spawn(connection);
    let mut expected = Vec::new();
    for n in 0..100 {
        let request = http::Request::get(format!("http://shop/orders/{}", n % 7)).header("x-team", "red");
        let request = request.header(format!("x-{}", n % 50), "ü~&^ \t|".repeat(n)).body(()).unwrap();
        let mut ready = sender.clone().ready().await.unwrap();
        let (answer, mut body) = ready.send_request(request, false).unwrap();
        body.send_data("GET / HTTP/1.1\r\n\r\n".into(), false).unwrap();
        body.send_trailers(http::HeaderMap::from_iter([(http::header::ETAG, "t".parse().unwrap())])).unwrap();
        answer.await.unwrap();
        expected.push(format!("GET shop/orders/{}", n % 7));
    }
    drop(sender);
    driven.await.unwrap().unwrap();
    let said = listening.await.unwrap();
    assert_eq!(heard(said.iter().map(Vec::as_slice)), expected);
    hears(&said.concat(), &expected.iter().map(String::as_str).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn nothing_that_is_said_panics_and_how_it_is_cut_makes_no_difference(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        begin in 0..3usize,
        cuts in proptest::collection::vec(1..40usize, 1..20),
    ) {
        let begin = [&b""[..], b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", super::super::detect::PREFACE][begin];
        let said = [begin, &bytes].concat();
        let mut pieces = Vec::new();
        let mut rest = &said[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        prop_assert_eq!(heard(pieces), heard([&said[..]]));
    }
}
