//! What the kernel knows of destinations: published with every snapshot, taught between two.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use crate::bpf::{BpfError, Kernel};
use crate::discovery::Snapshot;
use crate::model::Destination;

/// The one place that writes destinations, so that a lesson from an old snapshot never outlives the
/// snapshot that refutes it.
pub struct Destinations {
    kernel: Arc<dyn Kernel>,
    published: Mutex<Published>,
}

#[derive(Default)]
struct Published {
    /// The revision that the kernel's view is made of.
    revision: u64,
    ranges: Vec<IpNet>,
}

impl Destinations {
    pub fn new(kernel: Arc<dyn Kernel>) -> Self {
        Self { kernel, published: Mutex::default() }
    }

    /// Replaces all that was published and taught before.
    ///
    /// A range that is no more goes last: an edit may take it away and name an address in it, which
    /// would be left alone between the two.
    pub fn publish(&self, snapshot: &Snapshot) -> Result<(), BpfError> {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let view = snapshot.kernel_destinations();
        let gone: Vec<IpNet> =
            published.ranges.iter().filter(|range| !view.ranges.contains(range)).copied().collect();
        self.kernel.set_ranges(&[view.ranges.clone(), gone.clone()].concat())?;
        self.kernel.set_destinations(&view.known)?;
        if !gone.is_empty() {
            self.kernel.set_ranges(&view.ranges)?;
        }
        *published = Published { revision: snapshot.revision(), ranges: view.ranges };
        Ok(())
    }

    /// Tells of one more address that was found not to be the mesh's under `revision`.
    pub fn teach_leave(&self, revision: u64, ip: IpAddr) -> Result<(), BpfError> {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if published.revision == revision { self.kernel.teach(ip, Destination::Leave) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::fake::FakeKernel;
    use crate::discovery::Store;
    use crate::discovery::file::parse;

    #[test]
    fn a_lesson_of_an_older_snapshot_is_not_taught() {
        let kernel = Arc::new(FakeKernel::default());
        let destinations = Destinations::new(kernel.clone());
        let store = Store::new();
        let ip: IpAddr = "10.0.0.7".parse().unwrap();
        let publish = |text: &str| store.publish(parse(text).unwrap().state);
        let first = publish("mesh: {}");
        destinations.publish(&first).unwrap();
        destinations.teach_leave(first.revision(), ip).unwrap();
        assert_eq!(kernel.state().destinations.get(&ip), Some(&Destination::Leave));

        // The address is a pod's of the mesh now, and a connection from before is still being routed.
        let second = publish(
            "{mesh: {}, workloads: [{name: a, namespace: b, workloadIps: [10.0.0.7], protocol: HBONE}]}",
        );
        destinations.publish(&second).unwrap();
        destinations.teach_leave(first.revision(), ip).unwrap();
        assert_eq!(kernel.state().destinations.get(&ip), Some(&Destination::Capture));
    }
    #[test]
    fn a_range_goes_only_when_the_addresses_in_it_are_told() {
        let kernel = Arc::new(FakeKernel::default());
        let destinations = Destinations::new(kernel.clone());
        let store = Store::new();
        let range: IpNet = "10.0.0.0/24".parse().unwrap();
        let first = store.publish(parse("mesh: {ranges: [10.0.0.0/24]}").unwrap().state);
        destinations.publish(&first).unwrap();

        let second = store.publish(
            parse(
                "{mesh: {}, workloads: [{name: a, namespace: b, workloadIps: [10.0.0.7], protocol: HBONE}]}",
            )
            .unwrap()
            .state,
        );
        kernel.state().destination_failures.push(BpfError::Full { map: "DESTINATIONS" });
        destinations.publish(&second).unwrap_err();
        assert!(kernel.state().ranges.contains(&range), "nothing is known of 10.0.0.7 yet");
        destinations.publish(&second).unwrap();
        assert!(!kernel.state().ranges.contains(&range));
    }
}
