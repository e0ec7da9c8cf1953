//! Before anything is measured: is it the mesh that is measured, and plain TCP beside it?

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::site::{ECHO, Kind, Reach, Site};
use crate::capture::{Capture, settle};
use crate::load::{MARKER, round_trip};
use crate::topology::NODE_LINK;

/// # Errors
/// A path did not carry what it was to carry: encrypted on the tunnel's port, or plain.
pub(super) fn check(site: &Site) -> Result<()> {
    for kind in [Kind::Direct, Kind::Mesh] {
        for reach in [Reach::SameNode, Reach::CrossNode] {
            path(site, kind, reach).with_context(|| format!("{}: {kind:?} {reach:?}", site.name))?;
        }
    }
    Ok(())
}

fn path(site: &Site, kind: Kind, reach: Reach) -> Result<()> {
    let (client, server) = site.ends(kind, reach);
    let node = &site.topology.node("node1").ns;
    let device = match reach {
        Reach::CrossNode => NODE_LINK,
        Reach::SameNode => &site.topology.pod(server).node_veth,
    };
    let capture = Capture::start(node, device)?;
    let run = Duration::from_millis(200);
    let to = site.address(server, ECHO);
    let plan =
        round_trip::Plan { to, connections: 4, say: round_trip::Say::Echo(128), warm: Duration::ZERO, run };
    client.ns.run(|| round_trip::measure(&plan)).context("round trips")?;
    settle(&capture)?;
    let (port, shown) = (site.product.tunnel_port()?, capture.shows(MARKER)?);
    let (app, tunnel) = (capture.count_on(ECHO)?, capture.count_on(port)?);
    let tls = capture.segments()?.iter().any(|s| s.on_port(port) && s.is_tls(23));
    match kind {
        Kind::Direct => ensure!(shown && app > 0 && tunnel == 0, "not plain: {app} and {tunnel} packets"),
        Kind::Mesh => {
            ensure!(
                !shown && app == 0 && tls,
                "not in TLS on {port}: marker {shown}, {app} and {tunnel} packets"
            );
        }
    }
    Ok(())
}
