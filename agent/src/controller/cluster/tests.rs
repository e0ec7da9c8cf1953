#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::ca::hierarchy::{INTERMEDIATE_LIFETIME, ROOT_LIFETIME, make_intermediate, make_root};
use crate::ca::kubernetes::fake::Fake;
use crate::ca::rotation::{Folder, Site};

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A cluster with an authority's secret and an agent's pod, and a configuration that needs all of it.
fn world() -> (Scratch, Fake, ControllerConfig) {
    let name = format!("underpass-cluster-{}-{:016x}", std::process::id(), rand::random::<u64>());
    let (scratch, fake) = (Scratch(std::env::temp_dir().join(name)), Fake::start());
    let (ca, now, domain) = (scratch.0.join("ca"), SystemTime::now(), "mesh.test".parse().unwrap());
    make_root(&ca, None, ROOT_LIFETIME, now).unwrap();
    make_intermediate(&ca, &ca, &domain, INTERMEDIATE_LIFETIME, now).unwrap();
    let keys = Folder::look(&ca).keys().unwrap();
    let data: BTreeMap<_, _> =
        keys.into_iter().map(|(name, text)| (name, k8s_openapi::ByteString(text.to_vec()))).collect();
    fake.put("/api/v1/namespaces/system/secrets/cacerts", json!({ "data": data }));
    fake.put("/api/v1/namespaces/shop", json!({}));
    fake.put(
        "/api/v1/namespaces/system/pods/agent",
        json!({
            "metadata": { "namespace": "system", "uid": "u" },
            "spec": { "serviceAccountName": "agent", "nodeName": "n1" },
            "status": { "phase": "Running" },
        }),
    );
    let config = format!(
        "trustDomain: mesh.test\nauthority: {{secret: {{namespace: system, name: cacerts}}}}\n\
         kubernetes: {{kubeconfig: {}}}\nattestation:\n  kubernetes:\n    audience: underpass-ca\n    \
         serviceAccounts: [{{namespace: system, name: agent}}]\n\
         publish: {{signer: underpass.dev/ca, configMap: mesh-roots}}\n",
        fake.kubeconfig(&scratch.0, None).display()
    );
    (scratch, fake, ControllerConfig::parse(&config).unwrap())
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn what_the_configuration_says_is_asked_and_told() {
    let (_scratch, fake, config) = world();
    let stop = CancellationToken::new();
    let cluster = connect(&config).await.unwrap();
    let (signing, follow) = authority(&config, cluster.as_ref(), &stop).await.unwrap();
    let follow = tokio::spawn(follow);
    let (_list, listed) = watch::channel(Vec::new());
    let known = attestor(&config, cluster.as_ref(), Nodes::new(listed));
    assert_eq!(known.expected().await.unwrap(), ["n1"]);

    let published = tokio::spawn(publishing(&config, cluster, &signing, &stop).unwrap());
    let bundle = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles/underpass.dev:ca:roots";
    let map = "/api/v1/namespaces/shop/configmaps/mesh-roots";
    until("both are published", || fake.get(bundle).is_some() && fake.get(map).is_some()).await;
    let roots = signing.state().borrow().roots_pem.clone();
    assert_eq!(fake.get(bundle).unwrap()["spec"]["trustBundle"], roots);
    assert_eq!(fake.get(map).unwrap()["data"]["root-cert.pem"], roots);
    until("the secret is watched", || !fake.asked("secrets?watch").is_empty()).await;
    stop.cancel();
    follow.await.unwrap();
    published.await.unwrap();
}

#[tokio::test]
async fn who_needs_no_cluster_asks_none() {
    let config = ControllerConfig::default();
    assert!(connect(&config).await.unwrap().is_none());
    let (_scratch, fake, config) = world();
    fake.remove("/api/v1/namespaces/system/secrets/cacerts");
    let cluster = connect(&config).await.unwrap();
    let error = authority(&config, cluster.as_ref(), &CancellationToken::new()).await.map(drop).unwrap_err();
    let said = format!("{error:#}");
    assert!(
        said.starts_with("cannot read the authority's secret: get secrets system/cacerts: 404"),
        "{said}"
    );
}
