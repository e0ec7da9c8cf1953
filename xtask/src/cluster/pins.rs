//! What a cluster is made of, and whether what was built is still what `tests/cluster` asks for.
//!
//! Each folder there is a Go module of nothing but requirements. To move to another version, change it in
//! `go.mod` (with Kubernetes, also that of its staging modules) and run `go mod tidy` there.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::checkout;

/// Where the programs are, under `target/`.
pub(crate) const BIN: &str = "cluster/bin";

/// A folder of `tests/cluster`.
pub(super) struct Module {
    pub(super) folder: &'static str,
    /// By the name of the program: the package, and what it takes from nothing on two cores.
    pub(super) programs: &'static [(&'static str, &'static str, &'static str)],
}

pub(super) static MODULES: [Module; 3] = [
    Module {
        folder: "kubernetes",
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", "8 minutes"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", "1 minute"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", "1 minute"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", "1 minute"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet", "2 minutes"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl", "1 minute"),
        ],
    },
    Module {
        folder: "node",
        programs: &[
            ("etcd", "go.etcd.io/etcd/server/v3", "1 minute"),
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd", "2 minutes"),
            (
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                "seconds",
            ),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr", "seconds"),
        ],
    },
    Module { folder: "dns", programs: &[("coredns", "github.com/coredns/coredns", "5 minutes")] },
];

/// The modules that have to be built.
pub(super) fn stale() -> Result<Vec<&'static Module>> {
    let mut stale = Vec::new();
    for module in &MODULES {
        let built = module.programs.iter().all(|(name, ..)| program(name).exists());
        let noted = fs::read_to_string(module.stamp()).unwrap_or_default();
        if !built || noted != module.print()? {
            stale.push(module);
        }
    }
    Ok(stale)
}

/// Where that program is, or will be.
pub(super) fn program(name: &str) -> PathBuf {
    checkout::target(BIN).join(name)
}

impl Module {
    pub(super) fn path(&self) -> PathBuf {
        checkout::root().join("tests/cluster").join(self.folder)
    }

    /// Everything is built: later commands need not ask Go.
    pub(super) fn note(&self) -> Result<()> {
        checkout::write_if_changed(&self.stamp(), self.print()?.as_bytes()).map(drop)
    }

    /// For the linker: Kubernetes takes its version from there, and without it a node says that it is of
    /// no version.
    pub(super) fn linker_flags(&self) -> Result<String> {
        let mut flags = "-s -w".to_owned();
        if let Some(version) = version_of(&self.go_mod()?, "k8s.io/kubernetes") {
            let minor = version.split('.').nth(1).unwrap_or_default();
            for (name, value) in [("gitVersion", version.as_str()), ("gitMajor", "1"), ("gitMinor", minor)] {
                flags += &format!(" -X k8s.io/component-base/version.{name}={value}");
            }
        }
        Ok(flags)
    }

    pub(super) fn go_mod(&self) -> Result<String> {
        let path = self.path().join("go.mod");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn print(&self) -> Result<String> {
        checkout::fingerprint(&[self.path()], &self.linker_flags()?)
    }

    fn stamp(&self) -> PathBuf {
        checkout::target("cluster").join(self.folder).with_extension("stamp")
    }
}

/// The version of a module that a `go.mod` requires.
pub(super) fn version_of(go_mod: &str, module: &str) -> Option<String> {
    let mut lines = go_mod.lines().map(|line| line.trim_start().trim_start_matches("require "));
    lines.find_map(|line| {
        let (name, version) = line.split_once(' ')?;
        let version = version.split_whitespace().next()?;
        (name == module && version.starts_with('v')).then(|| version.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_a_requirement_only() {
        let text = "module a\n\nrequire k8s.io/kubernetes v1.2.3\n\nrequire (\n\tb v0.1.0 // indirect\n)\n\
                    replace (\n\tc => c v0.9.0\n)\n";
        let table =
            [("k8s.io/kubernetes", Some("v1.2.3")), ("b", Some("v0.1.0")), ("c", None), ("k8s.io", None)];
        for (module, version) in table {
            assert_eq!(version_of(text, module).as_deref(), version, "{module}");
        }
    }

    #[test]
    fn every_program_is_a_tool_of_its_module() {
        for module in &MODULES {
            let go_mod = module.go_mod().unwrap();
            for (name, package, _) in module.programs {
                let listed = go_mod.lines().any(|line| line.trim().trim_start_matches("tool ") == *package);
                assert!(listed, "{name}: {package} is no tool in {}", module.path().display());
            }
        }
    }

    /// A forgotten one would be a mixture of two releases, and still build.
    #[test]
    fn kubernetes_and_its_staging_modules_are_of_one_release() {
        let go_mod = MODULES[0].go_mod().unwrap();
        let release = version_of(&go_mod, "k8s.io/kubernetes").unwrap();
        let staging = release.replacen("v1.", "v0.", 1);
        let replaced: Vec<_> = go_mod.lines().filter_map(|line| line.trim().split_once(" => ")).collect();
        assert!(replaced.len() > 20, "{} staging modules", replaced.len());
        for (module, by) in replaced {
            assert_eq!(by, format!("{module} {staging}"));
        }
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let flags = MODULES[0].linker_flags().unwrap();
        let release = version_of(&MODULES[0].go_mod().unwrap(), "k8s.io/kubernetes").unwrap();
        assert!(flags.contains(&format!("gitVersion={release} ")), "{flags}");
        assert_eq!(MODULES[2].linker_flags().unwrap(), "-s -w");
    }
}
