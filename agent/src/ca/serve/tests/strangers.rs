//! Callers that have not proven anything, and never will.

use proptest::prelude::*;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use super::*;
use crate::tls::testing::{gullible_client, handshake};

#[tokio::test]
async fn nobody_who_is_not_in_the_list_gets_anything() {
    let w = World::start().await;
    let foreign = Papered::new().shows();
    for (what, shows) in [("no certificate", None), ("a key that is not listed", Some(&foreign))] {
        let refused = ask(w.channel(shows), message(CART, csr(CART))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{what}: {refused}");
        assert!(!refused.message().contains("sha256"), "{what} is told more than that: {refused}");
    }
    assert_eq!(w.counted(r#"underpass_ca_requests_total{result="unknown_caller"}"#), 2);
    for cause in ["no_papers", "unknown"] {
        assert_eq!(w.counted(&format!("underpass_ca_refused_total{{cause=\"{cause}\"}}")), 1, "{cause}");
    }
}

/// Certificates are no secret: whoever has seen one go by can show it.
#[tokio::test]
async fn a_stolen_certificate_without_its_key_ends_the_handshake() {
    let w = World::start().await;
    let thief = Shows { chain: w.n1.shows().chain, key: Papered::new().shows().key };
    let refused = ask(w.channel(Some(&thief)), message(CART, csr(CART))).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unknown | Code::Unavailable), "{refused}");
    assert_eq!(w.counted(r#"underpass_ca_requests_total{result="unknown_caller"}"#), 0, "it came no further");
    assert_eq!(w.counted(r#"underpass_ca_refused_total{cause="tls"}"#), 1);
    // The first certificate is the one whose key is proven.
    let mut below = Papered::new().shows();
    below.chain.push(w.n1.certificate.clone());
    let refused = ask(w.channel(Some(&below)), message(CART, csr(CART))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
}

#[tokio::test]
async fn a_token_is_no_key() {
    let w = World::start().await;
    let mut request = tonic::Request::new(message(CART, csr(CART)));
    request.metadata_mut().insert("authorization", "Bearer n1".parse().unwrap());
    let mut client = IstioCertificateServiceClient::new(w.channel(None));
    assert_eq!(client.create_certificate(request).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_unknown_method_is_said_to_be_one() {
    let w = World::start().await;
    for path in ["/istio.v1.auth.IstioCertificateService/Other", "/underpass.v1.TrustService/Other", "/a.B/C"]
    {
        let mut channel = w.channel(Some(&w.n1.shows()));
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
        let uri = format!("http://{NAME}{path}");
        let request = http::Request::post(uri).header("content-type", "application/grpc");
        let answer = in_time(channel.call(request.body(tonic::body::Body::empty()).unwrap())).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "12", "{path}");
    }
}

#[tokio::test]
async fn http_1_and_other_protocols_are_not_spoken() {
    let w = World::start().await;
    let with = |alpn: &[&[u8]]| {
        let mut dial = w.dial(Some(&w.n1.shows()));
        Arc::make_mut(&mut dial.tls).alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        dial
    };
    for alpn in [&b"http/1.1"[..], b"h3"] {
        assert!(in_time(with(&[alpn]).tls()).await.is_err(), "{alpn:?}");
    }
    // Without ALPN TLS works; then it has to be HTTP/2 all the same.
    let mut stream = with(&[]).tls().await.unwrap();
    stream
        .write_all(
            b"POST /istio.v1.auth.IstioCertificateService/CreateCertificate HTTP/1.1\r\nhost: c\r\n\r\n",
        )
        .await
        .unwrap();
    let mut answer = Vec::new();
    in_time(stream.read_to_end(&mut answer)).await.ok();
    assert!(!answer.starts_with(b"HTTP/1"), "{:?}", String::from_utf8_lossy(&answer));
    // Nor plain text.
    let mut stream = with(&[]).tcp().await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    in_time(stream.read_to_end(&mut answer)).await.ok();
    assert!(w.ask(&w.n1, CART).await.is_ok());
}

#[tokio::test]
async fn a_handshake_that_does_not_come_to_an_end_is_ended() {
    let w = World::limited(|limits| limits.handshake = Duration::from_millis(100)).await;
    let mut streams = vec![w.dial(None).tcp().await.unwrap(), w.dial(None).tcp().await.unwrap()];
    // The first bytes of a record of a handshake, and no more.
    streams[1].write_all(&[22, 3, 1]).await.unwrap();
    for mut stream in streams {
        let mut rest = Vec::new();
        in_time(stream.read_to_end(&mut rest)).await.ok();
    }
    assert_eq!(w.counted(r#"underpass_ca_refused_total{cause="tls_timeout"}"#), 2);
}

#[tokio::test]
async fn who_proves_nothing_is_let_go_and_a_node_is_not() {
    let w = World::limited(|limits| limits.proof = Duration::from_millis(300)).await;
    let shows = w.n1.shows();
    let channel = w.channel(Some(&shows));
    assert!(ask(channel.clone(), message(CART, csr(CART))).await.is_ok());
    let mut silent = w.dial(Some(&shows)).tls().await.unwrap();
    let mut rest = Vec::new();
    in_time(silent.read_to_end(&mut rest)).await.ok();
    assert_eq!(w.counted(r#"underpass_ca_refused_total{cause="unproven"}"#), 1);
    assert!(ask(channel, message(CART, csr(CART))).await.is_ok());
}

/// The honest agent is at the same address as those ten thousand: a pod of its own node, say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_silent_connections_do_not_keep_an_agent_out() {
    let w = World::start().await;
    let old = w.channel(Some(&w.n1.shows()));
    assert!(ask(old.clone(), message(CART, csr(CART))).await.is_ok());
    let dial = w.dial(None);
    let mut held = Vec::new();
    for _ in 0..10_000 {
        let stream = in_time(dial.tcp()).await.unwrap();
        held.push(stream);
        // Those that the server has closed are of no more use to either; descriptors are few.
        if held.len() > 400 {
            held.drain(..200);
        }
    }
    assert!(held.len() > Most::default().of_one.places, "there are more than there are places");
    assert!(ask(old, message(CART, csr(CART))).await.is_ok(), "one that is proven keeps its place");
    assert!(w.ask(&w.n2, TILL).await.is_ok(), "and a new one finds one");
    assert!(w.counted(r#"underpass_ca_refused_total{cause="turned_away"}"#) > 9_000);
    let other = Dial { from: Ipv4Addr::new(127, 0, 0, 2).into(), ..w.dial(Some(&w.n1.shows())) };
    assert!(ask(other.channel(), message(CART, csr(CART))).await.is_ok());
}

/// Shows any bytes as its certificate.
#[derive(Debug)]
struct Garbage(Arc<CertifiedKey>);

impl ResolvesClientCert for Garbage {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What the server makes of a caller that shows this: the pin it would be known by.
fn shown_as(
    certificate: Vec<u8>,
    papered: &Papered,
    server: &Arc<rustls::ServerConfig>,
) -> Option<PublicKeyPin> {
    let shows = papered.shows();
    let mut client = ClientConfig::clone(&gullible_client(&shows));
    let key = provider().key_provider.load_private_key(shows.key).unwrap();
    let garbage = CertifiedKey::new(vec![certificate.into()], key);
    client.client_auth_cert_resolver = Arc::new(Garbage(Arc::new(garbage)));
    let done = handshake(Arc::new(client), Arc::clone(server));
    done.server_end.ok()?;
    tls::key_of(done.server.peer_certificates()?.first()?)
}

#[tokio::test]
async fn certificates_of_any_bytes_are_refused_or_read_as_the_key_that_signed() {
    let scratch = world();
    let authority = Authority::open(&config(&scratch), Clock::system()).unwrap();
    let (certificate, _fresh) =
        ServerCertificate::new(&authority, vec![NAME.into()], CancellationToken::new()).unwrap();
    let server = tls::config(certificate);
    let papered = Papered::new();
    let pin = papered.listed("n1", CART).key;
    let whole = papered.certificate.to_vec();
    assert_eq!(shown_as(whole.clone(), &papered, &server), Some(pin));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let any_bytes = proptest::collection::vec(any::<u8>(), 0..600);
    let changed = (0..whole.len(), any::<u8>(), 0..=whole.len()).prop_map(move |(at, byte, end)| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes.truncate(if end % 4 == 0 { end } else { bytes.len() });
        bytes
    });
    let strategy = prop_oneof![1 => any_bytes, 3 => changed];
    runner
        .run(&strategy, |bytes| {
            let seen = shown_as(bytes, &papered, &server);
            prop_assert!(seen.is_none_or(|seen| seen == pin), "{seen:?}");
            Ok(())
        })
        .unwrap();
}
