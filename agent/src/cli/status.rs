//! `underpass status` and `underpass log`.

use serde_json::Value;

use super::args::{LogArgs, Query};
use super::output::{self, printable};
use super::show::text;
use super::{Answer, client};

pub(super) fn run(query: &Query) -> anyhow::Result<Answer> {
    let status = client::ask(&query.place.socket()?, "GET", "/status", "")?;
    output::print(&output::render(&status, query.output, || page(&status))?)?;
    Ok(if is_well(&status) { Answer::Yes } else { Answer::No })
}

/// Shows the filter, after changing it if a new one is given.
pub(super) fn log(args: &LogArgs) -> anyhow::Result<Answer> {
    let socket = args.place.socket()?;
    let answer = match &args.filter {
        Some(filter) => client::ask(&socket, "PUT", "/log", filter)?,
        None => client::ask(&socket, "GET", "/log", "")?,
    };
    output::print(&format!("{}\n", printable(&text(&answer, "/filter"))))
}

fn is_well(status: &Value) -> bool {
    status["ready"] == true && list(status, "/findings").is_empty()
}

pub(super) fn page(status: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            out += &format!("{:<14}{}\n", format!("{name}:"), printable(&value));
        }
    };
    let field = |pointer: &str| text(status, pointer);
    let named = |prefix: &str, pointer: &str| {
        let value = field(pointer);
        if value.is_empty() { value } else { format!("{prefix}{value}") }
    };
    line(
        "Agent",
        format!(
            "underpass {}, instance {}{}, pid {}",
            field("/version"),
            field("/instance"),
            named(" on ", "/node"),
            field("/pid")
        ),
    );
    line("Started", field("/started"));
    line("Ready", if status["ready"] == true { "yes" } else { "no" }.into());
    for pending in list(status, "/pending") {
        let reason = text(pending, "/reason");
        let colon = if reason.is_empty() { "" } else { ": " };
        line(
            "Waits for",
            format!("{}{colon}{reason} ({} s)", text(pending, "/name"), text(pending, "/seconds")),
        );
    }
    line("Stopping", field("/stopping"));
    line(
        "Mesh",
        format!(
            "revision {}{}: {} workloads, {} services, {} policies",
            field("/mesh/revision"),
            named(" of ", "/mesh/trust_domain"),
            field("/mesh/workloads"),
            field("/mesh/services"),
            field("/mesh/policies")
        ),
    );
    line("Source", format!("{}{}", field("/source/name"), named(", accepted ", "/source/accepted")));
    line("Refused edit", field("/source/refused"));
    line(
        "Pods",
        format!(
            "{} enrolled, {} refused, {} leaving",
            field("/pods/enrolled"),
            field("/pods/refused"),
            field("/pods/leaving")
        ),
    );
    line("Connections", field("/connections"));
    for finding in list(status, "/findings") {
        line("Finding", text(finding, ""));
    }
    let defects = list(status, "/policy_defects");
    for defect in defects.iter().take(MANY) {
        line("Policy", told(defect));
    }
    if defects.len() > MANY {
        let more = format!("and {} more; `underpass analyze --live` lists them all", defects.len() - MANY);
        line("Policy", more);
    }
    out
}

/// Of policies that cannot be taken as they stand.
const MANY: usize = 10;

/// As [`crate::policy::ResourceRef`] is written: the group tells two kinds of one name apart.
fn told(defect: &Value) -> String {
    let of = |key: &str| text(defect, &format!("/resource/{key}"));
    let field = text(defect, "/field");
    let colon = if field.is_empty() { "" } else { ": " };
    format!("{}/{}/{}{colon}{field}: {}", of("kind"), of("namespace"), of("name"), text(defect, "/message"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
