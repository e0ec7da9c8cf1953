//! A policy as istiod sends it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use underpass::model::SpiffeId;
use underpass::model::workload::WorkloadMtls;
use underpass::policy::{Conn, MtlsDefaults, PolicySet, Subject, wire};
use underpass_proto::Message;
use underpass_proto::istio::security::string_match::MatchType;
use underpass_proto::istio::security::{
    Action, Address, Authorization, Match, Scope, ServiceAccountMatch, StringMatch,
};

/// # Panics
/// When a policy that is understood does not decide as its bytes say, or one that is not admits whom Istio's own
/// readers, who pass over what they do not understand, would refuse.
pub fn authorization(input: &[u8]) -> bool {
    let sent = Authorization::decode(input).ok();
    let key = sent.as_ref().map(|sent| format!("{}/{}", sent.namespace, sent.name));
    let read = wire::read(key.as_deref().unwrap_or("own/p"), input);
    assert!(read.policy.defect.is_none() || !read.defects.is_empty(), "a defect that nobody is told of");
    let (key, namespace) = (read.policy.key(), read.policy.namespace.clone());
    let clean = read.defects.is_empty();
    let set = PolicySet::new([read.policy], MtlsDefaults::default());
    let (named, mtls): ([Arc<str>; 1], _) = ([key], WorkloadMtls::default());
    let compiled = set.compile(&Subject::named(&namespace, &named, &mtls));
    for conn in conns() {
        let ours = compiled.evaluate(&conn, None).is_allow();
        assert_eq!(compiled.explain(&conn, None).verdict.is_allow(), ours, "{conn:?}");
        let theirs = sent.as_ref().is_some_and(|sent| admits(sent, &conn));
        assert!(if clean { ours == theirs } else { theirs || !ours }, "{sent:?} for {conn:?}");
    }
    clean
}

fn conns() -> Vec<Conn> {
    let mut conns = Vec::new();
    let (v4, v6) =
        (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)));
    for source in [Some("spiffe://td/ns/shop/sa/web"), Some("spiffe://other/ns/a/sa/b"), None] {
        for ip in [v4, v6] {
            for port in [80, 8080] {
                conns.push(Conn::new(source.and_then(|id| id.parse().ok()), ip, ip, port));
            }
        }
    }
    conns
}

/// To a workload that names the policy, as slowly and literally as it is written.
fn admits(policy: &Authorization, conn: &Conn) -> bool {
    // Whatever it would do.
    if policy.dry_run {
        return true;
    }
    let (Ok(action), Ok(_)) = (Action::try_from(policy.action), Scope::try_from(policy.scope)) else {
        return false;
    };
    let holds = policy.groups.iter().any(|group| {
        group.rules.iter().all(|rule| rule.matches.is_empty() || rule.matches.iter().any(|m| fits(m, conn)))
    });
    holds == (action == Action::Allow)
}

fn fits(m: &Match, conn: &Conn) -> bool {
    let id = conn.source.as_ref();
    let namespace = id.and_then(SpiffeId::namespace).unwrap_or_default();
    let principal = id.map(|id| id.to_string().replacen("spiffe://", "", 1));
    let name = |value: &StringMatch| text(value).then(|| is(value, namespace));
    let whole =
        |value: &StringMatch| text(value).then(|| principal.as_ref().is_some_and(|p| is_named(value, p)));
    let account = |value: &ServiceAccountMatch| {
        (!value.namespace.is_empty() && !value.service_account.is_empty())
            .then(|| id.is_some_and(|id| id.account() == Some((&*value.namespace, &*value.service_account))))
    };
    let source = |value: &Address| holds(value, conn.source_ip);
    let destination = |value: &Address| holds(value, conn.destination_ip);
    let port = |value: &u32| (1..=65535).contains(value).then(|| *value == u32::from(conn.destination_port));
    let fields = [
        one(&m.namespaces, &m.not_namespaces, name),
        one(&m.principals, &m.not_principals, whole),
        one(&m.service_accounts, &m.not_service_accounts, account),
        one(&m.source_ips, &m.not_source_ips, source),
        one(&m.destination_ips, &m.not_destination_ips, destination),
        one(&m.destination_ports, &m.not_destination_ports, port),
    ];
    fields.iter().any(Option::is_some) && fields.iter().all(|field| field.unwrap_or(true))
}

/// Whether a field holds, with its negative. None where neither has a value; those that are none are passed over.
fn one<T>(any: &[T], none: &[T], fits: impl Fn(&T) -> Option<bool>) -> Option<bool> {
    let any: Vec<bool> = any.iter().filter_map(&fits).collect();
    let none: Vec<bool> = none.iter().filter_map(&fits).collect();
    let given = !(any.is_empty() && none.is_empty());
    given.then(|| (any.is_empty() || any.contains(&true)) && !none.contains(&true))
}

fn text(value: &StringMatch) -> bool {
    value.match_type.is_some()
}

/// A principal may be written with its scheme here.
fn is_named(value: &StringMatch, principal: &str) -> bool {
    let bare = |text: &String| text.strip_prefix("spiffe://").unwrap_or(text).to_string();
    let bare = value.match_type.as_ref().map(|match_type| match match_type {
        MatchType::Exact(text) => MatchType::Exact(bare(text)),
        MatchType::Prefix(text) => MatchType::Prefix(bare(text)),
        MatchType::Suffix(text) => MatchType::Suffix(bare(text)),
        MatchType::Presence(()) => MatchType::Presence(()),
    });
    is(&StringMatch { match_type: bare }, principal)
}

fn is(value: &StringMatch, given: &str) -> bool {
    match &value.match_type {
        Some(MatchType::Exact(text)) => given == text,
        Some(MatchType::Prefix(text)) => given.starts_with(&**text),
        Some(MatchType::Suffix(text)) => given.ends_with(&**text),
        Some(MatchType::Presence(())) => !given.is_empty(),
        None => false,
    }
}

/// Bit by bit. None where it is no range.
fn holds(range: &Address, ip: IpAddr) -> Option<bool> {
    let length = usize::try_from(range.length).ok()?;
    if !matches!(range.address.len(), 4 | 16) || length > 8 * range.address.len() {
        return None;
    }
    let (mut address, mut skip) = (&range.address[..], 0);
    // IPv4 in the clothes of IPv6.
    if address.len() == 16 && length >= 96 && address.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])
    {
        (address, skip) = (&address[12..], 96);
    }
    let ip = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    Some(ip.len() == address.len() && (0..length - skip).all(|at| bit(&ip, at) == bit(address, at)))
}
