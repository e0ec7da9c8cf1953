//! `underpass uninstall`: leaves nothing of an agent behind.

use std::fmt::Write;

use anyhow::{Context, bail};

use super::args::{self, UninstallArgs};
use super::{Answer, output};
use crate::sys::netns::Netns;
use crate::{admin, bpf, pods};

pub(super) fn run(args: &UninstallArgs) -> anyhow::Result<Answer> {
    let mut config = args::read_config_or_default(args.config.as_deref())?;
    if let Some(pin_root) = &args.pin_root {
        config.bpf.pin_root.clone_from(pin_root);
    }
    if let Some(instance) = &args.instance {
        config.bpf.instance.clone_from(instance);
    }
    let bpf::Config { pin_root, instance, .. } = &config.bpf;
    let _lock = bpf::lock_instance(pin_root, instance)
        .context("not uninstalled: an agent that runs would lose its pods and not notice")?;
    // Only a configuration tells where the agent of this instance would answer.
    if args.config.is_some() {
        match admin::remove_stale_socket(&config.admin.socket) {
            Err(e @ admin::AdminError::InUse(_)) => {
                bail!("{e}. An agent that runs would lose its pods and not notice")
            }
            Err(e) => return Err(e.into()),
            Ok(()) => {}
        }
    }
    let removed = bpf::uninstall(pin_root, instance)?;
    let mut report = removed.to_string();
    let mut failed = 0;
    let is_others = |netns: &Netns| {
        bpf::other_instance(pin_root, instance, netns.cookie(), netns.fd()).is_ok_and(|other| other.is_some())
    };
    for (netns, outcome) in pods::restore_namespaces(removed.pods, pods::Numbers::default(), is_others) {
        // Writing to a String cannot fail.
        let _ = match outcome {
            Ok(()) => writeln!(report, "restored network namespace {netns}"),
            Err(e) => {
                failed += 1;
                writeln!(report, "network namespace {netns} keeps its rule: {e}")
            }
        };
    }
    output::print(&report)?;
    if failed > 0 {
        bail!(
            "{failed} network namespaces could not be restored; they go back to normal when their pods end"
        );
    }
    Ok(Answer::Yes)
}
