//! Container images without a registry or a builder: one layer, in the archive that `ctr images import`
//! reads (OCI image layout 1.0.0).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// An image under construction. Folders are added as files need them.
pub struct Image {
    name: String,
    command: Vec<String>,
    layer: Builder<Vec<u8>>,
    folders: BTreeSet<String>,
}

impl Image {
    /// Named as in a pod, and what it runs by default. The name begins with a host: containerd would put
    /// one before it, and kubelet would not find the image.
    pub fn new(name: &str, command: &[&str]) -> Self {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), command, layer: Builder::new(Vec::new()), folders: BTreeSet::new() }
    }

    /// Adds a file under an absolute path.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.folder_of(path)?;
        entry(&mut self.layer, path, EntryType::Regular, permissions, content)
    }

    /// Adds a symbolic link under an absolute path.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.folder_of(path)?;
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.layer.append_link(&mut header, relative(path), target)
    }

    /// Adds a folder and those it lies in, each once.
    pub fn folder(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        let path = relative(path);
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.folder_of(path)?;
        self.folders.insert(path.to_owned());
        entry(&mut self.layer, path, EntryType::Directory, permissions, b"")
    }

    /// The whole archive.
    pub fn archive(self) -> io::Result<Vec<u8>> {
        let layer = self.layer.into_inner()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [named(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type("manifest.v1+json"),
            "config": descriptor("config.v1+json", &config),
            "layers": [descriptor("layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut listed = descriptor("manifest.v1+json", &manifest);
        listed["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string();

        let mut archive = Builder::new(Vec::new());
        let version = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        entry(&mut archive, "oci-layout", EntryType::Regular, 0o644, version.as_bytes())?;
        entry(&mut archive, "index.json", EntryType::Regular, 0o644, index.as_bytes())?;
        for blob in [&layer, &config, &manifest] {
            let path = format!("blobs/{}", named(blob).replace(':', "/"));
            entry(&mut archive, &path, EntryType::Regular, 0o644, blob)?;
        }
        archive.into_inner()
    }

    fn folder_of(&mut self, path: &str) -> io::Result<()> {
        match Path::new(relative(path)).parent() {
            Some(parent) => self.folder(&parent.to_string_lossy(), 0o755),
            None => Ok(()),
        }
    }
}

/// A blob as others name it.
fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type(kind), "digest": named(blob), "size": blob.len()})
}

fn media_type(kind: &str) -> String {
    format!("application/vnd.oci.image.{kind}")
}

fn named(blob: &[u8]) -> String {
    let hex: String = digest(&SHA256, blob).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// As Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn entry(
    to: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    to.append_data(&mut header(kind, mode, content.len() as u64), relative(path), content)
}

/// Of root's, and of no time: the same content makes the same image.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn sample() -> Image {
        let mut image = Image::new("test.example/a:1", &["/bin/tool", "-x"]);
        image.file("/bin/tool", 0o755, b"the tool").unwrap();
        image.link("/bin/other", "tool").unwrap();
        image.folder("/tmp", 0o1777).unwrap();
        image
    }

    /// Every entry with its kind, permissions, and content or target.
    fn read(archive: &[u8]) -> BTreeMap<String, (EntryType, u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if let Some(target) = entry.link_name_bytes() {
                content = target.into_owned();
            }
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            (path, (entry.header().entry_type(), entry.header().mode().unwrap(), content))
        });
        entries.collect()
    }

    #[test]
    fn every_digest_leads_to_the_blob_it_names() {
        let files = read(&sample().archive().unwrap());
        let json = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap().replace(':', "/");
            let blob = &files[&format!("blobs/{name}")].2;
            assert_eq!(descriptor["size"], blob.len());
            assert_eq!(descriptor["digest"], named(blob).as_str());
            blob.clone()
        };
        assert_eq!(json(&files["oci-layout"].2)["imageLayoutVersion"], "1.0.0");
        let index = json(&files["index.json"].2);
        let listed = &index["manifests"][0];
        assert_eq!(listed["annotations"]["io.containerd.image.name"], "test.example/a:1");
        let manifest = json(&blob(listed));
        let config = json(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/tool", "-x"]));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], named(&layer).as_str());
    }

    #[test]
    fn a_layer_has_what_was_added_and_its_folders_once() {
        let mut image = sample();
        image.file("/bin/third", 0o644, b"").unwrap();
        let layer = image.layer.into_inner().unwrap();
        let mut names = tar::Archive::new(&layer[..]);
        let names: Vec<_> =
            names.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        let names: Vec<_> = names.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["bin", "bin/tool", "bin/other", "tmp", "bin/third"]);
        let files = read(&layer);
        assert_eq!(files["bin/tool"], (EntryType::Regular, 0o755, b"the tool".to_vec()));
        assert_eq!(files["bin/other"], (EntryType::Symlink, 0o777, b"tool".to_vec()));
        assert_eq!(files["tmp"], (EntryType::Directory, 0o1777, Vec::new()));
    }

    /// A node would otherwise take an image of the same name for another one at every start.
    #[test]
    fn the_same_content_makes_the_same_image() {
        assert_eq!(sample().archive().unwrap(), sample().archive().unwrap());
    }

    #[test]
    fn digests_are_those_of_others() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(named(b""), empty);
    }
}
