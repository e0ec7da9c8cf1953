//! PlaintextException: who may go on without identity where mutual TLS is asked for, to which ports, why, and until
//! when.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::{GROUP, VERSION, resource};
use crate::policy::listed::Listed;
use crate::policy::matcher::Matcher;
use crate::policy::read::{Faults, Fields, Node};
use crate::policy::resource::{Defect, Kind, ResourceRef};
use crate::policy::rules::{Action, Group, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};
use crate::policy::{LabelSelector, Object, Subject};

/// One that was understood as a whole: of one that was not, nothing holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Exception {
    /// None: every workload of its namespace. Never of others, and the root namespace is no exception: a hole in the
    /// whole mesh would be one object, and whoever looks at the namespace that it opens would not find it there.
    selector: Option<LabelSelector>,
    /// One group for each of `from`, asked with whoever is known at the client's address in the place of an identity.
    pub(in crate::policy) matcher: Arc<Matcher>,
    pub reason: Arc<str>,
    /// From this moment on it admits nobody.
    pub until: OffsetDateTime,
}

/// How one stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    InForce,
    LapsesSoon,
    Lapsed,
    /// It could not be understood, and admits nobody.
    Defective,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InForce => "in force",
            Self::LapsesSoon => "lapses soon",
            Self::Lapsed => "lapsed",
            Self::Defective => "defective",
        })
    }
}

/// How long before it lapses it is warned of. The first is what `soon` means.
const WARNINGS: [Duration; 3] = [Duration::days(14), Duration::days(3), Duration::days(1)];

impl Exception {
    pub fn resource(&self) -> &Arc<ResourceRef> {
        &self.matcher.resource
    }

    /// In RFC 3339, as it is written.
    pub fn until_text(&self) -> String {
        self.until.format(&Rfc3339).unwrap_or_default()
    }

    pub fn is_in_force(&self, now: OffsetDateTime) -> bool {
        now < self.until
    }

    pub fn standing(&self, now: OffsetDateTime) -> Standing {
        match self.warnings(now) {
            0 => Standing::InForce,
            _ if self.is_in_force(now) => Standing::LapsesSoon,
            _ => Standing::Lapsed,
        }
    }

    /// How many of the moments at which it is warned of have come, its lapse among them.
    pub fn warnings(&self, now: OffsetDateTime) -> usize {
        self.moments().filter(|moment| *moment <= now).count()
    }

    /// The next of these moments; none once it has lapsed.
    pub fn next(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.moments().find(|moment| *moment > now)
    }

    fn moments(&self) -> impl Iterator<Item = OffsetDateTime> {
        WARNINGS.into_iter().map(|before| self.until.saturating_sub(before)).chain([self.until])
    }

    pub fn selects(&self, subject: &Subject<'_>) -> bool {
        *self.resource().namespace == *subject.namespace
            && self.selector.as_ref().is_none_or(|selector| selector.selects(&subject.facts.labels))
    }

    pub fn selector(&self) -> Option<&LabelSelector> {
        self.selector.as_ref()
    }

    pub fn ports(&self) -> BTreeSet<u16> {
        self.matches().flat_map(|one| one.destination_ports.iter().copied()).collect()
    }

    /// Each of `from` in words: `namespaces [legacy], ipBlocks [10.0.0.0/8]`.
    pub fn from(&self) -> Vec<String> {
        self.matches().map(words).collect()
    }

    fn matches(&self) -> impl Iterator<Item = &Match> {
        let rules = self.matcher.policy.groups.iter().flat_map(|group| &group.rules);
        rules.flat_map(|rule| &rule.matches)
    }
}

fn words(one: &Match) -> String {
    let lists = [
        ("namespaces", Listed::Strings(&one.namespaces)),
        ("serviceAccounts", Listed::Accounts(&one.service_accounts)),
        ("ipBlocks", Listed::Nets(&one.source_ips)),
    ];
    let given = lists.iter().filter(|(_, list)| !list.is_empty());
    given.map(|(name, list)| format!("{name} {list}")).collect::<Vec<_>>().join(", ")
}

const HOLDS: &str = "it admits nobody";

impl Exception {
    /// None: some part of it is not understood, and what is left may be wider than what was meant.
    pub(super) fn read(object: &Object, defects: &mut Vec<Defect>) -> Option<Self> {
        let mut faults = Faults::new(resource(Kind::PlaintextException, object), HOLDS);
        let exception = Self::understood(object, &mut faults);
        let broken = faults.broken().is_some();
        defects.append(&mut faults.defects);
        exception.filter(|_| !broken)
    }

    /// Reads on after a fault, so that all of them are told at once.
    fn understood(object: &Object, faults: &mut Faults) -> Option<Self> {
        if *object.version != *VERSION {
            faults.invalid("apiVersion", format_args!("there is no {GROUP}/{}: {VERSION}", object.version));
        }
        let known = ["selector", "from", "ports", "reason", "until"];
        let fields = Node::spec(&object.spec).fields(&known, faults);
        let selector = fields.get("selector").map(|node| node.selector(faults));
        let ports = list(&fields, "ports", faults, port);
        let from: Vec<Match> = required_items(&fields, "from", faults)
            .iter()
            .map(|node| source(node, &object.meta.namespace, faults))
            .collect();
        let reason = fields.required("reason", faults).and_then(|node| {
            let text = node.name(faults)?;
            if text.trim().is_empty() {
                faults.invalid(&node.path, "it is empty");
            }
            Some(text.into())
        });
        let until = fields.required("until", faults).and_then(|node| moment(&node, faults));
        let group = |one| {
            let matches = vec![Match { destination_ports: ports.clone(), ..one }];
            Group { rules: vec![Rule { matches }], never: None }
        };
        let policy = Policy {
            kind: Kind::PlaintextException,
            namespace: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
            scope: Scope::WorkloadSelector,
            action: Action::Allow,
            dry_run: false,
            groups: from.into_iter().map(group).collect(),
            defect: None,
        };
        Some(Self {
            // An empty selector is none.
            selector: selector.filter(|selector| *selector != LabelSelector::default()),
            matcher: Arc::new(Matcher::new(&Arc::new(policy))),
            reason: reason?,
            until: until?,
        })
    }
}

/// One of `from`. All of its fields have to hold; one that lists nothing would ask for nothing.
fn source(node: &Node<'_>, namespace: &str, faults: &mut Faults) -> Match {
    const FIELDS: [&str; 3] = ["namespaces", "serviceAccounts", "ipBlocks"];
    let fields = node.fields(&FIELDS, faults);
    if FIELDS.iter().all(|field| fields.get(field).is_none()) {
        faults.invalid(&node.path, format_args!("it names nobody: {}", FIELDS.join(", ")));
    }
    let given = |field| fields.get(field).is_some();
    let mut one = Match::default();
    if given("namespaces") {
        one.namespaces = list(&fields, "namespaces", faults, |node, faults| {
            exact(node, faults).map(|text| StringMatch::Exact(text.into()))
        });
    }
    if given("serviceAccounts") {
        one.service_accounts =
            list(&fields, "serviceAccounts", faults, |node, faults| account(node, namespace, faults));
    }
    if given("ipBlocks") {
        one.source_ips = list(&fields, "ipBlocks", faults, |node, faults| node.network(faults));
    }
    one
}

/// The items of a list that has to be there and not to be empty.
fn required_items<'a>(fields: &Fields<'a>, key: &str, faults: &mut Faults) -> Vec<Node<'a>> {
    let Some(node) = fields.required(key, faults) else { return Vec::new() };
    let items = node.items(faults);
    if items.is_empty() && node.value().is_array() {
        faults.invalid(&node.path, "it is empty");
    }
    items
}

fn list<'a, T>(
    fields: &Fields<'a>,
    key: &str,
    faults: &mut Faults,
    read: impl Fn(&Node<'a>, &mut Faults) -> Option<T>,
) -> Vec<T> {
    required_items(fields, key, faults).iter().filter_map(|node| read(node, faults)).collect()
}

fn port(node: &Node<'_>, faults: &mut Faults) -> Option<u16> {
    let port = node.value().as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port > 0);
    if port.is_none() {
        faults.invalid(&node.path, format_args!("{} is no port: 1 to 65535", node.value()));
    }
    port
}

/// A name without wildcard: a pattern would admit who comes later.
fn exact<'a>(node: &Node<'a>, faults: &mut Faults) -> Option<&'a str> {
    let text = node.name(faults)?;
    if text.contains('*') || text.contains('/') {
        faults.invalid(
            &node.path,
            format_args!("{text:?} is no namespace, of which there are no patterns here"),
        );
        return None;
    }
    Some(text)
}

/// `namespace/name`, or `name` in the exception's own namespace.
fn account(node: &Node<'_>, own: &str, faults: &mut Faults) -> Option<ServiceAccount> {
    let text = node.name(faults)?;
    let (namespace, name) = text.split_once('/').unwrap_or((own, text));
    if text.contains('*') || namespace.is_empty() || name.is_empty() || name.contains('/') {
        let what = format_args!("{text:?} is no service account: namespace/name or name, without wildcard");
        faults.invalid(&node.path, what);
        return None;
    }
    Some(ServiceAccount { namespace: namespace.into(), service_account: name.into() })
}

fn moment(node: &Node<'_>, faults: &mut Faults) -> Option<OffsetDateTime> {
    let text = node.text(faults)?;
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(until) => Some(until),
        Err(_) => {
            let what = format_args!("{text:?} is no time as in RFC 3339, 2027-01-31T00:00:00Z");
            faults.invalid(&node.path, what);
            None
        }
    }
}
