//! The cryptography that is offered and accepted, decided once for the whole process.

use std::sync::{Arc, OnceLock};

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};

/// aws-lc-rs with our suites and groups. Every configuration shares this value.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            Arc::new(CryptoProvider {
                cipher_suites: suites(aes_in_hardware()),
                kx_groups: GROUPS.to_vec(),
                ..default_provider()
            })
        })
        .clone()
}

/// X25519MLKEM768 first, so that what is recorded today is not read once there are quantum computers.
/// rustls sends a key share for X25519 with it, so a peer that knows only that needs no second flight.
const GROUPS: [&dyn SupportedKxGroup; 3] = [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];

/// A ztunnel accepts the two AES suites only, so they are always there.
///
/// ChaCha20 stands first where AES is slow: a rustls server follows the client's order, so in the last
/// place it would never be chosen.
pub(super) fn suites(aes_in_hardware: bool) -> Vec<SupportedCipherSuite> {
    let aes = [TLS13_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256];
    let chacha = (!aes_in_hardware).then_some(TLS13_CHACHA20_POLY1305_SHA256);
    chacha.into_iter().chain(aes).collect()
}

pub(super) fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// By the same cryptography.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}
