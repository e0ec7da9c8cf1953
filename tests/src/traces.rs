//! What an agent has left in a pod's namespace.

use anyhow::Result;

use crate::hbone;
use crate::netns::Netns;

/// Rules, routes, sysctls and listeners: two readings are equal when nothing was left in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(Vec<String>);

impl Traces {
    pub fn of(ns: &Netns) -> Result<Self> {
        let mut found = vec![];
        for family in ["-4", "-6"] {
            found.extend(lines(&ns.ip(&format!("{family} rule show"))?));
            found.extend(
                lines(&ns.ip(&format!("{family} route show table all type local"))?)
                    .filter(|line| family == "-4" || line.contains("table 15008") || line.contains("fd75")),
            );
        }
        for key in [
            "ipv4.tcp_fwmark_accept",
            "ipv4.fwmark_reflect",
            "ipv6.fwmark_reflect",
            "ipv4.ip_local_reserved_ports",
        ] {
            found.push(format!("{key} = {}", ns.read_sysctl(key)?));
        }
        for table in ["tcp", "tcp6"] {
            let sockets = ns.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")))?;
            found.extend(sockets.lines().filter(|socket| is_listener_of_ours(socket)).map(str::to_owned));
        }
        Ok(Self(found))
    }
}

fn lines(said: &str) -> impl Iterator<Item = String> {
    said.lines().map(|line| line.trim().to_owned())
}

/// `sl local_address rem_address st`: LISTEN is 0A.
fn is_listener_of_ours(socket: &str) -> bool {
    let mut fields = socket.split_whitespace().skip(1);
    let (Some(local), _, Some(state)) = (fields.next(), fields.next(), fields.next()) else { return false };
    let port = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
    state == "0A" && port.is_some_and(|port| [15_001, 15_006, hbone::PORT].contains(&port))
}
