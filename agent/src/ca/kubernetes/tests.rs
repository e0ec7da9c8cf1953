#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::fake::{Fake, Fault, told};
use super::*;
use crate::ca::attest::{
    Attestor, Both, Kubernetes, KubernetesApi, KubernetesConfig, ListedNode, Nodes, Papers, PublicKeyPin,
    Refusal, ServiceAccount,
};
use crate::ca::hierarchy::{INTERMEDIATE_LIFETIME, ROOT_LIFETIME, make_intermediate, make_root};
use crate::ca::publish::{Place, PlaceError, Places};
use crate::ca::tests::support::{Scratch, domain, world};
use crate::ca::{Authority, AuthorityConfig, Source};
use crate::certs::Clock;

const SECRET: &str = "/api/v1/namespaces/istio-system/secrets/cacerts";
const FILES: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];

fn name() -> SecretName {
    "istio-system/cacerts".parse().unwrap()
}

async fn cluster(fake: &Fake, scratch: &Scratch) -> Cluster {
    let mut cluster = Cluster::connect(Some(&fake.kubeconfig(scratch.path(), None))).await.unwrap();
    cluster.patience.answer = Duration::from_secs(5);
    cluster
}

fn base64(bytes: &[u8]) -> Value {
    serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())).unwrap()
}

/// A secret with the files of a folder.
fn secret_of(folder: &Path) -> Value {
    let data: BTreeMap<_, _> =
        FILES.iter().map(|name| (*name, base64(&std::fs::read(folder.join(name)).unwrap()))).collect();
    json!({ "kind": "Secret", "metadata": { "labels": { "kept": "yes" } }, "data": data })
}

fn cacerts(fake: &Fake, world: &Scratch) {
    fake.put(SECRET, secret_of(&world.join("ca")));
}

#[tokio::test]
async fn a_secret_is_read_and_changed_only_if_nobody_else_has() {
    let (fake, world) = (Fake::start(), world());
    cacerts(&fake, &world);
    let cluster = cluster(&fake, &world).await;
    let held = cluster.secret(&name()).await.unwrap();
    for file in FILES {
        assert_eq!(*held.keys[file], std::fs::read(world.join("ca").join(file)).unwrap(), "{file}");
    }
    let bytes: Vec<u8> = (0..=255).collect();
    let mut changes = BTreeMap::from([("gone".to_owned(), None), ("cert-chain.pem".to_owned(), None)]);
    for n in 0..4 {
        changes.insert(format!("new-{n}"), Some(Zeroizing::new(bytes[n..].to_vec())));
    }
    let version = cluster.change_secret(&name(), &held.version, &changes).await.unwrap();
    let after = cluster.secret(&name()).await.unwrap();
    assert_eq!(after.version, version);
    for n in 0..4 {
        assert_eq!(*after.keys[&format!("new-{n}")], bytes[n..]);
    }
    assert!(!after.keys.contains_key("cert-chain.pem") && after.keys.contains_key("ca-key.pem"));
    assert_eq!(fake.get(SECRET).unwrap()["metadata"]["labels"]["kept"], "yes");

    let late = cluster.change_secret(&name(), &held.version, &changes).await.unwrap_err();
    assert!(matches!(late, CallError::Conflict(_)), "{late}");
    assert!(late.to_string().starts_with("patch secrets istio-system/cacerts: 409 Conflict"), "{late}");
    let asked = fake.asked("GET");
    assert_eq!(asked[0].authorization, "Bearer let-me-in");
}

#[tokio::test]
async fn what_is_refused_names_the_call_and_what_to_allow() {
    let (fake, scratch) = (Fake::start(), Scratch::new());
    let cluster = cluster(&fake, &scratch).await;
    let ask = || async { cluster.secret(&name()).await.map(drop).unwrap_err() };
    assert!(matches!(ask().await, CallError::Absent(_)));
    let with = |status, text: &str| {
        let fault = Fault { body: text.into(), ..Fault::new("secrets", status) };
        fake.fail(fault);
    };
    with(403, &told(403, "Forbidden", "secrets \"cacerts\" is forbidden"));
    assert_eq!(
        ask().await.to_string(),
        "get secrets istio-system/cacerts: 403 Forbidden: secrets \"cacerts\" is forbidden; a Role in istio-system \
         has to allow apiGroups [\"\"], resources [secrets], resourceNames [cacerts], verbs [get]"
    );
    with(401, &told(401, "Unauthorized", "Unauthorized"));
    assert!(ask().await.to_string().contains("the token or certificate is not accepted"));
    with(404, "404 page not found");
    let error = ask().await;
    assert!(matches!(&error, CallError::Failed(why) if why.contains("does not serve /v1")), "{error}");
    with(500, "<html>proxy</html>");
    assert_eq!(ask().await.to_string(), "get secrets istio-system/cacerts: 500 Internal Server Error");
    // Nobody there at all.
    let gone = fake.kubeconfig(scratch.path(), None);
    drop(fake);
    let error = Cluster::connect(Some(&gone)).await.unwrap().secret(&name()).await.map(drop).unwrap_err();
    let said = error.to_string();
    assert!(said.starts_with("get secrets istio-system/cacerts: ") && said.contains("refused"), "{said}");
    assert!(said.ends_with("is the API server up, and can it be reached from here?"), "{said}");
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_says_and_a_silent_one_not_for_ever() {
    let (fake, world) = (Fake::start(), world());
    cacerts(&fake, &world);
    let mut cluster = cluster(&fake, &world).await;
    fake.fail(Fault { times: 2, header: Some(("retry-after", "1")), ..Fault::new("secrets", 429) });
    let begun = std::time::Instant::now();
    cluster.secret(&name()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2), "it was asked again before its time");
    assert_eq!(fake.asked("secrets").len(), 3);

    cluster.patience.answer = Duration::from_millis(200);
    fake.fail(Fault { delay: Duration::from_secs(60), ..Fault::new("secrets", 200) });
    let error = cluster.secret(&name()).await.map(drop).unwrap_err().to_string();
    assert!(
        error.starts_with("get secrets istio-system/cacerts: the API server did not answer within 200ms")
    );
    fake.fail(Fault { times: 100, header: Some(("retry-after", "60")), ..Fault::new("secrets", 429) });
    assert!(cluster.secret(&name()).await.is_err(), "it waits as long as the server likes");
}

#[tokio::test]
async fn nothing_of_an_answer_that_does_not_parse_is_said() {
    let (fake, scratch) = (Fake::start(), Scratch::new());
    let cluster = cluster(&fake, &scratch).await;
    for body in [
        r#"{"metadata":{"resourceVersion":"1"},"data":{"ca-key.pem":"not base 64 hunter2"}}"#,
        r#"{"metadata":{"resourceVersion":"1"},"data":"hunter2"}"#,
        r#"{"metadata":{"resourceVersion":"1"},"data":{"ca-key.pem":"hunter2"#,
    ] {
        fake.fail(Fault { body: body.into(), ..Fault::new("secrets", 200) });
        let error = cluster.secret(&name()).await.map(drop).unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("the answer is no secret"), "{error}");
        fake.fail(Fault { body: body.into(), ..Fault::new("tokenreviews", 201) });
        let error = cluster.review("hunter2", &[]).await.unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("the answer does not parse"), "{error}");
    }
}

/// An authority that follows a secret.
struct Following {
    world: Scratch,
    fake: Fake,
    authority: Authority,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Following {
    async fn start() -> Self {
        let (fake, world) = (Fake::start(), world());
        cacerts(&fake, &world);
        let cluster = cluster(&fake, &world).await;
        let config = AuthorityConfig { source: Source::Secret(name()), ..AuthorityConfig::new("", domain()) };
        let held = cluster.secret(&name()).await.unwrap();
        let authority = Authority::open_keys(&config, &held.keys, Clock::system()).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(follow_secret(cluster, name(), authority.clone(), stop.clone()));
        let this = Self { world, fake, authority, stop, task };
        this.until("it watches", |this| !this.fake.asked("watch=true").is_empty()).await;
        this
    }

    /// Another intermediate under the same root, as a secret.
    fn another(&self, name: &str) -> Value {
        let now = std::time::SystemTime::now();
        let (root, folder) = (self.world.join("root"), self.world.join(name));
        make_intermediate(&root, &folder, &domain(), INTERMEDIATE_LIFETIME, now).unwrap();
        secret_of(&folder)
    }

    fn signs_with(&self) -> String {
        self.authority.state().borrow().authority.clone()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    async fn takes(&self, secret: Value) {
        let before = self.signs_with();
        self.fake.put(SECRET, secret);
        self.until("the new one is taken", |this| this.signs_with() != before).await;
    }

    /// How often its whole was read so far.
    fn reads(&self) -> usize {
        self.fake.asked(&format!("GET {SECRET}")).len()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn a_replaced_secret_is_taken_and_one_that_does_not_fit_is_not() {
    let w = Following::start().await;
    w.takes(w.another("second")).await;
    let (kept, reads) = (w.signs_with(), w.reads());
    // Half of another one, as somebody's editor leaves it.
    let mut half = w.another("third");
    half["data"]["ca-cert.pem"] = w.fake.get(SECRET).unwrap()["data"]["ca-cert.pem"].clone();
    w.fake.put(SECRET, half.clone());
    w.until("it was read", |w| w.reads() > reads).await;
    half["data"].as_object_mut().unwrap().remove("ca-key.pem");
    w.fake.put(SECRET, half);
    w.until("it was read too", |w| w.reads() > reads + 1).await;
    w.fake.remove(SECRET);
    w.until("it was not found", |w| w.reads() > reads + 2).await;
    assert_eq!(w.signs_with(), kept);
    w.takes(w.another("fourth")).await;
    // Only its name is watched: keys come when they are asked for.
    let watches = w.fake.asked("watch=true");
    assert!(watches.iter().all(|asked| asked.accept.contains("PartialObjectMetadata")), "{watches:?}");
    assert!(watches.iter().all(|asked| asked.line.contains("fieldSelector=metadata.name%3Dcacerts")));
    w.end().await;
}

#[tokio::test]
async fn a_watch_goes_on_where_it_ended_and_is_begun_anew_when_that_is_too_long_ago() {
    let w = Following::start().await;
    let lists = |w: &Following| w.fake.asked("limit=").len();
    let watches = |w: &Following| w.fake.asked("watch=true").len();
    w.takes(w.another("second")).await;
    w.fake.bookmark();
    let marked = w.fake.version();
    w.fake.close();
    w.until("it watches again", |w| watches(w) == 2).await;
    let line = w.fake.asked("watch=true").remove(1).line;
    assert!(line.contains(&format!("resourceVersion={marked}")), "{line} is not from {marked}");
    assert_eq!(lists(&w), 1, "there was no reason for another list");
    w.takes(w.another("third")).await;

    w.fake.expire();
    w.until("it lists again", |w| lists(w) == 2 && watches(w) == 3).await;
    w.takes(w.another("fourth")).await;
    // And when it hears so instead of a watch.
    w.fake.fail(Fault { body: told(410, "Expired", "too old"), ..Fault::new("watch=true", 410) });
    w.fake.close();
    w.until("it lists once more", |w| lists(w) == 3 && watches(w) == 5).await;
    w.takes(w.another("fifth")).await;
    w.end().await;
}

#[tokio::test]
async fn without_the_right_to_watch_it_is_read_again_and_again() {
    let w = Following::start().await;
    let forbidden = told(403, "Forbidden", "no");
    w.fake.fail(Fault { times: 1000, body: forbidden, ..Fault::new("watch=true", 403) });
    w.fake.close();
    w.takes(w.another("second")).await;
    w.fake.mend();
    w.takes(w.another("third")).await;
    w.end().await;
}

fn pod(account: &str, node: &str, uid: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "uid": uid },
        "spec": { "serviceAccountName": account, "nodeName": node },
        "status": { "phase": "Running" },
    })
}

#[tokio::test]
async fn callers_are_known_by_what_the_api_server_says() {
    let (fake, scratch) = (Fake::start(), Scratch::new());
    let api = cluster(&fake, &scratch).await;
    let agent = ServiceAccount { namespace: "shop".into(), name: "agent".into() };
    let attestor = Kubernetes::new(api, KubernetesConfig::new(domain(), "underpass-ca", [agent]));
    fake.put("/api/v1/namespaces/shop/pods/agent-1", pod("agent", "n1", "u1"));
    for n in 0..7 {
        fake.put(
            &format!("/api/v1/namespaces/shop/pods/agent-other-{n}"),
            pod("agent", &format!("m{n}"), "x"),
        );
    }
    fake.put("/api/v1/namespaces/shop/pods/cart", pod("cart", "n1", "u2"));
    fake.put("/api/v1/namespaces/shop/pods/bank", pod("bank", "n2", "u3"));
    fake.review(
        "good",
        json!({
            "authenticated": true, "audiences": ["underpass-ca"],
            "user": {
                "username": "system:serviceaccount:shop:agent",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["agent-1"],
                    "authentication.kubernetes.io/pod-uid": ["u1"],
                    "authentication.kubernetes.io/node-name": ["n1"],
                },
            },
        }),
    );
    let papers = |token: &str| Papers { token: Some(token.into()), ..Papers::default() };
    let node = attestor.who(&papers("good")).await.unwrap();
    assert_eq!(node.as_str(), "n1");
    assert_eq!(fake.asked("tokenreviews")[0].body["spec"]["audiences"], json!(["underpass-ca"]));
    let refused = attestor.who(&papers("bad")).await.unwrap_err();
    assert!(matches!(&refused, Refusal::Unknown(why) if why.contains("invalid bearer token")), "{refused}");
    // An earlier pod of the same name had the token.
    fake.put("/api/v1/namespaces/shop/pods/agent-1", pod("agent", "n1", "u9"));
    assert!(matches!(attestor.who(&papers("good")).await, Err(Refusal::Unknown(_))));
    fake.remove("/api/v1/namespaces/shop/pods/agent-1");
    assert!(
        matches!(attestor.who(&papers("good")).await, Err(Refusal::Unknown(why)) if why.contains("no more"))
    );

    let id = |account: &str| format!("spiffe://mesh.test/ns/shop/sa/{account}").parse().unwrap();
    attestor.runs(&node, &id("cart")).await.unwrap();
    assert!(matches!(attestor.runs(&node, &id("bank")).await, Err(Refusal::NotYours(_))));
    let asked = fake.asked("fieldSelector=spec.serviceAccountName%3Dcart%2Cspec.nodeName%3Dn1");
    assert_eq!(asked.len(), 1, "the whole cluster's pods were asked for");
    // Several pages of them.
    assert_eq!(attestor.expected().await.unwrap().len(), 7);

    for (of, rule) in [
        ("tokenreviews", "apiGroups [\"authentication.k8s.io\"], resources [tokenreviews], verbs [create]"),
        ("fieldSelector", "apiGroups [\"\"], resources [pods], verbs [list]"),
    ] {
        fake.fail(Fault { body: told(403, "Forbidden", "no"), ..Fault::new(of, 403) });
        let said = match of {
            "tokenreviews" => attestor.who(&papers("good")).await.map(drop),
            _ => attestor.runs(&node, &id("cart")).await,
        };
        assert!(matches!(&said, Err(Refusal::Unavailable(why)) if why.contains(rule)), "{said:?}");
    }
}

fn good(node: &str) -> Value {
    json!({
        "authenticated": true, "audiences": ["underpass-ca"],
        "user": {
            "username": "system:serviceaccount:shop:agent",
            "extra": {
                "authentication.kubernetes.io/pod-name": [format!("agent-{node}")],
                "authentication.kubernetes.io/pod-uid": ["u1"],
            },
        },
    })
}

#[tokio::test]
async fn a_machine_and_a_node_of_the_cluster_get_nothing_of_each_other() {
    let (fake, scratch) = (Fake::start(), Scratch::new());
    let agent = ServiceAccount { namespace: "shop".into(), name: "agent".into() };
    let api = cluster(&fake, &scratch).await;
    let pods = Kubernetes::new(api, KubernetesConfig::new(domain(), "underpass-ca", [agent]));
    let id = |account: &str| format!("spiffe://mesh.test/ns/shop/sa/{account}").parse().unwrap();
    let key = PublicKeyPin::of(b"a key");
    let machine = ListedNode { name: "m1".into(), key, identities: [id("mine")].into() };
    let (list, listed) = watch::channel(vec![machine.clone()]);
    let both = Both::new(Nodes::new(listed), pods);
    for (name, account, node) in
        [("agent-n1", "agent", "n1"), ("cart", "cart", "n1"), ("stray", "stray", "m1")]
    {
        fake.put(&format!("/api/v1/namespaces/shop/pods/{name}"), pod(account, node, "u1"));
    }
    fake.review("good", good("n1"));
    let by_key = Papers { key: Some(key), ..Papers::default() };
    let by_token = Papers { token: Some("good".into()), ..Papers::default() };

    let (m1, n1) = (both.who(&by_key).await.unwrap(), both.who(&by_token).await.unwrap());
    assert_eq!((m1.as_str(), n1.as_str()), ("m1", "n1"));
    both.runs(&m1, &id("mine")).await.unwrap();
    both.runs(&n1, &id("cart")).await.unwrap();
    for (node, other) in [(&m1, "cart"), (&m1, "stray"), (&n1, "mine")] {
        assert!(matches!(both.runs(node, &id(other)).await, Err(Refusal::NotYours(_))), "{node} got {other}");
    }
    assert_eq!(both.expected().await.unwrap(), ["m1", "n1"]);
    // A token that is not good is not made up for by a key.
    let mixed = Papers { token: Some("bad".into()), ..by_key.clone() };
    assert!(matches!(both.who(&mixed).await, Err(Refusal::Unknown(_))));
    // One name for both: nobody can say whose the pods are.
    list.send_replace(vec![ListedNode { name: "n1".into(), ..machine }]);
    let refused = both.who(&by_token).await.unwrap_err();
    assert!(
        matches!(&refused, Refusal::Unknown(why) if why.contains("has the name of a machine")),
        "{refused}"
    );
    let listed = both.who(&by_key).await.unwrap();
    assert!(matches!(both.runs(&listed, &id("cart")).await, Err(Refusal::NotYours(_))));
}

fn bundle() -> Place {
    Place::ClusterTrustBundle { name: "underpass.dev:ca:roots".into(), signer: "underpass.dev/ca".into() }
}

#[tokio::test]
async fn roots_are_published_without_treading_on_others() {
    let (fake, scratch) = (Fake::start(), Scratch::new());
    let (places, follow) = KubernetesPlaces::new(cluster(&fake, &scratch).await, CancellationToken::new());
    drop(follow);
    let map = Place::ConfigMap { namespace: "shop".into(), name: "mesh-roots".into() };
    let paths = [
        "/apis/certificates.k8s.io/v1beta1/clustertrustbundles/underpass.dev:ca:roots",
        "/api/v1/namespaces/shop/configmaps/mesh-roots",
    ];
    for (place, path) in [bundle(), map].iter().zip(paths) {
        assert_eq!(places.read(place).await.unwrap(), None);
        places.write(place, "PEM 1", None).await.unwrap();
        assert_eq!(places.write(place, "PEM 1", None).await, Err(PlaceError::Conflict));
        let held = places.read(place).await.unwrap().unwrap();
        assert_eq!(held.pem, "PEM 1");
        let mut touched = fake.get(path).unwrap();
        touched["metadata"]["labels"] = json!({ "kept": "yes" });
        fake.put(path, touched);
        assert_eq!(places.write(place, "PEM 2", Some(&held.version)).await, Err(PlaceError::Conflict));
        let held = places.read(place).await.unwrap().unwrap();
        places.write(place, "PEM 2", Some(&held.version)).await.unwrap();
        assert_eq!(fake.get(path).unwrap()["metadata"]["labels"]["kept"], "yes");
        let held = places.read(place).await.unwrap().unwrap();
        assert_eq!(held.pem, "PEM 2");
        fake.remove(path);
        assert_eq!(places.write(place, "PEM 3", Some(&held.version)).await, Err(PlaceError::Conflict));
    }
    assert_eq!(fake.asked("POST")[0].body["spec"]["signerName"], "underpass.dev/ca");

    let text = |fault: Fault| {
        fake.fail(fault);
        async { places.write(&bundle(), "PEM", None).await.unwrap_err().to_string() }
    };
    let said = text(Fault { body: told(403, "Forbidden", "no"), ..Fault::new("POST", 403) }).await;
    assert!(said.contains("a ClusterRole has to allow") && said.contains("verbs [attest]"), "{said}");
    let said = text(Fault { body: "404 page not found".into(), ..Fault::new("POST", 404) }).await;
    assert!(
        said.contains("does not serve certificates.k8s.io/v1beta1") && said.contains("feature gate"),
        "{said}"
    );
}

#[tokio::test]
async fn namespaces_are_known_as_they_come_and_go() {
    let (fake, scratch) = (Fake::start(), Scratch::new());
    for n in 0..5 {
        fake.put(&format!("/api/v1/namespaces/ns-{n}"), json!({}));
    }
    let stop = CancellationToken::new();
    let (places, follow) = KubernetesPlaces::new(cluster(&fake, &scratch).await, stop.clone());
    let task = tokio::spawn(follow);
    let mut names: watch::Receiver<_> = places.namespaces();
    let five = (0..5).map(|n| format!("ns-{n}")).collect();
    names.wait_for(|names| *names == five).await.unwrap();
    fake.put("/api/v1/namespaces/late", json!({}));
    names.wait_for(|names| names.contains("late")).await.unwrap();
    fake.remove("/api/v1/namespaces/ns-0");
    names.wait_for(|names| !names.contains("ns-0")).await.unwrap();
    fake.expire();
    fake.remove("/api/v1/namespaces/ns-1");
    names.wait_for(|names| !names.contains("ns-1")).await.unwrap();
    stop.cancel();
    task.await.unwrap();
}

/// By the authority that the kubeconfig names, and no other.
#[tokio::test]
async fn the_api_server_is_known_by_its_certificate() {
    let scratch = Scratch::new();
    let now = std::time::SystemTime::now();
    for name in ["api", "other"] {
        make_root(&scratch.join(name), None, ROOT_LIFETIME, now).unwrap();
        make_intermediate(&scratch.join(name), &scratch.join(name), &domain(), INTERMEDIATE_LIFETIME, now)
            .unwrap();
    }
    let authority =
        Authority::open(&AuthorityConfig::new(scratch.join("api"), domain()), Clock::system()).unwrap();
    let papers = authority.server(&["127.0.0.1".to_owned()], None).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(papers.chain.clone(), papers.key.clone_key())
        .unwrap();
    let fake = Fake::start_tls(Arc::new(config));
    fake.put(SECRET, json!({ "data": { "a": "Yg==" } }));
    let ask = |root: &str| {
        let root = scratch.join(root).join("root-cert.pem").display().to_string();
        let kubeconfig = fake.kubeconfig(scratch.path(), Some(&root));
        async move { Cluster::connect(Some(&kubeconfig)).await.unwrap().secret(&name()).await }
    };
    assert_eq!(**ask("api").await.unwrap().keys["a"], *b"b");
    let error = ask("other").await.map(drop).unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn where_no_cluster_is_known_it_is_said_what_is_missing() {
    let scratch = Scratch::new();
    let missing = scratch.join("kubeconfig");
    let error = Cluster::connect(Some(&missing)).await.unwrap_err().to_string();
    assert!(error.contains("is no kubeconfig of use"), "{error}");
    for (text, good) in
        [("a/b", true), ("istio-system/ca.certs", true), ("a", false), ("a/b/c", false), ("A/b", false)]
    {
        assert_eq!(text.parse::<SecretName>().is_ok(), good, "{text}");
    }
}
