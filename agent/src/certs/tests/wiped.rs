//! What is left of a key in this process's memory once nobody holds it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;

use super::support::{CART, HOUR, Scratch, Scripted, TILL, clock, id, manager};
use crate::certs::keeping::{SecretKey, read_file};
use crate::certs::{EmbeddedIssuer, Identity, Issued};
use crate::tls::Certificate;
use crate::tls::testing::handshake;

/// A byte that every byte of a needle is combined with, so that the search does not find itself.
const MASK: u8 = 0xa5;

/// The forms of one private scalar, masked.
struct Needles(Vec<(&'static str, Vec<u8>)>);

impl Needles {
    /// Of a P-256 key in PKCS#8 or SEC1.
    fn of(der: &[u8]) -> Self {
        // OCTET STRING, 32 bytes, after `version 1` of an ECPrivateKey.
        let before = [0x02, 0x01, 0x01, 0x04, 0x20];
        let at = der.windows(5).position(|w| w == before).expect("a P-256 key") + 5;
        let masked = |byte: &u8| byte ^ MASK;
        // From where three bytes begin and within one line of 48, so that it is what PEM has there.
        let three = at.next_multiple_of(3);
        let whole = if three % 48 + 18 <= 48 { three } else { three.next_multiple_of(48) };
        Self(vec![
            ("the scalar, as in DER", der[at..at + 32].iter().map(masked).collect()),
            ("the scalar, as a number in the library", der[at..at + 32].iter().rev().map(masked).collect()),
            ("base64 of it", base64(&der[whole..whole + 18])),
        ])
    }

    /// Each form that is found, and in which mapping.
    fn found(&self) -> Vec<String> {
        let memory = File::open("/proc/self/mem").unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut buffer = vec![0; 1 << 20];
        let own = buffer.as_ptr() as u64..buffer.as_ptr() as u64 + buffer.len() as u64;
        let mut found = Vec::new();
        for line in maps.lines().filter(|l| l.split(' ').nth(1) == Some("rw-p")) {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [mut at, end] = [from, to].map(|n| u64::from_str_radix(n, 16).unwrap());
            while at < end {
                let stop = if at < own.start { end.min(own.start) } else { end };
                if own.contains(&at) {
                    at = own.end;
                    continue;
                }
                let want = (stop - at).min(buffer.len() as u64) as usize;
                // A mapping may be gone by now: other tests run beside this one.
                let got = memory.read_at(&mut buffer[..want], at).unwrap_or(0);
                for (name, needle) in &self.0 {
                    for place in places(&buffer[..got], needle) {
                        found.push(format!("{name}: {:#x} in {line}", at + place as u64));
                    }
                }
                if at + want as u64 >= stop || got == 0 {
                    at += want as u64;
                } else {
                    // None is missed at the edge of two readings.
                    at += want as u64 - 64;
                }
            }
        }
        buffer.fill(0);
        std::hint::black_box(&buffer);
        found
    }
}

fn places(memory: &[u8], masked: &[u8]) -> Vec<usize> {
    let (first, second) = (masked[0] ^ MASK, masked[1] ^ MASK);
    let mut places = Vec::new();
    for at in 0..(memory.len() + 1).saturating_sub(masked.len()) {
        if memory[at] == first
            && memory[at + 1] == second
            && masked.iter().zip(&memory[at..]).all(|(m, b)| m ^ MASK == *b)
        {
            places.push(at);
        }
    }
    places
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let quartet = |three: &[u8]| {
        let all = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        [18, 12, 6, 0].map(|shift| alphabet[(all >> shift & 63) as usize] ^ MASK)
    };
    bytes.chunks(3).flat_map(quartet).collect()
}

#[tokio::test(start_paused = true)]
async fn a_leafs_key_goes_with_its_certificate() {
    let (scratch, clock) = (Scratch::new(), clock());
    let inner = EmbeddedIssuer::with_clock(&scratch.config(), clock.clone()).unwrap();
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = keys.clone();
    let issuer = Scripted::with(inner, move |_, answer| {
        let answer: Issued = answer?;
        seen.lock().unwrap().push(Needles::of(answer.key.secret_der()));
        Ok(answer)
    });
    let manager = manager(&issuer, &clock);
    let lease = manager.lease(&id(CART));
    let held = lease.ready().await.unwrap();
    shake(&held);
    let found = keys.lock().unwrap()[0].found();
    let in_library = |found: &&String| found.starts_with("the scalar, as a number");
    assert!(!found.is_empty(), "the search finds a key that is in use");
    assert_eq!(found.iter().find(|f| !in_library(f)), None, "nobody but the library has it");
    drop(held);
    sleep(HOUR * 13).await;
    assert_eq!(keys.lock().unwrap().len(), 2, "it has been renewed");
    assert_eq!(keys.lock().unwrap()[0].found(), Vec::<String>::new(), "the renewed one");

    shake(&lease.current().unwrap());
    assert!(!keys.lock().unwrap()[1].found().is_empty());
    drop(lease);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(keys.lock().unwrap()[1].found(), Vec::<String>::new(), "the one that was let go");
}

/// The key signs.
fn shake(identity: &Identity) {
    let client = identity.client_config(&[id(CART)]).unwrap();
    for _ in 0..3 {
        let done = handshake(client.clone(), identity.server_config());
        // Out of their time by this clock, both ends have signed all the same.
        drop(done);
    }
}

#[test]
fn a_key_from_a_file_goes_with_who_read_it() {
    let scratch = Scratch::new();
    let config = scratch.config();
    let needles = {
        let key = SecretKey::generate().unwrap();
        Needles::of(key.pkcs8())
    };
    assert_eq!(needles.found(), Vec::<String>::new(), "one that was made and dropped");

    // Made and written.
    drop(EmbeddedIssuer::open(&config).unwrap());
    let pem = read_file(&config.root_key).unwrap();
    let needles = {
        let key = SecretKey::from_pem(&pem).unwrap();
        Needles::of(key.pkcs8())
    };
    assert!(needles.found().iter().any(|f| f.starts_with("base64")), "the search finds the file's text");
    drop(pem);
    assert_eq!(needles.found(), Vec::<String>::new(), "one that was written and read");

    let issuer = EmbeddedIssuer::open(&config).unwrap();
    issuer.sign(&id(TILL)).unwrap();
    assert!(!needles.found().is_empty());
    drop(issuer);
    assert_eq!(needles.found(), Vec::<String>::new(), "one that signed");
}

/// As another authority's tools write it, on the ways on which PEM comes in.
#[test]
fn a_key_in_sec1_leaves_nothing_either() {
    let scratch = Scratch::new();
    let issued = EmbeddedIssuer::open(&scratch.config()).unwrap().sign(&id(CART)).unwrap();
    let (chain, roots) = (issued.chain.clone(), issued.roots.clone());
    let needles = Needles::of(&issued.key.secret_der()[29..]);
    // What PKCS#8 wraps.
    let sec1 = &issued.key.secret_der()[29..];
    let length = sec1[1] as usize + 2;
    let mut pem = zeroize::Zeroizing::new(Vec::with_capacity(1024));
    pem.extend_from_slice(b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n");
    pem.extend_from_slice(b"-----BEGIN EC PRIVATE KEY-----\n");
    for line in sec1[..length].chunks(48) {
        let whole = line.len() / 3 * 3;
        pem.extend(base64(&line[..whole]).iter().map(|byte| byte ^ MASK));
        if whole < line.len() {
            let mut last = [0; 3];
            last[..line.len() - whole].copy_from_slice(&line[whole..]);
            let kept = line.len() - whole + 1;
            pem.extend(base64(&last)[..kept].iter().map(|byte| byte ^ MASK));
            pem.extend(std::iter::repeat_n(b'=', 4 - kept));
        }
        pem.push(b'\n');
    }
    pem.extend_from_slice(b"-----END EC PRIVATE KEY-----\n");
    drop(issued);

    let issued = Issued::from_pem(&[], &pem, roots).unwrap();
    assert!(matches!(&*issued.key, rustls_pki_types::PrivateKeyDer::Sec1(_)));
    let certificate = Certificate::new(chain, issued.key.clone_key()).unwrap();
    drop((pem, issued));
    let found = needles.found();
    assert!(found.iter().all(|f| f.starts_with("the scalar, as a number")) && !found.is_empty(), "{found:?}");
    drop(certificate);
    assert_eq!(needles.found(), Vec::<String>::new());
}

#[test]
fn broken_keys_in_pem_are_refused() {
    let key = SecretKey::generate().unwrap();
    let pem = key.pem();
    let same = |text: &str| SecretKey::from_pem(text.as_bytes()).unwrap().pkcs8() == key.pkcs8();
    assert_eq!(rcgen::KeyPair::try_from(key.pkcs8()).unwrap().serialize_pem().replace('\r', ""), *pem);
    assert!(same(&pem) && same(&pem.replace('\n', "\r\n")) && same(&format!("# the key\n{}", *pem)));
    let second = SecretKey::generate().unwrap().pem();
    assert!(same(&format!("{}{}", *pem, *second)), "the first counts");
    let body = pem.lines().nth(1).unwrap();
    let table = [
        (String::new(), "no section"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(), "no section"),
        (pem.replace("-----END PRIVATE KEY-----\n", ""), "no end"),
        (pem.replace("END PRIVATE", "END EC PRIVATE"), "not base64"),
        (pem.replace(body, &body.replacen(&body[..1], "*", 1)), "not base64"),
        (pem.replace(body, &body[1..]), "not base64"),
        (pem.replace(body, &format!("=={}", &body[2..])), "not base64"),
        (pem.replace(body, &format!("{body}====")), "not base64"),
    ];
    for (text, why) in table {
        let error = SecretKey::from_pem(text.as_bytes()).err().expect(&text);
        assert!(error.contains(why), "{error} for {text}");
    }
    assert!(SecretKey::from_pem(pem.replace(body, "").as_bytes()).is_err(), "half of it is no key");
}
