//! Other instances of the agent on this kernel: who has a namespace already, and who runs.

use std::fs::{File, TryLockError};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use underpass_common::name;

use super::pins::{self, Pins};
use super::{BpfError, links, steer, syscall};
use crate::model::NetnsCookie;

/// As [`super::Kernel::other_instance`], for whoever has not loaded the programs.
pub fn other_instance(
    pin_root: &Path,
    instance: &str,
    pod: NetnsCookie,
    netns: BorrowedFd<'_>,
) -> Result<Option<String>, BpfError> {
    other_than(&Pins::new(pin_root, instance)?, None, pod, netns)
}

/// The other instance that has this namespace enrolled, as an operator calls it.
///
/// The kernel is asked, and not only the pins: the other may pin elsewhere. An instance whose agent is
/// gone has its pods nevertheless: they stay closed until it is back or is uninstalled. `unpinned` is a
/// program of ours that no pin shows.
pub(super) fn other_than(
    own: &Pins,
    unpinned: Option<u32>,
    pod: NetnsCookie,
    netns: BorrowedFd<'_>,
) -> Result<Option<String>, BpfError> {
    let mut ours = Vec::from_iter(unpinned);
    for pin in pod_pins(own.instance(), pod)? {
        ours.extend(links::steering_program(&pin)?);
    }
    let attached = syscall::attached(netns, steer::ATTACH_TYPE).map_err(|source| BpfError::Call {
        call: "query programs",
        object: format!("network namespace {pod}"),
        source,
    })?;
    for program in attached.into_iter().filter(|id| !ours.contains(id)) {
        // Gone since is nobody's; other products have programs of this type too.
        if syscall::program_name(program).is_ok_and(|n| n == name::program::SK_LOOKUP) {
            return Ok(Some(name_of(own.root(), pod, program)?));
        }
    }
    Ok(None)
}

fn name_of(pin_root: &Path, pod: NetnsCookie, program: u32) -> Result<String, BpfError> {
    for instance in pins::entries(pin_root)? {
        for pin in pod_pins(&instance, pod)? {
            if links::steering_program(&pin).ok().flatten() == Some(program) {
                let name = instance.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Ok(name);
            }
        }
    }
    Ok(format!("an unknown instance, whose pins are not below {}", pin_root.display()))
}

/// Of every layout version.
fn pod_pins(instance: &Path, pod: NetnsCookie) -> Result<Vec<PathBuf>, BpfError> {
    let versions = pins::entries(instance)?;
    let pins = versions.into_iter().map(|v| v.join("pods").join(pod.0.to_string()));
    Ok(pins.filter(|pin| pin.exists()).collect())
}

/// Held while an agent runs, and while one is uninstalled. The kernel lets go of it with the process.
#[derive(Debug)]
pub struct InstanceLock {
    _folder: File,
}

/// Takes the instance for this process; `None` when nothing of it is installed.
///
/// # Errors
/// [`BpfError::InUse`] when another process has it.
pub fn lock_instance(pin_root: &Path, instance: &str) -> Result<Option<InstanceLock>, BpfError> {
    let pins = Pins::new(pin_root, instance)?;
    let folder = pins.instance();
    let failed = |call, source| BpfError::Call { call, object: folder.display().to_string(), source };
    let folder = match File::open(folder) {
        Ok(folder) => folder,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", e)),
    };
    match folder.try_lock() {
        Ok(()) => Ok(Some(InstanceLock { _folder: folder })),
        Err(TryLockError::WouldBlock) => Err(BpfError::InUse(instance.to_owned())),
        Err(TryLockError::Error(e)) => Err(failed("flock", e)),
    }
}
