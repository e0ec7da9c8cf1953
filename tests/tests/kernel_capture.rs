//! Outgoing connections of an enrolled pod: captured with their addresses kept, or left alone.

mod kernel;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use kernel::{Place, at, who};
use underpass::bpf::{CaptureMode, Destination, Kernel};
use underpass_tests::stories::{self, World};

fn main() -> ExitCode {
    stories::run(&[("captured_with_its_true_destination_and_source", captured)])
}

impl World for Place {
    fn build() -> Result<Self> {
        Place::new()
    }
}

fn captured(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let _real = place.real("server", 8080)?;
    let (client, server) = (place.pod("client"), place.pod("server"));
    for v6 in [false, true] {
        let to = at(server.ip(v6), 8080);
        let line = who(&client.ns, to)?;
        ensure!(line.starts_with(&format!("outbound {to} ")), "{line}");
        let [accepted] = &stand_in.take_accepted()[..] else { anyhow::bail!("not one connection") };
        ensure!(accepted.peer.ip() == client.ip(v6), "{accepted:?}");
        // Known not to be the mesh's, it is left alone.
        place.programs.teach(server.ip(v6), Destination::Leave)?;
        let line = who(&client.ns, to)?;
        ensure!(line.starts_with(&format!("server {to} {}", client.ip(v6))) || v6, "{line}");
        ensure!(stand_in.take_accepted().is_empty());
        place.programs.set_destinations(&Default::default())?;
        ensure!(who(&client.ns, to)?.starts_with("outbound "));
        stand_in.take_accepted();
    }
    Ok(())
}
