//! Where things are pinned: `<pin root>/<instance>/v<layout version>/{maps,links,pods}/…`.
//!
//! The instance keeps agents on one kernel apart, the version keeps an agent from opening maps of
//! another layout.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use underpass_common::LAYOUT_VERSION;

use super::BpfError;
use crate::model::NetnsCookie;

/// The folders of one instance.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    instance: PathBuf,
    base: PathBuf,
}

impl Pins {
    /// # Errors
    /// When the instance's name cannot be a folder's: bpffs allows no dots.
    pub(super) fn new(root: &Path, instance: &str) -> Result<Self, BpfError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if instance.is_empty() || instance.len() > 64 || !instance.chars().all(allowed) {
            return Err(BpfError::BadInstance(instance.to_owned()));
        }
        let instance = root.join(instance);
        Ok(Self { base: instance.join(format!("v{LAYOUT_VERSION}")), instance })
    }

    /// Where all instances of this configuration pin.
    pub(super) fn root(&self) -> &Path {
        self.instance.parent().unwrap_or(&self.instance)
    }

    pub(super) fn instance(&self) -> &Path {
        &self.instance
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.base.join("maps").join(name)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.base.join("links").join(program)
    }

    pub(super) fn pod(&self, cookie: NetnsCookie) -> PathBuf {
        self.base.join("pods").join(cookie.0.to_string())
    }

    /// The pods whose namespaces have a pinned link.
    pub(super) fn pods(&self) -> Result<Vec<NetnsCookie>, BpfError> {
        let folder = self.base.join("pods");
        let entries = entries(&folder)?;
        Ok(entries.iter().filter_map(|path| cookie_of(path)).collect())
    }

    /// Makes the folders. They are root's only: who may open the maps may change who is enrolled.
    pub(super) fn create(&self) -> Result<(), BpfError> {
        for folder in ["maps", "links", "pods"] {
            let path = self.base.join(folder);
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|source| {
                BpfError::Setup {
                    call: "create folder",
                    object: path.display().to_string(),
                    source,
                    hint: "the agent must be root, and the pin root on a bpffs",
                }
            })?;
        }
        Ok(())
    }
}

/// What a folder holds; one that does not exist holds nothing.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let failed = |source| BpfError::Call { call: "readdir", object: folder.display().to_string(), source };
    let mut found = Vec::new();
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                found.push(entry.map_err(failed)?.path());
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    found.sort();
    Ok(found)
}

/// The namespace that a pin under `pods/` stands for.
pub(super) fn cookie_of(path: &Path) -> Option<NetnsCookie> {
    path.file_name()?.to_str()?.parse().ok().map(NetnsCookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_cannot_escape_its_folder() {
        for name in ["", ".", "..", "a/b", "a.b", "a b", "ä", &"x".repeat(65)] {
            assert!(Pins::new(Path::new("/p"), name).is_err(), "{name:?}");
        }
        let pins = Pins::new(Path::new("/p"), "node-1_b").unwrap();
        assert_eq!(pins.pod(NetnsCookie(77)), Path::new("/p/node-1_b/v1/pods/77"));
        assert_eq!(cookie_of(&pins.pod(NetnsCookie(77))), Some(NetnsCookie(77)));
        assert_eq!(cookie_of(Path::new("/p/x/not-a-number")), None);
    }
}
