//! `underpass check`: what this machine lacks, found by trying and not by version.

use super::args::{self, CheckArgs};
use super::{Answer, output, table};
use crate::bpf::{Report, Requirement};

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<Answer> {
    let config = args::read_config_or_default(args.config.as_deref())?;
    let mut report = Report::probe(&config.bpf);
    report.requirements.insert(0, programs());
    output::print(&output::render(&report, args.output, || page(&report))?)?;
    Ok(if report.is_usable() { Answer::Yes } else { Answer::No })
}

/// A developer's build may lack them.
fn programs() -> Requirement {
    let built_in = cfg!(embedded_bpf);
    Requirement {
        name: "kernel programs in this binary".into(),
        met: built_in,
        fatal: true,
        found: if built_in { "embedded" } else { "built without them" }.into(),
        cost: "nothing can be loaded; `cargo xtask build` builds a binary that carries them".into(),
    }
}

pub(super) fn page(report: &Report) -> String {
    let row = |r: &Requirement| {
        let cost = if r.met { String::new() } else { r.cost.clone() };
        vec![verdict(r).to_owned(), r.name.clone(), r.found.clone(), cost]
    };
    let headers = ["RESULT", "REQUIREMENT", "FOUND", "WITHOUT IT"];
    let fatal = report.missing().filter(|r| r.fatal).count();
    let last = match fatal {
        0 => "The agent can run here.".to_owned(),
        1 => "The agent cannot run here: one requirement is missing.".to_owned(),
        n => format!("The agent cannot run here: {n} requirements are missing."),
    };
    format!("{}\n{last}\n", table::table(&headers, report.requirements.iter().map(row)))
}

fn verdict(requirement: &Requirement) -> &'static str {
    match (requirement.met, requirement.fatal) {
        (true, _) => "ok",
        (false, true) => "missing",
        (false, false) => "absent",
    }
}
