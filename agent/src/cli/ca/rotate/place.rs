//! Where the authority is whose root is replaced: a folder or a secret.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::ca::Source;
use crate::ca::kubernetes::SecretName;
use crate::ca::rotation::{Folder, Secret, Site};

#[derive(Debug, Args)]
pub(super) struct Place {
    /// The authority's folder, as the controllers read it
    #[arg(long, value_name = "FOLDER", required_unless_present = "secret", conflicts_with = "secret")]
    ca: Option<PathBuf>,
    /// The authority's secret, as the controllers read it; what is kept of a rotation is kept in it
    #[arg(long, value_name = "NAMESPACE/NAME")]
    secret: Option<SecretName>,
    /// The way to the secret's API server [default: the pod's own service account, or $KUBECONFIG, or
    /// ~/.kube/config]
    #[arg(long, value_name = "FILE", requires = "secret", conflicts_with = "ca")]
    kubeconfig: Option<PathBuf>,
}

impl Place {
    /// To change it.
    pub(super) fn open(&self) -> anyhow::Result<Box<dyn Site>> {
        match self.source()? {
            Source::Folder(folder) => Ok(Box::new(Folder::open(&folder)?)),
            Source::Secret(secret) => self.read(&secret),
        }
    }

    /// Also while somebody changes it: `run` may hold a folder for days.
    pub(super) fn look(&self) -> anyhow::Result<Box<dyn Site>> {
        match self.source()? {
            Source::Folder(folder) => Ok(Box::new(Folder::look(&folder))),
            Source::Secret(secret) => self.read(&secret),
        }
    }

    pub(super) fn source(&self) -> anyhow::Result<Source> {
        let secret = self.secret.clone().map(Source::Secret);
        secret.or(self.ca.clone().map(Source::Folder)).context("name the authority by --ca or --secret")
    }

    fn read(&self, secret: &SecretName) -> anyhow::Result<Box<dyn Site>> {
        let kubeconfig = self.kubeconfig.clone().or_else(usual_kubeconfig);
        Ok(Box::new(Secret::open(secret, kubeconfig.as_deref())?))
    }
}

/// As kubectl finds it.
pub(in crate::cli::ca) fn usual_kubeconfig() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("KUBECONFIG").filter(|named| !named.is_empty()) {
        return std::env::split_paths(&named).find(|path| path.exists());
    }
    let in_a_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let own = Path::new(&std::env::var_os("HOME")?).join(".kube/config");
    (!in_a_pod && own.exists()).then_some(own)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.ca, &self.secret) {
            (Some(folder), _) => write!(f, "{}", folder.display()),
            (None, Some(secret)) => write!(f, "the secret {secret}"),
            (None, None) => Ok(()),
        }
    }
}
