//! Who may talk to whom: one model of policy, whichever dialect it was written in, and its evaluation
//! per connection. No I/O.
//!
//! [`PolicySet::compile`] is called when something changed and gives each workload its [`Compiled`];
//! [`Compiled::on_connection`] is called per connection, [`Compiled::evaluate`]
//! per request where it depends; [`Compiled::kernel_plan`] tells the kernel which
//! plaintext connections nobody has to look at.
//!
//! The rules of evaluation are those of Istio's `istio.security.Authorization`, except where they
//! would fail open: a policy that a workload names and nobody knows denies everything, and so does a
//! policy that could not be understood.

pub mod analyze;
mod compiled;
mod explain;
mod index;
pub mod istio;
pub mod linkerd;
mod listed;
mod matcher;
mod mtls;
mod normalize;
mod object;
pub mod own;
mod peer;
mod plan;
mod ports;
mod read;
mod request;
mod resource;
mod resources;
mod rule_list;
mod rules;
mod set;
mod settings;
mod template;
mod tri;
mod values;
mod verdict;
pub mod wire;

pub use compiled::{Compiled, Conn};
pub use explain::{Considered, Explanation, RuleTrace};
pub use mtls::{EffectiveMtls, MtlsDefaults, MtlsOrigin};
pub use normalize::{NotNormal, normalize};
pub use object::{LabelOperator, LabelRequirement, LabelSelector, Meta, Object, ObjectError};
pub use request::{Request, is_method};
pub use resource::{Defect, DefectKind, Kind, ResourceRef};
pub use resources::Resources;
pub use rules::{
    Action, Group, HeaderMatch, Match, PathMatch, Policy, Rule, Scope, ServiceAccount, StringMatch,
};
pub use set::{PolicySet, Subject};
pub use settings::{InboundDefault, LinkerdSettings, PathNormalization, PolicySettings, Settings, Stance};
pub use template::{PathTemplate, TemplateError};
pub use verdict::{By, Connection, Verdict, Why};

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
