//! The `localPods` section.

use std::collections::HashMap;
use std::net::IpAddr;

use super::Converter;
use crate::discovery::file::document as written;
use crate::discovery::yaml::Path;
use crate::model::workload::{NetworkMode, TunnelProtocol};
use crate::model::{LocalPod, PodUid, Workload};

impl Converter {
    pub(super) fn local_pods(
        &mut self,
        pods: Vec<written::LocalPod>,
        workloads: &[Workload],
    ) -> Vec<LocalPod> {
        let ours = workloads
            .iter()
            .filter(|w| w.network == self.network && w.network_mode == NetworkMode::Standard)
            .flat_map(|w| w.addresses.iter().map(move |ip| (*ip, w)));
        let mut by_address: HashMap<IpAddr, &Workload> = HashMap::new();
        for (ip, workload) in ours {
            // Where two claim it, which has been complained about, the first.
            by_address.entry(ip).or_insert(workload);
        }
        let (mut uids, mut addresses, mut namespaces) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut converted = Vec::with_capacity(pods.len());
        for (at, pod) in pods.into_iter().enumerate() {
            let path = Path::default().key("localPods").index(at);
            let Some(pod) = self.local_pod(&path, pod) else { continue };
            let mut unique = |path: Path, first: Option<usize>| {
                if let Some(first) = first {
                    self.errors.add(path, format!("localPods[{first}] has it already"));
                }
            };
            unique(path.key("uid"), uids.insert(pod.uid.clone(), at));
            unique(path.key("netns"), namespaces.insert(pod.netns.clone(), at));
            for (n, ip) in pod.addresses.iter().enumerate() {
                unique(path.key("addresses").index(n), addresses.insert(*ip, at));
            }
            self.check_workload(&path, &pod, &by_address);
            converted.push(pod);
        }
        converted
    }

    /// None after a complaint.
    fn local_pod(&mut self, path: &Path, pod: written::LocalPod) -> Option<LocalPod> {
        if pod.uid.is_empty() {
            self.errors.add(path.key("uid"), "must not be empty");
        }
        self.check_name(path.key("name"), &pod.name);
        self.check_name(path.key("namespace"), &pod.namespace);
        if !pod.netns.is_absolute() {
            self.errors.add(path.key("netns"), "must be an absolute path, such as /run/netns/name");
        }
        if pod.addresses.is_empty() {
            self.errors.add(path.key("addresses"), "a pod has at least one address");
        }
        let identity = self.identity(path, pod.trust_domain, &pod.namespace, &pod.service_account)?;
        Some(LocalPod {
            uid: PodUid(pod.uid.into()),
            namespace: pod.namespace.into(),
            name: pod.name.into(),
            identity,
            netns: pod.netns,
            addresses: pod.addresses.into_iter().map(|ip| ip.0).collect(),
        })
    }

    /// Peers reach the pod as its workload says, and its policies are the workload's: without one, or
    /// with another's, nobody could connect to it.
    fn check_workload(&mut self, path: &Path, pod: &LocalPod, by_address: &HashMap<IpAddr, &Workload>) {
        for (n, ip) in pod.addresses.iter().enumerate() {
            let path = path.key("addresses").index(n);
            let Some(workload) = by_address.get(ip) else {
                self.errors
                    .add(path, format!("no workload of this network has {ip}; add the pod to workloads"));
                continue;
            };
            if (&workload.namespace, &workload.name, &workload.identity)
                != (&pod.namespace, &pod.name, &pod.identity)
            {
                self.errors.add(
                    path,
                    format!(
                        "{ip} is that of workload {}/{} with the identity {}, not of {}/{} with {}",
                        workload.namespace,
                        workload.name,
                        workload.identity,
                        pod.namespace,
                        pod.name,
                        pod.identity,
                    ),
                );
            } else if workload.protocol == TunnelProtocol::None && n == 0 {
                self.warnings.add(path, "its workload says protocol TCP: peers will send it plaintext");
            }
        }
    }
}
