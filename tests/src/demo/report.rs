//! The story's lines: a claim, whether it is true, and the fact that was seen.

use anyhow::Result;

#[derive(Debug, Default)]
pub(super) struct Report {
    told: usize,
    untrue: usize,
}

impl Report {
    pub(super) fn say(&self, line: &str) {
        println!("{line}");
    }

    /// A claim that was just tried: the fact that was seen, or what was found instead.
    pub(super) fn claim(&mut self, claim: &str, seen: Result<String>) {
        match seen {
            Ok(fact) => self.ok(claim, &fact),
            Err(e) => self.failed(claim, &format!("{e:#}")),
        }
    }

    pub(super) fn ok(&mut self, claim: &str, fact: &str) {
        self.told += 1;
        println!("  ok      {claim}\n          {fact}");
    }

    pub(super) fn failed(&mut self, claim: &str, fact: &str) {
        self.told += 1;
        self.untrue += 1;
        println!("  FAILED  {claim}\n          {}", fact.replace('\n', "\n          "));
    }

    /// Whether everything was true.
    pub(super) fn end(&self) -> bool {
        if self.untrue == 0 {
            println!("\nAll {} claims hold.", self.told);
        } else {
            println!("\n{} of {} claims do NOT hold.", self.untrue, self.told);
        }
        self.untrue == 0
    }
}
