//! TLS profiles: which pairs of agents talk and by which key exchange, and how somebody who cannot meet the
//! profile is refused at either end.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use rustls::crypto::aws_lc_rs::kx_group;
use underpass_tests::access_log::Line;
use underpass_tests::capture::{self, Capture};
use underpass_tests::hbone::{self, Attempt, Groups, Impostor, Outcome};
use underpass_tests::hello::{self, ServerHello};
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::NODE_LINK;
use underpass_tests::work::{server, talk};
use underpass_tests::{Cluster, Mesh, Server, Settings};

fn main() -> ExitCode {
    stories::run(&[
        ("every_two_profiles_talk_and_by_the_exchange_that_withstands_quantum_computers", pairs),
        ("a_client_that_cannot_meet_the_profile_is_refused_and_it_is_said_why", clients),
        ("a_server_that_cannot_meet_the_profile_gets_nothing_and_it_is_said_why", servers),
        ("the_log_says_that_the_fips_profile_is_not_the_fips_module_where_it_is_not", no_module),
    ])
}

const APP: u16 = 8080;
const ALL: [&str; 3] = ["default", "fips", "pq-only"];
const MARKER: &[u8] = b"profile-marker-that-nobody-may-read";

/// Who else there is: a name, what it can do, the number of that in TLS, and which profiles take it.
const OTHERS: [(&str, Groups, u16, &[&str]); 3] = [
    ("an old peer", &[kx_group::X25519], hello::X25519, &["default"]),
    ("old hardware", &[kx_group::SECP256R1], hello::P256, &["default", "fips"]),
    ("a cautious peer", &[kx_group::X25519MLKEM768], hello::X25519MLKEM768, &ALL),
];

struct Two {
    cluster: Cluster,
    _apps: Vec<Server>,
}

impl World for Two {
    fn build() -> Result<Self> {
        let pods = [("client", "n1"), ("server", "n2"), ("other", "n2"), ("stranger", "n1")];
        let mut mesh = Mesh::default()
            .meshed("client", "client")
            .meshed("server", "server")
            .meshed("other", "other")
            .plain("stranger")
            .strict();
        // Of the mesh for all who dial it, but no agent serves it.
        mesh.workload("other").enrolled = false;
        let cluster = Cluster::start(&pods, mesh)?;
        let apps = ["client", "server"].map(|pod| Server::start(cluster.ns(pod), APP, server::echo));
        Ok(Self { cluster, _apps: apps.into_iter().collect::<Result<_>>()? })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn pairs(w: &mut Two) -> Result<()> {
    for (at, one) in ALL.iter().enumerate() {
        for two in &ALL[at..] {
            w.set([one, two])?;
            w.talks().with_context(|| format!("{one} and {two}"))?;
        }
    }
    Ok(())
}

fn clients(w: &mut Two) -> Result<()> {
    let papers = w.cluster.authority()?.papers(&identity("client"))?;
    let (to, app) = (w.cluster.addr("server", hbone::PORT, false), w.cluster.addr("server", APP, false));
    for profile in ALL {
        w.set([profile, profile])?;
        for (who, groups, group, takers) in OTHERS {
            let what = || format!("{who} at {profile}");
            let (seen, link) = (w.cluster.n2.access()?.len(), w.capture()?);
            let outcome =
                Attempt { groups, ..Attempt::to(to, Some(&papers), app) }.make(w.cluster.ns("stranger"))?;
            if takers.contains(&profile) {
                ensure!(outcome.reached(), "{}: {outcome:?}", what());
                let [hello] = hellos(&link)?[..] else { anyhow::bail!("{}: not one handshake", what()) };
                ensure!(hello.group == group, "{}: {hello:x?}", what());
                continue;
            }
            // The alert is all that it hears.
            ensure!(
                matches!(&outcome, Outcome::Cut(why) if why.contains("HandshakeFailure")),
                "{}: {outcome:?}",
                what()
            );
            let line = w.cluster.n2.wait_access_after(seen, &what(), |l| l.cause() == "tls_failed")?;
            says(&line, profile, "the peer offers no key exchange of")?;
        }
    }
    Ok(())
}

fn servers(w: &mut Two) -> Result<()> {
    let papers = w.cluster.authority()?.papers(&identity("other"))?;
    let app = w.cluster.addr("other", APP, false);
    for profile in ALL {
        w.set([profile, profile])?;
        for (who, groups, _, takers) in OTHERS {
            let what = || format!("{who} at {profile}");
            let other = Impostor::start_with(w.cluster.ns("other"), &papers, groups)?;
            let (seen, link) = (w.cluster.n1.access()?.len(), w.capture()?);
            let talked = talk::dial(w.cluster.ns("client"), app).and_then(|mut s| talk::echo(&mut s, MARKER));
            if takers.contains(&profile) {
                talked.with_context(what)?;
            } else {
                ensure!(talked.is_err(), "{}: it was talked to", what());
                let line = w.cluster.n1.wait_access_after(seen, &what(), |l| l.cause() == "tls_failed")?;
                says(&line, profile, "the peer takes nothing of")?;
                ensure!(other.requests() == 0 && other.bytes() == 0, "{}: it was told something", what());
            }
            dark(&link).with_context(what)?;
        }
    }
    Ok(())
}

fn no_module(w: &mut Two) -> Result<()> {
    let said = |w: &Two, what: &str| w.cluster.agents().map(|agent| agent.log().matches(what).count());
    let (module, warning) = ("fips_module=true", "where that is asked for, build with --features fips");
    let before = said(w, warning);
    w.set(["fips", "pq-only"])?;
    let built_with_it = said(w, module)[0] > 0;
    let warned = said(w, warning);
    ensure!(warned[0] == before[0] + usize::from(!built_with_it), "warned {before:?}, then {warned:?}");
    ensure!(warned[1] == before[1], "the other profile was warned of");
    Ok(())
}

/// The reason names the profile, what it offers, and what is to be done.
fn says(line: &Line, profile: &str, begin: &str) -> Result<()> {
    let why = line.get("error").unwrap_or_default();
    for word in [begin, &format!("TLS profile {profile} (key exchange X25519MLKEM768"), "at both ends"] {
        ensure!(why.contains(word), "{word:?} is not in: {line}");
    }
    Ok(())
}

/// Nothing of the application was to be read on the link.
fn dark(link: &Capture) -> Result<()> {
    capture::settle(link)?;
    ensure!(!link.shows(MARKER)? && link.count_on(APP)? == 0, "plaintext on the link");
    Ok(())
}

/// What the servers of tunnels chose.
fn hellos(link: &Capture) -> Result<Vec<ServerHello>> {
    capture::settle(link)?;
    link.sent_from(hbone::PORT)?.iter().map(|sent| ServerHello::read(sent)).collect()
}

impl Two {
    /// Starts both agents anew, each with a profile of its own.
    fn set(&mut self, profiles: [&'static str; 2]) -> Result<()> {
        let dir = self.cluster.topology.dir();
        for (agent, profile) in [&mut self.cluster.n1, &mut self.cluster.n2].into_iter().zip(profiles) {
            agent.kill()?;
            let settings = Settings { profile, ..Settings::default() };
            fs::write(agent.config(), settings.text(&agent.node().name, agent.instance(), dir)?)?;
            agent.spawn()?;
        }
        self.cluster.n1.wait_ready()?;
        self.cluster.n2.wait_ready()
    }

    /// Both dial; a handshake in each direction is all that is to be seen.
    fn talks(&self) -> Result<()> {
        let link = self.capture()?;
        for (from, to) in [("client", "server"), ("server", "client")] {
            let mut stream = talk::dial(self.cluster.ns(from), self.cluster.addr(to, APP, false))?;
            talk::echo(&mut stream, MARKER).with_context(|| format!("{from} to {to}"))?;
        }
        let hellos = hellos(&link)?;
        ensure!(hellos.len() == 2, "{} handshakes", hellos.len());
        ensure!(hellos.iter().all(|hello| hello.group == hello::X25519MLKEM768), "{hellos:x?}");
        dark(&link)
    }

    fn capture(&self) -> Result<Capture> {
        Capture::start(&self.cluster.topology.node("n1").ns, NODE_LINK)
    }
}
