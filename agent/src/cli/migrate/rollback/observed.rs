//! Whom the agent of this node has seen refused, and who would get in.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::plan::Plan;
use crate::cli::client;
use crate::cli::migrate::gather::understood;
use crate::cli::migrate::report::from;
use crate::cli::output::printable;
use crate::model::Workload;
use crate::policy::Conn;
use crate::telemetry::{ClientView, ObservedServer, ObservedView, Seen, is_churning_label};

/// A line for each refused pair that would get in, or why nothing is known of any.
pub(super) fn told(socket: &Path, plan: &Plan) -> String {
    let answer = client::ask(socket, "GET", "/observed", "").map_err(anyhow::Error::from);
    match answer.and_then(understood) {
        Ok(observed) => list(&observed, plan),
        Err(e) => format!("  who was refused until now is not known: {}\n", printable(&format!("{e:#}"))),
    }
}

pub(super) fn list(observed: &ObservedView, plan: &Plan) -> String {
    let mut out = String::new();
    for server in observed.agents.iter().flat_map(|agent| &agent.servers) {
        for seen in server.clients.iter().filter(|seen| is_let_in(server, seen, plan)) {
            let line = format!(
                "{} gets in to {}/{} port {}: refused {}, last seen {}",
                called(&seen.client),
                server.namespace,
                server.name,
                seen.port,
                refused(seen),
                seen.last_seen,
            );
            out += &format!("  {}\n", printable(&line));
        }
    }
    let left_out: u64 = observed.agents.iter().map(|agent| agent.left_out.denied).sum();
    if left_out > 0 {
        out += &format!(
            "  whose {left_out} more refused connections were is not known: there was no room to keep it\n"
        );
    }
    if out.is_empty() { "  nobody whom this node has seen refused gets in\n".into() } else { out }
}

/// By what would hold for a pod of the server.
fn is_let_in(server: &ObservedServer, seen: &Seen, plan: &Plan) -> bool {
    let client = &seen.client;
    let unknown = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let from = client.addresses.first().copied().unwrap_or(unknown);
    let conn = Conn {
        at_source: client.expected_identity.clone(),
        ..Conn::new(client.identity.clone(), from, seen.destination, seen.port)
    };
    let refused = seen.connections.denied + seen.requests.denied > 0;
    let mut pods = plan.after.iter().filter(|(pod, _)| is_of(pod, server));
    refused && pods.any(|(_, policy)| policy.evaluate(&conn, None).is_allow())
}

/// By name, or by labels of which those that every revision has otherwise are not kept of what was observed.
fn is_of(pod: &Workload, server: &ObservedServer) -> bool {
    let named = [&pod.name, &pod.workload_name].into_iter().any(|name| *name == server.name);
    let mut own = pod.facts.labels.iter().filter(|(key, _)| !is_churning_label(key)).peekable();
    let alike = own.peek().is_some() && own.all(|(key, value)| server.pod.labels.get(key) == Some(value));
    pod.namespace == server.namespace && (named || alike)
}

/// By its identity where it has proved one: that is what policies name.
fn called(client: &ClientView) -> String {
    match &client.identity {
        Some(id) => id.to_string(),
        None => format!("{} in plaintext", from(client)),
    }
}

fn refused(seen: &Seen) -> String {
    let of = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    match (seen.connections.denied, seen.requests.denied) {
        (connections, 0) => of(connections, "connection"),
        (0, requests) => of(requests, "request"),
        (connections, requests) => {
            format!("{} and {}", of(connections, "connection"), of(requests, "request"))
        }
    }
}
