//! The mesh changes while it is used: pods, addresses, accounts, namespaces, endpoints and modes come and
//! go, others do not notice, and at no moment does a pod of the mesh speak plaintext to another.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::capture::{Capture, settle};
use underpass_tests::cluster::{self, Cluster, SHORT};
use underpass_tests::mesh::identity;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::{NODE_LINK, Topology};
use underpass_tests::traces::Traces;
use underpass_tests::work::server;
use underpass_tests::work::talk;
use underpass_tests::{Agent, Mesh, Server, Settings, hbone, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("a_pod_that_is_added_keeps_its_plaintext_and_new_connections_are_captured", added),
        ("a_pod_that_is_removed_drains_leaves_nothing_behind_and_may_come_back", removed),
        ("a_pod_with_another_address_is_itself_from_there", readdressed),
        ("a_pod_with_another_service_account_proves_the_new_one_only", another_account),
        ("a_pod_whose_namespace_has_another_path_is_captured_throughout", another_path),
        ("a_pod_that_cannot_be_enrolled_again_stays_closed_until_it_is_of_the_mesh_no_more", stays_closed),
        ("a_pod_that_cannot_be_given_its_listeners_is_closed_until_it_can", port_taken),
        ("a_pod_that_is_listed_before_its_namespace_exists_is_enrolled_when_it_does", listed_early),
        ("a_namespace_that_is_not_the_pods_is_refused_and_left_as_it_was", not_its_namespace),
        ("a_services_endpoints_and_ports_change_under_live_connections", endpoints),
        ("a_workload_moves_and_whoever_gets_its_address_is_somebody_else", moved),
        ("what_was_plain_or_unknown_is_captured_as_soon_as_it_is_of_the_mesh", turns),
        ("a_mode_holds_for_new_connections_and_for_those_that_there_are", modes),
    ])
}

const APP: u16 = 8080;
const MARKER: &[u8] = b"nobody on the wire may read this";

struct Town {
    cluster: Cluster,
    /// What every story begins and ends with.
    mesh: Mesh,
    /// Mover's namespace before any agent came.
    untouched: Traces,
    /// An application in every pod.
    apps: BTreeMap<&'static str, Server>,
}

const PODS: [(&str, &str); 5] =
    [("client", "n1"), ("mover", "n1"), ("guest", "n1"), ("server", "n2"), ("turncoat", "n2")];

impl World for Town {
    fn build() -> Result<Self> {
        let topology = Topology::new(&["n1", "n2"], &PODS)?;
        let mesh = Mesh::default()
            .meshed("client", "client")
            .meshed("mover", "mover")
            .meshed("server", "server")
            .meshed("turncoat", "turncoat")
            .plain("guest");
        let untouched = Traces::of(&topology.pod("mover").ns)?;
        let mut apps = BTreeMap::new();
        for (pod, _) in PODS {
            apps.insert(pod, Server::start(&topology.pod(pod).ns, APP, server::echo)?);
        }
        let settings = Settings { drain_deadline: Duration::from_secs(6), ..Settings::default() };
        let cluster = Cluster::on(topology, mesh.clone(), settings)?;
        Ok(Self { cluster, mesh, untouched, apps })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn added(w: &mut Town) -> Result<()> {
    w.cluster.apply(w.mesh.clone().without("mover"))?;
    w.serves(&["client"])?;
    let mut live = vec![];
    for v6 in [false, true] {
        for (from, to) in [("mover", "server"), ("client", "mover"), ("guest", "mover"), ("client", "server")]
        {
            live.push((from, to, w.dial(from, to, v6)?));
        }
        w.in_plaintext("mover", "server", v6)?;
    }
    w.cluster.apply(w.mesh.clone())?;
    w.serves(&["client", "mover"])?;
    for v6 in [false, true] {
        w.in_mtls("mover", "server", v6)?;
        w.in_mtls("client", "mover", v6)?;
    }
    go_on(&mut live)
}

fn removed(w: &mut Town) -> Result<()> {
    let mut others = vec![];
    let mut own = vec![];
    for v6 in [false, true] {
        others.push(("client", "server", w.dial("client", "server", v6)?));
        own.push(("mover", "server", w.dial("mover", "server", v6)?));
        own.push(("client", "mover", w.dial("client", "mover", v6)?));
    }
    let seen = w.cluster.n1.access()?.len();
    w.cluster.apply(w.mesh.clone().without("mover"))?;
    w.wait_pod("mover", "it is not enrolled", |view| view.is_none_or(|v| v["state"] == "leaving"))?;
    // Its connections and those to it have until the deadline.
    go_on(&mut own)?;
    w.in_plaintext("mover", "server", false)?;
    w.in_plaintext("mover", "server", true)?;
    for direction in ["outbound", "inbound"] {
        w.cluster.n1.wait_access_after(seen, &format!("mover's {direction} connections drained"), |l| {
            l.is("direction", direction)
                && l.cause() == "pod_gone"
                && (l.is("src.workload", "mover") || l.is("dst.identity", &identity("mover")))
        })?;
    }
    drop(own);
    w.serves(&["client"])?;
    w.left_nothing()?;
    go_on(&mut others)?;

    for _ in 0..2 {
        w.cluster.apply(w.mesh.clone())?;
        w.serves(&["client", "mover"])?;
        w.in_mtls("mover", "server", false)?;
        w.in_mtls("client", "mover", true)?;
        w.cluster.apply(w.mesh.clone().without("mover"))?;
        w.serves(&["client"])?;
        w.left_nothing()?;
    }
    go_on(&mut others)?;
    w.back()
}

fn readdressed(w: &mut Town) -> Result<()> {
    let old = w.cluster.topology.pod("mover").ip4;
    let new = Ipv4Addr::new(10, 201, 1, 99);
    let mut others = vec![("client", "server", w.dial("client", "server", false)?)];
    let mut own = vec![("mover", "server", w.dial("mover", "server", true)?)];
    let (pod, node) = (w.cluster.topology.pod("mover").clone(), w.cluster.topology.node("n1").ns.clone());
    let renumber = |from: Ipv4Addr, to: Ipv4Addr| -> Result<()> {
        node.ip(&format!("route add {to}/32 dev {}", pod.node_veth))?;
        pod.ns.ip_batch(&format!("addr add {to}/32 dev eth0\naddr del {from}/32 dev eth0\n"))?;
        node.ip(&format!("route del {from}/32 dev {}", pod.node_veth)).map(drop)
    };
    w.while_dialling("mover", |w| {
        renumber(old, new)?;
        let mesh = w.mesh.clone();
        w.cluster.apply_edited(mesh, |text| text.replace(&format!("\"{old}\""), &format!("\"{new}\"")))?;
        w.wait_pod("mover", "it has its new address", |v| is_enrolled(v) && has_address(v, new))?;
        go_on(&mut own)
    })?;
    drop(own);
    go_on(&mut others)?;
    w.apps["server"].forget();
    let seen = w.cluster.n2.access()?.len();
    drop(w.dial("mover", "server", false)?);
    ensure!(w.apps["server"].peer_ips() == [IpAddr::V4(new)], "{:?}", w.apps["server"].peers());
    w.cluster.n2.wait_access_after(seen, "mover at its new address", |l| {
        l.source_ip() == Some(new.into()) && l.is("src.identity", &identity("mover"))
    })?;
    let seen = w.cluster.n1.access()?.len();
    let mut stream = talk::dial(w.cluster.ns("client"), (new, APP).into())?;
    talk::echo(&mut stream, MARKER)?;
    drop(talk::finish(stream)?);
    w.cluster.n1.wait_access_after(seen, "a tunnel to the new address", |l| {
        l.is("direction", "outbound") && l.is("dst.identity", &identity("mover")) && l.cause() == "closed"
    })?;

    renumber(new, old)?;
    w.back()?;
    w.in_mtls("mover", "server", false)
}

fn another_account(w: &mut Town) -> Result<()> {
    let mut others = vec![("client", "server", w.dial("client", "server", false)?)];
    let mut own = vec![
        ("mover", "server", w.dial("mover", "server", false)?),
        ("client", "mover", w.dial("client", "mover", false)?),
    ];
    let mut promoted = w.mesh.clone();
    promoted.workload("mover").service_account = "promoted".into();
    w.while_dialling("mover", |w| {
        w.cluster.apply(promoted.clone())?;
        w.wait_pod("mover", "it has its new identity", |v| is_enrolled(v) && has_identity(v, "promoted"))?;
        // Connections of before go on for a while; tunnels of before take no new one.
        go_on(&mut own)
    })?;
    for v6 in [false, true] {
        w.in_mtls_as("mover", "promoted", "server", "server", v6)?;
        w.in_mtls_as("client", "client", "mover", "promoted", v6)?;
    }
    go_on(&mut others)?;
    // The old name is worth nothing to it any more.
    let old = format!("principals: [\"cluster.local/ns/{}/sa/mover\"]", underpass_tests::mesh::NAMESPACE);
    w.cluster.apply(promoted.rule("only-mover", "ALLOW", &old))?;
    let to = w.cluster.addr("server", APP, false);
    ensure!(talk::try_echo(w.cluster.ns("mover"), to, talk::DEADLINE).is_err(), "it still is who it was");
    drop(own);
    wait::until_true(wait::PATIENCE, "no certificate of the old account is held", || {
        let Ok(held) = w.cluster.n1.admin("/certificates") else { return false };
        !held.to_string().contains(&identity("mover"))
    })?;
    w.back()
}

fn another_path(w: &mut Town) -> Result<()> {
    let (real, alias) = (w.cluster.ns("mover").path(), w.cluster.topology.dir().join("mover.alias"));
    std::os::unix::fs::symlink(&real, &alias)?;
    let mut own = vec![("mover", "server", w.dial("mover", "server", false)?)];
    let (real, alias) = (real.display().to_string(), alias.display().to_string());
    w.while_dialling("mover", |w| {
        let mesh = w.mesh.clone();
        w.cluster.apply_edited(mesh, |text| text.replace(&real, &alias))?;
        w.wait_pod("mover", "it has its new path", |v| {
            is_enrolled(v) && v.is_some_and(|v| v["netns"] == alias.as_str())
        })?;
        go_on(&mut own)
    })?;
    w.in_mtls("mover", "server", false)?;
    drop(own);
    w.back()
}

fn stays_closed(w: &mut Town) -> Result<()> {
    let pod = w.cluster.topology.pod("mover").clone();
    // An address that its namespace does not have: the edit is good, and the pod is not its.
    let addresses = format!("addresses: [\"{}\", \"{}\"]", pod.ip4, pod.ip6);
    let workload = format!("workloadIps: [\"{}\", \"{}\"]", pod.ip4, pod.ip6);
    let wrong = |text: String| {
        text.replace(&addresses, "addresses: [\"10.201.1.98\"]")
            .replace(&workload, "workloadIps: [\"10.201.1.98\"]")
    };
    let mesh = w.mesh.clone();
    w.while_dialling("mover", |w| {
        w.cluster.apply_edited(mesh, wrong)?;
        w.wait_pod("mover", "it is refused", |v| v.is_some_and(|v| v["state"] == "refused"))
    })?;
    w.apps["server"].forget();
    for v6 in [false, true] {
        let seen = talk::try_echo(&pod.ns, w.cluster.addr("server", APP, v6), SHORT);
        ensure!(seen == Err(talk::Refusal::Refused), "v6 {v6}: {seen:?}");
    }
    ensure!(w.apps["server"].peers().is_empty(), "it spoke plaintext meanwhile");
    // Once it is no pod of the mesh, it is as free as any other.
    w.cluster.apply(w.mesh.clone().without("mover"))?;
    w.serves(&["client"])?;
    w.left_nothing()?;
    w.in_plaintext("mover", "server", false)?;
    w.back()
}

fn port_taken(w: &mut Town) -> Result<()> {
    w.cluster.apply(w.mesh.clone().without("mover"))?;
    w.serves(&["client"])?;
    let taken = Server::start(w.cluster.ns("mover"), hbone::PORT, server::echo)?;
    let before = Traces::of(w.cluster.ns("mover"))?;
    w.cluster.apply(w.mesh.clone())?;
    w.wait_pod("mover", "it is refused for a port that is taken", |v| {
        v.is_some_and(|v| {
            v["state"] == "refused" && v["reason"].to_string().contains("port 15008 is taken inside the pod")
        })
    })?;
    // Whoever holds the port, one of the pod's own processes, must not keep it out of the mesh by that.
    for v6 in [false, true] {
        for (from, to) in [("mover", "server"), ("guest", "mover")] {
            let seen = talk::try_echo(w.cluster.ns(from), w.cluster.addr(to, APP, v6), SHORT);
            ensure!(seen == Err(talk::Refusal::Refused), "{from} to {to}, v6 {v6}: {seen:?}");
        }
    }
    // Unlisted, it is as it was before.
    w.cluster.apply(w.mesh.clone().without("mover"))?;
    w.wait_pod("mover", "it is forgotten", |v| v.is_none())?;
    wait::until_true(wait::PATIENCE, "nothing is left in the namespace", || {
        Traces::of(w.cluster.ns("mover")).is_ok_and(|now| now == before)
    })?;
    w.in_plaintext("mover", "server", false)?;
    w.in_plaintext("guest", "mover", true)?;
    w.cluster.apply(w.mesh.clone())?;
    drop(taken);
    w.back()?;
    w.in_mtls("mover", "server", true)
}

fn listed_early(w: &mut Town) -> Result<()> {
    w.cluster.topology.add_pod("early", "n1")?;
    let mesh = w.mesh.clone().meshed("early", "early");
    let text = mesh.text_for(&w.cluster.topology, "n1");
    w.cluster.topology.remove_pod("early")?;
    cluster::give(&w.cluster.n1, &text)?;
    w.wait_pod("early", "it is refused for want of a namespace", |v| {
        v.is_some_and(|v| v["state"] == "refused" && v["reason"].to_string().contains("No such file"))
    })?;
    // One pod that is not there holds up nobody else.
    w.in_mtls("mover", "server", false)?;

    // At the same addresses, which are the next free ones again.
    w.cluster.topology.add_pod("early", "n1")?;
    w.cluster.apply(mesh)?;
    w.wait_pod("early", "it is enrolled", is_enrolled)?;
    w.in_mtls("early", "server", false)?;
    w.in_mtls("early", "server", true)?;
    w.back()?;
    w.cluster.topology.remove_pod("early")
}

fn not_its_namespace(w: &mut Town) -> Result<()> {
    let own = w.cluster.ns("mover").path().display().to_string();
    let (node, guest) = (w.cluster.topology.node("n1").ns.clone(), w.cluster.ns("guest").clone());
    w.cluster.apply(w.mesh.clone().without("mover"))?;
    w.serves(&["client"])?;
    let before = [Traces::of(&node)?, Traces::of(&guest)?, Traces::of(w.cluster.ns("mover"))?];
    let dir = w.cluster.topology.dir().to_owned();
    let pipe = dir.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    for (path, why) in [
        (node.path(), "the host's own network namespace"),
        ("/proc/self/ns/net".into(), "the host's own network namespace"),
        (guest.path(), "it is another pod's"),
        // The machine's own, which is no node of this mesh.
        (format!("/proc/{}/ns/net", std::process::id()).into(), "it is another pod's"),
        ("/proc/self/ns/mnt".into(), "setns"),
        (w.cluster.n1.config(), "setns"),
        // Nobody writes to it, and nobody waits for that.
        (pipe, "setns"),
        (dir, "setns"),
    ] {
        let (mesh, path) = (w.mesh.clone(), path.display().to_string());
        w.cluster.apply_edited(mesh, |text| text.replace(&own, &path))?;
        w.wait_pod("mover", &format!("{path} is refused: {why}"), |v| {
            v.is_some_and(|v| {
                v["state"] == "refused"
                    && v["netns"] == path.as_str()
                    && v["reason"].to_string().contains(why)
            })
        })?;
        ensure!(w.cluster.n1.log().contains(why), "the log does not say {why}");
        let after = [Traces::of(&node)?, Traces::of(&guest)?, Traces::of(w.cluster.ns("mover"))?];
        ensure!(after == before, "{path}: {before:?} became {after:?}");
        // Nobody's connections are touched: neither the pod's, which is not enrolled, nor guest's.
        w.in_plaintext("mover", "server", false)?;
        w.in_plaintext("guest", "server", true)?;
        w.in_mtls("client", "server", false)?;
    }
    w.back()?;
    w.in_mtls("mover", "server", false)
}

fn endpoints(w: &mut Town) -> Result<()> {
    const WEB: u16 = 80;
    const OTHER: u16 = 8082;
    let _other = Server::start(w.cluster.ns("server"), OTHER, server::echo)?;
    let shop = |ports: &[(u16, u16)], pod: &str, own: Vec<(u16, u16)>| {
        let mut mesh = w.mesh.clone().service("shop", 1, ports);
        mesh.workload(pod).services = vec![("shop".into(), own)];
        mesh
    };
    let edits = [
        (shop(&[(WEB, APP)], "server", vec![]), "server", APP),
        (shop(&[(WEB, APP)], "mover", vec![]), "mover", APP),
        (shop(&[(WEB, OTHER)], "server", vec![]), "server", OTHER),
        (shop(&[(WEB, APP)], "server", vec![(WEB, OTHER)]), "server", OTHER),
    ];
    let mut live = vec![];
    for (mesh, pod, port) in edits {
        w.cluster.apply(mesh)?;
        for v6 in [false, true] {
            let to = (w.cluster.mesh.the_service("shop").vip(v6), WEB).into();
            let seen = w.cluster.agent_of(pod).access()?.len();
            talk::echo_once(w.cluster.ns("client"), to).with_context(|| format!("shop, which is {pod}"))?;
            let expected = w.cluster.addr(pod, port, v6).to_string();
            w.cluster.agent_of(pod).wait_access_after(seen, &format!("a connection to {expected}"), |l| {
                l.is("direction", "inbound") && l.is("dst.addr", &expected)
            })?;
            let mut stream = talk::dial(w.cluster.ns("client"), to)?;
            talk::echo(&mut stream, b"hello")?;
            live.push(("client", pod, stream));
        }
        go_on(&mut live)?;
    }
    w.cluster.apply(w.mesh.clone())?;
    go_on(&mut live)?;
    // The service is gone with its addresses: nobody answers there.
    let to = ([10, 203, 0, 1], WEB).into();
    ensure!(talk::try_echo(w.cluster.ns("client"), to, SHORT).is_err());
    Ok(())
}

fn moved(w: &mut Town) -> Result<()> {
    let no_nomad =
        format!("principals: [\"cluster.local/ns/{}/sa/nomad\"]", underpass_tests::mesh::NAMESPACE);
    w.cluster.topology.add_pod("nomad", "n1")?;
    let left = w.cluster.topology.pod("nomad").clone();
    w.apps.insert("nomad", Server::start(&left.ns, APP, server::echo)?);
    let mesh = |w: &Town| w.mesh.clone().meshed("nomad", "nomad");
    w.cluster.apply(mesh(w))?;
    w.serves(&["client", "mover", "nomad"])?;
    w.in_mtls("client", "nomad", false)?;
    w.in_mtls("nomad", "server", false)?;

    // It goes to the other node, and the place that it leaves is taken by somebody else.
    w.apps.remove("nomad");
    w.cluster.topology.remove_pod("nomad")?;
    w.cluster.topology.add_pod("nomad", "n2")?;
    w.cluster.topology.add_pod_at("heir", "n1", left.ip4, left.ip6)?;
    w.apps.insert("nomad", Server::start(w.cluster.ns("nomad"), APP, server::echo)?);
    w.apps.insert("heir", Server::start(w.cluster.ns("heir"), APP, server::echo)?);
    // Known as nomad's still, heir is nobody: neither is it spoken to nor does it get in as nomad.
    for v6 in [false, true] {
        let seen = talk::try_echo(w.cluster.ns("client"), w.cluster.addr("heir", APP, v6), SHORT);
        ensure!(seen.is_err(), "nomad's address was as good as nomad");
    }
    ensure!(w.apps["heir"].peers().is_empty());

    w.cluster.apply(mesh(w).meshed("heir", "heir").rule("no-nomad", "DENY", &no_nomad))?;
    w.serves(&["client", "mover", "heir"])?;
    for v6 in [false, true] {
        w.in_mtls("client", "heir", v6)?;
        w.in_mtls("client", "nomad", v6)?;
        // The policy is about who it is, not about where it was.
        w.in_mtls("heir", "server", v6)?;
        let seen = talk::try_echo(w.cluster.ns("nomad"), w.cluster.addr("client", APP, v6), talk::DEADLINE);
        ensure!(seen == Err(talk::Refusal::Reset), "nomad at its new address: {seen:?}");
        let nomad = w.cluster.ip("nomad", v6);
        w.cluster.n1.wait_access("nomad's refusal", |l| {
            l.source_ip() == Some(nomad)
                && l.is("src.identity", &identity("nomad"))
                && l.cause() == "policy_denied"
        })?;
    }
    for pod in ["nomad", "heir"] {
        w.apps.remove(pod);
    }
    w.back()?;
    w.cluster.topology.remove_pod("nomad")?;
    w.cluster.topology.remove_pod("heir")
}

fn turns(w: &mut Town) -> Result<()> {
    let mut plain = w.mesh.clone();
    plain.workload("turncoat").meshed = false;
    plain.workload("turncoat").enrolled = false;
    let unknown = w.mesh.clone().without("turncoat");
    // As if its address were outside of the mesh's ranges.
    let narrow = |text: String| {
        text.replace("10.201.0.0/16", "10.201.1.0/24").replace("fd00:201::/32", "fd00:201:1::/48")
    };
    for (mesh, outside) in [(plain, false), (unknown.clone(), false), (unknown, true)] {
        let edit = |text: String| if outside { narrow(text) } else { text };
        w.cluster.apply_edited(mesh, edit)?;
        w.serves_on("n2", &["server"])?;
        let mut live = vec![];
        for v6 in [false, true] {
            // More than once: the first may be what teaches the kernel.
            for _ in 0..3 {
                w.in_plaintext("client", "turncoat", v6)?;
            }
            live.push(("client", "turncoat", w.dial("client", "turncoat", v6)?));
        }
        w.cluster.apply_edited(w.mesh.clone(), edit)?;
        w.serves_on("n2", &["server", "turncoat"])?;
        w.serves(&["client", "mover"])?;
        for v6 in [false, true] {
            for _ in 0..3 {
                w.in_mtls("client", "turncoat", v6)?;
            }
        }
        // What was made before goes on as it was made.
        go_on(&mut live)?;
    }
    w.back()
}

fn modes(w: &mut Town) -> Result<()> {
    let strict = w.mesh.clone().strict();
    let mut tunnelled = vec![("client", "server", w.dial("client", "server", false)?)];
    let mut passed = vec![];
    for v6 in [false, true] {
        passed.push(("guest", "server", w.dial("guest", "server", v6)?));
    }
    // The same with a policy that has the agent see plaintext.
    let judged = |mesh: Mesh| mesh.rule("elsewhere", "DENY", "sourceIps: [\"192.0.2.0/24\"]");
    w.cluster.apply(judged(w.mesh.clone()))?;
    let steered = wait::until(wait::PATIENCE, "plaintext comes to the agent", || {
        let stream = w.dial("guest", "server", false).ok()?;
        let local = stream.local_addr().ok()?.to_string();
        let live = w.cluster.n2.admin("/connections").ok()?.to_string();
        live.contains(&local).then_some(stream)
    })?;
    for _ in 0..2 {
        w.cluster.apply(strict.clone())?;
        for v6 in [false, true] {
            let to = w.cluster.addr("server", APP, v6);
            wait::until_true(wait::PATIENCE, "plaintext is refused", || {
                talk::try_echo(w.cluster.ns("guest"), to, SHORT).is_err()
            })?;
            w.in_mtls("client", "server", v6)?;
        }
        go_on(&mut tunnelled)?;
        // The kernel looks at SYNs only, so the agent ends what passed before.
        for (.., stream) in passed.drain(..) {
            ensure!(ended_by_reset(stream), "plaintext that the kernel let pass outlived STRICT");
        }
        w.cluster.apply(w.mesh.clone())?;
        for v6 in [false, true] {
            let to = w.cluster.addr("server", APP, v6);
            wait::until_true(wait::PATIENCE, "plaintext passes again", || {
                talk::try_echo(w.cluster.ns("guest"), to, SHORT).is_ok()
            })?;
            w.in_plaintext("guest", "server", v6)?;
        }
    }
    // What the agent saw it judges again, and ends it.
    ensure!(ended_by_reset(steered), "the steered connection outlived STRICT");
    let guest = w.cluster.ip("guest", false);
    w.cluster.n2.wait_access("guest's connection was ended by the mode", |l| {
        l.source_ip() == Some(guest) && l.cause() == "policy_revoked"
    })?;
    go_on(&mut tunnelled)
}

type Live = (&'static str, &'static str, TcpStream);

fn go_on(live: &mut [Live]) -> Result<()> {
    for (from, to, stream) in live {
        talk::echo(stream, b"still here").with_context(|| format!("{from}'s connection to {to} was cut"))?;
    }
    Ok(())
}

fn ended_by_reset(mut stream: TcpStream) -> bool {
    use std::io::Read;
    stream.read(&mut [0; 8]).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
}

fn is_enrolled(view: Option<&Value>) -> bool {
    view.is_some_and(|v| v["state"] == "enrolled" && v["in_kernel"] == true)
}

fn has_identity(view: Option<&Value>, account: &str) -> bool {
    view.is_some_and(|v| v["identity"] == identity(account).as_str())
}

fn has_address(view: Option<&Value>, ip: Ipv4Addr) -> bool {
    view.and_then(|v| v["addresses"].as_array()).is_some_and(|all| all.contains(&ip.to_string().into()))
}

impl Town {
    /// A connection over which something went already.
    fn dial(&self, from: &str, to: &str, v6: bool) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns(from), self.cluster.addr(to, APP, v6))
            .with_context(|| format!("{from} to {to}"))?;
        talk::echo(&mut stream, b"hello").with_context(|| format!("{from} to {to}"))?;
        Ok(stream)
    }

    /// Each is told by its service account, which has the pod's name.
    fn in_mtls(&self, from: &str, to: &str, v6: bool) -> Result<()> {
        self.in_mtls_as(from, from, to, to, v6)
    }

    fn in_mtls_as(&self, from: &str, from_account: &str, to: &str, to_account: &str, v6: bool) -> Result<()> {
        let what = format!("{from} to {to} (IPv6: {v6})");
        let (agent, seen) = (self.cluster.agent_of(to), self.cluster.agent_of(to).access()?.len());
        let wire = self.wire(from)?;
        let mut stream = self.dial(from, to, v6)?;
        talk::echo(&mut stream, MARKER)?;
        drop(talk::finish(stream)?);
        settle(&wire)?;
        ensure!(!wire.shows(MARKER)?, "{what} went in plaintext");
        agent.wait_access_after(seen, &what, |l| {
            l.is("direction", "inbound")
                && l.is("src.identity", &identity(from_account))
                && l.is("dst.identity", &identity(to_account))
                && l.cause() == "closed"
        })?;
        Ok(())
    }

    fn in_plaintext(&self, from: &str, to: &str, v6: bool) -> Result<()> {
        let wire = self.wire(from)?;
        let mut stream = self.dial(from, to, v6)?;
        talk::echo(&mut stream, MARKER)?;
        drop(talk::finish(stream)?);
        settle(&wire)?;
        ensure!(wire.shows(MARKER)?, "{from} to {to} (IPv6: {v6}) did not go in plaintext");
        Ok(())
    }

    /// Where the pod's packets leave it.
    fn wire(&self, pod: &str) -> Result<Capture> {
        let pod = self.cluster.topology.pod(pod);
        Capture::start(&self.cluster.topology.node(&pod.node).ns, &pod.node_veth)
    }

    /// Changes something while an application in the pod goes on dialling the server: whatever becomes
    /// of its connections, none of them leaves in plaintext.
    fn while_dialling(&mut self, pod: &str, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let wire = Capture::start(&self.cluster.topology.node("n1").ns, NODE_LINK)?;
        let (ns, to) =
            (self.cluster.ns(pod).clone(), [false, true].map(|v6| self.cluster.addr("server", APP, v6)));
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            let over = &over;
            s.spawn(move || {
                ns.run(|| {
                    while !over.load(Ordering::Relaxed) {
                        for to in to {
                            drop(TcpStream::connect_timeout(&to, SHORT));
                        }
                        // It is to be there at every moment, not to load the machine.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            });
            let done = change(self);
            over.store(true, Ordering::Relaxed);
            done
        })?;
        settle(&wire)?;
        let plain = wire.count_on(APP)?;
        ensure!(plain == 0, "{plain} packets of {pod} left in plaintext during the change");
        Ok(())
    }

    /// Waits until n1's agent serves these pods, no other, and has no old connections to end.
    fn serves(&self, pods: &[&str]) -> Result<()> {
        self.serves_on("n1", pods)
    }

    fn serves_on(&self, node: &str, pods: &[&str]) -> Result<()> {
        let agent = if node == "n1" { &self.cluster.n1 } else { &self.cluster.n2 };
        wait::until_true(wait::PATIENCE, &format!("{node} serves {pods:?} and nobody else"), || {
            let Some(views) = views(agent) else { return false };
            views.len() == pods.len()
                && pods.iter().all(|pod| is_enrolled(views.iter().find(|v| v["name"] == *pod)))
        })?;
        let findings = agent.admin("/status")?["findings"].clone();
        ensure!(findings.as_array().is_some_and(Vec::is_empty), "{findings}");
        Ok(())
    }

    fn wait_pod(&self, pod: &str, what: &str, is_so: impl Fn(Option<&Value>) -> bool) -> Result<()> {
        let agent = &self.cluster.n1;
        let last = || format!("/pods: {:?}", agent.admin("/pods"));
        wait::until_true(wait::PATIENCE, &format!("{pod}: {what}"), || {
            views(agent).is_some_and(|views| is_so(views.iter().find(|v| v["name"] == pod)))
        })
        .with_context(last)
    }

    /// Mover's namespace is as it was before any agent came, once its agent has noticed.
    fn left_nothing(&self) -> Result<()> {
        let now = || Traces::of(self.cluster.ns("mover"));
        wait::until_true(wait::PATIENCE, "nothing is left in the namespace", || {
            now().is_ok_and(|now| now == self.untouched)
        })
        .with_context(|| format!("{:?} became {:?}", self.untouched, now()))
    }

    /// What the next story begins with.
    fn back(&mut self) -> Result<()> {
        self.cluster.apply(self.mesh.clone())?;
        self.serves(&["client", "mover"])?;
        self.serves_on("n2", &["server", "turncoat"])?;
        self.apps.values().for_each(Server::forget);
        Ok(())
    }
}

fn views(agent: &Agent) -> Option<Vec<Value>> {
    agent.admin("/pods").ok()?.as_array().cloned()
}
