//! Counting what test programs say they did.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Add;

/// What a lane did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u32,
    pub(super) failed: u32,
    pub(super) skipped: u32,
    /// Why something was skipped, each reason once.
    pub(super) reasons: BTreeSet<String>,
}

impl Tally {
    /// Counts one skip.
    pub(super) fn skip(&mut self, why: &str) {
        self.skipped += 1;
        self.reasons.insert(why.to_owned());
    }

    /// Reads one line of a test program's output.
    pub(super) fn read(&mut self, line: &str) {
        if let Some((_, why)) = line.split_once("skipped: ") {
            // A `#[test]` that cannot run returns early, which the harness counts as passed.
            self.skip(why);
            self.passed = self.passed.saturating_sub(1);
        } else if line.starts_with("test result: ") {
            let number = |what: &str| number_before(line, what).unwrap_or(0);
            // Those that returned early are printed before the summary, and are in its `passed`.
            let returned = self.skipped;
            self.passed = number(" passed").saturating_sub(returned);
            self.failed = number(" failed");
            self.skipped = returned + number(" ignored");
        }
    }
}

impl Add<&Tally> for Tally {
    type Output = Tally;

    fn add(mut self, other: &Tally) -> Tally {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.reasons.extend(other.reasons.iter().cloned());
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.passed, "passed"), (self.failed, "failed"), (self.skipped, "skipped")];
        let parts: Vec<String> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        f.write_str(&parts.join(", "))
    }
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    line.split_once(what)?.0.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> (u32, u32, u32) {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        (tally.passed, tally.failed, tally.skipped)
    }

    #[test]
    fn summaries_and_early_returns_are_counted() {
        let table: [(&[&str], _); 4] = [
            (&["test a ... ok", "test result: ok. 17 passed; 0 failed; 0 ignored; 0 measured"], (17, 0, 0)),
            (&["test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured"], (3, 2, 1)),
            (
                &["skipped: sys::netns: needs root", "test result: ok. 5 passed; 0 failed; 0 ignored"],
                (4, 0, 1),
            ),
            (&["running 0 tests"], (0, 0, 0)),
        ];
        for (lines, expected) in table {
            assert_eq!(read(lines), expected, "{lines:?}");
        }
    }
}
