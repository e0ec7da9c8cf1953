//! A kernel in memory: keeps what it was told, for unit tests of whoever tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard};

use ipnet::IpNet;
use tokio::sync::mpsc;

use super::{
    BpfError, CaptureMode, Destination, Enrolment, Flow, Flows, Kernel, Listeners, Marks, OwnPorts, PodSocket,
};
use crate::model::{InboundAction, InboundPlan, NetnsCookie, OriginalDst};

/// See the module. Behaves as the real one does, errors included, as far as a caller can tell.
pub struct FakeKernel {
    state: Mutex<State>,
    flows: mpsc::Sender<Flow>,
}

#[derive(Default)]
pub struct State {
    pub pods: BTreeMap<NetnsCookie, FakePod>,
    pub ranges: BTreeSet<IpNet>,
    pub destinations: BTreeMap<IpAddr, Destination>,
    /// Descriptors given to [`Kernel::own`], in order.
    pub owned: Vec<RawFd>,
    /// What loopback addresses stand for.
    pub loopback: BTreeMap<(NetnsCookie, SocketAddr), SocketAddr>,
    /// Pods of which only the trace is left.
    pub released: BTreeSet<NetnsCookie>,
    /// The next calls of [`Kernel::enrol`] fail with these.
    pub enrol_failures: Vec<BpfError>,
    /// The next calls of [`Kernel::set_destinations`] fail with these.
    pub destination_failures: Vec<BpfError>,
    /// The next calls of [`Kernel::set_inbound`] fail with these.
    pub inbound_failures: Vec<BpfError>,
    /// What [`Kernel::sockets`] tells of whatever namespace.
    pub sockets: Vec<PodSocket>,
    /// How often that was asked for.
    pub listings: usize,
    flows: Option<mpsc::Receiver<Flow>>,
}

/// What was said about one pod. Listeners are in the order of [`Listeners`]' fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakePod {
    pub addresses: BTreeSet<IpAddr>,
    pub capture: CaptureMode,
    pub marks: Marks,
    pub ports: OwnPorts,
    pub listeners: [Option<RawFd>; 6],
    pub inbound: InboundPlan,
}

impl Default for FakeKernel {
    fn default() -> Self {
        let (flows, receiver) = mpsc::channel(64);
        Self { state: Mutex::new(State { flows: Some(receiver), ..State::default() }), flows }
    }
}

impl FakeKernel {
    /// Everything it was told so far, to look at and to change.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Reports a flow, as the kernel does when it closes.
    pub async fn report(&self, flow: Flow) {
        self.flows.send(flow).await.unwrap();
    }

    fn pod<T>(&self, pod: NetnsCookie, change: impl FnOnce(&mut FakePod) -> T) -> Result<T, BpfError> {
        self.state().pods.get_mut(&pod).map(change).ok_or(BpfError::NotEnrolled(pod))
    }
}

impl Kernel for FakeKernel {
    fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<(), BpfError> {
        let mut state = self.state();
        if !state.enrol_failures.is_empty() {
            return Err(state.enrol_failures.remove(0));
        }
        let before = state.pods.get(&enrolment.cookie);
        let pod = FakePod {
            addresses: enrolment.addresses.iter().copied().collect(),
            capture: enrolment.capture,
            marks: enrolment.marks,
            ports: enrolment.ports,
            listeners: before.map_or([None; 6], |pod| pod.listeners),
            inbound: before.map_or_else(|| InboundPlan::all(InboundAction::Drop), |pod| pod.inbound.clone()),
        };
        state.released.remove(&enrolment.cookie);
        state.pods.insert(enrolment.cookie, pod);
        Ok(())
    }

    fn set_listeners(&self, pod: NetnsCookie, listeners: &Listeners<'_>) -> Result<(), BpfError> {
        let all = [
            listeners.outbound_v4,
            listeners.outbound_v6,
            listeners.plaintext_v4,
            listeners.plaintext_v6,
            listeners.hbone_v4,
            listeners.hbone_v6,
        ];
        self.pod(pod, |pod| pod.listeners = all.map(|fd| fd.map(|fd| fd.as_raw_fd())))
    }

    fn set_inbound(&self, pod: NetnsCookie, plan: &InboundPlan) -> Result<(), BpfError> {
        let failure = self.state().inbound_failures.pop();
        failure.map_or(Ok(()), Err)?;
        self.pod(pod, |pod| pod.inbound = plan.clone())
    }

    fn unenrol(&self, pod: NetnsCookie) -> Result<(), BpfError> {
        let mut state = self.state();
        state.pods.remove(&pod);
        state.released.remove(&pod);
        Ok(())
    }

    fn release(&self, pod: NetnsCookie) -> Result<(), BpfError> {
        let mut state = self.state();
        if state.pods.remove(&pod).is_some() {
            state.released.insert(pod);
        }
        Ok(())
    }

    fn other_instance(&self, _: NetnsCookie, _: BorrowedFd<'_>) -> Result<Option<String>, BpfError> {
        Ok(None)
    }

    fn enrolled(&self) -> Result<Vec<NetnsCookie>, BpfError> {
        Ok(self.state().pods.keys().copied().collect())
    }

    fn remembered(&self) -> Result<Vec<NetnsCookie>, BpfError> {
        let state = self.state();
        Ok(state.released.iter().chain(state.pods.keys()).copied().collect())
    }

    fn set_ranges(&self, ranges: &[IpNet]) -> Result<(), BpfError> {
        self.state().ranges = ranges.iter().copied().collect();
        Ok(())
    }

    fn set_destinations(&self, known: &BTreeMap<IpAddr, Destination>) -> Result<(), BpfError> {
        let mut state = self.state();
        if !state.destination_failures.is_empty() {
            return Err(state.destination_failures.remove(0));
        }
        state.destinations = known.clone();
        Ok(())
    }

    fn teach(&self, address: IpAddr, destination: Destination) -> Result<(), BpfError> {
        self.state().destinations.insert(address, destination);
        Ok(())
    }

    fn own(&self, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        self.state().owned.push(socket.as_raw_fd());
        Ok(())
    }

    fn original_destination(&self, pod: NetnsCookie, local: SocketAddr) -> Result<OriginalDst, BpfError> {
        if !super::kernel::is_loopback_capture(local.ip()) {
            return Ok(OriginalDst(local));
        }
        let state = self.state();
        let destination = state.loopback.get(&(pod, local)).copied();
        destination.map(OriginalDst).ok_or(BpfError::UnknownConnection { pod, local })
    }

    fn flows(&self) -> Result<Flows, BpfError> {
        let receiver = self.state().flows.take().ok_or(BpfError::FlowsTaken)?;
        Ok(Flows::from_channel(receiver))
    }

    fn plaintext_dropped(&self) -> Result<u64, BpfError> {
        Ok(0)
    }

    fn sockets(&self) -> Result<Vec<PodSocket>, BpfError> {
        let mut state = self.state();
        state.listings += 1;
        Ok(state.sockets.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn enrolling_again_keeps_listeners_and_plan() {
        let kernel = FakeKernel::default();
        let file = std::fs::File::open("/dev/null").unwrap();
        let cookie = NetnsCookie(7);
        let address: IpAddr = "10.1.0.2".parse().unwrap();
        let enrolment = Enrolment {
            cookie,
            netns: file.as_fd(),
            addresses: &[address],
            capture: CaptureMode::Mark,
            marks: Marks::default(),
            ports: OwnPorts::default(),
        };
        assert!(matches!(
            kernel.set_inbound(cookie, &InboundPlan::all(InboundAction::Pass)),
            Err(BpfError::NotEnrolled(_))
        ));
        kernel.enrol(&enrolment).unwrap();
        assert_eq!(kernel.state().pods[&cookie].inbound.default, InboundAction::Drop);

        let listeners = Listeners { outbound_v4: Some(file.as_fd()), ..Listeners::default() };
        kernel.set_listeners(cookie, &listeners).unwrap();
        kernel.set_inbound(cookie, &InboundPlan::all(InboundAction::Pass)).unwrap();
        kernel.enrol(&enrolment).unwrap();
        let pod = kernel.state().pods[&cookie].clone();
        assert_eq!(pod.inbound.default, InboundAction::Pass);
        assert_eq!(pod.listeners[0], Some(file.as_raw_fd()));
    }

    #[test]
    fn only_loopback_capture_needs_memory_of_destinations() {
        let kernel = FakeKernel::default();
        let plain: SocketAddr = "10.1.0.3:80".parse().unwrap();
        assert_eq!(kernel.original_destination(NetnsCookie(7), plain).unwrap().0, plain);
        let looped: SocketAddr = "127.130.0.9:20000".parse().unwrap();
        assert!(kernel.original_destination(NetnsCookie(7), looped).is_err());
        kernel.state().loopback.insert((NetnsCookie(7), looped), plain);
        assert_eq!(kernel.original_destination(NetnsCookie(7), looped).unwrap().0, plain);
        assert!(kernel.original_destination(NetnsCookie(8), looped).is_err(), "another pod's");
    }
}
