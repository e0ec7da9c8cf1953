//! OpenSSL's opinion of what we sign, and what it asks us to sign.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use super::support::{CART, Scratch, config, domain, id, keys, open, request, world};
use crate::ca::hierarchy::{self, INTERMEDIATE_LIFETIME, ROOT_LIFETIME};
use crate::ca::signing::{CERTIFICATE, CHAIN, KEY, ROOTS};
use crate::ca::{Authority, RequestError, check_request};
use crate::certs::Clock;

/// What it said; panics when it failed.
fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "openssl {}: {said}", arguments.join(" "));
    said
}

fn is_absent() -> bool {
    let absent = Command::new("openssl").arg("version").output().is_err();
    if absent {
        println!("skipped: no openssl command here");
    }
    absent
}

/// Judges an issued chain as a server's and as a client's.
fn judge(folder: &Path, pem: &[String]) {
    let (leaf, above) = (&pem[0], &pem[1..pem.len() - 1]);
    fs::write(folder.join("leaf"), leaf).unwrap();
    fs::write(folder.join("above"), above.concat()).unwrap();
    fs::write(folder.join("roots"), &pem[pem.len() - 1]).unwrap();
    for purpose in ["sslserver", "sslclient"] {
        let mut line =
            vec!["verify", "-x509_strict", "-policy_check", "-purpose", purpose, "-CAfile", "roots"];
        if !above.is_empty() {
            line.extend(["-untrusted", "above"]);
        }
        line.push("leaf");
        openssl(folder, &line);
    }
    self_signed(folder, "roots", &["-purpose", "any"]);
}

/// Judges a self-signed certificate by itself, its own signature too.
fn self_signed(folder: &Path, file: &str, arguments: &[&str]) {
    let mut line = vec!["verify", "-x509_strict", "-check_ss_sig", "-policy_check"];
    line.extend(arguments);
    line.extend(["-CAfile", file, file]);
    openssl(folder, &line);
}

#[test]
fn it_accepts_every_kind_of_certificate_that_we_issue() {
    if is_absent() {
        return;
    }
    let offline = world();
    let impatient = Scratch::new();
    let ca = impatient.join("ca");
    hierarchy::make_root(&ca, None, ROOT_LIFETIME, SystemTime::now()).unwrap();
    hierarchy::make_intermediate(&ca, &ca, &domain(), INTERMEDIATE_LIFETIME, SystemTime::now()).unwrap();
    let alone = Scratch::new();
    let ca = alone.join("ca");
    hierarchy::make_root(&ca, None, ROOT_LIFETIME, SystemTime::now()).unwrap();
    fs::copy(ca.join(ROOTS), ca.join(CERTIFICATE)).unwrap();
    fs::rename(ca.join(hierarchy::ROOT_KEY), ca.join(KEY)).unwrap();
    for scratch in [&offline, &impatient, &alone] {
        let authority = open(scratch);
        for (_, key) in keys() {
            let checked = check_request(&request(&key, |_| {}), &id(CART)).unwrap();
            judge(scratch.path(), &authority.issue(&checked, &id(CART), None).unwrap().pem);
        }
        let server = authority.server(&["controller.test".into(), "::1".into()], None).unwrap();
        let mut pem: Vec<String> = server.chain.iter().map(crate::ca::signing::pem).collect();
        pem.push(authority.state().borrow().roots_pem.clone());
        judge(scratch.path(), &pem);
    }
    let (ca, root) = (offline.join("ca"), offline.join("root"));
    self_signed(&root, ROOTS, &["-purpose", "any"]);
    // An intermediate by itself, as somebody would look at what `underpass ca intermediate` has made.
    openssl(&ca, &["verify", "-x509_strict", "-check_ss_sig", "-CAfile", ROOTS, CERTIFICATE]);
    let node = hierarchy::make_node("node-1", &offline.join("node"), SystemTime::now()).unwrap();
    self_signed(&offline.join("node"), "node.pem", &["-purpose", "sslclient"]);
    openssl(&offline.join("node"), &["x509", "-in", "node.pem", "-noout", "-checkend", "0"]);
    let spki = openssl(&offline.join("node"), &["x509", "-in", "node.pem", "-noout", "-pubkey"]);
    fs::write(offline.join("spki"), spki).unwrap();
    openssl(offline.path(), &["pkey", "-pubin", "-in", "spki", "-outform", "DER", "-out", "spki.der"]);
    let digest = openssl(offline.path(), &["dgst", "-sha256", "-r", "spki.der"]);
    assert_eq!(node.pin, format!("sha256:{}", digest.split_whitespace().next().unwrap()));
}

/// A plugged-in authority as Istio's own documentation makes it: RSA, written by openssl.
#[test]
fn an_authority_that_openssl_made_is_taken() {
    if is_absent() {
        return;
    }
    let scratch = Scratch::new();
    let ca = scratch.join("ca");
    fs::create_dir(&ca).unwrap();
    let run = |line: &str| openssl(&ca, &line.split(' ').collect::<Vec<_>>());
    fs::write(
        ca.join("conf"),
        "[req]\ndistinguished_name=dn\n[dn]\n[root]\nsubjectKeyIdentifier=hash\n\
         basicConstraints=critical,CA:true\nkeyUsage=critical,digitalSignature,keyCertSign\n\
         [ca]\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n\
         basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,digitalSignature,keyCertSign\n\
         subjectAltName=DNS:istiod.istio-system.svc\n",
    )
    .unwrap();
    run(
        "req -x509 -new -newkey rsa:2048 -nodes -keyout rk -subj /O=Istio/CN=Root -config conf -extensions root -days 9 -out root-cert.pem",
    );
    run("genrsa -traditional -out ca-key.pem 2048");
    run("req -new -key ca-key.pem -subj /O=Istio/L=cluster-1/CN=Intermediate -config conf -out csr");
    run(
        "x509 -req -in csr -CA root-cert.pem -CAkey rk -CAcreateserial -days 8 -extfile conf -extensions ca -out ca-cert.pem",
    );
    let chain =
        fs::read_to_string(ca.join(CERTIFICATE)).unwrap() + &fs::read_to_string(ca.join(ROOTS)).unwrap();
    fs::write(ca.join(CHAIN), chain).unwrap();
    let authority = open(&scratch);
    for (_, key) in keys() {
        let checked = check_request(&request(&key, |_| {}), &id(CART)).unwrap();
        judge(scratch.path(), &authority.issue(&checked, &id(CART), None).unwrap().pem);
    }

    // A subject with two units: rcgen would write one of them into leaves, so nobody could find the issuer.
    run("req -new -key ca-key.pem -subj /O=Istio/OU=a/OU=b/CN=Intermediate -config conf -out csr");
    run(
        "x509 -req -in csr -CA root-cert.pem -CAkey rk -CAcreateserial -days 8 -extfile conf -extensions ca -out ca-cert.pem",
    );
    fs::remove_file(ca.join(CHAIN)).unwrap();
    let error = Authority::open(&config(&scratch), Clock::system()).unwrap_err();
    assert!(error.to_string().contains("peers would not believe"), "{error}");
}

#[test]
fn its_requests_are_granted() {
    if is_absent() {
        return;
    }
    let scratch = Scratch::new();
    let san = format!("subjectAltName=critical,URI:{CART}");
    let kinds: [&[&str]; 5] = [
        &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
        &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
        &["ed25519"],
        &["rsa:2048"],
        &["rsa:4096"],
    ];
    let make = |kind: &[&str], more: &[&str]| {
        let line =
            [&["req", "-new", "-nodes", "-keyout", "key", "-out", "csr", "-newkey"], kind, more].concat();
        openssl(scratch.path(), &line);
        fs::read_to_string(scratch.join("csr")).unwrap()
    };
    for kind in kinds {
        let pem = make(kind, &["-subj", "/", "-addext", &san]);
        let checked = check_request(&pem, &id(CART)).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
        openssl(scratch.path(), &["pkey", "-in", "key", "-pubout", "-outform", "DER", "-out", "spki"]);
        assert_eq!(checked.public_key(), fs::read(scratch.join("spki")).unwrap());
    }
    // Debian's configuration has usages in it, and a subject is asked for.
    let pem = make(kinds[0], &["-subj", "/O=cluster.local/CN=cart", "-reqexts", "v3_req"]);
    check_request(&pem, &id(CART)).unwrap();

    for (kind, more) in [
        (&["rsa:1024"][..], &[][..]),
        (&["ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"], &[]),
        (&["ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"], &[]),
        (&["ed448"], &[]),
        (&["rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"], &[]),
    ] {
        let pem = make(kind, &[&["-subj", "/"], more].concat());
        let error = check_request(&pem, &id(CART)).expect_err(&format!("{kind:?}"));
        assert!(matches!(error, RequestError::Key(_) | RequestError::Malformed(_)), "{kind:?}: {error}");
    }
    let pem = make(&["rsa:2048"], &["-subj", "/", "-sha1"]);
    let error = check_request(&pem, &id(CART)).unwrap_err();
    assert!(matches!(error, RequestError::SignatureAlgorithm(_)), "{error}");
    // A point in its short form.
    make(kinds[0], &["-subj", "/"]);
    openssl(scratch.path(), &["ec", "-in", "key", "-conv_form", "compressed", "-out", "short"]);
    openssl(scratch.path(), &["req", "-new", "-key", "short", "-subj", "/", "-out", "csr"]);
    let error = check_request(&fs::read_to_string(scratch.join("csr")).unwrap(), &id(CART)).unwrap_err();
    assert!(matches!(error, RequestError::Key(_)), "{error}");
}
