#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

const TOKEN: &str = "a-token";
/// `{"exp":9999999999}`
const LASTING: &str = "e30.eyJleHAiOjk5OTk5OTk5OTl9.c2ln";
const AUDIENCE: &str = "underpass-ca";

/// An API server that says what a test wants.
#[derive(Clone)]
struct Fake {
    review: Result<TokenReview, ApiError>,
    pods: Result<Vec<Pod>, ApiError>,
    /// The question that is never answered.
    hangs: Option<&'static str>,
}

impl Fake {
    /// All is well: the agent's pod is on n1, and so is one of the shop's cart.
    fn good() -> Self {
        let extra = [(POD_NAME, "agent-x"), (POD_UID, "u1"), (NODE_NAME, "n1"), (NODE_UID, "nu1")];
        let review = TokenReview {
            authenticated: true,
            audiences: vec![AUDIENCE.into()],
            username: "system:serviceaccount:underpass-system:underpass".into(),
            extra: extra.map(|(k, v)| (k.to_owned(), vec![v.to_owned()])).into(),
            error: String::new(),
        };
        let pods = vec![agent(), pod("shop", "cart", "cart-1", "n1")];
        Self { review: Ok(review), pods: Ok(pods), hangs: None }
    }

    fn token(change: impl FnOnce(&mut TokenReview)) -> Self {
        let mut this = Self::good();
        change(this.review.as_mut().unwrap());
        this
    }

    fn extra(key: &str, values: &[&str]) -> Self {
        Self::token(|t| {
            t.extra.insert(key.into(), values.iter().map(|v| (*v).to_owned()).collect());
        })
    }

    fn without(key: &str) -> Self {
        Self::token(|t| {
            t.extra.remove(key);
        })
    }

    fn agent(change: impl FnOnce(&mut Pod)) -> Self {
        let mut this = Self::good();
        change(&mut this.pods.as_mut().unwrap()[0]);
        this
    }

    fn cart(change: impl FnOnce(&mut Pod)) -> Self {
        let mut this = Self::good();
        change(&mut this.pods.as_mut().unwrap()[1]);
        this
    }

    fn hanging(question: &'static str) -> Self {
        Self { hangs: Some(question), ..Self::good() }
    }

    fn broken() -> Self {
        let error = ApiError("500: etcd is away".into());
        Self { review: Err(error.clone()), pods: Err(error), hangs: None }
    }

    async fn maybe_hang(&self, question: &str) {
        if self.hangs == Some(question) {
            std::future::pending::<()>().await;
        }
    }
}

impl KubernetesApi for Fake {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<TokenReview, ApiError>> {
        async move {
            self.maybe_hang("review").await;
            assert!([TOKEN, LASTING].contains(&token), "{token}");
            assert_eq!(audiences, [AUDIENCE]);
            self.review.clone()
        }
        .boxed()
    }

    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Pod>, ApiError>> {
        async move {
            self.maybe_hang("pod").await;
            let pods = self.pods.clone()?;
            Ok(pods.into_iter().find(|p| p.account.namespace == namespace && p.name == name))
        }
        .boxed()
    }

    /// Filters nothing: whoever asks has to look at what it was given.
    fn pods_of<'a>(
        &'a self,
        _account: &'a ServiceAccount,
        _node: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Pod>, ApiError>> {
        async move {
            self.maybe_hang("pods_of").await;
            self.pods.clone()
        }
        .boxed()
    }
}

fn account(namespace: &str, name: &str) -> ServiceAccount {
    ServiceAccount { namespace: namespace.into(), name: name.into() }
}

fn pod(namespace: &str, service_account: &str, name: &str, node: &str) -> Pod {
    Pod {
        account: account(namespace, service_account),
        name: name.into(),
        uid: format!("uid-of-{name}"),
        node: node.into(),
        phase: Phase::Running,
    }
}

fn agent() -> Pod {
    Pod { uid: "u1".into(), ..pod("underpass-system", "underpass", "agent-x", "n1") }
}

fn attestor(api: Fake) -> Kubernetes<Fake> {
    let trusted = [account("underpass-system", "underpass")];
    Kubernetes::new(api, KubernetesConfig::new("mesh.test".parse().unwrap(), AUDIENCE, trusted))
}

fn papers(token: &str) -> Papers {
    Papers { token: Some(token.to_owned()), ..Papers::default() }
}

async fn who(api: Fake) -> Result<NodeName, Refusal> {
    attestor(api).who(&papers(TOKEN)).await
}

#[tokio::test]
async fn an_agents_pod_is_its_node() {
    assert_eq!(who(Fake::good()).await, Ok(NodeName::proven("n1")));
    // Before Kubernetes 1.32 tokens name no node.
    assert_eq!(who(Fake::without(NODE_NAME)).await, Ok(NodeName::proven("n1")));
    for phase in [Phase::Pending, Phase::Unknown] {
        assert_eq!(who(Fake::agent(|p| p.phase = phase)).await, Ok(NodeName::proven("n1")), "{phase:?}");
    }
}

#[tokio::test]
async fn whoever_is_not_an_agents_pod_is_unknown() {
    let table = [
        (
            "expired",
            Fake::token(|t| {
                (t.authenticated, t.error) = (false, "token has expired".into());
            }),
            "token has expired",
        ),
        ("not authenticated, without a reason", Fake::token(|t| t.authenticated = false), "no reason"),
        ("authenticated with an error", Fake::token(|t| t.error = "odd".into()), "odd"),
        ("another audience", Fake::token(|t| t.audiences = vec!["vault".into()]), "is for [\"vault\"]"),
        ("audiences not checked", Fake::token(|t| t.audiences.clear()), "is for []"),
        ("a person", Fake::token(|t| t.username = "admin".into()), "no service account"),
        (
            "no name",
            Fake::token(|t| t.username = "system:serviceaccount:underpass-system:".into()),
            "no service",
        ),
        (
            "no namespace",
            Fake::token(|t| t.username = "system:serviceaccount::underpass".into()),
            "no service",
        ),
        (
            "a colon more",
            Fake::token(|t| t.username = "system:serviceaccount:underpass-system:underpass:x".into()),
            "no service account",
        ),
        (
            "another account of the namespace",
            Fake::token(|t| t.username = "system:serviceaccount:underpass-system:default".into()),
            "underpass-system/default, which is not among",
        ),
        (
            "the account of another namespace",
            Fake::token(|t| t.username = "system:serviceaccount:shop:underpass".into()),
            "shop/underpass, which is not among",
        ),
        ("not bound to a pod", Fake::without(POD_NAME), POD_NAME),
        ("bound to a name alone", Fake::without(POD_UID), POD_UID),
        ("two pods", Fake::extra(POD_NAME, &["agent-x", "agent-y"]), "2 values"),
        ("the same pod twice", Fake::extra(POD_NAME, &["agent-x", "agent-x"]), "2 values"),
        ("two UIDs", Fake::extra(POD_UID, &["u1", "u2"]), "2 values"),
        ("no value", Fake::extra(POD_UID, &[]), "0 values"),
        ("an empty value", Fake::extra(POD_UID, &[""]), "values of"),
        ("two nodes", Fake::extra(NODE_NAME, &["n1", "n2"]), "2 values"),
        ("two UIDs of nodes", Fake::extra(NODE_UID, &["a", "b"]), "2 values"),
        ("another node", Fake::extra(NODE_NAME, &["n2"]), "is on node n1, and its token says \"n2\""),
        ("the pod is gone", Fake::extra(POD_NAME, &["agent-y"]), "is no more"),
        ("the pod was made anew", Fake::agent(|p| p.uid = "u2".into()), "another one"),
        (
            "another account's pod of the name",
            Fake::agent(|p| p.account.name = "cart".into()),
            "another account",
        ),
        ("not scheduled", Fake::agent(|p| p.node.clear()), "on no node"),
        ("failed", Fake::agent(|p| p.phase = Phase::Failed), "has ended"),
        ("succeeded", Fake::agent(|p| p.phase = Phase::Succeeded), "has ended"),
    ];
    for (what, api, why) in table {
        match who(api).await {
            Err(Refusal::Unknown(said)) => assert!(said.contains(why), "{what}: {said}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_pod_without_a_uid_matches_no_token() {
    let mut api = Fake::extra(POD_UID, &["u1"]);
    api.pods.as_mut().unwrap()[0].uid.clear();
    assert!(matches!(who(api).await, Err(Refusal::Unknown(_))));
}

/// The fake would panic if it were asked about another token than [`TOKEN`].
#[tokio::test]
async fn what_is_no_token_is_not_asked_about() {
    let attestor = attestor(Fake::good());
    for papers in [Papers::default(), papers(""), papers(&"x".repeat(LONGEST_TOKEN + 1))] {
        assert!(matches!(attestor.who(&papers).await, Err(Refusal::Unknown(_))), "{papers:?}");
    }
}

#[tokio::test]
async fn a_node_may_have_what_runs_on_it() {
    let node = NodeName::proven("n1");
    let cart: SpiffeId = "spiffe://mesh.test/ns/shop/sa/cart".parse().unwrap();
    for phase in [Phase::Pending, Phase::Running] {
        let api = Fake::cart(|p| p.phase = phase);
        assert_eq!(attestor(api).runs(&node, &cart).await, Ok(()), "{phase:?}");
    }
    let table = [
        ("on another node", Fake::cart(|p| p.node = "n2".into()), &cart),
        ("not scheduled", Fake::cart(|p| p.node.clear()), &cart),
        ("failed", Fake::cart(|p| p.phase = Phase::Failed), &cart),
        ("succeeded", Fake::cart(|p| p.phase = Phase::Succeeded), &cart),
        ("in a phase nobody knows", Fake::cart(|p| p.phase = Phase::Unknown), &cart),
        ("of another account", Fake::cart(|p| p.account.name = "shelf".into()), &cart),
        ("in another namespace", Fake::cart(|p| p.account.namespace = "shop2".into()), &cart),
        (
            "of another trust domain",
            Fake::good(),
            &"spiffe://other.test/ns/shop/sa/cart".parse::<SpiffeId>().unwrap(),
        ),
    ];
    for (what, api, identity) in table {
        let said = attestor(api).runs(&node, identity).await;
        assert!(matches!(said, Err(Refusal::NotYours(_))), "{what}: {said:?}");
    }
    let nowhere = attestor(Fake::cart(|p| p.node.clear())).runs(&NodeName::proven(""), &cart).await;
    assert!(nowhere.is_err(), "a pod that is on no node runs on a node without a name");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_grants_nothing() {
    let node = NodeName::proven("n1");
    let cart = "spiffe://mesh.test/ns/shop/sa/cart".parse().unwrap();
    for api in [Fake::hanging("review"), Fake::hanging("pod"), Fake::broken()] {
        assert!(matches!(who(api).await, Err(Refusal::Unavailable(_))));
    }
    for api in [Fake::hanging("pods_of"), Fake::broken()] {
        let attestor = attestor(api);
        assert!(matches!(attestor.runs(&node, &cart).await, Err(Refusal::Unavailable(_))));
        assert!(matches!(attestor.expected().await, Err(Refusal::Unavailable(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_tokens_waits_its_turn_and_no_longer_than_the_deadline() {
    let attestor = attestor(Fake::hanging("review"));
    let papers: Vec<_> = (0..1000).map(|at| papers(&format!("token-{at}"))).collect();
    let asked = futures::future::join_all(papers.iter().map(|papers| attestor.who(papers))).await;
    assert!(asked.iter().all(|said| matches!(said, Err(Refusal::Unavailable(_)))));
}

/// A token's review is remembered for a moment, its pod is not.
#[tokio::test]
async fn a_pod_that_is_gone_is_nobody_though_its_token_was_good_just_now() {
    let mut attestor = attestor(Fake::good());
    let token = papers(LASTING);
    assert!(attestor.who(&token).await.is_ok());
    attestor.api.review = Err(ApiError("it is not asked again".into()));
    assert!(attestor.who(&token).await.is_ok());
    attestor.api.pods.as_mut().unwrap().remove(0);
    assert!(matches!(attestor.who(&token).await, Err(Refusal::Unknown(_))));
}

#[tokio::test]
async fn every_node_with_an_agent_is_expected_once() {
    let mut api = Fake::good();
    let second = |node: &str| Pod { node: node.into(), ..agent() };
    let ended = Pod { phase: Phase::Failed, ..second("n4") };
    api.pods.as_mut().unwrap().extend([second("n3"), second("n1"), second(""), ended]);
    assert_eq!(attestor(api).expected().await, Ok(vec!["n1".to_owned(), "n3".to_owned()]));
}
