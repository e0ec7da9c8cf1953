//! The file that says what the mesh is: whatever becomes of it, a good version is taken, a bad one is
//! refused with its place, and traffic goes on by the last good one.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use underpass_tests::cluster::{Cluster, give, revision};
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk;
use underpass_tests::{Mesh, Server, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("each_kind_of_mistake_is_refused_at_its_line_and_the_next_good_edit_is_taken", mistakes),
        ("a_file_that_is_deleted_leaves_the_last_good_state_until_it_is_back", deleted),
        ("a_file_is_swapped_as_kubernetes_swaps_a_configmap", swapped),
        ("a_file_with_ten_thousand_workloads_is_taken_under_traffic", large),
    ])
}

const APP: u16 = 8080;
const NO_CLIENT: &str = "principals: [\"*/sa/client\"]";

struct Files {
    cluster: Cluster,
    mesh: Mesh,
    _app: Server,
}

impl World for Files {
    fn build() -> Result<Self> {
        let mut mesh = Mesh::default().meshed("client", "client").meshed("server", "server").service(
            "shop",
            1,
            &[(80, APP)],
        );
        mesh.workload("server").services = vec![("shop".into(), vec![])];
        let cluster = Cluster::start(&[("client", "n1"), ("server", "n2")], mesh.clone())?;
        let app = Server::start(cluster.ns("server"), APP, server::echo)?;
        Ok(Self { cluster, mesh, _app: app })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

/// Those about policies are in `policy_live`, told by whom they would let in.
fn mistakes(w: &mut Files) -> Result<()> {
    let good = w.good();
    let mut live = w.dial()?;
    let again = good.split_once("localPods:\n").context("no pods")?.1;
    let edits = [
        ("broken YAML", good.replace("  mtls: PERMISSIVE", "  mtls: \"PERMISSIVE"), ""),
        ("an unknown field", good.replace("  protocol: HBONE", "  protokol: HBONE"), "protokol"),
        ("a wrong type", good.replace("  node: n2", "  node: {n2: 1}"), "node"),
        ("a value that is none", good.replace("  mtls: PERMISSIVE", "  mtls: LENIENT"), "mtls"),
        ("a bad range", good.replace("10.201.0.0/16", "10.201.0.0/33"), "ranges"),
        ("a port that is none", good.replace("ports: {80: 8080}", "ports: {80: 70000}"), "ports"),
        ("a uid that is there twice", format!("{good}{again}"), "uid"),
        (
            "a service that is not there",
            good.replace("default/shop.default", "default/shopp.default"),
            "services",
        ),
        (
            "a pod that no workload is",
            good.replace("workloadIps: [\"10.201.2.11\"", "workloadIps: [\"10.201.2.111\""),
            "addresses",
        ),
    ];
    for (what, text, field) in edits {
        ensure!(text != good, "{what} edits nothing");
        let (before, refusals) = (revision(&w.cluster.n2)?, w.refusals()?);
        w.cluster.n2.write_mesh(&text)?;
        let refused = wait::until(wait::PATIENCE, &format!("{what} is refused"), || {
            w.refusal().filter(|_| w.refusals().is_ok_and(|now| now > refusals))
        })?;
        let place = format!("{}:", w.cluster.n2.mesh_file().display());
        let line =
            refused.strip_prefix(&place).and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
        let line = line.with_context(|| format!("{what}: no line in {refused:?}"))?;
        ensure!(refused.contains(field), "{what}: no {field:?} in {refused:?}");
        // The parser notices broken YAML where it is lost, which is later.
        if !field.is_empty() {
            let said = text.lines().nth(line - 1).unwrap_or_default();
            let there =
                said.contains(field) || text.lines().skip(line - 2).take(2).any(|l| l.contains(field));
            ensure!(there, "{what}: line {line} is {said:?}: {refused:?}");
        }
        ensure!(revision(&w.cluster.n2)? == before, "{what} made a new revision");
        ensure!(w.cluster.n2.metric("underpass_source_revision", &[])? == before as f64);
        talk::echo(&mut live, b"still here").context(what)?;
        drop(w.dial().context(what)?);

        // From the bad edit straight to another good one.
        give(&w.cluster.n2, &w.other(before)).context(what)?;
        wait::until_true(wait::PATIENCE, &format!("{what} is forgiven"), || w.refusal().is_none())?;
        drop(w.dial().context(what)?);
    }
    give(&w.cluster.n2, &good)
}

fn deleted(w: &mut Files) -> Result<()> {
    let (good, file) = (w.good(), w.cluster.n2.mesh_file());
    let mut live = w.dial()?;
    let (before, refusals) = (revision(&w.cluster.n2)?, w.refusals()?);
    fs::remove_file(&file)?;
    wait::until_true(wait::PATIENCE, "the missing file is noticed", || {
        w.refusals().is_ok_and(|now| now > refusals) && w.refusal().is_some()
    })?;
    ensure!(w.refusal().is_some_and(|why| why.contains("No such file")), "{:?}", w.refusal());
    ensure!(revision(&w.cluster.n2)? == before);
    talk::echo(&mut live, b"still here")?;
    drop(w.dial()?);

    let forbidden = w.mesh.clone().rule("nobody", "DENY", NO_CLIENT);
    give(&w.cluster.n2, &forbidden.text_for(&w.cluster.topology, "n2"))?;
    ensure!(w.refused(), "the file that came back is not in force");
    // A file in its place that is empty for a moment, as one is that is written in place.
    fs::write(&file, "")?;
    fs::write(&file, &good)?;
    wait::until_true(wait::PATIENCE, "the good file is in force", || !w.refused())?;
    Ok(())
}

fn swapped(w: &mut Files) -> Result<()> {
    let (good, file) = (w.good(), w.cluster.n2.mesh_file());
    let forbidden = w.mesh.clone().rule("nobody", "DENY", NO_CLIENT).text_for(&w.cluster.topology, "n2");
    let dir = file.parent().context("the file is in no folder")?.to_owned();
    let name = file.file_name().context("the file has no name")?;
    // `mesh.yaml` leads to `..data/mesh.yaml`, and `..data` to a folder that is never changed.
    let put = |folder: &str, text: &str| -> Result<()> {
        fs::create_dir(dir.join(folder))?;
        fs::write(dir.join(folder).join("mesh.yaml"), text)?;
        symlink(folder, dir.join("..data_tmp"))?;
        Ok(fs::rename(dir.join("..data_tmp"), dir.join("..data"))?)
    };
    put("..1", &good)?;
    symlink("..data/mesh.yaml", dir.join("link"))?;
    fs::rename(dir.join("link"), dir.join(name))?;
    for (round, text) in [&forbidden, &good, &forbidden, &good].into_iter().enumerate() {
        let before = revision(&w.cluster.n2)?;
        put(&format!("..{}", round + 2), text)?;
        fs::remove_dir_all(dir.join(format!("..{}", round + 1)))?;
        wait::until_true(wait::PATIENCE, "the swapped file is taken", || {
            revision(&w.cluster.n2).is_ok_and(|now| now > before)
        })?;
        wait::until_true(wait::PATIENCE, "it is in force", || w.refused() == (text == &forbidden))?;
        wait::until_true(wait::PATIENCE, "nothing is complained about", || w.refusal().is_none())?;
    }
    fs::remove_file(dir.join(name))?;
    fs::rename(dir.join("..5/mesh.yaml"), dir.join(name))?;
    remove_all(&dir, &["..data", "..5"])
}

fn large(w: &mut Files) -> Result<()> {
    const MORE: usize = 10_000;
    let mut live = w.dial()?;
    for agent in w.cluster.agents() {
        let good = fs::read_to_string(agent.mesh_file())?;
        let (head, rest) = good.split_once("workloads:\n").context("no workloads")?;
        let mut more = String::new();
        for n in 0..MORE {
            let (high, low) = (n / 250, n % 250 + 1);
            more += &format!(
                "- name: more-{n}\n  namespace: crowd\n  serviceAccount: more-{n}\n  protocol: HBONE\n  \
                 node: elsewhere\n  workloadIps: [\"10.201.{}.{low}\", \"fd00:201:ffff::{n:x}\"]\n",
                high + 10
            );
        }
        give(agent, &format!("{head}workloads:\n{more}{rest}"))?;
        ensure!(agent.admin("/status")?["mesh"]["workloads"] == MORE + 2);
    }
    talk::echo(&mut live, b"still here")?;
    drop(w.dial()?);
    // The last of them is known as one of the mesh: only a tunnel would do, and nobody is there.
    let seen = w.cluster.n1.access()?.len();
    let to = (std::net::Ipv4Addr::new(10, 201, 49, 250), APP).into();
    ensure!(talk::try_echo(w.cluster.ns("client"), to, Duration::from_secs(5)).is_err());
    w.cluster.n1.wait_access_after(seen, "the dial of the last one", |l| {
        l.is("dst.workload", &format!("more-{}", MORE - 1)) && l.cause() == "peer_unreachable"
    })?;
    w.cluster.apply(w.mesh.clone())?;
    talk::echo(&mut live, b"still here")?;
    drop(w.dial()?);
    Ok(())
}

fn remove_all(dir: &Path, names: &[&str]) -> Result<()> {
    for path in names.iter().map(|name| dir.join(name)) {
        let folder = fs::symlink_metadata(&path)?.is_dir();
        if folder { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}

impl Files {
    fn good(&self) -> String {
        self.mesh.text_for(&self.cluster.topology, "n2")
    }

    /// A good file that differs from every other.
    fn other(&self, number: u64) -> String {
        let rule = format!("sourceIps: [\"192.0.2.{}\"]", number % 256);
        self.mesh.clone().rule("elsewhere", "DENY", &rule).text_for(&self.cluster.topology, "n2")
    }

    /// A new connection over which something went already.
    fn dial(&self) -> Result<TcpStream> {
        let mut stream = talk::dial(self.cluster.ns("client"), self.cluster.addr("server", APP, false))?;
        talk::echo(&mut stream, b"hello")?;
        Ok(stream)
    }

    /// Whether a new connection is refused.
    fn refused(&self) -> bool {
        let to = self.cluster.addr("server", APP, true);
        talk::try_echo(self.cluster.ns("client"), to, talk::DEADLINE).is_err()
    }

    /// What n2's agent says of the latest edit.
    fn refusal(&self) -> Option<String> {
        self.cluster.n2.admin("/status").ok()?["source"]["refused"].as_str().map(str::to_owned)
    }

    fn refusals(&self) -> Result<u64> {
        Ok(self.cluster.n2.metric("underpass_source_refused_total", &["\"file\""])? as u64)
    }
}
