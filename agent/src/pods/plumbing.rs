//! What a pod's namespace is given so that marked connections loop over `lo`, and what is taken back.
//!
//! One rule and one local route for each family, and a few sysctls. No netfilter, no address, no device.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::bpf::{CaptureMode, Kernel};
use crate::model::ports::ALL as AGENT_PORTS;
use crate::sys::SysError;
use crate::sys::netlink::{Family, LocalRoute, MarkRule, Route};
use crate::sys::netns::Netns;

/// Numbers that the operator may change where a pod's own routing uses the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The routing table that holds the one local route.
    pub table: u32,
    /// The preference of the rule: before main (32766), after local (0).
    pub priority: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { table: 15_008, priority: 75 }
    }
}

/// Which way of capturing the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The mark where the namespace takes the rule, the loopback address where it does not.
    #[default]
    Auto,
    Mark,
    Loopback,
}

/// What the namespace turned out to be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plumbed {
    pub capture: CaptureMode,
    /// Whether the agent can dial the application with the client's address as source: that needs the
    /// rule for the way back.
    pub keeps_source: bool,
}

/// Gives the namespace what it lacks, and says how its connections can be captured. Repeating it
/// repairs what was lost and changes nothing else.
///
/// # Errors
/// When a sysctl or route is refused, or the rule is and the operator insists on marks.
pub fn install(
    netns: &Netns,
    addresses: &[IpAddr],
    wanted: Wanted,
    numbers: Numbers,
) -> Result<Plumbed, SysError> {
    netns.run(|| {
        write_sysctl(ACCEPT_MARKS, "1")?;
        reflect_marks("1")?;
        reserve_ports()?;
        let mut route = Route::open()?;
        // The agent's deliveries need the rule under either way of capturing.
        let marked = install_mark(&mut route, addresses, numbers);
        match (wanted, marked) {
            (Wanted::Auto | Wanted::Mark, Ok(())) => {
                Ok(Plumbed { capture: CaptureMode::Mark, keeps_source: true })
            }
            (Wanted::Mark, Err(e)) => Err(e),
            (Wanted::Auto | Wanted::Loopback, marked) => {
                let keeps_source = marked.is_ok();
                if let Err(e) = marked {
                    tracing::warn!(netns = %netns.path().display(), error = %e,
                        "the namespace takes no mark rule; servers will see their own address as client");
                }
                install_loopback(&mut route, addresses)?;
                Ok(Plumbed { capture: CaptureMode::Loopback, keeps_source })
            }
        }
    })?
}

/// Whether every rule and its route are still there.
pub fn is_whole(netns: &Netns, addresses: &[IpAddr], numbers: Numbers) -> Result<bool, SysError> {
    netns.run(|| {
        let mut route = Route::open()?;
        for family in families(addresses) {
            if !route.has_rule(&rule(family, numbers))?
                || !route.has_route(&everything(family, None, numbers))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    })?
}

/// As [`remove`], unless another instance has the namespace by now: its pod needs the same.
pub fn give_back(kernel: &dyn Kernel, netns: &Netns, numbers: Numbers) -> Result<(), SysError> {
    match kernel.other_instance(netns.cookie(), netns.fd()) {
        Ok(Some(_)) => Ok(()),
        // Who cannot be asked about does not keep us from cleaning up: a lost rule is given anew.
        Ok(None) | Err(_) => remove(netns, numbers),
    }
}

/// Takes back all that [`install`] gave.
pub fn remove(netns: &Netns, numbers: Numbers) -> Result<(), SysError> {
    netns.run(|| {
        let mut route = Route::open()?;
        for family in [Family::V4, Family::V6] {
            route.remove_rule(&rule(family, numbers))?;
            route.remove_route(&everything(family, None, numbers))?;
        }
        for to in loopback_ranges() {
            route.remove_route(&LocalRoute { to, source: None, table: LOCAL_TABLE })?;
        }
        release_ports()?;
        reflect_marks("0")?;
        write_sysctl(ACCEPT_MARKS, "0")
    })?
}

fn install_mark(route: &mut Route, addresses: &[IpAddr], numbers: Numbers) -> Result<(), SysError> {
    for family in families(addresses) {
        // Without a source on the route an unbound IPv4 socket finds none and gets ENETUNREACH.
        let source = addresses.iter().copied().find(|a| Family::of(*a) == family);
        route.ensure_route(&everything(family, source, numbers))?;
        route.ensure_rule(&rule(family, numbers))?;
    }
    Ok(())
}

fn install_loopback(route: &mut Route, addresses: &[IpAddr]) -> Result<(), SysError> {
    for to in loopback_ranges() {
        let family = Family::of(to.addr());
        let source = addresses.iter().copied().find(|a| Family::of(*a) == family);
        if source.is_some() {
            route.ensure_route(&LocalRoute { to, source, table: LOCAL_TABLE })?;
        }
    }
    Ok(())
}

fn rule(family: Family, numbers: Numbers) -> MarkRule {
    MarkRule {
        family,
        priority: numbers.priority,
        mark: underpass_common::RULE_MARK,
        mask: underpass_common::RULE_MASK,
        table: numbers.table,
    }
}

fn everything(family: Family, source: Option<IpAddr>, numbers: Numbers) -> LocalRoute {
    let to = match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    };
    LocalRoute { to, source, table: numbers.table }
}

fn loopback_ranges() -> [IpNet; 2] {
    let v4 = Ipv4Addr::from(underpass_common::LOOPBACK4_PREFIX);
    let mut v6 = [0; 16];
    v6[..8].copy_from_slice(&underpass_common::LOOPBACK6_PREFIX);
    [IpNet::V4(Ipv4Net::new_assert(v4, 9)), IpNet::V6(Ipv6Net::new_assert(v6.into(), 64))]
}

fn families(addresses: &[IpAddr]) -> impl Iterator<Item = Family> + '_ {
    [Family::V4, Family::V6].into_iter().filter(|f| addresses.iter().any(|a| Family::of(*a) == *f))
}

/// The application's answers to the agent's deliveries carry the delivery's mark, and so go over lo.
const ACCEPT_MARKS: &str = "net/ipv4/tcp_fwmark_accept";

/// The same for answers that belong to no socket. Without it the reset of a closed port leaves for the
/// client's own host, where nobody waits for it, and the agent's dial runs into its timeout; and a reset
/// for a captured connection that is gone leaves the pod.
fn reflect_marks(value: &str) -> Result<(), SysError> {
    write_sysctl("net/ipv4/fwmark_reflect", value)?;
    match write_sysctl("net/ipv6/fwmark_reflect", value) {
        // The kernel has no IPv6.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

/// RT_TABLE_LOCAL.
const LOCAL_TABLE: u32 = 255;

/// Keeps the agent's ports out of what the kernel picks for bind(0) and for listeners without bind.
fn reserve_ports() -> Result<(), SysError> {
    let now = read_sysctl(RESERVED)?;
    let missing: Vec<String> =
        AGENT_PORTS.iter().filter(|p| !contains(&now, **p)).map(u16::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut all = now.trim().to_owned();
    for port in missing {
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(&port);
    }
    write_sysctl(RESERVED, &all)
}

fn release_ports() -> Result<(), SysError> {
    let now = read_sysctl(RESERVED)?;
    let kept = without(&now, &AGENT_PORTS);
    if kept == now.trim() {
        return Ok(());
    }
    // The kernel takes an empty list only as a bare newline.
    write_sysctl(RESERVED, if kept.is_empty() { "\n" } else { &kept })
}

/// Whether a list such as `8080,9000-9010` has the port.
fn contains(list: &str, port: u16) -> bool {
    ranges(list).any(|(low, high)| (low..=high).contains(&port))
}

/// The list less the ports, written as the kernel writes it.
fn without(list: &str, ports: &[u16]) -> String {
    let mut kept: Vec<(u16, u16)> = ranges(list).collect();
    for &port in ports {
        kept = kept
            .into_iter()
            .flat_map(|(low, high)| {
                if !(low..=high).contains(&port) {
                    return vec![(low, high)];
                }
                let below = (port > low).then(|| (low, port - 1));
                let above = (port < high).then(|| (port + 1, high));
                below.into_iter().chain(above).collect()
            })
            .collect();
    }
    let words: Vec<String> = kept
        .into_iter()
        .map(|(low, high)| if low == high { low.to_string() } else { format!("{low}-{high}") })
        .collect();
    words.join(",")
}

fn ranges(list: &str) -> impl Iterator<Item = (u16, u16)> + '_ {
    list.trim().split(',').filter_map(|word| {
        let (low, high) = word.split_once('-').unwrap_or((word, word));
        Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
    })
}

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

/// `/proc/sys/net` shows the namespace of the thread that opens it.
fn read_sysctl(name: &str) -> Result<String, SysError> {
    let path = format!("/proc/sys/{name}");
    fs::read_to_string(&path).map_err(|e| SysError::new("read", path, e))
}

fn write_sysctl(name: &str, value: &str) -> Result<(), SysError> {
    let path = format!("/proc/sys/{name}");
    fs::write(&path, value).map_err(|e| SysError::new("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_added_and_taken_back() {
        assert!(contains("8080,15000-15010", 15_008));
        assert!(!contains("", 15_008));
        assert_eq!(without("15001,15006,15008\n", &AGENT_PORTS), "");
        assert_eq!(without("8080,15000-15010", &AGENT_PORTS), "8080,15000,15002-15005,15007,15009-15010");
        assert_eq!(without("8080", &AGENT_PORTS), "8080");
    }
}
