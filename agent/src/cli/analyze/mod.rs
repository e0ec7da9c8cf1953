//! `underpass analyze`: what is amiss in the policies of a mesh.

mod args;
#[cfg(test)]
mod tests;

use super::output::printable;
use super::{Answer, client, output, why};
use crate::discovery::ask::Offline;
use crate::policy::analyze::{Report, Severity};

pub(super) use args::AnalyzeArgs;

pub(super) fn run(args: &AnalyzeArgs) -> anyhow::Result<Answer> {
    let report = if args.live { ask_agent(args)? } else { read_files(args)? };
    output::print(&output::render(&report, args.output, || told(&report))?)?;
    Ok(answer(&report))
}

fn answer(report: &Report) -> Answer {
    let amiss = report.findings.iter().any(|finding| finding.severity != Severity::Info);
    if amiss { Answer::No } else { Answer::Yes }
}

fn read_files(args: &AnalyzeArgs) -> anyhow::Result<Report> {
    let settings = args.mesh.settings();
    let manifest = why::read_with_templates(&args.files, &settings.trust_domain)?;
    Ok(Offline::new(manifest, settings).analyze())
}

fn ask_agent(args: &AnalyzeArgs) -> anyhow::Result<Report> {
    let answer = client::ask(&args.place.socket()?, "GET", "/analyze", "")?;
    client::understood(answer)
}

fn told(report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let about = format!("{} {}", finding.resource, finding.field);
        out += &format!("{} {} {}\n", finding.severity.as_str(), finding.code, printable(about.trim_end()));
        out += &format!("  {}\n  hint: {}\n\n", printable(&finding.message), printable(&finding.hint));
    }
    let counts = &report.summary;
    let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (errors, warnings) = (many(counts.errors, "error"), many(counts.warnings, "warning"));
    let (infos, resources) = (many(counts.infos, "info"), many(counts.resources, "policy resource"));
    out + &format!("{errors}, {warnings}, {infos} in {resources} and {}\n", many(counts.pods, "pod"))
}
