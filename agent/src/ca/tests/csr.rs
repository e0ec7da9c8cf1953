//! Which requests are granted, and that nothing else gets out of any.

use proptest::prelude::*;
use rcgen::{
    Attribute, BasicConstraints, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;

use super::support::{CART, id, keys, params, request, uri};
use crate::ca::{RequestError, check_request};

#[test]
fn what_honest_clients_send_is_granted() {
    let key = KeyPair::generate().unwrap();
    let subject = |text: &str| {
        let text = text.to_owned();
        request(&key, |p| p.distinguished_name.push(DnType::OrganizationName, text))
    };
    let sent = [
        ("ztunnel", request(&key, |_| {})),
        ("no SAN", request(&key, |p| p.subject_alt_names.clear())),
        ("a sidecar's agent", subject("cluster.local")),
        ("a sidecar's agent without organisation", subject("")),
        (
            "usages of a leaf",
            request(&key, |p| {
                p.key_usages = vec![
                    KeyUsagePurpose::DigitalSignature,
                    KeyUsagePurpose::ContentCommitment,
                    KeyUsagePurpose::KeyEncipherment,
                ];
                p.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
                p.is_ca = IsCa::ExplicitNoCa;
            }),
        ),
        ("with line ends of another system", request(&key, |_| {}).replace('\n', "\r\n")),
    ];
    for (who, pem) in sent {
        let checked = check_request(&pem, &id(CART)).unwrap_or_else(|e| panic!("{who}: {e}"));
        assert_eq!(checked.public_key(), key.subject_public_key_info(), "{who}");
        assert_eq!(checked.identity(), &id(CART));
    }
    for (kind, key) in keys() {
        let checked =
            check_request(&request(&key, |_| {}), &id(CART)).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_eq!(checked.public_key(), key.subject_public_key_info(), "{kind}");
    }
}

#[test]
fn what_asks_for_more_is_refused() {
    type Check = fn(&RequestError) -> bool;
    let names: Check = |e| matches!(e, RequestError::Names { .. });
    let asked: Check = |e| matches!(e, RequestError::Extension(_));
    let key = KeyPair::generate().unwrap();
    let with = |change: &dyn Fn(&mut rcgen::CertificateParams)| request(&key, |p| change(p));
    let extension = |oid: &[u64], content: &[u8]| CustomExtension::from_oid_content(oid, content.to_vec());
    let san = [0x30, 2, 0x82, 0];
    let refused: Vec<(&str, String, Check)> = vec![
        (
            "another identity",
            with(&|p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/till")]),
            names,
        ),
        (
            "another spelling",
            with(&|p| p.subject_alt_names = vec![uri("SPIFFE://mesh.test/ns/shop/sa/cart")]),
            names,
        ),
        ("two", with(&|p| p.subject_alt_names.push(uri("spiffe://mesh.test/ns/shop/sa/till"))), names),
        ("the same twice", with(&|p| p.subject_alt_names.push(uri(CART))), names),
        (
            "a host too",
            with(&|p| p.subject_alt_names.push(SanType::DnsName("x.test".try_into().unwrap()))),
            names,
        ),
        (
            "a host only",
            with(&|p| p.subject_alt_names = vec![SanType::DnsName("x.test".try_into().unwrap())]),
            names,
        ),
        ("an address", with(&|p| p.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()))), names),
        (
            "a mailbox",
            with(&|p| p.subject_alt_names.push(SanType::Rfc822Name("a@x.test".try_into().unwrap()))),
            names,
        ),
        ("to be an authority", with(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), asked),
        (
            "to sign certificates",
            with(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign]),
            asked,
        ),
        ("to sign lists", with(&|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]), asked),
        (
            "to sign code",
            with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
            asked,
        ),
        ("any purpose", with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]), asked),
        (
            "a purpose of its own",
            with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![1, 2, 3])]),
            asked,
        ),
        (
            "name constraints",
            with(&|p| p.custom_extensions.push(extension(&[2, 5, 29, 30], &[0x30, 0]))),
            |e| matches!(e, RequestError::Extension(_) | RequestError::Malformed(_)),
        ),
        (
            "an extension that nobody knows",
            with(&|p| p.custom_extensions.push(extension(&[1, 2, 3, 4], &[5, 0]))),
            asked,
        ),
        (
            "a second SAN extension",
            with(&|p| p.custom_extensions.push(extension(&[2, 5, 29, 17], &san))),
            |e| matches!(e, RequestError::Extension(_) | RequestError::Malformed(_)),
        ),
    ];
    for (what, pem, check) in refused {
        let error = check_request(&pem, &id(CART)).expect_err(what);
        assert!(check(&error), "{what}: {error:?}");
    }
}

/// The DER of a SET of these.
fn set(values: &[&[u8]]) -> Vec<u8> {
    let content: Vec<u8> = values.concat();
    [&[0x31, content.len() as u8][..], &content].concat()
}

#[test]
fn nothing_is_smuggled_in_beside_the_extension_request() {
    const EXTENSIONS: &[u64] = &[1, 2, 840, 113_549, 1, 9, 14];
    const PASSWORD: &[u64] = &[1, 2, 840, 113_549, 1, 9, 7];
    const UNKNOWN: &[u64] = &[1, 2, 3, 4];
    // Extensions ::= SEQUENCE OF one with basic constraints CA:TRUE.
    let authority: &[u8] = &[0x30, 0x0e, 0x30, 0x0c, 6, 3, 0x55, 0x1d, 0x13, 4, 5, 0x30, 3, 1, 1, 0xff];
    let nothing: &[u8] = &[0x30, 0];
    let key = KeyPair::generate().unwrap();
    let cases: [(&str, bool, &[u64], Vec<u8>); 6] = [
        ("a password", true, PASSWORD, set(&[&[0x0c, 1, b'x']])),
        ("an unknown attribute", true, UNKNOWN, set(&[&[5, 0]])),
        ("a second extension request", true, EXTENSIONS, set(&[authority])),
        ("the only one, for an authority", false, EXTENSIONS, set(&[authority])),
        ("a second value of the only one", false, EXTENSIONS, set(&[nothing, authority])),
        ("no value", false, EXTENSIONS, set(&[])),
    ];
    for (what, named, oid, values) in cases {
        let params = params(|p| {
            if !named {
                p.subject_alt_names.clear()
            }
        });
        let request =
            params.serialize_request_with_attributes(&key, vec![Attribute { oid, values }]).unwrap();
        let error = check_request(&request.pem().unwrap(), &id(CART)).expect_err(what);
        let fits = matches!(
            error,
            RequestError::Attribute(_) | RequestError::Extension(_) | RequestError::Malformed(_)
        );
        assert!(fits, "{what}: {error:?}");
    }
}

#[test]
fn only_who_holds_the_key_gets_a_certificate_for_it() {
    let (key, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let honest = request(&key, |_| {});
    let stolen = splice(&request(&thief, |_| {}), thief.der_bytes(), key.der_bytes());
    assert_eq!(check_request(&stolen, &id(CART)).unwrap_err(), RequestError::Possession);
    // The last byte is the signature's.
    let mut der = CertificateSigningRequestDer::from_pem_slice(honest.as_bytes()).unwrap().to_vec();
    *der.last_mut().unwrap() ^= 1;
    assert_eq!(check_request(&pem(&der), &id(CART)).unwrap_err(), RequestError::Possession);
    // Whose key it is does not say whom it is for.
    let error = check_request(&honest, &id("spiffe://mesh.test/ns/shop/sa/till")).unwrap_err();
    assert!(matches!(error, RequestError::Names { .. }), "{error}");
}

#[test]
fn the_form_is_one_section_and_nothing_else() {
    let key = KeyPair::generate().unwrap();
    let good = request(&key, |_| {});
    let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
    let long = [&der[..], &[5, 0]].concat();
    let refused = [
        String::new(),
        "-----BEGIN CERTIFICATE REQUEST-----".into(),
        "-----BEGIN CERTIFICATE REQUEST----------END CERTIFICATE REQUEST-----".into(),
        good.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        good.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
        format!("{good}{good}"),
        format!("something first\n{good}"),
        format!("{good}something after\n"),
        good.replacen('M', "!", 1),
        pem(&long),
        pem(&der[..der.len() - 1]),
        pem(&[]),
        pem(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]),
    ];
    for text in refused {
        let error = check_request(&text, &id(CART)).expect_err(&text);
        assert!(matches!(error, RequestError::Pem(_) | RequestError::Malformed(_)), "{text}: {error}");
    }
    let error = check_request(&" ".repeat(1 << 20), &id(CART)).unwrap_err();
    assert_eq!(error, RequestError::TooLarge(1 << 20));
    // What a caller may send must not fill a log.
    let error =
        check_request(&request(&key, |p| p.subject_alt_names = vec![uri(&"x".repeat(9000))]), &id(CART));
    assert!(error.unwrap_err().to_string().len() < 1024);
}

#[test]
fn weak_and_odd_keys_are_refused() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let error = check_request(&request(&key, |_| {}), &id(CART)).unwrap_err();
    assert!(matches!(error, RequestError::Key(_)), "{error}");
}

fn pem(der: &[u8]) -> String {
    let certificate = crate::ca::signing::pem(&der.to_vec().into());
    certificate.replace("CERTIFICATE", "CERTIFICATE REQUEST")
}

/// `request` with one byte string in place of another of the same length.
fn splice(request: &str, from: &[u8], to: &[u8]) -> String {
    let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap().to_vec();
    let at = der.windows(from.len()).position(|w| w == from).unwrap();
    pem(&[&der[..at], to, &der[at + from.len()..]].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever is changed in a sound request: it is refused, or grants the same key for the same name.
    #[test]
    fn a_changed_request_grants_nothing_else(
        which in 0..3usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3u8, any::<u8>()), 1..4),
    ) {
        use std::sync::OnceLock;
        static SOUND: OnceLock<Vec<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
        let sound = SOUND.get_or_init(|| {
            keys().into_iter().map(|(_, key)| {
                let der = params(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature])
                    .serialize_request(&key).unwrap().der().to_vec();
                (der, key.subject_public_key_info())
            }).collect()
        });
        let (mut der, key) = sound[which].clone();
        for (at, what, byte) in edits {
            let at = at.index(der.len());
            match what {
                0 => der.insert(at, byte),
                1 => drop(der.remove(at)),
                _ => der[at] = byte,
            }
        }
        if let Ok(checked) = check_request(&pem(&der), &id(CART)) {
            prop_assert_eq!(checked.public_key(), key);
            prop_assert_eq!(checked.identity(), &id(CART));
        }
    }

    #[test]
    fn no_text_is_too_strange(text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(check_request(&text, &id(CART)).is_err());
        prop_assert!(check_request(&pem(&bytes), &id(CART)).is_err());
    }
}
