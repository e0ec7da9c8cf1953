//! Two agents on one kernel, attached at the same place: each has its own pods, and nothing that happens
//! to one is the other's business. A pod that both are told of is the first one's.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData, PerCpuArray, SockHash};
use underpass_common::{ListenerKey, OwnAddressKey, PodRow, counter, name};
use underpass_tests::cluster::{SHORT, revision};
use underpass_tests::settings::cgroup_mount;
use underpass_tests::stories::{self, World};
use underpass_tests::work::{server, talk};
use underpass_tests::{Agent, Cluster, Mesh, Netns, Server, Settings, wait};

fn main() -> ExitCode {
    if let Some(dial) = Dial::asked() {
        return dial.run();
    }
    stories::run(&[
        ("each_acts_on_its_own_pods_only", own_pods),
        ("one_that_crashes_and_comes_back_leaves_the_others_pods_alone", crash),
        ("one_that_is_uninstalled_leaves_the_others_pods_alone", uninstalled),
        ("a_pod_in_both_files_is_the_first_ones_until_that_lets_go", both_files),
        ("one_in_a_sub_cgroup_serves_what_runs_there", sub_cgroup),
        ("a_pod_of_an_agent_that_is_gone_is_not_taken_over", gone),
        ("a_second_agent_of_the_same_instance_does_not_start", same_instance),
    ])
}

struct Neighbours {
    cluster: Cluster,
    _echoes: Vec<Server>,
}

const PORT: u16 = 8080;
const SHARED: &str = "shared";

/// Two pods of each agent.
const PODS: [[&str; 2]; 2] = [["alice", "anna"], ["bob", "ben"]];

impl World for Neighbours {
    fn build() -> Result<Self> {
        let [[alice, anna], [bob, ben]] = PODS;
        let pods = [(alice, "n1"), (anna, "n1"), (SHARED, "n1"), (bob, "n2"), (ben, "n2")];
        let mesh = pods.iter().fold(Mesh::default(), |mesh, (pod, _)| mesh.meshed(pod, pod));
        // Longer than the other agent takes to try again, so that it meets a pod that is leaving.
        let settings = Settings { drain_deadline: Duration::from_secs(30), ..Settings::default() };
        let cluster = Cluster::start_with(&pods, mesh, settings)?;
        let echoes = pods.iter().map(|(pod, _)| Server::start(cluster.ns(pod), PORT, server::echo));
        Ok(Self { _echoes: echoes.collect::<Result<_>>()?, cluster })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn own_pods(w: &mut Neighbours) -> Result<()> {
    let pods = [vec!["alice", "anna", SHARED], vec!["bob", "ben"]];
    let mut all = BTreeSet::new();
    for (mine, agent) in w.cluster.agents().into_iter().enumerate() {
        let cookies = cookies(agent)?;
        ensure!(cookies.len() == pods[mine].len(), "{cookies:?}");
        ensure!(all.is_disjoint(&cookies), "both have {cookies:?}");
        let rows = Rows::of(agent)?;
        ensure!(rows.pods == cookies && rows.listeners == cookies && rows.addresses == cookies, "{rows:?}");
        all.extend(cookies);
    }
    for [mine, other] in [[0, 1], [1, 0]] {
        let agents = w.cluster.agents();
        let before = [seen(agents[mine])?, seen(agents[other])?];
        for v6 in [false, true] {
            w.talk(PODS[mine], v6)?;
        }
        let captured = seen(agents[mine])?.captured - before[0].captured;
        ensure!(captured == 2, "{captured} of 2 were captured");
        wait::until_true(wait::PATIENCE, "all are counted", || {
            seen(agents[mine]).is_ok_and(|now| now.closed == before[0].closed + 4.0)
        })?;
        ensure!(seen(agents[other])? == before[1], "the other counts {PODS:?} of {mine}");
    }
    // And from one to the other.
    w.talk(["alice", "bob"], false)?;
    w.talk(["ben", "anna"], true)
}

fn crash(w: &mut Neighbours) -> Result<()> {
    for [victim, survivor] in [[0, 1], [1, 0]] {
        let mut live = w.live(PODS[survivor])?;
        w.agent(victim).kill()?;
        w.goes_on(&mut live, PODS[survivor]).context("the other was killed")?;
        let dead = PODS[victim];
        let refused = talk::try_echo(w.cluster.ns(dead[0]), w.cluster.addr(dead[1], PORT, false), SHORT);
        ensure!(refused.is_err(), "a pod of the one that was killed speaks in plaintext");
        w.agent(victim).run()?;
        w.goes_on(&mut live, PODS[survivor]).context("the other is back")?;
        w.talk(dead, false)?;
    }
    Ok(())
}

fn uninstalled(w: &mut Neighbours) -> Result<()> {
    for [victim, survivor] in [[0, 1], [1, 0]] {
        let mut live = w.live(PODS[survivor])?;
        w.agent(victim).stop(wait::PATIENCE)?;
        w.goes_on(&mut live, PODS[survivor]).context("the other was stopped")?;
        w.agent(victim).uninstall()?;
        w.goes_on(&mut live, PODS[survivor]).context("the other was uninstalled")?;
        w.talk(PODS[victim], true).context("without the mesh")?;
        w.agent(victim).run()?;
        w.goes_on(&mut live, PODS[survivor]).context("the other is back")?;
        w.talk(PODS[victim], false)?;
    }
    Ok(())
}

fn both_files(w: &mut Neighbours) -> Result<()> {
    let first = w.cluster.n1.instance().to_owned();
    let (plumbing, rows) = (w.plumbing()?, Rows::of(&w.cluster.n1)?);
    let mut live = [w.dial(["anna", SHARED], false)?, w.dial([SHARED, "anna"], true)?];
    let untouched = |w: &Neighbours, live: &mut [TcpStream; 2]| -> Result<()> {
        for stream in live {
            talk::echo(stream, b"still here").context("a live connection of the pod")?;
        }
        w.talk(["anna", SHARED], true)?;
        w.talk([SHARED, "anna"], false)?;
        let (now, rows_now) = (w.plumbing()?, Rows::of(&w.cluster.n1)?);
        ensure!(now == plumbing && rows_now == rows, "was {plumbing} {rows:?}, is {now} {rows_now:?}");
        Ok(())
    };

    w.listed_by([true, true])?;
    refused(&w.cluster.n2, &first)?;
    let status = w.cluster.n2.cli(&["status"])?;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(text.contains(SHARED) && text.contains(&first), "{text}");
    ensure!(w.cluster.n2.is_ready(), "its other pods are served");
    untouched(w, &mut live).context("it is in both files")?;
    w.listed_by([true, false])?;
    untouched(w, &mut live).context("the second has let go of what it never had")?;

    w.listed_by([true, true])?;
    refused(&w.cluster.n2, &first)?;
    w.cluster.n2.stop(wait::PATIENCE)?;
    w.cluster.n2.uninstall()?;
    untouched(w, &mut live).context("the second was uninstalled")?;
    w.cluster.n2.run()?;
    refused(&w.cluster.n2, &first)?;
    untouched(w, &mut live).context("the second was started again")?;

    // The first lets go, while a connection of the pod lives on.
    w.listed_by([false, true])?;
    wait::until_true(wait::PATIENCE, "the second has enrolled the pod", || {
        cookies(&w.cluster.n2).is_ok_and(|cookies| cookies.len() == 3)
    })?;
    for stream in &mut live {
        talk::echo(stream, b"still here").context("a connection from before")?;
    }
    let before = [seen(&w.cluster.n1)?.captured, seen(&w.cluster.n2)?.captured];
    w.talk([SHARED, "bob"], false)?;
    ensure!([seen(&w.cluster.n1)?.captured, seen(&w.cluster.n2)?.captured] == [before[0], before[1] + 1]);
    // Only now the first is through with it, and takes nothing of the second's.
    drop(live);
    let left = || w.cluster.n1.admin("/status").is_ok_and(|status| status["pods"]["leaving"] == 0);
    wait::until_true(wait::PATIENCE, "the first is through with the pod", left)?;
    ensure!(w.plumbing()? == plumbing, "was {plumbing}, is {}", w.plumbing()?);
    w.talk(["bob", SHARED], true)?;

    // And back.
    w.listed_by([true, true])?;
    refused(&w.cluster.n1, w.cluster.n2.instance())?;
    w.listed_by([true, false])?;
    wait::until_true(wait::PATIENCE, "the first has the pod again", || {
        cookies(&w.cluster.n1).is_ok_and(|cookies| cookies.len() == 3)
    })?;
    w.talk(["anna", SHARED], false)
}

fn sub_cgroup(w: &mut Neighbours) -> Result<()> {
    w.in_sub_cgroup(|w, folder| {
        let captured = |w: &Neighbours| -> Result<[u64; 2]> {
            Ok([seen(&w.cluster.n1)?.captured, seen(&w.cluster.n2)?.captured])
        };
        // Its own pod where its programs are, where they are not, and the other's pod in its cgroup.
        for (pods, inside, expected) in
            [(PODS[1], true, [0, 1]), (PODS[1], false, [0, 0]), (PODS[0], true, [1, 0])]
        {
            let before = captured(w)?;
            let to = w.cluster.addr(pods[1], PORT, false);
            if inside {
                Dial { cgroup: folder.clone(), netns: w.cluster.ns(pods[0]).clone(), to }.in_a_child()?;
            } else {
                talk::echo_once(w.cluster.ns(pods[0]), to)?;
            }
            let now = captured(w)?;
            let grown = [now[0] - before[0], now[1] - before[1]];
            ensure!(grown == expected, "{pods:?}, inside {inside}: {grown:?} were captured");
        }
        Ok(())
    })
}

/// Its guard of the ports sees only what runs in its own cgroup, and the other agent does not.
fn gone(w: &mut Neighbours) -> Result<()> {
    w.in_sub_cgroup(|w, _| {
        w.listed_by([false, true])?;
        wait::until_true(wait::PATIENCE, "the second has the pod", || {
            cookies(&w.cluster.n2).is_ok_and(|cookies| cookies.len() == 3)
        })?;
        w.cluster.n2.kill()?;
        let plumbing = w.plumbing()?;
        w.listed_by([true, false])?;
        refused(&w.cluster.n1, w.cluster.n2.instance())?;
        ensure!(w.plumbing()? == plumbing);
        w.cluster.n2.uninstall()?;
        wait::until_true(wait::PATIENCE, "the first has the pod", || {
            cookies(&w.cluster.n1).is_ok_and(|cookies| cookies.len() == 3)
        })?;
        w.talk(["anna", SHARED], false)?;
        w.cluster.n2.run()
    })
}

fn same_instance(w: &mut Neighbours) -> Result<()> {
    let mut live = w.live(PODS[0])?;
    let output = w.cluster.n1.cli(&["agent"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains(w.cluster.n1.instance()), "{said}");
    ensure!(said.contains("stop it first"), "{said}");
    w.goes_on(&mut live, PODS[0])
}

impl Neighbours {
    fn agent(&mut self, which: usize) -> &mut Agent {
        if which == 0 { &mut self.cluster.n1 } else { &mut self.cluster.n2 }
    }

    fn dial(&self, [from, to]: [&str; 2], v6: bool) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns(from), self.cluster.addr(to, PORT, v6))?;
        talk::echo(&mut stream, b"hello").with_context(|| format!("{from} dials {to}, v6 {v6}"))?;
        Ok(stream)
    }

    fn talk(&self, pods: [&str; 2], v6: bool) -> Result<()> {
        ensure!(talk::finish(self.dial(pods, v6)?)?.is_empty());
        Ok(())
    }

    fn live(&self, pods: [&str; 2]) -> Result<[TcpStream; 2]> {
        Ok([self.dial(pods, false)?, self.dial(pods, true)?])
    }

    fn goes_on(&self, live: &mut [TcpStream; 2], pods: [&str; 2]) -> Result<()> {
        for stream in live {
            talk::echo(stream, b"still here").with_context(|| format!("{pods:?}: a live connection"))?;
        }
        self.talk(pods, false)?;
        self.talk(pods, true)
    }

    /// Which of the two agents' files have the shared pod.
    fn listed_by(&mut self, [first, second]: [bool; 2]) -> Result<()> {
        let mut mesh = self.cluster.mesh.clone();
        let entry = mesh.workload(SHARED).local_pod(&self.cluster.topology);
        mesh.workload(SHARED).enrolled = first;
        for (agent, more) in self.cluster.agents().into_iter().zip([false, second]) {
            let mut text = mesh.text_for(&self.cluster.topology, &agent.node().name);
            if more {
                text.push_str(&entry);
            }
            if fs::read_to_string(agent.mesh_file())? == text {
                continue;
            }
            let before = revision(agent).ok();
            agent.write_mesh(&text)?;
            if let Some(before) = before {
                let newer = || revision(agent).is_ok_and(|now| now > before);
                wait::until_true(wait::PATIENCE, "the edited mesh file is taken", newer)?;
            }
        }
        Ok(())
    }

    /// What enrolment gave to the shared pod's namespace, as its owner sees it.
    fn plumbing(&self) -> Result<String> {
        let ns = self.cluster.ns(SHARED);
        let mut all = String::new();
        for family in ["-4", "-6"] {
            let _ = write!(all, "{}", ns.ip(&format!("{family} rule"))?);
            let _ = write!(all, "{}", ns.ip(&format!("{family} route show table 15008"))?);
        }
        for key in [
            "ipv4.tcp_fwmark_accept",
            "ipv4.fwmark_reflect",
            "ipv6.fwmark_reflect",
            "ipv4.ip_local_reserved_ports",
        ] {
            let _ = writeln!(all, "{key} {}", ns.read_sysctl(key)?);
        }
        Ok(all)
    }

    /// The second agent's programs in a cgroup below the first's while `story` runs.
    fn in_sub_cgroup(&mut self, story: impl FnOnce(&mut Self, &PathBuf) -> Result<()>) -> Result<()> {
        let root = cgroup_mount()?;
        let folder = root.join(self.cluster.topology.prefix());
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let config = self.cluster.n2.config();
        let text = fs::read_to_string(&config)?;
        let usual = format!("cgroup: {}\n", root.join("").display());
        let result = (|| {
            ensure!(text.contains(&usual), "{text}");
            fs::write(&config, text.replace(&usual, &format!("cgroup: {}\n", folder.display())))?;
            self.cluster.n2.stop(wait::PATIENCE)?;
            self.cluster.n2.run()?;
            story(self, &folder)?;
            fs::write(&config, &text)?;
            self.cluster.n2.stop(wait::PATIENCE)?;
            self.cluster.n2.run()
        })();
        fs::remove_dir(&folder)?;
        result
    }
}

/// Waits until an agent says that the shared pod is the other's, everywhere where an operator looks.
fn refused(agent: &Agent, by: &str) -> Result<()> {
    let reason = || -> Option<String> {
        let pods = agent.admin("/pods").ok()?;
        let pod = pods.as_array()?.iter().find(|p| p["name"] == SHARED)?;
        (pod["state"] == "refused").then(|| pod["reason"].as_str().unwrap_or_default().to_owned())
    };
    let reason = wait::until(wait::PATIENCE, "the shared pod is refused", reason)?;
    ensure!(reason.contains(by) && reason.contains("underpass uninstall"), "{reason}");
    let status = agent.admin("/status")?;
    ensure!(status["findings"].to_string().contains(by) && status["pods"]["refused"] == 1, "{status}");
    Ok(())
}

/// The namespaces of the pods that an agent says are enrolled.
fn cookies(agent: &Agent) -> Result<BTreeSet<u64>> {
    let pods = agent.admin("/pods")?;
    let enrolled = pods.as_array().context("no list of pods")?.iter().filter(|p| p["state"] == "enrolled");
    Ok(enrolled.filter_map(|p| p["netns_cookie"].as_u64()).collect())
}

/// What an agent and its programs have done so far.
#[derive(Debug, PartialEq)]
struct Seen {
    captured: u64,
    counters: Vec<u64>,
    closed: f64,
}

fn seen(agent: &Agent) -> Result<Seen> {
    let counters = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(pinned(agent, name::map::COUNTERS)?))?;
    let counters =
        (0..counter::COUNT).map(|i| Ok(counters.get(&i, 0)?.iter().sum())).collect::<Result<Vec<u64>>>()?;
    let closed = agent.metric("istio_tcp_connections_closed_total", &[])?;
    Ok(Seen { captured: counters[counter::CAPTURED as usize], counters, closed })
}

/// The namespaces that the rows of an instance's maps are about.
#[derive(Debug, PartialEq)]
struct Rows {
    pods: BTreeSet<u64>,
    listeners: BTreeSet<u64>,
    addresses: BTreeSet<u64>,
}

impl Rows {
    fn of(agent: &Agent) -> Result<Self> {
        let pods = HashMap::<_, u64, PodRow>::try_from(Map::HashMap(pinned(agent, name::map::PODS)?))?;
        let listeners = Map::SockHash(pinned(agent, name::map::LISTENERS)?);
        let listeners = SockHash::<_, ListenerKey>::try_from(listeners)?;
        let addresses = Map::HashMap(pinned(agent, name::map::OWN_ADDRESSES)?);
        let addresses = HashMap::<_, OwnAddressKey, u8>::try_from(addresses)?;
        Ok(Self {
            pods: pods.keys().collect::<Result<_, _>>()?,
            listeners: listeners.keys().map(|k| k.map(|k| k.netns)).collect::<Result<_, _>>()?,
            addresses: addresses.keys().map(|k| k.map(|k| k.netns)).collect::<Result<_, _>>()?,
        })
    }
}

fn pinned(agent: &Agent, map: &str) -> Result<MapData> {
    let path = PathBuf::from("/sys/fs/bpf/underpass").join(agent.instance()).join("v1/maps").join(map);
    MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))
}

/// A dial by a process of its own, which can live in another cgroup than this one.
struct Dial {
    cgroup: PathBuf,
    netns: Netns,
    to: std::net::SocketAddr,
}

const DIAL: &str = "dial-from-cgroup";

impl Dial {
    fn in_a_child(&self) -> Result<()> {
        let output = Command::new(std::env::current_exe()?)
            .arg(DIAL)
            .arg(&self.cgroup)
            .args([self.netns.name(), &self.to.to_string()])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Whether this process is such a child.
    fn asked() -> Option<Self> {
        let mut arguments = std::env::args().skip(1);
        (arguments.next()? == DIAL).then_some(())?;
        let (cgroup, netns) = (arguments.next()?.into(), Netns::named(&arguments.next()?));
        Some(Self { cgroup, netns, to: arguments.next()?.parse().ok()? })
    }

    fn run(&self) -> ExitCode {
        let done = fs::write(self.cgroup.join("cgroup.procs"), "0")
            .and_then(|()| talk::echo_once(&self.netns, self.to));
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{e}");
                ExitCode::FAILURE
            }
        }
    }
}
