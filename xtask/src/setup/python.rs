//! A Python with the libraries of the second client (tests/python), in the checkout's `target/tools`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::packages;
use crate::{checkout, process};

/// Where it is, or will be.
pub(crate) fn interpreter() -> PathBuf {
    folder().join("bin/python")
}

/// Makes it, unless it is there with the libraries that are asked for now.
pub(super) fn find_or_make() -> Result<()> {
    let wanted = std::fs::read_to_string(checkout::root().join("tests/python/requirements.txt"))?;
    let noted = folder().join("requirements.txt");
    if interpreter().exists() && std::fs::read_to_string(&noted).is_ok_and(|had| had == wanted) {
        return Ok(());
    }
    packages::need(&[("python3", "python3-venv")])?;
    process::step("get the second client's libraries", || {
        if process::output(&mut environment()).is_err() && packages::may_install() {
            // Debian has Python without what makes environments.
            packages::install(&["python3-venv"])?;
        }
        process::output(&mut environment())?;
        let mut pip = Command::new(interpreter());
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        pip.args(["--only-binary", ":all:", "--requirement"]);
        process::run(pip.arg(checkout::root().join("tests/python/requirements.txt")))?;
        Ok(std::fs::write(&noted, &wanted)?)
    })
}

fn environment() -> Command {
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(folder());
    make
}

fn folder() -> PathBuf {
    checkout::target("tools/python")
}
