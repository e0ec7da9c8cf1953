//! Where the answers come from: published values that the application wires up once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::views::{
    MeshStatus, PodCounts, PodStateView, PodView, ServiceView, SourceView, Status, Workloads,
};
use crate::bpf::Kernel;
use crate::certs::{CertView, TrustView};
use crate::discovery::exceptions::Listed;
use crate::discovery::{Snapshot, Store};
use crate::lifecycle::{Readiness, Shutdown};
use crate::model::workload::Health;
use crate::model::{LocalPod, NetnsCookie};
use crate::pods::{EnrolledPod, PodState, Table};
use crate::policy::Policy;
use crate::telemetry::process::LogControl;
use crate::telemetry::{ObservedAgent, ObservedView, Telemetry, rfc3339};

pub struct Sources {
    pub instance: String,
    pub node: String,
    pub started: SystemTime,
    pub telemetry: Telemetry,
    pub readiness: Readiness,
    pub shutdown: Shutdown,
    pub log: LogControl,
    pub store: Store,
    pub pods: Arc<ArcSwap<Table>>,
    pub kernel: Arc<dyn Kernel>,
    pub trust: Box<dyn Fn() -> TrustView + Send + Sync>,
    pub certificates: Box<dyn Fn() -> Vec<CertView> + Send + Sync>,
    /// The source of workloads and policy.
    pub mesh: Box<dyn Fn() -> SourceView + Send + Sync>,
    /// The configuration in force. It must not hold secrets, only paths to them.
    pub config: serde_json::Value,
}

impl Sources {
    pub(super) fn status(&self) -> Status {
        let (snapshot, pods) = (self.store.current(), self.pods.load());
        let pending = self.readiness.pending();
        let mut policy_defects: Vec<_> = snapshot.policies().defects().cloned().collect();
        policy_defects.sort();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            instance: self.instance.clone(),
            node: self.node.clone(),
            pid: std::process::id(),
            started: rfc3339(self.started),
            ready: pending.is_empty(),
            pending,
            stopping: self.shutdown.reason().map(ToOwned::to_owned),
            mesh: MeshStatus {
                revision: snapshot.revision(),
                trust_domain: snapshot.trust_domain().map(ToString::to_string),
                workloads: snapshot.workloads().len(),
                services: snapshot.services().len(),
                policies: snapshot.policies().len(),
            },
            source: (self.mesh)(),
            pods: count(&pods),
            connections: self.telemetry.connection_count(),
            findings: self.findings(&pods),
            policy_defects,
        }
    }

    /// Who was seen to connect to this node's pods.
    pub(super) fn observed(&self) -> ObservedView {
        let (node, instance) = (self.node.clone(), self.instance.clone());
        ObservedView { agents: vec![ObservedAgent { node, instance, ..self.telemetry.observed() }] }
    }

    fn findings(&self, pods: &[PodState]) -> Vec<String> {
        let files = (self.trust)().files.into_iter();
        let refused = files.filter_map(|file| {
            let why = file.problem?;
            Some(format!(
                "trust file {}: {why}; what was read at {} is in force",
                file.path.display(),
                file.accepted
            ))
        });
        audit(pods, self.rows()).into_iter().chain(refused).collect()
    }

    pub(super) fn workloads(&self) -> Workloads {
        let mut all: Vec<_> = self.store.current().workloads().cloned().collect();
        all.sort_by(|a, b| a.uid.cmp(&b.uid));
        all
    }

    pub(super) fn services(&self) -> Vec<ServiceView> {
        let snapshot = self.store.current();
        let mut endpoints: HashMap<&str, (usize, usize)> = HashMap::new();
        for workload in snapshot.workloads() {
            for key in workload.services.keys() {
                let (all, healthy) = endpoints.entry(key).or_default();
                *all += 1;
                *healthy += usize::from(workload.health == Health::Healthy);
            }
        }
        let mut views: Vec<_> = snapshot
            .services()
            .map(|service| {
                let (all, healthy) = endpoints.get(&*service.key()).copied().unwrap_or_default();
                ServiceView { service: Arc::clone(service), endpoints: all, healthy }
            })
            .collect();
        views.sort_by_key(|view| view.service.key());
        views
    }

    pub(super) fn policies(&self) -> Vec<Arc<Policy>> {
        let mut all: Vec<_> = self.store.current().policies().iter().cloned().collect();
        all.sort_by_key(|policy| policy.key());
        all
    }

    pub(super) fn exceptions(&self) -> Vec<Listed> {
        self.store.current().listed_exceptions_at(self.store.now())
    }

    pub(super) fn pods(&self) -> Vec<PodView> {
        let (snapshot, rows) = (self.store.current(), self.rows().ok());
        let mut connections: HashMap<_, usize> = HashMap::new();
        for connection in self.telemetry.connections() {
            *connections.entry(connection.pod).or_default() += 1;
        }
        let mut views: Vec<_> = self
            .pods
            .load()
            .iter()
            .map(|state| {
                let mut view = pod_view(state, &snapshot, rows.as_ref());
                view.connections = connections.get(&view.uid).copied().unwrap_or_default();
                view
            })
            .collect();
        views.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        views
    }

    /// The pods that the kernel's maps have, or why they cannot be read.
    fn rows(&self) -> Result<BTreeSet<NetnsCookie>, String> {
        self.kernel.enrolled().map(|rows| rows.into_iter().collect()).map_err(|e| e.to_string())
    }
}

fn pod_view(state: &PodState, snapshot: &Snapshot, rows: Option<&BTreeSet<NetnsCookie>>) -> PodView {
    let enrolled = |enrolled: &EnrolledPod, state| {
        let cookie = enrolled.netns.cookie();
        PodView {
            capture: Some(enrolled.capture),
            keeps_source: Some(enrolled.keeps_source),
            netns_cookie: Some(cookie.0),
            in_kernel: rows.map(|rows| rows.contains(&cookie)),
            ..decided(&enrolled.pod, state, snapshot)
        }
    };
    match state {
        PodState::Enrolled(pod) => enrolled(pod, PodStateView::Enrolled),
        PodState::Leaving(pod) => enrolled(pod, PodStateView::Leaving),
        PodState::Refused { pod, why, closed } => PodView {
            reason: Some(refusal(why, *closed)),
            netns_cookie: closed.map(|cookie| cookie.0),
            in_kernel: closed.and_then(|cookie| rows.map(|rows| rows.contains(&cookie))),
            ..decided(pod, PodStateView::Refused, snapshot)
        },
    }
}

fn refusal(why: &str, closed: Option<NetnsCookie>) -> String {
    match closed {
        Some(_) => format!("{why} (it is closed meanwhile: it reaches nobody in the mesh, and nobody it)"),
        None => why.to_owned(),
    }
}

fn decided(pod: &LocalPod, state: PodStateView, snapshot: &Snapshot) -> PodView {
    let policy = snapshot.inbound_policy(pod);
    PodView {
        mtls: Some(policy.mtls().clone()),
        policies: policy.policy_names().cloned().collect(),
        ..PodView::of(pod, state)
    }
}

fn count(pods: &[PodState]) -> PodCounts {
    let mut counts = PodCounts::default();
    for state in pods {
        *match state {
            PodState::Enrolled(_) => &mut counts.enrolled,
            PodState::Refused { .. } => &mut counts.refused,
            PodState::Leaving(_) => &mut counts.leaving,
        } += 1;
    }
    counts
}

/// Compares what the agent believes with what the kernel has.
fn audit(pods: &[PodState], rows: Result<BTreeSet<NetnsCookie>, String>) -> Vec<String> {
    let mut rows = match rows {
        Ok(rows) => rows,
        Err(why) => return vec![format!("the kernel's maps cannot be read: {why}")],
    };
    let mut findings = Vec::new();
    for state in pods {
        match state {
            PodState::Enrolled(pod) if !rows.remove(&pod.netns.cookie()) => {
                findings.push(format!("pod {}/{} has no row in the kernel", pod.pod.namespace, pod.pod.name));
            }
            PodState::Refused { pod, why, closed } => {
                closed.map(|cookie| rows.remove(&cookie));
                let why = refusal(why, *closed);
                findings.push(format!("pod {}/{} is not enrolled: {why}", pod.namespace, pod.name));
            }
            PodState::Enrolled(_) | PodState::Leaving(_) => {}
        }
    }
    findings.extend(rows.iter().map(|cookie| {
        format!("the kernel holds network namespace {cookie}, which is no enrolled pod: it stays closed")
    }));
    findings
}
