//! `underpass why`: what policy would say if one called the other, and for which reason.

mod args;
mod files;

use anyhow::Context;
use serde_json::Value;

use super::output::printable;
use super::{Answer, client, output};
use crate::discovery::ask::{self, Asked, Offline, Word};
use crate::policy::Why;

pub(super) use args::{MeshArgs, WhyArgs};
pub(super) use files::{list, read, read_with_templates};

pub(super) fn run(args: &WhyArgs) -> anyhow::Result<Answer> {
    let asked = Asked {
        from: args.from.clone(),
        to: args.to.clone(),
        port: args.port.clone(),
        method: args.method.clone(),
        path: args.path.clone(),
        host: args.host.clone(),
        headers: args.headers.clone(),
        sni: args.sni.clone(),
        from_ip: args.from_ip,
    };
    let answer = if args.files.is_empty() { ask_agent(args, &asked)? } else { ask_files(args, &asked)? };
    output::print(&output::render(&answer, args.output, || told(&answer))?)?;
    Ok(if answer.verdict == Word::Allow { Answer::Yes } else { Answer::Denied })
}

fn ask_files(args: &WhyArgs, asked: &Asked) -> anyhow::Result<ask::Answer> {
    let settings = args.mesh.settings();
    let world = Offline::new(read(&args.files, &settings.trust_domain)?, settings);
    Ok(world.answer(asked)?)
}

fn ask_agent(args: &WhyArgs, asked: &Asked) -> anyhow::Result<ask::Answer> {
    let body = serde_json::to_string(asked).context("writing the question as JSON failed")?;
    // Wrapped, so that an agent that is not there does not end in the exit code of a denial.
    let answer =
        client::post_json(&args.place.socket()?, "/why", &body).map_err(|e| anyhow::anyhow!("{e}"))?;
    client::understood(answer)
}

fn told(answer: &ask::Answer) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let mut out = format!("{}: {}\n\n", answer.verdict.as_str().to_uppercase(), printable(&answer.reason));
    let who = answer.from.identity.as_deref().unwrap_or("plaintext");
    let address = match answer.from.address {
        None => "no address is known; --from-ip gives one".to_string(),
        Some(address) => address.to_string(),
    };
    out += &format!("  from   {} ({address})\n", printable(who));
    if let Some(note) = &answer.from.note {
        out += &format!("         {}\n", printable(note));
    }
    out += &format!("  to     {} port {}\n", printable(&answer.to), answer.port);
    let by = answer.mtls.resource.as_ref().map(|by| format!(", by {by}")).unwrap_or_default();
    let mode = serde_json::to_value(answer.mtls.mode).map(|mode| text(&mode)).unwrap_or_default();
    out += &format!("  mTLS   {mode}, set for the {}{}\n", answer.mtls.level, printable(&by));
    if let Some(phase) = answer.phase.as_ref().filter(|phase| phase.resource.is_some()) {
        let by = phase.resource.as_deref().unwrap_or_default();
        let level = phase.level.as_deref().unwrap_or_default();
        out += &format!("  phase  {}, set for the {level}, by {}\n", phase.phase, printable(by));
    }
    if let Some(enforced) = &answer.enforced {
        out += &format!("  in the phase Enforce: {}\n", printable(&enforced.reason));
    }
    if let Some(dry) = &answer.dry_run {
        out += &format!("  with dry-run policies in force: {}\n", printable(&dry.reason));
    }
    if answer.cause == Why::NotHttp.cause() {
        out += "  --method, --path, --host or --header ask for an HTTP request instead\n";
    }
    for policy in &answer.policies {
        out += &format!("\n{}", printable(&text(&policy["resource"])));
        // Without an action it is none of those that are asked.
        if let Some(action) = policy["action"].as_str() {
            let matched = if policy["matched"] == true { "matches" } else { "does not match" };
            let dry = if policy["dryRun"] == true { " (dry run)" } else { "" };
            out += &format!(" {action}{dry}: {matched}");
        }
        out.push('\n');
        if let Some(note) = policy["note"].as_str() {
            out += &format!("  {}\n", printable(note));
        }
        for rule in policy["rules"].as_array().into_iter().flatten() {
            let sign = if rule["matched"] == true { '+' } else { '-' };
            out += &format!("  {sign} rule {}: {}\n", rule["index"], printable(&text(&rule["because"])));
        }
    }
    for defect in &answer.defects {
        out += &format!("\nnot as written: {}\n", printable(defect));
    }
    out
}
