//! What the mesh costs in time, shown and not judged: machines differ.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::report::Report;
use super::{Stage, WEB};
use crate::load::Times;
use crate::work::{http, talk};

const ROUNDS: usize = 400;

pub(super) fn tell(stage: &Stage, report: &mut Report) {
    let measured = (times(stage, "unmeshed", "outside"), times(stage, "client", "server"));
    match measured {
        (Ok(mut plain), Ok(mut mesh)) => report.say(&format!(
            "\nOne HTTP request and answer on an open connection, {ROUNDS} times (median): \
             {:.0} us without the mesh, {:.0} us with it.",
            plain.p50_us(),
            mesh.p50_us()
        )),
        (plain, mesh) => {
            for e in [plain.err(), mesh.err()].into_iter().flatten() {
                report.failed("a connection carries many requests", &e.to_string());
            }
        }
    }
}

fn times(stage: &Stage, from: &str, to: &str) -> io::Result<Times> {
    let addr = SocketAddr::new(stage.ip(to, false), WEB);
    let mut stream = talk::dial(&stage.topology.pod(from).ns, addr)?;
    let mut times = Times::default();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        http::request(&mut stream, to, "/", b"")?;
        times.push(started.elapsed());
    }
    Ok(times)
}
