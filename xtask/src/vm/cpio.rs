//! Writes the "newc" archive that Linux unpacks as its first file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

/// An archive under construction. Folders are added as files need them.
pub(super) struct Archive<W> {
    out: W,
    folders: BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Archive { out, folders: BTreeSet::new(), entries: 0 }
    }

    /// Adds a file under an absolute path.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if let Some(parent) = Path::new(path).parent() {
            self.folder(&parent.to_string_lossy())?;
        }
        self.entry(path, 0o100_000 | permissions, content)
    }

    /// Adds a folder and those it lies in, each once.
    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.folders.insert(path.to_owned());
        self.entry(path, 0o040_755, b"")
    }

    /// Adds the character device that the kernel opens as the first process's standard streams.
    pub(super) fn console(&mut self) -> io::Result<()> {
        self.folder("dev")?;
        self.write("dev/console", 0o020_600, b"", (5, 1))
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, b"")?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.write(path, mode, content, (0, 0))
    }

    fn write(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) -> io::Result<()> {
        self.entries += 1;
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{path}: 4 GiB or more"));
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name = u32::try_from(path.len() + 1).map_err(too_large)?;
        self.out.write_all(b"070701")?;
        // inode, mode, uid, gid, links, mtime, size, device of the file, its own device, name, checksum
        let (major, minor) = device;
        for field in [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name, 0] {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(b"\0")?;
        self.pad(110 + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Names and contents each end on a multiple of four.
    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_that_the_kernel_reads() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/bin/tool", 0o755, b"12345").unwrap();
        archive.file("/bin/other", 0o644, b"").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(bytes.len() % 4, 0);
        // The folder once, before its files; then the trailer.
        let names: Vec<&str> =
            text.split("070701").skip(1).map(|it| it[104..].split('\0').next().unwrap()).collect();
        assert_eq!(names, ["bin", "bin/tool", "bin/other", "TRAILER!!!"]);
        let tool = text.split("070701").nth(2).unwrap();
        assert_eq!(&tool[8..16], "000081ed");
        assert_eq!(&tool[48..56], "00000005");
        // Header and name are 120 bytes, a multiple of four.
        assert_eq!(&tool[114..122], "12345\0\0\0");
    }
}
