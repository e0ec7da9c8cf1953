//! Generates the services' clients and servers. protox compiles .proto files in Rust, so that nobody
//! needs protoc.

use std::error::Error;

const FILES: [&str; 5] = [
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "spire/api/types.proto",
    "spire/api/agent/delegatedidentity/v1/delegatedidentity.proto",
    "underpass/v1/trust.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let files = protox::compile(FILES, ["."])?;
    // How to connect is up to who calls.
    tonic_prost_build::configure()
        .build_transport(false)
        // Its bytes are a private key.
        .skip_debug([".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey"])
        .compile_fds(files)?;
    Ok(())
}
