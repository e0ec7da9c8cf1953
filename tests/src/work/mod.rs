//! Small applications for the pods: servers that remember who came, clients, and what they say to each
//! other. Blocking sockets with deadlines on every call.

pub mod grpc;
pub mod http;
pub mod pattern;
pub mod server;
pub mod talk;
pub mod traffic;

pub use server::Server;
pub use talk::dial;
pub use traffic::Traffic;
