//! The same in a Kubernetes secret: each step is one change of it, made only if nobody else has changed it
//! since it was read. So there is nothing half done, and nothing to complete.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use zeroize::Zeroizing;

use super::folder::{CHAIN, ISSUING, KEY, RECORD, REVISION, ROOTS};
use super::{FolderError, Phase, Record, Site, read_revision};
use crate::ca::kubernetes::{CallError, Cluster, Held, Keys, SecretName};

/// An authority's secret while somebody changes it.
pub struct Secret {
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
    name: SecretName,
    held: RefCell<Held>,
}

/// Why a secret's step came to nothing. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(transparent)]
    Cluster(#[from] crate::ca::kubernetes::ClusterError),
    #[error("cannot start a thread for asking: {0}")]
    Runtime(#[from] std::io::Error),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(
        "the secret {0} was changed by somebody else since it was read: nothing was done. See by `status` where it stands, and do it again"
    )]
    Changed(SecretName),
}

/// What signed before the third step, for taking it back.
const BEFORE: &str = "rotation-before.";

/// `None`: to be taken out.
type Changes = BTreeMap<String, Option<Zeroizing<Vec<u8>>>>;

impl Secret {
    /// Reads it, by this kubeconfig or as the pod that we are in.
    pub fn open(name: &SecretName, kubeconfig: Option<&Path>) -> Result<Self, SecretError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cluster = runtime.block_on(Cluster::connect(kubeconfig))?;
        let held = RefCell::new(runtime.block_on(cluster.secret(name))?);
        Ok(Self { cluster, runtime, name: name.clone(), held })
    }

    /// What signs, replaced in one change; whatever else is there stays.
    pub(in crate::ca) fn sign_with(&self, with: &Keys) -> Result<(), FolderError> {
        let new = |file: &str| with.get(file).map(|content| (file.to_owned(), Some(content.clone())));
        self.change(ISSUING.iter().filter_map(|file| new(file)).collect())
    }

    fn text(&self, key: &str) -> Result<String, FolderError> {
        let held = self.held.borrow();
        let unusable = |why: &str| FolderError::Record { path: self.path(key), why: why.to_owned() };
        let text = held.keys.get(key).ok_or_else(|| unusable("it is not there"))?;
        String::from_utf8(text.to_vec()).map_err(|_| unusable("it is no text"))
    }

    /// What errors name before a key.
    pub(in crate::ca) fn shown(&self) -> std::path::PathBuf {
        format!("secret {}", self.name).into()
    }

    fn path(&self, key: &str) -> std::path::PathBuf {
        self.shown().join(key)
    }

    fn revision(&self) -> Result<u64, FolderError> {
        match self.held.borrow().keys.get(REVISION) {
            None => Ok(0),
            Some(text) => {
                read_revision(text).map_err(|why| FolderError::Revision { path: self.path(REVISION), why })
            }
        }
    }

    /// Writes the record down and does what it says, at once.
    fn note(&self, record: Record, mut changes: Changes) -> Result<Record, FolderError> {
        let revision = record.revision.max(self.revision()?).saturating_add(1);
        let record = Record { revision, ..record };
        let json = serde_json::to_vec_pretty(&record)
            .map_err(|e| FolderError::Record { path: self.path(RECORD), why: e.to_string() })?;
        changes.insert(RECORD.to_owned(), Some(Zeroizing::new(json)));
        changes.extend(self.told(&record)?);
        self.change(changes)?;
        Ok(record)
    }

    /// What agents are told by this record, where it is not there already.
    fn told(&self, record: &Record) -> Result<Changes, FolderError> {
        let mut changes = Changes::new();
        if self.text(ROOTS)? != record.roots() {
            changes.insert(ROOTS.to_owned(), Some(Zeroizing::new(record.roots().into_bytes())));
        }
        if self.revision()? < record.revision {
            let text = format!("{}\n", record.revision);
            changes.insert(REVISION.to_owned(), Some(Zeroizing::new(text.into_bytes())));
        }
        Ok(changes)
    }

    fn change(&self, changes: Changes) -> Result<(), FolderError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut held = self.held.borrow_mut();
        let asked = self.cluster.change_secret(&self.name, &held.version, &changes);
        held.version = self.runtime.block_on(asked).map_err(|error| match error {
            CallError::Conflict(_) => SecretError::Changed(self.name.clone()),
            other => other.into(),
        })?;
        for (key, content) in changes {
            match content {
                Some(content) => drop(held.keys.insert(key, content)),
                None => drop(held.keys.remove(&key)),
            }
        }
        Ok(())
    }

    /// What signed before, back where it signs; or only taken away.
    fn before(&self, restore: bool) -> Changes {
        let held = self.held.borrow();
        let mut changes = Changes::new();
        for file in ISSUING {
            let kept = held.keys.get(&format!("{BEFORE}{file}")).cloned();
            if restore && (kept.is_some() || held.keys.contains_key(file)) {
                changes.insert(file.to_owned(), kept.clone());
            }
            if kept.is_some() {
                changes.insert(format!("{BEFORE}{file}"), None);
            }
        }
        changes
    }
}

impl Site for Secret {
    fn look_again(&self) -> Result<(), FolderError> {
        let read = self.runtime.block_on(self.cluster.secret(&self.name)).map_err(SecretError::from)?;
        *self.held.borrow_mut() = read;
        Ok(())
    }

    fn keys(&self) -> Result<Keys, FolderError> {
        Ok(self.held.borrow().keys.clone())
    }

    fn record(&self) -> Result<Option<Record>, FolderError> {
        let held = self.held.borrow();
        let Some(text) = held.keys.get(RECORD) else { return Ok(None) };
        let record = serde_json::from_slice(text);
        record.map(Some).map_err(|e| FolderError::Record { path: self.path(RECORD), why: e.to_string() })
    }

    /// Somebody may have replaced the roots meanwhile.
    fn settle(&self, record: &Record) -> Result<(), FolderError> {
        self.change(self.told(record)?)
    }

    fn name(&self, new_root: &str) -> Result<Record, FolderError> {
        self.note(Record::new(&self.text(ROOTS)?, new_root)?, Changes::new())
    }

    fn trust_both(&self, record: &Record) -> Result<Record, FolderError> {
        self.note(record.at(Phase::BothTrusted), Changes::new())
    }

    fn issue_anew(&self, record: &Record, with: &Keys) -> Result<Record, FolderError> {
        let mut changes = Changes::new();
        for file in ISSUING {
            let held = self.held.borrow();
            let (now, new) = (held.keys.get(file), with.get(file));
            if let Some(now) = now {
                changes.insert(format!("{BEFORE}{file}"), Some(now.clone()));
            }
            // Where a root signs by itself there is no chain.
            if new.is_none() && file != CHAIN {
                return Err(FolderError::Record { path: file.into(), why: "it is not there".into() });
            }
            if new.is_some() || now.is_some() {
                changes.insert(file.to_owned(), new.cloned());
            }
        }
        self.note(record.at(Phase::NewIssues), changes)
    }

    fn withdraw_old(&self, record: &Record) -> Result<Record, FolderError> {
        self.note(record.at(Phase::OldWithdrawn), Changes::new())
    }

    fn finish(&self) -> Result<(), FolderError> {
        let mut changes = self.before(false);
        changes.insert(RECORD.to_owned(), None);
        self.change(changes)
    }

    fn back(&self, record: &Record) -> Result<Option<Record>, FolderError> {
        let (earlier, changes) = match record.phase {
            Phase::Named => {
                self.change(Changes::from([(RECORD.to_owned(), None)]))?;
                return Ok(None);
            }
            Phase::BothTrusted => (Phase::Named, Changes::new()),
            Phase::NewIssues => {
                let kept = format!("{BEFORE}{KEY}");
                if !self.held.borrow().keys.contains_key(&kept) {
                    return Err(FolderError::Finishing(self.path(&kept)));
                }
                (Phase::BothTrusted, self.before(true))
            }
            Phase::OldWithdrawn => (Phase::NewIssues, Changes::new()),
        };
        self.note(record.at(earlier), changes).map(Some)
    }
}
