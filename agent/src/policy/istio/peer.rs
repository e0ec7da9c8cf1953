//! PeerAuthentication: port before workload before namespace before mesh, and of several at one level the oldest.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{Labels, mode, selector, selects};
use crate::model::MtlsMode;
use crate::policy::mtls::{EffectiveMtls, MtlsOrigin};
use crate::policy::{Considered, Defect, DefectKind, Kind, Object, ResourceRef, Subject};

#[derive(Debug)]
pub(super) struct PeerAuthentication {
    resource: Arc<ResourceRef>,
    created: Option<OffsetDateTime>,
    /// What is understood of it; none where it is the whole namespace's.
    selector: Option<Labels>,
    /// It cannot be told for whom it is.
    unclear: bool,
    /// None: as the level above says.
    mode: Option<MtlsMode>,
    /// None: as the workload.
    ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// Which resource said what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MtlsSources {
    pub mode: Option<Arc<ResourceRef>>,
    pub ports: Option<Arc<ResourceRef>>,
}

/// Both lists are sorted by age.
pub(super) fn resolve(
    root: &[PeerAuthentication],
    own: &[PeerAuthentication],
    is_root: bool,
    subject: &Subject<'_>,
    default: &EffectiveMtls,
) -> (EffectiveMtls, MtlsSources) {
    let levels = levels(root, own, is_root, subject);
    let [.., (_, workload)] = &levels;
    let workload = workload.first();
    let mut mtls = default.clone();
    if workload.is_some_and(|peer| peer.unclear) {
        mtls.ports.clear();
    }
    let mut sources = MtlsSources::default();
    for (origin, peers) in &levels {
        if let Some(peer) = peers.first()
            && let Some(mode) = peer.mode
        {
            (mtls.mode, mtls.origin) = (mode, *origin);
            sources.mode = Some(peer.resource.clone());
        }
    }
    if let Some(workload) = workload.filter(|workload| !workload.ports.is_empty()) {
        let own = mtls.mode;
        mtls.ports.extend(workload.ports.iter().map(|(port, mode)| (*port, mode.unwrap_or(own))));
        sources.ports = Some(workload.resource.clone());
    }
    (mtls, sources)
}

/// Everything that is for a pod, level by level from the mesh's down, in each the one that holds first.
fn levels<'a>(
    root: &'a [PeerAuthentication],
    own: &'a [PeerAuthentication],
    is_root: bool,
    subject: &Subject<'_>,
) -> [(MtlsOrigin, Vec<&'a PeerAuthentication>); 3] {
    // One with a selector in the root namespace is ignored, as Istio's reference says.
    let own = if is_root { &[] } else { own };
    let whole = |list: &'a [PeerAuthentication]| list.iter().filter(|peer| peer.selector.is_none());
    // What may be meant for this workload is not opened by an older one.
    let (unclear, clear): (Vec<_>, Vec<_>) =
        own.iter().filter(|peer| peer.selects(subject)).partition(|peer| peer.unclear);
    let mesh = root.iter().filter(|peer| peer.unclear).chain(whole(root)).collect();
    [
        (MtlsOrigin::Mesh, mesh),
        (MtlsOrigin::Namespace, whole(own).collect()),
        (MtlsOrigin::Workload, unclear.into_iter().chain(clear).collect()),
    ]
}

/// What each says of one port of a pod, and why it decides or does not. Both lists are sorted by age.
pub(super) fn considered(
    root: &[PeerAuthentication],
    own: &[PeerAuthentication],
    is_root: bool,
    subject: &Subject<'_>,
    default: &EffectiveMtls,
    port: u16,
) -> Vec<Considered> {
    let (mtls, sources) = resolve(root, own, is_root, subject, default);
    let levels = levels(root, own, is_root, subject);
    let (mode, origin) = mtls.on_port(port);
    let sets_port = |peer: &&&PeerAuthentication| peer.ports.contains_key(&port);
    let decides = match origin {
        MtlsOrigin::Port => levels[2].1.first().filter(sets_port).map(|peer| &peer.resource),
        _ => sources.mode.as_ref(),
    };
    let mut all = Vec::new();
    for (level, peers) in &levels {
        for peer in peers {
            let matched = decides == Some(&peer.resource);
            let why = match (decides, peers.first()) {
                _ if matched => "it decides".to_owned(),
                (_, Some(first)) if first.resource != peer.resource => {
                    let what = if first.unclear { "one that may be for it" } else { "an older one" };
                    format!("{what} at this level holds, {}", first.resource)
                }
                _ if peer.mode.is_none() => "it leaves the mode to the level above".to_owned(),
                (Some(other), _) => format!("a more specific one decides, {other}"),
                (None, _) => "what is said of the port itself decides".to_owned(),
            };
            let (level, own) = if matched { (origin, Some(mode)) } else { (*level, peer.mode) };
            all.push(peer.considered(matched, format!("of the {level}, {}: {why}", word(own))));
        }
    }
    let ignored = root.iter().filter(|peer| !peer.unclear && peer.selects(subject));
    all.extend(ignored.map(|peer| {
        let why = "a selector in the root namespace is for nobody";
        peer.considered(false, format!("of the workload, {}: {why}", word(peer.mode)))
    }));
    all
}

fn word(mode: Option<MtlsMode>) -> &'static str {
    match mode {
        Some(MtlsMode::Strict) => "STRICT",
        Some(MtlsMode::Permissive) => "PERMISSIVE",
        None => "UNSET",
    }
}

impl PeerAuthentication {
    pub fn read(object: &Object, defects: &mut Vec<Defect>) -> Self {
        let resource = ResourceRef {
            kind: Kind::PeerAuthentication,
            namespace: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
        };
        let mut reader = Reader { resource: &resource, defects };
        let none = Map::new();
        let spec = match &object.spec {
            Value::Object(spec) => spec,
            Value::Null => &none,
            _ => {
                reader.strict("spec", "it is no object");
                &none
            }
        };
        // Any field that is not known may be a selector that is misspelt.
        let mut unclear = !object.spec.is_object() && !object.spec.is_null();
        for name in spec.keys().filter(|name| !["selector", "mtls", "portLevelMtls"].contains(&name.as_str()))
        {
            reader.strict(&format!("spec.{name}"), "there is no such field");
            unclear = true;
        }
        let selector = selector(spec.get("selector"), |field, what| {
            reader.strict(field, what);
            unclear = true;
        });
        let mut strict = unclear;
        let mut own = reader.mode("spec.mtls", spec.get("mtls"));
        let mut ports = BTreeMap::new();
        match spec.get("portLevelMtls") {
            None | Some(Value::Null) => {}
            Some(Value::Object(given)) => {
                for (port, value) in given {
                    let field = format!("spec.portLevelMtls[{port}]");
                    let mode = reader.mode(&field, Some(value));
                    match port.parse::<u16>() {
                        Ok(port) if port > 0 => drop(ports.insert(port, mode)),
                        // Which port was meant is not known, and that it was to be closed is.
                        _ if mode == Some(MtlsMode::Strict) => {
                            reader.strict(&field, "it is no port: 1 to 65535");
                            strict = true;
                        }
                        _ => reader.note(&field, "it is no port: 1 to 65535; it opens nothing"),
                    }
                }
            }
            Some(_) => {
                reader.strict("spec.portLevelMtls", "it is no object");
                strict = true;
            }
        }
        if selector.as_ref().is_none_or(Labels::is_empty) && !ports.is_empty() {
            reader.note(
                "spec.portLevelMtls",
                "ports are set for selected workloads only; it says nothing here",
            );
            ports.clear();
        }
        if strict {
            own = Some(MtlsMode::Strict);
            ports.clear();
        }
        // An empty selector is none, unless it is only what is left of one.
        let selector = match unclear {
            true => Some(selector.unwrap_or_default()),
            false => selector.filter(|labels| !labels.is_empty()),
        };
        Self { resource: Arc::new(resource), created: object.created(), selector, unclear, mode: own, ports }
    }

    pub fn age(&self) -> (Option<OffsetDateTime>, &str) {
        (self.created, &self.resource.name)
    }

    fn considered(&self, matched: bool, note: String) -> Considered {
        let resource = self.resource.clone();
        Considered { resource, action: None, dry_run: false, matched, rules: Vec::new(), note: Some(note) }
    }

    fn selects(&self, subject: &Subject<'_>) -> bool {
        self.selector.as_ref().is_some_and(|selector| selects(selector, &subject.facts.labels))
    }
}

struct Reader<'a> {
    resource: &'a ResourceRef,
    defects: &'a mut Vec<Defect>,
}

impl Reader<'_> {
    fn note(&mut self, field: &str, message: &str) {
        self.defects.push(Defect {
            resource: self.resource.clone(),
            field: field.to_string(),
            kind: DefectKind::Invalid,
            message: message.to_string(),
        });
    }

    fn strict(&mut self, field: &str, what: &str) {
        self.note(field, &format!("{what}; mutual TLS is STRICT instead"));
    }

    /// `{mode: …}`. A mode that is not known asks for mutual TLS.
    fn mode(&mut self, field: &str, value: Option<&Value>) -> Option<MtlsMode> {
        let fields = match value {
            None | Some(Value::Null) => return None,
            Some(Value::Object(fields)) => fields,
            Some(_) => {
                self.strict(field, "it is no object");
                return Some(MtlsMode::Strict);
            }
        };
        let mut found = match fields.get("mode") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => mode(text),
            Some(other) => Err(format!("{other} is no mode")),
        };
        if let Some(name) = fields.keys().find(|name| *name != "mode") {
            found = Err(format!("there is no field {name:?}"));
        }
        found.unwrap_or_else(|what| {
            self.strict(field, &what);
            Some(MtlsMode::Strict)
        })
    }
}
