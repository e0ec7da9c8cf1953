//! The embedded issuer's root, kept in two files that several agents share.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SigningKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::EmbeddedConfig;
use super::embedded::{MOST_BACKDATE, MOST_LIFETIME, random_serial};

/// Why the root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("{call} {}: {source}", .path.display())]
    File { call: &'static str, path: PathBuf, source: io::Error },
    #[error("there is no root at {}: make one, or allow the agent to (create)", .0.display())]
    Absent(PathBuf),
    #[error("{} is there but {} is not: put the other half back, or remove both to start over", .present.display(), .absent.display())]
    Half { present: PathBuf, absent: PathBuf },
    #[error("{} is unusable as a root: {why}", .path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("another process has held the lock on {} for {} s: see who (lsof), and whether it hangs", .path.display(), LOCK_PATIENCE.as_secs())]
    Locked { path: PathBuf },
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
    let _lock = lock_directory(&config.root_key)?;
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
    write_whole(&config.root_key, Zeroizing::new(key.0.serialize_pem()).as_bytes(), 0o600)?;
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
    let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| RootError::unusable(&config.root_key, e))?;
    let der = Zeroizing::new(der);
    let key = KeyPair::try_from(&*der).map_err(|e| RootError::unusable(&config.root_key, e))?;
    let key = SecretKey(key);
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

fn warn_if_readable(key: &Path) {
    if let Ok(meta) = fs::metadata(key)
        && meta.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(key = %key.display(), mode = format!("{:o}", meta.permissions().mode() & 0o7777),
            "others than the owner may read the root's key: whoever does can be anybody in the mesh");
    }
}

/// Locks the directory itself, so that no lock file is left behind.
fn lock_directory(file: &Path) -> Result<Flock<File>, RootError> {
    let directory = parent(file);
    let failed = |call, source| RootError::File { call, path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(|e| failed("create", e))?;
    let mut handle = File::open(directory).map_err(|e| failed("open", e))?;
    let started = Instant::now();
    loop {
        match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::Error::EWOULDBLOCK)) if started.elapsed() < LOCK_PATIENCE => handle = back,
            Err((_, nix::Error::EWOULDBLOCK)) => {
                return Err(RootError::Locked { path: directory.to_owned() });
            }
            Err((_, e)) => return Err(failed("lock", e.into())),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Under a name of its own first, then moved into place: nobody ever reads half a file, and nobody ever
/// finds the key with a wider mode.
fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), RootError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{:08x}", std::process::id(), rand::random::<u32>()));
    let temporary = path.with_file_name(name);
    let failed = |call, path: &Path| {
        let path = path.to_owned();
        move |source| RootError::File { call, path, source }
    };
    fs::create_dir_all(parent(path)).map_err(failed("create", parent(path)))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed("create", &temporary))?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    let moved = written
        .map_err(failed("write", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("rename to", path)));
    if moved.is_err() {
        // What matters is the first error; the left-over is named in it.
        fs::remove_file(&temporary).ok();
    }
    moved
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, RootError> {
    let content =
        fs::read(path).map_err(|source| RootError::File { call: "read", path: path.into(), source });
    content.map(Zeroizing::new)
}

fn exists(path: &Path) -> Result<bool, RootError> {
    path.try_exists().map_err(|source| RootError::File { call: "stat", path: path.into(), source })
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

const LOCK_PATIENCE: Duration = Duration::from_secs(30);
const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

/// rcgen's key, wiped when dropped.
pub(super) struct SecretKey(KeyPair);

impl SecretKey {
    /// A new ECDSA P-256 key.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate().map(Self)
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for SecretKey {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(msg)
    }
}
