//! RFC 3339 time in UTC, with microseconds.

use std::time::{SystemTime, UNIX_EPOCH};

/// As the access log writes it: UTC, with microseconds.
pub fn rfc3339(time: SystemTime) -> String {
    let mut out = Vec::with_capacity(LEN);
    push_rfc3339(&mut out, time);
    String::from_utf8(out).unwrap_or_default()
}

/// `2026-08-22T09:30:00.000001Z`. A time before 1970 is shown as 1970 began.
pub(in crate::telemetry) fn push_rfc3339(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    digits::<4>(out, year);
    out.push(b'-');
    digits::<2>(out, month);
    out.push(b'-');
    digits::<2>(out, day);
    out.push(b'T');
    digits::<2>(out, second / 3600);
    out.push(b':');
    digits::<2>(out, second / 60 % 60);
    out.push(b':');
    digits::<2>(out, second % 60);
    out.push(b'.');
    digits::<6>(out, u64::from(since.subsec_micros()));
    out.push(b'Z');
}

const LEN: usize = "2026-08-22T09:30:00.000001Z".len();

/// Days since 1970-01-01 to year, month and day: Howard Hinnant's `civil_from_days`, for which a year
/// begins in March, so that the leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_year - (153 * m + 2) / 5 + 1)
}

fn digits<const N: usize>(out: &mut Vec<u8>, mut value: u64) {
    let mut text = [b'0'; N];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn agrees_with_the_calendar() {
        for (seconds, micros, text) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, 999_999, "2000-02-28T23:59:59.999999Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000Z"),
            (1_787_391_000, 1, "2026-08-22T09:30:00.000001Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros);
            assert_eq!(rfc3339(time), text);
        }
    }
}
