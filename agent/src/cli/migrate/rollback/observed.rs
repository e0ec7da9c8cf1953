//! Whom the agent of this node has seen refused, and who would get in.

use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use super::plan::Plan;
use crate::cli::client;
use crate::cli::output::printable;
use crate::cli::show::text;
use crate::model::SpiffeId;
use crate::policy::Conn;

/// A line for each refused pair that would get in, or why nothing is known of any.
pub(super) fn told(socket: &Path, plan: &Plan) -> String {
    match client::ask(socket, "GET", "/observed", "") {
        Ok(observed) => list(&observed, plan),
        Err(e) => format!("  who was refused until now is not known: {}\n", printable(&e.to_string())),
    }
}

fn list(observed: &Value, plan: &Plan) -> String {
    let mut out = String::new();
    let of = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    for server in of(observed, "agents").iter().flat_map(|agent| of(agent, "servers")) {
        for seen in of(&server, "clients") {
            let refused = seen["connections"]["denied"].as_u64().unwrap_or(0);
            if refused > 0 && is_let_in(&server, &seen, plan) {
                out += &format!(
                    "  {} gets in to {} port {}: refused {refused} times, last at {}\n",
                    printable(&client_of(&seen)),
                    printable(&format!("{}/{}", text(&server, "/namespace"), text(&server, "/name"))),
                    text(&seen, "/port"),
                    printable(&text(&seen, "/lastSeen")),
                );
            }
        }
    }
    if out.is_empty() { "  nobody whom this node has seen refused gets in\n".into() } else { out }
}

/// By what would hold for a pod of the server.
fn is_let_in(server: &Value, seen: &Value, plan: &Plan) -> bool {
    let parse = |value: String| value.parse::<IpAddr>().ok();
    let (Some(to), Some(port)) = (parse(text(seen, "/destination")), port(seen)) else { return false };
    let from = parse(text(seen, "/client/addresses/0")).unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let identity = text(seen, "/client/identity").parse::<SpiffeId>().ok();
    let conn = Conn::new(identity, from, to, port);
    plan.after.iter().any(|(pod, policy)| {
        let same = text(server, "/namespace") == *pod.namespace
            && [&*pod.name, &*pod.workload_name].contains(&&*text(server, "/name"));
        let labels = server["pod"]["labels"].as_object();
        let alike = labels.is_some_and(|labels| {
            pod.facts
                .labels
                .iter()
                .all(|(key, value)| labels.get(&**key).and_then(Value::as_str) == Some(value))
        });
        (same || (alike && text(server, "/namespace") == *pod.namespace && !pod.facts.labels.is_empty()))
            && policy.evaluate(&conn, None).is_allow()
    })
}

fn port(seen: &Value) -> Option<u16> {
    seen["port"].as_u64().and_then(|port| u16::try_from(port).ok())
}

fn client_of(seen: &Value) -> String {
    let named = text(seen, "/client/identity");
    if !named.is_empty() {
        return named;
    }
    let workload = text(seen, "/client/workload");
    let place = match workload.is_empty() {
        true => text(seen, "/client/addresses/0"),
        false => format!("{}/{workload}", text(seen, "/client/namespace")),
    };
    format!("{place} in plaintext")
}
