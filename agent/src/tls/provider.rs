//! The cryptography that is offered and accepted, decided once for the whole process.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TlsError;

/// What is offered and accepted, at both ends of tunnels, towards issuers and by the controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// What an Istio ambient mesh speaks, the key exchange that withstands quantum computers first.
    #[default]
    Default,
    /// Only algorithms that FIPS 140-3 approves of. That is a policy, not a validation: whether the module is
    /// the one that is validated, [`fips_module`] says.
    Fips,
    /// Nobody who cannot exchange keys in a way that withstands quantum computers.
    PqOnly,
}

impl Profile {
    /// As it stands in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Fips => "fips",
            Self::PqOnly => "pq-only",
        }
    }

    pub(super) fn provider(self) -> CryptoProvider {
        let all = default_provider();
        CryptoProvider {
            cipher_suites: suites(self == Self::Fips || aes_in_hardware()),
            kx_groups: match self {
                Self::Default => GROUPS.to_vec(),
                // The hybrid is approved for its ML-KEM part; X25519 alone is not.
                Self::Fips => vec![kx_group::X25519MLKEM768, kx_group::SECP256R1, kx_group::SECP384R1],
                Self::PqOnly => vec![kx_group::X25519MLKEM768],
            },
            signature_verification_algorithms: match self {
                Self::Fips => ECDSA_AND_RSA,
                Self::Default | Self::PqOnly => all.signature_verification_algorithms,
            },
            ..all
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// aws-lc-rs with the suites and groups of the profile in force. Every configuration shares this value.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&in_force().provider)
}

/// The profile in force.
pub fn profile() -> Profile {
    in_force().profile
}

/// Puts a profile in force, for the life of the process.
///
/// To be called first thing: fails if [`provider`] was asked for before, or another profile was set, since
/// what was made with that would not keep to this one.
pub fn set_profile(profile: Profile) -> Result<(), TlsError> {
    let in_force = IN_FORCE.get_or_init(|| InForce::new(profile)).profile;
    if in_force == profile { Ok(()) } else { Err(TlsError::Profile { asked: profile, in_force }) }
}

/// Whether the process computes in AWS-LC's FIPS module: built with the feature `fips`.
pub fn fips_module() -> bool {
    aws_lc_rs::try_fips_mode().is_ok()
}

/// Tells the log what is in force, and what the profile does not promise.
pub fn tell_profile() {
    let (profile, fips_module) = (profile(), fips_module());
    tracing::info!(%profile, fips_module, "TLS");
    if profile == Profile::Fips && !fips_module {
        tracing::warn!(
            "the TLS profile fips limits the algorithms; the module that computes them is AWS-LC, not its FIPS \
             module: where that is asked for, build with --features fips"
        );
    }
}

static IN_FORCE: OnceLock<InForce> = OnceLock::new();

struct InForce {
    profile: Profile,
    provider: Arc<CryptoProvider>,
}

impl InForce {
    fn new(profile: Profile) -> Self {
        Self { profile, provider: Arc::new(profile.provider()) }
    }
}

fn in_force() -> &'static InForce {
    IN_FORCE.get_or_init(|| InForce::new(Profile::Default))
}

/// What is allowed to settle a handshake, for a message.
pub(super) fn offered(provider: &CryptoProvider) -> String {
    let groups: Vec<_> = provider.kx_groups.iter().map(|g| format!("{:?}", g.name())).collect();
    let suites: Vec<_> = provider.cipher_suites.iter().map(|s| format!("{:?}", s.suite())).collect();
    format!("key exchange {}; cipher suites {}", groups.join(", "), suites.join(", "))
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

/// What the default has, less Ed25519 and ML-DSA.
static ECDSA_AND_RSA: WebPkiSupportedAlgorithms = {
    use rustls::SignatureScheme as S;
    use webpki::aws_lc_rs as a;
    WebPkiSupportedAlgorithms {
        all: &[
            a::ECDSA_P256_SHA256,
            a::ECDSA_P256_SHA384,
            a::ECDSA_P256_SHA512,
            a::ECDSA_P384_SHA256,
            a::ECDSA_P384_SHA384,
            a::ECDSA_P384_SHA512,
            a::ECDSA_P521_SHA256,
            a::ECDSA_P521_SHA384,
            a::ECDSA_P521_SHA512,
            a::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
            a::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
            a::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
            a::RSA_PKCS1_2048_8192_SHA256,
            a::RSA_PKCS1_2048_8192_SHA384,
            a::RSA_PKCS1_2048_8192_SHA512,
        ],
        // In TLS 1.3 a scheme fixes the curve.
        mapping: &[
            (S::ECDSA_NISTP384_SHA384, &[a::ECDSA_P384_SHA384]),
            (S::ECDSA_NISTP256_SHA256, &[a::ECDSA_P256_SHA256]),
            (S::ECDSA_NISTP521_SHA512, &[a::ECDSA_P521_SHA512]),
            (S::RSA_PSS_SHA512, &[a::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
            (S::RSA_PSS_SHA384, &[a::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
            (S::RSA_PSS_SHA256, &[a::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        ],
    }
};
