//! What was observed, by running agents and in files that others saved.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::admin::DEFAULT_SOCKET;
use crate::cli::args::read_config;
use crate::cli::client;
use crate::telemetry::{ObservedAgent, ObservedServer, ObservedView, Seen};

/// Who is asked.
#[derive(Debug, Args)]
pub(crate) struct Observers {
    /// An agent's admin socket; may be repeated [default: /run/underpass/admin.sock, unless --observed is given]
    #[arg(long = "socket", value_name = "PATH")]
    sockets: Vec<PathBuf>,
    /// An agent's configuration, to find its socket by
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What another node's agent has observed: what `underpass migrate report -o json` printed there; may be
    /// repeated
    #[arg(long, value_name = "FILE")]
    observed: Vec<PathBuf>,
}

impl Observers {
    /// # Errors
    /// Somebody does not answer, a file is none, or nothing was observed at all.
    pub(super) fn gather(&self) -> anyhow::Result<ObservedView> {
        let mut all = ObservedView::default();
        for socket in self.sockets()? {
            // Wrapped, so that an agent that is not there does not end in the exit code of a refusal.
            let answer = client::ask(&socket, "GET", "/observed", "").map_err(|e| {
                anyhow::anyhow!("{e}; or give what another node has saved with --observed FILE")
            })?;
            let told =
                understood(answer).with_context(|| format!("the agent at {} answered", socket.display()))?;
            add(&mut all, told);
        }
        for file in &self.observed {
            add(&mut all, read(file)?);
        }
        if all.agents.iter().all(|agent| agent.servers.is_empty()) {
            bail!("{}", nothing(&all));
        }
        Ok(all)
    }

    fn sockets(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut sockets = self.sockets.clone();
        if let Some(config) = &self.config {
            sockets.push(read_config(config)?.admin.socket);
        }
        if sockets.is_empty() && self.observed.is_empty() {
            sockets.push(DEFAULT_SOCKET.into());
        }
        Ok(sockets)
    }
}

fn read(file: &Path) -> anyhow::Result<ObservedView> {
    let text = std::fs::read(file).with_context(|| format!("reading {} failed", file.display()))?;
    let value: Value = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no JSON; save it with -o json", file.display()))?;
    understood(value).with_context(|| format!("{} holds", file.display()))
}

/// As the agent says it, or inside of a report.
pub(super) fn understood(mut value: Value) -> anyhow::Result<ObservedView> {
    if let Some(inside) = value.get_mut("observed").filter(|inside| inside.is_object()) {
        value = inside.take();
    }
    serde_json::from_value(value).context(
        "something else than what an agent of this version has observed; it is what `underpass migrate report -o json` prints",
    )
}

/// An agent counts from its start on: of two answers of one, the later has the earlier in it.
pub(super) fn add(all: &mut ObservedView, more: ObservedView) {
    for agent in more.agents {
        let same = |other: &&mut ObservedAgent| {
            other.node == agent.node && other.instance == agent.instance && other.since == agent.since
        };
        match all.agents.iter_mut().find(same) {
            Some(known) if known.until >= agent.until => {}
            Some(known) => *known = agent,
            None => all.agents.push(agent),
        }
    }
    all.agents.sort_by(|a, b| (&a.node, &a.instance, &a.since).cmp(&(&b.node, &b.instance, &b.since)));
}

/// Everything that is of a namespace; of all of them, where none is named.
pub(super) fn servers<'a>(
    all: &'a ObservedView,
    namespace: Option<&'a str>,
) -> impl Iterator<Item = &'a ObservedServer> {
    let servers = all.agents.iter().flat_map(|agent| &agent.servers);
    servers.filter(move |server| namespace.is_none_or(|namespace| *server.namespace == *namespace))
}

/// # Errors
/// Nobody was seen to connect to this namespace.
pub(super) fn must_have(all: &ObservedView, namespace: &str) -> anyhow::Result<()> {
    if servers(all, Some(namespace)).next().is_some() {
        return Ok(());
    }
    let mut known: Vec<&str> = servers(all, None).map(|server| &*server.namespace).collect();
    known.sort_unstable();
    known.dedup();
    bail!(
        "nothing was observed in namespace {namespace}, only in {}; its pods run on other nodes: add what was observed there with --observed FILE",
        known.join(", ")
    )
}

/// Whether policy let it through, so far as it was asked.
pub(super) fn was_admitted(seen: &Seen) -> bool {
    seen.connections.allowed > 0
}

fn nothing(all: &ObservedView) -> String {
    let nodes: Vec<String> =
        all.agents.iter().map(|agent| format!("{} since {}", agent.node, agent.since)).collect();
    format!(
        "nothing was observed ({}): nobody connected to a meshed pod there; let traffic run and ask again, or add what other nodes observed with --observed FILE",
        nodes.join(", ")
    )
}
