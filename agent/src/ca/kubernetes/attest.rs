//! What attestation asks Kubernetes: whose a token is, one pod, an account's pods.

use std::collections::BTreeMap;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;

use super::Cluster;
use super::call::{Call, CallError, Verb};
use crate::ca::attest::{ApiError, KubernetesApi, Phase, Pod, ServiceAccount, TokenReview};

impl KubernetesApi for Cluster {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<TokenReview, ApiError>> {
        async move {
            let call = Call::core(Verb::Create, "tokenreviews").of("authentication.k8s.io", "v1");
            let body = json!({
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": { "token": token, "audiences": audiences },
            });
            let Reviewed { status } = self.ask(&call, Some(&body)).await.map_err(said)?;
            Ok(TokenReview {
                authenticated: status.authenticated,
                audiences: status.audiences,
                username: status.user.username,
                extra: status.user.extra,
                error: status.error,
            })
        }
        .boxed()
    }

    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Pod>, ApiError>> {
        async move {
            let call = Call::core(Verb::Get, "pods").within(namespace).named(name);
            match self.ask::<PodObject>(&call, None).await {
                Ok(pod) => Ok(Some(pod.into())),
                Err(CallError::Absent(_)) => Ok(None),
                Err(error) => Err(said(error)),
            }
        }
        .boxed()
    }

    fn pods_of<'a>(
        &'a self,
        account: &'a ServiceAccount,
        node: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Pod>, ApiError>> {
        async move {
            let mut fields = format!("spec.serviceAccountName={}", account.name);
            if let Some(node) = node {
                fields += &format!(",spec.nodeName={node}");
            }
            let list = Call::core(Verb::List, "pods").within(&account.namespace);
            let list = list.with("fieldSelector", fields).with("limit", PAGE);
            let (mut pods, mut page) = (Vec::new(), list.clone());
            loop {
                let Pods { metadata, items } = self.ask(&page, None).await.map_err(said)?;
                pods.extend(items.into_iter().map(Pod::from));
                if metadata.more.is_empty() {
                    return Ok(pods);
                }
                page = list.clone().with("continue", metadata.more);
            }
        }
        .boxed()
    }
}

fn said(error: CallError) -> ApiError {
    ApiError(error.to_string())
}

#[derive(Deserialize)]
struct Reviewed {
    // One without a status is no answer, and must not count as one that says no.
    status: ReviewStatus,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct ReviewStatus {
    authenticated: bool,
    audiences: Vec<String>,
    user: User,
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Pods {
    #[serde(default)]
    metadata: More,
    items: Vec<PodObject>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct More {
    #[serde(rename = "continue")]
    more: String,
}

#[derive(Deserialize)]
struct PodObject {
    metadata: PodMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
struct PodMeta {
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    service_account_name: String,
    node_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
}

impl From<PodObject> for Pod {
    fn from(pod: PodObject) -> Self {
        let PodMeta { namespace, name, uid } = pod.metadata;
        Self {
            account: ServiceAccount { namespace, name: pod.spec.service_account_name },
            name,
            uid,
            node: pod.spec.node_name,
            phase: match pod.status.phase.as_str() {
                "Pending" => Phase::Pending,
                "Running" => Phase::Running,
                "Succeeded" => Phase::Succeeded,
                "Failed" => Phase::Failed,
                _ => Phase::Unknown,
            },
        }
    }
}

const PAGE: &str = "500";
