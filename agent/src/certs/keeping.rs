//! Keys in memory and in files: wiped when dropped, written whole, and never with a wide mode.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use nix::fcntl::Flock;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::sys::lock;

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
        let der = private_key(pem)?;
        KeyPair::try_from(&*der).map(Self).map_err(|e| e.to_string())
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// PKCS#8. rcgen's own would leave copies behind.
    pub(crate) fn pem(&self) -> Zeroizing<String> {
        let der = self.pkcs8();
        let mut pem = Zeroizing::new(String::with_capacity(2 * der.len() + 128));
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        for line in der.chunks(48) {
            pem.push_str(&base64(line));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }
}

/// Written at once to where it stays: the library's calls that return or grow a text leave parts of it behind.
pub(crate) fn base64(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(vec![0; bytes.len().div_ceil(3) * 4]);
    // It has the length that this much is written as, and is ASCII.
    let _ = STANDARD.encode_slice(bytes, &mut text);
    Zeroizing::new(String::from_utf8(std::mem::take(&mut *text)).unwrap_or_default())
}

/// As PEM has always been read: bits that are left over at the end are not looked at.
const PEM: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

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

/// The first private key in PEM: PKCS#8, SEC1 or PKCS#1. rustls-pki-types reads the same, and leaves the key's
/// text in memory that it gives back.
pub(crate) fn private_key(pem: &[u8]) -> Result<Zeroizing<PrivateKeyDer<'static>>, String> {
    type Kind = fn(Vec<u8>) -> PrivateKeyDer<'static>;
    let kinds: [(&[u8], Kind); 3] = [
        (b"PRIVATE KEY-----", |der| PrivatePkcs8KeyDer::from(der).into()),
        (b"EC PRIVATE KEY-----", |der| PrivateSec1KeyDer::from(der).into()),
        (b"RSA PRIVATE KEY-----", |der| PrivatePkcs1KeyDer::from(der).into()),
    ];
    let mut lines = pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let begun = lines.by_ref().find_map(|line| {
        let label = line.strip_prefix(b"-----BEGIN ")?;
        kinds.iter().find(|(known, _)| *known == label)
    });
    let (label, kind) = begun.ok_or("there is no section with a private key in it")?;
    // With room for all of it, or growing would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(pem.len()));
    for line in lines {
        if let Some(end) = line.strip_prefix(b"-----END ") {
            let mut der = Zeroizing::new(vec![0; text.len()]);
            let length = PEM.decode_slice(&*text, &mut der).ok().filter(|_| end == *label);
            der.truncate(length.ok_or("its private key is not base64")?);
            return Ok(Zeroizing::new(kind(std::mem::take(&mut *der))));
        }
        text.extend(line.iter().filter(|byte| !matches!(byte, b' ' | b'\t')));
    }
    Err("its private key has no end".into())
}

/// Locks the directory itself, made if need be, so that no lock file is left behind.
pub(crate) fn lock_directory(directory: &Path) -> Result<Flock<File>, FileError> {
    let failed = |call, source| FileError { call, path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(|e| failed("create", e))?;
    let handle = File::open(directory).map_err(|e| failed("open", e))?;
    lock::within(LOCK_PATIENCE, handle).map_err(|e| match e {
        nix::Error::EWOULDBLOCK => {
            let why = format!(
                "another process has held it for {} s: see who (lsof), and whether it hangs",
                LOCK_PATIENCE.as_secs()
            );
            failed("lock", io::Error::new(io::ErrorKind::WouldBlock, why))
        }
        e => failed("lock", e.into()),
    })
}

const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Under a name of its own first, then moved into place: nobody ever reads half a file, and nobody ever
/// finds the key with a wider mode.
pub(crate) fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    write_new(path, content, mode, |_, _| Ok(()))
}

/// The same; the file is prepared, under its first name, before anything is in it.
pub(super) fn write_new(
    path: &Path,
    content: &[u8],
    mode: u32,
    prepare: impl FnOnce(&File, &Path) -> Result<(), FileError>,
) -> Result<(), FileError> {
    fs::create_dir_all(parent(path)).map_err(failed("create", parent(path)))?;
    let (mut file, temporary) = new_file(path, mode)?;
    let written = prepare(&file, &temporary).and_then(|()| {
        let written = file.write_all(content).and_then(|()| file.sync_all());
        written.map_err(failed("write", &temporary))
    });
    let moved = written.and_then(|()| fs::rename(&temporary, path).map_err(failed("rename to", path)));
    if moved.is_err() {
        // What matters is the first error; the left-over is named in it.
        fs::remove_file(&temporary).ok();
    }
    moved
}

/// Beside `path`, under a name of its own.
pub(super) fn new_file(path: &Path, mode: u32) -> Result<(File, PathBuf), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{:08x}", std::process::id(), rand::random::<u32>()));
    let temporary = path.with_file_name(name);
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
    Ok((made.map_err(failed("create", &temporary))?, temporary))
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { call, path, source }
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
