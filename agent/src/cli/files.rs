//! Judges configuration and mesh files as an agent would, without one.

use std::path::Path;

use anyhow::Context;

use super::output::{print, printable};
use super::{Answer, args};
use crate::config::{self, ConfigError, ControllerConfig};
use crate::discovery::file::{FileError, FileState, parse};
use crate::discovery::yaml::Problem;

pub(super) fn example(controller: bool) -> anyhow::Result<Answer> {
    print(&if controller { ControllerConfig::example() } else { config::example() })
}

pub(super) fn check_config(file: &Path, controller: bool) -> anyhow::Result<Answer> {
    let read = match controller {
        true => ControllerConfig::read(file).map(drop).map_err(Into::into),
        false => args::read_config(file).map(drop),
    };
    let refused = match read {
        Ok(()) => return print(&format!("{}: good\n", file.display())),
        Err(e) => e,
    };
    match refused.downcast_ref::<ConfigError>() {
        Some(ConfigError::Invalid { path, invalid }) => {
            let lines = invalid.problems.iter().map(|problem| format!("{}:{problem}", path.display()));
            print(&listed(lines, invalid.omitted))?;
            Ok(Answer::No)
        }
        _ => Err(refused),
    }
}

pub(super) fn check_mesh(file: &Path) -> anyhow::Result<Answer> {
    let text =
        std::fs::read(file).with_context(|| format!("cannot read the mesh file {}", file.display()))?;
    let text = String::from_utf8(text).with_context(|| format!("{} is not UTF-8", file.display()))?;
    let at = |problem: &Problem| format!("{}:{problem}", file.display());
    match parse(&text) {
        Ok(FileState { state, warnings }) => {
            print(&listed(warnings.iter().map(|w| format!("{} (warning)", at(w))), 0))?;
            print(&format!(
                "{}: good: {} workloads, {} services, {} policies, {} local pods\n",
                file.display(),
                state.workloads.len(),
                state.services.len(),
                state.policies.len(),
                state.local_pods.len()
            ))
        }
        Err(FileError::Invalid(invalid)) => {
            print(&listed(invalid.problems.iter().map(at), invalid.omitted))?;
            Ok(Answer::No)
        }
        Err(e) => Err(e).with_context(|| format!("{} is refused", file.display())),
    }
}

/// One problem a line, as compilers print them.
fn listed(problems: impl Iterator<Item = String>, omitted: usize) -> String {
    let mut out: String = problems.map(|problem| printable(&problem) + "\n").collect();
    if omitted > 0 {
        out += &format!("and {omitted} more\n");
    }
    out
}
