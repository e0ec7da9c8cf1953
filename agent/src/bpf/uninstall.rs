//! Takes everything of one instance out of the kernel, with or without an agent running.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::pins::{self, Pins};
use super::{BpfError, links};
use crate::model::NetnsCookie;

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Links that were detached, by what they were pinned as.
    pub links: Vec<PathBuf>,
    /// Maps that were unpinned; the kernel frees them when nobody holds them.
    pub maps: Vec<PathBuf>,
    /// Namespaces that were enrolled. Their rules and routes are their own; `pods` takes those back.
    #[serde(skip)]
    pub pods: Vec<NetnsCookie>,
    pub folders: Vec<PathBuf>,
}

/// Detaches every program of the instance, of whatever layout version, and removes what is pinned.
/// An instance that is not installed is no error. The agent should be stopped first: a running one
/// loses its capture and does not notice.
///
/// # Errors
/// When something cannot be taken away, or is not a thing of ours; what came before it is gone.
pub fn uninstall(pin_root: &Path, instance: &str) -> Result<Removed, BpfError> {
    let pins = Pins::new(pin_root, instance)?;
    let mut removed = Removed::default();
    for version in pins::entries(pins.instance())? {
        for folder in ["links", "pods"] {
            for pin in pins::entries(&version.join(folder))? {
                match links::detach(&pin) {
                    // Something that is no link, in our own folder: its name is all that can be taken.
                    Err(BpfError::ForeignPin { .. }) => links::unlink(&pin)?,
                    result => drop(result?),
                }
                if folder == "pods" {
                    removed.pods.extend(pins::cookie_of(&pin));
                }
                removed.links.push(pin);
            }
        }
        for pin in pins::entries(&version.join("maps"))? {
            links::unlink(&pin)?;
            removed.maps.push(pin);
        }
        for folder in ["links", "pods", "maps"] {
            remove_folder(version.join(folder), &mut removed)?;
        }
        remove_folder(version, &mut removed)?;
    }
    remove_folder(pins.instance().to_owned(), &mut removed)?;
    // Other instances may live there, and a folder that is a mount point is the operator's.
    if fs::remove_dir(pin_root).is_ok() {
        removed.folders.push(pin_root.to_owned());
    }
    Ok(removed)
}

fn remove_folder(folder: PathBuf, removed: &mut Removed) -> Result<(), BpfError> {
    match fs::remove_dir(&folder) {
        Ok(()) => removed.folders.push(folder),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(BpfError::Call { call: "rmdir", object: folder.display().to_string(), source });
        }
    }
    Ok(())
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.links.is_empty() && self.maps.is_empty() {
            return writeln!(f, "nothing was installed");
        }
        for link in &self.links {
            writeln!(f, "detached {}", link.display())?;
        }
        for map in &self.maps {
            writeln!(f, "unpinned {}", map.display())?;
        }
        for folder in &self.folders {
            writeln!(f, "removed {}", folder.display())?;
        }
        Ok(())
    }
}
