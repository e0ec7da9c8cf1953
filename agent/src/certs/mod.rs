//! One valid certificate per local service account, without anyone noticing.
//!
//! A [`Manager`] holds a certificate for every identity that somebody has a [`Lease`] on: fetched from
//! an [`Issuer`] when the first lease is taken, renewed at about half of its life, dropped with the last
//! lease. [`Lease::current`] is what a handshake asks; it never gives an expired certificate.

mod clock;
mod controller;
mod embedded;
mod entry;
mod failures;
mod identity;
mod issuer;
mod istio;
pub(crate) mod keeping;
pub(crate) mod leaf;
mod manager;
pub(crate) mod owner;
mod renewal;
mod root_files;
mod slots;
mod spire;
mod trust;
mod view;
mod workshop;

pub use clock::Clock;
pub use controller::{ControllerIssuer, ReportSource};
pub use embedded::{EmbeddedConfig, EmbeddedIssuer};
pub use entry::VouchedBy;
pub use identity::Identity;
pub use issuer::{CertError, Issued, Issuer, Nudge};
pub use istio::{
    Caller, ClientFiles, IstioConfig, IstioIssuer, check_address, check_cluster_id, check_headers,
    check_host_name,
};
pub use keeping::FileError;
pub use manager::{Config, Lease, Manager, Surroundings};
pub use renewal::{backoff, pushed_due, renewal_due, retry_at};
pub use root_files::RootError;
pub use spire::{SpireConfig, SpireIssuer};
pub use trust::{FileView, TrustConfig, TrustFileError, TrustFiles};
pub(crate) use view::rfc3339;
pub use view::{BundleView, CertState, CertView, LinkView, RevocationView, RootView, TrustView};

#[cfg(test)]
mod tests;
