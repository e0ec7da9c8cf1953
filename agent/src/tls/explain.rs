//! Says of each rule whether a certificate keeps it, by the very functions that handshakes go by.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;

use super::svid::{self, check_extended_key_usage, check_key_usage, identity_of, is_ca, parse, system_time};
use super::{Accept, TlsError, Trusted, verify_chain};
use crate::model::SpiffeId;

/// One rule, and what the certificate has to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What must be.
    pub rule: &'static str,
    /// `None`: it could not be looked at, or nothing was given to judge it by.
    pub kept: Option<bool>,
    /// What is.
    pub found: String,
}

/// Every rule of X.509-SVIDs for a chain (leaf first) at `now`, and with `trusted` of its path as well. The
/// chain is accepted by whoever holds `trusted` exactly if every rule is kept.
pub fn explain(chain: &[CertificateDer<'_>], trusted: Option<&Trusted>, now: SystemTime) -> Vec<Rule> {
    let mut rules = Vec::new();
    let leaf = chain.first().ok_or(TlsError::NoCertificate).and_then(parse);
    let leaf = match leaf {
        Ok(leaf) => leaf,
        Err(e) => return vec![broken(FORM, &e)],
    };
    rules.push(kept(FORM, format!("serial {}, signed by {}", svid::hex(leaf.raw_serial()), leaf.issuer())));
    let identity = identity_of(&leaf);
    rules.push(match &identity {
        Ok(identity) => kept(IDENTITY, identity.to_string()),
        Err(e) => broken(IDENTITY, e),
    });
    rules.push(match is_ca(&leaf) {
        Ok(false) => kept(NO_CA, "CA:FALSE".into()),
        Ok(true) => Rule { rule: NO_CA, kept: Some(false), found: "CA:TRUE".into() },
        Err(e) => broken(NO_CA, &e),
    });
    let of = |rule, check: &dyn Fn(&SpiffeId) -> Result<(), TlsError>| match &identity {
        Ok(identity) => {
            check(identity).map_or_else(|e| broken(rule, &e), |()| kept(rule, "as it must be".into()))
        }
        Err(_) => Rule { rule, kept: None, found: "not looked at without an identity".into() },
    };
    rules.push(of(USAGE, &|identity| check_key_usage(&leaf, identity)));
    rules.push(of(EXTENDED, &|identity| check_extended_key_usage(&leaf, identity)));
    let (from, until) = (system_time(leaf.validity().not_before), system_time(leaf.validity().not_after));
    // In whole seconds, as handshakes judge it.
    let at = UNIX_EPOCH + Duration::from_secs(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    rules.push(Rule {
        rule: VALID,
        kept: Some((from..=until).contains(&at)),
        found: format!("{} to {}", leaf.validity().not_before, leaf.validity().not_after),
    });
    rules.push(match trusted {
        None => Rule { rule: PATH, kept: None, found: "no bundle was given to judge it by".into() },
        Some(trusted) => match verify_chain(chain, trusted, &Accept::Trusted, now) {
            Ok(_) => kept(PATH, format!("{} certificate(s) above the leaf", chain.len() - 1)),
            Err(e) => broken(PATH, &e),
        },
    });
    rules
}

const FORM: &str = "the leaf is one X.509 v3 certificate";
const IDENTITY: &str = "exactly one URI name, which is a SPIFFE id";
const NO_CA: &str = "no certificate authority";
const USAGE: &str = "key usage: digitalSignature, neither keyCertSign nor cRLSign";
const EXTENDED: &str = "extended key usage: none, or serverAuth and clientAuth";
const VALID: &str = "valid at this time";
const PATH: &str = "chains to a root of its trust domain, nothing revoked, all valid";

fn kept(rule: &'static str, found: String) -> Rule {
    Rule { rule, kept: Some(true), found }
}

fn broken(rule: &'static str, error: &TlsError) -> Rule {
    Rule { rule, kept: Some(false), found: error.to_string() }
}
