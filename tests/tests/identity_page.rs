//! docs/identity.md as a new user reads it: every command is typed in the page's order in a fresh folder, every
//! piece of configuration is taken, and what the page alone sets up issues certificates and changes its root.
//!
//! What stands for a place on a machine (`/etc/underpass`, the socket, the controller's address, a pin) is put
//! in its place here, as the user would. What needs a cluster is named below, and nothing else is left out.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use underpass_tests::controller::{Controller, PORT};
use underpass_tests::stories::{self, World};
use underpass_tests::{Agent, Mesh, Settings, Topology, binary, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("every_piece_of_configuration_is_taken", configuration),
        ("its_commands_make_an_authority_that_issues_and_changes_its_root", commands),
    ])
}

const PAGE: &str = include_str!("../../docs/identity.md");

/// Not typed: kubectl, and a command that is only seen to get as far as the cluster.
const CLUSTER: [&str; 2] = [
    "kubectl create secret generic cacerts -n underpass-system --from-file ca",
    "underpass ca rotate run --secret underpass-system/cacerts --controller /run/underpass/controller.sock --new-root offline-2",
];

/// The pieces of configuration, by how each begins.
const PIECES: [&str; 5] = [
    "authority:\n  secret:",
    "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\n",
    "names: [controller.example]\n",
    "node: {name: node-1}",
    "attestation:\n  kubernetes:",
];

struct Reader {
    // Before the topology, which has their namespaces.
    agent: Option<Agent>,
    controller: Option<Controller>,
    topology: Topology,
    folder: PathBuf,
}

impl World for Reader {
    fn build() -> Result<Self> {
        let topology = Topology::new(&["n1", "n2"], &[("cart", "n1")])?;
        let folder = topology.dir().join("fresh");
        std::fs::create_dir(&folder).context("making a fresh folder")?;
        Ok(Self { agent: None, controller: None, topology, folder })
    }

    fn diagnose(&self) -> String {
        let agent = self.agent.iter().map(Agent::tail);
        agent.chain(self.controller.iter().map(Controller::tail)).collect::<Vec<_>>().join("\n")
    }
}

fn configuration(w: &mut Reader) -> Result<()> {
    let [secret, role, machines, agent, cluster] = pieces()?;
    ensure!(role.contains("resourceNames: [cacerts]") && secret.contains("name: cacerts"), "{role}{secret}");
    // Of one controller in a cluster.
    let cluster = format!("names: [controller.example]\n{secret}{cluster}");
    for (name, text, controller) in
        [("machines", machines, true), ("cluster", &*cluster, true), ("agent", agent, false)]
    {
        let file = w.folder.join(format!("{name}.yaml"));
        std::fs::write(&file, text).context("writing a piece of configuration")?;
        let line =
            format!("underpass config check {} {name}.yaml", if controller { "--controller" } else { "" });
        typed(&w.folder, &line)?;
        // And it is looked at: a field that there is not is refused.
        std::fs::write(&file, format!("{text}nonsense: true\n")).context("writing nonsense")?;
        ensure!(!try_typed(&w.folder, &line)?.status.success(), "{name} with nonsense was taken");
        std::fs::remove_file(&file).context("removing it")?;
    }
    Ok(())
}

fn commands(w: &mut Reader) -> Result<()> {
    let all: Vec<String> = fenced("").iter().flat_map(|block| block.lines()).map(bare).collect();
    for line in CLUSTER {
        ensure!(all.iter().filter(|other| *other == line).count() == 1, "the page has not: {line}");
    }
    ensure!(all.len() > CLUSTER.len(), "the page has no commands");
    let mut pin = None;
    for line in &all {
        if CLUSTER.contains(&&**line) {
            without_cluster(&w.folder, line)?;
            continue;
        }
        ensure!(line.starts_with("underpass "), "a command of another program: {line}");
        if line.contains("/run/underpass/controller.sock") && w.controller.is_none() {
            w.set_up(pin.as_deref().context("no command before this printed a pin")?)?;
        }
        let said = typed(&w.folder, &w.here(line))?;
        if line.starts_with("underpass ca node ") {
            pin = said.split_whitespace().find(|word| word.starts_with("sha256:")).map(str::to_owned);
        }
    }
    let read = |file: &str| std::fs::read(w.folder.join(file)).with_context(|| format!("reading {file}"));
    ensure!(read("ca/root-cert.pem")? == read("offline-2/root-cert.pem")?, "the old root is still there");
    w.certificate("valid").map(drop)
}

impl Reader {
    /// A controller and an agent with what the page has for them.
    fn set_up(&mut self, pin: &str) -> Result<()> {
        let [_, _, machines, agent, _] = pieces()?;
        let shown = machines.split_whitespace().find(|word| word.starts_with("sha256:"));
        let machines = self.here(machines).replace(shown.context("no pin in the list of nodes")?, pin);
        // The default is ten minutes.
        let machines = format!("{machines}rotation:\n  renewWithin: 1s\n");
        self.controller = Some(Controller::start_with(&self.topology, "n2", &machines)?);

        let from = self.folder.join("ca/root-cert.pem");
        std::fs::copy(from, self.folder.join("root-cert.pem")).context("bringing the root to the node")?;
        let mesh = Mesh::default().meshed("cart", "cart");
        let mut it = Agent::prepare(&self.topology, "n1", &mesh, Settings::default())?;
        let in_shop = |text: String| {
            text.replace("namespace: default", "namespace: shop").replace("node: n1", "node: node-1")
        };
        it.write_mesh(&in_shop(mesh.text_for(&self.topology, "n1")))?;
        let text = std::fs::read_to_string(it.config()).context("reading the agent's configuration")?;
        let (before, rest) = text.split_once("certificates:\n").context("no certificates")?;
        let (_, before) = before.split_once("bpf:").context("no bpf")?;
        let (_, behind) = rest.split_once("tunnel:").context("no tunnel")?;
        // The name is known to no resolver here, and the agent's folder is not this machine's.
        let more = format!(
            "    alternativeHostNames: [controller.example]\n    state: {}/roots.json\n",
            self.folder.display()
        );
        std::fs::write(it.config(), format!("bpf:{before}{}{more}tunnel:{behind}", self.here(agent)))
            .context("writing the agent's configuration")?;
        it.run()?;
        self.agent = Some(it);
        self.certificate("valid").map(drop)
    }

    /// The pod's, as soon as it is in this state.
    fn certificate(&self, state: &str) -> Result<Value> {
        let agent = self.agent.as_ref().context("no agent")?;
        let found = || {
            let all = agent.admin("/certificates").ok()?;
            let of =
                |c: &&Value| c["identity"] == "spiffe://cluster.local/ns/shop/sa/cart" && c["state"] == state;
            all.as_array()?.iter().find(of).cloned()
        };
        wait::until(wait::PATIENCE, "the pod's certificate", found)
    }

    /// With this machine's places.
    fn here(&self, text: &str) -> String {
        let socket = self.topology.dir().join("n2.controller.sock").display().to_string();
        let controller = self.topology.node("n2").ip4;
        text.replace("/etc/underpass", &self.folder.display().to_string())
            .replace("/run/underpass/controller.sock", &socket)
            .replace(&format!("controller.example:{PORT}"), &format!("{controller}:{PORT}"))
    }
}

/// The command is understood, and ends at the API server that is not there.
fn without_cluster(folder: &Path, line: &str) -> Result<()> {
    if line.starts_with("kubectl ") {
        return Ok(());
    }
    let output = try_typed(folder, &format!("KUBECONFIG={}/none {line}", folder.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && said.contains("kubeconfig"),
        "{line}: {}: {said}",
        output.status
    );
    Ok(())
}

fn typed(folder: &Path, line: &str) -> Result<String> {
    let output = try_typed(folder, line)?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}: {out}{said}", output.status);
    Ok(out)
}

fn try_typed(folder: &Path, line: &str) -> Result<Output> {
    let binary = binary::agent()?;
    let place = binary.parent().context("the binary is in no folder")?.display();
    let path = format!("{place}:{}", std::env::var("PATH").unwrap_or_default());
    // A rotation waits for as long as it takes.
    let mut shell = Command::new("timeout");
    shell.args(["120", "sh", "-c", line]).current_dir(folder).env("PATH", path).stdin(Stdio::null());
    shell.output().with_context(|| format!("typing {line}"))
}

/// Those of [`PIECES`], and no others.
fn pieces() -> Result<[&'static str; 5]> {
    let all = fenced("yaml");
    let fit =
        all.len() == PIECES.len() && all.iter().zip(PIECES).all(|(text, begin)| text.starts_with(begin));
    ensure!(fit, "the page has other pieces of configuration: {all:?}");
    all.try_into().ok().context("not as many")
}

/// What stands between fences of this kind.
fn fenced(kind: &str) -> Vec<&'static str> {
    let mut all = Vec::new();
    let mut rest = PAGE;
    while let Some((_, behind)) = rest.split_once("\n```") {
        let Some((this, text)) = behind.split_once('\n') else { break };
        let Some(end) = text.find("\n```") else { break };
        if this == kind {
            all.push(&text[..=end]);
        }
        rest = &text[end + 4..];
    }
    all
}

/// Without what is said about it, and with single spaces.
fn bare(line: &str) -> String {
    let line = line.split(" #").next().unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
