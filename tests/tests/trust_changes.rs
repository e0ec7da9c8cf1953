//! Roots go and certificates are taken back while tunnels stand: those that rest on them end, no others.

use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, ensure};
use underpass_tests::cluster::Cluster;
use underpass_tests::hbone::{self, Attempt, Impostor, Outcome, Outstay};
use underpass_tests::mesh::identity;
use underpass_tests::pki::Authority;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::Topology;
use underpass_tests::work::{server, talk};
use underpass_tests::{Agent, Mesh, Server, Settings, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("a_revoked_peer_loses_its_tunnels_and_gets_no_new_ones_while_others_go_on", revoked),
        ("a_removed_root_ends_the_tunnels_that_rest_on_it_in_both_directions", root_removed),
    ])
}

const APP: u16 = 8080;

struct Realm {
    cluster: Cluster,
    _app: Server,
    /// A second root that both nodes trust in the beginning.
    second: Authority,
    /// Of a root that nobody asks for, in PEM.
    unused: String,
}

/// Each node has files of its own.
const TRUST: &str = "{bundles: [{trustDomain: cluster.local, file: \"{dir}/{node}.second.pem\"}], \
                     revocationLists: [\"{dir}/{node}.revoked.pem\"]}";

impl World for Realm {
    fn build() -> Result<Self> {
        let pods = [("client", "n1"), ("other", "n1"), ("stranger", "n1"), ("server", "n2"), ("fake", "n2")];
        let topology = Topology::new(&["n1", "n2"], &pods)?;
        let mut mesh = Mesh::default()
            .meshed("client", "client")
            .meshed("other", "other")
            .meshed("server", "server")
            .meshed("fake", "fake")
            .plain("stranger");
        // Of the mesh for all who dial it, but no agent serves it.
        mesh.workload("fake").enrolled = false;
        let (second, certificate) = Authority::root("second root")?;
        let (nobody, unused) = Authority::root("unused root")?;
        for node in ["n1", "n2"] {
            let file = |name: &str| topology.dir().join(format!("{node}.{name}.pem"));
            std::fs::write(file("second"), &certificate).context("writing a root")?;
            std::fs::write(file("revoked"), nobody.revocation_list(&[])?).context("writing a list")?;
        }
        let app = Server::start(&topology.pod("server").ns, APP, server::echo)?;
        let cluster = Cluster::on(topology, mesh, Settings { trust: Some(TRUST), ..Settings::default() })?;
        Ok(Self { cluster, _app: app, second, unused })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn revoked(w: &mut Realm) -> Result<()> {
    let mesh = w.cluster.authority()?;
    let [mut client4, mut client6] = w.dial_both("client", "server")?;
    let [mut other4, mut other6] = w.dial_both("other", "server")?;
    let seen = w.cluster.n2.access()?.len();

    // Only the node that is dialled has heard of it.
    let serial = w.serial(&w.cluster.n1, "client")?;
    w.give("n2", "revoked", &mesh.revocation_list(&[&serial])?)?;
    for stream in [&mut client4, &mut client6] {
        ended(stream)?;
    }
    let of_client = |l: &underpass_tests::access_log::Line| {
        l.is("src.identity", &identity("client")) && l.cause() == "trust_revoked"
    };
    w.cluster.n2.wait_access_after(seen, "the revoked peer's connection ended", of_client)?;
    for stream in [&mut other4, &mut other6] {
        talk::echo(stream, b"nothing happened to me")?;
    }
    let refused =
        talk::try_echo(w.cluster.ns("client"), w.cluster.addr("server", APP, false), talk::DEADLINE);
    ensure!(refused.is_err(), "a revoked peer got a new connection");
    talk::echo_once(w.cluster.ns("other"), w.cluster.addr("server", APP, true))?;
    let lines = w.cluster.n2.access()?;
    let wrong = lines[seen..]
        .iter()
        .find(|l| l.cause() == "trust_revoked" && l.is("src.identity", &identity("other")));
    ensure!(wrong.is_none(), "ended too: {wrong:?}");

    // A newer list that does not name it any more.
    w.give("n2", "revoked", &later(&mesh)?)?;
    let again = || talk::echo_once(w.cluster.ns("client"), w.cluster.addr("server", APP, false)).is_ok();
    wait::until_true(wait::PATIENCE, "the client is let in again", again)?;
    for stream in [&mut other4, &mut other6] {
        talk::echo(stream, b"nor now")?;
    }
    Ok(())
}

/// Lists are dated by the second, and the newest counts.
fn later(mesh: &Authority) -> Result<String> {
    let now = std::time::SystemTime::now;
    let second =
        |t: std::time::SystemTime| t.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let begun = second(now());
    wait::until_true(wait::PATIENCE, "the clock's next second", || second(now()) > begun)?;
    mesh.revocation_list(&[])
}

fn root_removed(w: &mut Realm) -> Result<()> {
    let (inbound, outbound) = (w.second.papers(&identity("client"))?, w.second.papers(&identity("fake"))?);
    let _fake = Impostor::start(w.cluster.ns("fake"), &outbound)?;
    let mut dialled = w.dial("client", "fake", false)?;
    let [mut kept4, mut kept6] = w.dial_both("client", "server")?;
    let [to, target] = [hbone::PORT, APP].map(|port| w.cluster.addr("server", port, false));
    let (seen1, seen2) = (w.cluster.n1.access()?.len(), w.cluster.n2.access()?.len());
    thread::scope(|scope| -> Result<()> {
        let (tell, told) = mpsc::channel();
        let peer = Outstay { to, papers: &inbound, target };
        let from = w.cluster.ns("stranger");
        let staying = scope.spawn(move || {
            peer.until_cut(from, move || {
                let _ = tell.send(());
            })
        });
        told.recv_timeout(wait::PATIENCE).context("the peer of the second root did not come to stand")?;
        for node in ["n1", "n2"] {
            w.give(node, "second", &w.unused)?;
        }
        staying.join().map_err(|_| anyhow::anyhow!("the peer panicked"))?.context("inbound")
    })?;
    ended(&mut dialled).context("outbound")?;
    w.cluster.n2.wait_access_after(seen2, "an inbound connection ended", |l| {
        l.is("direction", "inbound") && l.cause() == "trust_revoked"
    })?;
    w.cluster.n1.wait_access_after(seen1, "an outbound connection ended", |l| {
        l.is("direction", "outbound") && l.cause() == "trust_revoked"
    })?;
    let outcome = Attempt::to(to, Some(&inbound), target).make(w.cluster.ns("stranger"))?;
    ensure!(matches!(outcome, Outcome::Cut(_) | Outcome::NoConnection(_)), "a new tunnel: {outcome:?}");
    for stream in [&mut kept4, &mut kept6] {
        talk::echo(stream, b"my root is still there")?;
    }
    Ok(())
}

/// The other side ended it; that the bytes' end or a reset comes first is the kernel's business.
fn ended(stream: &mut TcpStream) -> Result<()> {
    use std::io::Read;
    match stream.read(&mut [0; 1]) {
        Ok(0) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other => anyhow::bail!("the connection goes on: {other:?}"),
    }
}

impl Realm {
    fn dial(&self, from: &str, to: &str, v6: bool) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns(from), self.cluster.addr(to, APP, v6))?;
        talk::echo(&mut stream, b"hello").with_context(|| format!("{from} to {to}"))?;
        Ok(stream)
    }

    fn dial_both(&self, from: &str, to: &str) -> Result<[TcpStream; 2]> {
        Ok([self.dial(from, to, false)?, self.dial(from, to, true)?])
    }

    /// Replaces a file as a careful operator does.
    fn give(&self, node: &str, name: &str, text: &str) -> Result<()> {
        let file = self.cluster.topology.dir().join(format!("{node}.{name}.pem"));
        let new = file.with_extension("new");
        std::fs::write(&new, text).context("writing a file of trust")?;
        std::fs::rename(&new, &file).context("putting it in place")
    }

    /// Of the certificate that the node holds for this account.
    fn serial(&self, agent: &Agent, account: &str) -> Result<String> {
        Ok(agent.certificate(account)?["serial"].as_str().context("it has no serial number")?.to_owned())
    }
}
