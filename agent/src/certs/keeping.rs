//! Keys in memory and in files: wiped when dropped, written whole, and never with a wide mode.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::{Zeroize, Zeroizing};

/// A call on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}: {source}", .path.display())]
pub struct FileError {
    pub call: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// rcgen's key, wiped when dropped.
pub(crate) struct SecretKey(KeyPair);

impl SecretKey {
    /// A new ECDSA P-256 key.
    pub(crate) fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate().map(Self)
    }

    /// From PKCS#8, SEC1 or PKCS#1.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|e| e.to_string())?;
        let der = Zeroizing::new(der);
        KeyPair::try_from(&*der).map(Self).map_err(|e| e.to_string())
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }

    pub(crate) fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
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

/// Locks the directory itself, made if need be, so that no lock file is left behind.
pub(crate) fn lock_directory(directory: &Path) -> Result<Flock<File>, FileError> {
    let failed = |call, source| FileError { call, path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(|e| failed("create", e))?;
    let mut handle = File::open(directory).map_err(|e| failed("open", e))?;
    let started = Instant::now();
    loop {
        match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::Error::EWOULDBLOCK)) if started.elapsed() < LOCK_PATIENCE => handle = back,
            Err((_, nix::Error::EWOULDBLOCK)) => {
                let why = format!(
                    "another process has held it for {} s: see who (lsof), and whether it hangs",
                    LOCK_PATIENCE.as_secs()
                );
                return Err(failed("lock", io::Error::new(io::ErrorKind::WouldBlock, why)));
            }
            Err((_, e)) => return Err(failed("lock", e.into())),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Under a name of its own first, then moved into place: nobody ever reads half a file, and nobody ever
/// finds the key with a wider mode.
pub(crate) fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{:08x}", std::process::id(), rand::random::<u32>()));
    let temporary = path.with_file_name(name);
    let failed = |call, path: &Path| {
        let path = path.to_owned();
        move |source| FileError { call, path, source }
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

/// At most a megabyte: no key and no bundle is larger.
pub(crate) fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let failed = |source| FileError { call: "read", path: path.into(), source };
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    // All at once, or growing would leave copies of a key behind.
    let mut content = Zeroizing::new(Vec::with_capacity(MOST_BYTES + 1));
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() > MOST_BYTES {
        let why = format!("it is larger than {MOST_BYTES} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, why)));
    }
    Ok(content)
}

const MOST_BYTES: usize = 1 << 20;

/// Warns of a key file that others than its owner may read.
pub(crate) fn warn_if_readable(key: &Path) {
    if let Ok(meta) = fs::metadata(key)
        && meta.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(key = %key.display(), mode = format!("{:o}", meta.permissions().mode() & 0o7777),
            "others than the owner may read this key: whoever does can be anybody in the mesh");
    }
}

/// The folder that a file is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
