//! What the fuzz targets do with their input, as plain functions: `src/bin` hands them to libFuzzer,
//! and the tests below give them the seeds.
//!
//! Each says whether the parser took the input, and panics where the parser broke a promise.

mod authorization;
mod kubernetes;

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use underpass::ca::check_request;
use underpass::discovery::file::{self, FileError};
use underpass::model::{SpiffeId, TrustDomain};
use underpass::proxy::tunnel::parse_request;
use underpass::tls::{Accept, Crls, TlsError, TrustBundles, Trusted, verify_chain};

pub use authorization::authorization;
pub use kubernetes::kubernetes;

/// A CONNECT request of another node's agent: method and authority in the first line, a header in each
/// of the others. What `http` refuses never reaches the parser, neither here nor behind `h2`.
///
/// # Panics
/// When a request that was taken is another one after encoding.
pub fn hbone_request(input: &[u8]) -> bool {
    let Some(request) = request(input) else { return false };
    let Ok(connect) = parse_request(&request) else { return false };
    let encoded = connect.encode().unwrap_or_else(|e| panic!("{connect:?} cannot be encoded: {e}"));
    assert_eq!(parse_request(&encoded).as_ref(), Ok(&connect));
    if let Some(baggage) = &connect.baggage {
        let _ = baggage.fields();
    }
    true
}

/// A mesh file.
///
/// # Panics
/// When a refusal does not say what is wrong, or one text is read in two ways.
pub fn mesh_file(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    match file::parse(text) {
        Ok(_) => true,
        Err(FileError::Invalid(invalid)) => {
            assert!(!invalid.to_string().is_empty());
            assert!(file::parse(text).is_err());
            false
        }
        Err(other) => panic!("reading no file gave {other:?}"),
    }
}

/// A signing request in PEM, granted for the one identity that the seeds name.
///
/// # Panics
/// When what was granted is for somebody else, or its key is not in the request.
pub fn csr(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let Ok(granted) = "spiffe://mesh.test/ns/shop/sa/cart".parse() else { return false };
    match check_request(text, &granted) {
        Ok(checked) => {
            assert_eq!(checked.identity(), &granted);
            let key = checked.public_key();
            let der = CertificateSigningRequestDer::from_pem_slice(text.trim().as_bytes())
                .expect("it was read before");
            assert!(der.windows(key.len()).any(|window| window == key));
            true
        }
        Err(refused) => {
            assert!(refused.to_string().len() < 4096);
            false
        }
    }
}

/// What a client says on a port where requests are judged, HTTP/1.1 or HTTP/2; all but `/admin` is allowed.
///
/// # Panics
/// When the application is asked anything that was not judged and allowed just so.
pub fn http_requests(input: &[u8]) -> bool {
    underpass::proxy::fuzz_requests(input)
}

/// The name in a peer's certificate.
///
/// # Panics
/// When there are two spellings of one id, or of one account.
pub fn spiffe_id(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let domain = text.parse::<TrustDomain>();
    assert!(domain.is_err() || domain.is_ok_and(|domain| domain.as_str() == text));
    let Ok(id) = text.parse::<SpiffeId>() else { return false };
    assert_eq!(id.to_string(), text);
    if let Some((namespace, account)) = id.account() {
        assert_eq!(SpiffeId::new(id.trust_domain().clone(), namespace, account).as_ref(), Ok(&id));
    }
    true
}

/// Certificates as a peer shows them, one behind the other: each a SEQUENCE of DER.
///
/// # Panics
/// When a chain proves another identity than its root's authority gave out.
pub fn chain(input: &[u8]) -> bool {
    match verify(&certificates(input), Crls::default()) {
        Ok(proven) => {
            assert_eq!(proven.to_string(), "spiffe://mesh.test/ns/shop/sa/till");
            true
        }
        Err(e) => {
            assert!(!e.to_string().is_empty());
            false
        }
    }
}

/// A file of revocation lists.
///
/// # Panics
/// When one file is read in two ways.
pub fn crl(input: &[u8]) -> bool {
    let mut lists = Crls::default();
    if lists.add(input).is_err() {
        assert!(lists.is_empty());
        return false;
    }
    let once = lists.clone();
    assert!(lists.add(input).is_ok());
    assert_eq!((&lists, lists.len()), (&once, once.iter().count()));
    // Whatever they say of it, they are asked.
    let _ = verify(&certificates(include_bytes!("../seeds/chain/leaf-and-intermediate")), lists);
    true
}

/// By a root that lasts, in a year in which everything that it signed is valid.
fn verify(chain: &[CertificateDer<'_>], revoked: Crls) -> Result<SpiffeId, TlsError> {
    let domain: TrustDomain = "mesh.test".parse().unwrap_or_default();
    let mut bundles = TrustBundles::new();
    bundles.add(&domain, [CertificateDer::from(&include_bytes!("root.der")[..])])?;
    let then = UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    verify_chain(chain, &Trusted { bundles, revoked }, &Accept::TrustDomains([domain].into()), then)
}

/// What is no DER at the end becomes a certificate too.
fn certificates(mut input: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut found = Vec::new();
    while !input.is_empty() && found.len() < 16 {
        let len = match input {
            [0x30, 0x82, high, low, ..] => 4 + (usize::from(*high) << 8 | usize::from(*low)),
            [0x30, 0x81, len, ..] => 3 + usize::from(*len),
            _ => input.len(),
        };
        let (one, rest) = input.split_at(len.min(input.len()));
        found.push(one.into());
        input = rest;
    }
    found
}

fn request(input: &[u8]) -> Option<Request<()>> {
    let mut lines = input.split(|byte| *byte == b'\n');
    let first = lines.next()?;
    let space = first.iter().position(|byte| *byte == b' ')?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(&first[..space]).ok()?;
    *request.uri_mut() = Uri::try_from(&first[space + 1..]).ok()?;
    *request.headers_mut() = lines.filter_map(header).collect::<HeaderList>().0;
    Some(request)
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
}

/// Keeps a header that is given twice twice, where collecting into a `HeaderMap` keeps the last.
struct HeaderList(HeaderMap);

impl FromIterator<(HeaderName, HeaderValue)> for HeaderList {
    fn from_iter<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(headers: T) -> Self {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        Self(map)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Seeds that are refused would teach the fuzzer only how to be refused.
    fn every_seed(target: &str, taken: fn(&[u8]) -> bool) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
        let mut seen = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(taken(&fs::read(&path).unwrap()), "{} is refused", path.display());
            seen += 1;
        }
        assert!(seen > 0, "no seeds in {}", folder.display());
    }

    #[test]
    fn authorization_takes_its_seeds() {
        every_seed("authorization", super::authorization);
    }

    #[test]
    fn kubernetes_takes_its_seeds() {
        every_seed("kubernetes", super::kubernetes);
    }

    #[test]
    fn csr_takes_its_seeds() {
        every_seed("csr", super::csr);
    }

    #[test]
    fn hbone_request_takes_its_seeds() {
        every_seed("hbone_request", super::hbone_request);
    }

    #[test]
    fn http_requests_takes_its_seeds() {
        every_seed("http_requests", super::http_requests);
    }

    #[test]
    fn mesh_file_takes_its_seeds() {
        every_seed("mesh_file", super::mesh_file);
    }

    #[test]
    fn spiffe_id_takes_its_seeds() {
        every_seed("spiffe_id", super::spiffe_id);
    }

    #[test]
    fn chain_takes_its_seeds() {
        every_seed("chain", super::chain);
    }

    #[test]
    fn crl_takes_its_seeds() {
        every_seed("crl", super::crl);
    }
}
