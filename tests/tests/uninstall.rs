//! `underpass uninstall`: refused while the agent runs, and after its end, however it ended, nothing of
//! it is left, pods talk as before, and another agent's things stay.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{ExitCode, Output};

use anyhow::{Context, Result, ensure};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use underpass_tests::binary;
use underpass_tests::capture::{Capture, settle};
use underpass_tests::cluster::SHORT;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::NODE_LINK;
use underpass_tests::work::{server, talk};
use underpass_tests::{Cluster, Mesh, Netns, Server, Settings, Topology, wait};

#[path = "kernel/loaded.rs"]
mod loaded;

fn main() -> ExitCode {
    stories::run(&[
        ("while_the_agent_runs_or_drains_it_is_refused_and_nothing_changes", while_it_runs),
        ("after_an_orderly_stop_nothing_is_left", after_a_stop),
        ("after_a_crash_nothing_is_left", after_a_crash),
        ("after_a_crash_in_loopback_mode_nothing_is_left", after_a_crash_in_loopback_mode),
        ("without_its_configuration_the_name_is_enough", by_name),
    ])
}

const PORT: u16 = 8080;
const MARKER: &[u8] = b"uninstall-marker-in-plaintext";
const PINS: &str = "/sys/fs/bpf/underpass";

struct Uninstall {
    cluster: Cluster,
    /// The client's namespace before any agent saw it.
    pristine: String,
    _echo: Server,
}

impl World for Uninstall {
    fn build() -> Result<Self> {
        Self::with(Settings::default())
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn while_it_runs(w: &mut Uninstall) -> Result<()> {
    let live = w.dial(false)?;
    let before = w.namespace()?;
    ensure!(before != w.pristine, "enrolment gave the namespace nothing");
    for output in [w.cluster.n1.cli(&["uninstall"])?, w.by_instance()?] {
        w.is_refused(&output)?;
    }
    ensure!(w.namespace()? == before && w.things()?.exist());
    w.is_encrypted(true)?;

    // An agent that drains is not gone: the connection that it waits for would be plaintext's end.
    let mut live = live;
    w.cluster.n1.terminate()?;
    let draining = || w.cluster.n1.admin("/status").is_ok_and(|s| !s["stopping"].is_null());
    wait::until_true(wait::PATIENCE, "the agent drains", draining)?;
    w.is_refused(&w.cluster.n1.cli(&["uninstall"])?)?;
    talk::echo(&mut live, b"still here").context("a connection that the agent waits for")?;
    drop(live);
    w.cluster.n1.wait_end(wait::PATIENCE)?;
    w.cluster.n1.run()?;
    w.is_encrypted(true)
}

fn after_a_stop(w: &mut Uninstall) -> Result<()> {
    let _live = w.dial(true)?;
    let things = w.things()?;
    w.cluster.n1.stop(wait::PATIENCE)?;
    fails_closed(w)?;
    w.uninstall_and_look(&things)
}

fn after_a_crash(w: &mut Uninstall) -> Result<()> {
    let _live = w.dial(false)?;
    let things = w.things()?;
    w.cluster.n1.kill()?;
    fails_closed(w)?;
    w.uninstall_and_look(&things)
}

fn after_a_crash_in_loopback_mode(_: &mut Uninstall) -> Result<()> {
    let mut w = Uninstall::with(Settings { capture: "loopback", ..Settings::default() })?;
    let _live = [w.dial(false)?, w.dial(true)?];
    let things = w.things()?;
    w.cluster.n1.kill()?;
    w.uninstall_and_look(&things)
}

fn by_name(w: &mut Uninstall) -> Result<()> {
    let things = w.things()?;
    w.cluster.n1.kill()?;
    let output = w.by_instance()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The socket's file alone is left: only the configuration tells where it lies.
    w.nothing_is_left(&things)?;
    w.cluster.n1.run()?;
    w.is_encrypted(true)
}

fn fails_closed(w: &Uninstall) -> Result<()> {
    let to = w.cluster.addr("server", PORT, false);
    ensure!(talk::try_echo(w.cluster.ns("client"), to, SHORT).is_err(), "without an agent it is closed");
    Ok(())
}

/// What an instance has in the kernel, by id.
struct Things {
    maps: BTreeSet<u32>,
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Things {
    fn exist(&self) -> bool {
        let [maps, programs, links] = self.left();
        maps == self.maps && programs == self.programs && links == self.links
    }

    /// Those that the kernel still has.
    fn left(&self) -> [BTreeSet<u32>; 3] {
        let maps: BTreeSet<u32> = loaded_maps().flatten().map(|m| m.id()).collect();
        let programs: BTreeSet<u32> = loaded_programs().flatten().map(|p| p.id()).collect();
        let links: BTreeSet<u32> = loaded_links().flatten().map(|l| l.id()).collect();
        [&self.maps & &maps, &self.programs & &programs, &self.links & &links]
    }
}

impl Uninstall {
    fn with(settings: Settings) -> Result<Self> {
        let pods = [("client", "n1"), ("server", "n2")];
        let topology = Topology::new(&["n1", "n2"], &pods)?;
        let pristine = namespace(&topology.pod("client").ns)?;
        let mesh = Mesh::default().meshed("client", "client").meshed("server", "server");
        let cluster = Cluster::on(topology, mesh, settings)?;
        let echo = Server::start(cluster.ns("server"), PORT, server::echo)?;
        Ok(Self { cluster, pristine, _echo: echo })
    }

    fn dial(&self, v6: bool) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns("client"), self.cluster.addr("server", PORT, v6))?;
        talk::echo(&mut stream, b"hello")?;
        Ok(stream)
    }

    fn things(&self) -> Result<Things> {
        things(self.cluster.n1.instance())
    }

    fn namespace(&self) -> Result<String> {
        namespace(self.cluster.ns("client"))
    }

    fn by_instance(&self) -> Result<Output> {
        let mut command = std::process::Command::new(binary::agent()?);
        command.args(["uninstall", "--instance", self.cluster.n1.instance()]);
        command.output().context("underpass uninstall")
    }

    fn is_refused(&self, output: &Output) -> Result<()> {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it was not refused");
        ensure!(said.contains(self.cluster.n1.instance()) && said.contains("stop it first"), "{said}");
        Ok(())
    }

    /// Whether what the client says crosses the nodes' link in a tunnel, or as it is.
    fn is_encrypted(&self, expected: bool) -> Result<()> {
        for v6 in [false, true] {
            let capture = Capture::start(&self.cluster.topology.node("n1").ns, NODE_LINK)?;
            let mut stream = self.dial(v6)?;
            talk::echo(&mut stream, MARKER)?;
            drop(stream);
            settle(&capture)?;
            ensure!(capture.shows(MARKER)? != expected, "encrypted is {}, v6 {v6}", !expected);
        }
        Ok(())
    }

    /// Uninstalls, twice; looks for what should be gone, and for what should not; brings the agent back.
    fn uninstall_and_look(&mut self, things: &Things) -> Result<()> {
        let n1 = &self.cluster.n1;
        let others = crate::things(self.cluster.n2.instance())?;
        let other_pod = namespace(self.cluster.ns("server"))?;
        let output = n1.cli(&["uninstall"])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(said.contains("restored network namespace"), "{said}");
        self.nothing_is_left(things)?;
        ensure!(!fs::exists(n1.socket())?, "the admin socket is left");

        let output = n1.cli(&["uninstall"])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && said.contains("nothing was installed"), "{said}");

        ensure!(others.exist(), "the other agent had {:?}", others.left());
        ensure!(namespace(self.cluster.ns("server"))? == other_pod);
        ensure!(self.cluster.n2.admin("/status")?["findings"].as_array().is_some_and(Vec::is_empty));

        self.cluster.n1.run()?;
        self.is_encrypted(true)
    }

    fn nothing_is_left(&self, things: &Things) -> Result<()> {
        ensure!(!fs::exists(Path::new(PINS).join(self.cluster.n1.instance()))?, "pins are left");
        // The kernel frees them in its own time.
        wait::until_true(wait::PATIENCE, "programs, links and maps are gone", || {
            things.left().iter().all(BTreeSet::is_empty)
        })
        .with_context(|| format!("{:?}", things.left()))?;
        let now = self.namespace()?;
        ensure!(now == self.pristine, "the namespace was\n{}and is\n{now}", self.pristine);
        self.is_encrypted(false)
    }
}

fn things(instance: &str) -> Result<Things> {
    let maps = loaded::map_ids(Path::new(PINS), instance)?;
    let programs = loaded::program_ids(Path::new(PINS), instance)?;
    let links = loaded::link_ids(&programs)?;
    ensure!(maps.len() >= 13 && links.len() >= 7, "{maps:?} {links:?}");
    Ok(Things { maps, programs, links })
}

/// All that an agent may change in a pod's namespace, and its listeners there.
fn namespace(ns: &Netns) -> Result<String> {
    let mut all = String::new();
    for family in ["-4", "-6"] {
        let _ = write!(all, "{}", ns.ip(&format!("{family} rule"))?);
        // IPv6's own routes come and go; ours are local ones.
        let routes = ns.ip(&format!("{family} route show table all type local"))?;
        let mut routes: Vec<&str> = routes.lines().map(str::trim).collect();
        routes.sort_unstable();
        let _ = writeln!(all, "{}", routes.join("\n"));
    }
    for key in [
        "ipv4.tcp_fwmark_accept",
        "ipv4.fwmark_reflect",
        "ipv6.fwmark_reflect",
        "ipv4.ip_local_reserved_ports",
    ] {
        let _ = writeln!(all, "{key} {}", ns.read_sysctl(key)?);
    }
    for file in ["tcp", "tcp6"] {
        let table = ns.run(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
        let listeners = table.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
            (state == "0A").then_some(local)
        });
        let mut listeners: Vec<&str> = listeners.collect();
        listeners.sort_unstable();
        let _ = writeln!(all, "{file} {}", listeners.join(" "));
    }
    Ok(all)
}
