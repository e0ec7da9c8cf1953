//! When to renew and when to try again: functions of plain values, `now` and a die that was cast.

use std::time::{Duration, SystemTime};

/// When to renew a certificate: at half of its life, give or take a tenth of it.
///
/// The spread keeps a node's identities, and a cluster's nodes, from coming to the issuer all at once
/// for ever after one restart. `die` is uniform in 0.0..1.0.
pub fn renewal_due(not_before: SystemTime, not_after: SystemTime, die: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or(Duration::ZERO);
    not_before + life.mul_f64(0.4 + 0.2 * die.clamp(0.0, 1.0))
}

/// When to ask for a successor of a certificate whose issuer sends successors by itself, at about half of
/// its life: at 0.8 to 0.9 of it, in time for many attempts.
pub fn pushed_due(not_before: SystemTime, not_after: SystemTime, die: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or(Duration::ZERO);
    not_before + life.mul_f64(0.8 + 0.1 * die.clamp(0.0, 1.0))
}

/// How long to wait after the `failures`th failure in a row: 1 s, doubled each time to at most 150 s,
/// give or take a fifth.
pub fn backoff(failures: u32, die: f64) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LAST_RETRY).mul_f64(0.8 + 0.4 * die.clamp(0.0, 1.0))
}

/// When to try again, never later than the expiry of the certificate that is still valid.
pub fn retry_at(now: SystemTime, failures: u32, not_after: Option<SystemTime>, die: f64) -> SystemTime {
    let at = now + backoff(failures, die);
    match not_after {
        Some(end) if end > now => at.min(end),
        _ => at,
    }
}

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(150);
