//! Keys are in the files that were made for them and in the memory of who signs, and nowhere else: not in a
//! log at its most talkative, not in an answer of an admin API, not in a metric, not in a file of state.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::controller::{Authority, Controller};
use underpass_tests::stories::{self, World};
use underpass_tests::work::{server, talk};
use underpass_tests::{Cluster, Mesh, Server, Settings, Topology, wait};

fn main() -> ExitCode {
    stories::run(&[("no_key_is_in_a_log_an_answer_or_another_file", nowhere)])
}

const APP: u16 = 8080;
/// Renewed after three to six seconds.
const LIFETIME: Duration = Duration::from_secs(12);

struct Mine {
    cluster: Cluster,
    controller: Controller,
    _server: Server,
}

impl World for Mine {
    fn build() -> Result<Self> {
        let topology = Topology::new(&["n1", "n2"], &[("client", "n1"), ("server", "n2")])?;
        let authority = Authority::make(&topology)?.with_lifetime(LIFETIME);
        let controller =
            Controller::start(&topology, "n1", &authority, "log:\n  filter: trace,notify=info\n")?;
        let settings = Settings {
            controller: Some(controller.address()),
            log: "trace,notify=info",
            ..Settings::default()
        };
        let mesh = Mesh::default().meshed("client", "client").meshed("server", "server").strict();
        let cluster = Cluster::on(topology, mesh, settings)?;
        let server = Server::start(cluster.ns("server"), APP, server::echo)?;
        Ok(Self { cluster, controller, _server: server })
    }

    fn diagnose(&self) -> String {
        format!("{}\n{}", self.cluster.diagnose(), self.controller.tail())
    }
}

fn nowhere(w: &mut Mine) -> Result<()> {
    talk::echo_once(w.cluster.ns("client"), w.cluster.addr("server", APP, false))?;
    let serial = || -> Result<Value> { Ok(w.cluster.n1.certificate("client")?["serial"].clone()) };
    let first = serial()?;
    wait::until_true(wait::PATIENCE, "the certificate is renewed", || serial().is_ok_and(|s| s != first))?;

    let dir = w.cluster.n1.socket().parent().context("the topology's folder")?.to_owned();
    let mut files = BTreeMap::new();
    collect(&dir, &mut files)?;
    let mut secrets = Vec::new();
    let mut told = BTreeMap::new();
    for (path, content) in files {
        let is_key =
            path.ends_with("node.key") || path.ends_with("ca-key.pem") || path.ends_with("root-key.pem");
        if is_key {
            secrets.extend(forms(&path, &content)?);
        } else {
            told.insert(path, content);
        }
    }
    ensure!(secrets.len() > 10, "the keys of two nodes and the authority are known: {}", secrets.len());
    ensure!(told.iter().any(|(p, c)| p.ends_with("n1.log") && c.len() > 100_000), "the agent is talkative");

    for (name, agent) in ["n1", "n2"].into_iter().zip(w.cluster.agents()) {
        for path in
            ["/status", "/workloads", "/pods", "/certificates", "/trust", "/connections", "/config", "/log"]
        {
            told.insert(format!("{name} {path}"), agent.admin(path)?.to_string().into_bytes());
        }
        told.insert(format!("{name} metrics"), agent.metrics()?.into_bytes());
        for command in [&["status"][..], &["certs"], &["certs", "-o", "json"], &["certs", "-o", "yaml"]] {
            told.insert(format!("{name} {command:?}"), agent.cli(command)?.stdout);
        }
    }
    told.insert("the controller's agents".into(), w.controller.admin("/agents")?.to_string().into_bytes());

    // Of any key on P-256, such as those of the pods, which nobody outside of the agent knows: how PKCS#8 and
    // SEC1 begin, up to where the scalar does.
    let pkcs8 = unhex("308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420");
    for begin in [&pkcs8[..], &unhex("306b0201010420"), &unhex("30770201010420")] {
        secrets.extend(written("some key's beginning", begin));
    }
    secrets.push(("PEM of some key".into(), b"PRIVATE KEY-----".to_vec()));
    for (place, content) in &told {
        for (what, form) in &secrets {
            let at = content.windows(form.len()).position(|window| window == form);
            ensure!(at.is_none(), "{what} is in {place}, at {at:?} of {} bytes", content.len());
        }
    }
    Ok(())
}

fn collect(dir: &Path, into: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), into)?;
        } else if kind.is_file() {
            into.insert(entry.path().display().to_string(), fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// What of a key in PEM may show: its text, and its scalar in every way that bytes are written.
fn forms(path: &str, pem: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let text = std::str::from_utf8(pem)?;
    let body: Vec<&str> = text.lines().filter(|line| !line.starts_with('-')).collect();
    // Half of the scalar is in the second line; the third has the public key, which certificates show too.
    let line = body.get(1).with_context(|| format!("{path} is no PEM"))?;
    let mut forms = vec![(path.to_owned(), line.as_bytes().to_vec())];
    let der = unbase64(&body.concat());
    let begin = [0x02, 0x01, 0x01, 0x04, 0x20];
    let at =
        der.windows(5).position(|w| w == begin).with_context(|| format!("{path} is no key on P-256"))? + 5;
    forms.extend(written(path, der.get(at..at + 16).context("a whole key")?));
    Ok(forms)
}

/// Raw, in hexadecimal of both cases, and as `{:?}` and `{:x?}` print a list.
fn written(what: &str, bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let joined = |each: &dyn Fn(&u8) -> String, by: &str| {
        bytes.iter().map(each).collect::<Vec<_>>().join(by).into_bytes()
    };
    let named = |form: Vec<u8>| (what.to_owned(), form);
    vec![
        named(bytes.to_vec()),
        named(joined(&|b| format!("{b:02x}"), "")),
        named(joined(&|b| format!("{b:02X}"), "")),
        named(joined(&|b| b.to_string(), ", ")),
        named(joined(&|b| format!("{b:x}"), ", ")),
        named(joined(&|b| format!("{b:02x}"), ":")),
        named(base64(&bytes[..bytes.len() / 3 * 3])),
    ]
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> Vec<u8> {
    let quartet = |three: &[u8]| {
        let all = three.iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| ALPHABET[(all >> shift & 63) as usize])
    };
    bytes.chunks_exact(3).flat_map(quartet).collect()
}

fn unbase64(text: &str) -> Vec<u8> {
    let sextets: Vec<u32> = text
        .bytes()
        .filter_map(|c| ALPHABET.iter().position(|known| *known == c))
        .map(|at| u32::try_from(at).unwrap_or(0))
        .collect();
    let three = |four: &[u32]| {
        let all = four.iter().fold(0, |all, six| all << 6 | six) << (6 * (4 - four.len()));
        all.to_be_bytes()[1..four.len()].to_vec()
    };
    sextets.chunks(4).flat_map(three).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).filter_map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()).collect()
}
