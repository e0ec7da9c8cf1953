//! What a known node may send, and what comes of it.

use std::collections::BTreeSet;

use rcgen::SanType;
use tonic::Code;

use super::*;
use crate::ca::attest::{Changes, NodeName, Papers, Refusal};
use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME, ROOT_LIFETIME};
use crate::ca::tests::support::{DAY, domain};
use crate::model::SpiffeId;

#[tokio::test]
async fn a_node_gets_what_it_runs_and_nothing_else() {
    let w = World::start().await;
    assert_eq!(w.ask(&w.n1, CART).await.unwrap().cert_chain.len(), 3);
    assert_eq!(w.ask(&w.n2, TILL).await.unwrap().cert_chain.len(), 3);
    let refused = w.ask(&w.n1, TILL).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("n1") && refused.message().contains(TILL), "{refused}");
    assert_eq!(w.counted(r#"underpass_ca_requests_total{result="issued"}"#), 2);
    assert_eq!(w.counted(r#"underpass_ca_requests_total{result="not_its_own"}"#), 1);
}

#[tokio::test]
async fn requests_that_are_wrong_are_refused_with_why() {
    let w = World::start().await;
    let named = |identity: &str| message(identity, csr(CART));
    let with = |csr: String| message(CART, csr);
    let own =
        |change: fn(&mut rcgen::CertificateParams)| with(request(&KeyPair::generate().unwrap(), change));
    let lasting = |seconds| IstioCertificateRequest { validity_duration: seconds, ..with(csr(CART)) };
    let of_kind = |kind: Option<Kind>| {
        let fields = [("ImpersonatedIdentity".to_owned(), Value { kind })];
        IstioCertificateRequest { metadata: Some(Struct { fields: fields.into() }), ..with(csr(CART)) }
    };
    let table: Vec<(&str, IstioCertificateRequest, &str)> = vec![
        (
            "no metadata",
            IstioCertificateRequest { metadata: None, ..with(csr(CART)) },
            "ImpersonatedIdentity",
        ),
        ("no value", of_kind(None), "names no ImpersonatedIdentity"),
        ("a number", of_kind(Some(Kind::NumberValue(1.0))), "names no ImpersonatedIdentity"),
        ("another trust domain", named("spiffe://other.test/ns/shop/sa/cart"), "trust domain mesh.test"),
        ("nothing", named(""), "is no SPIFFE ID"),
        ("no SPIFFE ID", named("https://mesh.test/ns/shop/sa/cart"), "is no SPIFFE ID"),
        ("no workload's", named("spiffe://mesh.test"), "is no SPIFFE ID"),
        ("dots", named("spiffe://mesh.test/ns/../sa/cart"), "is no SPIFFE ID"),
        ("more than a workload", named("spiffe://mesh.test/ns/shop/sa/cart/x"), "is no SPIFFE ID"),
        ("no service account's", named("spiffe://mesh.test/billing/api"), "service account's path"),
        ("two lines", named("spiffe://mesh.test/ns/shop/sa/cart\nspiffe"), "is no SPIFFE ID"),
        ("oversized", named(&format!("spiffe://mesh.test/ns/shop/sa/{}", "x".repeat(30_000))), "bytes)"),
        ("for somebody else", with(csr(TILL)), ""),
        ("a name more", own(|p| p.subject_alt_names.push(uri(TILL))), ""),
        (
            "a host name too",
            own(|p| p.subject_alt_names.push(SanType::DnsName("a.test".try_into().unwrap()))),
            "",
        ),
        ("an authority", own(|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)), ""),
        ("no CSR", with(String::new()), ""),
        ("garbage", with("x".repeat(1000)), ""),
        (
            "garbage in PEM",
            with("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".into()),
            "",
        ),
        ("negative", lasting(-1), "negative"),
        ("most negative", lasting(i64::MIN), "negative"),
    ];
    let count = table.len() as u64;
    for (what, message, why) in table {
        let refused = w.send(message).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
        assert!(refused.message().contains(why), "{what}: {refused}");
        assert!(refused.message().len() < 1024, "{what}: {} bytes", refused.message().len());
    }
    assert_eq!(w.counted(r#"underpass_ca_requests_total{result="bad_request"}"#), count);
    assert!(w.ask(&w.n1, CART).await.is_ok());
}

#[tokio::test]
async fn a_lifetime_is_capped_and_none_is_the_usual() {
    let w = World::start().await;
    for (seconds, expected) in [(0, DAY), (60, Duration::from_secs(60)), (i64::MAX, DAY)] {
        let asked = IstioCertificateRequest { validity_duration: seconds, ..message(CART, csr(CART)) };
        let chain = w.send(asked).await.unwrap().cert_chain;
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
        let validity = pem.parse_x509().unwrap().validity().clone();
        let (start, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let left = end - i64::try_from(now.as_secs()).unwrap();
        let expected = i64::try_from(expected.as_secs()).unwrap();
        assert!((expected - 120..=expected).contains(&left), "{seconds} gave {left}");
        let before = end - left - start;
        assert!((0..=(expected / 4).min(120) + 1).contains(&before), "{seconds}: backdated by {before}");
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_not_read() {
    let w = World::start().await;
    let channel = w.channel(Some(&w.n1.shows()));
    let refused = ask(channel.clone(), message(CART, "x".repeat(REQUEST))).await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");
    assert!(ask(channel, message(CART, csr(CART))).await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn an_authority_out_of_its_time_signs_nothing() {
    let w = World::start().await;
    for (days, why) in [(4000, "ended"), (-400, "valid in")] {
        w.ahead.store(days * 24 * 3600, Ordering::SeqCst);
        let refused = w.ask(&w.n1, CART).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(why), "{refused}");
    }
    w.ahead.store(0, Ordering::SeqCst);
    assert!(w.ask(&w.n1, CART).await.is_ok());
    assert_eq!(w.counted(r#"underpass_ca_requests_total{result="authority"}"#), 2);
}

#[tokio::test]
async fn serial_numbers_are_those_of_nobody_else() {
    let w = World::start().await;
    let channel = w.channel(Some(&w.n1.shows()));
    let asked = (0..64).map(|_| ask(channel.clone(), message(CART, csr(CART))));
    let issued = futures::future::join_all(asked).await;
    let serials: BTreeSet<String> = issued
        .into_iter()
        .map(|answer| {
            let chain = answer.unwrap().cert_chain;
            let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
            pem.parse_x509().unwrap().raw_serial_as_string()
        })
        .collect();
    assert_eq!(serials.len(), 64);
}

/// The server's own certificate follows the authority, without a restart and for those who only know what
/// they should.
#[tokio::test]
async fn the_servers_certificate_changes_with_the_authority() {
    let w = World::start().await;
    let (ca, now) = (w.scratch.join("ca"), SystemTime::now());
    let old = w.roots();
    let make = |root: &str| {
        hierarchy::make_intermediate(&w.scratch.join(root), &ca, &domain(), INTERMEDIATE_LIFETIME, now)
            .unwrap();
    };
    make("root");
    w.authority.reload().unwrap();
    eventually(|| async { w.server_rests_on(&old).await }).await;
    assert!(w.ask(&w.n1, CART).await.is_ok(), "another issuing certificate under the same root");

    hierarchy::make_root(&w.scratch.join("root-2"), Some(&domain()), ROOT_LIFETIME, now).unwrap();
    let new = std::fs::read_to_string(w.scratch.join("root-2").join("root-cert.pem")).unwrap();
    let both = format!("{old}{new}");
    std::fs::write(ca.join("root-cert.pem"), &both).unwrap();
    w.authority.reload().unwrap();
    for roots in [&old, &both] {
        assert!(w.server_rests_on(roots).await, "both roots are trusted, the old one still signs");
    }
    make("root-2");
    std::fs::write(ca.join("root-cert.pem"), &both).unwrap();
    w.authority.reload().unwrap();
    eventually(|| async { w.server_rests_on(&new).await }).await;
    assert!(w.server_rests_on(&both).await && !w.server_rests_on(&old).await);
    assert!(w.ask(&w.n1, CART).await.is_ok());
}

/// Of n1 it never says what runs there.
struct Silent(Nodes);

impl Attestor for Silent {
    fn who<'a>(&'a self, papers: &'a Papers) -> BoxFuture<'a, Result<NodeName, Refusal>> {
        self.0.who(papers)
    }

    fn runs<'a>(&'a self, node: &'a NodeName, identity: &'a SpiffeId) -> BoxFuture<'a, Result<(), Refusal>> {
        match node.as_str() {
            "n1" => std::future::pending().boxed(),
            _ => self.0.runs(node, identity),
        }
    }

    fn expected(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
        self.0.expected()
    }

    fn changes(&self) -> Changes {
        self.0.changes()
    }
}

#[tokio::test]
async fn whoever_waits_for_what_a_node_runs_keeps_nobody_from_signing() {
    let mut list = None;
    let w = World::with(|service| {
        let (send, nodes) = watch::channel(Vec::new());
        service.attestor = Arc::new(Silent(Nodes::new(nodes)));
        list = Some(send);
    })
    .await;
    list.unwrap().send_replace(w.list.borrow().clone());
    let channel = w.channel(Some(&w.n1.shows()));
    let mut waiting: futures::stream::FuturesUnordered<_> =
        (0..48).map(|_| ask(channel.clone(), message(CART, csr(CART)))).collect();
    for _ in 0..10 {
        tokio::select! {
            answer = futures::StreamExt::next(&mut waiting) => panic!("n1 got {answer:?}"),
            answer = w.ask(&w.n2, TILL) => assert!(answer.is_ok(), "{answer:?}"),
        }
    }
}

impl World {
    async fn server_rests_on(&self, roots: &str) -> bool {
        let tls = Arc::new(client(roots, Some(&self.n1.shows())));
        in_time(Dial { tls, ..self.dial(None) }.tls()).await.is_ok()
    }
}

async fn eventually<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    in_time(async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
