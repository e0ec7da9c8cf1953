//! Which plaintext connections the kernel can decide about without asking.

use std::collections::BTreeSet;

use crate::model::{InboundAction, InboundPlan, MtlsMode};

use super::compiled::{Compiled, Decision};
use super::own::Phase;
use super::peer::Peer;
use super::rule_list::Found;

impl Compiled {
    /// Per port of the application, for connections from outside the pod that carry no identity.
    ///
    /// Dropped where STRICT forbids them, whoever they are from; passed where no policy could deny them or has to be
    /// told of them, whatever the addresses and the requests; steered to the agent otherwise, and where what would be
    /// refused is let in and told of.
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
        let excepted = port.is_some_and(|port| self.exceptions.name(port));
        match self.phase().phase {
            Phase::Observe => return InboundAction::Steer,
            Phase::Permissive if mode == MtlsMode::Strict => return InboundAction::Steer,
            Phase::Enforce if mode == MtlsMode::Strict && excepted => return InboundAction::Steer,
            Phase::Enforce if mode == MtlsMode::Strict => return InboundAction::Drop,
            Phase::Permissive | Phase::Enforce => {}
        }
        let peer = Peer::plaintext(port);
        let allowed = matches!(self.whatever(&peer), Decision::Allow(_));
        let audited = self.audit.find(&peer) != Found::default()
            || self.linkerd.iter().any(|linkerd| linkerd.audits(port));
        // What a dry-run policy would deny has to be seen to be told.
        let told = self.would.as_ref().is_none_or(|w| w.plaintext_action(port) == InboundAction::Pass);
        if allowed && !audited && told { InboundAction::Pass } else { InboundAction::Steer }
    }

    fn named_ports(&self) -> BTreeSet<u16> {
        // Those in force and the others.
        let all = self.would.as_deref().unwrap_or(self);
        let rules = [&all.deny, &all.allow, &all.audit].map(|rules| rules.named_ports());
        let servers = self.linkerd.iter().flat_map(|linkerd| linkerd.ports.keys().copied());
        let mtls = self.mtls.ports.keys().copied().chain(self.exceptions.ports());
        let ports = rules.into_iter().flatten().chain(servers).chain(mtls);
        ports.filter(|port| *port != 0).collect()
    }
}
