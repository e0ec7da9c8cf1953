//! The schedule as a table.

use std::time::Duration;

use super::support::{HOUR, epoch};
use crate::certs::{backoff, renewal_due, retry_at};

#[test]
fn a_certificate_is_renewed_around_half_of_its_life() {
    // (life in hours, die, hours after not_before)
    let table = [
        (24.0, 0.5, 12.0),
        (24.0, 0.0, 9.6),
        (24.0, 1.0, 14.4),
        (1.0, 0.5, 0.5),
        // Dice beyond their range, and a certificate that ends before it begins.
        (24.0, 7.0, 14.4),
        (24.0, -7.0, 9.6),
        (-1.0, 0.5, 0.0),
    ];
    for (life, die, due) in table {
        let end = if life < 0.0 { epoch() - HOUR } else { epoch() + HOUR.mul_f64(life) };
        let expected = epoch() + HOUR.mul_f64(due);
        assert_eq!(renewal_due(epoch(), end, die), expected, "life {life} h, die {die}");
    }
}

#[test]
fn retries_slow_down_and_are_spread() {
    let seconds = |failures, die| backoff(failures, die).as_secs_f64();
    let middle: Vec<f64> = (0..=10).map(|n| seconds(n, 0.5)).collect();
    assert_eq!(middle, [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 150.0, 150.0]);
    assert_eq!((seconds(1, 0.0), seconds(1, 1.0)), (0.8, 1.2));
    assert_eq!((seconds(u32::MAX, 0.0), seconds(u32::MAX, 1.0)), (120.0, 180.0));
}

#[test]
fn a_retry_never_waits_past_the_expiry_of_what_is_still_valid() {
    let now = epoch();
    let s = Duration::from_secs;
    // (failures, the held certificate ends so many seconds from now, wait)
    let table = [
        (1, None, s(1)),
        (9, None, s(150)),
        (9, Some(now + s(1000)), s(150)),
        (9, Some(now + s(20)), s(20)),
        // Once it has ended there is nothing to be in time for.
        (9, Some(now), s(150)),
        (9, Some(now - s(20)), s(150)),
    ];
    for (failures, not_after, wait) in table {
        assert_eq!(retry_at(now, failures, not_after, 0.5), now + wait, "{failures} {not_after:?}");
    }
}
