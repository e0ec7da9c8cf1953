//! Embeds the kernel programs when they have been built (`cargo xtask build-ebpf`), and never
//! builds them: `cargo build -p underpass-agent` works with stable Rust alone.
//!
//! With an object, `cfg(embedded_bpf)` is set and `env!("UNDERPASS_BPF_OBJECT")` is its path.

use std::env;
use std::fs;
use std::path::PathBuf;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(embedded_bpf)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=UNDERPASS_BPF_OBJECT");
    let object = match env::var_os("UNDERPASS_BPF_OBJECT") {
        Some(named) => {
            let object = PathBuf::from(named);
            assert!(object.is_file(), "UNDERPASS_BPF_OBJECT names {}, which is no file", object.display());
            println!("cargo:rerun-if-changed={}", object.display());
            object
        }
        None => {
            let folder =
                PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../target/bpf");
            // Watching an object that does not exist would rebuild the agent every time; an empty
            // folder can be watched.
            let _ = fs::create_dir_all(&folder);
            println!("cargo:rerun-if-changed={}", folder.display());
            folder.join("underpass.o")
        }
    };
    if let Ok(object) = object.canonicalize() {
        println!("cargo:rustc-cfg=embedded_bpf");
        println!("cargo:rustc-env=UNDERPASS_BPF_OBJECT={}", object.display());
    }
}
