//! A secret with the keys of Istio's `cacerts`: read, changed in one step, and followed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::ByteString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::Cluster;
use super::call::{Call, CallError, Verb};
use super::follow::Follower;
use crate::ca::Authority;
use crate::certs::backoff;
use crate::certs::keeping::base64;

/// Which secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name, such as `cacerts`.
    pub name: String,
}

/// A secret's data, by key. Wiped when dropped.
pub type Keys = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// What a secret held when it was read.
pub struct Held {
    pub keys: Keys,
    /// `metadata.resourceVersion`.
    pub version: String,
}

impl SecretName {
    /// Whether Kubernetes would have such names.
    pub fn check(&self) -> Result<(), String> {
        let label = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let sound = |text: &str, most: usize, dots: bool| {
            (1..=most).contains(&text.len()) && text.bytes().all(|c| label(c) || (dots && c == b'.'))
        };
        if !sound(&self.namespace, 63, false) {
            return Err(format!("{:?} is no namespace: 1 to 63 of a-z, 0-9 and '-'", self.namespace));
        }
        if !sound(&self.name, 253, true) {
            return Err(format!("{:?} is no secret's name: 1 to 253 of a-z, 0-9, '-' and '.'", self.name));
        }
        Ok(())
    }

    fn call(&self, verb: Verb) -> Call {
        Call::core(verb, "secrets").within(&self.namespace).named(&self.name)
    }
}

impl FromStr for SecretName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once('/').ok_or("a secret is named as NAMESPACE/NAME")?;
        let found = Self { namespace: namespace.to_owned(), name: name.to_owned() };
        found.check().map(|()| found)
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Cluster {
    /// What the secret holds now.
    pub async fn secret(&self, secret: &SecretName) -> Result<Held, CallError> {
        let call = secret.call(Verb::Get);
        let text = self.text(&call, None).await?;
        parse(&text).ok_or_else(|| nonsense(&call))
    }

    /// Changes these keys (`None`: takes the key out) if the secret still has this version, and nothing
    /// otherwise; says the new version.
    pub async fn change_secret(
        &self,
        secret: &SecretName,
        version: &str,
        changes: &BTreeMap<String, Option<Zeroizing<Vec<u8>>>>,
    ) -> Result<String, CallError> {
        let call = secret.call(Verb::Patch);
        let text = self.text(&call, Some(patch(version, changes))).await?;
        parse(&text).map(|held| held.version).ok_or_else(|| nonsense(&call))
    }
}

/// Of the secret's text nothing may get into an error.
fn nonsense(call: &Call) -> CallError {
    CallError::Failed(format!("{call}: the answer is no secret: is it an API server?"))
}

fn parse(text: &[u8]) -> Option<Held> {
    #[derive(Deserialize)]
    struct Secret {
        metadata: Meta,
        #[serde(default)]
        data: Option<BTreeMap<String, ByteString>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        resource_version: String,
    }
    let secret: Secret = serde_json::from_slice(text).ok()?;
    let keys = secret.data.unwrap_or_default().into_iter();
    let keys = keys.map(|(name, ByteString(content))| (name, Zeroizing::new(content))).collect();
    Some(Held { keys, version: secret.metadata.resource_version })
}

/// A merge patch: labels, annotations and other keys stay as they are.
fn patch(version: &str, changes: &BTreeMap<String, Option<Zeroizing<Vec<u8>>>>) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    struct Patch<'a> {
        metadata: Meta<'a>,
        data: BTreeMap<&'a str, Option<Base64<'a>>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta<'a> {
        resource_version: &'a str,
    }
    let data = changes.iter().map(|(name, content)| (name.as_str(), content.as_ref().map(|c| Base64(c))));
    let patch = Patch { metadata: Meta { resource_version: version }, data: data.collect() };
    // All at once, or growing would leave copies of a key behind.
    let size: usize =
        changes.iter().map(|(name, c)| name.len() + c.as_ref().map_or(0, |c| c.len() * 2)).sum();
    let mut text = Zeroizing::new(Vec::with_capacity(size + 64 * changes.len() + 1024));
    // Strings and maps with names for keys: this does not fail.
    let _ = serde_json::to_writer(&mut *text, &patch);
    text
}

struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base64(self.0))
    }
}

/// Until `stop`: the authority takes the secret in whenever it is replaced, and keeps what it has while the
/// secret cannot be read or does not fit together.
pub async fn follow_secret(
    cluster: Cluster,
    secret: SecretName,
    authority: Authority,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(follow(&cluster, &secret, &authority)).await;
}

async fn follow(cluster: &Cluster, secret: &SecretName, authority: &Authority) {
    let mut names = Follower::new(cluster, secret.call(Verb::List));
    let (mut failures, mut warned) = (0, None);
    loop {
        // Whatever was seen, what counts is what is there now.
        let seen = names.next().await;
        let read = cluster.secret(secret).await;
        let failed = seen.as_ref().err().or(read.as_ref().err()).map(ToString::to_string);
        if let Ok(held) = &read {
            authority.told(authority.take_keys(&held.keys).map_err(|e| e.to_string()), &mut warned);
        }
        let Some(why) = failed else {
            failures = 0;
            continue;
        };
        failures += 1;
        if failures == 1 || read.is_err() {
            authority.told(Err(why), &mut warned);
        }
        let wait: Duration = backoff(failures, rand::random());
        tokio::time::sleep(wait).await;
    }
}
