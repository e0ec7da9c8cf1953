//! What controllers say about the agents that follow them: `GET /agents` of each.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// One controller's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerView {
    /// Of the roots and the authority that it tells agents.
    pub version: String,
    /// How often a rotation has changed these.
    #[serde(default)]
    pub revision: u64,
    /// The key identifier of the authority that it signs with, in hexadecimal.
    pub authority: String,
    /// The root that this authority rests on.
    #[serde(default)]
    pub root: String,
    /// What it tells agents to trust.
    pub roots: Vec<RootView>,
    /// The nodes that it knows of, whether they ever came or not.
    pub expected: Vec<String>,
    pub agents: Vec<AgentView>,
    /// Why it has not taken the authority's files in as they are now.
    #[serde(default)]
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootView {
    /// Of its DER, in hexadecimal.
    pub sha256: String,
    #[serde(default)]
    pub subject: String,
    #[serde(default)]
    pub not_after: String,
}

/// The last report of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    pub node: String,
    /// Whether it follows the controller now.
    pub connected: bool,
    /// What its handshakes are judged by.
    pub version: String,
    /// Of the last update that it took.
    #[serde(default)]
    pub revision: u64,
    pub certificates: Vec<HeldView>,
    pub tunnels: Vec<RestingView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldView {
    pub identity: String,
    /// The key identifier of the authority that signed it.
    pub authority: String,
    /// The root that it chains to.
    pub root: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestingView {
    pub root: String,
    pub count: u64,
}

/// All controllers' answers, each under the name it was asked by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub controllers: Vec<(String, ControllerView)>,
    /// Of clusters with authorities of their own, whose agents meet ours.
    pub elsewhere: Vec<(String, ControllerView)>,
}

/// Controllers that a node may follow any of. Nodes of another cluster may have the same names.
pub(super) type Cluster<'a> = Vec<&'a (String, ControllerView)>;

impl Observed {
    /// Every node that is to be waited for.
    pub fn nodes(&self) -> BTreeSet<&str> {
        let others = self.others();
        nodes(&self.own()).into_iter().chain(others.iter().flat_map(nodes)).collect()
    }

    pub(super) fn own(&self) -> Cluster<'_> {
        self.controllers.iter().collect()
    }

    /// One by one. Replicas with the same files say the same version; one that is late blocks, for a while.
    pub(super) fn others(&self) -> Vec<Cluster<'_>> {
        let mut others: BTreeMap<&str, Cluster<'_>> = BTreeMap::new();
        for one in &self.elsewhere {
            others.entry(&one.1.version).or_default().push(one);
        }
        others.into_values().collect()
    }
}

pub(super) fn nodes<'a>(cluster: &Cluster<'a>) -> BTreeSet<&'a str> {
    let all = cluster.iter().flat_map(|(_, c)| {
        let connected = c.agents.iter().filter(|a| a.connected).map(|a| a.node.as_str());
        c.expected.iter().map(String::as_str).chain(connected)
    });
    all.collect()
}

/// The reports that a node's agents make now. More than one while an agent is replaced, or when it
/// has just gone from one controller to another.
pub(super) fn reports<'a>(
    cluster: &Cluster<'a>,
    node: &str,
) -> impl Iterator<Item = (&'a ControllerView, &'a AgentView)> {
    cluster.iter().flat_map(move |(_, c)| {
        c.agents.iter().filter(move |a| a.connected && a.node == node).map(move |a| (c, a))
    })
}

impl ControllerView {
    /// Whether it tells agents to trust exactly these.
    pub(super) fn tells(&self, roots: &[String]) -> bool {
        let told: BTreeSet<&str> = self.roots.iter().map(|r| r.sha256.as_str()).collect();
        told == roots.iter().map(String::as_str).collect()
    }

    /// Whether these are among what it tells agents to trust.
    pub(super) fn tells_of(&self, roots: &[String]) -> bool {
        roots.iter().all(|root| self.roots.iter().any(|told| told.sha256 == *root))
    }
}
