//! The real [`Kernel`]: programs loaded, attached, pinned, and the maps that steer them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use underpass_common::{
    Addr16, LoopbackKey, LoopbackValue, PodRow, capture, counter, inbound, name, own_socket,
};

use super::config::Config;
use super::features::Features;
use super::flows::{self, Flows};
use super::kernel::{CaptureMode, Destination, Enrolment, Kernel, Listeners, is_loopback_capture};
use super::load::{self, PEERNAME};
use super::maps::Maps;
use super::mount::Cgroup;
use super::neighbours::{self, InstanceLock};
use super::pins::Pins;
use super::probe::Report;
use super::steer::Steer;
use super::{BpfError, PodSocket, links, listeners, logging, mount, sockets, syscall};
use crate::model::{InboundPlan, NetnsCookie, OriginalDst};

/// One agent instance's kernel half. Dropping it changes nothing in the kernel: what is pinned goes
/// on, captured connections are refused while no listener is open, and the next agent adopts it.
/// [`super::uninstall`] ends it.
pub struct Programs {
    pub(super) pins: Pins,
    /// Tests load an instance twice in one process, and have none.
    pub(super) _lock: Option<InstanceLock>,
    pub(super) cgroup: Cgroup,
    pub(super) maps: Mutex<Maps>,
    pub(super) steer: Steer,
    /// Links of pods that could not be pinned: they steer while this agent runs.
    pub(super) unpinned: Mutex<HashMap<NetnsCookie, OwnedFd>>,
    /// Attached when the first pod needs them: they cost every getpeername() of the node a little.
    pub(super) peername: [OwnedFd; PEERNAME.len()],
    /// Used on connections' paths, so by descriptor and without the lock.
    pub(super) agent_sockets: OwnedFd,
    pub(super) loopback: OwnedFd,
    /// The socket storage of connections that were left alone.
    pub(super) flow: OwnedFd,
    pub(super) flows: Mutex<Option<RingBuf<MapData>>>,
    pub(super) logger: Mutex<Option<EbpfLogger<&'static dyn log::Log>>>,
}

/// What the kernel did on its own, since the instance was first loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    pub captured: u64,
    /// Dials refused while the agent's listener was away.
    pub refused_no_listener: u64,
    /// Dials refused because their socket could not be captured.
    pub refused_uncapturable: u64,
    /// Packets of captured connections that did not go to lo.
    pub guard_dropped: u64,
    /// Plaintext packets from outside that nothing allows.
    pub inbound_dropped: u64,
    /// Packets for the agent while its listener was away.
    pub no_listener_dropped: u64,
    /// Binds to the agent's ports by others.
    pub bind_refused: u64,
    /// Flows that nobody read in time.
    pub flows_lost: u64,
}

impl Programs {
    /// Loads and attaches the programs, or takes over what a former agent of the same instance left:
    /// its pods stay enrolled and captured throughout.
    ///
    /// # Errors
    /// When this binary has no programs, the node lacks something ([`Report`] has all of it), an agent
    /// of this instance runs, or what is pinned is not ours.
    pub fn load(config: &Config) -> Result<Self, BpfError> {
        super::object::bytecode()?;
        let report = Report::probe(config);
        if !report.is_usable() {
            let missing: Vec<String> =
                report.missing().filter(|r| r.fatal).map(ToString::to_string).collect();
            return Err(BpfError::Requirements(missing.join("\n")));
        }
        for requirement in report.missing() {
            tracing::warn!(kernel = %requirement.name, found = %requirement.found,
                cost = %requirement.cost, "this kernel lacks something; going on without it");
        }
        mount::ensure_bpffs(&config.pin_root)?;
        Pins::new(&config.pin_root, &config.instance)?.create()?;
        // Before anything is taken over: it might be from an agent that runs.
        let lock = neighbours::lock_instance(&config.pin_root, &config.instance)?;
        Ok(Self { _lock: lock, ..Self::load_with(config, Features::detect())? })
    }

    /// As [`Self::load`], without probing: `features` says what may be used. For tests of what older
    /// kernels get.
    pub fn load_with(config: &Config, features: Features) -> Result<Self, BpfError> {
        load::load(config, features)
    }

    /// Hands the kernel programs' own messages to the `log` crate, and so to tracing, until dropped.
    /// To be run as a task, inside a tokio runtime with I/O; a second one ends at once.
    pub fn forward_logs(&self) -> impl Future<Output = ()> + Send + 'static {
        let logger = lock(&self.logger).take();
        logging::forward(logger)
    }

    /// What the kernel did on its own.
    pub fn counters(&self) -> Result<Counters, BpfError> {
        let maps = lock(&self.maps);
        Ok(Counters {
            captured: maps.counter(counter::CAPTURED)?,
            refused_no_listener: maps.counter(counter::REFUSED_NO_LISTENER)?,
            refused_uncapturable: maps.counter(counter::REFUSED_UNCAPTURABLE)?,
            guard_dropped: maps.counter(counter::GUARD_DROPPED)?,
            inbound_dropped: maps.counter(counter::INBOUND_DROPPED)?,
            no_listener_dropped: maps.counter(counter::NO_LISTENER_DROPPED)?,
            bind_refused: maps.counter(counter::BIND_REFUSED)?,
            flows_lost: maps.counter(counter::FLOWS_LOST)?,
        })
    }

    /// The rows of the maps that grow and shrink with connections; for tests that look for leaks.
    pub fn connection_rows(&self) -> Result<usize, BpfError> {
        lock(&self.maps).connection_rows()
    }

    fn attach_peername(&self) -> Result<(), BpfError> {
        for ((program, attach_type), fd) in PEERNAME.iter().zip(&self.peername) {
            links::attach_cgroup(&self.pins.link(program), &self.cgroup, fd.as_fd(), *attach_type as u32)?;
        }
        Ok(())
    }

    fn attach_steer(&self, pod: NetnsCookie, netns: BorrowedFd<'_>) -> Result<(), BpfError> {
        let program = self.steer.load(pod)?;
        let mut unpinned = None;
        let attached = links::attach_netns(&self.pins.pod(pod), netns, program.as_fd(), &mut unpinned);
        let mut all = lock(&self.unpinned);
        match unpinned {
            Some(link) => drop(all.insert(pod, link)),
            None if attached.is_ok() => drop(all.remove(&pod)),
            None => {}
        }
        attached.map(drop)
    }
}

impl Kernel for Programs {
    fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<(), BpfError> {
        let mut row = row(enrolment)?;
        let pod = enrolment.cookie;
        if let Some(other) = self.other_instance(pod, enrolment.netns)? {
            return Err(BpfError::Neighbours { other });
        }
        // Held throughout: two enrolments of one pod, or its un-enrolment meanwhile, take turns.
        let mut maps = lock(&self.maps);
        if let Some(before) = maps.pod(pod)? {
            row.inbound_default = before.inbound_default;
        }
        let ready = match enrolment.capture {
            CaptureMode::Loopback => self.attach_peername(),
            CaptureMode::None | CaptureMode::Mark => Ok(()),
        };
        let ready = ready.and(maps.set_own_addresses(pod, enrolment.addresses));
        let ready = ready.and(self.attach_steer(pod, enrolment.netns));
        // Last: before this, none of our programs acts on the pod. Also when something is missing: what
        // is captured without a listener is refused.
        maps.set_pod(pod, row)?;
        ready
    }

    fn set_listeners(&self, pod: NetnsCookie, listeners: &Listeners<'_>) -> Result<(), BpfError> {
        let slots = listeners::slots(pod, listeners)?;
        let mut maps = lock(&self.maps);
        maps.pod(pod)?.ok_or(BpfError::NotEnrolled(pod))?;
        slots.into_iter().try_for_each(|(key, socket)| maps.set_listener(key, socket))
    }

    fn set_inbound(&self, pod: NetnsCookie, plan: &InboundPlan) -> Result<(), BpfError> {
        lock(&self.maps).set_inbound(pod, plan)
    }

    fn unenrol(&self, pod: NetnsCookie) -> Result<(), BpfError> {
        let mut maps = lock(&self.maps);
        maps.forget(pod)?;
        lock(&self.unpinned).remove(&pod);
        links::detach(&self.pins.pod(pod)).map(drop)
    }

    fn other_instance(&self, pod: NetnsCookie, netns: BorrowedFd<'_>) -> Result<Option<String>, BpfError> {
        let unpinned = lock(&self.unpinned)
            .get(&pod)
            .map(|link| syscall::link_info(link.as_fd()).map(|(_, program)| program))
            .transpose()
            .map_err(|source| BpfError::Call {
                call: "query the steering link",
                object: format!("network namespace {pod}"),
                source,
            })?;
        neighbours::other_than(&self.pins, unpinned, pod, netns)
    }

    fn release(&self, pod: NetnsCookie) -> Result<(), BpfError> {
        let mut maps = lock(&self.maps);
        maps.forget(pod)?;
        lock(&self.unpinned).remove(&pod);
        // The pin is the trace. The namespace itself is free for another instance.
        links::sever(&self.pins.pod(pod)).map(drop)
    }

    fn enrolled(&self) -> Result<Vec<NetnsCookie>, BpfError> {
        lock(&self.maps).pods()
    }

    fn remembered(&self) -> Result<Vec<NetnsCookie>, BpfError> {
        let mut all = self.enrolled()?;
        all.extend(self.pins.pods()?);
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    fn set_ranges(&self, ranges: &[IpNet]) -> Result<(), BpfError> {
        lock(&self.maps).set_ranges(ranges)
    }

    fn set_destinations(&self, known: &BTreeMap<IpAddr, Destination>) -> Result<(), BpfError> {
        lock(&self.maps).set_destinations(known)
    }

    fn teach(&self, address: IpAddr, destination: Destination) -> Result<(), BpfError> {
        lock(&self.maps).teach(address, destination)
    }

    fn own(&self, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        use std::os::fd::AsRawFd;
        let key = socket.as_raw_fd().to_ne_bytes();
        syscall::map_update(self.agent_sockets.as_fd(), &key, &own_socket::AGENT.to_ne_bytes()).map_err(
            |source| BpfError::Call { call: "mark as the agent's", object: "a socket".to_owned(), source },
        )
    }

    fn original_destination(&self, pod: NetnsCookie, local: SocketAddr) -> Result<OriginalDst, BpfError> {
        if !is_loopback_capture(local.ip()) {
            return Ok(OriginalDst(local));
        }
        let key = LoopbackKey {
            netns: pod.0,
            address: Addr16::from_ip(local.ip()),
            port: local.port(),
            pad: [0; 3],
        };
        let mut value = [0; size_of::<LoopbackValue>()];
        match syscall::map_lookup(self.loopback.as_fd(), &key.to_bytes(), &mut value) {
            Ok(()) => {
                let value = LoopbackValue::from_bytes(value);
                Ok(OriginalDst(SocketAddr::new(value.address.to_ip(), value.port)))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                Err(BpfError::UnknownConnection { pod, local })
            }
            Err(source) => Err(BpfError::Call {
                call: "lookup",
                object: format!("map {}", name::map::LOOPBACK_DESTINATIONS),
                source,
            }),
        }
    }

    fn flows(&self) -> Result<Flows, BpfError> {
        let ring = lock(&self.flows).take().ok_or(BpfError::FlowsTaken)?;
        flows::read(ring)
    }

    fn plaintext_dropped(&self) -> Result<u64, BpfError> {
        lock(&self.maps).counter(counter::INBOUND_DROPPED)
    }

    fn sockets(&self) -> Result<Vec<PodSocket>, BpfError> {
        sockets::list(self.agent_sockets.as_fd(), self.flow.as_fd())
    }
}

fn row(enrolment: &Enrolment<'_>) -> Result<PodRow, BpfError> {
    let bad = |why| Err(BpfError::BadEnrolment(enrolment.cookie, why));
    let Enrolment { marks, ports, .. } = enrolment;
    if marks.capture & !marks.mask != 0 || marks.returned & !marks.mask != 0 {
        return bad("a mark lies outside its mask");
    }
    if marks.capture == 0 || marks.capture == marks.returned {
        return bad("the marks must differ from each other and from none");
    }
    if enrolment.addresses.is_empty() {
        return bad("a pod without an address has nothing to enrol");
    }
    if ports.hbone == 0 {
        return bad("the agent's port for tunnels is missing");
    }
    Ok(PodRow {
        capture: match enrolment.capture {
            CaptureMode::None => capture::NONE,
            CaptureMode::Mark => capture::MARK,
            CaptureMode::Loopback => capture::LOOPBACK,
        },
        inbound_default: inbound::DROP,
        hbone_port: ports.hbone,
        guarded_ports: [ports.plaintext, ports.outbound],
        mark: marks.capture,
        return_mark: marks.returned,
        mark_mask: marks.mask,
    })
}

/// A panic while the lock was held leaves maps that are as good as the last system call made them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::kernel::{Marks, OwnPorts};
    use super::*;

    #[test]
    fn an_enrolment_that_cannot_work_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let addresses = [IpAddr::from([10, 0, 0, 1])];
        let good = Enrolment {
            cookie: NetnsCookie(7),
            netns: file.as_fd(),
            addresses: &addresses,
            capture: CaptureMode::Mark,
            marks: Marks::default(),
            ports: OwnPorts::default(),
        };
        assert_eq!(row(&good).unwrap().hbone_port, 15008);
        let outside = Marks { capture: 1, ..Marks::default() };
        let same = Marks { returned: Marks::default().capture, ..Marks::default() };
        for bad in [
            Enrolment { addresses: &[], ..good.clone() },
            Enrolment { marks: outside, ..good.clone() },
            Enrolment { marks: same, ..good.clone() },
            Enrolment { ports: OwnPorts { hbone: 0, ..OwnPorts::default() }, ..good.clone() },
        ] {
            assert!(matches!(row(&bad), Err(BpfError::BadEnrolment(NetnsCookie(7), _))), "{bad:?}");
        }
    }
}
