//! The file system in memory: what was built, what it links to, modules, and the commands to run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cpio::Archive;
use super::kernel::Kernel;
use crate::build::Profile;
use crate::process;
use crate::test::programs::{self, Program};

/// Modules for the simulated pods' interfaces, and for closing sockets by netlink.
const MODULES: [&str; 2] = ["veth", "tcp_diag"];

/// Writes the archive with what `commands` need.
pub(super) fn write(to: &Path, kernel: &Kernel, built: &[Program], commands: &[Vec<String>]) -> Result<()> {
    let file = fs::File::create(to).with_context(|| format!("create {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    archive.console()?;
    for folder in ["proc", "sys", "run", "tmp", "root", "var/run", "etc"] {
        archive.folder(folder)?;
    }

    // The agent, which others start, and `ip`, which they call, always.
    let mut programs = BTreeMap::new();
    programs.insert("/init".to_owned(), Profile::Dev.binary("vm-init"));
    let named = commands.iter().filter_map(|command| command.first().map(String::as_str));
    for name in named.chain(["underpass", "ip"]) {
        programs.insert(format!("/bin/{name}"), find(name, built)?);
    }

    let mut libraries = BTreeSet::new();
    for (path, source) in &programs {
        archive.file(path, 0o755, &without_debug_information(source)?)?;
        libraries.extend(libraries_of(source)?);
    }
    for library in libraries {
        let content = fs::read(&library).with_context(|| format!("read {}", library.display()))?;
        archive.file(&library.to_string_lossy(), 0o755, &content)?;
    }
    for (at, (name, content)) in kernel.modules(&MODULES)?.iter().enumerate() {
        archive.file(&format!("/modules/{at:02}-{name}.ko"), 0o644, content)?;
    }
    let lines: String = commands.iter().map(|words| words.join(" ") + "\n").collect();
    archive.file("/commands", 0o644, lines.as_bytes())?;
    archive.finish()?.flush().with_context(|| format!("write {}", to.display()))
}

/// A file of stories, a binary of the workspace, or a program of this machine.
fn find(name: &str, built: &[Program]) -> Result<PathBuf> {
    if let Some(story) = programs::stories(built).find(|program| program.name == name) {
        return Ok(story.executable.clone());
    }
    let binary = Profile::Dev.binary(name);
    let found = binary.is_file().then_some(binary).or_else(|| process::find(name));
    found.with_context(|| format!("{name} is no story, no binary of the workspace, and not in PATH"))
}

/// Unoptimised programs are mostly debug information, which would fill the machine's memory.
fn without_debug_information(program: &Path) -> Result<Vec<u8>> {
    let Some(strip) = process::find("strip").or_else(|| process::find("llvm-strip")) else {
        return fs::read(program).with_context(|| format!("read {}", program.display()));
    };
    let copy = crate::checkout::target("vm/stripped");
    process::run(Command::new(strip).arg("-g").arg("-o").arg(&copy).arg(program))?;
    fs::read(&copy).with_context(|| format!("read {}", copy.display()))
}

/// Shared libraries and the loader, as the loader finds them here.
fn libraries_of(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let said = process::output(Command::new("ldd").arg(program))?;
    ensure!(!said.contains("not found"), "{} lacks a library: {said}", program.display());
    Ok(paths_in(&said))
}

fn paths_in(ldd: &str) -> BTreeSet<PathBuf> {
    let words = ldd.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::paths_in;
    use std::path::PathBuf;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldd() {
        let said = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found: Vec<PathBuf> = paths_in(said).into_iter().collect();
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
