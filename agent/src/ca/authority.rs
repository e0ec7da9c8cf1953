//! Signs what was granted, and follows its files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::csr::CheckedRequest;
use super::hierarchy::ROOT_KEY;
use super::kubernetes::{Keys, SecretName};
use super::rotation::REVISION;
use super::signing::{self, AuthorityError, CERTIFICATE, CHAIN, Files, KEY, ROOTS, Signing};
use crate::certs::keeping::{SecretKey, warn_if_readable};
use crate::certs::{Clock, leaf};
use crate::model::spiffe::SpiffeError;
use crate::model::{SpiffeId, TrustDomain};
use crate::sys::watch::Watch;

/// Where an authority's files are; `signing.rs` says which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Folder(PathBuf),
    /// The files are its keys. It is for others to read and follow (`kubernetes/secret.rs`).
    Secret(SecretName),
}

/// What an authority signs with and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityConfig {
    pub source: Source,
    /// The only trust domain that is issued for.
    pub trust_domain: TrustDomain,
    /// How long a certificate is valid when the request does not say.
    pub lifetime: Duration,
    /// The longest that a request may ask for; it gets no more.
    pub max_lifetime: Duration,
    /// How far validity begins in the past, for peers whose clocks are behind.
    pub backdate: Duration,
    /// How often the files are read even if no change was noticed.
    pub poll_interval: Duration,
}

impl AuthorityConfig {
    /// 24 hours and no longer: what a stolen node holds works until it expires. Backdated by two minutes.
    pub fn new(folder: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        Self {
            source: Source::Folder(folder.into()),
            trust_domain,
            lifetime: Duration::from_secs(24 * 3600),
            max_lifetime: Duration::from_secs(24 * 3600),
            backdate: Duration::from_secs(120),
            poll_interval: Duration::from_secs(30),
        }
    }
}

/// Signs with what its files hold. Clones share it.
#[derive(Clone, Debug)]
pub struct Authority {
    config: Arc<AuthorityConfig>,
    clock: Clock,
    now: Arc<watch::Sender<Arc<Signing>>>,
    /// Why the files were not taken in when they were last looked at.
    trouble: Arc<Mutex<Option<String>>>,
}

/// A certificate with all that belongs to it, as Istio's service answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedChain {
    /// The leaf, each intermediate, and last all roots together.
    pub pem: Vec<String>,
    /// Lower-case hexadecimal.
    pub serial: String,
    pub not_after: SystemTime,
}

/// A server's own certificate: no workload's, as it names hosts.
pub struct ServerPapers {
    /// Leaf first, roots left out.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Zeroizing<PrivateKeyDer<'static>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("this authority issues for the trust domain {domain}, not for {identity}")]
    TrustDomain { identity: SpiffeId, domain: TrustDomain },
    #[error("nobody but service accounts is issued a certificate: {0}")]
    NoAccount(#[from] SpiffeError),
    #[error("the request was checked for {checked}, not for {identity}")]
    OtherIdentity { checked: SpiffeId, identity: SpiffeId },
    #[error(
        "the authority's chain ended {0} s ago: make a new one with `underpass ca intermediate`, or replace the root with `underpass ca rotate`"
    )]
    Expired(u64),
    #[error("the authority's chain is valid in {0} s only: see whether the clock of this machine is right")]
    NotYetValid(u64),
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
}

impl Authority {
    /// Reads its folder's files. Blocks on them, for a moment.
    pub fn open(config: &AuthorityConfig, clock: Clock) -> Result<Self, AuthorityError> {
        let authority = Self::of(config, &config.source.read()?, clock)?;
        if let Source::Folder(folder) = &config.source {
            warn_if_readable(&folder.join(KEY));
            if folder.join(ROOT_KEY).exists() {
                warn_of_root_key(folder);
            }
        }
        Ok(authority)
    }

    /// The same of a secret that was read.
    pub fn open_keys(config: &AuthorityConfig, keys: &Keys, clock: Clock) -> Result<Self, AuthorityError> {
        if keys.contains_key(ROOT_KEY) {
            warn_of_root_key(&config.source.shown());
        }
        Self::of(config, &config.source.files(keys)?, clock)
    }

    fn of(config: &AuthorityConfig, files: &Files, clock: Clock) -> Result<Self, AuthorityError> {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(3650 * 24 * 3600));
        if config.lifetime < least || config.lifetime > config.max_lifetime || config.max_lifetime > most {
            let why =
                format!("{:?} and {:?}, and ten years are the most", config.lifetime, config.max_lifetime);
            return Err(AuthorityError::Times(why));
        }
        let signing = Signing::of(&config.source.shown(), files, &config.trust_domain, clock.now())?;
        Ok(Self {
            config: Arc::new(config.clone()),
            clock,
            now: Arc::new(watch::Sender::new(Arc::new(signing))),
            trouble: Arc::default(),
        })
    }

    pub fn config(&self) -> &AuthorityConfig {
        &self.config
    }

    /// What is signed with and to be trusted, now and later.
    pub fn state(&self) -> watch::Receiver<Arc<Signing>> {
        self.now.subscribe()
    }

    /// Whether it could sign now.
    ///
    /// # Errors
    /// The chain has ended, or has not begun.
    pub fn can_sign(&self) -> Result<(), IssueError> {
        self.validity(&self.signing(), None).map(drop)
    }

    /// Signs for `identity`, for the `lifetime` that was asked (none, or zero: the configured one), at most
    /// as long as configured, and never beyond the end of whoever vouches for it.
    pub fn issue(
        &self,
        request: &CheckedRequest,
        identity: &SpiffeId,
        lifetime: Option<Duration>,
    ) -> Result<IssuedChain, IssueError> {
        if request.identity != *identity {
            let checked = request.identity.clone();
            return Err(IssueError::OtherIdentity { checked, identity: identity.clone() });
        }
        identity.check_account()?;
        if identity.trust_domain() != &self.config.trust_domain {
            let domain = self.config.trust_domain.clone();
            return Err(IssueError::TrustDomain { identity: identity.clone(), domain });
        }
        let signing = self.signing();
        let (not_before, not_after) = self.validity(&signing, lifetime)?;
        let mut params = leaf::params(identity, not_before, not_after)?;
        if request.rsa {
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        let serial = params.serial_number.as_ref().map(|serial| signing::hex(serial.as_ref()));
        let leaf = params.signed_by(&request.key, &signing.issuer)?;
        let above = signing.chain.iter().map(signing::pem);
        let pem = std::iter::once(leaf.pem()).chain(above).chain([signing.roots_pem.clone()]).collect();
        Ok(IssuedChain { pem, serial: serial.unwrap_or_default(), not_after })
    }

    /// A fresh key and a certificate for a server with these host names or addresses.
    pub fn server(&self, names: &[String], lifetime: Option<Duration>) -> Result<ServerPapers, IssueError> {
        let signing = self.signing();
        let (not_before, not_after) = self.validity(&signing, lifetime)?;
        let names = names.iter().map(|name| match name.parse() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
        });
        let params = leaf::of(names.collect::<Result<_, rcgen::Error>>()?, not_before, not_after);
        let key = SecretKey::generate()?;
        let leaf = params.signed_by(&key, &signing.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
        let chain = std::iter::once(leaf.into()).chain(signing.chain.iter().cloned()).collect();
        Ok(ServerPapers { chain, key: Zeroizing::new(key), not_before, not_after })
    }

    /// Takes the files in when they are others and fit together; says whether they were.
    ///
    /// # Errors
    /// What does not fit. The old state stays.
    pub fn reload(&self) -> Result<bool, AuthorityError> {
        self.take(&self.config.source.read()?)
    }

    /// The same with a secret's keys.
    pub fn take_keys(&self, keys: &Keys) -> Result<bool, AuthorityError> {
        self.take(&self.config.source.files(keys)?)
    }

    /// Until `stop`: takes the files in whenever they are replaced, and warns once of each state of them
    /// that does not fit together.
    pub async fn follow_files(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let Source::Folder(folder) = &self.config.source else { return std::future::pending().await };
        let mut watch = Watch::of_folder(folder);
        let mut warned = None;
        loop {
            // Before the files are read, or a change in between would go unnoticed. Without a watch, there
            // is still the polling.
            let _ = watch.ensure();
            let authority = self.clone();
            let taken = tokio::task::spawn_blocking(move || authority.reload()).await;
            match taken {
                Ok(taken) => self.told(taken.map_err(|e| e.to_string()), &mut warned),
                Err(panicked) => tracing::error!("reading the authority's files failed: {panicked}"),
            }
            tokio::select! {
                () = watch.changed() => watch.settle(QUIET).await,
                () = tokio::time::sleep(self.config.poll_interval) => {}
            }
        }
    }

    /// Why the files as they are now were not taken in, if they were not.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what came of a look at the files, and each trouble once.
    pub(super) fn told(&self, taken: Result<bool, String>, warned: &mut Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = taken.as_ref().err().cloned();
        match taken {
            Ok(taken) => {
                *warned = None;
                if taken {
                    let signing = self.signing();
                    tracing::info!(
                        authority = signing.authority,
                        root = signing.root,
                        roots = signing.roots.len(),
                        "the authority's files were replaced"
                    );
                }
            }
            Err(error) => {
                if warned.as_ref() != Some(&error) {
                    tracing::warn!("the authority goes on with the files it had: {error}");
                    *warned = Some(error);
                }
            }
        }
    }

    fn take(&self, files: &Files) -> Result<bool, AuthorityError> {
        if self.now.borrow().digest == files.digest {
            return Ok(false);
        }
        let config = &self.config;
        let signing = Signing::of(&config.source.shown(), files, &config.trust_domain, self.clock.now())?;
        if let Source::Folder(folder) = &config.source {
            warn_if_readable(&folder.join(KEY));
        }
        let (before, now) = (self.now.borrow().revision, signing.revision);
        if now < before {
            tracing::warn!(
                before,
                now,
                "the authority's revision went down: agents that hold the roots of the higher one refuse what they \
                 are told now. Write a higher number into {REVISION} (docs/identity.md, \"A folder from a backup\")"
            );
        }
        self.now.send_replace(Arc::new(signing));
        Ok(true)
    }

    fn signing(&self) -> Arc<Signing> {
        self.now.borrow().clone()
    }

    fn validity(
        &self,
        signing: &Signing,
        lifetime: Option<Duration>,
    ) -> Result<(SystemTime, SystemTime), IssueError> {
        let now = self.clock.now();
        if let Ok(past) = now.duration_since(signing.not_after) {
            return Err(IssueError::Expired(past.as_secs()));
        }
        if let Ok(left) = signing.not_before.duration_since(now)
            && !left.is_zero()
        {
            return Err(IssueError::NotYetValid(left.as_secs()));
        }
        let wanted = lifetime.filter(|l| !l.is_zero()).unwrap_or(self.config.lifetime);
        let wanted = wanted.min(self.config.max_lifetime);
        // Renewal is due at half of the whole: with more, a short certificate would be due when it is made.
        let start = now - self.config.backdate.min(wanted / 4);
        let end = now + wanted;
        Ok((start.max(signing.not_before), end.min(signing.not_after)))
    }
}

impl Source {
    /// A folder's files. A secret is read by who follows it.
    fn read(&self) -> Result<Files, AuthorityError> {
        match self {
            Self::Folder(folder) => Ok(Files::read(folder)?),
            Self::Secret(_) => {
                let why = "it is not read as files".to_owned();
                Err(AuthorityError::Unusable { path: self.shown(), why })
            }
        }
    }

    fn files(&self, keys: &Keys) -> Result<Files, AuthorityError> {
        Files::of(keys).map_err(|missing| AuthorityError::Unusable {
            path: self.shown(),
            why: format!(
                "it has no key {missing}: an authority's secret has {CERTIFICATE}, {KEY}, {CHAIN} and {ROOTS}, the files of `underpass ca intermediate`"
            ),
        })
    }

    /// What errors name before a file's name.
    fn shown(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.clone(),
            Self::Secret(secret) => format!("secret {secret}").into(),
        }
    }
}

fn warn_of_root_key(place: &Path) {
    tracing::warn!(place = %place.display(),
        "the root's own key lies beside the authority's: move {ROOT_KEY} offline, or replace the root \
         with `underpass ca rotate`");
}

/// How long the folder is quiet before it is read: several files are replaced one after the other.
const QUIET: Duration = Duration::from_millis(200);
