//! What the agent tells the kernel programs and hears from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use underpass_common::{CAPTURE_MARK, LOOPBACK4_PREFIX, LOOPBACK6_PREFIX, MARK_MASK, RETURN_MARK};

use super::{BpfError, Flows, PodSocket};
pub use crate::model::Destination;
use crate::model::{InboundPlan, NetnsCookie, OriginalDst, ports};

/// The kernel programs of one agent instance. Cheap to call from any thread; no call blocks on I/O,
/// [`Kernel::enrol`] takes about as long as one program takes to verify.
pub trait Kernel: Send + Sync + 'static {
    /// Enrols a pod, or brings an enrolled one up to date without touching its connections.
    ///
    /// Fails closed: until [`Kernel::set_listeners`] its captured connections are refused, and until
    /// [`Kernel::set_inbound`] everything plaintext from outside is dropped. A pod that was enrolled
    /// before keeps its listeners and its plan. Also when this fails, what could be written stands: a
    /// pod without listeners is refused everything.
    ///
    /// # Errors
    /// [`BpfError::Neighbours`] when another instance has the namespace; nothing was changed then.
    fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<(), BpfError>;

    /// Which listeners take the pod's connections. A listener that is not named is removed. Each must
    /// be listening already, inside the pod's namespace and, for `outbound_*`, transparent.
    fn set_listeners(&self, pod: NetnsCookie, listeners: &Listeners<'_>) -> Result<(), BpfError>;

    /// What plaintext from outside may do, replacing what was said before.
    fn set_inbound(&self, pod: NetnsCookie, plan: &InboundPlan) -> Result<(), BpfError>;

    /// Takes a pod out of the mesh: detaches what is attached to its namespace and forgets it. Its
    /// captured connections go on until the agent closes them; they still cannot leave in plaintext.
    /// A pod that is not enrolled is no error.
    fn unenrol(&self, pod: NetnsCookie) -> Result<(), BpfError>;

    /// Another instance that has this namespace enrolled. [`Kernel::enrol`] refuses such a one, and what
    /// was given to it must not be taken back by us.
    fn other_instance(&self, pod: NetnsCookie, netns: BorrowedFd<'_>) -> Result<Option<String>, BpfError>;

    /// As [`Kernel::unenrol`], but leaves a trace that [`Kernel::remembered`] shows until `unenrol`: the
    /// namespace still has to be tidied, by the next agent or `underpass uninstall` if not by us.
    fn release(&self, pod: NetnsCookie) -> Result<(), BpfError>;

    /// Every enrolled pod, from the maps and not from memory.
    fn enrolled(&self) -> Result<Vec<NetnsCookie>, BpfError>;

    /// Every enrolled pod, and every one that was only released.
    fn remembered(&self) -> Result<Vec<NetnsCookie>, BpfError>;

    /// The mesh's address ranges, replacing the former ones: an address inside them about which
    /// nothing is known goes to the agent, one outside is left alone.
    fn set_ranges(&self, ranges: &[IpNet]) -> Result<(), BpfError>;

    /// All that is known of single addresses, replacing what was known and taught before.
    fn set_destinations(&self, known: &BTreeMap<IpAddr, Destination>) -> Result<(), BpfError>;

    /// One more address about which the agent has decided.
    fn teach(&self, address: IpAddr, destination: Destination) -> Result<(), BpfError>;

    /// Marks a socket as the agent's own: its connections are never captured, and it may bind the
    /// agent's ports. To be called before `bind`, `listen` and `connect`; sockets that a listener
    /// accepts inherit it.
    fn own(&self, socket: BorrowedFd<'_>) -> Result<(), BpfError>;

    /// Where the application dialled to, from the local address (`getsockname`) of the connection that
    /// an outbound or plaintext listener accepted in this pod's namespace.
    ///
    /// # Errors
    /// [`BpfError::UnknownConnection`] when the address is one of [`CaptureMode::Loopback`]'s and
    /// nothing is remembered of it: someone dialled it directly.
    fn original_destination(&self, pod: NetnsCookie, local: SocketAddr) -> Result<OriginalDst, BpfError>;

    /// Flows that were left alone, as they close. There is one stream; a second call is an error.
    /// To be called inside a tokio runtime.
    fn flows(&self) -> Result<Flows, BpfError>;

    /// How many attempts to connect in plaintext were dropped because none is allowed, since the programs
    /// were first loaded.
    fn plaintext_dropped(&self) -> Result<u64, BpfError>;

    /// The TCP sockets of the namespace that the calling thread is in.
    fn sockets(&self) -> Result<Vec<PodSocket>, BpfError>;
}

/// A pod as the kernel must know it.
#[derive(Clone, Debug)]
pub struct Enrolment<'a> {
    pub cookie: NetnsCookie,
    /// The pod's network namespace; must be the one of `cookie`.
    pub netns: BorrowedFd<'a>,
    /// Every address of the pod, also those that are only on its lo.
    pub addresses: &'a [IpAddr],
    pub capture: CaptureMode,
    pub marks: Marks,
    pub ports: OwnPorts,
}

/// How a pod's outgoing connections come to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CaptureMode {
    /// Not at all; inbound connections are judged nevertheless.
    None,
    /// By a mark, which the namespace's rule and local route turn to lo: true addresses everywhere.
    Mark,
    /// By a loopback address for each connection, for a namespace that cannot have the rule.
    Loopback,
}

/// The marks that the namespace's rule looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Of captured sockets; must lie inside `mask`.
    pub capture: u32,
    /// Of the agent's deliveries that keep the client's address; must lie inside `mask`.
    pub returned: u32,
    /// The bits that are ours; all others stay the application's.
    pub mask: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Self { capture: CAPTURE_MARK, returned: RETURN_MARK, mask: MARK_MASK }
    }
}

/// The agent's ports inside a pod's namespace. Nobody else may bind them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPorts {
    pub hbone: u16,
    pub plaintext: u16,
    pub outbound: u16,
}

impl Default for OwnPorts {
    fn default() -> Self {
        Self { hbone: ports::HBONE, plaintext: ports::PLAINTEXT, outbound: ports::OUTBOUND }
    }
}

/// The agent's listening sockets in one pod's namespace. One dual-stack socket may stand for both
/// families.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listeners<'a> {
    /// Takes captured connections; must be transparent.
    pub outbound_v4: Option<BorrowedFd<'a>>,
    pub outbound_v6: Option<BorrowedFd<'a>>,
    /// Takes plaintext from outside that must be judged.
    pub plaintext_v4: Option<BorrowedFd<'a>>,
    pub plaintext_v6: Option<BorrowedFd<'a>>,
    /// Takes tunnels: what comes from outside to [`OwnPorts::hbone`] goes here whatever else is bound
    /// to that port, and is dropped while this is missing.
    pub hbone_v4: Option<BorrowedFd<'a>>,
    pub hbone_v6: Option<BorrowedFd<'a>>,
}

/// Whether an address is one that [`CaptureMode::Loopback`] hands out.
pub(super) fn is_loopback_capture(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            first == LOOPBACK4_PREFIX[0] && second & 0x80 == LOOPBACK4_PREFIX[1]
        }
        IpAddr::V6(v6) => v6.octets()[..8] == LOOPBACK6_PREFIX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_capture_addresses() {
        for (address, expected) in [
            ("127.128.0.0", true),
            ("127.255.255.255", true),
            ("127.127.255.255", false),
            ("127.0.0.1", false),
            ("128.128.0.0", false),
            ("::ffff:127.200.0.1", true),
            ("fd75:2e91:c40a:7f01::1", true),
            ("fd75:2e91:c40a:7f02::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_loopback_capture(address.parse().unwrap()), expected, "{address}");
        }
    }
}
