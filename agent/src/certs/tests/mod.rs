//! Certificates over paused time, issuers that misbehave, and root files that several agents share.

mod chains;
mod controller;
mod embedded;
mod istio;
mod istio_hostile;
mod istio_server;
mod manager;
mod paces;
mod renewal;
mod roots;
mod slots;
mod spire;
mod spire_agent;
mod support;
mod trust;
mod wiped;
mod year;
