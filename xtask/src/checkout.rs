//! Where things are in this checkout, and how to see whether files changed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{fs, time::UNIX_EPOCH};

use anyhow::{Context, Result};

/// The checkout's root folder.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Everything that xtask makes, apart from what cargo keeps in its own target folder, is under
/// `target/` of the checkout, even when `CARGO_TARGET_DIR` points elsewhere: `agent/build.rs` and
/// the documentation name these paths.
pub(crate) fn target(path: &str) -> PathBuf {
    root().join("target").join(path)
}

/// The folder that cargo builds the host workspace in.
pub(crate) fn cargo_target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// A number that changes when a file under `paths` changes its content or name, or when `salt`
/// does. Folders named `target` are left out.
pub(crate) fn fingerprint(paths: &[PathBuf], salt: &str) -> Result<String> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, &mut files)?;
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    salt.hash(&mut hasher);
    for file in files {
        file.hash(&mut hasher);
        fs::read(&file).with_context(|| format!("read {}", file.display()))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Writes only when the content differs, so that cargo does not rebuild what includes the file.
/// Says whether it wrote.
pub(crate) fn write_if_changed(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    // By rename: an interrupted command leaves no half-written file that looks finished.
    let partial = path.with_extension("partial");
    fs::write(&partial, content).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("rename to {}", path.display()))?;
    Ok(true)
}

/// Size and modification time of a file: enough to notice that a tool was replaced, in
/// microseconds instead of the time it takes to ask the tool for its version.
pub(crate) fn identity(path: &Path) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    let modified = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {} {}", path.display(), meta.len(), modified.as_nanos()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                collect(&entry.path(), files)?;
            }
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_follows_content_names_and_salt() {
        let dir = std::env::temp_dir().join(format!("xtask-fingerprint-{}", std::process::id()));
        fs::create_dir_all(dir.join("target")).unwrap();
        fs::write(dir.join("a"), "one").unwrap();
        let print = |salt: &str| fingerprint(std::slice::from_ref(&dir), salt).unwrap();
        let first = print("");
        assert_eq!(first, print(""));
        assert_ne!(first, print("other rustc"));
        fs::write(dir.join("target/x"), "build output").unwrap();
        assert_eq!(first, print(""));
        fs::write(dir.join("a"), "two").unwrap();
        let second = print("");
        assert_ne!(first, second);
        fs::rename(dir.join("a"), dir.join("b")).unwrap();
        assert_ne!(second, print(""));
        fs::remove_dir_all(&dir).unwrap();
    }
}
