//! All policies of the mesh, indexed by what they apply to, and their compilation per workload.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;

use crate::model::Workload;
use crate::model::workload::{PodFacts, WorkloadMtls};

use super::compiled::{Block, Compiled};
use super::explain::Considered;
use super::istio::MtlsSources;
use super::matcher::Matcher;
use super::mtls::{EffectiveMtls, MtlsDefaults};
use super::own::{Exception, Exceptions};
use super::resource::Defect;
use super::resources::Resources;
use super::rule_list::RuleList;
use super::rules::{Action, Policy, Scope};

/// Built once per change of the mesh's policies, out of the one before.
#[derive(Debug, Default)]
pub struct PolicySet {
    by_key: HashMap<Arc<str>, Arc<Entry>>,
    global: Vec<Arc<Entry>>,
    by_namespace: HashMap<Arc<str>, Vec<Arc<Entry>>>,
    mtls: MtlsDefaults,
    resources: Option<Arc<Resources>>,
    /// What of the others could not be taken as it was sent.
    sent_defects: Arc<[Defect]>,
    /// What exceptions are judged by; none is in force where it is not known.
    now: Option<OffsetDateTime>,
    /// Of the resources, by `namespace/name`.
    istio: HashMap<Arc<str>, Arc<Entry>>,
    lists: Lists,
}

impl PolicySet {
    /// A later policy of the same key replaces an earlier one.
    pub fn new(policies: impl IntoIterator<Item = Policy>, mtls: MtlsDefaults) -> Self {
        Self::default().next(policies, mtls, None)
    }

    /// What comes after this one. Policies that are the same in both, and lists of them, are not compiled again.
    pub fn next(
        &self,
        policies: impl IntoIterator<Item = Policy>,
        mtls: MtlsDefaults,
        resources: Option<Arc<Resources>>,
    ) -> Self {
        let mut set = Self { mtls, lists: self.lists.in_use(), now: self.now, ..Self::default() };
        for policy in resources.iter().flat_map(|resources| resources.istio.authorization_policies()) {
            let key = policy.key();
            let entry = match self.istio.get(&key) {
                Some(entry) if entry.policy == *policy => entry.clone(),
                _ => Arc::new(Entry::new(policy.clone())),
            };
            set.istio.insert(key, entry);
        }
        set.resources = resources;
        for policy in policies {
            let key = policy.key();
            let entry = match self.by_key.get(&key) {
                Some(entry) if *entry.policy == policy => entry.clone(),
                _ => Arc::new(Entry::new(Arc::new(policy))),
            };
            set.by_key.insert(key, entry);
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

    /// The same policies, and what of those in the wire form could not be taken as it was sent.
    pub fn with_sent_defects(self, defects: Vec<Defect>) -> Self {
        Self { sent_defects: defects.into(), ..self }
    }

    /// The same policies at another moment.
    pub fn at(&self, now: OffsetDateTime) -> Self {
        Self {
            by_key: self.by_key.clone(),
            global: self.global.clone(),
            by_namespace: self.by_namespace.clone(),
            mtls: self.mtls.clone(),
            resources: self.resources.clone(),
            sent_defects: self.sent_defects.clone(),
            now: Some(now),
            istio: self.istio.clone(),
            lists: self.lists.in_use(),
        }
    }

    /// The moment that its exceptions are judged at, where one is known.
    pub fn now(&self) -> Option<OffsetDateTime> {
        self.now
    }

    /// Both dialects' resources beside what is in the wire form.
    pub fn resources(&self) -> Option<&Arc<Resources>> {
        self.resources.as_ref()
    }

    /// What of all policies, in whichever form they came, could not be taken as it stands.
    pub fn defects(&self) -> impl Iterator<Item = &Defect> {
        let resources = self.resources.iter().flat_map(|resources| resources.defects());
        resources.chain(self.sent_defects.iter())
    }

    /// [`PolicySet::compile`]; the previous one itself where nothing of it has changed.
    pub fn recompile(&self, subject: &Subject<'_>, previous: Option<&Arc<Compiled>>) -> Arc<Compiled> {
        let compiled = self.compile(subject);
        match previous {
            Some(previous) if **previous == compiled => previous.clone(),
            _ => Arc::new(compiled),
        }
    }

    /// What holds for connections to `subject`.
    pub fn compile(&self, subject: &Subject<'_>) -> Compiled {
        let (applying, blocks) = self.applying(subject);
        let beside_rules = Compiled { blocks, ..self.beside_rules(subject) };
        let with = |dry_run: bool| {
            let mut compiled = beside_rules.clone();
            let in_force = || applying.iter().filter(|entry| dry_run || !entry.policy.dry_run);
            for entry in in_force() {
                let defect = entry.policy.defect.iter();
                let block = |defect| Block::defective_policy(&entry.matcher.resource, defect);
                compiled.blocks.extend(defect.map(block));
            }
            let list = |action| {
                let of = in_force().filter(|entry| entry.policy.action == action);
                self.lists.get(of.map(|entry| entry.matcher.clone()).collect())
            };
            compiled.deny = list(Action::Deny);
            compiled.allow = list(Action::Allow);
            compiled.audit = list(Action::Audit);
            compiled
        };
        let would = applying.iter().any(|entry| entry.policy.dry_run).then(|| Box::new(with(true)));
        Compiled { would, ..with(false) }
    }

    /// What is asked of connections to `subject` before any rule, and which resources say so.
    pub fn mtls(&self, subject: &Subject<'_>) -> (EffectiveMtls, MtlsSources) {
        let mtls = self.mtls.resolve(subject.namespace, subject.mtls);
        match &self.resources {
            Some(resources) => resources.istio.mtls(subject, &mtls),
            None => (mtls, MtlsSources::default()),
        }
    }

    /// The PeerAuthentications that are for `subject`, each with what it says of the port and whether it decides.
    pub fn peer_authentications(&self, subject: &Subject<'_>, port: u16) -> Vec<Considered> {
        let Some(resources) = &self.resources else { return Vec::new() };
        let default = self.mtls.resolve(subject.namespace, subject.mtls);
        resources.istio.peer_authentications(subject, &default, port)
    }

    /// Mutual TLS, stance and names, without any rule.
    fn beside_rules(&self, subject: &Subject<'_>) -> Compiled {
        let (mtls, by) = self.mtls(subject);
        let Some(resources) = &self.resources else { return Compiled::new(mtls) };
        let settings = &resources.settings;
        Compiled {
            mtls_by: [by.mode, by.ports],
            phase: resources.own.phase(subject),
            exceptions: self.exceptions(resources, subject),
            stance: settings.stance_of(subject.namespace),
            linkerd: Some(Arc::new(resources.linkerd.inbound(subject))),
            linkerd_namespace: settings.linkerd_namespace.clone(),
            ..Compiled::new(mtls)
        }
    }

    fn exceptions(&self, resources: &Resources, subject: &Subject<'_>) -> Exceptions {
        let all = resources.own.exceptions_for(subject);
        // Without a clock nobody can tell that one has not lapsed.
        let in_force = |one: &Arc<Exception>| self.now.is_some_and(|now| one.is_in_force(now));
        let (in_force, lapsed): (Vec<_>, Vec<_>) = all.partition(in_force);
        let list = self.lists.get(in_force.iter().map(|one| one.matcher.clone()).collect());
        Exceptions::new(in_force, lapsed, list)
    }

    /// In the order in which verdicts name them: the mesh's, the namespace's, those that the workload names.
    fn applying(&self, subject: &Subject<'_>) -> (Vec<&Arc<Entry>>, Vec<Block>) {
        let mut seen = HashSet::new();
        let in_scope =
            self.global.iter().chain(self.by_namespace.get(subject.namespace).into_iter().flatten());
        let mut applying: Vec<_> = in_scope.filter(|entry| seen.insert(Arc::as_ptr(entry))).collect();
        let mut blocks = Vec::new();
        for key in subject.policies {
            match self.by_key.get(key) {
                Some(entry) if seen.insert(Arc::as_ptr(entry)) => applying.push(entry),
                Some(_) => {}
                None => blocks.push(Block::unknown_policy(key)),
            }
        }
        let selected = self.resources.iter().flat_map(|resources| resources.istio.policies(subject));
        applying.extend(selected.filter_map(|policy| self.istio.get(&policy.key())));
        (applying, blocks)
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
struct Entry {
    policy: Arc<Policy>,
    matcher: Arc<Matcher>,
}

impl Entry {
    fn new(policy: Arc<Policy>) -> Self {
        Self { matcher: Arc::new(Matcher::new(&policy)), policy }
    }
}

/// The lists that workloads have, each once: many workloads have the same.
#[derive(Debug, Default)]
pub(super) struct Lists(Mutex<HashMap<Box<[usize]>, Arc<RuleList>>>);

impl Lists {
    pub(super) fn get(&self, policies: Vec<Arc<Matcher>>) -> Arc<RuleList> {
        // By where they are: a list holds its policies, so that nothing else is there as long as it stands.
        let key = policies.iter().map(|policy| Arc::as_ptr(policy).addr()).collect();
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.entry(key).or_insert_with(|| Arc::new(RuleList::new(policies))).clone()
    }

    /// Without those that nothing has any more.
    pub(super) fn in_use(&self) -> Self {
        let lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = lists.iter().filter(|(_, list)| Arc::strong_count(list) > 1);
        Self(Mutex::new(used.map(|(key, list)| (key.clone(), list.clone())).collect()))
    }
}
