//! Many durations and what they say.

use std::time::Duration;

/// Durations of operations that all succeeded.
#[derive(Clone, Debug, Default)]
pub struct Times {
    nanos: Vec<u64>,
    sorted: bool,
}

impl Times {
    pub fn push(&mut self, took: Duration) {
        self.nanos.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        self.sorted = false;
    }

    pub fn merge(&mut self, other: Times) {
        self.nanos.extend(other.nanos);
        self.sorted = false;
    }

    pub fn count(&self) -> usize {
        self.nanos.len()
    }

    /// The duration that this share of them stays under; zero when there are none.
    pub fn quantile(&mut self, share: f64) -> Duration {
        if !self.sorted {
            self.nanos.sort_unstable();
            self.sorted = true;
        }
        let at = (self.nanos.len() as f64 * share) as usize;
        let value = self.nanos.get(at.min(self.nanos.len().saturating_sub(1)));
        Duration::from_nanos(value.copied().unwrap_or(0))
    }

    pub fn p50_us(&mut self) -> f64 {
        self.quantile(0.5).as_secs_f64() * 1e6
    }

    pub fn p99_us(&mut self) -> f64 {
        self.quantile(0.99).as_secs_f64() * 1e6
    }
}

/// The middle of a few values (the mean of the two middle ones); `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_medians() {
        let mut times = Times::default();
        for ms in (1..=100).rev() {
            times.push(Duration::from_millis(ms));
        }
        assert_eq!(times.quantile(0.5), Duration::from_millis(51));
        assert_eq!(times.quantile(0.99), Duration::from_millis(100));
        assert_eq!(Times::default().quantile(0.5), Duration::ZERO);
        for (values, expected) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![9.0, 1.0], Some(5.0)),
            (vec![3.0, 1.0, 2.0], Some(2.0)),
        ] {
            assert_eq!(median(&values), expected);
        }
    }
}
