//! What would change, and what that opens.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::target::Target;
use crate::discovery::ask::{Offline, first_names};
use crate::discovery::manifest::Manifest;
use crate::model::workload::{PodFacts, WorkloadMtls};
use crate::model::{InboundAction, Workload};
use crate::policy::own::{GROUP, InPhase, Phase, VERSION};
use crate::policy::{
    Action, Compiled, Conn, InboundDefault, Kind, Object, Resources, Settings, Stance, Subject,
};

/// One phase taken back.
pub(super) struct Plan {
    pub before: Phase,
    pub to: Phase,
    /// The Enforcement as it is to be.
    pub document: Value,
    /// Whether there is one already.
    pub replaces: bool,
    /// What it opens, one sentence each.
    pub opens: Vec<String>,
    /// Of those for whom it is, each with what holds then.
    pub after: Vec<(Arc<Workload>, Arc<Compiled>)>,
}

impl Plan {
    /// # Errors
    /// There is no phase to go back to, or this would not take them there.
    pub fn new(
        manifest: &Manifest,
        settings: &Settings,
        target: &Target,
        to: Option<Phase>,
    ) -> anyhow::Result<Self> {
        let before = phase_of(manifest, settings, target);
        let to = match (to, before.phase.back()) {
            (Some(to), _) if to < before.phase => to,
            (Some(to), _) => bail!(
                "{target}: the phase is {} and --to {to} is not before it; a phase is raised by an edit of its Enforcement",
                before.phase
            ),
            (None, Some(back)) => back,
            (None, None) => {
                bail!("{target}: the phase is {} already, and there is none before it", before.phase)
            }
        };
        let (document, replaces) = document(manifest, settings, target, to);
        let changed = with(manifest, &document)?;
        let was: Vec<_> = Offline::new(manifest.clone(), settings.clone()).compiled().collect();
        let is: Vec<_> = Offline::new(changed, settings.clone()).compiled().collect();
        let pairs = was.iter().zip(&is).filter(|((pod, _), _)| target.has(pod));
        let both: Vec<Both<'_>> = pairs.map(|((pod, was), (_, is))| (&**pod, &**was, &**is)).collect();
        let changing: Vec<Both<'_>> = both.iter().filter(|one| is_opened(one)).copied().collect();
        let mut opens = Vec::new();
        if both.is_empty() {
            opens.push(format!("no pod of {target} is among the files: what it opens is not known"));
        } else if changing.is_empty() {
            bail!("{target}: no pod would be in another phase: {}", who_decides(&both));
        }
        opens.extend(plaintext(&changing));
        opens.extend(policies(&changing, settings));
        let stay: Vec<_> = both.iter().filter(|(_, _, is)| is.phase().phase > to).copied().collect();
        if !stay.is_empty() {
            opens.push(format!("not for {}", who_decides(&stay)));
        }
        let after = is.iter().filter(|(pod, _)| target.has(pod)).cloned().collect();
        Ok(Self { before: before.phase, to, document, replaces, opens, after })
    }
}

/// A pod, what holds for it, and what would.
type Both<'a> = (&'a Workload, &'a Compiled, &'a Compiled);

fn is_opened((_, was, is): &Both<'_>) -> bool {
    is.phase().phase < was.phase().phase
}

/// What holds for those who have what the target asks for and nothing else.
fn phase_of(manifest: &Manifest, settings: &Settings, target: &Target) -> InPhase {
    let objects: Vec<_> = manifest.objects.iter().cloned().map(Arc::new).collect();
    let facts = PodFacts { labels: target.selector().match_labels, ..PodFacts::default() };
    let mtls = WorkloadMtls::default();
    let namespace = match target {
        // Of nobody's own.
        Target::Mesh => "",
        Target::Namespace(namespace, _) => namespace,
    };
    let subject = Subject { facts: &facts, ..Subject::named(namespace, &[], &mtls) };
    Resources::new(&objects, settings.clone()).own.phase(&subject)
}

/// The Enforcement that is there, the oldest of several, with another phase; or a new one.
fn document(manifest: &Manifest, settings: &Settings, target: &Target, to: Phase) -> (Value, bool) {
    let own = manifest.objects.iter().filter(|object| target.is_of(object, settings));
    let oldest = own.min_by_key(|object| (object.created(), object.meta.name.clone()));
    let namespace = target.namespace(settings);
    let head = |name: &str| {
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "Enforcement",
            "metadata": {"name": name, "namespace": **namespace},
        })
    };
    if let Some(object) = oldest {
        let mut document = head(&object.meta.name);
        for (key, value) in [("labels", &object.meta.labels), ("annotations", &object.meta.annotations)] {
            if !value.is_empty() {
                document["metadata"][key] = json!(value);
            }
        }
        document["spec"] = object.spec.clone();
        match document["spec"].as_object_mut() {
            Some(spec) => drop(spec.insert("phase".into(), json!(to.as_str()))),
            None => document["spec"] = target.spec(to.as_str()),
        }
        return (document, true);
    }
    let taken = |name: &str| {
        manifest.objects.iter().any(|object| {
            object.is(GROUP, "Enforcement")
                && object.meta.namespace == *namespace
                && *object.meta.name == *name
        })
    };
    let mut name = target.name();
    while taken(&name) {
        name += "-2";
    }
    let mut document = head(&name);
    document["spec"] = target.spec(to.as_str());
    (document, false)
}

/// The same with the document in it, at the place of the one that it replaces.
fn with(manifest: &Manifest, document: &Value) -> anyhow::Result<Manifest> {
    let mut object = Object::read(document.clone())?;
    let mut changed = manifest.clone();
    let same = |other: &&mut Object| {
        other.is(GROUP, "Enforcement")
            && (&other.meta.namespace, &other.meta.name) == (&object.meta.namespace, &object.meta.name)
    };
    match changed.objects.iter_mut().find(same) {
        Some(there) => {
            object.meta.creation_timestamp = there.meta.creation_timestamp.clone();
            *there = object;
        }
        None => {
            // It is the youngest once it is applied.
            object.meta.creation_timestamp = OffsetDateTime::now_utc().format(&Rfc3339)?.into();
            changed.objects.push(object);
        }
    }
    Ok(changed)
}

fn plaintext(pods: &[Both<'_>]) -> Option<String> {
    let dropped = |policy: &Compiled| {
        let plan = policy.kernel_plan();
        plan.default == InboundAction::Drop
            || plan.ports.values().any(|action| *action == InboundAction::Drop)
    };
    let opened: Vec<_> = pods.iter().filter(|(_, was, is)| dropped(was) && !dropped(is)).collect();
    if opened.is_empty() {
        return None;
    }
    let names = names(opened.into_iter().map(|(pod, ..)| *pod));
    Some(format!("plaintext is let in, in spite of STRICT, to {names}"))
}

fn policies(pods: &[Both<'_>], settings: &Settings) -> Vec<String> {
    let mut lifted: BTreeMap<String, Vec<&Workload>> = BTreeMap::new();
    for (pod, was, _) in pods.iter().filter(|(_, _, is)| is.phase().phase == Phase::Observe) {
        let mut policies: Vec<String> = deciding(pod, was);
        let own = settings.namespace_stances.get(&pod.namespace).copied();
        match own.unwrap_or(settings.stance) {
            Stance::Allow => {}
            Stance::Mtls => policies.push("the default stance mtls".into()),
            Stance::Deny => policies.push("the default stance deny".into()),
        }
        for policy in policies {
            lifted.entry(policy).or_default().push(pod);
        }
    }
    let told = |(policy, pods): (String, Vec<&Workload>)| {
        format!("{policy} is no longer enforced for {}", names(pods))
    };
    lifted.into_iter().map(told).collect()
}

/// The policies of both dialects that refuse or admit on the ports of a pod.
fn deciding(pod: &Workload, policy: &Compiled) -> Vec<String> {
    let ip = pod.addresses.first().copied().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
    let declared: Vec<u16> = pod.facts.ports.iter().map(|port| port.port).collect();
    let mut found: Vec<String> = Vec::new();
    for port in declared.into_iter().chain([0]) {
        let conn = Conn::new(None, std::net::Ipv4Addr::UNSPECIFIED.into(), ip, port);
        let considered = policy.explain(&conn, None).considered;
        let decides = considered.iter().filter(|one| {
            let admits_all =
                one.resource.kind == Kind::LinkerdDefault && ADMIT_ALL.contains(&&*one.resource.name);
            !one.dry_run && one.action != Some(Action::Audit) && !admits_all
        });
        found.extend(decides.map(|one| one.resource.to_string()));
    }
    found.sort();
    found.dedup();
    found
}

/// What Linkerd has where nobody says anything, and that refuses nobody.
const ADMIT_ALL: [&str; 3] =
    [InboundDefault::AllUnauthenticated.as_str(), InboundDefault::Audit.as_str(), "probe"];

/// `shop/web and shop/db, which stay in Enforce by …`
fn who_decides(pods: &[Both<'_>]) -> String {
    let mut by: BTreeMap<(Phase, String), Vec<&Workload>> = BTreeMap::new();
    for (pod, _, is) in pods {
        let InPhase { phase, by: who } = is.phase();
        let who = who.as_ref().map_or_else(|| "nothing".to_string(), |(who, _)| who.to_string());
        by.entry((*phase, who)).or_default().push(pod);
    }
    let one = |((phase, who), pods): ((Phase, String), Vec<&Workload>)| {
        format!("{}, which stay in {phase} by {who}", names(pods))
    };
    by.into_iter().map(one).collect::<Vec<_>>().join("; ")
}

fn names<'a>(pods: impl IntoIterator<Item = &'a Workload>) -> String {
    first_names(pods, MANY)
}

const MANY: usize = 20;
