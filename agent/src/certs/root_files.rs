//! The embedded issuer's root, kept in two files that several agents share.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose, PublicKeyData, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::EmbeddedConfig;
use super::embedded::{MOST_BACKDATE, MOST_LIFETIME};
pub(super) use super::keeping::SecretKey;
use super::keeping::{FileError, lock_directory, parent, read_file, warn_if_readable, write_whole};
use super::leaf::random_serial;

/// Why the root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("there is no root at {}: make one, or allow the agent to (create)", .0.display())]
    Absent(PathBuf),
    #[error("{} is there but {} is not: put the other half back, or remove both to start over", .present.display(), .absent.display())]
    Half { present: PathBuf, absent: PathBuf },
    #[error("{} is unusable as a root: {why}", .path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("a leaf's lifetime is 1 s to {} days, not {lifetime:?}, and it is backdated by at most {} hours, not {backdate:?}", MOST_LIFETIME.as_secs() / 86_400, MOST_BACKDATE.as_secs() / 3600)]
    Times { lifetime: Duration, backdate: Duration },
    #[error("making the root failed: {0}")]
    Make(#[from] rcgen::Error),
}

impl RootError {
    pub(super) fn unusable(path: &Path, why: impl ToString) -> Self {
        Self::Unusable { path: path.to_owned(), why: why.to_string() }
    }
}

pub(super) struct Root {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) not_after: SystemTime,
    pub(super) key: SecretKey,
}

/// Reads both files, or makes both when neither is there and the configuration allows it.
///
/// Whoever makes them holds a lock on the key's directory, so that of two agents starting at once the
/// second finds what the first made. The certificate is moved into place last: a reader without the lock
/// that sees it can read the key too.
pub(super) fn open(config: &EmbeddedConfig, now: SystemTime) -> Result<Root, RootError> {
    if exists(&config.root_certificate)? {
        return read(config);
    }
    if !config.create {
        return Err(RootError::Absent(config.root_certificate.clone()));
    }
    let _lock = lock_directory(parent(&config.root_key))?;
    if exists(&config.root_certificate)? {
        return read(config);
    }
    if exists(&config.root_key)? {
        // Perhaps a maker died between the two files, perhaps an operator mistyped a path: the second
        // is no reason to make another root with his key.
        return Err(RootError::Half {
            present: config.root_key.clone(),
            absent: config.root_certificate.clone(),
        });
    }
    make(config, now)
}

fn make(config: &EmbeddedConfig, now: SystemTime) -> Result<Root, RootError> {
    let key = SecretKey::generate()?;
    let certificate = root_params(config, now)?.self_signed(&key)?;
    write_whole(&config.root_key, key.pem().as_bytes(), 0o600)?;
    write_whole(&config.root_certificate, certificate.pem().as_bytes(), 0o644)?;
    tracing::info!(certificate = %config.root_certificate.display(), trust_domain = %config.trust_domain,
        "made a new root for the embedded issuer");
    Ok(Root { certificate: certificate.into(), not_after: now + ROOT_LIFETIME, key })
}

fn root_params(config: &EmbeddedConfig, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut root = CertificateParams::default();
    let serial = random_serial();
    // The number tells roots apart that were made for the same trust domain.
    let name: String = serial.to_bytes()[..4].iter().map(|b| format!("{b:02x}")).collect();
    root.distinguished_name = rcgen::DistinguishedName::new();
    root.distinguished_name.push(DnType::OrganizationName, "Underpass");
    root.distinguished_name.push(DnType::CommonName, format!("Underpass embedded root {name}"));
    root.subject_alt_names = vec![SanType::URI(format!("spiffe://{}", config.trust_domain).try_into()?)];
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    root.serial_number = Some(serial);
    root.not_before = (now - config.backdate).into();
    root.not_after = (now + ROOT_LIFETIME).into();
    Ok(root)
}

fn read(config: &EmbeddedConfig) -> Result<Root, RootError> {
    if !exists(&config.root_key)? {
        return Err(RootError::Half {
            present: config.root_certificate.clone(),
            absent: config.root_key.clone(),
        });
    }
    let pem = read_file(&config.root_certificate)?;
    let certificate =
        CertificateDer::from_pem_slice(&pem).map_err(|e| RootError::unusable(&config.root_certificate, e))?;
    let pem = read_file(&config.root_key)?;
    let key = SecretKey::from_pem(&pem).map_err(|e| RootError::unusable(&config.root_key, e))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
        .map_err(|e| RootError::unusable(&config.root_certificate, e))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        let why = format!("it is not the key of {}", config.root_certificate.display());
        return Err(RootError::unusable(&config.root_key, why));
    }
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let not_after = UNIX_EPOCH + Duration::from_secs(not_after);
    warn_if_readable(&config.root_key);
    Ok(Root { certificate, not_after, key })
}

fn exists(path: &Path) -> Result<bool, RootError> {
    Ok(path.try_exists().map_err(|source| FileError { call: "stat", path: path.into(), source })?)
}

const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
