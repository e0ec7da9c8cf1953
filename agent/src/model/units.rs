//! Quantities as people write them in configuration: `30s`, `4MiB`.

/// `std::time::Duration` as `30s`, `5m`, `1h30m`, `250ms`: for `#[serde(with = "…")]`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(d)?).map_err(D::Error::custom)
    }

    /// Reads one or more numbers with a unit each, largest unit first. A bare `0` needs no unit.
    pub fn parse(text: &str) -> Result<Duration, UnitError> {
        let wrong = || UnitError::Duration(text.to_string());
        if text == "0" {
            return Ok(Duration::ZERO);
        }
        let mut rest = text;
        let mut millis: u64 = 0;
        let mut last_unit = u64::MAX;
        while !rest.is_empty() {
            let (number, tail) = super::leading_number(rest).ok_or_else(wrong)?;
            let unit_len = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, tail) = tail.split_at(unit_len);
            let unit = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
            if unit >= last_unit {
                return Err(wrong());
            }
            last_unit = unit;
            millis = number.checked_mul(unit).and_then(|m| millis.checked_add(m)).ok_or_else(wrong)?;
            rest = tail;
        }
        if last_unit == u64::MAX { Err(wrong()) } else { Ok(Duration::from_millis(millis)) }
    }

    /// The shortest form that reads back as the same value; below a millisecond is cut off.
    pub fn format(value: Duration) -> String {
        let mut millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return "0s".to_string();
        }
        let mut text = String::new();
        for (name, unit) in UNITS {
            if millis >= *unit {
                text.push_str(&(millis / unit).to_string());
                text.push_str(name);
                millis %= unit;
            }
        }
        text
    }

    const UNITS: &[(&str, u64)] = &[("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

    use super::UnitError;
}

/// A number of bytes in a `u32` as `64KiB`, `4MiB`, `1GiB` or a plain number.
pub mod bytes {
    use serde::{Deserializer, Serializer};

    use super::UnitError;

    pub fn serialize<S: Serializer>(value: &u32, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
        d.deserialize_any(Visitor)
    }

    pub fn parse(text: &str) -> Result<u32, UnitError> {
        let wrong = || UnitError::Bytes(text.to_string());
        let (number, unit) = super::leading_number(text).ok_or_else(wrong)?;
        let factor = if unit.is_empty() {
            1
        } else {
            UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1
        };
        number.checked_mul(factor).and_then(|n| u32::try_from(n).ok()).ok_or_else(wrong)
    }

    /// With the largest unit that divides the value.
    pub fn format(value: u32) -> String {
        let value = u64::from(value);
        match UNITS.iter().find(|(_, unit)| value != 0 && value.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{}{name}", value / unit),
            None => value.to_string(),
        }
    }

    const UNITS: &[(&str, u64)] = &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

    struct Visitor;

    impl serde::de::Visitor<'_> for Visitor {
        type Value = u32;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a number of bytes such as 65536, 64KiB or 4MiB")
        }

        fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<u32, E> {
            u32::try_from(value).map_err(|_| E::custom(UnitError::Bytes(value.to_string())))
        }

        fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<u32, E> {
            parse(value).map_err(E::custom)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("a duration is written like 250ms, 30s, 5m or 1h30m, not {0:?}")]
    Duration(String),
    #[error("a size is written like 65536, 64KiB or 4MiB and is below 4GiB, not {0:?}")]
    Bytes(String),
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_read_back_as_written() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("5m", 300_000),
            ("36h", 129_600_000),
            ("1h1ms", 3_600_001),
        ] {
            assert_eq!(duration::parse(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(duration::format(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "30 s",
            "1s1m",
            "1s1s",
            "1d",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(duration::parse(text), Err(UnitError::Duration(text.into())), "{text}");
        }
    }

    #[test]
    fn sizes_read_back_as_written() {
        for (text, value) in
            [("0", 0), ("1000", 1000), ("64KiB", 65536), ("4MiB", 4 << 20), ("3GiB", 3 << 30)]
        {
            assert_eq!(bytes::parse(text), Ok(value), "{text}");
            assert_eq!(bytes::format(value), text);
        }
        for text in ["", "KiB", "4GiB", "1KB", "-1", "1.5MiB", "4 MiB", "99999999999999999999"] {
            assert_eq!(bytes::parse(text), Err(UnitError::Bytes(text.into())), "{text}");
        }
    }
}
