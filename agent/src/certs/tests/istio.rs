//! Certificates from an authority over gRPC: one that does as it should, and many that do not.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use rcgen::SanType;
use rustls_pki_types::pem::PemObject;
use tonic::Status;
use x509_parser::prelude::{FromDer, ParsedExtension, X509CertificationRequest};

use super::istio_server::{Answer, Asked, Hierarchy, Server, config, showing};
use super::support::{CART, Scratch, id};
use crate::certs::istio::request;
use crate::certs::keeping::SecretKey;
use crate::certs::{
    CertError, Config, Identity, Issuer, IstioConfig, IstioIssuer, Manager, TrustConfig, TrustFiles,
};
use crate::tls::testing::{Authority, uri};
use crate::tls::{TlsError, provider};

const TOKEN: &str = "eyJ.first.token";

#[tokio::test]
async fn a_certificate_is_asked_for_as_istiod_expects_it() {
    let place = Place::new();
    let server = place.server(Hierarchy::new()).await;
    let identity = manage(IstioConfig {
        cert_signer: Some("clusterissuers.cert-manager.io/ours".into()),
        headers: [("x-tenant".into(), "blue".into())].into(),
        ..server.config(&place.scratch)
    });
    let identity = identity.await.unwrap();
    assert_eq!(identity.certificate().identity(), &id(CART));
    assert_eq!(identity.certificate().chain().len(), 2, "the leaf and what is between it and a root");
    assert_eq!(identity.trust().now().bundles.roots(&"mesh.test".parse().unwrap()).count(), 2);

    let asked = server.asked.lock().unwrap()[0].clone();
    assert_eq!(asked.authorization, format!("Bearer {TOKEN}"));
    assert_eq!(asked.cluster, "east");
    assert_eq!(asked.identity, CART);
    assert_eq!(asked.signer, "clusterissuers.cert-manager.io/ours");
    assert_eq!(asked.tenant, "blue");
    assert_eq!(asked.seconds, 7200);
    check_csr(&asked.csr);
}

/// As an authority does: its key proves itself, and it has one critical URI SAN and nothing else.
fn check_csr(pem: &str) {
    let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (rest, csr) = X509CertificationRequest::from_der(&der).unwrap();
    assert!(rest.is_empty());
    let info = &csr.certification_request_info;
    assert_eq!(info.subject.iter().count(), 0);
    assert_eq!(csr.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2", "ecdsa-with-SHA256");
    let p256 = rustls::SignatureScheme::ECDSA_NISTP256_SHA256;
    let mapping = provider().signature_verification_algorithms.mapping;
    let (_, algorithms) = mapping.iter().find(|(scheme, _)| *scheme == p256).unwrap();
    let key = &info.subject_pki.subject_public_key.data;
    assert!(algorithms[0].verify_signature(key, info.raw, &csr.signature_value.data).is_ok());

    let extensions: Vec<_> = info
        .iter_attributes()
        .filter_map(|a| match a.parsed_attribute() {
            x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(r) => Some(&r.extensions),
            _ => None,
        })
        .flatten()
        .collect();
    let [san] = extensions[..] else { panic!("{extensions:?}") };
    assert!(san.critical);
    let ParsedExtension::SubjectAlternativeName(names) = san.parsed_extension() else { panic!("{san:?}") };
    assert_eq!(names.general_names, [x509_parser::extensions::GeneralName::URI(CART)]);
}

#[tokio::test]
async fn each_call_has_a_fresh_key_and_the_token_of_now_on_one_connection() {
    let place = Place::new();
    let server = place.server(Hierarchy::new()).await;
    let issuer = IstioIssuer::new(server.config(&place.scratch)).unwrap();
    let first = issuer.issue(&id(CART)).await.unwrap();
    place.write("token", "eyJ.second.token\n");
    let second = issuer.issue(&id(CART)).await.unwrap();
    assert_ne!(first.key.secret_der(), second.key.secret_der());
    let tokens: Vec<String> =
        server.asked.lock().unwrap().iter().map(|asked| asked.authorization.clone()).collect();
    assert_eq!(tokens, [format!("Bearer {TOKEN}"), "Bearer eyJ.second.token".into()]);
    assert_eq!(server.connections(), 1);

    for (token, expected) in
        [(Some(" \n"), "is empty"), (Some("a\nb"), "holds what no token"), (None, "cannot read")]
    {
        match token {
            Some(token) => place.write("token", token),
            None => fs::remove_file(place.scratch.path().join("token")).unwrap(),
        }
        let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("/token"), "{error}");
    }
    assert_eq!(server.asked.lock().unwrap().len(), 2, "nobody is asked without a token");
}

#[tokio::test]
async fn a_refusal_names_who_asked_and_what_was_said() {
    let place = Place::new();
    let said = "request impersonation authentication failure";
    let server = place.server_that(move |_| answer(Err(Status::unauthenticated(said)))).await;
    let issuer = IstioIssuer::new(server.config(&place.scratch)).unwrap();
    let error = issuer.issue(&id(CART)).await.unwrap_err();
    assert!(matches!(error, CertError::Refused { .. }), "{error:?}");
    let error = error.to_string();
    for part in [
        "Unauthenticated",
        said,
        CART,
        "node-1",
        "istio-system/underpass-x7",
        "service account underpass",
        &server.address.to_string(),
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    // The authority answered, so its connection is sound.
    issuer.issue(&id(CART)).await.unwrap_err();
    assert_eq!(server.connections(), 1);

    let foreign = issuer.issue(&id("spiffe://other.test/ns/shop/sa/cart")).await.unwrap_err();
    assert!(matches!(foreign, CertError::Refused { .. }), "{foreign}");
    assert_eq!(server.asked.lock().unwrap().len(), 2, "another trust domain is not even asked for");
}

#[tokio::test]
async fn what_the_server_says_is_escaped_and_shortened() {
    let place = Place::new();
    let server = place
        .server_that(|_| answer(Err(Status::internal("line\nfeed".to_owned() + &"x".repeat(3000)))))
        .await;
    let issuer = IstioIssuer::new(server.config(&place.scratch)).unwrap();
    let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
    assert!(error.contains(r"line\nfeed") && !error.contains('\n') && error.len() < 1000, "{error}");
}

#[tokio::test]
async fn an_authority_that_is_down_is_told_and_asked_again() {
    let place = Place::new();
    place.write("root-cert.pem", &place.root.pem);
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let issuer = IstioIssuer::new(config(free, place.scratch.path())).unwrap();
    let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
    for part in ["Unavailable", "refused", &free.to_string(), "node-1", "up and reachable"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[tokio::test]
async fn an_authority_that_hangs_costs_one_deadline_and_its_connection() {
    let place = Place::new();
    let hierarchy = Hierarchy::new();
    let calls = Mutex::new(0);
    let server = place
        .server_that(move |asked| {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            if *calls == 1 { futures::future::pending().boxed() } else { answer(Ok(hierarchy.issue(&asked))) }
        })
        .await;
    let deadline = Duration::from_millis(500);
    let issuer = IstioIssuer::new(IstioConfig { deadline, ..server.config(&place.scratch) }).unwrap();
    let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 0.5 s") && error.contains("underpass-x7"), "{error}");
    // The connection may be dead: the next call has another.
    issuer.issue(&id(CART)).await.unwrap();
    assert_eq!(server.connections(), 2);
}

type Expected = fn(&CertError) -> bool;
type Hostile = Box<dyn Fn(&Hierarchy, &Asked) -> Vec<String> + Send + Sync>;

#[tokio::test]
async fn answers_that_are_none_are_refused() {
    let far = |seconds: i64| {
        let by = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        if seconds < 0 { now - by } else { now + by }
    };
    let hostile: Vec<(&str, Hostile, Expected)> = vec![
        (
            "a chain under roots of somebody else",
            Box::new(|h, asked| {
                let mut chain = h.issue(asked);
                chain[2] = Authority::root().pem;
                chain
            }),
            |e| matches!(e, CertError::Certificate(TlsError::Chain { .. })),
        ),
        (
            "no intermediate",
            Box::new(|h, asked| {
                let mut chain = h.issue(asked);
                chain.remove(1);
                chain
            }),
            |e| matches!(e, CertError::Certificate(TlsError::Chain { .. })),
        ),
        (
            "somebody else's identity",
            Box::new(|h, asked| {
                h.issue_with(asked, |leaf| {
                    leaf.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/till")]
                })
            }),
            |e| matches!(e, CertError::OtherIdentity { .. }),
        ),
        (
            "two identities",
            Box::new(|h, asked| {
                h.issue_with(asked, |leaf| {
                    leaf.subject_alt_names.push(uri("spiffe://mesh.test/ns/shop/sa/till"))
                })
            }),
            |e| matches!(e, CertError::Certificate(TlsError::UriSans { .. })),
        ),
        (
            "expired",
            Box::new(move |h, asked| h.issue_with(asked, |leaf| leaf.not_after = far(-30).into())),
            |e| matches!(e, CertError::ExpiredOnArrival { .. }),
        ),
        (
            "not yet valid",
            Box::new(move |h, asked| h.issue_with(asked, |leaf| leaf.not_before = far(1800).into())),
            |e| matches!(e, CertError::NotYet { .. }),
        ),
        (
            "another key's",
            Box::new(|h, asked| {
                let key = rcgen::KeyPair::generate().unwrap();
                let leaf = crate::tls::testing::leaf_params(&asked.identity);
                let mut chain = h.issue(asked);
                chain[0] = h.intermediate.sign(&leaf, &key);
                chain
            }),
            |e| matches!(e, CertError::Certificate(TlsError::Key { .. })),
        ),
        ("nothing", Box::new(|_, _| Vec::new()), is_answer),
        ("a leaf alone", Box::new(|h, asked| h.issue(asked)[..1].to_vec()), is_answer),
        ("empty elements", Box::new(|_, _| vec![String::new(); 3]), is_answer),
        (
            "a leaf as its own root",
            Box::new(|h, asked| {
                let leaf = h.issue(asked).remove(0);
                vec![leaf.clone(), leaf]
            }),
            is_answer,
        ),
        (
            "garbage in PEM",
            Box::new(|h, asked| {
                let mut chain = h.issue(asked);
                chain[0] = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n".into();
                chain
            }),
            is_answer,
        ),
        (
            "garbage that PEM can carry",
            Box::new(|h, asked| {
                let mut chain = h.issue(asked);
                chain[2] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into();
                chain
            }),
            is_answer,
        ),
        (
            "a long chain",
            Box::new(|h, asked| {
                let mut chain = h.issue(asked);
                (0..15).for_each(|_| chain.insert(1, h.intermediate.pem.clone()));
                chain
            }),
            is_answer,
        ),
        ("more than is read", Box::new(|_, _| vec!["x".repeat(600 << 10); 2]), |e| {
            is_answer(e) && e.to_string().contains("message length too large")
        }),
    ];
    for (what, hostile, expected) in hostile {
        let (place, hierarchy) = (Place::new(), Hierarchy::new());
        let server = place.server_that(move |asked| answer(Ok(hostile(&hierarchy, &asked)))).await;
        let error = manage(server.config(&place.scratch)).await.unwrap_err();
        assert!(expected(&error), "{what} gave {error:?}");
        assert_eq!(server.connections(), 1, "{what}");
    }
}

fn is_answer(error: &CertError) -> bool {
    matches!(error, CertError::Answer(_))
}

#[tokio::test]
async fn replaced_roots_count_from_the_next_call_on() {
    let place = Place::new();
    let server = place.server(Hierarchy::new()).await;
    let issuer = IstioIssuer::new(server.config(&place.scratch)).unwrap();
    issuer.issue(&id(CART)).await.unwrap();

    // Also for a connection that was made before: it is not used again.
    place.write("root-cert.pem", &Authority::root().pem);
    let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert_eq!(server.asked.lock().unwrap().len(), 1, "a stranger is not shown the token");

    place.write("root-cert.pem", &format!("{}{}", Authority::root().pem, place.root.pem));
    issuer.issue(&id(CART)).await.unwrap();
    assert_eq!(server.connections(), 2);

    for text in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        place.write("root-cert.pem", text);
        let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
        assert!(error.contains("root-cert.pem cannot be used"), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_rests_on_replaced_roots_ends_without_a_call() {
    let place = Place::new();
    let server = place.server(Hierarchy::new()).await;
    let issuer = IstioIssuer::new(server.config(&place.scratch)).unwrap();
    for text in [Authority::root().pem, "nothing".into()] {
        place.write("root-cert.pem", &place.root.pem);
        issuer.issue(&id(CART)).await.unwrap();
        assert_eq!(server.open(), 1);
        place.write("root-cert.pem", &text);
        let ended = async {
            while server.open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it is still open");
    }
    assert_eq!(server.asked.lock().unwrap().len(), 2);
}

/// A stolen intermediate can vouch for a server as well as for a workload.
#[tokio::test]
async fn an_authority_under_a_revoked_intermediate_is_refused_and_one_under_another_is_taken() {
    let place = Place::new();
    let (stolen, sound) = (place.root.intermediate(|_| {}), place.root.intermediate(|_| {}));
    // Of the same name, but by another key: it counts for nobody here.
    let foreign = Authority::root().list(&[&sound.certificate], 30);
    let lists = [
        place.list("ours.crl", place.root.list(&[&stolen.certificate], 60)),
        place.list("foreign.crl", foreign),
    ];
    let trust =
        TrustFiles::open(&TrustConfig { revocation_lists: lists.into(), ..TrustConfig::default() }).unwrap();
    for (under, taken) in [(&stolen, false), (&sound, true)] {
        let server = place.server_under(under).await;
        let config = IstioConfig { trust: trust.clone(), ..server.config(&place.scratch) };
        let issued = IstioIssuer::new(config).unwrap().issue(&id(CART)).await;
        match issued {
            Ok(_) => assert!(taken),
            Err(error) => {
                let said = error.to_string();
                assert!(
                    !taken && said.contains("\"CN=test intermediate\", in the chain of the server 127."),
                    "{said}"
                );
                assert!(said.contains("is revoked by its issuer"), "{said}");
            }
        }
        assert_eq!(
            server.asked.lock().unwrap().len(),
            usize::from(taken),
            "an impostor is not shown the token"
        );
    }
}

#[tokio::test]
async fn a_connection_to_an_authority_that_was_revoked_ends_without_a_call() {
    let place = Place::new();
    let stolen = place.root.intermediate(|_| {});
    let list = place.list("ours.crl", place.root.list(&[], 60));
    let config = TrustConfig { revocation_lists: vec![list], ..TrustConfig::default() };
    let trust = TrustFiles::open(&config).unwrap();
    tokio::spawn(trust.clone().follow());
    let server = place.server_under(&stolen).await;
    let issuer = IstioIssuer::new(IstioConfig { trust, ..server.config(&place.scratch) }).unwrap();
    issuer.issue(&id(CART)).await.unwrap();
    assert_eq!(server.open(), 1);
    place.list("ours.crl", place.root.list(&[&stolen.certificate], 30));
    let ended = async {
        while server.open() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it is still open");
    let error = issuer.issue(&id(CART)).await.unwrap_err().to_string();
    assert!(error.contains("is revoked by its issuer"), "{error}");
    assert_eq!(server.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_server_must_have_the_address_s_name_or_one_of_the_alternatives() {
    let place = Place::new();
    let name = SanType::DnsName("istiod.test".try_into().unwrap());
    let hierarchy = Hierarchy::new();
    place.write("root-cert.pem", &place.root.pem);
    let server = Server::start(&place.root, name, move |asked| answer(Ok(hierarchy.issue(&asked)))).await;
    let table: [(&[&str], bool); 6] = [
        (&[], false),
        (&["other.test"], false),
        (&["other.test", "test", "istiod.test.other", "192.0.2.1"], false),
        (&["istiod.test"], true),
        (&["istiod.test", "other.test"], true),
        (&["other.test", "192.0.2.1", "istiod.test"], true),
    ];
    for (alternative, sound) in table {
        let alternative_host_names = alternative.iter().map(|name| (*name).to_owned()).collect();
        let config = IstioConfig { alternative_host_names, ..server.config(&place.scratch) };
        let issued = IstioIssuer::new(config).unwrap().issue(&id(CART)).await;
        match issued {
            Ok(_) => assert!(sound, "{alternative:?}"),
            Err(error) => {
                assert!(
                    !sound && error.to_string().contains("not valid for name"),
                    "{alternative:?}: {error}"
                );
            }
        }
    }
    assert_eq!(server.asked.lock().unwrap().len(), 3);

    // A name does not stand in for a root: every other fault of the certificate stays one.
    place.write("root-cert.pem", &Authority::root().pem);
    let alternative_host_names = vec!["other.test".to_owned(), "istiod.test".to_owned()];
    let config = IstioConfig { alternative_host_names, ..server.config(&place.scratch) };
    let error = IstioIssuer::new(config).unwrap().issue(&id(CART)).await.unwrap_err().to_string();
    assert!(!error.contains("not valid for name"), "{error}");
    assert_eq!(server.asked.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn no_secret_is_shown_or_logged() {
    let log = Log::default();
    // While there is only one subscriber, tracing asks whichever thread comes to a line first whether the line
    // is wanted at all, and another test's thread has none.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let subscriber = {
        let log = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || log.clone())
            .finish()
    };
    let _guard = tracing::subscriber::set_default(subscriber);
    let place = Place::new();
    let server = place.server(Hierarchy::new()).await;
    let issuer = IstioIssuer::new(server.config(&place.scratch)).unwrap();
    let issued = issuer.issue(&id(CART)).await.unwrap();
    let text = format!("{issuer:?} {issued:?} {}", String::from_utf8_lossy(&log.0.lock().unwrap()));
    assert!(text.contains("HEADERS") || text.contains("Headers"), "the log shows the connection: {text}");
    let key = SecretKey::generate().unwrap();
    let request = request::make(&server.config(&place.scratch), &key, &id(CART)).await.unwrap();
    let text = format!("{text} {request:?}");
    assert!(!text.contains(TOKEN) && !text.contains("PRIVATE KEY"), "{text}");
    assert!(!text.contains(&format!("{:?}", issued.key.secret_der())), "{text}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The files that the issuer reads, and the root of the server's certificate.
pub(super) struct Place {
    pub(super) scratch: Scratch,
    pub(super) root: Authority,
}

impl Place {
    pub(super) fn new() -> Self {
        let place = Self { scratch: Scratch::new(), root: Authority::root() };
        place.write("token", TOKEN);
        place
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.scratch.path().join(name), text).unwrap();
    }

    pub(super) fn list(&self, name: &str, list: Vec<u8>) -> PathBuf {
        let path = self.scratch.path().join(name);
        fs::write(&path, list).unwrap();
        path
    }

    /// Its certificate is signed by `intermediate`, which is under the root.
    async fn server_under(&self, intermediate: &Authority) -> Server {
        self.write("root-cert.pem", &self.root.pem);
        let leaf = intermediate.leaf("spiffe://unused/ns/a/sa/b", |leaf| {
            leaf.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        });
        let tls = showing(&leaf.with(intermediate), &[b"h2"]);
        let hierarchy = Hierarchy::new();
        let script = move |asked: Asked| answer(Ok(hierarchy.issue(&asked)));
        Server::with_tls((Ipv4Addr::LOCALHOST, 0).into(), tls, script).await
    }

    pub(super) async fn server(&self, hierarchy: Hierarchy) -> Server {
        self.server_that(move |asked| answer(Ok(hierarchy.issue(&asked)))).await
    }

    pub(super) async fn server_that(
        &self,
        script: impl Fn(Asked) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Server {
        self.write("root-cert.pem", &self.root.pem);
        let address = SanType::IpAddress(Ipv4Addr::LOCALHOST.into());
        Server::start(&self.root, address, script).await
    }
}

pub(super) fn answer(answer: Answer) -> BoxFuture<'static, Answer> {
    futures::future::ready(answer).boxed()
}

/// As the agent uses the issuer: the manager judges what comes back.
async fn manage(config: IstioConfig) -> Result<Arc<Identity>, CertError> {
    let manager = Manager::new(Arc::new(IstioIssuer::new(config).unwrap()), &Config::default());
    manager.lease(&id(CART)).ready().await
}
