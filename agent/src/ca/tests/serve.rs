//! What the certificate service decides, in which order, and what of it callers, the log's reader and the
//! metrics are told. It is called as its port calls it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::{Code, Request, Status};
use underpass_proto::istio::v1::auth::IstioCertificateRequest;
use underpass_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use underpass_proto::well_known::value::Kind;
use underpass_proto::well_known::{Struct, Value};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::support::{CART, Lines, Scratch, id, open, request, uri, world};
use crate::ca::agents::Agents;
use crate::ca::attest::{Attestor, Changes, NodeName, Papers, Refusal};
use crate::ca::serve::{Metrics, Service};
use crate::certs::rfc3339;
use crate::model::SpiffeId;

const SECRET: &str = "what only the log may say";

/// A node's token is its name; every node runs the cart.
#[derive(Default)]
struct Tokens {
    worked_on: Mutex<Vec<String>>,
}

impl Attestor for Tokens {
    fn who<'a>(&'a self, papers: &'a Papers) -> BoxFuture<'a, Result<NodeName, Refusal>> {
        let said = match papers.token.as_deref() {
            Some("nobody") | None => Err(Refusal::Unknown(SECRET.into())),
            Some("silence") => Err(Refusal::Unavailable("nobody answers".into())),
            Some(node) => Ok(NodeName::proven(node)),
        };
        std::future::ready(said).boxed()
    }

    fn runs<'a>(&'a self, node: &'a NodeName, identity: &'a SpiffeId) -> BoxFuture<'a, Result<(), Refusal>> {
        async move {
            self.worked_on.lock().unwrap().push(node.to_string());
            // Others have their chance, as while a real one asks somebody.
            tokio::task::yield_now().await;
            if *identity == id(CART) { Ok(()) } else { Err(Refusal::NotYours("it does not run here".into())) }
        }
        .boxed()
    }

    fn expected(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn changes(&self) -> Changes {
        stream::pending().boxed()
    }
}

struct Place {
    service: Service,
    tokens: Arc<Tokens>,
    metrics: Metrics,
    _scratch: Scratch,
}

impl Place {
    fn new() -> Self {
        let scratch = world();
        let (tokens, metrics) = (Arc::new(Tokens::default()), Metrics::new().unwrap());
        let attestor: Arc<dyn Attestor> = tokens.clone();
        let service =
            Service::new(open(&scratch), attestor, Agents::default(), metrics.clone(), Duration::ZERO);
        Self { service, tokens, metrics, _scratch: scratch }
    }

    async fn ask(&self, token: &str, message: IstioCertificateRequest) -> Result<Vec<String>, Status> {
        ask(&self.service, token, message).await
    }

    fn counted(&self, result: &str) -> u64 {
        let text = self.metrics.text(0, 0).unwrap();
        let begin = format!("underpass_ca_requests_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&begin)).map_or(0, |n| n.parse().unwrap())
    }
}

async fn ask(
    service: &Service,
    token: &str,
    message: IstioCertificateRequest,
) -> Result<Vec<String>, Status> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    Ok(service.create_certificate(service.let_in(request).await?).await?.into_inner().cert_chain)
}

fn asking(csr: &str, identity: Kind, seconds: i64) -> IstioCertificateRequest {
    let field = ("ImpersonatedIdentity".to_owned(), Value { kind: Some(identity) });
    IstioCertificateRequest {
        csr: csr.into(),
        validity_duration: seconds,
        metadata: Some(Struct { fields: BTreeMap::from([field]) }),
    }
}

fn for_the(identity: &str) -> Kind {
    Kind::StringValue(identity.into())
}

#[tokio::test]
async fn whoever_gets_nothing_is_told_what_to_look_at_and_counted() {
    let (place, key) = (Place::new(), KeyPair::generate().unwrap());
    let good = request(&key, |_| {});
    let foreign =
        request(&key, |csr| csr.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/till")]);
    let ask = |identity| asking(&good, identity, 3600);
    let refused = [
        ("", ask(for_the(CART)), Code::Unauthenticated, "unknown_caller", "controller's log"),
        ("nobody", ask(for_the(CART)), Code::Unauthenticated, "unknown_caller", "controller's log"),
        ("silence", ask(for_the(CART)), Code::Unavailable, "unavailable", "nobody answers"),
        (
            "n1",
            ask(for_the("spiffe://mesh.test/ns/shop/sa/till")),
            Code::PermissionDenied,
            "not_its_own",
            "does not run here",
        ),
        (
            "n1",
            ask(for_the("spiffe://other.test/ns/shop/sa/cart")),
            Code::InvalidArgument,
            "bad_request",
            "trust domain",
        ),
        (
            "n1",
            ask(for_the("spiffe://mesh.test/ns/shop/sa/cart/x")),
            Code::InvalidArgument,
            "bad_request",
            "SPIFFE",
        ),
        ("n1", ask(for_the("")), Code::InvalidArgument, "bad_request", "SPIFFE"),
        ("n1", ask(Kind::NumberValue(1.0)), Code::InvalidArgument, "bad_request", "ImpersonatedIdentity"),
        (
            "n1",
            IstioCertificateRequest { metadata: None, ..ask(for_the(CART)) },
            Code::InvalidArgument,
            "bad_request",
            "ImpersonatedIdentity",
        ),
        ("n1", asking(&foreign, for_the(CART), 3600), Code::InvalidArgument, "bad_request", ""),
        ("n1", asking("no PEM", for_the(CART), 3600), Code::InvalidArgument, "bad_request", ""),
        ("n1", asking(&good, for_the(CART), -1), Code::InvalidArgument, "bad_request", "validity_duration"),
    ];
    for (token, message, code, result, told) in refused {
        let (what, before) = (format!("{token}: {message:?}"), place.counted(result));
        let status = place.ask(token, message).await.expect_err(&what);
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(status.message().contains(told) && !status.message().is_empty(), "{what}: {status}");
        assert!(!status.message().contains('\n') && !status.message().contains(SECRET), "{what}: {status}");
        assert_eq!(place.counted(result), before + 1, "{what}");
    }
    assert_eq!(place.counted("issued"), 0);

    let (lines, _log) = Lines::listen();
    let chain = place.ask("n1", ask(for_the(CART))).await.unwrap();
    let said = lines.take();
    let der = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let end = UNIX_EPOCH + Duration::from_secs(leaf.validity().not_after.timestamp() as u64);
    let end = format!("not_after=\"{}", rfc3339(end).trim_end_matches('Z'));
    let parts = ["certificate issued", "node=n1", CART, &end];
    assert!(said.len() == 1 && parts.iter().all(|part| said[0].contains(part)), "{said:?}");
    assert_eq!(chain.len(), 3, "leaf, intermediate, roots");
    assert_eq!(place.counted("issued"), 1);
}

/// The order of service is counted, not timed.
#[tokio::test]
async fn ten_thousand_requests_of_one_node_leave_another_node_its_turn() {
    let (place, key) = (Place::new(), KeyPair::generate().unwrap());
    let message = asking(&request(&key, |_| {}), for_the(CART), 3600);
    let ask_as = |node: &'static str| {
        let (service, message) = (place.service.clone(), message.clone());
        tokio::spawn(async move { ask(&service, node, message).await.map_err(|status| status.code()) })
    };
    let burst: Vec<_> = (0..10_000).map(|_| ask_as("greedy")).collect();
    ask_as("modest").await.unwrap().unwrap();
    let (mut issued, mut refused) = (0, 0);
    for asked in burst {
        match asked.await.unwrap() {
            Ok(_) => issued += 1,
            Err(code) => {
                assert_eq!(code, Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    let order = place.tokens.worked_on.lock().unwrap().clone();
    let place_of_modest = order.iter().position(|node| node == "modest").unwrap();
    assert!(place_of_modest <= 8, "{place_of_modest} of the burst came before the other node's one");
    assert!(issued >= 100 && issued + refused == 10_000, "{issued} issued, {refused} refused");
    assert_eq!(place.counted("too_many"), refused);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_nodes_requests_is_a_few_lines_and_hides_no_others() {
    let (place, key) = (Place::new(), KeyPair::generate().unwrap());
    let good = request(&key, |_| {});
    let foreign = || asking(&good, for_the("spiffe://mesh.test/ns/shop/sa/till"), 3600);
    let (lines, _log) = Lines::listen();
    for _ in 0..1000 {
        place.ask("greedy", foreign()).await.unwrap_err();
    }
    let said = lines.take();
    assert_eq!(said.len(), 5, "{said:?}");
    assert!(said.iter().all(|line| line.contains("node=greedy") && line.contains("not_its_own")), "{said:?}");
    place.ask("modest", foreign()).await.unwrap_err();
    place.ask("greedy", asking("no PEM", for_the(CART), 3600)).await.unwrap_err();
    let said = lines.take();
    assert_eq!(said.len(), 2, "another node, and another result: {said:?}");
    tokio::time::sleep(Duration::from_secs(20)).await;
    let said = lines.take();
    assert!(
        said.len() == 1 && said[0].contains("left_out=995") && said[0].contains("node=greedy"),
        "{said:?}"
    );
    assert_eq!(place.counted("not_its_own"), 1001);
}
