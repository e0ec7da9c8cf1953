//! A connection's path through the agent.

pub mod deliver;
pub mod tunnel;
