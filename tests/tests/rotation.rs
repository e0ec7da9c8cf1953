//! A root is replaced under two live nodes, step by step, while connections are made all the time: none of
//! them fails, also when the rotation is interrupted, taken back, or a controller crashes in it.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use underpass_tests::controller::{Authority, Controller};
use underpass_tests::stories::{self, World};
use underpass_tests::work::{Traffic, server, talk};
use underpass_tests::{Cluster, Mesh, Server, Settings, Topology, binary, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("five_steps_under_traffic_and_no_connection_fails", five_steps),
        ("three_steps_and_all_the_way_back_under_traffic", there_and_back),
        ("run_goes_to_the_end_also_when_it_and_a_controller_are_killed_in_it", run_interrupted),
        ("an_agent_that_is_restarted_in_it_needs_no_file_and_believes_no_thief_of_the_old_root", restarted),
        ("a_folder_from_a_backup_takes_no_agent_back", backup),
        ("a_node_that_is_away_holds_the_rotation_and_is_named", absent_node),
    ])
}

const APP: u16 = 8080;

struct Rotating {
    cluster: Cluster,
    controllers: [Controller; 2],
    authority: Authority,
    servers: Vec<Server>,
    roots: usize,
}

impl World for Rotating {
    fn build() -> Result<Self> {
        let topology = Topology::new(&["n1", "n2"], &[("client", "n1"), ("server", "n2")])?;
        let authority = Authority::make(&topology)?;
        // What another authority has signed is renewed within a second, not in half a day.
        let hurry = "rotation:\n  renewWithin: 1s\n";
        let controllers = [
            Controller::start(&topology, "n1", &authority, hurry)?,
            Controller::start(&topology, "n2", &authority, hurry)?,
        ];
        let mesh = Mesh::default().meshed("client", "client").meshed("server", "server").strict();
        let settings = Settings { controller: Some(controllers[0].address()), ..Settings::default() };
        let cluster = Cluster::on(topology, mesh, settings)?;
        let servers = ["client", "server"]
            .into_iter()
            .map(|pod| Server::start(cluster.ns(pod), APP, server::echo))
            .collect::<Result<_>>()?;
        Ok(Self { cluster, controllers, authority, servers, roots: 0 })
    }

    fn diagnose(&self) -> String {
        let tails: Vec<String> = self.controllers.iter().map(Controller::tail).collect();
        format!("{}\n{}", self.cluster.diagnose(), tails.join("\n"))
    }
}

fn five_steps(w: &mut Rotating) -> Result<()> {
    ensure!(w.servers.len() == 2);
    let traffic = w.traffic();
    let mut old = w.long_lived()?;
    let new = w.new_root()?;
    let before = w.roots_in_use()?;

    w.onto(&new, &before)?;
    // A tunnel of before lives on, with the connection in it.
    talk::echo(&mut old, b"still there")?;
    let refused = w.rotate("next", &[])?;
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    ensure!(refused.status.code() == Some(4), "the old root was dropped while in use: {said}");
    ensure!(said.contains("live tunnels that rest on a root that is to go"), "{said}");
    drop(old);
    traffic.goes_on()?;
    w.next_when_ready(&[])?;
    w.next_when_ready(&[])?;
    ensure!(w.rotate_json("status", &[])?["phase"].is_null(), "it is not finished");
    let after = w.roots_in_use()?;
    ensure!(after.len() == 1 && !before.contains(&after[0]), "{after:?} after {before:?}");
    many(traffic)
}

fn there_and_back(w: &mut Rotating) -> Result<()> {
    let traffic = w.traffic();
    let new = w.new_root()?;
    let before = w.roots_in_use()?;
    w.onto(&new, &before)?;
    // Issuing first; what was issued meanwhile holds the new root for a while.
    w.eventually("the old authority can sign again", |w| Ok(w.rotate("back", &[])?.status.success()))?;
    traffic.goes_on()?;
    w.eventually("the new root can be taken out again", |w| Ok(w.rotate("back", &[])?.status.success()))?;
    ensure!(w.rotate("back", &[])?.status.success());
    ensure!(w.rotate_json("status", &[])?["phase"].is_null(), "it is not taken back");
    w.eventually("the old root alone is in use", |w| Ok(w.roots_in_use()? == before))?;
    many(traffic)
}

fn run_interrupted(w: &mut Rotating) -> Result<()> {
    let traffic = w.traffic();
    let new = w.new_root()?;
    let before = w.roots_in_use()?;
    let arguments = ["--new-root", &new, "--every", "100ms"];
    let mut kills = 0;
    let done = loop {
        let mut child = w.command("run", &arguments).stdout(Stdio::piped()).spawn()?;
        if kills < 6 {
            // At another place each time.
            std::thread::sleep(Duration::from_millis(120 * (kills + 1)));
            kills += 1;
            if let Some(status) = child.try_wait()? {
                break status;
            }
            child.kill()?;
            child.wait()?;
            let replica = &mut w.controllers[0];
            replica.kill()?;
            replica.run()?;
            continue;
        }
        traffic.goes_on()?;
        break wait::until(Duration::from_secs(60), "the rotation is complete", || child.try_wait().ok()?)?;
    };
    ensure!(done.success(), "run ended with {done}");
    let after = w.roots_in_use()?;
    ensure!(after.len() == 1 && !before.contains(&after[0]), "{after:?} after {before:?}");
    many(traffic)
}

fn restarted(w: &mut Rotating) -> Result<()> {
    let file = w.authority.papers("n2").join("root-cert.pem");
    let (real, thief) = (w.authority.folder(), w.authority.folder().with_extension("thief"));
    copy_files(&real, &thief)?;
    let (new, old_root) = (w.new_root()?, fs::read(&file)?);
    let before = w.roots_in_use()?;
    w.onto(&new, &before)?;
    // From here on no controller shows anything that the file on the node vouches for.
    w.restart("n2")?;
    w.both_ways().context("after a restart in the middle")?;
    w.next_when_ready(&[])?;
    w.next_when_ready(&[])?;
    let after = w.roots_in_use()?;
    ensure!(after.len() == 1 && !before.contains(&after[0]), "{after:?} after {before:?}");
    w.restart("n2")?;
    w.both_ways().context("after a restart in the end")?;
    ensure!(fs::read(&file)? == old_root, "somebody has replaced the file");

    // A thief has what signed under the old root, the node's way to the controller, and a high number.
    fs::write(thief.join("revision"), "1000")?;
    let genuine = fs::read_to_string(w.controllers[0].config())?;
    let config = genuine.replace(&real.display().to_string(), &thief.display().to_string());
    ensure!(config != genuine, "the folder is not in it:\n{config}");
    w.controllers[0].stop()?;
    fs::write(w.controllers[0].config(), config)?;
    let seen = w.cluster.n2.log().len();
    w.controllers[0].run()?;
    ensure!(w.roots_in_use()? == before, "the thief has another root");
    w.refused_after(seen)?;
    w.both_ways().context("with a thief in the controller's place")?;
    w.cluster.n2.stop(wait::PATIENCE)?;
    let seen = w.cluster.n2.log().len();
    w.cluster.n2.spawn()?;
    w.refused_after(seen)?;
    let view = w.controllers[0].admin("/agents")?;
    ensure!(view["agents"] == serde_json::json!([]), "somebody followed the thief: {view}");

    w.controllers[0].stop()?;
    fs::write(w.controllers[0].config(), genuine)?;
    w.controllers[0].run()?;
    w.eventually("n2's pod has a certificate again", |w| Ok(w.both_ways().is_ok()))
}

fn backup(w: &mut Rotating) -> Result<()> {
    let (ca, copy) = (w.authority.folder(), w.authority.folder().with_extension("copy"));
    copy_files(&ca, &copy)?;
    let count = fs::read_to_string(copy.join("revision")).map_or(0, |text| text.trim().parse().unwrap_or(0));
    let (new, before) = (w.new_root()?, w.roots_in_use()?);
    w.onto(&new, &before)?;
    for name in ["revision", "rotation.json"] {
        fs::remove_file(ca.join(name))?;
    }
    fs::remove_dir_all(ca.join("rotation-before"))?;
    let seen = [w.cluster.n1.log().len(), w.cluster.n2.log().len()];
    copy_files(&copy, &ca)?;
    w.eventually("the copy is what is told", |w| Ok(w.roots_in_use()? == before))?;
    for (agent, seen) in [&w.cluster.n1, &w.cluster.n2].into_iter().zip(seen) {
        wait::until_true(wait::PATIENCE, "the agent refuses it", || {
            agent.log()[seen..].contains("an update of an earlier revision is refused")
        })?;
    }
    w.both_ways().context("with both roots in use still")?;
    w.restart("n2")?;
    w.both_ways().context("after a restart, with one certificate of each root")?;
    ensure!(w.revisions()? == [count + 3; 2], "{:?}", w.revisions());

    // The operator wants it so.
    fs::write(ca.join("revision"), (count + 4).to_string())?;
    w.eventually("it is taken", |w| Ok(w.revisions()? == [count + 4; 2]))?;
    w.eventually("every certificate rests on the old root", |w| {
        Ok(w.certificate_roots()?.iter().all(|root| before.contains(root)))
    })?;
    w.both_ways()
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name())).with_context(|| format!("{entry:?}"))?;
    }
    Ok(())
}

fn absent_node(w: &mut Rotating) -> Result<()> {
    let new = w.new_root()?;
    w.next(&["--new-root", &new])?;
    w.cluster.n2.stop(wait::PATIENCE)?;
    w.next(&[])?;
    let waits = w.eventually_some("n2 alone is waited for", |w| {
        let status = w.rotate_json("status", &[])?;
        let next = status["next"].as_array().context("no next")?.clone();
        Ok((next.len() == 1).then(|| next[0].clone()))
    })?;
    ensure!(waits["node"] == "n2" && waits["why"] == "notConnected", "{waits}");
    ensure!(w.rotate("next", &["--new-root", &new])?.status.code() == Some(4), "it did not wait");
    let misspelt = w.command("next", &["--new-root", &new, "--force-without", "n3"]).output()?;
    let said = String::from_utf8_lossy(&misspelt.stderr).into_owned();
    ensure!(!misspelt.status.success() && said.contains("there are n1, n2"), "n3 was left out: {said}");
    let forced = w.rotate("next", &["--new-root", &new, "--force-without", "n2"])?;
    let said = String::from_utf8_lossy(&forced.stdout).into_owned();
    ensure!(forced.status.success() && said.contains("n2 was not waited for"), "{said}");
    // It comes back in time, with the roots of the second step, and needs no forcing any more.
    w.authority.hand_out("n2")?;
    w.cluster.n2.run()?;
    w.next_when_ready(&[])?;
    w.next_when_ready(&[])?;
    let from = w.cluster.ns("client");
    talk::echo_once(from, w.cluster.addr("server", APP, false)).context("traffic afterwards")
}

impl Rotating {
    fn new_root(&mut self) -> Result<String> {
        self.roots += 1;
        Ok(self.authority.root(&format!("root-{}", self.roots))?.display().to_string())
    }

    fn command(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(binary::agent().unwrap_or_default());
        command.args(["ca", "rotate", verb, "--ca"]).arg(self.authority.folder());
        for controller in &self.controllers {
            command.arg("--controller").arg(controller.socket());
        }
        command.args(more).stdin(Stdio::null());
        command
    }

    fn rotate(&self, verb: &str, more: &[&str]) -> Result<Output> {
        let output = self.command(verb, more).output().context("underpass ca rotate")?;
        if !matches!(output.status.code(), Some(0 | 4)) {
            bail!("ca rotate {verb}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output)
    }

    fn rotate_json(&self, verb: &str, more: &[&str]) -> Result<Value> {
        let output = self.rotate(verb, &[more, &["-o", "json"]].concat())?;
        serde_json::from_slice(&output.stdout).context("what rotate says is no JSON")
    }

    /// One step that nothing stands in the way of.
    fn next(&self, more: &[&str]) -> Result<()> {
        let output = self.rotate("next", more)?;
        ensure!(output.status.success(), "it waits: {}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// The first four steps: everything rests on the new root, and on none of those of `before`.
    fn onto(&self, new: &str, before: &[String]) -> Result<()> {
        self.next(&["--new-root", new])?;
        self.next(&[])?;
        // Both agents have to say first that they trust both.
        self.next_when_ready(&["--new-root", new])?;
        self.eventually("every certificate rests on the new root", |w| {
            Ok(w.certificate_roots()?.iter().all(|root| !before.contains(root)))
        })
    }

    fn next_when_ready(&self, more: &[&str]) -> Result<()> {
        self.eventually("the next step can be done", |w| Ok(w.rotate("next", more)?.status.success()))
            .with_context(|| format!("{:?}", self.rotate_json("status", &[])))
    }

    fn eventually(&self, what: &str, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        self.eventually_some(what, |w| Ok(is_so(w)?.then_some(())))
    }

    fn eventually_some<T>(&self, what: &str, ask: impl Fn(&Self) -> Result<Option<T>>) -> Result<T> {
        let mut failed = None;
        let found = wait::until(wait::PATIENCE, what, || match ask(self) {
            Ok(answer) => answer,
            Err(e) => {
                failed = Some(format!("{e:#}"));
                None
            }
        });
        found.with_context(|| failed.unwrap_or_default())
    }

    /// What both agents tell the controller about their certificates.
    fn certificate_roots(&self) -> Result<Vec<String>> {
        let view = self.controllers[0].admin("/agents")?;
        let agents = view["agents"].as_array().context("no agents")?;
        let connected: Vec<&Value> = agents.iter().filter(|a| a["connected"] == true).collect();
        ensure!(connected.len() == 2, "{} agents", connected.len());
        let mut roots = Vec::new();
        for agent in connected {
            for held in agent["certificates"].as_array().context("no certificates")? {
                roots.push(held["root"].as_str().context("no root")?.to_owned());
            }
        }
        ensure!(roots.len() == 2, "{roots:?}");
        Ok(roots)
    }

    /// What the controller tells agents to trust.
    fn roots_in_use(&self) -> Result<Vec<String>> {
        let view = self.controllers[0].admin("/agents")?;
        let roots = view["roots"].as_array().context("no roots")?;
        roots.iter().map(|r| Ok(r["sha256"].as_str().context("no sha256")?.to_owned())).collect()
    }

    fn restart(&mut self, node: &str) -> Result<()> {
        let agent = if node == "n1" { &mut self.cluster.n1 } else { &mut self.cluster.n2 };
        agent.stop(wait::PATIENCE)?;
        agent.run()
    }

    fn both_ways(&self) -> Result<()> {
        for (from, to) in [("client", "server"), ("server", "client")] {
            let addr = self.cluster.addr(to, APP, from == "server");
            talk::echo_once(self.cluster.ns(from), addr).with_context(|| format!("from {from}"))?;
        }
        Ok(())
    }

    /// That n2's agent has met a controller, and did not believe it.
    fn refused_after(&self, seen: usize) -> Result<()> {
        wait::until_true(wait::PATIENCE, "n2 refuses the controller", || {
            let log = self.cluster.n2.log();
            log[seen..].lines().any(|line| {
                line.contains("not in touch with the controller") && line.contains("invalid peer certificate")
            })
        })
    }

    /// Of what each connected agent has taken.
    fn revisions(&self) -> Result<Vec<u64>> {
        let view = self.controllers[0].admin("/agents")?;
        let agents = view["agents"].as_array().context("no agents")?;
        Ok(agents.iter().filter(|a| a["connected"] == true).filter_map(|a| a["revision"].as_u64()).collect())
    }

    fn long_lived(&self) -> Result<TcpStream> {
        let to = self.cluster.addr("server", APP, false);
        let mut stream = talk::dial(self.cluster.ns("client"), to)?;
        talk::echo(&mut stream, b"first")?;
        Ok(stream)
    }

    fn traffic(&self) -> Traffic {
        Traffic::start(&self.cluster, ["client", "server"], APP)
    }
}

/// That no connection failed, and that there were many.
fn many(traffic: Traffic) -> Result<()> {
    let done = traffic.end()?;
    ensure!(done > 50, "only {done} connections");
    Ok(())
}
