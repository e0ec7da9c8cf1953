//! `underpass why`: what policy would say if one called the other, and for which reason.

mod args;
mod files;

use anyhow::Context;

use super::{Answer, client, output};
use crate::discovery::ask::{self, Asked, Offline, Word};

pub(super) use args::WhyArgs;
pub(super) use files::read;

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
    serde_json::from_value(answer).context("the agent's answer is not understood; is it of this version?")
}

fn told(answer: &ask::Answer) -> String {
    format!("{}: {}\n", answer.verdict.as_str(), answer.reason)
}
