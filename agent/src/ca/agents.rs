//! What the agents that follow this controller last said of themselves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use underpass_proto::underpass::v1::AgentReport;

use super::attest::NodeName;
use super::rotation::{AgentView, HeldView, RestingView};
use super::signing::hex;

/// The agents, connected or not. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Agents {
    sessions: Arc<Mutex<Sessions>>,
}

#[derive(Debug, Default)]
struct Sessions {
    last: u64,
    live: BTreeMap<u64, Live>,
    /// What nodes that are away trusted when they went, to be seen by people: nothing is decided by it.
    away: BTreeMap<NodeName, String>,
}

#[derive(Debug)]
struct Live {
    node: NodeName,
    report: AgentReport,
}

/// An upgrade has two agents on a node for a while; more are somebody's mistake or worse.
const MOST_OF_A_NODE: usize = 4;

const MOST_AWAY: usize = 4096;

/// More is nobody's node.
const MOST_ENTRIES: usize = 16_384;

/// Whether a report is one that an agent would make: what is kept of it is bounded.
pub fn is_plausible(report: &AgentReport) -> bool {
    let id = |bytes: &[u8]| bytes.len() <= 64;
    report.version.len() <= 128
        && report.certificates.len() <= MOST_ENTRIES
        && report.certificates.iter().all(|c| c.identity.len() <= 2048 && id(&c.authority) && id(&c.root))
        && report.tunnels.len() <= MOST_ENTRIES
        && report.tunnels.iter().all(|t| id(&t.root))
}

impl Agents {
    /// A stream of reports begins; `None` when the node has too many already.
    pub fn enter(&self, node: &NodeName) -> Option<Session> {
        let mut sessions = self.sessions();
        if sessions.live.values().filter(|live| live.node == *node).count() >= MOST_OF_A_NODE {
            return None;
        }
        sessions.last += 1;
        let id = sessions.last;
        sessions.live.insert(id, Live { node: node.clone(), report: AgentReport::default() });
        Some(Session { id, agents: self.clone() })
    }

    /// Everybody, by node.
    pub fn view(&self) -> Vec<AgentView> {
        let sessions = self.sessions();
        let live = sessions.live.values().map(|live| view(&live.node, true, &live.report));
        let away = sessions.away.iter().map(|(node, version)| {
            view(node, false, &AgentReport { version: version.clone(), ..AgentReport::default() })
        });
        let mut all: Vec<AgentView> = live.chain(away).collect();
        all.sort_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// How many agents follow now.
    pub fn connected(&self) -> usize {
        self.sessions().live.len()
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Each change is a single step.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One agent's stream; it ends with the value.
#[derive(Debug)]
pub struct Session {
    id: u64,
    agents: Agents,
}

impl Session {
    /// Replaces what it said before.
    pub fn report(&self, report: AgentReport) {
        let mut sessions = self.agents.sessions();
        if let Some(live) = sessions.live.get_mut(&self.id) {
            live.report = report;
            let node = live.node.clone();
            sessions.away.remove(&node);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut sessions = self.agents.sessions();
        let Some(gone) = sessions.live.remove(&self.id) else { return };
        if sessions.live.values().all(|live| live.node != gone.node) {
            sessions.away.insert(gone.node, gone.report.version);
            // Nodes come and go, and a controller may live long.
            while sessions.away.len() > MOST_AWAY {
                sessions.away.pop_first();
            }
        }
    }
}

fn view(node: &NodeName, connected: bool, report: &AgentReport) -> AgentView {
    AgentView {
        node: node.as_str().to_owned(),
        connected,
        version: report.version.clone(),
        revision: report.revision,
        certificates: report
            .certificates
            .iter()
            .map(|held| HeldView {
                identity: held.identity.clone(),
                authority: hex(&held.authority),
                root: hex(&held.root),
            })
            .collect(),
        tunnels: report
            .tunnels
            .iter()
            .map(|resting| RestingView { root: hex(&resting.root), count: resting.count })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(version: &str) -> AgentReport {
        AgentReport { node: "n1".into(), version: version.into(), ..AgentReport::default() }
    }

    #[test]
    fn each_stream_of_a_node_is_told_apart_and_the_last_report_stays_when_it_is_away() {
        let (agents, node) = (Agents::default(), NodeName::proven("n1"));
        let (old, new) = (agents.enter(&node).unwrap(), agents.enter(&node).unwrap());
        old.report(report("v1"));
        new.report(report("v2"));
        let seen = |agents: &Agents| -> Vec<(bool, String)> {
            agents.view().into_iter().map(|a| (a.connected, a.version)).collect()
        };
        assert_eq!(seen(&agents), [(true, "v1".into()), (true, "v2".into())]);
        drop(old);
        assert_eq!(seen(&agents), [(true, "v2".into())]);
        drop(new);
        assert_eq!(seen(&agents), [(false, "v2".into())]);
        let _back = agents.enter(&node).unwrap();
        _back.report(report("v3"));
        assert_eq!(seen(&agents), [(true, "v3".into())]);
    }

    #[test]
    fn what_no_agent_would_say_is_not_kept() {
        use underpass_proto::underpass::v1::{HeldCertificate, RestingTunnels};
        let held = |identity: usize, id: usize| AgentReport {
            certificates: vec![HeldCertificate {
                identity: "x".repeat(identity),
                authority: vec![0; id],
                root: vec![0; 32],
            }],
            ..report("v1")
        };
        assert!(is_plausible(&held(2048, 20)));
        assert!(!is_plausible(&held(2049, 20)));
        assert!(!is_plausible(&held(20, 65)));
        assert!(!is_plausible(&report(&"v".repeat(129))));
        let many = AgentReport { certificates: vec![HeldCertificate::default(); 20_000], ..report("v1") };
        assert!(!is_plausible(&many));
        let many = AgentReport { tunnels: vec![RestingTunnels::default(); 20_000], ..report("v1") };
        assert!(!is_plausible(&many));
    }

    #[test]
    fn a_node_has_a_few_streams_and_takes_none_from_others() {
        let agents = Agents::default();
        let greedy: Vec<Session> =
            std::iter::from_fn(|| agents.enter(&NodeName::proven("n1"))).take(100).collect();
        assert_eq!(greedy.len(), MOST_OF_A_NODE);
        assert!(agents.enter(&NodeName::proven("n2")).is_some());
    }
}
