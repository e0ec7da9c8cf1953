//! What runs where and who may talk to whom, as the agents' mesh file says it.
//!
//! Every agent gets the same mesh; only the list of its own node's pods differs.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::topology::{POD_RANGES, Topology, VIP_RANGES};

pub const TRUST_DOMAIN: &str = "cluster.local";
pub const NAMESPACE: &str = "default";

/// The SPIFFE id of a service account of [`NAMESPACE`].
pub fn identity(service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service_account}")
}

#[derive(Clone, Debug)]
pub struct Mesh {
    pub workloads: Vec<Workload>,
    pub services: Vec<Service>,
    /// List entries of the file's `policies`, as text.
    pub policies: Vec<String>,
    /// Kubernetes objects: list entries of the file's `resources`, as YAML.
    pub resources: Vec<String>,
    /// `STRICT` or `PERMISSIVE` for the whole mesh.
    pub mtls: &'static str,
    /// Whether unknown addresses inside the mesh's ranges are refused instead of passed through.
    pub refuse_unknown: bool,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            workloads: vec![],
            services: vec![],
            policies: vec![],
            resources: vec![],
            mtls: "PERMISSIVE",
            refuse_unknown: false,
        }
    }
}

/// A pod of the topology as the mesh knows it.
#[derive(Clone, Debug)]
pub struct Workload {
    pub pod: String,
    pub service_account: String,
    /// Of the mesh: reached by HBONE.
    pub meshed: bool,
    /// Listed among its node's own pods, so that the agent enrols it.
    pub enrolled: bool,
    /// `STRICT` or `PERMISSIVE` for this one; empty leaves it to the mesh.
    pub mtls: &'static str,
    /// Keys of policies attached to it: `namespace/name`.
    pub policies: Vec<String>,
    /// By which resources select it: `key: value`.
    pub labels: Vec<String>,
    pub healthy: bool,
    pub capacity: u32,
    /// Services that it is an endpoint of, by name, with target ports of its own by service port.
    pub services: Vec<(String, Vec<(u16, u16)>)>,
}

/// A service with a virtual address of each family.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub vips: [IpAddr; 2],
    pub ports: Vec<(u16, u16)>,
}

impl Service {
    pub fn hostname(&self) -> String {
        format!("{}.{NAMESPACE}.svc.cluster.local", self.name)
    }

    pub fn vip(&self, v6: bool) -> IpAddr {
        self.vips[usize::from(v6)]
    }
}

impl Mesh {
    /// What [`Mesh::of_four`] describes, with the node of each.
    pub const FOUR: [(&str, &str); 4] = [("alice", "n1"), ("bob", "n1"), ("guest", "n1"), ("server", "n2")];

    /// Two meshed clients and one that is not, on one node, and on the other a server.
    pub fn of_four() -> Self {
        Self::default()
            .meshed("alice", "alice")
            .meshed("bob", "bob")
            .meshed("server", "server")
            .plain("guest")
    }

    /// Adds a meshed pod with this service account.
    pub fn meshed(mut self, pod: &str, service_account: &str) -> Self {
        self.workloads.push(Workload::new(pod, service_account, true));
        self
    }

    /// Adds a pod that the mesh knows and that is not of it.
    pub fn plain(mut self, pod: &str) -> Self {
        self.workloads.push(Workload::new(pod, "default", false));
        self
    }

    /// Adds a policy by its text, without the leading dash.
    pub fn policy(mut self, text: &str) -> Self {
        self.policies.push(text.trim().to_owned());
        self
    }

    /// Adds a policy for every workload of [`NAMESPACE`] with one match, given as the fields of one:
    /// `principals: ["*/sa/client"]`.
    pub fn rule(self, name: &str, action: &str, fields: &str) -> Self {
        self.policy(&format!(
            "name: {name}\nnamespace: {NAMESPACE}\nscope: NAMESPACE\naction: {action}\n\
             groups: [{{rules: [{{matches: [{{{fields}}}]}}]}}]"
        ))
    }

    /// Adds a Kubernetes object by its YAML.
    pub fn resource(mut self, yaml: &str) -> Self {
        self.resources.push(yaml.trim().to_owned());
        self
    }

    pub fn strict(mut self) -> Self {
        self.mtls = "STRICT";
        self
    }

    /// Adds a service; the number makes its virtual addresses.
    pub fn service(mut self, name: &str, number: u8, ports: &[(u16, u16)]) -> Self {
        self.services.push(Service {
            name: name.into(),
            vips: [[10, 203, 0, number].into(), [0xfd00, 0x203, 0, 0, 0, 0, 0, u16::from(number)].into()],
            ports: ports.to_vec(),
        });
        self
    }

    /// Panics on a pod that is not of the mesh: a mistake in the test.
    pub fn workload(&mut self, pod: &str) -> &mut Workload {
        self.workloads.iter_mut().find(|w| w.pod == pod).unwrap_or_else(|| panic!("no workload {pod}"))
    }

    pub fn without(mut self, pod: &str) -> Self {
        self.workloads.retain(|w| w.pod != pod);
        self
    }

    pub fn the_service(&self, name: &str) -> &Service {
        self.services.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no service {name}"))
    }

    /// The file for one node's agent.
    pub fn text_for(&self, topology: &Topology, node: &str) -> String {
        let mut t = String::new();
        let _ = writeln!(t, "mesh:\n  trustDomain: {TRUST_DOMAIN}");
        let _ = writeln!(t, "  ranges: [\"{}\"]", [POD_RANGES, VIP_RANGES].concat().join("\", \""));
        let _ = writeln!(t, "  mtls: {}", self.mtls);
        if self.refuse_unknown {
            t.push_str("  unknownDestinations: REFUSE\n");
        }
        self.write_workloads(&mut t, topology);
        self.write_services(&mut t);
        list(&mut t, "policies", !self.policies.is_empty());
        for policy in &self.policies {
            let _ = writeln!(t, "- {}", policy.replace('\n', "\n  "));
        }
        list(&mut t, "resources", !self.resources.is_empty());
        for resource in &self.resources {
            let _ = writeln!(t, "- {}", resource.replace('\n', "\n  "));
        }
        self.write_pods(&mut t, topology, node);
        t
    }

    /// The same pods and resources as `kubectl get -o yaml` would show them.
    pub fn kubernetes(&self, topology: &Topology) -> String {
        let mut t = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
        for w in &self.workloads {
            let _ = writeln!(t, "---\napiVersion: v1\nkind: Pod\nmetadata:");
            let _ = writeln!(
                t,
                "  name: {}\n  namespace: {NAMESPACE}\n  labels: {{{}}}",
                w.pod,
                w.labels.join(", ")
            );
            let _ = writeln!(
                t,
                "spec: {{serviceAccountName: {}, containers: [{{name: app}}]}}",
                w.service_account
            );
            let _ = writeln!(t, "status: {{podIP: {}}}", topology.pod(&w.pod).ip4);
        }
        for resource in &self.resources {
            let _ = writeln!(t, "---\n{resource}");
        }
        t
    }

    fn write_workloads(&self, t: &mut String, topology: &Topology) {
        list(t, "workloads", !self.workloads.is_empty());
        for w in &self.workloads {
            let pod = topology.pod(&w.pod);
            let _ = writeln!(t, "- name: {}\n  namespace: {NAMESPACE}", w.pod);
            let _ = writeln!(t, "  serviceAccount: {}", w.service_account);
            let _ = writeln!(t, "  workloadIps: [\"{}\", \"{}\"]", pod.ip4, pod.ip6);
            let _ = writeln!(t, "  protocol: {}", if w.meshed { "HBONE" } else { "TCP" });
            let _ = writeln!(t, "  node: {}", pod.node);
            if !w.mtls.is_empty() {
                let _ = writeln!(t, "  mtls:\n    mode: {}", w.mtls);
            }
            if !w.healthy {
                let _ = writeln!(t, "  status: UNHEALTHY");
            }
            if w.capacity != 1 {
                let _ = writeln!(t, "  capacity: {}", w.capacity);
            }
            if !w.policies.is_empty() {
                let _ = writeln!(t, "  authorizationPolicies: [{}]", w.policies.join(", "));
            }
            if !w.labels.is_empty() {
                let _ = writeln!(t, "  labels: {{{}}}", w.labels.join(", "));
            }
            if !w.services.is_empty() {
                t.push_str("  services:\n");
            }
            for (name, targets) in &w.services {
                let targets: Vec<String> =
                    targets.iter().map(|(p, target)| format!("{p}: {target}")).collect();
                let hostname = self.the_service(name).hostname();
                let _ = writeln!(t, "    {NAMESPACE}/{hostname}: {{{}}}", targets.join(", "));
            }
        }
    }

    fn write_services(&self, t: &mut String) {
        list(t, "services", !self.services.is_empty());
        for s in &self.services {
            let ports: Vec<String> = s.ports.iter().map(|(p, target)| format!("{p}: {target}")).collect();
            let _ = writeln!(t, "- namespace: {NAMESPACE}\n  hostname: {}", s.hostname());
            let _ = writeln!(t, "  vips: [\"{}\", \"{}\"]", s.vips[0], s.vips[1]);
            let _ = writeln!(t, "  ports: {{{}}}", ports.join(", "));
        }
    }

    fn write_pods(&self, t: &mut String, topology: &Topology, node: &str) {
        let ours = |w: &&Workload| w.enrolled && topology.pod(&w.pod).node == node;
        list(t, "localPods", self.workloads.iter().any(|w| ours(&w)));
        for w in self.workloads.iter().filter(ours) {
            t.push_str(&w.local_pod(topology));
        }
    }
}

/// The key of a list, which is left out when nothing follows.
fn list(t: &mut String, key: &str, some: bool) {
    if some {
        let _ = writeln!(t, "{key}:");
    }
}

impl Workload {
    /// Its entry in a node's `localPods`, the last list of the file.
    pub fn local_pod(&self, topology: &Topology) -> String {
        let (pod, mut t) = (topology.pod(&self.pod), String::new());
        let _ = writeln!(t, "- uid: {}", pod_uid(&self.pod));
        let _ = writeln!(t, "  name: {}\n  namespace: {NAMESPACE}", self.pod);
        let _ = writeln!(t, "  serviceAccount: {}", self.service_account);
        let _ = writeln!(t, "  netns: {}", pod.ns.path().display());
        let _ = writeln!(t, "  addresses: [\"{}\", \"{}\"]", pod.ip4, pod.ip6);
        t
    }

    fn new(pod: &str, service_account: &str, meshed: bool) -> Self {
        Self {
            pod: pod.into(),
            service_account: service_account.into(),
            meshed,
            enrolled: meshed,
            mtls: "",
            policies: vec![],
            labels: vec![],
            healthy: true,
            capacity: 1,
            services: vec![],
        }
    }
}

/// The uid of the pod object.
pub fn pod_uid(pod: &str) -> String {
    format!("uid-of-{pod}")
}
