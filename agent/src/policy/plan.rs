//! Which plaintext connections the kernel can decide about without asking.

use std::collections::BTreeSet;

use crate::model::{InboundAction, InboundPlan, MtlsMode};

use super::compiled::Compiled;
use super::matcher::{AnyOf, Field, Fields, Matcher};

impl Compiled {
    /// Per port of the application, for connections from outside the pod that carry no identity.
    ///
    /// Dropped where STRICT forbids them; passed where no policy could deny them, whatever the
    /// addresses; steered to the agent otherwise.
    pub fn kernel_plan(&self) -> InboundPlan {
        let default = self.plaintext_action(None);
        let ports = self
            .named_ports()
            .into_iter()
            .map(|port| (port, self.plaintext_action(Some(port))))
            .filter(|(_, action)| *action != default)
            .collect();
        InboundPlan { default, ports }
    }

    /// `None` stands for every port that nothing names.
    fn plaintext_action(&self, port: Option<u16>) -> InboundAction {
        let mode = port.map_or(self.mtls.mode, |port| self.mtls.on_port(port).0);
        if mode == MtlsMode::Strict {
            return InboundAction::Drop;
        }
        let denied = self.deny.iter().any(|policy| policy.on_plaintext(port) != Tri::Never);
        let allowed =
            self.allow.is_empty() || self.allow.iter().any(|policy| policy.on_plaintext(port) == Tri::Always);
        // What a dry-run policy would deny has to be seen to be told.
        let told = self.would.as_ref().is_none_or(|w| w.plaintext_action(port) == InboundAction::Pass);
        let passed = self.blocks.is_empty() && !denied && allowed && told;
        if passed { InboundAction::Pass } else { InboundAction::Steer }
    }

    fn named_ports(&self) -> BTreeSet<u16> {
        // Those in force and the others.
        let all = self.would.as_deref().unwrap_or(self);
        let matchers = all.deny.iter().chain(&all.allow);
        let fields =
            matchers.flat_map(|m| m.groups.iter().flatten()).flat_map(|rule| rule.fields.iter().flatten());
        let lists = fields.flat_map(|fields| fields.port.one_of.iter().chain(&fields.port.none_of));
        lists.flatten().chain(self.mtls.ports.keys()).copied().filter(|port| *port != 0).collect()
    }
}

/// Whether something holds for plaintext connections to a port, when their addresses are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tri {
    Never,
    Sometimes,
    Always,
}

impl Tri {
    fn known(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }
}

/// The strongest of alternatives: several that hold sometimes may or may not cover everything.
fn any(parts: impl IntoIterator<Item = Tri>) -> Tri {
    parts.into_iter().max().unwrap_or(Tri::Never)
}

/// The weakest of requirements.
fn all(parts: impl IntoIterator<Item = Tri>) -> Tri {
    parts.into_iter().min().unwrap_or(Tri::Always)
}

impl Matcher {
    fn on_plaintext(&self, port: Option<u16>) -> Tri {
        any(self.groups.iter().map(|rules| all(rules.iter().map(|rule| rule.on_plaintext(port)))))
    }
}

impl AnyOf {
    fn on_plaintext(&self, port: Option<u16>) -> Tri {
        match &self.fields {
            None => Tri::Always,
            Some(fields) => any(fields.iter().map(|fields| fields.on_plaintext(port))),
        }
    }
}

impl Fields {
    fn on_plaintext(&self, port: Option<u16>) -> Tri {
        all([
            Tri::known(self.port.holds(|ports| port.is_some_and(|port| ports.contains(&port)))),
            Tri::known(self.namespace.holds(|names| names.fit(""))),
            Tri::known(self.principal.holds(|_| false)),
            Tri::known(self.service_account.holds(|_| false)),
            self.source_ip.unknown(),
            self.destination_ip.unknown(),
        ])
    }
}

impl<T> Field<T> {
    fn unknown(&self) -> Tri {
        if self.is_empty() { Tri::Always } else { Tri::Sometimes }
    }
}
