//! Agents that have their certificates from an authority that shares no code with ours and is to them what
//! istiod is: what it is told, and what goes on when it is away, busy, somebody else, or hostile.

use std::fs;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::capture::{self, Capture};
use underpass_tests::istiod::{self, Istiod};
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::NODE_LINK;
use underpass_tests::work::{Traffic, server, talk};
use underpass_tests::{Agent, Cluster, Mesh, Server, Settings, Topology, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("traffic_flows_under_certificates_of_an_istiod_that_is_not_ours", issued),
        ("a_token_that_is_replaced_is_the_one_that_the_next_call_carries", token_replaced),
        ("istiod_goes_away_and_comes_back_and_no_connection_fails", away),
        ("who_asked_and_what_istiod_said_is_told_by_underpass_certs", words),
        ("somebody_else_in_istiods_place_is_not_shown_the_token", impostor),
        ("whatever_a_hostile_istiod_answers_the_valid_certificate_is_kept", hostile),
    ])
}

const APP: u16 = 8080;
/// Renewed after three to five seconds.
const LIFETIME: Duration = Duration::from_secs(8);
/// Long enough to look at everything between a renewal that failed and the end, and renewed before servers tire
/// of a connection that says nothing.
const LONG: Duration = Duration::from_secs(20);

/// What a hostile authority answers, each to a pod called as it; and a word of what is told of that.
const HOSTILE: [(&str, &str); 10] = [
    ("foreign", "does not chain to a root"),
    ("wrong-san", "/sa/wrong-sanx"),
    ("two-sans", "exactly one URI SAN"),
    ("wrong-key", "does not fit the certificate"),
    ("expired", "expired"),
    ("authority", "CA certificate"),
    ("garbage", "was damaged"),
    ("no-message", "decode"),
    ("nothing", "no certificates, asked https://"),
    ("oversized", "too large"),
];

struct Mine {
    cluster: Cluster,
    istiod: Istiod,
    _servers: Vec<Server>,
}

impl World for Mine {
    fn build() -> Result<Self> {
        let mut pods = vec![("client", "n1"), ("server", "n2")];
        pods.extend(HOSTILE.map(|(kind, _)| (kind, "n1")));
        let topology = Topology::new(&["n1", "n2"], &pods)?;
        let istiod = Istiod::start(&topology, "n2", LIFETIME)?;
        let settings = Settings { istiod: Some(istiod.address()), ..Settings::default() };
        let cluster = Cluster::on(topology, mesh(), settings)?;
        let servers = ["client", "server"]
            .into_iter()
            .map(|pod| Server::start(cluster.ns(pod), APP, server::echo))
            .collect::<Result<_>>()?;
        Ok(Self { cluster, istiod, _servers: servers })
    }

    fn diagnose(&self) -> String {
        format!("{}\n{}", self.cluster.diagnose(), self.istiod.tail())
    }
}

fn mesh() -> Mesh {
    Mesh::default().meshed("client", "client").meshed("server", "server").strict()
}

fn issued(w: &mut Mine) -> Result<()> {
    let link = Capture::start(&w.cluster.topology.node("n1").ns, NODE_LINK)?;
    let traffic = Traffic::start(&w.cluster, ["client", "server"], APP);
    let mut old = w.long_lived()?;
    let before = w.serials()?;
    w.both("it is another one", |c| c["state"] == "valid" && !before.contains(&c["serial"]))?;
    let secret = b"nobody on the link reads this";
    talk::echo(&mut old, secret)?;
    traffic.end()?;
    capture::settle(&link)?;
    ensure!(!link.shows(secret)? && link.count_on(APP)? == 0, "plaintext on the link");

    for call in w.istiod.calls()? {
        ensure!(call["answer"] == "good" && call["cluster"] == istiod::CLUSTER, "{call}");
        let (node, pod) = if call["node"] == "n1" { ("n1", "client") } else { ("n2", "server") };
        ensure!(
            call["token"] == format!("first-token-of-{node}") && call["identity"] == identity(pod),
            "{call}"
        );
        ensure!(call["seconds"] == Settings::default().certificate_lifetime.as_secs(), "{call}");
    }
    let shown = w.cluster.n1.certificate("client")?;
    ensure!(shown["issuer"] == "istio" && shown["chain_length"] == 2, "{shown}");
    let serial = shown["serial"].as_str().context("no serial")?.trim_start_matches('0').to_owned();
    ensure!(w.istiod.calls()?.iter().any(|c| c["serial"] == serial), "istiod knows nothing of {serial}");
    Ok(())
}

fn token_replaced(w: &mut Mine) -> Result<()> {
    let traffic = Traffic::start(&w.cluster, ["client", "server"], APP);
    let seen = w.istiod.calls()?.len();
    let before = w.serials()?;
    let token = w.istiod.give_token(&w.cluster.topology, "n1", "second")?;
    w.both("it is another one", |c| c["state"] == "valid" && !before.contains(&c["serial"]))?;
    let calls = w.istiod.calls()?;
    let later = || calls[seen..].iter();
    let of_n1 = later().find(|c| c["node"] == "n1").context("n1 did not ask")?;
    ensure!(of_n1["token"] == token, "{of_n1}");
    // One call may have been on its way meanwhile.
    let late = later().filter(|c| c["token"] == "first-token-of-n1").count();
    ensure!(late <= 1, "the token of before was used {late} times");
    ensure!(later().any(|c| c["token"] == "first-token-of-n2"), "n2 did not ask with its own");
    traffic.end()?;

    // A token that istiod does not take: the certificate is kept, and it is told why it will end.
    let file = istiod::token_file(w.cluster.topology.dir(), "n1");
    let good = fs::read_to_string(&file)?;
    fs::write(&file, "nobody's")?;
    w.of("n1", "client", "it is refused another, and used", |c| {
        c["state"] == "renewal_failing" && told(c, &["request authenticate failure", "audience"])
    })?;
    talk::echo_once(w.cluster.ns("client"), w.cluster.addr("server", APP, true))?;
    for secret in ["nobody's", good.trim()] {
        let texts = [w.cluster.n1.log(), w.cluster.n1.admin("/certificates")?.to_string()];
        ensure!(texts.iter().all(|t| !t.contains(secret)), "the token {secret} is told");
    }
    fs::remove_file(&file)?;
    w.of("n1", "client", "there is no token", |c| told(c, &["cannot read the token file"]))?;
    fs::write(&file, good)?;
    w.both("it is valid again", |c| c["state"] == "valid")
}

fn away(w: &mut Mine) -> Result<()> {
    w.istiod.answer(LONG, &[])?;
    w.renewed()?;
    let traffic = Traffic::start(&w.cluster, ["client", "server"], APP);
    let mut old = w.long_lived()?;
    let before = w.serials()?;
    w.istiod.kill()?;
    w.both("its renewal fails, and it is used", |c| {
        c["state"] == "renewal_failing"
            && before.contains(&c["serial"])
            && told(c, &["refused", "up and reachable"])
    })?;
    talk::echo(&mut old, b"while nobody issues")?;
    traffic.goes_on()?;
    ensure!(w.cluster.agents().iter().all(|agent| agent.is_ready()), "an agent is not ready");
    w.istiod.answer(LIFETIME, &[])?;
    w.istiod.run()?;
    w.both("it is another one", |c| c["state"] == "valid" && !before.contains(&c["serial"]))?;
    talk::echo(&mut old, b"and afterwards")?;
    traffic.end().map(drop)
}

fn words(w: &mut Mine) -> Result<()> {
    let said = "the issuing key is locked away until\nMonday";
    w.istiod.answer(LIFETIME, &[("*", &format!("say {said}"))])?;
    w.of("n1", "client", "its renewal fails", |c| told(c, &["locked away"]))?;
    let listed = w.cluster.n1.cli(&["certs", "--identity", &identity("client")])?;
    let listed = String::from_utf8(listed.stdout).context("what certs prints")?;
    let address = format!("https://{}", w.istiod.address());
    let who = [&identity("client"), "n1", "istio-system/underpass-n1", "service account underpass", &address];
    for word in who.iter().chain(&["Unavailable", "the issuing key is locked away until\\nMonday"]) {
        ensure!(listed.contains(*word), "{word:?} is not in\n{listed}");
    }
    talk::echo_once(w.cluster.ns("client"), w.cluster.addr("server", APP, false))?;
    w.istiod.answer(LIFETIME, &[])?;
    w.both("it is valid again", |c| c["state"] == "valid")
}

fn impostor(w: &mut Mine) -> Result<()> {
    w.istiod.answer(LONG, &[])?;
    w.renewed()?;
    let before = w.serials()?;
    w.istiod.kill()?;
    let mut impostor = Istiod::prepare(&w.cluster.topology, "n2", "impostor")?;
    impostor.run()?;
    w.both("its renewal fails, and it is used", |c| {
        before.contains(&c["serial"])
            && told(c, &["invalid peer certificate", "its certificate as configured"])
    })?;
    talk::echo_once(w.cluster.ns("client"), w.cluster.addr("server", APP, false))?;
    let calls = impostor.calls()?;
    ensure!(calls.is_empty(), "it was asked: {calls:?}");
    impostor.kill()?;
    w.istiod.answer(LIFETIME, &[])?;
    w.istiod.run()?;
    w.both("it is valid again", |c| c["state"] == "valid" && !before.contains(&c["serial"]))
}

fn hostile(w: &mut Mine) -> Result<()> {
    w.istiod.answer(LONG, &[])?;
    let all = HOSTILE.iter().fold(mesh(), |mesh, (kind, _)| mesh.meshed(kind, kind));
    w.cluster.apply(all)?;
    for (kind, _) in HOSTILE {
        w.of("n1", kind, "it is valid", |c| c["state"] == "valid")?;
    }
    let serial = |kind| Ok::<_, anyhow::Error>(w.cluster.n1.certificate(kind)?["serial"].clone());
    let before = HOSTILE.iter().map(|(kind, _)| serial(*kind)).collect::<Result<Vec<_>>>()?;
    let instead = HOSTILE.map(|(kind, _)| (identity(kind), kind));
    let instead = instead.each_ref().map(|(identity, kind)| (identity.as_str(), *kind));
    w.istiod.answer(LIFETIME, &instead)?;
    let mut olds = Vec::new();
    for (kind, _) in HOSTILE {
        olds.push((kind, talk::dial(w.cluster.ns(kind), w.cluster.addr("server", APP, false))?));
    }
    for ((kind, word), before) in HOSTILE.iter().zip(&before) {
        w.of("n1", kind, "the answer is refused, and the certificate kept", |c| {
            c["state"] == "renewal_failing" && told(c, &[word]) && c["serial"] == *before
        })?;
        talk::echo_once(w.cluster.ns(kind), w.cluster.addr("server", APP, true))
            .with_context(|| format!("{kind}: a new connection"))?;
        for (kind, old) in &mut olds {
            talk::echo(old, b"nothing happened to me")
                .with_context(|| format!("{kind}: the connection of before"))?;
        }
    }
    w.istiod.answer(LIFETIME, &[])?;
    for ((kind, _), before) in HOSTILE.iter().zip(&before) {
        w.of("n1", kind, "it is another one", |c| c["state"] == "valid" && c["serial"] != *before)?;
    }
    w.cluster.apply(mesh())
}

/// Whether the latest attempt failed, and is told of with all these words, in one line.
fn told(certificate: &Value, words: &[&str]) -> bool {
    let error = certificate["last_error"].as_str().unwrap_or_default();
    words.iter().all(|word| error.contains(word)) && error.len() < 2000 && !error.contains('\n')
}

impl Mine {
    fn both(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        self.of("n1", "client", what, &is_so)?;
        self.of("n2", "server", what, &is_so)
    }

    fn of(&self, node: &str, account: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        let agent = if node == "n1" { &self.cluster.n1 } else { &self.cluster.n2 };
        wait::until_true(LONG + wait::PATIENCE, &format!("{account}'s certificate: {what}"), || {
            agent.certificate(account).is_ok_and(|c| is_so(&c))
        })
        .with_context(|| format!("{:?}", agent.certificate(account)))
    }

    /// Waits until both have a certificate of [`LONG`], with most of it left.
    fn renewed(&self) -> Result<()> {
        self.both("it was renewed", |c| {
            c["expires_in_seconds"].as_f64().is_some_and(|s| s > 0.7 * LONG.as_secs_f64())
        })
    }

    fn serials(&self) -> Result<[Value; 2]> {
        let of =
            |agent: &Agent, account| Ok::<_, anyhow::Error>(agent.certificate(account)?["serial"].clone());
        Ok([of(&self.cluster.n1, "client")?, of(&self.cluster.n2, "server")?])
    }

    fn long_lived(&self) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns("client"), self.cluster.addr("server", APP, false))?;
        talk::echo(&mut stream, b"first")?;
        Ok(stream)
    }
}
