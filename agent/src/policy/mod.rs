//! Who may talk to whom: one model of policy, whichever dialect it was written in, and its evaluation
//! per connection. No I/O.
//!
//! [`PolicySet::compile`] is called when something changed and gives each workload its [`Compiled`];
//! [`Compiled::evaluate`] is called per connection; [`Compiled::kernel_plan`] tells the kernel which
//! plaintext connections nobody has to look at.
//!
//! The rules of evaluation are those of Istio's `istio.security.Authorization`, except where they
//! would fail open: a policy that a workload names and nobody knows denies everything, and so does a
//! policy that could not be understood.

mod compiled;
mod matcher;
mod mtls;
mod plan;
mod rules;
mod set;

pub use compiled::{Compiled, Conn, Verdict, Why};
pub use mtls::{EffectiveMtls, MtlsDefaults, MtlsOrigin};
pub use rules::{Action, Group, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};
pub use set::{PolicySet, Subject};

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
