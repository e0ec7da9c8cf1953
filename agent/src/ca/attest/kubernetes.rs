//! Nodes of a Kubernetes cluster, each known by the token of the agent's pod on it: the pod that the token is
//! bound to says which node it is, and the pods on that node what it may have.
//!
//! Nothing that the caller says of itself is believed. What Kubernetes does not say clearly is a refusal.

mod reviews;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};

use self::reviews::Reviews;
use super::{Attestor, Changes, NodeName, Papers, Refusal};
use crate::certs::Clock;
use crate::model::spiffe::shorten;
use crate::model::{SpiffeId, TrustDomain};

/// What is asked of Kubernetes' API server.
pub trait KubernetesApi: Send + Sync + 'static {
    /// `authentication.k8s.io/v1` TokenReview.
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<TokenReview, ApiError>>;

    /// One pod, as it is now and not as a cache had it. `None`: there is none.
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Pod>, ApiError>>;

    /// The pods of a service account, on this node or on all.
    fn pods_of<'a>(
        &'a self,
        account: &'a ServiceAccount,
        node: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Pod>, ApiError>>;
}

/// The API server could not be asked, or gave no answer of use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ApiError(pub String);

/// A TokenReview's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenReview {
    pub authenticated: bool,
    /// Of those asked about, the ones that the token is for.
    pub audiences: Vec<String>,
    pub username: String,
    pub extra: BTreeMap<String, Vec<String>>,
    /// Why it is not authenticated.
    pub error: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAccount {
    pub namespace: String,
    pub name: String,
}

/// What of a pod decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub account: ServiceAccount,
    pub name: String,
    pub uid: String,
    /// `spec.nodeName`; empty before it is scheduled.
    pub node: String,
    pub phase: Phase,
}

/// A pod's `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    /// Kubernetes' own `Unknown`, and whatever else a later version may say.
    Unknown,
}

/// Whom to believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    pub trust_domain: TrustDomain,
    /// What tokens have to be made for: any of these.
    pub audiences: Vec<String>,
    /// The service accounts that agents run as.
    pub trusted: BTreeSet<ServiceAccount>,
    /// How long all questions about one request may take together.
    pub deadline: Duration,
    /// How often it is asked again whether one that follows is still known.
    pub ask_again: Duration,
}

impl KubernetesConfig {
    /// For tokens that are made for `audience`.
    pub fn new(
        trust_domain: TrustDomain,
        audience: impl Into<String>,
        trusted: impl IntoIterator<Item = ServiceAccount>,
    ) -> Self {
        Self {
            trust_domain,
            audiences: vec![audience.into()],
            trusted: trusted.into_iter().collect(),
            deadline: Duration::from_secs(5),
            ask_again: Duration::from_secs(60),
        }
    }
}

/// Believes the API server.
#[derive(Debug)]
pub struct Kubernetes<A> {
    api: A,
    config: KubernetesConfig,
    reviews: Reviews,
}

/// Tokens of Kubernetes have about a thousand bytes.
const LONGEST_TOKEN: usize = 8 << 10;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";

impl<A: KubernetesApi> Kubernetes<A> {
    pub fn new(api: A, config: KubernetesConfig) -> Self {
        Self { api, config, reviews: Reviews::new(Clock::system()) }
    }

    async fn caller(&self, papers: &Papers) -> Result<NodeName, Refusal> {
        let token = papers.token.as_deref().filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| unknown("it shows no token"))?;
        if token.len() > LONGEST_TOKEN {
            return Err(unknown(format!("its token has {} bytes: no token of Kubernetes has", token.len())));
        }
        let ask = async {
            let review = self.api.review(token, &self.config.audiences).await;
            self.judge(&review.map_err(|e| silent("a TokenReview", &e))?)
        };
        let claimed = self.reviews.answer(token, papers.from, ask).await?;
        let (namespace, name) = (&claimed.account.namespace, &claimed.pod);
        let pod = self.api.pod(namespace, name).await.map_err(|e| silent("a pod", &e))?;
        let pod = pod.ok_or_else(|| {
            unknown(format!("its token is bound to the pod {namespace}/{name}, which is no more"))
        })?;
        claimed.agrees_with(&pod)
    }

    /// What the token proves by itself.
    fn judge(&self, review: &TokenReview) -> Result<Claimed, Refusal> {
        if !review.authenticated || !review.error.is_empty() {
            let why = if review.error.is_empty() { "no reason was given" } else { &shorten(&review.error) };
            return Err(unknown(format!("Kubernetes does not accept its token: {why}")));
        }
        // An API server that does not know of audiences leaves them out, and has checked nothing.
        if !review.audiences.iter().any(|a| self.config.audiences.contains(a)) {
            let (own, all) = (&self.config.audiences, &review.audiences);
            return Err(unknown(format!("its token is for {all:?}, not for {own:?}")));
        }
        let account = ServiceAccount::of_user(&review.username).ok_or_else(|| {
            unknown(format!("its token is of {:?}, no service account", shorten(&review.username)))
        })?;
        if !self.config.trusted.contains(&account) {
            let ServiceAccount { namespace, name } = account;
            return Err(unknown(format!(
                "it runs as {namespace}/{name}, which is not among the accounts that agents run as"
            )));
        }
        let missing = |key: &str| unknown(format!("its token has no {key}: it has to be bound to a pod"));
        Ok(Claimed {
            account,
            pod: one(review, POD_NAME)?.ok_or_else(|| missing(POD_NAME))?,
            uid: one(review, POD_UID)?.ok_or_else(|| missing(POD_UID))?,
            node: {
                // There is nothing to compare it with: a pod names its node only.
                one(review, NODE_UID)?;
                one(review, NODE_NAME)?
            },
        })
    }

    async fn finds(&self, node: &NodeName, identity: &SpiffeId) -> Result<(), Refusal> {
        let domain = &self.config.trust_domain;
        if identity.trust_domain() != domain {
            return Err(Refusal::NotYours(format!(
                "{identity} is not of this cluster's trust domain {domain}"
            )));
        }
        let Some((namespace, name)) = identity.account() else {
            return Err(Refusal::NotYours(format!("{identity} is no service account, which pods run as")));
        };
        let account = ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() };
        let pods = self.api.pods_of(&account, Some(node.as_str())).await;
        let pods = pods.map_err(|e| silent("the node's pods", &e))?;
        let runs = |pod: &Pod| {
            pod.account == account
                && !pod.node.is_empty()
                && pod.node == node.as_str()
                && matches!(pod.phase, Phase::Pending | Phase::Running)
        };
        if pods.iter().any(runs) {
            return Ok(());
        }
        let ServiceAccount { namespace, name } = account;
        Err(Refusal::NotYours(format!(
            "no pod of the service account {namespace}/{name} runs on node {node}"
        )))
    }

    async fn nodes(&self) -> Result<Vec<String>, Refusal> {
        let mut nodes = BTreeSet::new();
        for account in &self.config.trusted {
            let pods = self.api.pods_of(account, None).await.map_err(|e| silent("the agents' pods", &e))?;
            let live = pods.into_iter().filter(|pod| pod.account == *account && !pod.has_ended());
            nodes.extend(live.map(|pod| pod.node).filter(|node| !node.is_empty()));
        }
        Ok(nodes.into_iter().collect())
    }

    async fn in_time<T>(&self, asking: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let deadline = self.config.deadline;
        tokio::time::timeout(deadline, asking).await.unwrap_or_else(|_| {
            Err(Refusal::Unavailable(format!("Kubernetes' API server did not answer within {deadline:?}")))
        })
    }
}

impl<A: KubernetesApi> Attestor for Kubernetes<A> {
    fn who<'a>(&'a self, papers: &'a Papers) -> BoxFuture<'a, Result<NodeName, Refusal>> {
        self.in_time(self.caller(papers)).boxed()
    }

    fn runs<'a>(&'a self, node: &'a NodeName, identity: &'a SpiffeId) -> BoxFuture<'a, Result<(), Refusal>> {
        self.in_time(self.finds(node, identity)).boxed()
    }

    fn expected(&self) -> BoxFuture<'_, Result<Vec<String>, Refusal>> {
        self.in_time(self.nodes()).boxed()
    }

    fn changes(&self) -> Changes {
        // A thousand nodes that came back at once must not ask at once from then on.
        let every = self.config.ask_again.mul_f64(rand::random_range(0.5..1.0));
        stream::repeat(()).then(move |()| tokio::time::sleep(every)).boxed()
    }
}

/// What a token says of the pod that it was given to.
#[derive(Clone, Debug)]
struct Claimed {
    account: ServiceAccount,
    pod: String,
    uid: String,
    node: Option<String>,
}

impl Claimed {
    fn agrees_with(&self, pod: &Pod) -> Result<NodeName, Refusal> {
        let shown = format!("{}/{}", self.account.namespace, self.pod);
        if pod.name != self.pod || pod.account != self.account {
            return Err(unknown(format!("the pod {shown} runs as another account than its token says")));
        }
        if pod.uid != self.uid || pod.uid.is_empty() {
            return Err(unknown(format!("the pod {shown} is another one than its token was given to")));
        }
        if pod.has_ended() {
            return Err(unknown(format!("the pod {shown} has ended")));
        }
        if pod.node.is_empty() {
            return Err(unknown(format!("the pod {shown} is on no node yet")));
        }
        if let Some(node) = self.node.as_ref().filter(|node| **node != pod.node) {
            let (node, other) = (shorten(node), &pod.node);
            return Err(unknown(format!("the pod {shown} is on node {other}, and its token says {node:?}")));
        }
        Ok(NodeName::proven(&pod.node))
    }
}

impl Pod {
    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }
}

impl ServiceAccount {
    /// Of `system:serviceaccount:NAMESPACE:NAME`.
    fn of_user(username: &str) -> Option<Self> {
        let (namespace, name) = username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        let is_one = !namespace.is_empty() && !name.is_empty() && !name.contains(':');
        is_one.then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// The value of an extra that there is at most once.
fn one(review: &TokenReview, key: &str) -> Result<Option<String>, Refusal> {
    match review.extra.get(key).map(Vec::as_slice) {
        None => Ok(None),
        Some([value]) if !value.is_empty() => Ok(Some(value.clone())),
        Some(values) => Err(unknown(format!("its token has {} values of {key}, not one", values.len()))),
    }
}

fn unknown(why: impl Into<String>) -> Refusal {
    Refusal::Unknown(why.into())
}

fn silent(what: &str, error: &ApiError) -> Refusal {
    Refusal::Unavailable(format!("Kubernetes' API server gives no answer about {what}: {error}"))
}

#[cfg(test)]
mod tests;
