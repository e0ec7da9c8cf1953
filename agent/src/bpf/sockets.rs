//! The sockets of a pod's namespace, and whose they are, by what our programs keep with them.

use std::os::fd::BorrowedFd;

use underpass_common::{FlowState, flow_direction};

use super::BpfError;
use crate::sys::diag::{Diag, TcpSocket};

/// A TCP socket in an enrolled pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSocket {
    pub socket: TcpSocket,
    pub known: Known,
}

/// What is known of a socket by the kernel programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The agent's own.
    Agent,
    /// Dialled by the pod, and left alone.
    Dialled,
    /// Accepted by the pod from outside, and left alone.
    Accepted,
    /// It was there before the programs, is inside the pod, or listens.
    Nothing,
}

/// Of the namespace of the thread that calls.
pub(super) fn list(agent: BorrowedFd<'_>, flow: BorrowedFd<'_>) -> Result<Vec<PodSocket>, BpfError> {
    let listed = Diag::open().and_then(|mut diag| diag.tcp(&[agent, flow]));
    let sockets = listed.map_err(|e| BpfError::Call { call: e.call, object: e.what, source: e.source })?;
    Ok(sockets.into_iter().map(|socket| PodSocket { known: known(&socket), socket }).collect())
}

fn known(socket: &TcpSocket) -> Known {
    const DIRECTION: usize = std::mem::offset_of!(FlowState, direction);
    // Told apart by their length.
    let flow = socket.storages.iter().find(|value| value.len() == size_of::<FlowState>());
    if socket.storages.iter().any(|value| value.len() == size_of::<u32>()) {
        return Known::Agent;
    }
    match flow.map(|state| state[DIRECTION]) {
        Some(flow_direction::INBOUND) => Known::Accepted,
        Some(_) => Known::Dialled,
        None => Known::Nothing,
    }
}
