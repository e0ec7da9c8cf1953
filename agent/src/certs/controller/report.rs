//! What the agent tells the controller about itself.

use underpass_proto::underpass::v1::{AgentReport, HeldCertificate, RestingTunnels};

use crate::tls::TrustBundles;

/// Where the parts of a report come from. Asked about once a second, so it has to be cheap.
pub trait ReportSource: Send + Sync + 'static {
    /// Certificates that the agent holds, in any order.
    fn certificates(&self) -> Vec<HeldCertificate>;

    /// Live tunnels by the root that the peer's certificate rests on, in any order.
    fn tunnels(&self) -> Vec<RestingTunnels>;

    /// Whether every new handshake on the node is judged by these roots of the controller's.
    fn in_force(&self, roots: &TrustBundles) -> bool;
}

/// The controller takes messages of 2 MiB.
const MOST_BYTES: usize = 3 << 19;

/// `authority`: who signs at present. A node with more than a message carries leaves out certificates of that
/// one, for it is the others that a rotation waits for.
pub(super) fn make(
    node: &str,
    (version, revision): (&str, u64),
    authority: &[u8],
    source: &dyn ReportSource,
) -> AgentReport {
    let mut certificates = source.certificates();
    certificates.sort_by(|a, b| {
        let rank = |c: &HeldCertificate| c.authority == authority;
        rank(a).cmp(&rank(b)).then_with(|| a.identity.cmp(&b.identity))
    });
    let mut tunnels = source.tunnels();
    tunnels.sort_by(|a, b| a.root.cmp(&b.root));
    let mut left = MOST_BYTES;
    let mut fits = |size: usize| {
        left = left.saturating_sub(size + OVERHEAD);
        left > 0
    };
    tunnels.retain(|t| fits(t.root.len()));
    certificates.retain(|c| fits(c.identity.len() + c.authority.len() + c.root.len()));
    AgentReport { node: node.into(), version: version.into(), certificates, tunnels, revision }
}

/// Tags and lengths of an entry's fields, and more.
const OVERHEAD: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    struct Source;

    impl ReportSource for Source {
        fn certificates(&self) -> Vec<HeldCertificate> {
            let held = |n: usize| HeldCertificate {
                identity: format!("spiffe://mesh.test/ns/{n:02000}/sa/a"),
                authority: vec![u8::from(n.is_multiple_of(100))],
                root: vec![9; 32],
            };
            (0..5000).map(held).collect()
        }

        fn tunnels(&self) -> Vec<RestingTunnels> {
            vec![RestingTunnels { root: vec![2], count: 1 }, RestingTunnels { root: vec![1], count: 1 }]
        }

        fn in_force(&self, _: &TrustBundles) -> bool {
            true
        }
    }

    /// Otherwise a full node would be the one that never holds a rotation back.
    #[test]
    fn a_report_that_is_cut_has_what_a_rotation_waits_for() {
        let report = make("node", ("v", 1), &[0], &Source);
        let of_others = report.certificates.iter().filter(|c| c.authority == [1]).count();
        assert_eq!(of_others, 50);
        assert!((500..5000).contains(&report.certificates.len()), "{}", report.certificates.len());
        let bytes: usize = report.certificates.iter().map(|c| c.identity.len() + 33).sum();
        assert!(bytes < MOST_BYTES, "{bytes}");
        assert_eq!((&report.tunnels[0].root, report.tunnels.len()), (&vec![1], 2));
    }
}
