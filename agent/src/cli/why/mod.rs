//! `underpass why`: what policy would say if one called the other, and for which reason.

mod args;
mod files;

use super::{Answer, output};
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
    let settings = args.mesh.settings();
    let world = Offline::new(read(&args.files, &settings.trust_domain)?, settings);
    let answer = world.answer(&asked)?;
    output::print(&output::render(&answer, args.output, || told(&answer))?)?;
    Ok(if answer.verdict == Word::Allow { Answer::Yes } else { Answer::Denied })
}

fn told(answer: &ask::Answer) -> String {
    format!("{}: {}\n", answer.verdict.as_str(), answer.reason)
}
