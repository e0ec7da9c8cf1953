//! Simulated nodes on one machine: network namespaces for nodes and pods, real agents in them, small
//! workloads, packet capture, and the adversaries that the stories in `tests/tests` need.
//!
//! A story makes a [`Topology`], starts an [`agent::Agent`] on each node, and uses the workloads of
//! [`work`] inside the pods. Everything is removed on drop; what a killed process left is swept by the
//! next one ([`sweep`]). Outside this crate only `ip` of iproute2 is used. A real Kubernetes is in [`kube`], which
//! uses more.

pub mod access_log;
pub mod agent;
pub mod bench;
pub mod binary;
pub mod capture;
pub mod cluster;
pub mod controller;
pub mod demo;
pub mod hbone;
pub mod hello;
pub mod hostile;
pub mod istiod;
pub mod kube;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod packet;
pub mod pki;
pub mod root;
pub mod settings;
pub mod stories;
pub mod sweep;
pub mod topology;
pub mod traces;
pub mod wait;
pub mod work;

pub use agent::Agent;
pub use cluster::Cluster;
pub use controller::Controller;
pub use mesh::Mesh;
pub use netns::Netns;
pub use settings::Settings;
pub use topology::{Node, Pod, Topology};
pub use work::Server;
