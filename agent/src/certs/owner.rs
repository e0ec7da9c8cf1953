//! Files that are replaced stay whose they were: a key that is root's from now on is one that a controller of
//! another user cannot read.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::keeping::{FileError, new_file, parent, write_new};

/// Whose a file is, and whether its group may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    user: u32,
    group: u32,
    group_reads: bool,
}

impl Owner {
    /// Of the file that is there, or else of its folder.
    pub(crate) fn of(path: &Path) -> Result<Self, FileError> {
        let stat = |path: &Path| {
            fs::metadata(path).map_err(|source| FileError { call: "stat", path: path.to_owned(), source })
        };
        let (found, group_reads) = match stat(path) {
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => (stat(parent(path))?, false),
            found => (found?, true),
        };
        let group_reads = group_reads && found.mode() & 0o040 != 0;
        Ok(Self { user: found.uid(), group: found.gid(), group_reads })
    }

    /// Whether these files of a folder can be replaced by ones with the same owners, before any is.
    pub(crate) fn check(folder: &Path, files: &[&str]) -> Result<(), FileError> {
        let owners = files.iter().map(|file| Self::of(&folder.join(file)));
        for owner in owners.collect::<Result<BTreeSet<_>, _>>()? {
            let (file, path) = new_file(&folder.join("owner"), 0o600)?;
            let given = owner.give(&file, &path, 0o600);
            let removed = fs::remove_file(&path);
            given?;
            removed.map_err(|source| FileError { call: "remove", path, source })?;
        }
        Ok(())
    }

    /// As [`write_whole`](super::keeping::write_whole).
    pub(crate) fn write_whole(self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
        write_new(path, content, mode, |file, temporary| self.give(file, temporary, mode))
    }

    fn give(self, file: &File, path: &Path, mode: u32) -> Result<(), FileError> {
        let failed = |call| move |source| FileError { call, path: PathBuf::from(path), source };
        let now = file.metadata().map_err(failed("stat"))?;
        if (now.uid(), now.gid()) != (self.user, self.group) {
            fchown(file, Some(self.user), Some(self.group)).map_err(|e| {
                let why = format!(
                    "{e}: the files of this folder are of user {} and group {}, and what replaces them has to be, \
                     or a controller that reads them as these could not: run this as root, or as that user",
                    self.user, self.group
                );
                failed("chown")(io::Error::new(e.kind(), why))
            })?;
        }
        // After that, or the group of whoever runs this could open it meanwhile.
        let group = if self.group_reads { 0o040 } else { 0 };
        file.set_permissions(Permissions::from_mode(mode | group)).map_err(failed("chmod"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::chown;

    use nix::unistd::{Uid, setfsgid, setfsuid};

    use super::*;

    fn seen(path: &Path) -> (u32, u32, u32) {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    }

    /// As root: only root may give files away.
    #[test]
    fn a_file_stays_whose_it_was_and_who_may_not_give_it_back_is_told_beforehand() {
        if !Uid::effective().is_root() {
            return;
        }
        let folder = std::env::temp_dir().join(format!("underpass-owner-{:016x}", rand::random::<u64>()));
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(4242), Some(4343)).unwrap();
        let (key, fresh) = (folder.join("key"), folder.join("fresh"));
        fs::write(&key, "old").unwrap();
        chown(&key, Some(4244), Some(4345)).unwrap();
        for (mode, after) in [(0o640, 0o640), (0o600, 0o600), (0o604, 0o600)] {
            fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
            Owner::check(&folder, &["key", "fresh"]).unwrap();
            Owner::of(&key).unwrap().write_whole(&key, b"new", 0o600).unwrap();
            assert_eq!(seen(&key), (4244, 4345, after), "{mode:o}");
        }
        Owner::of(&fresh).unwrap().write_whole(&fresh, b"new", 0o600).unwrap();
        assert_eq!(seen(&fresh), (4242, 4343, 0o600), "of its folder");

        let listed = || fs::read_dir(&folder).unwrap().count();
        let before = listed();
        let as_another = {
            let folder = folder.clone();
            // Of this thread alone, and what goes with root's too.
            std::thread::spawn(move || {
                setfsgid(4343.into());
                setfsuid(4242.into());
                (Owner::check(&folder, &["fresh"]), Owner::check(&folder, &["fresh", "key"]))
            })
        };
        let (own, others) = as_another.join().unwrap();
        own.unwrap();
        let said = others.unwrap_err().to_string();
        assert!(said.contains("of user 4244 and group 4345") && said.contains("run this as root"), "{said}");
        assert_eq!(listed(), before, "something was left behind");
        fs::remove_dir_all(&folder).unwrap();
    }
}
