//! Makes roots, intermediates and nodes' papers, as files.
//!
//! Nothing limits an intermediate to its trust domain by name constraints: webpki, and with it every
//! agent and ztunnel, does not know them for URIs and refuses whatever stands below one (as RFC 5280
//! 4.2.1.10 has it). Agents judge a certificate by the roots of its trust domain only.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::attest::PublicKeyPin;
use super::kubernetes::Keys;
use super::rotation::{Folder, FolderError, Record, Secret, Site};
use super::signing::{self, CERTIFICATE, CHAIN, KEY, ROOTS, RootView};
use crate::certs::FileError;
use crate::certs::keeping::{SecretKey, lock_directory, read_file, write_whole};
use crate::certs::leaf::random_serial;
use crate::certs::owner::Owner;
use crate::model::TrustDomain;

/// The root's key, in the folder where the root was made.
pub const ROOT_KEY: &str = "root-key.pem";
/// Ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
/// A year.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why something was not made. Nothing that was there is lost.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{0}; a root's folder has {ROOTS} and {ROOT_KEY}, and `underpass ca init --root --out DIR` makes them"
    )]
    NoRoot(FileError),
    #[error("{} is there already and is never overwritten: name another folder, or move it away", .0.display())]
    Exists(PathBuf),
    #[error("{} is unusable: {why}", .path.display())]
    Unusable { path: PathBuf, why: String },
    #[error(
        "{} does not hold the root {root}, so agents would refuse what is issued under it: bring the root in with `underpass ca rotate`",
        .path.display()
    )]
    NotTrusted { path: PathBuf, root: String },
    #[error(
        "the root of {} is being replaced, and {root} is not the one that is signed under at this step: name another folder, and hand it to `underpass ca rotate next --intermediate`",
        .path.display()
    )]
    Rotating { path: PathBuf, root: String },
    #[error(
        "{} is for the trust domain {stated}, and --trust-domain says {asked}: renew it for its own, or name the place of the other domain's authority",
        .path.display()
    )]
    OtherDomain { path: PathBuf, stated: TrustDomain, asked: TrustDomain },
    #[error("{} {why}, so nobody says which trust domain is meant: name it by --trust-domain", .path.display())]
    NoDomain { path: PathBuf, why: String },
    #[error("a node's name is 1 to 253 of letters, digits, '.', '-' and '_', not {0:?}")]
    NodeName(String),
    #[error(transparent)]
    Place(#[from] FolderError),
    #[error("making a certificate failed: {0}")]
    Make(#[from] rcgen::Error),
}

impl HierarchyError {
    fn unusable(path: &Path, why: impl ToString) -> Self {
        Self::Unusable { path: path.to_owned(), why: why.to_string() }
    }
}

/// Makes a root's certificate and key in `folder`; the trust domain is for a reader only.
pub fn make_root(
    folder: &Path,
    domain: Option<&TrustDomain>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<RootView, HierarchyError> {
    let _lock = lock_directory(folder)?;
    for name in [ROOT_KEY, ROOTS] {
        must_be_absent(&folder.join(name))?;
    }
    let key = SecretKey::generate()?;
    // Leaves, and the intermediates that sign them, are below it.
    let mut params = authority("root", 1, now, now + lifetime);
    if let Some(domain) = domain {
        params.subject_alt_names = vec![uri(domain)?];
    }
    let certificate = params.self_signed(&key)?;
    write_whole(&folder.join(ROOT_KEY), key.pem().as_bytes(), 0o600)?;
    write_whole(&folder.join(ROOTS), certificate.pem().as_bytes(), 0o644)?;
    let path = folder.join(ROOTS);
    signing::view(&certificate.into()).map_err(|why| HierarchyError::unusable(&path, why))
}

/// A root with its key at hand, to sign intermediates with.
pub struct Root {
    pub(super) certificate: CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, SecretKey>,
    view: RootView,
}

impl Root {
    /// From the folder where [`make_root`] made it.
    pub fn open(folder: &Path, now: SystemTime) -> Result<Self, HierarchyError> {
        let (path, key_path) = (folder.join(ROOTS), folder.join(ROOT_KEY));
        let unusable = |why: String| HierarchyError::unusable(&path, why);
        let roots =
            signing::certificates(&read_file(&path).map_err(HierarchyError::NoRoot)?).map_err(unusable)?;
        let key = SecretKey::from_pem(&read_file(&key_path).map_err(HierarchyError::NoRoot)?)
            .map_err(|why| HierarchyError::unusable(&key_path, why))?;
        let spki = key.subject_public_key_info();
        // There are several where a rotation is under way.
        let of_key =
            |der: &&CertificateDer<'_>| signing::parse(der).is_ok_and(|p| p.public_key().raw == spki);
        let Some(certificate) = roots.iter().rfind(of_key).cloned() else {
            return Err(HierarchyError::unusable(
                &key_path,
                format!("it is not the key of a root in {}", path.display()),
            ));
        };
        signing::check_root(&certificate, now).map_err(unusable)?;
        let view = signing::view(&certificate).map_err(unusable)?;
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer, view })
    }
}

/// An issuing certificate with its key, not yet in files.
pub struct Intermediate {
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
    pub(super) chain: String,
}

impl Intermediate {
    /// Signs one. It ends with its root at the latest.
    pub fn make(
        root: &Root,
        domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, HierarchyError> {
        let key = SecretKey::generate()?;
        let mut params = authority("intermediate", 0, now, (now + lifetime).min(root.view.not_after));
        params.subject_alt_names = vec![uri(domain)?];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &root.issuer)?.pem();
        Ok(Self {
            chain: format!("{certificate}{}", signing::pem(&root.certificate)),
            certificate,
            key: key.pem(),
        })
    }

    fn view(&self, root: Root, path: &Path, kept: Vec<PathBuf>) -> Result<Made, HierarchyError> {
        let unusable = |why: String| HierarchyError::unusable(path, why);
        let certificate = signing::certificates(self.certificate.as_bytes()).map_err(unusable)?.remove(0);
        Ok(Made { issuing: signing::view(&certificate).map_err(unusable)?, root: root.view, kept })
    }

    /// As the files of an authority, whose only root is the one that signed it.
    pub fn keys(&self) -> Keys {
        let root = self.chain.strip_prefix(&self.certificate).unwrap_or_default();
        let files =
            [(CERTIFICATE, &*self.certificate), (KEY, &self.key), (CHAIN, &self.chain), (ROOTS, root)];
        files.map(|(name, text)| (name.to_owned(), Zeroizing::new(text.as_bytes().to_vec()))).into()
    }
}

/// What an authority's folder holds after it was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub root: RootView,
    /// The issuing certificate; not a root.
    pub issuing: RootView,
    /// Files of before that are kept under other names.
    pub kept: Vec<PathBuf>,
}

/// Makes an intermediate under the root in `root` for the authority in `folder`. Of files that are there
/// already, the roots stay, and the others are kept with `.old` at their names' ends.
pub fn make_intermediate(
    root: &Path,
    folder: &Path,
    domain: &TrustDomain,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Made, HierarchyError> {
    let root = Root::open(root, now)?;
    let _lock = lock_directory(folder)?;
    let rotation = Folder::record_in(folder).map_err(|e| HierarchyError::unusable(folder, e))?;
    may_sign(&root, rotation.as_ref(), folder)?;
    Owner::check(folder, &[KEY, CHAIN, CERTIFICATE, ROOTS])?;
    let own = folder.join(CERTIFICATE);
    domain_of(read_file(&own).ok().as_ref().map(|pem| &pem[..]), &own, Some(domain))?;
    let roots = folder.join(ROOTS);
    match read_file(&roots) {
        Ok(held) => holds(&held, &root, &roots)?,
        Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => {
            let pem = signing::pem(&root.certificate);
            Owner::of(&roots)?.write_whole(&roots, pem.as_bytes(), 0o644)?;
        }
        Err(e) => return Err(e.into()),
    }
    let made = Intermediate::make(&root, domain, lifetime, now)?;
    let files = [
        (KEY, made.key.as_bytes(), 0o600),
        (CHAIN, made.chain.as_bytes(), 0o644),
        (CERTIFICATE, made.certificate.as_bytes(), 0o644),
    ];
    let mut kept = Vec::new();
    for (name, _, mode) in files {
        match read_file(&folder.join(name)) {
            Ok(old) => {
                let to = folder.join(format!("{name}.old"));
                Owner::of(&folder.join(name))?.write_whole(&to, &old, mode)?;
                kept.push(to);
            }
            Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    for (name, content, mode) in files {
        let path = folder.join(name);
        Owner::of(&path)?.write_whole(&path, content, mode)?;
    }
    made.view(root, &folder.join(CERTIFICATE), kept)
}

/// The same for an authority in a secret, by one change of it. Of the secret's other keys none is touched:
/// without its revision agents would refuse the roots that they are told. It is for the trust domain of the one
/// that it replaces, which `domain` may only repeat; where that one says none, for `domain`.
pub fn make_intermediate_in(
    root: &Path,
    secret: &Secret,
    domain: Option<&TrustDomain>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Made, HierarchyError> {
    let (root, place) = (Root::open(root, now)?, secret.shown());
    may_sign(&root, secret.record()?.as_ref(), &place)?;
    let (held, roots) = (secret.keys()?, place.join(ROOTS));
    let own = held.get(CERTIFICATE).map(|pem| &pem[..]);
    let domain = domain_of(own, &place.join(CERTIFICATE), domain)?;
    let held = held.get(ROOTS).ok_or_else(|| HierarchyError::unusable(&roots, "it is not there"))?;
    holds(held, &root, &roots)?;
    let made = Intermediate::make(&root, &domain, lifetime, now)?;
    secret.sign_with(&made.keys())?;
    made.view(root, &place.join(CERTIFICATE), Vec::new())
}

/// What the issuing certificate says, and the operator.
fn domain_of(
    held: Option<&[u8]>,
    path: &Path,
    asked: Option<&TrustDomain>,
) -> Result<TrustDomain, HierarchyError> {
    let stated = match held.map(stated_domain) {
        Some(Ok(Some(stated))) => Ok(stated),
        Some(Ok(None)) => Err("names no trust domain".to_owned()),
        Some(Err(why)) => Err(format!("is unusable ({why})")),
        None => Err("is not there".to_owned()),
    };
    match (stated, asked) {
        (Ok(stated), Some(asked)) if stated != *asked => {
            Err(HierarchyError::OtherDomain { path: path.to_owned(), stated, asked: asked.clone() })
        }
        (Ok(stated), _) => Ok(stated),
        (Err(_), Some(asked)) => Ok(asked.clone()),
        (Err(why), None) => Err(HierarchyError::NoDomain { path: path.to_owned(), why }),
    }
}

fn may_sign(root: &Root, rotation: Option<&Record>, place: &Path) -> Result<(), HierarchyError> {
    if rotation.is_some_and(|rotation| !rotation.signs_under(&root.view.sha256)) {
        return Err(HierarchyError::Rotating { path: place.to_owned(), root: root.view.sha256.clone() });
    }
    Ok(())
}

fn holds(held: &[u8], root: &Root, path: &Path) -> Result<(), HierarchyError> {
    let held = signing::certificates(held).map_err(|why| HierarchyError::unusable(path, why))?;
    if !held.contains(&root.certificate) {
        return Err(HierarchyError::NotTrusted { path: path.to_owned(), root: root.view.sha256.clone() });
    }
    Ok(())
}

/// Papers of a node that a controller knows by its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePapers {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// What the controller's configuration has.
    pub pin: String,
}

/// Makes `node.key` and `node.pem` in `folder`. The certificate is signed by its own key and never ends:
/// it is known by the key, which no rotation of a root touches.
pub fn make_node(name: &str, folder: &Path, now: SystemTime) -> Result<NodePapers, HierarchyError> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !(1..=253).contains(&name.len()) || !name.bytes().all(sound) {
        return Err(HierarchyError::NodeName(crate::model::spiffe::shorten(name)));
    }
    let _lock = lock_directory(folder)?;
    let (key_path, path) = (folder.join("node.key"), folder.join("node.pem"));
    must_be_absent(&key_path)?;
    must_be_absent(&path)?;
    let key = SecretKey::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(random_serial());
    params.not_before = (now - BACKDATE).into();
    // RFC 5280 4.1.2.5: the last second of 9999 stands for no end.
    params.not_after = (SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)).into();
    let certificate = params.self_signed(&key)?;
    write_whole(&key_path, key.pem().as_bytes(), 0o600)?;
    write_whole(&path, certificate.pem().as_bytes(), 0o644)?;
    Ok(NodePapers {
        pin: PublicKeyPin::of(&key.subject_public_key_info()).to_string(),
        certificate: path,
        key: key_path,
    })
}

/// For peers and authorities whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(120);

fn authority(what: &str, below: u8, now: SystemTime, not_after: SystemTime) -> CertificateParams {
    let serial = random_serial();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Underpass");
    // The number tells those apart that were made for the same trust domain.
    let number = signing::hex(&serial.to_bytes()[..4]);
    params.distinguished_name.push(DnType::CommonName, format!("Underpass {what} {number}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial);
    params.not_before = (now - BACKDATE).into();
    params.not_after = not_after.into();
    params
}

/// The trust domain that an issuing certificate in PEM was made for. Those of others may not say.
pub fn stated_domain(pem: &[u8]) -> Result<Option<TrustDomain>, String> {
    let certificates = signing::certificates(pem)?;
    signing::stated_domain(&signing::parse(&certificates[0])?)
}

fn uri(domain: &TrustDomain) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(format!("spiffe://{domain}").try_into()?))
}

fn must_be_absent(path: &Path) -> Result<(), HierarchyError> {
    match path.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(HierarchyError::Exists(path.to_owned())),
        Err(source) => Err(FileError { call: "stat", path: path.to_owned(), source }.into()),
    }
}
