//! Stories need root. Without it they say so and are skipped, unless the lane requires them.

/// Set to `1` by a lane that must run everything: a skip becomes a failure.
pub const REQUIRE: &str = "UNDERPASS_REQUIRE_ROOT";

/// Why a story that needs root cannot run here; `None` when it can.
pub fn missing() -> Option<&'static str> {
    if nix::unistd::geteuid().is_root() { None } else { Some("needs root (network namespaces and BPF)") }
}

/// Whether a skip is to be a failure.
pub fn required() -> bool {
    std::env::var(REQUIRE).is_ok_and(|v| v == "1")
}

/// Ends the calling `#[test]` with a printed reason when it is not root; panics instead when
/// `UNDERPASS_REQUIRE_ROOT=1`.
#[macro_export]
macro_rules! require_root {
    () => {
        if let Some(why) = $crate::root::missing() {
            assert!(!$crate::root::required(), "{why}, and {} is set", $crate::root::REQUIRE);
            eprintln!("skipped: {}: {why}", module_path!());
            return;
        }
    };
}
