//! What a set of policies would say to what was observed. The engine is the agent's.

use std::sync::Arc;

use anyhow::bail;
use serde_json::Value;

use crate::model::MtlsMode;
use crate::model::workload::WorkloadMtls;
use crate::policy::{
    Compiled, Conn, Connection, MtlsDefaults, Object, PolicySet, Resources, Settings, Subject,
};
use crate::telemetry::{ObservedServer, Seen, is_churning_label};

/// A set of policies, and whether STRICT is the mesh's mode where they do not say otherwise.
pub(super) struct Judge {
    set: PolicySet,
    resources: Arc<Resources>,
    has_policies: bool,
}

/// What they say of one client of a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Judged {
    Refused {
        reason: String,
        policy: Option<String>,
    },
    /// It depends on the request, which was not kept.
    ByRequest,
    /// It cannot be judged.
    Unknown(&'static str),
    Admitted,
}

impl Judge {
    /// # Errors
    /// A policy selects by what is not kept of a pod.
    pub(super) fn new(objects: Vec<Object>, settings: Settings, strict: bool) -> anyhow::Result<Self> {
        for object in &objects {
            if POLICY_GROUPS.iter().any(|group| *object.group == **group)
                && let Some(label) = churning(&object.spec)
            {
                let (kind, meta) = (&object.kind, &object.meta);
                bail!(
                    "{kind} {}/{} selects by the label {label}, which every revision has otherwise: it is not kept of what was observed; select by another label",
                    meta.namespace,
                    meta.name
                );
            }
        }
        let objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
        let resources = Arc::new(Resources::new(&objects, settings));
        let mesh = if strict { MtlsMode::Strict } else { MtlsMode::Permissive };
        let mtls = MtlsDefaults { mesh, ..MtlsDefaults::default() };
        let set = PolicySet::default().next([], mtls, Some(Arc::clone(&resources)));
        Ok(Self { set, resources, has_policies: !objects.is_empty() })
    }

    /// What of the policies could not be taken as it stands.
    pub(super) fn defects(&self) -> Vec<String> {
        self.resources.defects().map(|d| format!("{}: {}: {}", d.resource, d.field, d.message)).collect()
    }

    pub(super) fn compile(&self, server: &ObservedServer) -> Compiled {
        let mtls = WorkloadMtls::default();
        let (namespace, facts) = (&*server.namespace, &server.pod);
        self.set.compile(&Subject { namespace, policies: &[], mtls: &mtls, facts })
    }

    pub(super) fn judge(&self, server: &ObservedServer, policy: &Compiled, seen: &Seen) -> Judged {
        if self.has_policies && !server.known {
            return Judged::Unknown("nobody knew the pod's labels and ports");
        }
        let mut refused: Option<(String, Option<String>)> = None;
        let (mut admitted, mut by_request) = (Vec::new(), false);
        for ip in &seen.client.addresses {
            let conn = Conn::new(seen.client.identity.clone(), *ip, seen.destination, seen.port);
            match policy.on_connection(&conn) {
                Connection::Allow(_) => admitted.push(ip.to_string()),
                Connection::PerRequest => by_request = true,
                Connection::Deny(verdict) => {
                    let by = verdict.by().map(ToString::to_string);
                    // The resource has a column of its own.
                    refused.get_or_insert((verdict.reason(), by));
                }
            }
        }
        match refused {
            Some((reason, policy)) if admitted.is_empty() => Judged::Refused { reason, policy },
            Some((reason, policy)) => {
                let reason = format!("{reason} (not from {})", admitted.join(", "));
                Judged::Refused { reason, policy }
            }
            None if by_request => Judged::ByRequest,
            None if admitted.is_empty() => Judged::Unknown("no address of it was kept"),
            None => Judged::Admitted,
        }
    }
}

const POLICY_GROUPS: [&str; 3] = ["security.istio.io", "policy.linkerd.io", "underpass.io"];

/// A label of one revision, anywhere in it.
fn churning(value: &Value) -> Option<&str> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let expression = key == "key" && value.as_str().is_some_and(is_churning_label);
            match (is_churning_label(key), expression) {
                (true, _) => Some(key.as_str()),
                (_, true) => value.as_str(),
                _ => churning(value),
            }
        }),
        Value::Array(items) => items.iter().find_map(churning),
        _ => None,
    }
}
