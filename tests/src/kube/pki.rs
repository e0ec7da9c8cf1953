//! The cluster's authority, what it signs for servers, nodes and clients, and the key of service accounts.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::places::{API_SERVICE, CONTROL_IP, node, node_ip};

/// A folder of certificates and keys.
#[derive(Clone, Debug)]
pub struct Pki(PathBuf);

impl Pki {
    /// Of a cluster that stands.
    pub fn at(folder: &Path) -> Self {
        Self(folder.join("pki"))
    }

    /// All that a cluster of so many nodes needs.
    pub fn make(folder: &Path, nodes: u8) -> Result<Self> {
        let this = Self::at(folder);
        fs::create_dir_all(&this.0).with_context(|| format!("making {}", this.0.display()))?;
        let ca = this.authority()?;
        for subject in subjects(nodes) {
            this.sign(&ca, &subject).with_context(|| format!("a certificate for {}", subject.file))?;
        }
        let accounts = KeyPair::generate().context("making a key for service accounts")?;
        this.write("sa.key", &accounts.serialize_pem())?;
        this.write("sa.pub", &accounts.public_key_pem())?;
        Ok(this)
    }

    /// `ca.crt`, `admin.key` and so on.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn authority(&self) -> Result<Issuer<'static, KeyPair>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("underpass test cluster", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("making the authority's key")?;
        let certificate = params.self_signed(&key).context("signing the authority")?;
        self.write("ca.crt", &certificate.pem())?;
        self.write("ca.key", &key.serialize_pem())?;
        Ok(Issuer::new(params, key))
    }

    fn sign(&self, ca: &Issuer<'static, KeyPair>, subject: &Subject) -> Result<()> {
        let key = KeyPair::generate().context("making a key")?;
        let certificate = subject.params()?.signed_by(&key, ca).context("signing")?;
        self.write(&format!("{}.crt", subject.file), &certificate.pem())?;
        self.write(&format!("{}.key", subject.file), &key.serialize_pem())
    }

    fn write(&self, name: &str, pem: &str) -> Result<()> {
        use std::io::Write;

        let path = self.file(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(pem.as_bytes()));
        written.with_context(|| format!("writing {}", path.display()))
    }
}

/// Kubernetes takes the user from the common name and the group from the organisation.
struct Subject {
    file: String,
    user: String,
    group: Option<&'static str>,
    hosts: Vec<SanType>,
}

fn subjects(nodes: u8) -> Vec<Subject> {
    let client = |file: &str, user: &str, group| Subject {
        file: file.to_owned(),
        user: user.to_owned(),
        group,
        hosts: vec![],
    };
    let mut all = vec![
        client("admin", "kubernetes-admin", Some("system:masters")),
        client("kube-controller-manager", "system:kube-controller-manager", None),
        client("kube-scheduler", "system:kube-scheduler", None),
        client("kube-proxy", "system:kube-proxy", None),
        Subject {
            hosts: [CONTROL_IP, Ipv4Addr::LOCALHOST, API_SERVICE]
                .map(|ip| SanType::IpAddress(IpAddr::V4(ip)))
                .into(),
            ..client("apiserver", "kube-apiserver", None)
        },
    ];
    all.extend((1..=nodes).map(|index| Subject {
        hosts: vec![SanType::IpAddress(IpAddr::V4(node_ip(index)))],
        ..client(&node(index), &format!("system:node:{}", node(index)), Some("system:nodes"))
    }));
    all
}

impl Subject {
    fn params(&self) -> Result<CertificateParams> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&self.user, self.group);
        params.subject_alt_names = self.hosts.clone();
        if self.file == "apiserver" {
            for name in ["kubernetes", "kubernetes.default", "kubernetes.default.svc"] {
                params.subject_alt_names.push(SanType::DnsName(name.try_into().context("a DNS name")?));
            }
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params)
    }
}

fn named(common: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name
}
