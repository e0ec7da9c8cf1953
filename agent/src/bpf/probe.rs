//! What the kernel programs need of this node, each piece tried and not guessed from a version.

use std::fmt;
use std::path::Path;

use aya::maps::MapType;
use aya::sys::is_map_supported;
use aya::util::KernelVersion;
use serde::Serialize;

use super::config::Config;
use super::features::{self, Attempt};
use super::mount::{self, Cgroup};
use crate::sys::diag::Diag;

/// The oldest kernel that was considered: 5.15 has `SO_NETNS_COOKIE` (5.14) and
/// `bpf_get_netns_cookie` in sock_ops.
const FLOOR: KernelVersion = KernelVersion::new(5, 15, 0);

/// One thing that is needed, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Requirement {
    pub name: String,
    pub met: bool,
    /// Without it the agent does not start.
    pub fatal: bool,
    /// What was found.
    pub found: String,
    /// What is lost when it is missing.
    pub cost: String,
}

/// Everything that was probed; printed by `underpass check`, one line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub requirements: Vec<Requirement>,
}

impl Report {
    /// Probes this node. Loads and forgets some tens of tiny programs; takes milliseconds.
    pub fn probe(config: &Config) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mut report = Self { requirements: vec![privileges(&status), kernel_version(), types()] };
        if report.missing().any(|r| r.name == PRIVILEGES) {
            // The kernel refuses everything then, and none of it would be its fault.
            return report;
        }
        report.requirements.push(bpffs(&config.pin_root));
        report.requirements.push(cgroup(config.cgroup.as_deref()));
        report.requirements.extend(features::PROGRAMS.iter().map(program));
        report.requirements.extend(MAPS.iter().map(map));
        report.requirements.extend(features::OPTIONAL.iter().map(optional));
        report.requirements.push(sockets_end());
        report
    }

    /// Whether the agent can start.
    pub fn is_usable(&self) -> bool {
        !self.missing().any(|r| r.fatal)
    }

    pub fn missing(&self) -> impl Iterator<Item = &Requirement> {
        self.requirements.iter().filter(|r| !r.met)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for r in &self.requirements {
            writeln!(f, "{r}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.met, self.fatal) {
            (true, _) => "ok     ",
            (false, true) => "MISSING",
            (false, false) => "absent ",
        };
        write!(f, "{verdict} {}: {}", self.name, self.found)?;
        if !self.met {
            write!(f, " ({})", self.cost)?;
        }
        Ok(())
    }
}

const PRIVILEGES: &str = "privileges";

/// By `status`, which is `/proc/self/status`.
fn privileges(status: &str) -> Requirement {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or_default();
    // capability.h
    let needed = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];
    let has = |bit: u32| effective >> bit & 1 == 1;
    // What CAP_BPF allows, CAP_SYS_ADMIN does too.
    let lacks: Vec<_> = needed
        .iter()
        .filter(|(_, bit)| !has(*bit) && (*bit != 39 || !has(21)))
        .map(|(name, _)| *name)
        .collect();
    Requirement {
        name: PRIVILEGES.to_owned(),
        met: lacks.is_empty(),
        fatal: true,
        found: if lacks.is_empty() { "enough".to_owned() } else { format!("without {}", lacks.join(", ")) },
        cost: "nothing can be loaded, nor be asked of this kernel: try again as root".to_owned(),
    }
}

fn kernel_version() -> Requirement {
    let found = KernelVersion::current();
    Requirement {
        name: "Linux 5.15 or newer".to_owned(),
        met: found.as_ref().is_ok_and(|version| *version >= FLOOR),
        fatal: true,
        found: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |release| release.trim().to_owned()),
        cost: "older kernels cannot tell pods apart by their network namespace".to_owned(),
    }
}

fn types() -> Requirement {
    let path = "/sys/kernel/btf/vmlinux";
    let met = Path::new(path).exists();
    Requirement {
        name: "kernel type information (BTF)".to_owned(),
        met,
        fatal: true,
        found: if met { path.to_owned() } else { format!("no {path}") },
        cost: "socket storage needs it (CONFIG_DEBUG_INFO_BTF)".to_owned(),
    }
}

fn bpffs(pin_root: &Path) -> Requirement {
    let mounted = mount::is_on_bpffs(pin_root);
    let will_be = pin_root.starts_with("/sys/fs/bpf") && Path::new("/sys/fs/bpf").exists();
    Requirement {
        name: format!("bpffs for {}", pin_root.display()),
        met: mounted || will_be,
        fatal: true,
        found: match (mounted, will_be) {
            (true, _) => "mounted",
            (false, true) => "the agent will mount it",
            (false, false) => "not mounted",
        }
        .to_owned(),
        cost: "nothing could outlive the agent: its restart would be a gap".to_owned(),
    }
}

fn cgroup(configured: Option<&Path>) -> Requirement {
    let found = Cgroup::open(configured);
    Requirement {
        name: "cgroup v2".to_owned(),
        met: found.is_ok(),
        fatal: true,
        found: match &found {
            Ok(cgroup) => cgroup.path().display().to_string(),
            Err(e) => e.to_string(),
        },
        cost: "there is nowhere to attach the programs that capture".to_owned(),
    }
}

fn program(needed: &features::Needed) -> Requirement {
    let (met, found) = match needed.missing() {
        Ok(missing) if missing.is_empty() => (true, "loads".to_owned()),
        Ok(missing) => (false, format!("lacks {}", missing.join(", "))),
        Err(e) => (false, e),
    };
    Requirement {
        name: format!("program type {}", needed.name),
        met,
        fatal: true,
        found,
        cost: needed.cost.to_owned(),
    }
}

const MAPS: [(MapType, &str, &str); 6] = [
    (MapType::Hash, "hash", "pods and destinations are kept in them"),
    (MapType::LpmTrie, "LPM trie", "the mesh's address ranges are kept in one"),
    (MapType::SockHash, "socket hash", "connections could not be handed to the agent's listeners"),
    (MapType::SkStorage, "socket storage", "the agent's own sockets could not be told from others"),
    (MapType::RingBuf, "ring buffer", "flows that are left alone could not be reported"),
    (MapType::PerCpuArray, "per-CPU array", "refusals and drops could not be counted"),
];

fn map(&(map_type, name, cost): &(MapType, &str, &str)) -> Requirement {
    let (met, found) = match is_map_supported(map_type) {
        Ok(true) => (true, "supported".to_owned()),
        Ok(false) => (false, "not supported".to_owned()),
        Err(e) => (false, with_causes(&e)),
    };
    Requirement { name: format!("map type {name}"), met, fatal: true, found, cost: cost.to_owned() }
}

/// The error number is in the cause.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn sockets_end() -> Requirement {
    let can = Diag::can_destroy();
    Requirement {
        name: "sockets can be ended".to_owned(),
        met: matches!(can, Ok(true)),
        fatal: false,
        found: match &can {
            Ok(true) => "supported".to_owned(),
            Ok(false) => "not supported (CONFIG_INET_DIAG_DESTROY)".to_owned(),
            Err(e) => e.to_string(),
        },
        cost: "plaintext connections that policy comes to forbid go on until they close".to_owned(),
    }
}

fn optional(feature: &features::Optional) -> Requirement {
    let attempt = feature.attempt();
    Requirement {
        name: feature.name.to_owned(),
        met: matches!(attempt, Attempt::Loads),
        fatal: false,
        found: match attempt {
            Attempt::Loads => "supported".to_owned(),
            Attempt::Refused(_) => format!("not supported (since {})", feature.since),
            Attempt::Failed(e) => e.to_string(),
        },
        cost: feature.cost.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_privileges_are_named_and_nothing_else_is_blamed() {
        let found = |bits: &str| privileges(&format!("Name:\tx\nCapEff:\t{bits}\n")).found;
        assert_eq!(found("000001ffffffffff"), "enough");
        assert_eq!(found("0000000000000000"), "without CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF");
        assert_eq!(found("0000000000201000"), "enough", "CAP_SYS_ADMIN stands for CAP_BPF");
        assert_eq!(found("0000008000001000"), "without CAP_SYS_ADMIN");
        assert!(!privileges("").met);
    }

    #[test]
    fn a_report_names_what_is_missing_and_what_it_costs() {
        let requirement = |met, fatal| Requirement {
            name: "wings".to_owned(),
            met,
            fatal,
            found: "feet".to_owned(),
            cost: "no flying".to_owned(),
        };
        let text = |met, fatal| requirement(met, fatal).to_string();
        assert_eq!(text(true, true), "ok      wings: feet");
        assert_eq!(text(false, true), "MISSING wings: feet (no flying)");
        assert_eq!(text(false, false), "absent  wings: feet (no flying)");

        let usable = |met, fatal| Report { requirements: vec![requirement(met, fatal)] }.is_usable();
        assert!(usable(true, true) && usable(false, false) && !usable(false, true));
    }
}
