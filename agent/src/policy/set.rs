//! All policies of the mesh, indexed by what they apply to, and their compilation per workload.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::model::Workload;
use crate::model::workload::{PodFacts, WorkloadMtls};

use super::compiled::{Block, Compiled};
use super::matcher::Matcher;
use super::mtls::MtlsDefaults;
use super::rules::{Action, Policy, Scope};

/// Built once per change of the mesh's policies.
#[derive(Debug, Default)]
pub struct PolicySet {
    by_key: HashMap<Arc<str>, Arc<Entry>>,
    global: Vec<Arc<Entry>>,
    by_namespace: HashMap<Arc<str>, Vec<Arc<Entry>>>,
    mtls: MtlsDefaults,
}

impl PolicySet {
    /// A later policy of the same key replaces an earlier one.
    pub fn new(policies: impl IntoIterator<Item = Policy>, mtls: MtlsDefaults) -> Self {
        let mut set = Self { mtls, ..Self::default() };
        for policy in policies {
            let key = policy.key();
            let matcher = Arc::new(Matcher::new(&policy));
            set.by_key.insert(key, Arc::new(Entry { policy: Arc::new(policy), matcher }));
        }
        let mut entries: Vec<_> = set.by_key.values().cloned().collect();
        // Which of several matching policies a verdict names must not depend on hashing.
        entries.sort_by(|a, b| a.matcher.name().cmp(b.matcher.name()));
        for entry in entries {
            match entry.policy.scope {
                Scope::Global => set.global.push(entry),
                Scope::Namespace => {
                    set.by_namespace.entry(entry.policy.namespace.clone()).or_default().push(entry);
                }
                Scope::WorkloadSelector => {}
            }
        }
        set
    }

    /// What holds for connections to `subject`.
    pub fn compile(&self, subject: &Subject<'_>) -> Compiled {
        let mut compiled = Compiled::new(self.mtls.resolve(subject.namespace, subject.mtls));
        let mut dry_run = Vec::new();
        let mut seen = HashSet::new();
        let in_scope =
            self.global.iter().chain(self.by_namespace.get(subject.namespace).into_iter().flatten());
        for entry in in_scope {
            if seen.insert(entry.matcher.name().clone()) {
                compiled.add(entry, &mut dry_run);
            }
        }
        for key in subject.policies {
            match self.by_key.get(key) {
                Some(entry) if seen.insert(key.clone()) => compiled.add(entry, &mut dry_run),
                Some(_) => {}
                None => compiled.block(Block::unknown_policy(key)),
            }
        }
        if !dry_run.is_empty() {
            let mut would = compiled.clone();
            dry_run.into_iter().for_each(|entry| would.enforce(entry));
            compiled.would = Some(Box::new(would));
        }
        compiled
    }

    pub fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        self.by_key.get(key).map(|entry| &entry.policy)
    }

    /// In no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.values().map(|entry| &entry.policy)
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

/// The parts of a workload that decide which policies apply to it. Equal subjects compile alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject<'a> {
    pub namespace: &'a str,
    pub policies: &'a [Arc<str>],
    pub mtls: &'a WorkloadMtls,
    pub facts: &'a PodFacts,
}

impl<'a> Subject<'a> {
    /// One of which nothing is known but what is said here.
    pub fn named(namespace: &'a str, policies: &'a [Arc<str>], mtls: &'a WorkloadMtls) -> Self {
        static NOTHING: PodFacts = PodFacts::NONE;
        Self { namespace, policies, mtls, facts: &NOTHING }
    }
}

impl<'a> From<&'a Workload> for Subject<'a> {
    fn from(workload: &'a Workload) -> Self {
        Self {
            namespace: &workload.namespace,
            policies: &workload.policies,
            mtls: &workload.mtls,
            facts: &workload.facts,
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    policy: Arc<Policy>,
    matcher: Arc<Matcher>,
}

impl Compiled {
    fn add<'a>(&mut self, entry: &'a Entry, dry_run: &mut Vec<&'a Entry>) {
        match entry.policy.dry_run {
            true => dry_run.push(entry),
            false => self.enforce(entry),
        }
    }

    fn enforce(&mut self, entry: &Entry) {
        if let Some(defect) = &entry.policy.defect {
            self.block(Block::defective_policy(entry.matcher.name(), defect));
        }
        match entry.policy.action {
            Action::Allow => self.allow.push(entry.matcher.clone()),
            Action::Deny => self.deny.push(entry.matcher.clone()),
            Action::Audit => self.audit.push(entry.matcher.clone()),
        }
    }
}
