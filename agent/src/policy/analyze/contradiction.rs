//! Whether what a list asks for is all excluded by the list of negatives beside it.

use ipnet::IpNet;

/// Fields of a source or operation, each with its negative.
pub(super) const PAIRS: [(&str, &str); 11] = [
    ("principals", "notPrincipals"),
    ("requestPrincipals", "notRequestPrincipals"),
    ("namespaces", "notNamespaces"),
    ("serviceAccounts", "notServiceAccounts"),
    ("trustDomains", "notTrustDomains"),
    ("ipBlocks", "notIpBlocks"),
    ("remoteIpBlocks", "notRemoteIpBlocks"),
    ("hosts", "notHosts"),
    ("ports", "notPorts"),
    ("methods", "notMethods"),
    ("paths", "notPaths"),
];

/// Whether each of some values is covered by one that is excluded.
pub(super) fn excluded(field: &str, one_of: &[&str], none_of: &[&str]) -> bool {
    let covers = |by: &str, value: &str| match field {
        "ipBlocks" | "remoteIpBlocks" => {
            net(by).zip(net(value)).is_some_and(|(by, value)| by.contains(&value))
        }
        "ports" => by == value,
        "hosts" => covers(&by.to_ascii_lowercase(), &value.to_ascii_lowercase()),
        "paths" if by.contains('{') || value.contains('{') => by == value,
        _ => covers(by, value),
    };
    !one_of.is_empty() && one_of.iter().all(|value| none_of.iter().any(|by| covers(by, value)))
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)))
}

/// `abc*`, `*abc`, `*` or the value itself.
fn covers(by: &str, value: &str) -> bool {
    let stars = |text: &str| text.ends_with('*') || text.starts_with('*');
    match (by.strip_suffix('*'), by.strip_prefix('*')) {
        (Some(""), _) => true,
        // `*abc` has no start that is known.
        (Some(start), _) => !value.starts_with('*') && value.trim_end_matches('*').starts_with(start),
        (_, Some(end)) => !value.ends_with('*') && value.trim_start_matches('*').ends_with(end),
        (None, None) => by == value && !stars(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_covered() {
        for (field, one_of, none_of, expected) in [
            ("namespaces", &["a"][..], &["a"][..], true),
            ("namespaces", &["a", "b"], &["a"], false),
            ("namespaces", &["a", "b"], &["*"], true),
            ("namespaces", &["dev-1", "dev-*"], &["dev*"], true),
            ("namespaces", &["dev*"], &["dev-*"], false),
            ("namespaces", &["*-dev"], &["dev*"], false),
            ("namespaces", &["x-dev", "*-dev"], &["*dev"], true),
            ("namespaces", &["*"], &["a*"], false),
            ("namespaces", &[], &["*"], false),
            ("namespaces", &["a"], &[], false),
            ("ports", &["80"], &["80", "81"], true),
            ("ports", &["80"], &["81"], false),
            ("ipBlocks", &["10.1.0.0/16", "10.2.0.1"], &["10.0.0.0/8"], true),
            ("ipBlocks", &["10.0.0.0/8"], &["10.1.0.0/16"], false),
            ("ipBlocks", &["fd00::1"], &["10.0.0.0/8"], false),
            ("hosts", &["A.example"], &["*.EXAMPLE"], true),
            ("paths", &["/a/{*}"], &["/a/*"], false),
            ("paths", &["/a/{*}"], &["/a/{*}"], true),
            ("paths", &["/a"], &["/a*"], true),
        ] {
            assert_eq!(excluded(field, one_of, none_of), expected, "{field} {one_of:?} {none_of:?}");
        }
    }
}
