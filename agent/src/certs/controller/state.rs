//! The roots that the controller brought, kept on disk: an agent that is restarted while a root is being
//! replaced knows the controller by them, and not by a file that may be older than the rotation.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::update::{MOST_ROOTS, is_over};
use crate::certs::FileError;
use crate::certs::istio::channel::Followed;
use crate::certs::keeping::{parent, write_whole};
use crate::model::TrustDomain;
use crate::tls::{TrustBundles, hex, sha256, unhex};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    trust_domain: TrustDomain,
    revision: u64,
    /// SHA-256 of the root file by which the controller was known when it brought these.
    root_file: String,
    /// DER in hexadecimal.
    roots: Vec<String>,
    /// Over the rest: a root with a wrong bit would be one by which nobody is known.
    sha256: String,
}

/// What was kept, if it can be used; `None` when nothing was.
///
/// # Errors
/// Why it is not used. The root file is then, as at the first contact.
pub(super) fn load(path: &Path, domain: &TrustDomain, now: SystemTime) -> Result<Option<Followed>, String> {
    let text = match read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| e.to_string())?,
    };
    let kept: Kept = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if kept.sha256 != check(&kept) {
        return Err("its check sum is wrong".into());
    }
    if kept.trust_domain != *domain {
        return Err(format!("it is of the trust domain {}", kept.trust_domain));
    }
    if kept.roots.len() > MOST_ROOTS {
        return Err(format!("it has {} roots", kept.roots.len()));
    }
    let mut roots = TrustBundles::new();
    let ders = kept.roots.iter().map(|root| CertificateDer::from(unhex(root)));
    roots.add(domain, ders).map_err(|e| e.to_string())?;
    if !roots.roots(domain).any(|root| !is_over(root, now)) {
        return Err("none of its roots is still valid".into());
    }
    let file = unhex(&kept.root_file).try_into().map_err(|_| "rootFile is no SHA-256")?;
    Ok(Some(Followed { roots, revision: kept.revision, file }))
}

/// In place of what was kept before, and on the disk when this returns.
pub(super) fn save(path: &Path, domain: &TrustDomain, followed: &Followed) -> Result<(), FileError> {
    let mut kept = Kept {
        trust_domain: domain.clone(),
        revision: followed.revision,
        root_file: hex(&followed.file),
        roots: followed.roots.roots(domain).map(|root| hex(root)).collect(),
        sha256: String::new(),
    };
    kept.sha256 = check(&kept);
    let failed = |call, path: &Path, source| FileError { call, path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(&kept).map_err(|e| failed("write", path, e.into()))?;
    write_whole(path, &text, 0o600)?;
    let folder = parent(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| failed("sync", folder, e))
}

fn check(kept: &Kept) -> String {
    let revision = kept.revision.to_string();
    let parts = [kept.trust_domain.as_str(), &revision, &kept.root_file].into_iter();
    let parts = parts.chain(kept.roots.iter().map(String::as_str));
    let digests: Vec<[u8; 32]> = parts.map(|part| sha256(part.as_bytes())).collect();
    hex(&sha256(digests.as_flattened()))
}

/// Only what nobody but root or this user can have written.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return refused("it is not a regular file");
    }
    if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
        return refused("it belongs to another user");
    }
    if meta.mode() & 0o022 != 0 {
        return refused("others than its owner may write it");
    }
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return refused("it is too large");
    }
    Ok(text)
}

const MOST_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::tls::testing::{Authority, bundles};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let name = format!("underpass-state-{}-{:016x}", std::process::id(), rand::random::<u64>());
            Self(std::env::temp_dir().join(name))
        }

        fn file(&self) -> PathBuf {
            self.0.join("roots.json")
        }

        fn load(&self) -> Result<Option<Followed>, String> {
            load(&self.file(), &domain(), SystemTime::now())
        }

        fn save(&self, followed: &Followed) {
            save(&self.file(), &domain(), followed).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn domain() -> TrustDomain {
        "mesh.test".parse().unwrap()
    }

    fn followed() -> Followed {
        let (one, two) = (Authority::root(), Authority::root());
        Followed { roots: bundles(&[("mesh.test", &one), ("mesh.test", &two)]), revision: 3, file: [7; 32] }
    }

    #[test]
    fn what_is_kept_is_found_again_and_is_replaced_as_a_whole() {
        let scratch = Scratch::new();
        assert_eq!(scratch.load(), Ok(None));
        for _ in 0..2 {
            let followed = followed();
            scratch.save(&followed);
            assert_eq!(scratch.load(), Ok(Some(followed)));
        }
        assert_eq!(fs::metadata(scratch.file()).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    }

    #[test]
    fn a_changed_or_cut_file_is_not_used() {
        let scratch = Scratch::new();
        let followed = followed();
        scratch.save(&followed);
        let sound = fs::read(scratch.file()).unwrap();
        for at in 0..sound.len() {
            fs::write(scratch.file(), &sound[..at]).unwrap();
            assert!(scratch.load().is_err(), "cut at {at}");
        }
        for at in 0..sound.len() {
            let mut changed = sound.clone();
            changed[at] ^= 1;
            fs::write(scratch.file(), &changed).unwrap();
            match scratch.load() {
                Err(_) => {}
                // White space.
                Ok(other) => assert_eq!(other, Some(followed.clone()), "bit at {at}"),
            }
        }
    }

    #[test]
    fn what_somebody_else_can_have_written_is_not_used() {
        let scratch = Scratch::new();
        let refused = |why: &str| {
            let error = scratch.load().unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        scratch.save(&followed());
        fs::set_permissions(scratch.file(), Permissions::from_mode(0o620)).unwrap();
        refused("others than its owner may write it");
        fs::set_permissions(scratch.file(), Permissions::from_mode(0o600)).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(scratch.file(), Some(4321), None).unwrap();
            refused("another user");
        }
        fs::rename(scratch.file(), scratch.0.join("elsewhere")).unwrap();
        symlink("elsewhere", scratch.file()).unwrap();
        refused("symbolic");
        fs::remove_file(scratch.file()).unwrap();
        fs::create_dir(scratch.file()).unwrap();
        refused("regular");
        fs::remove_dir(scratch.file()).unwrap();
        fs::write(scratch.file(), vec![b' '; 2 << 20]).unwrap();
        fs::set_permissions(scratch.file(), Permissions::from_mode(0o600)).unwrap();
        refused("too large");
    }

    #[test]
    fn roots_of_another_domain_or_that_are_over_are_not_used() {
        let scratch = Scratch::new();
        let followed = followed();
        scratch.save(&followed);
        let other = load(&scratch.file(), &"other.test".parse().unwrap(), SystemTime::now());
        assert!(other.unwrap_err().contains("mesh.test"));
        let late = load(&scratch.file(), &domain(), UNIX_EPOCH + Duration::from_secs(1 << 34));
        assert!(late.unwrap_err().contains("still valid"));
        scratch.save(&Followed { roots: TrustBundles::new(), ..followed });
        assert!(scratch.load().unwrap_err().contains("still valid"));
    }
}
