//! `underpass controller`.

use std::path::Path;

use super::Answer;
use crate::config::ControllerConfig;
use crate::controller;
use crate::lifecycle::dumps;
use crate::telemetry::process;

pub(super) fn run(file: &Path) -> anyhow::Result<Answer> {
    let config = ControllerConfig::read(file)?;
    // Held to the end: the log is the process's.
    let _log = process::init(&config.log)?;
    dumps::forbid();
    controller::run(config, file.to_owned())?;
    Ok(Answer::Yes)
}
