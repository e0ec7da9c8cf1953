//! Attached programs: pinned links, made anew or taken over from an agent before us.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::mount::Cgroup;
use super::syscall::{self, LinkInfo};
use super::{BpfError, steer};

/// How a link came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    New,
    /// It was pinned, and runs our program now.
    Adopted,
}

/// Attaches a program to the cgroup. A pinned link of ours is taken over without a moment in which
/// neither program runs.
pub(super) fn attach_cgroup(
    pin: &Path,
    cgroup: &Cgroup,
    program: BorrowedFd<'_>,
    attach_type: u32,
) -> Result<Attached, BpfError> {
    let make = || syscall::link_create(program, cgroup.fd(), attach_type);
    let on = || format!("{} to {}", name_of(pin), cgroup.path().display());
    let ours = LinkInfo::Cgroup { id: cgroup.id(), attach_type };
    match open(pin)? {
        Some((link, info)) if info == ours => match syscall::link_update(link.as_fd(), program) {
            Ok(()) => Ok(Attached::Adopted),
            Err(_) => replace(pin, &link, make, on),
        },
        // Attached elsewhere (the configured cgroup changed), or severed by another's hand.
        Some((link, LinkInfo::Cgroup { .. })) => replace(pin, &link, make, on),
        Some((_, found)) => Err(foreign(pin, "a link to a cgroup", found)),
        None => create(pin, make, on),
    }
}

/// Attaches a pod's own copy of `steer` to its namespace.
///
/// # Errors
/// Also when it is attached and only its pin is missing: then `unpinned` has the link, which lasts as
/// long as that.
pub(super) fn attach_netns(
    pin: &Path,
    netns: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    unpinned: &mut Option<OwnedFd>,
) -> Result<Attached, BpfError> {
    let make = || syscall::link_create(program, netns, steer::ATTACH_TYPE);
    let on = || format!("steer to the namespace of pod {}", name_of(pin));
    match open(pin)? {
        Some((link, LinkInfo::Netns { inode })) if inode != 0 => {
            match syscall::link_update(link.as_fd(), program) {
                Ok(()) => Ok(Attached::Adopted),
                Err(_) => replace(pin, &link, make, on),
            }
        }
        Some((link, LinkInfo::Netns { .. })) => replace(pin, &link, make, on),
        Some((_, found)) => Err(foreign(pin, "a link to a network namespace", found)),
        None => {
            let link = make().map_err(|source| BpfError::Call { call: "attach", object: on(), source })?;
            let link = unpinned.insert(link);
            pin_link(link.as_fd(), pin)?;
            *unpinned = None;
            Ok(Attached::New)
        }
    }
}

/// The program of a link to a network namespace; `None` when nothing is pinned there.
///
/// # Errors
/// Also when something else is.
pub(super) fn steering_program(pin: &Path) -> Result<Option<u32>, BpfError> {
    match open_with_program(pin)? {
        Some((_, LinkInfo::Netns { .. }, program)) => Ok(Some(program)),
        Some((_, found, _)) => Err(foreign(pin, "a link to a network namespace", found)),
        None => Ok(None),
    }
}

/// Whether the namespace that a pinned link belongs to still exists.
pub(super) fn is_alive(pin: &Path) -> Result<bool, BpfError> {
    Ok(matches!(open(pin)?, Some((_, LinkInfo::Netns { inode })) if inode != 0))
}

/// Detaches what is pinned and takes the pin away; says whether there was something.
pub(super) fn detach(pin: &Path) -> Result<bool, BpfError> {
    let was_there = sever(pin)?;
    if was_there {
        unlink(pin)?;
    }
    Ok(was_there)
}

/// As [`detach`], and the pin stays, of a link that does nothing any more.
pub(super) fn sever(pin: &Path) -> Result<bool, BpfError> {
    let Some((link, _)) = open(pin)? else { return Ok(false) };
    // The pin may not be the only reference: a running agent holds descriptors.
    match syscall::link_detach(link.as_fd()) {
        Ok(()) => Ok(true),
        // Severed already: its cgroup or namespace is gone.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::EINVAL | libc::ENOENT)) => Ok(true),
        Err(source) => Err(BpfError::Call { call: "detach", object: pin.display().to_string(), source }),
    }
}

pub(super) fn unlink(pin: &Path) -> Result<(), BpfError> {
    match fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::Call { call: "unlink", object: pin.display().to_string(), source: e })
        }
        _ => Ok(()),
    }
}

fn create(
    pin: &Path,
    make: impl Fn() -> io::Result<OwnedFd>,
    on: impl Fn() -> String,
) -> Result<Attached, BpfError> {
    let link = make().map_err(|source| BpfError::Call { call: "attach", object: on(), source })?;
    pin_link(link.as_fd(), pin)?;
    Ok(Attached::New)
}

fn pin_link(link: BorrowedFd<'_>, pin: &Path) -> Result<(), BpfError> {
    syscall::pin(link, pin).map_err(|source| BpfError::Call {
        call: "pin",
        object: pin.display().to_string(),
        source,
    })
}

/// The new link stands before the old one goes.
fn replace(
    pin: &Path,
    old: &OwnedFd,
    make: impl Fn() -> io::Result<OwnedFd>,
    on: impl Fn() -> String,
) -> Result<Attached, BpfError> {
    let beside = beside(pin);
    unlink(&beside)?;
    create(&beside, make, on)?;
    fs::rename(&beside, pin).map_err(|source| BpfError::Call {
        call: "rename over",
        object: pin.display().to_string(),
        source,
    })?;
    let _ = syscall::link_detach(old.as_fd());
    Ok(Attached::New)
}

fn beside(pin: &Path) -> PathBuf {
    pin.with_file_name(format!("{}-new", name_of(pin)))
}

fn open(pin: &Path) -> Result<Option<(OwnedFd, LinkInfo)>, BpfError> {
    Ok(open_with_program(pin)?.map(|(link, info, _)| (link, info)))
}

fn open_with_program(pin: &Path) -> Result<Option<(OwnedFd, LinkInfo, u32)>, BpfError> {
    let unusable = |e: io::Error| BpfError::ForeignPin {
        path: pin.to_owned(),
        expected: "a link of Underpass".to_owned(),
        found: e.to_string(),
    };
    match syscall::open_pin(pin) {
        Ok(link) => {
            let (info, program) = syscall::link_info(link.as_fd()).map_err(unusable)?;
            Ok(Some((link, info, program)))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unusable(e)),
    }
}

fn foreign(pin: &Path, expected: &str, found: LinkInfo) -> BpfError {
    BpfError::ForeignPin { path: pin.to_owned(), expected: expected.to_owned(), found: format!("{found:?}") }
}

fn name_of(pin: &Path) -> String {
    pin.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
