//! Debian packages: installed where this process may, named with their command where it may not.

use std::process::Command;

use anyhow::Result;

use crate::process;

/// Sees that every program is in `PATH`, installing the package beside its name where it is not.
pub(crate) fn need(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| process::find(program).is_none()).map(|p| p.1).collect();
    provide(&missing)
}

/// Installs what is known to be missing.
pub(super) fn provide(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    if !may_install() {
        return super::refuse(&format!("missing: {}", missing.join(", ")), &[command(missing)]);
    }
    install(missing)
}

/// Whether `apt-get install` would work here.
pub(crate) fn may_install() -> bool {
    process::is_root() && process::find("apt-get").is_some()
}

/// Installs Debian packages, fetching the package lists first if they are missing or too old.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    process::step(&format!("install {}", packages.join(" ")), || {
        if process::run(&mut apt_install(packages)).is_ok() {
            return Ok(());
        }
        update()?;
        process::run(&mut apt_install(packages))
    })
}

/// Fetches the package lists.
pub(crate) fn update() -> Result<()> {
    process::run(&mut apt("update"))
}

/// The command that installs them, as one would type it.
pub(crate) fn command(packages: &[&str]) -> String {
    process::line(&apt_install(packages))
}

fn apt_install(packages: &[&str]) -> Command {
    let mut it = apt("install");
    it.args(["-y", "--no-install-recommends"]).args(packages);
    it
}

fn apt(verb: &str) -> Command {
    let mut it = Command::new("apt-get");
    it.args(["-qq", verb]).env("DEBIAN_FRONTEND", "noninteractive");
    it
}
