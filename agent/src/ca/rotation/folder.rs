//! The files that a rotation changes, in the authority's folder.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{Phase, Record, RecordError, SecretError, Site, read_revision};
use crate::ca::kubernetes::Keys;
use crate::certs::FileError;
use crate::certs::keeping::read_file;
use crate::certs::owner::Owner;

/// An authority's folder while somebody changes it; locked against a second one.
pub struct Folder {
    path: PathBuf,
    _lock: Option<Flock<File>>,
    /// Asked before each change of a file: tests fail there.
    before: Box<Before>,
}

type Before = dyn Fn(&Path) -> io::Result<()>;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("another rotation works on {}: wait for it", .0.display())]
    Locked(PathBuf),
    #[error("{} does not parse ({why}): it is this command's own; put back what was there", .path.display())]
    Record { path: PathBuf, why: String },
    #[error("{} cannot be used: {why}", .path.display())]
    Revision { path: PathBuf, why: String },
    #[error("what signed before is gone ({}): the rotation was being finished; finish it with `next`", .0.display())]
    Finishing(PathBuf),
    #[error(transparent)]
    Start(#[from] RecordError),
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// What signs, as the folder has it.
pub(super) const ISSUING: [&str; 3] = [CHAIN, CERTIFICATE, KEY];
const CERTIFICATE: &str = "ca-cert.pem";
pub(super) const CHAIN: &str = "cert-chain.pem";
pub(super) const KEY: &str = "ca-key.pem";
pub(super) const ROOTS: &str = "root-cert.pem";
/// A number that grows with every change: agents take no step back in time.
pub const REVISION: &str = "revision";
pub(super) const RECORD: &str = "rotation.json";
/// What signed before the third step, for taking it back.
const BEFORE: &str = "rotation-before";
/// What is to sign after it, until it does.
const AFTER: &str = "rotation-after";

impl Folder {
    /// Takes the folder for this process alone.
    ///
    /// # Errors
    /// Also when what is replaced could not stay whose it is.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let handle = File::open(path).map_err(failed("open", path))?;
        let lock = Flock::lock(handle, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
            nix::Error::EWOULDBLOCK => FolderError::Locked(path.to_owned()),
            e => failed("lock", path)(e.into()),
        })?;
        Owner::check(path, &[CHAIN, CERTIFICATE, KEY, ROOTS, REVISION, RECORD])?;
        Ok(Self { _lock: Some(lock), ..Self::look(path) })
    }

    /// To look only, also while somebody works on it.
    pub fn look(path: &Path) -> Self {
        Self { path: path.to_owned(), _lock: None, before: Box::new(|_| Ok(())) }
    }

    #[cfg(test)]
    pub(super) fn failing(mut self, before: impl Fn(&Path) -> io::Result<()> + 'static) -> Self {
        self.before = Box::new(before);
        self
    }

    /// The rotation that is under way in a folder that somebody else may be working on, if one is.
    pub fn record_in(folder: &Path) -> Result<Option<Record>, FolderError> {
        let path = folder.join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &path)(e)),
        };
        let record = serde_json::from_slice(&text);
        record.map(Some).map_err(|e| FolderError::Record { path, why: e.to_string() })
    }

    fn revision(&self) -> Result<u64, FolderError> {
        let path = self.path.join(REVISION);
        match fs::read(&path) {
            Ok(text) => read_revision(&text).map_err(|why| FolderError::Revision { path, why }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(failed("read", &path)(e)),
        }
    }

    /// Writes the record down, and does what it says.
    fn note(&self, record: Record) -> Result<Record, FolderError> {
        let revision = record.revision.max(self.revision()?).saturating_add(1);
        let record = Record { revision, ..record };
        let path = self.path.join(RECORD);
        let json = serde_json::to_vec_pretty(&record)
            .map_err(|e| FolderError::Record { path: path.clone(), why: e.to_string() })?;
        self.replace(&path, &json, 0o644)?;
        self.settle(&record)?;
        Ok(record)
    }

    /// Copies what signs, or is to sign, into a folder that is there whole or not at all.
    fn keep(&self, keys: &Keys, name: &str) -> Result<(), FolderError> {
        let (kept, half) = (self.path.join(name), self.path.join(format!("{name}.half")));
        self.forget(name)?;
        (self.before)(&half).map_err(failed("create", &half))?;
        DirBuilder::new().mode(0o700).create(&half).map_err(failed("create", &half))?;
        self.write(keys, &half)?;
        (self.before)(&kept).map_err(failed("rename to", &kept))?;
        fs::rename(&half, &kept).map_err(failed("rename to", &kept))
    }

    /// The folder, and what an interruption may have left of it.
    fn forget(&self, name: &str) -> Result<(), FolderError> {
        let gone = self.path.join(format!("{name}.gone"));
        let whole = self.path.join(name);
        self.empty(&gone)?;
        if whole.exists() {
            // At once, so that nobody takes the half that is left for the whole.
            (self.before)(&gone).map_err(failed("rename to", &gone))?;
            fs::rename(&whole, &gone).map_err(failed("rename to", &gone))?;
            self.empty(&gone)?;
        }
        self.empty(&self.path.join(format!("{name}.half")))
    }

    fn empty(&self, folder: &Path) -> Result<(), FolderError> {
        if !folder.exists() {
            return Ok(());
        }
        (self.before)(folder).map_err(failed("remove", folder))?;
        fs::remove_dir_all(folder).map_err(failed("remove", folder))
    }

    fn remove(&self, path: &Path) -> Result<(), FolderError> {
        (self.before)(path).map_err(failed("remove", path))?;
        fs::remove_file(path).map_err(failed("remove", path))
    }

    /// What signs, of this folder.
    fn issuing(&self, from: &Path) -> Result<Keys, FolderError> {
        let mut keys = Keys::new();
        for file in ISSUING {
            match read_file(&from.join(file)) {
                // Where a root signs by itself there is no chain.
                Err(e) if file == CHAIN && e.source.kind() == io::ErrorKind::NotFound => {}
                read => drop(keys.insert(file.to_owned(), read?)),
            }
        }
        Ok(keys)
    }

    fn write(&self, keys: &Keys, to: &Path) -> Result<(), FolderError> {
        for file in ISSUING {
            let path = to.join(file);
            match keys.get(file) {
                Some(content) => self.replace(&path, content, if file == KEY { 0o600 } else { 0o644 })?,
                None if path.exists() => self.remove(&path)?,
                None => {}
            }
        }
        Ok(())
    }

    fn replace(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), FolderError> {
        (self.before)(path).map_err(failed("write", path))?;
        // On the disk before the next file is touched.
        Ok(Owner::of(path)?.write_whole(path, content, mode)?)
    }
}

impl Site for Folder {
    fn look_again(&self) -> Result<(), FolderError> {
        // Its files are read whenever they are needed, and the lock keeps others out.
        Ok(())
    }

    fn keys(&self) -> Result<Keys, FolderError> {
        let mut keys = self.issuing(&self.path)?;
        for file in [ROOTS, REVISION] {
            match read_file(&self.path.join(file)) {
                Err(e) if file == REVISION && e.source.kind() == io::ErrorKind::NotFound => {}
                read => drop(keys.insert(file.to_owned(), read?)),
            }
        }
        Ok(keys)
    }

    fn record(&self) -> Result<Option<Record>, FolderError> {
        Self::record_in(&self.path)
    }

    /// Every step notes first what it is about to do, so that this knows.
    fn settle(&self, record: &Record) -> Result<(), FolderError> {
        let path = self.path.join(ROOTS);
        let told = fs::read_to_string(&path).map_err(failed("read", &path))?;
        if told != record.roots() {
            self.replace(&path, record.roots().as_bytes(), 0o644)?;
        }
        let wanted = if record.phase >= Phase::NewIssues { AFTER } else { BEFORE };
        if self.path.join(wanted).exists() {
            self.write(&self.issuing(&self.path.join(wanted))?, &self.path)?;
        }
        self.forget(AFTER)?;
        if record.phase < Phase::NewIssues {
            self.forget(BEFORE)?;
        }
        // Last: under the new number nobody is told anything of before.
        if self.revision()? < record.revision {
            let text = format!("{}\n", record.revision);
            self.replace(&self.path.join(REVISION), text.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    fn name(&self, new_root: &str) -> Result<Record, FolderError> {
        let path = self.path.join(ROOTS);
        let old = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let record = Record::new(&old, new_root)?;
        self.note(record)
    }

    fn trust_both(&self, record: &Record) -> Result<Record, FolderError> {
        self.note(record.at(Phase::BothTrusted))
    }

    fn issue_anew(&self, record: &Record, with: &Keys) -> Result<Record, FolderError> {
        self.keep(with, AFTER)?;
        self.keep(&self.issuing(&self.path)?, BEFORE)?;
        self.note(record.at(Phase::NewIssues))
    }

    fn withdraw_old(&self, record: &Record) -> Result<Record, FolderError> {
        self.note(record.at(Phase::OldWithdrawn))
    }

    fn finish(&self) -> Result<(), FolderError> {
        self.forget(BEFORE)?;
        self.remove(&self.path.join(RECORD))
    }

    fn back(&self, record: &Record) -> Result<Option<Record>, FolderError> {
        let earlier = match record.phase {
            Phase::Named => return self.remove(&self.path.join(RECORD)).map(|()| None),
            Phase::BothTrusted => Phase::Named,
            Phase::NewIssues if !self.path.join(BEFORE).exists() => {
                return Err(FolderError::Finishing(self.path.join(BEFORE)));
            }
            Phase::NewIssues => Phase::BothTrusted,
            Phase::OldWithdrawn => Phase::NewIssues,
        };
        self.note(record.at(earlier)).map(Some)
    }
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FileError { call, path, source }.into()
}
