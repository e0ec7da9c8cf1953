//! Certificates of every kind, the mesh's own and those that must not be accepted.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// An authority: the mesh's, when it is read from the files that the agents share, or anybody's.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, to be shown by a hostile client or server.
#[derive(Debug)]
pub struct Papers {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Papers {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Authority {
    /// Whoever reads the root's files can sign anything: here, the tests.
    pub fn of_files(certificate: &Path, key: &Path) -> Result<Self> {
        let read = |p: &Path| std::fs::read_to_string(p).with_context(|| format!("reading {}", p.display()));
        let key = KeyPair::from_pem(&read(key)?).context("parsing the root's key")?;
        let issuer = Issuer::from_ca_cert_pem(&read(certificate)?, key).context("parsing the root")?;
        Ok(Self { issuer })
    }

    /// A root of its own that no agent trusts.
    pub fn foreign() -> Result<Self> {
        let mut root = CertificateParams::default();
        root.distinguished_name = DistinguishedName::new();
        root.distinguished_name.push(rcgen::DnType::CommonName, "nobody's root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self { issuer: Issuer::new(root, KeyPair::generate().context("making a key")?) })
    }

    /// A root of its own with its certificate in PEM, for agents that are told to trust it.
    pub fn root(name: &str) -> Result<(Self, String)> {
        let mut root = CertificateParams::default();
        root.distinguished_name = DistinguishedName::new();
        root.distinguished_name.push(rcgen::DnType::CommonName, name);
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("making a key")?;
        let certificate = root.self_signed(&key).context("signing a root")?;
        Ok((Self { issuer: Issuer::new(root, key) }, certificate.pem()))
    }

    /// A list, in PEM, that takes back the certificates of these serial numbers (in hexadecimal).
    pub fn revocation_list(&self, serials: &[&str]) -> Result<String> {
        let now = OffsetDateTime::now_utc();
        let one = |serial: &&str| -> Result<RevokedCertParams> {
            let bytes = (0..serial.len()).step_by(2).map(|at| u8::from_str_radix(&serial[at..at + 2], 16));
            let bytes = bytes.collect::<Result<Vec<u8>, _>>().with_context(|| format!("serial {serial}"))?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            })
        };
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::hours(1),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(one).collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = list.signed_by(&self.issuer).context("signing a revocation list")?;
        signed.pem().context("a revocation list as PEM")
    }

    /// A proper leaf for one SPIFFE id.
    pub fn papers(&self, identity: &str) -> Result<Papers> {
        self.sign(leaf(&[identity])?)
    }

    /// A leaf with these URI SANs, none included.
    pub fn papers_naming(&self, uris: &[&str]) -> Result<Papers> {
        self.sign(leaf(uris)?)
    }

    /// A proper leaf whose time is over.
    pub fn expired_papers(&self, identity: &str) -> Result<Papers> {
        let mut params = leaf(&[identity])?;
        params.not_before = OffsetDateTime::now_utc() - Duration::days(2);
        params.not_after = OffsetDateTime::now_utc() - Duration::days(1);
        self.sign(params)
    }

    /// A proper leaf whose time is over soon.
    pub fn short_papers(&self, identity: &str, left: std::time::Duration) -> Result<Papers> {
        let mut params = leaf(&[identity])?;
        params.not_after = OffsetDateTime::now_utc() + left;
        self.sign(params)
    }

    /// A proper leaf whose time has not come.
    pub fn future_papers(&self, identity: &str) -> Result<Papers> {
        let mut params = leaf(&[identity])?;
        params.not_before = OffsetDateTime::now_utc() + Duration::days(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(2);
        self.sign(params)
    }

    /// A leaf that claims to be an authority itself.
    pub fn ca_papers(&self, identity: &str) -> Result<Papers> {
        let mut params = leaf(&[identity])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<Papers> {
        let key = KeyPair::generate().context("making a key")?;
        let signed = params.signed_by(&key, &self.issuer).context("signing")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Papers { chain: vec![signed.into()], key })
    }
}

fn leaf(uris: &[&str]) -> Result<CertificateParams> {
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    for uri in uris {
        let uri = (*uri).try_into().with_context(|| format!("{uri} as a URI SAN"))?;
        leaf.subject_alt_names.push(SanType::URI(uri));
    }
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    leaf.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
    leaf.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
    Ok(leaf)
}
