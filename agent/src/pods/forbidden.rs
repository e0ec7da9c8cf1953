//! Plaintext from outside that the kernel let pass while policy allowed it, and that policy forbids by now.
//! Nobody but the kernel has seen these connections: they are looked for among the pod's sockets.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::enrolled::EnrolledPod;
use crate::bpf::{Kernel, Known, PodSocket};
use crate::discovery::Snapshot;
use crate::model::{Cause, ClientAddr, ConnectionId, Direction, OriginalDst};
use crate::policy::{By, Compiled, Conn, Verdict};
use crate::sys::SysError;
use crate::sys::diag::{Diag, TcpState};
use crate::telemetry::{Denial, Opened, Party, Telemetry};

/// Ends them, and records each. To be called when the kernel has the rules for what comes from now on.
/// May take a while in a namespace with very many sockets.
pub(super) fn end(pod: &EnrolledPod, snapshot: &Snapshot, kernel: &dyn Kernel, telemetry: &Telemetry) {
    let policy = snapshot.inbound_policy(&pod.pod);
    if pod.leaving.is_cancelled() {
        return;
    }
    match pod.netns.run(|| find_and_end(pod, snapshot, &policy, kernel, telemetry)) {
        Ok(Ok(())) => {}
        Ok(Err(e)) | Err(e) => {
            tracing::warn!(pod = %pod.pod.name, namespace = %pod.pod.namespace, error = %e,
            "plaintext connections of before that policy forbids now cannot be ended; restart the pod to end them")
        }
    }
}

/// In the pod's namespace.
fn find_and_end(
    pod: &EnrolledPod,
    snapshot: &Snapshot,
    policy: &Compiled,
    kernel: &dyn Kernel,
    telemetry: &Telemetry,
) -> Result<(), SysError> {
    let list = || kernel.sockets().map_err(|e| SysError::new("sockets", "", std::io::Error::other(e)));
    let forbidden: Vec<(PodSocket, Verdict)> = from_outside(&list()?, pod)
        .filter_map(|socket| {
            let (client, app) = (socket.socket.remote, socket.socket.local);
            let known = snapshot.known_at(client.ip()).cloned();
            let conn = Conn { at_source: known, ..Conn::new(None, client.ip(), app.ip(), app.port()) };
            // What flows as bytes cannot be judged by its requests: without one, what denies counts.
            let verdict = policy.unread(&conn);
            (!verdict.is_allow()).then(|| (socket.clone(), verdict))
        })
        .collect();
    if forbidden.is_empty() {
        return Ok(());
    }
    // Listed again: the other end of a connection inside the pod is there before the end that was found,
    // but the first list may have passed its place already.
    let ends: HashSet<(SocketAddr, SocketAddr)> =
        list()?.iter().map(|other| (other.socket.local, other.socket.remote)).collect();
    let mut diag = Diag::open()?;
    for (PodSocket { socket, .. }, verdict) in forbidden {
        if ends.contains(&(socket.remote, socket.local)) || !diag.destroy(&socket)? {
            continue;
        }
        let record = telemetry.open(Opened {
            id: ConnectionId::next(),
            direction: Direction::Inbound,
            pod: Arc::clone(&pod.pod),
            client: ClientAddr(socket.remote),
            destination: OriginalDst(socket.local),
        });
        record.set_source(Party { workload: snapshot.workload(socket.remote.ip()).cloned(), identity: None });
        record.set_destination(Party {
            workload: snapshot.workload_of(&pod.pod).cloned(),
            identity: Some(pod.pod.identity.clone()),
        });
        record.set_denial(&denial(&verdict));
        record.established();
        record.finish(Cause::PolicyRevoked, Some(verdict.to_string()));
    }
    Ok(())
}

/// How logs and metrics tell of a refusal.
pub fn denial(verdict: &Verdict) -> Denial {
    let reason = match verdict {
        Verdict::Deny { why, .. } => why.cause(),
        Verdict::Allow { .. } => "",
    };
    denied(verdict.by(), reason)
}

/// The same of whom it was refused by, and one word for it.
pub fn denied(by: Option<&By>, reason: &'static str) -> Denial {
    let (policy, rule) = by.map(By::named).unzip();
    Denial { policy, rule: rule.flatten(), reason }
}

/// The pod's connections that came from outside and did not pass the agent.
fn from_outside<'a>(all: &'a [PodSocket], pod: &EnrolledPod) -> impl Iterator<Item = &'a PodSocket> {
    let listening: HashSet<u16> = all
        .iter()
        .filter(|one| one.socket.state == TcpState::Listen)
        .map(|one| one.socket.local.port())
        .collect();
    let own: HashSet<_> =
        pod.own.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().copied().collect();
    all.iter().filter(move |one| {
        let socket = &one.socket;
        let was_accepted = match one.known {
            Known::Accepted => true,
            Known::Agent | Known::Dialled => false,
            // A program that dials from the port on which it also listens is seldom.
            Known::Nothing => listening.contains(&socket.local.port()),
        };
        was_accepted
            && matches!(socket.state, TcpState::Open | TcpState::Requested)
            && !socket.remote.ip().is_loopback()
            && !own.contains(&socket.remote.ip())
    })
}
