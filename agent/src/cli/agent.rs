//! `underpass agent`.

use std::path::Path;

use super::{Answer, args};
use crate::app;
use crate::lifecycle::dumps;
use crate::telemetry::process;

pub(super) fn run(config: &Path) -> anyhow::Result<Answer> {
    let config = args::read_config(config)?;
    let log = process::init(&config.telemetry.log)?;
    dumps::forbid();
    app::run(config, log)?;
    Ok(Answer::Yes)
}
