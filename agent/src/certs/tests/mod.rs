//! Certificates over paused time, issuers that misbehave, and root files that several agents share.

mod embedded;
mod manager;
mod renewal;
mod roots;
mod support;
