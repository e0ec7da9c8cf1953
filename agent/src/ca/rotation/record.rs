//! What a rotation has done so far: `rotation.json` in the authority's folder.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::tls::{hex, sha256};

/// A rotation under way. There is none when the file is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Record {
    /// The last step that was completed.
    pub phase: Phase,
    /// What was trusted when the rotation began, as PEM.
    pub old_roots: String,
    /// What is to be trusted in its end, as PEM.
    pub new_root: String,
    /// What the folder's `revision` is once the step is done: later than any before it, whatever the step.
    #[serde(default)]
    pub revision: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// The new root is named, and nobody was told of it.
    Named,
    /// Agents are told to trust both.
    BothTrusted,
    /// Certificates are issued under the new root.
    NewIssues,
    /// Agents are told to trust only the new root.
    OldWithdrawn,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the new root is not one certificate in PEM: {0}")]
    NotOne(String),
    #[error("the new root is trusted already: make another one with `underpass ca init --root`")]
    Known,
    #[error("there is no root to move away from")]
    NoOld,
}

impl Record {
    /// The first step. Whether the new root may be one is the caller's to check.
    pub fn new(old_roots: &str, new_root: &str) -> Result<Self, RecordError> {
        let new = root_ids(new_root).map_err(RecordError::NotOne)?;
        if new.len() != 1 {
            return Err(RecordError::NotOne(format!("there are {}", new.len())));
        }
        let old = root_ids(old_roots).map_err(|_| RecordError::NoOld)?;
        if old.is_empty() {
            return Err(RecordError::NoOld);
        }
        if old.contains(&new[0]) {
            return Err(RecordError::Known);
        }
        let (old_roots, new_root) = (old_roots.to_owned(), new_root.to_owned());
        Ok(Self { phase: Phase::Named, old_roots, new_root, revision: 0 })
    }

    /// What agents should trust, as PEM.
    pub fn roots(&self) -> String {
        match self.phase {
            Phase::Named => self.old_roots.clone(),
            Phase::BothTrusted | Phase::NewIssues => self.both(),
            Phase::OldWithdrawn => self.new_root.clone(),
        }
    }

    /// Whether certificates are issued under this root (SHA-256 of its DER) at present.
    pub fn signs_under(&self, root: &str) -> bool {
        let roots = if self.phase >= Phase::NewIssues { &self.new_root } else { &self.old_roots };
        root_ids(roots).is_ok_and(|ids| ids.iter().any(|id| id == root))
    }

    pub(super) fn both(&self) -> String {
        format!("{}\n{}", self.old_roots.trim_end(), self.new_root)
    }

    pub(super) fn at(&self, phase: Phase) -> Self {
        Self { phase, ..self.clone() }
    }
}

/// The number in a folder's `revision`.
pub fn read_revision(text: &[u8]) -> Result<u64, String> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| "it is no number; agents take one that is not below the one they have".into())
}

/// The SHA-256 of each certificate's DER in lower-case hexadecimal, in the order of the PEM text.
pub fn root_ids(pem: &str) -> Result<Vec<String>, String> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|der| Ok(hex(&sha256(&der.map_err(|e| e.to_string())?))))
        .collect()
}
