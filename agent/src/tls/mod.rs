//! Who is on the other end: TLS 1.3 with X.509-SVIDs in both directions, and nothing else.
//!
//! [`client_config`] and [`server_config`] turn one of our certificates into rustls configurations.
//! Both verify the peer with the same function (`verify.rs`), which asks in this order: is the leaf an
//! X.509-SVID (`svid.rs`), do we hold roots for the trust domain that it claims, does it chain to one of
//! *them* with nothing on the way revoked (`crl.rs`), and is it somebody we accept here. After the handshake
//! [`peer_of`] gives the proven identity, and [`Trust::hold`] tells when it is trusted no more (`live.rs`).
//! Any failure is a [`TlsError`] that names the rule and the offending value; [`cause_of`] and
//! [`reason_of`] find it again in the I/O error that the handshake ends with.

mod bundle;
mod certificate;
mod config;
mod crl;
mod error;
mod explain;
mod live;
mod provider;
mod svid;
mod trust;
mod verify;

pub use bundle::TrustBundles;
pub use certificate::Certificate;
pub use config::{
    ClientTemplate, client_config, peer_of, peer_valid_until, server_config, server_config_accepting,
    server_config_federated,
};
pub use crl::{CrlView, Crls, MAX_CRL_BYTES};
pub use error::{TlsError, cause_of, cause_of_tls, reason_of};
pub use explain::{Rule, explain};
pub use live::{Held, InUse};
pub use provider::{Profile, fips_module, profile, provider, set_profile, sha256, tell_profile};
pub use svid::{Summary, hex, peer_identity, summary, unhex};
pub use trust::{Trust, Trusted};
pub use verify::{Accept, check_server_revocation, rests_on, verify_chain};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
