//! Values keyed by address range, found by longest prefix in a bounded number of hash lookups.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// At most one lookup per distinct prefix length (33 for IPv4, 129 for IPv6), whatever the number of
/// ranges. IPv4-mapped IPv6 addresses and ranges count as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CidrTable<T> {
    v4: Vec<Level<T>>,
    v6: Vec<Level<T>>,
}

impl<T> CidrTable<T> {
    /// The value of the most specific range that holds `ip`.
    pub fn lookup(&self, ip: IpAddr) -> Option<&T> {
        self.lookup_all(ip).next()
    }

    /// The values of all ranges that hold `ip`, the most specific first.
    pub fn lookup_all(&self, ip: IpAddr) -> impl Iterator<Item = &T> {
        let (levels, bits, width) = match ip.to_canonical() {
            IpAddr::V4(ip) => (&self.v4, u128::from(ip.to_bits()), 32),
            IpAddr::V6(ip) => (&self.v6, ip.to_bits(), 128),
        };
        levels.iter().filter_map(move |level| level.rows.get(&(bits & mask(level.prefix, width))))
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.lookup(ip).is_some()
    }

    /// Files `value` under `net` (host bits are ignored) and returns what was there before.
    pub fn insert(&mut self, net: IpNet, value: T) -> Option<T> {
        self.level(net).insert(key(net), value)
    }

    /// The value filed under exactly this range, made on first use.
    pub fn entry(&mut self, net: IpNet) -> &mut T
    where
        T: Default,
    {
        self.level(net).entry(key(net)).or_default()
    }

    /// In no particular order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.v4.iter_mut().chain(&mut self.v6).flat_map(|level| level.rows.values_mut())
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn level(&mut self, net: IpNet) -> &mut HashMap<u128, T> {
        let net = canonical(net);
        let levels = if matches!(net, IpNet::V4(_)) { &mut self.v4 } else { &mut self.v6 };
        // Longest prefix first.
        let at = levels.partition_point(|level| level.prefix > net.prefix_len());
        if levels.get(at).is_none_or(|level| level.prefix != net.prefix_len()) {
            levels.insert(at, Level { prefix: net.prefix_len(), rows: HashMap::new() });
        }
        &mut levels[at].rows
    }
}

impl<T> Default for CidrTable<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl FromIterator<IpNet> for CidrTable<()> {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut table = Self::default();
        for net in nets {
            table.insert(net, ());
        }
        table
    }
}

/// The range without host bits; one inside `::ffff:0:0/96` becomes the IPv4 range it means.
pub fn canonical(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Ok(net) = Ipv4Net::new(v4, v6.prefix_len() - 96)
    {
        return IpNet::V4(net.trunc());
    }
    net.trunc()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Level<T> {
    prefix: u8,
    rows: HashMap<u128, T>,
}

fn key(net: IpNet) -> u128 {
    match canonical(net).network() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn mask(prefix: u8, width: u8) -> u128 {
    let all = if width == 32 { u128::from(u32::MAX) } else { u128::MAX };
    all & all.checked_shl(u32::from(width - prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(nets: &[&str]) -> CidrTable<String> {
        let mut table = CidrTable::default();
        for net in nets {
            table.insert(net.parse().unwrap(), (*net).to_string());
        }
        table
    }

    #[test]
    fn the_most_specific_range_wins() {
        let nets = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.3/32",
            "::/0",
            "fd00::/8",
            "fd00::1/128",
            "::ffff:192.0.2.0/120",
        ];
        for (ip, expected) in [
            ("8.8.8.8", "0.0.0.0/0"),
            ("10.2.0.1", "10.0.0.0/8"),
            ("10.1.255.255", "10.1.0.0/16"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("192.0.2.7", "::ffff:192.0.2.0/120"),
            ("2001:db8::1", "::/0"),
            ("fd00::2", "fd00::/8"),
            ("fd00::1", "fd00::1/128"),
        ] {
            let table = table(&nets);
            assert_eq!(table.lookup(ip.parse().unwrap()).map(String::as_str), Some(expected), "{ip}");
        }
    }

    #[test]
    fn what_no_range_holds_is_not_found() {
        let table = table(&["10.0.0.0/8", "fd00::/8"]);
        for ip in ["11.0.0.0", "9.255.255.255", "fe00::", "::", "::ffff:11.0.0.1"] {
            assert!(!table.contains(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn host_bits_do_not_matter() {
        let mut table = CidrTable::default();
        assert_eq!(table.insert("10.1.2.3/8".parse().unwrap(), 1), None);
        assert_eq!(table.insert("10.0.0.0/8".parse().unwrap(), 2), Some(1));
        assert_eq!(table.lookup("10.9.9.9".parse().unwrap()), Some(&2));
    }
}
