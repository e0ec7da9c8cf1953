//! Where the agent's binary is.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// `UNDERPASS_BIN`, else `underpass` beside this program, else one folder up (tests run from `deps/`).
///
/// # Errors
/// There is none; says how to build it.
pub fn agent() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("UNDERPASS_BIN") {
        let path = PathBuf::from(path);
        return path.canonicalize().with_context(|| format!("UNDERPASS_BIN={}", path.display()));
    }
    let me = std::env::current_exe().context("finding this program's own path")?;
    for dir in me.ancestors().skip(1).take(2) {
        let candidate = dir.join("underpass");
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("no underpass binary beside {}: build it (cargo xtask build) or set UNDERPASS_BIN", me.display())
}
