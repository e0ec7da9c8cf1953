//! Debian's kernel packages: downloaded and unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::Series;
use crate::process;
use crate::setup::packages;

/// An unpacked kernel.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    modules: PathBuf,
}

/// What was unpacked into `folder` before, else the newest package of the series.
pub(super) fn find_or_download(series: Series, folder: &Path) -> Result<Kernel> {
    if let Ok(kernel) = unpacked(folder) {
        return Ok(kernel);
    }
    for program in ["apt-get", "dpkg"] {
        let install = format!("{program} is missing: Debian's kernels can be fetched on Debian only");
        ensure!(process::find(program).is_some(), install);
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    process::step(&format!("download Linux {series}"), || {
        let package = package(series)?;
        // As root, apt would rather download as another user, who may not write here.
        let unconfined = "APT::Sandbox::User=root";
        let mut download = Command::new("apt-get");
        process::run(download.args(["-qq", "-o", unconfined, "download", &package]).current_dir(folder))?;
        let deb = only_file(folder, |name| name.ends_with(".deb"))?;
        process::run(Command::new("dpkg").arg("-x").arg(&deb).arg(folder.join("root")))?;
        fs::remove_file(&deb).with_context(|| format!("remove {}", deb.display()))
    })?;
    unpacked(folder)
}

impl Kernel {
    /// The modules that `wanted` need, in the order in which they can be loaded. A name that is no
    /// module of this kernel is taken to be built in.
    pub(super) fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        collect_modules(&self.modules, &mut files)?;
        let mut loaded = Vec::new();
        for name in wanted {
            load(name, &files, &mut loaded)?;
        }
        Ok(loaded)
    }
}

fn unpacked(folder: &Path) -> Result<Kernel> {
    let root = folder.join("root");
    Ok(Kernel {
        image: only_file(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?,
        modules: only_file(&root.join("lib/modules"), |_| true)?,
    })
}

/// The versioned package that the series' name stands for today.
fn package(series: Series) -> Result<String> {
    let meta = match series {
        Series::V6_1 => "linux-image-cloud-amd64",
        Series::V6_12 => "linux-image-6.12-cloud-amd64",
    };
    let show = || process::output(Command::new("apt-cache").args(["show", "--no-all-versions", meta]));
    if show().is_err() && process::is_root() {
        packages::update()?;
    }
    let said = show().with_context(|| format!("{meta}: run `apt-get update` as root"))?;
    let found = said.lines().find_map(|line| versioned(line, series));
    found.with_context(|| format!("{meta} names no package of Linux {series}: Debian 12 has one"))
}

/// From `Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)` to the name.
fn versioned(line: &str, series: Series) -> Option<String> {
    let name = line.strip_prefix("Depends: ")?.split([' ', ',']).next()?;
    name.starts_with(&format!("linux-image-{series}.")).then(|| name.to_owned())
}

fn only_file(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        n => bail!("{} has {n} candidates where one was expected", folder.display()),
    }
}

/// Depth first: what a module depends on is loaded before it.
fn load(name: &str, files: &[PathBuf], loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let name = name.replace('-', "_");
    if loaded.iter().any(|(known, _)| *known == name) {
        return Ok(());
    }
    let Some(file) = files.iter().find(|file| module_name(file).is_some_and(|it| it == name)) else {
        return Ok(());
    };
    let content = read_module(file)?;
    for dependency in depends(&content) {
        load(&dependency, files, loaded)?;
    }
    loaded.push((name, content));
    Ok(())
}

fn collect_modules(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_modules(&entry.path(), files)?;
        } else if module_name(&entry.path()).is_some() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Files write `-` where the kernel's own names have `_`.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let name = name.strip_suffix(".ko").or_else(|| name.strip_suffix(".ko.xz"))?;
    Some(name.replace('-', "_"))
}

/// 6.12's modules are compressed, and not every kernel can unpack them while loading.
fn read_module(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|it| it == "xz") {
        return process::bytes(Command::new("xz").arg("-dc").arg(file));
    }
    fs::read(file).with_context(|| format!("read {}", file.display()))
}

/// The `depends=` entry of a module's `.modinfo`. Packages have no modules.dep: installing makes it.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|it| it == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_read_from_the_meta_package() {
        let table = [
            ("Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)", Series::V6_1, true),
            ("Depends: linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)", Series::V6_12, true),
            ("Depends: linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)", Series::V6_1, false),
            ("Recommends: linux-image-6.1.0-56-cloud-amd64", Series::V6_1, false),
        ];
        for (line, series, found) in table {
            assert_eq!(versioned(line, series).is_some(), found, "{line}");
        }
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(depends(b"x\0license=GPL\0depends=inet_diag,tun\0name=y\0"), ["inet_diag", "tun"]);
        assert!(depends(b"x\0depends=\0name=y\0").is_empty());
        assert!(depends(b"no such section").is_empty());
    }

    #[test]
    fn modules_are_named_as_the_kernel_does() {
        let table =
            [("a/veth.ko", Some("veth")), ("inet-diag.ko.xz", Some("inet_diag")), ("modules.order", None)];
        for (file, name) in table {
            assert_eq!(module_name(Path::new(file)).as_deref(), name);
        }
    }
}
