//! Keeps keys out of core files.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};

/// From now on a crash leaves no core file, and no process of another user may look into this one's memory:
/// private keys are in it, and nowhere else.
pub fn forbid() {
    // The limit for handlers that look at it, the flag for those that do not (a pipe in core_pattern).
    if let Err(e) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!("setrlimit RLIMIT_CORE failed: {e}; a crash may write private keys to a core file");
    }
    if let Err(e) = set_dumpable(false) {
        tracing::warn!("prctl PR_SET_DUMPABLE failed: {e}; a crash may write private keys to a core file");
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::prctl::get_dumpable;
    use nix::sys::resource::getrlimit;

    use super::*;

    #[test]
    fn a_process_that_holds_keys_leaves_no_core_file() {
        forbid();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
        assert_eq!(get_dumpable(), Ok(false));
        // Other tests of this process look into its memory.
        set_dumpable(true).unwrap();
    }
}
