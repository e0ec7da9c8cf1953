//! What a request's path is brought to before it is compared, and forwarded: Istio's
//! `pathNormalization`, as Envoy does it.
//!
//! What is judged and what the application gets are the same text, so that no spelling of a path means one
//! thing here and another there.

use std::borrow::Cow;

use super::PathNormalization;

/// `path` begins with `/` and has neither query nor fragment.
pub fn normalize(path: &str, how: PathNormalization) -> Result<Cow<'_, str>, NotNormal> {
    if how == PathNormalization::None || !path.starts_with('/') {
        return Ok(Cow::Borrowed(path));
    }
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let once = pass(path, how)?;
    // `%%32e` becomes `%2e`, which the application would read as a dot that nobody has judged.
    if pass(&once, how)? != once {
        return Err(NotNormal::Twice);
    }
    Ok(Cow::Owned(once))
}

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNormal {
    #[error("the path holds an encoded NUL")]
    Nul,
    #[error("the path is encoded more than once")]
    Twice,
}

/// Nothing that any of the steps would touch: most paths.
fn is_plain(path: &[u8]) -> bool {
    let kept = |b: u8| is_unreserved(b) && b != b'.' || is_kept(b);
    path.iter().all(|b| *b == b'/' || kept(*b)) && !path.windows(2).any(|pair| pair == b"//")
}

fn pass(path: &str, how: PathNormalization) -> Result<String, NotNormal> {
    let mut bytes = Cow::Borrowed(path.as_bytes());
    if how == PathNormalization::DecodeAndMergeSlashes {
        bytes = Cow::Owned(decode_slashes(&bytes));
    }
    let mut out = without_dots(&canonical(&bytes)?);
    if matches!(how, PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes) {
        out.dedup_by(|next, before| *next == b'/' && *before == b'/');
    }
    // Whatever is not ASCII was encoded.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn decode_slashes(path: &[u8]) -> Vec<u8> {
    each_octet(path, |octet, escaped, out| match (octet, escaped) {
        (b'/' | b'\\', Some(_)) => out.push(octet),
        (_, Some(escape)) => out.extend_from_slice(escape),
        (_, None) => out.push(octet),
    })
}

/// `\` is `/`, unreserved characters stand for themselves, what no path may hold is encoded.
fn canonical(path: &[u8]) -> Result<Vec<u8>, NotNormal> {
    let mut nul = false;
    let out = each_octet(path, |octet, escaped, out| match (octet, escaped) {
        (0, _) => nul = true,
        (_, Some(_)) if is_unreserved(octet) => out.push(octet),
        (_, Some(escape)) => out.extend_from_slice(escape),
        (b'\\', None) => out.push(b'/'),
        (b'%' | b'/', None) => out.push(octet),
        (_, None) if is_unreserved(octet) || is_kept(octet) => out.push(octet),
        (_, None) => out.extend_from_slice(format!("%{octet:02X}").as_bytes()),
    });
    if nul { Err(NotNormal::Nul) } else { Ok(out) }
}

/// RFC 3986, 5.2.4. What would lead above the root stays at the root.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|b| *b == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." if is_last => out.push(b'/'),
            b"." => {}
            b".." => {
                out.truncate(out.iter().rposition(|b| *b == b'/').unwrap_or(0));
                if is_last {
                    out.push(b'/');
                }
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    out
}

/// Calls `take` with each octet, decoded, and the three characters that it was written as if it was
/// encoded. A `%` that begins no encoding stands for itself.
fn each_octet(path: &[u8], mut take: impl FnMut(u8, Option<&[u8]>, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        match path.get(at..at + 3).and_then(decoded) {
            Some(octet) => {
                take(octet, Some(&path[at..at + 3]), &mut out);
                at += 3;
            }
            None => {
                take(*byte, None, &mut out);
                at += 1;
            }
        }
    }
    out
}

fn decoded(escape: &[u8]) -> Option<u8> {
    let [b'%', high, low] = *escape else { return None };
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    Some(digit(high)? << 4 | digit(low)?)
}

fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// Left as it is, encoded or not.
fn is_kept(b: u8) -> bool {
    matches!(
        b,
        b'!' | b'$'
            | b'&'
            | b'\''
            | b'('
            | b')'
            | b'*'
            | b'+'
            | b','
            | b':'
            | b';'
            | b'='
            | b'@'
            | b'['
            | b']'
            | b'|'
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None as AsSent};
    use super::*;

    const ALL: [PathNormalization; 4] = [AsSent, Base, MergeSlashes, DecodeAndMergeSlashes];

    #[test]
    fn paths_become_what_istio_says() {
        // As sent, by each of the four.
        let table = [
            ["/", "/", "/", "/"],
            ["/a/b", "/a/b", "/a/b", "/a/b"],
            ["/a/../b", "/b", "/b", "/b"],
            ["/a/./b", "/a/b", "/a/b", "/a/b"],
            ["/a/b/..", "/a/", "/a/", "/a/"],
            ["/a/.", "/a/", "/a/", "/a/"],
            ["/a/b/../../../../c", "/c", "/c", "/c"],
            ["/..", "/", "/", "/"],
            ["/a/..\\c", "/c", "/c", "/c"],
            ["/a\\b", "/a/b", "/a/b", "/a/b"],
            ["/a/%2E%2e/b", "/b", "/b", "/b"],
            ["/a/%2E./b", "/b", "/b", "/b"],
            ["/%61dmin", "/admin", "/admin", "/admin"],
            ["/%7Euser", "/~user", "/~user", "/~user"],
            ["/A/b", "/A/b", "/A/b", "/A/b"],
            ["/a//b", "/a//b", "/a/b", "/a/b"],
            ["//a///b//", "//a///b//", "/a/b/", "/a/b/"],
            ["/a//../b", "/a/b", "/a/b", "/a/b"],
            ["/a%2Fb", "/a%2Fb", "/a%2Fb", "/a/b"],
            ["/a%2f%2Fb", "/a%2f%2Fb", "/a%2f%2Fb", "/a/b"],
            ["/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"],
            ["/a%5c..%5cb", "/a%5c..%5cb", "/a%5c..%5cb", "/b"],
            ["/a/..%2fb", "/a/..%2fb", "/a/..%2fb", "/b"],
            ["/%c0%af", "/%c0%af", "/%c0%af", "/%c0%af"],
            ["/%25", "/%25", "/%25", "/%25"],
            ["/%252e%252e/b", "/%252e%252e/b", "/%252e%252e/b", "/%252e%252e/b"],
            ["/100%", "/100%", "/100%", "/100%"],
            ["/%zz", "/%zz", "/%zz", "/%zz"],
            ["/a{b}\"", "/a%7Bb%7D%22", "/a%7Bb%7D%22", "/a%7Bb%7D%22"],
            ["/ü", "/%C3%BC", "/%C3%BC", "/%C3%BC"],
            ["/a;b=c/...", "/a;b=c/...", "/a;b=c/...", "/a;b=c/..."],
            ["*", "*", "*", "*"],
        ];
        for [sent, base, merged, decoded] in table {
            for (how, expected) in ALL.into_iter().zip([sent, base, merged, decoded]) {
                assert_eq!(normalize(sent, how).as_deref(), Ok(expected), "{sent} by {how:?}");
            }
        }
    }

    #[test]
    fn what_has_no_normal_form_is_refused() {
        for how in [Base, MergeSlashes, DecodeAndMergeSlashes] {
            for nul in ["/xyz/.%00../abc", "/%00", "/AAA%%0000/abc"] {
                assert_eq!(normalize(nul, how), Err(NotNormal::Nul), "{nul} by {how:?}");
            }
            for twice in ["/a/.%%32e/admin", "/%%361dmin"] {
                assert_eq!(normalize(twice, how), Err(NotNormal::Twice), "{twice} by {how:?}");
            }
        }
        assert_eq!(normalize("/a%%32fb", DecodeAndMergeSlashes), Err(NotNormal::Twice));
    }

    proptest! {
        #[test]
        fn a_normal_path_has_no_other_form_and_no_dots(path in "/([a./\\\\%]|%2[eEfF]|%5[cC]|%6[1-3]){0,12}") {
            for how in [Base, MergeSlashes, DecodeAndMergeSlashes] {
                let Ok(normal) = normalize(&path, how) else { continue };
                let again = normalize(&normal, how);
                prop_assert_eq!(again.as_deref(), Ok(&*normal));
                prop_assert!(normal.starts_with('/'));
                prop_assert!(!normal.split('/').any(|s| s == "." || s == ".."), "{}", normal);
                prop_assert!(!normal.contains('\\'));
                if how != Base {
                    prop_assert!(!normal.contains("//"));
                }
            }
        }
    }
}
