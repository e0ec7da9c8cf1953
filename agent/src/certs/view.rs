//! What the admin API tells about certificates.

use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::{SpiffeId, TrustDomain};

/// One identity that somebody holds a lease on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertView {
    pub identity: SpiffeId,
    pub trust_domain: TrustDomain,
    pub state: CertState,
    /// Lower-case hexadecimal.
    pub serial: Option<String>,
    /// RFC 3339, as all times here.
    pub not_before: Option<String>,
    pub not_after: Option<String>,
    /// When the next attempt is due: a renewal, or a retry after a failure.
    pub renewal_due: Option<String>,
    /// Certificates sent in a handshake, the leaf included.
    pub chain_length: usize,
    /// The distinguished name of the authority that signed the leaf.
    pub authority: Option<String>,
    /// Which issuer is asked.
    pub issuer: String,
    pub leases: usize,
    /// Why the latest attempt failed, if it did.
    pub last_error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertState {
    /// The first certificate has not come yet.
    Fetching,
    /// Handshakes use it.
    Valid,
    /// Handshakes use it, but its renewal is failing.
    RenewalFailing,
    /// No certificate, and the latest attempt failed.
    Failed,
    /// There was one, its time has passed, and no other has come.
    Expired,
}

pub(crate) fn rfc3339(t: SystemTime) -> String {
    OffsetDateTime::from(t).format(&Rfc3339).unwrap_or_else(|_| format!("{t:?}"))
}
