//! The two images that every node has: what holds a pod's namespaces, and a shell with its tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::image::Image;

/// A shell, wget, nc, nslookup, httpd and everything else that Debian's busybox has; runs nothing by itself.
pub const BUSYBOX: &str = "underpass.test/busybox:1";

/// Holds a pod's namespaces, and reaps what its containers leave where they share processes.
pub const PAUSE: &str = "underpass.test/pause:1";

/// Writes both as files to import, and returns where they are.
pub fn write(folder: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder.join("images");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let busybox = std::fs::read("/bin/busybox").context("reading /bin/busybox (install busybox-static)")?;
    // A shell as first process has no default action for SIGTERM, and waiting is what reaps.
    let pause = ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 1000000 & wait $!; done"];
    let images =
        [("pause", Image::new(PAUSE, &pause)), ("busybox", Image::new(BUSYBOX, &["/bin/sleep", "1000000"]))];
    let applets = applets()?;
    images
        .into_iter()
        .map(|(name, mut image)| {
            let path = folder.join(name).with_extension("tar");
            fill(&mut image, &busybox, &applets)
                .and_then(|()| std::fs::write(&path, image.archive()?))
                .with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        })
        .collect()
}

fn fill(image: &mut Image, busybox: &[u8], applets: &[String]) -> std::io::Result<()> {
    image.file("/bin/busybox", 0o755, busybox)?;
    for applet in applets {
        image.link(&format!("/bin/{applet}"), "busybox")?;
    }
    image.folder("/tmp", 0o1777)
}

/// The names that it answers to.
fn applets() -> Result<Vec<String>> {
    let said = Command::new("/bin/busybox").arg("--list").output().context("starting busybox --list")?;
    ensure!(said.status.success(), "busybox --list ended with {}", said.status);
    let names = String::from_utf8_lossy(&said.stdout);
    Ok(names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
}
