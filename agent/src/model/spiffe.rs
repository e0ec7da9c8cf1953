//! SPIFFE ids of workloads: `spiffe://<trust domain>/<path>`, of which a service account's path is
//! `/ns/<namespace>/sa/<service account>`.
//!
//! Grammar and limits: the SPIFFE-ID standard, sections 2.1 to 2.3.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// At most 255 bytes of `[a-z0-9._-]`, not empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// Who a workload is: a service account anywhere it runs, or whatever else a trust domain names so. What has
/// no path is the trust domain itself, and no workload.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// With the slash in front.
    path: Arc<str>,
}

/// Which rule of the grammar a string breaks; what it quotes is shortened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("a SPIFFE id is at most 2048 bytes long, this one has {0}")]
    TooLong(usize),
    #[error("a SPIFFE id begins with spiffe://")]
    Scheme,
    #[error("a trust domain is 1 to 255 of a-z, 0-9, '.', '-' and '_', not {0:?}")]
    TrustDomain(String),
    #[error("a workload's SPIFFE id has a path: without one it is the trust domain's own")]
    NoPath,
    #[error("a service account's path is /ns/<namespace>/sa/<service account>, not {0:?}")]
    NoAccount(String),
    #[error(
        "a path segment is made of a-z, A-Z, 0-9, '.', '-' and '_', and is neither empty nor . nor .., not {0:?}"
    )]
    Segment(String),
}

impl Default for TrustDomain {
    /// Istio's: `cluster.local`.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl TrustDomain {
    /// Istio's default.
    pub fn cluster_local() -> Self {
        Self("cluster.local".into())
    }

    /// Lower case, as it stands in the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// A service account's. Fails if a segment breaks the grammar, or if all together is longer than 2048
    /// bytes.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        let path = format!("/ns/{namespace}/sa/{service_account}").into();
        let id = Self { trust_domain, path };
        let len = id.to_string().len();
        if len > MAX_LEN { Err(SpiffeError::TooLong(len)) } else { Ok(id) }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// With the slash in front.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Namespace and service account, if it is the id of one: no other path looks like one's.
    pub fn account(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path.strip_prefix("/ns/")?.split_once('/')?;
        let account = account.strip_prefix("sa/").filter(|account| !account.contains('/'))?;
        Some((namespace, account))
    }

    pub fn namespace(&self) -> Option<&str> {
        Some(self.account()?.0)
    }

    pub fn service_account(&self) -> Option<&str> {
        Some(self.account()?.1)
    }

    /// # Errors
    /// It is of no service account, and certificates are issued for those only.
    pub fn check_account(&self) -> Result<(), SpiffeError> {
        self.account().map(drop).ok_or_else(|| SpiffeError::NoAccount(shorten(&self.path)))
    }
}

const MAX_LEN: usize = 2048;

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(s: &str) -> Result<Self, SpiffeError> {
        let ok = (1..=255).contains(&s.len())
            && s.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        if ok { Ok(Self(s.into())) } else { Err(SpiffeError::TrustDomain(shorten(s))) }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(s: &str) -> Result<Self, SpiffeError> {
        if s.len() > MAX_LEN {
            return Err(SpiffeError::TooLong(s.len()));
        }
        let rest = s.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trust_domain = domain.parse()?;
        let segments = path.strip_prefix('/').ok_or(SpiffeError::NoPath)?;
        segments.split('/').try_for_each(check_segment)?;
        Ok(Self { trust_domain, path: path.into() })
    }
}

/// What somebody else sent, fit for a log line: at most 256 bytes of it.
pub(crate) fn shorten(s: &str) -> String {
    const MOST: usize = 256;
    if s.len() <= MOST {
        return s.to_owned();
    }
    let end = (0..=MOST).rev().find(|&i| s.is_char_boundary(i)).unwrap_or(0);
    format!("{}… ({} bytes)", &s[..end], s.len())
}

fn check_segment(s: &str) -> Result<(), SpiffeError> {
    let ok = !matches!(s, "" | "." | "..")
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if ok { Ok(()) } else { Err(SpiffeError::Segment(shorten(s))) }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Clause by clause of the SPIFFE-ID standard.
    #[test]
    fn ids_are_read_to_the_letter() {
        let long = |n: usize| "a".repeat(n);
        let accepted = [
            "spiffe://cluster.local/ns/default/sa/default".to_owned(),
            "spiffe://a/ns/b/sa/c".to_owned(),
            "spiffe://1_2-3.4/ns/A.b_C-9/sa/Z".to_owned(),
            "spiffe://td/ns/.../sa/.x".to_owned(),
            // What looks like a port or a host is only letters here.
            "spiffe://127.0.0.1/ns/a/sa/b".to_owned(),
            "spiffe://td/a".to_owned(),
            "spiffe://partner.example/billing/api".to_owned(),
            "spiffe://td/A.b_C-9/.../-/_".to_owned(),
            "spiffe://td/ns/a/sa".to_owned(),
            "spiffe://td/ns/a/sa/b/c".to_owned(),
            "spiffe://td/NS/a/sa/b".to_owned(),
            format!("spiffe://td/{}", "a/".repeat(1017) + "bc"),
            format!("spiffe://{}/ns/a/sa/b", long(255)),
            format!("spiffe://td/ns/a/sa/{}", long(2048 - "spiffe://td/ns/a/sa/".len())),
        ];
        for s in &accepted {
            assert_eq!(s.parse::<SpiffeId>().map(|id| id.to_string()).as_ref(), Ok(s));
        }

        type Check = fn(&SpiffeError) -> bool;
        let scheme: Check = |e| matches!(e, SpiffeError::Scheme);
        let domain: Check = |e| matches!(e, SpiffeError::TrustDomain(_));
        let path: Check = |e| matches!(e, SpiffeError::NoPath);
        let segment: Check = |e| matches!(e, SpiffeError::Segment(_));
        let length: Check = |e| matches!(e, SpiffeError::TooLong(_));
        let refused: [(&str, Check); 54] = [
            // 2: the scheme is spiffe, in lower case; an authority follows; no query, no fragment.
            ("", scheme),
            ("spiffe", scheme),
            ("spiffe:", scheme),
            ("Spiffe://td/ns/a/sa/b", scheme),
            ("spiffe:td/ns/a/sa/b", scheme),
            ("spiffe:///", domain),
            ("spiffe://td?x/ns/a/sa/b", domain),
            ("spiffe://td#x/ns/a/sa/b", domain),
            ("spiffe:/td/ns/a/sa/b", scheme),
            ("//td/ns/a/sa/b", scheme),
            ("SPIFFE://td/ns/a/sa/b", scheme),
            (" spiffe://td/ns/a/sa/b", scheme),
            ("http://td/ns/a/sa/b", scheme),
            ("spiffe://", domain),
            // 2.1: not empty, lower case, no user, no port, nothing percent-encoded.
            ("spiffe:///ns/a/sa/b", domain),
            ("spiffe://@td/ns/a/sa/b", domain),
            ("spiffe://u:p@td/ns/a/sa/b", domain),
            ("spiffe://tD/ns/a/sa/b", domain),
            ("spiffe://Td/ns/a/sa/b", domain),
            ("spiffe://td:8443/ns/a/sa/b", domain),
            ("spiffe://td:/ns/a/sa/b", domain),
            ("spiffe://user@td/ns/a/sa/b", domain),
            ("spiffe://t%64/ns/a/sa/b", domain),
            ("spiffe://t d/ns/a/sa/b", domain),
            ("spiffe://t\u{e4}/ns/a/sa/b", domain),
            ("spiffe://[::1]/ns/a/sa/b", domain),
            // 2.2: no empty segment, so none at the end; no relative one; few characters, none encoded.
            ("spiffe://td", path),
            ("spiffe://td/", segment),
            ("spiffe://td/a/", segment),
            ("spiffe://td//a", segment),
            ("spiffe://td/.", segment),
            ("spiffe://td/../ns/a/sa/b", segment),
            ("spiffe://td/billing%2fapi", segment),
            ("spiffe://td/billing\\api", segment),
            ("spiffe://td/billing;v=1", segment),
            ("spiffe://td/~billing", segment),
            ("spiffe://td/ns/a/sa/b/", segment),
            ("spiffe://td//ns/a/sa/b", segment),
            ("spiffe://td/ns//sa/b", segment),
            ("spiffe://td/ns/a/sa/", segment),
            ("spiffe://td/ns/./sa/b", segment),
            ("spiffe://td/ns/a/sa/..", segment),
            ("spiffe://td/ns/a/sa/b?x", segment),
            ("spiffe://td/ns/a/sa/b#x", segment),
            ("spiffe://td/ns/../sa/b", segment),
            ("spiffe://td/ns/a/../sa/b", segment),
            ("spiffe://td/ns/a/sa/%2e", segment),
            ("spiffe://td/ns/a/sa/%62", segment),
            ("spiffe://td/ns/a/sa/b ", segment),
            ("spiffe://td/ns/a/sa/b\n", segment),
            ("spiffe://td/ns/a/sa/b\0", segment),
            ("spiffe://td/ns/a*/sa/b", segment),
            ("spiffe://td/ns/\u{430}/sa/b", segment),
            ("spiffe://td/ns/a/sa/b:c", segment),
        ];
        for (s, rule) in refused {
            let error = s.parse::<SpiffeId>().expect_err(s);
            assert!(rule(&error), "{s:?}: {error:?}");
        }
        // 2.3: 2048 bytes, of which the trust domain has 255.
        let too_long = format!("spiffe://td/ns/a/sa/{}", long(2049 - "spiffe://td/ns/a/sa/".len()));
        assert!(length(&too_long.parse::<SpiffeId>().unwrap_err()));
        let with = |more| {
            let account = long(2048 - "spiffe://td/ns/a/sa/".len() + more);
            SpiffeId::new("td".parse().unwrap(), "a", &account)
        };
        assert_eq!(with(0).unwrap().to_string().len(), 2048);
        assert!(length(&with(1).unwrap_err()));
        let deep = format!("spiffe://td/{}", "a/".repeat(1018) + "b");
        assert!(length(&deep.parse::<SpiffeId>().unwrap_err()));
        let wide = format!("spiffe://{}/ns/a/sa/b", long(256));
        assert!(domain(&wide.parse::<SpiffeId>().unwrap_err()));
    }

    /// Whoever may choose a path must not become an account by it.
    #[test]
    fn only_the_very_path_of_an_account_is_one() {
        let accounts = [
            ("spiffe://td/ns/a/sa/b", "a", "b"),
            ("spiffe://td/ns/ns/sa/sa", "ns", "sa"),
            ("spiffe://td/ns/sa/sa/ns", "sa", "ns"),
            ("spiffe://td/ns/.../sa/.x", "...", ".x"),
        ];
        for (id, namespace, account) in accounts {
            let id: SpiffeId = id.parse().unwrap();
            assert_eq!(id.account(), Some((namespace, account)));
            assert_eq!((id.namespace(), id.service_account()), (Some(namespace), Some(account)));
            assert_eq!(id.check_account(), Ok(()));
            assert_eq!(SpiffeId::new("td".parse().unwrap(), namespace, account), Ok(id));
        }
        let others = [
            "spiffe://td/a",
            "spiffe://td/ns",
            "spiffe://td/ns/a",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/extra",
            "spiffe://td/ns/a/sa/b/sa/c",
            "spiffe://td/ns/a/b/sa/c",
            "spiffe://td/ns/sa/b",
            "spiffe://td/ns/a/ns/b/sa/c",
            "spiffe://td/x/ns/a/sa/b",
            "spiffe://td/sa/b/ns/a",
            "spiffe://td/NS/a/sa/b",
            "spiffe://td/ns/a/SA/b",
            "spiffe://td/nsx/a/sa/b",
            "spiffe://td/ns/a/sab",
            "spiffe://td/ns/a/sax/b",
            "spiffe://td/ns.a.sa.b",
        ];
        for id in others {
            let id: SpiffeId = id.parse().unwrap();
            assert_eq!((id.account(), id.namespace(), id.service_account()), (None, None, None), "{id}");
            assert_eq!(id.check_account(), Err(SpiffeError::NoAccount(id.path().into())));
        }
        // An account is given by its names, and those bring no path along.
        for (namespace, account) in [("a/sa/b", "c"), ("a", "b/c"), ("..", "b"), ("a", ""), ("", "b")] {
            let made = SpiffeId::new("td".parse().unwrap(), namespace, account);
            assert!(matches!(made, Err(SpiffeError::Segment(_))), "{namespace} {account}: {made:?}");
        }
    }

    #[test]
    fn what_an_error_quotes_is_short_and_on_one_line() {
        let nasty = format!("spiffe://td/ns/a/sa/{}", "\n\u{1F600}".repeat(400));
        let message = nasty.parse::<SpiffeId>().unwrap_err().to_string();
        assert!(message.len() < 1024, "{} bytes", message.len());
        assert!(!message.contains('\n'), "{message}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_the_parts_a_sound_id_comes_back_the_same(
            domain in "[a-z0-9._-]{1,255}", namespace in segment(), account in segment(),
        ) {
            let id = SpiffeId::new(domain.parse().unwrap(), &namespace, &account).unwrap();
            prop_assert_eq!(id.trust_domain().as_str(), &domain);
            prop_assert_eq!(id.account(), Some((&*namespace, &*account)));
            prop_assert_eq!(&id.to_string().parse::<SpiffeId>().unwrap(), &id);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(&serde_json::from_str::<SpiffeId>(&json).unwrap(), &id);
        }

        /// Two spellings of one id, or one spelling of two, would let a peer be somebody else.
        #[test]
        fn a_string_is_an_id_exactly_if_it_is_the_ids_own_spelling(s in near_misses()) {
            match s.parse::<SpiffeId>() {
                Ok(id) => {
                    prop_assert_eq!(id.to_string(), &*s);
                    prop_assert!(by_the_book(&s), "accepted: {s:?}");
                    let pieces: Vec<&str> = s.split('/').skip(3).collect();
                    let account = match pieces[..] {
                        ["ns", namespace, "sa", account] => Some((namespace, account)),
                        _ => None,
                    };
                    prop_assert_eq!(id.account(), account);
                }
                Err(_) => prop_assert!(!by_the_book(&s), "refused: {s:?}"),
            }
        }

        #[test]
        fn no_string_is_too_strange(s in any::<String>(), domain in any::<String>()) {
            prop_assert_eq!(s.parse::<SpiffeId>().is_ok(), by_the_book(&s));
            let sound = (1..=255).contains(&domain.len())
                && domain.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_'));
            prop_assert_eq!(domain.parse::<TrustDomain>().is_ok(), sound);
        }
    }

    fn segment() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9._-]{1,63}".prop_filter("not a dot segment", |s| s != "." && s != "..")
    }

    /// A sound id with a few characters put in, taken out or replaced.
    fn near_misses() -> impl Strategy<Value = String> {
        let character = prop_oneof![
            prop::sample::select("/.:@?#%~ nsaA1-_\\".chars().collect::<Vec<_>>()),
            any::<char>(),
        ];
        let edit = (any::<prop::sample::Index>(), 0..3u8, character);
        let start = ("[a-z0-9.]{1,6}", "[a-z.-]{1,4}", "[a-zA-Z.]{1,4}")
            .prop_map(|(d, n, a)| format!("spiffe://{d}/ns/{n}/sa/{a}"));
        (start, prop::collection::vec(edit, 0..4)).prop_map(|(start, edits)| {
            let mut s: Vec<char> = start.chars().collect();
            for (at, what, c) in edits {
                let at = at.index(s.len());
                match what {
                    0 => s.insert(at, c),
                    1 if s.len() > 1 => drop(s.remove(at)),
                    _ => s[at] = c,
                }
            }
            s.into_iter().collect()
        })
    }

    /// The grammar once more, written otherwise: SPIFFE-ID sections 2.1 to 2.3.
    fn by_the_book(s: &str) -> bool {
        let pieces: Vec<&str> = s.split('/').collect();
        let ["spiffe:", "", domain, path @ ..] = &pieces[..] else { return false };
        let plain = |s: &str| s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let dots = |s: &str| s == "." || s == "..";
        !domain.is_empty()
            && domain.len() < 256
            && s.len() < 2049
            && plain(domain)
            && !domain.contains(|c: char| c.is_ascii_uppercase())
            && !path.is_empty()
            && path.iter().all(|p| !p.is_empty() && plain(p) && !dots(p))
    }
}
