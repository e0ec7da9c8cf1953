//! For the tests of this module and of `certs`: authorities that sign anything, and handshakes in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber, SigningKey,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName as Name, Error, ServerConfig,
    ServerConnection, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use super::{Certificate, TrustBundles, provider};
use crate::model::{SpiffeId, TrustDomain};

pub(crate) fn id(s: &str) -> SpiffeId {
    s.parse().unwrap()
}

pub(crate) fn domain(s: &str) -> TrustDomain {
    s.parse().unwrap()
}

/// A root or an intermediate that signs whatever it is given.
pub(crate) struct Authority {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a peer shows: a chain, leaf first, and the leaf's key.
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn root() -> Self {
        Self::root_with(|_| {})
    }

    pub(crate) fn root_with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca("test root");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), certificate: certificate.into(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca("test intermediate");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { pem: certificate.pem(), certificate: certificate.into(), issuer: Issuer::new(params, key) }
    }

    /// A sound leaf for `identity`, changed.
    pub(crate) fn leaf(&self, identity: &str, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = leaf_params(identity);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Shown { chain: vec![certificate.into()], key: key.into() }
    }

    /// A certificate for the key that this authority has already, by another authority or of other content.
    pub(crate) fn again(
        &self,
        by: &Self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = ca("test intermediate");
        change(&mut params);
        params.signed_by(self.issuer.key(), &by.issuer).unwrap().into()
    }

    /// A list that takes these certificates back, made `ago` seconds ago and in force for an hour.
    pub(crate) fn list(&self, revoked: &[&CertificateDer<'_>], ago: u64) -> Vec<u8> {
        self.list_with(revoked, ago, |_| {})
    }

    pub(crate) fn list_with(
        &self,
        revoked: &[&CertificateDer<'_>],
        ago: u64,
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> Vec<u8> {
        let made = SystemTime::now() - Duration::from_secs(ago);
        let one = |der: &&CertificateDer<'_>| RevokedCertParams {
            serial_number: SerialNumber::from_slice(super::svid::parse(der).unwrap().raw_serial()),
            revocation_time: made.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let mut params = CertificateRevocationListParams {
            this_update: made.into(),
            next_update: (made + Duration::from_secs(3600)).into(),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(one).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut params);
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }

    /// Signs any content, by ECDSA on P-256 with SHA-256.
    pub(crate) fn sign_bytes(&self, content: &[u8]) -> Vec<u8> {
        self.issuer.key().sign(content).unwrap()
    }

    /// A root of any kind of key.
    pub(crate) fn root_by(key: KeyPair) -> Self {
        let params = ca("test root");
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), certificate: certificate.into(), issuer: Issuer::new(params, key) }
    }

    /// A sound leaf of any kind of key.
    pub(crate) fn leaf_by(&self, identity: &str, key: &KeyPair) -> Shown {
        let certificate = leaf_params(identity).signed_by(key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Shown { chain: vec![certificate.into()], key: key.into() }
    }

    /// As PEM, for a key that somebody else holds.
    pub(crate) fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> String {
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    pub(crate) fn certificate(&self, identity: &str) -> Certificate {
        let Shown { chain, key } = self.leaf(identity, |_| {});
        Certificate::new(chain, key).unwrap()
    }
}

impl Shown {
    pub(crate) fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    pub(crate) fn with(mut self, above: &Authority) -> Self {
        self.chain.push(above.certificate.clone());
        self
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    pub(crate) fn resolver(&self) -> Arc<SingleCertAndKey> {
        let key = provider().key_provider.load_private_key(self.key()).unwrap();
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.chain.clone(), key)))
    }
}

pub(crate) fn leaf_params(identity: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(identity)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
    params
}

pub(crate) fn uri(s: &str) -> SanType {
    SanType::URI(s.try_into().unwrap())
}

fn ca(name: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + Duration::from_secs(86_400)).into();
    params
}

pub(crate) fn bundles(roots: &[(&str, &Authority)]) -> TrustBundles {
    let mut bundles = TrustBundles::new();
    for (name, authority) in roots {
        bundles.add(&domain(name), [authority.certificate.clone()]).unwrap();
    }
    bundles
}

/// A client that shows anything and believes anybody.
pub(crate) fn gullible_client(shown: &Shown) -> Arc<ClientConfig> {
    gullible_client_by(provider(), shown)
}

pub(crate) fn gullible_client_by(provider: Arc<CryptoProvider>, shown: &Shown) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_client_cert_resolver(shown.resolver());
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A server that shows anything and believes anybody.
pub(crate) fn gullible_server(shown: &Shown) -> Arc<ServerConfig> {
    gullible_server_by(provider(), shown)
}

pub(crate) fn gullible_server_by(provider: Arc<CryptoProvider>, shown: &Shown) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Gullible))
        .with_cert_resolver(shown.resolver());
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Both ends after a handshake in memory, each with how it ended there.
pub(crate) struct Handshake {
    pub(crate) client: ClientConnection,
    pub(crate) client_end: Result<(), Error>,
    pub(crate) server: ServerConnection,
    pub(crate) server_end: Result<(), Error>,
}

pub(crate) fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Handshake {
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_end, mut server_end) = (Ok(()), Ok(()));
    // Four flights are enough for any handshake with a retry; alerts travel in the same way.
    for _ in 0..4 {
        server_end = server_end.and(carry(&mut *client, &mut *server));
        client_end = client_end.and(carry(&mut *server, &mut *client));
    }
    Handshake { client, client_end, server, server_end }
}

fn carry<A: rustls::SideData, B: rustls::SideData>(
    from: &mut rustls::ConnectionCommon<A>,
    to: &mut rustls::ConnectionCommon<B>,
) -> Result<(), Error> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut wire = &wire[..];
    while !wire.is_empty() {
        to.read_tls(&mut wire).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// Believes any server.
pub(crate) fn gullible() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Gullible)
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Gullible {
    fn root_hint_subjects(&self) -> &[Name] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
