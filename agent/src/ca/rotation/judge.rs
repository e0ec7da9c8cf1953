//! Where a rotation stands and whether it may go on, or back: a function of what was done and what was
//! observed.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::observed::{Cluster, nodes, reports};
use super::{ControllerView, Observed, Phase, Record, root_ids};

/// Why a step has to wait.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase", tag = "why")]
pub enum Blocked {
    /// Nobody could be asked, so nothing is known.
    NoController,
    /// It still tells agents an earlier set of roots.
    ControllerRoots { controller: String },
    /// It still signs with another authority.
    ControllerAuthority { controller: String },
    /// Why it has not taken them.
    ControllerTrouble { controller: String, trouble: String },
    /// Another cluster's does not tell its agents all roots that they will meet.
    ElsewhereRoots { controller: String },
    /// No agent of this node follows any controller.
    NotConnected { node: String },
    /// An agent of this node has not said that it trusts what the controller tells.
    NotAcknowledged { node: String },
    /// An agent of this node holds a later revision than the controller tells.
    #[serde(rename_all = "camelCase")]
    HoldsLater { node: String, holds: u64, told: u64 },
    /// A certificate chains to a root that is to go.
    Certificate { node: String, identity: String },
    /// Live tunnels rest on a root that is to go.
    Tunnels { node: String, count: u64 },
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoController => f.write_str("no controller was asked: name each by --controller SOCKET"),
            Self::ControllerRoots { controller } => {
                write!(
                    f,
                    "the controller at {controller} has not taken the new root-cert.pem and revision yet"
                )
            }
            Self::ControllerAuthority { controller } => {
                write!(f, "the controller at {controller} does not sign with the folder's ca-cert.pem yet")
            }
            Self::ControllerTrouble { controller, trouble } => {
                write!(f, "the controller at {controller} goes on with the files it had: {trouble}")
            }
            Self::ElsewhereRoots { controller } => write!(
                f,
                "the controller at {controller}, of another cluster, does not tell its agents all of the roots: do \
                 this step there first"
            ),
            Self::NotConnected { node } => write!(f, "node {node} follows no controller: is its agent up?"),
            Self::NotAcknowledged { node } => write!(f, "node {node} has not acknowledged the roots"),
            Self::HoldsLater { node, holds, told } => write!(
                f,
                "node {node} holds revision {holds} of the roots and takes no earlier one, and the controller tells \
                 {told}: if the folder is an old copy, see \"A folder from a backup\" in docs/identity.md"
            ),
            Self::Certificate { node, identity } => {
                write!(f, "node {node} holds a certificate of {identity} under a root that is to go")
            }
            Self::Tunnels { node, count } => {
                write!(f, "node {node} has {count} live tunnels that rest on a root that is to go")
            }
        }
    }
}

/// Where a rotation stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    pub phase: Phase,
    /// What the next step waits for; nothing: it may be done.
    pub next: Vec<Blocked>,
    /// What the step back waits for.
    pub back: Vec<Blocked>,
}

/// `authority` is the key identifier (hexadecimal) of the folder's issuing certificate. Nodes in `without`
/// are not waited for.
pub fn judge(
    record: &Record,
    authority: &str,
    observed: &Observed,
    without: &BTreeSet<String>,
) -> Result<Standing, String> {
    let new = root_ids(&record.new_root)?;
    let old = root_ids(&record.old_roots)?;
    let told = root_ids(&record.roots())?;
    let own = Look { cluster: observed.own(), without };
    let others: Vec<_> = observed.others().into_iter().map(|cluster| Look { cluster, without }).collect();
    let rests_only_on = |roots: &[String]| -> Vec<Blocked> {
        std::iter::once(&own).chain(&others).flat_map(|look| look.rests_only_on(roots)).collect()
    };
    let trusted = || [own.controllers_tell(&told, record.revision), own.acknowledged()].concat();
    // Their own steps may be ahead of ours, or behind.
    let trusted_elsewhere = |roots: &[String]| -> Vec<Blocked> {
        others
            .iter()
            .flat_map(|look| [look.controllers_tell_of(roots), look.acknowledged()].concat())
            .collect()
    };
    let (next, back) = match record.phase {
        // Telling of one root more takes nothing from anybody.
        Phase::Named => (vec![], vec![]),
        Phase::BothTrusted => {
            // Whoever was given a certificate under the new root while it was possible still uses it.
            let unused = [own.controllers_sign(authority, &old), rests_only_on(&old)].concat();
            ([trusted(), trusted_elsewhere(&told)].concat(), unused)
        }
        Phase::NewIssues => {
            let signs = own.controllers_sign(authority, &new);
            let moved = [trusted(), trusted_elsewhere(&new), signs, rests_only_on(&new)].concat();
            // What would be issued under the old root again is for agents that trust it again.
            (moved, [trusted(), trusted_elsewhere(&told)].concat())
        }
        Phase::OldWithdrawn => (trusted(), vec![]),
    };
    Ok(Standing { phase: record.phase, next: sorted(next), back: sorted(back) })
}

fn sorted(mut blocked: Vec<Blocked>) -> Vec<Blocked> {
    blocked.sort();
    blocked.dedup();
    blocked
}

struct Look<'a> {
    cluster: Cluster<'a>,
    without: &'a BTreeSet<String>,
}

impl<'a> Look<'a> {
    fn nodes(&self) -> impl Iterator<Item = &'a str> {
        let without = self.without;
        nodes(&self.cluster).into_iter().filter(move |node| !without.contains(*node))
    }

    fn controllers_tell_of(&self, roots: &[String]) -> Vec<Blocked> {
        let behind = self.cluster.iter().filter(|(_, c)| !c.tells_of(roots));
        told(behind, |controller| Blocked::ElsewhereRoots { controller })
    }

    fn controllers_tell(&self, roots: &[String], revision: u64) -> Vec<Blocked> {
        if self.cluster.is_empty() {
            return vec![Blocked::NoController];
        }
        let behind = self.cluster.iter().filter(|(_, c)| !c.tells(roots) || c.revision < revision);
        told(behind, |controller| Blocked::ControllerRoots { controller })
    }

    /// With the folder's issuing certificate, and under one of these roots: another certificate may have the
    /// same key.
    fn controllers_sign(&self, authority: &str, roots: &[String]) -> Vec<Blocked> {
        if self.cluster.is_empty() {
            return vec![Blocked::NoController];
        }
        let signs = |c: &ControllerView| {
            !authority.is_empty() && c.authority.eq_ignore_ascii_case(authority) && roots.contains(&c.root)
        };
        let behind = self.cluster.iter().filter(|(_, c)| !signs(c));
        told(behind, |controller| Blocked::ControllerAuthority { controller })
    }

    /// That every agent trusts what its controller tells. What a controller tells is asked elsewhere.
    fn acknowledged(&self) -> Vec<Blocked> {
        let mut blocked = Vec::new();
        for node in self.nodes() {
            let mut reports = reports(&self.cluster, node).peekable();
            if reports.peek().is_none() {
                blocked.push(Blocked::NotConnected { node: node.to_owned() });
            }
            // Of two agents on a node, the one that leaves still carries connections.
            for (controller, agent) in reports {
                let (holds, told) = (agent.revision, controller.revision);
                if holds > told {
                    blocked.push(Blocked::HoldsLater { node: node.to_owned(), holds, told });
                } else if holds < told || agent.version != controller.version {
                    blocked.push(Blocked::NotAcknowledged { node: node.to_owned() });
                }
            }
        }
        blocked
    }

    /// That no certificate and no tunnel needs any root but these. An agent that cannot be asked may.
    fn rests_only_on(&self, roots: &[String]) -> Vec<Blocked> {
        let mut blocked = Vec::new();
        for node in self.nodes() {
            let mut reports = reports(&self.cluster, node).peekable();
            if reports.peek().is_none() {
                blocked.push(Blocked::NotConnected { node: node.to_owned() });
            }
            for (_, agent) in reports {
                if agent.version.is_empty() {
                    // It has said nothing yet, which is not that it holds nothing.
                    blocked.push(Blocked::NotAcknowledged { node: node.to_owned() });
                }
                let held = agent.certificates.iter().filter(|c| !roots.contains(&c.root));
                blocked.extend(
                    held.map(|c| Blocked::Certificate {
                        node: node.to_owned(),
                        identity: c.identity.clone(),
                    }),
                );
                let resting = agent.tunnels.iter().filter(|t| !roots.contains(&t.root));
                let count: u64 = resting.map(|t| t.count).sum();
                if count > 0 {
                    blocked.push(Blocked::Tunnels { node: node.to_owned(), count });
                }
            }
        }
        blocked
    }
}

/// Of each that is behind, and why if it has said so.
fn told<'a>(
    behind: impl Iterator<Item = &'a &'a (String, ControllerView)>,
    blocked: impl Fn(String) -> Blocked,
) -> Vec<Blocked> {
    let each = behind.flat_map(|(name, view)| {
        let controller = name.clone();
        let trouble = view.trouble.clone();
        let trouble = trouble.map(|trouble| Blocked::ControllerTrouble { controller, trouble });
        [blocked(name.clone())].into_iter().chain(trouble)
    });
    each.collect()
}
