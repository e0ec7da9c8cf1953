//! The Underpass node agent: pods' connections are captured in the kernel, carried in mutual TLS to
//! the other pod's node, and judged there.
//!
//! Modules stand in import order: each uses only those above it (`cargo xtask layers` checks that).

pub mod model;
pub mod sys;
pub mod telemetry;
pub mod lifecycle;
pub mod tls;
pub mod certs;
pub mod ca;
pub mod policy;
pub mod discovery;
pub mod bpf;
pub mod pods;
pub mod proxy;
pub mod admin;
pub mod config;
pub mod app;
pub mod controller;
pub mod cli;
