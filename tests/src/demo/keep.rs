//! `--keep`: the stage stays, with commands to try, until `--clean`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Agents, MARKER, OUTSIDE, Stage, WEB};
use crate::work::http;
use crate::{Netns, Server, binary, sweep, wait};

/// The prefix of a stage that is kept; there is one at most.
pub const KEPT: &str = "updemo";

/// Removes a stage that was kept.
pub fn clean() {
    sweep::remove(KEPT);
}

/// Leaves everything standing and says what can be done with it.
pub(super) fn leave(mut stage: Stage, agents: Agents) -> Result<()> {
    let me = std::env::current_exe().context("finding this program's own path")?;
    // The web servers were threads of this process.
    drop((stage.web, stage.outside));
    for pod in ["server", "outside"] {
        spawn_server(&me, &stage.topology.pod(pod).ns, stage.topology.dir(), pod)?;
    }
    let (socket, controller) = (agents.n1.socket(), agents.controller.socket());
    let (n1, n2) = (agents.n1.log_path(), stage.topology.dir().join("n2.access.json"));
    agents.controller.detach();
    agents.n1.detach();
    agents.n2.detach();
    stage.topology.keep();
    let server = stage.topology.pod("server").ip4;
    let underpass = binary::agent()?.display().to_string();
    println!(
        "\nEverything is left standing. To try:\n\
         \x20 ip netns exec {KEPT}-client curl -s http://{server}:{WEB}/        # in mutual TLS\n\
         \x20 ip netns exec {KEPT}-second curl -s http://{server}:{WEB}/        # refused by the policy\n\
         \x20 ip netns exec {KEPT}-unmeshed curl -s http://{server}:{WEB}/      # refused by STRICT\n\
         \x20 ip netns exec {KEPT}-client curl -s http://{}:{WEB}/    # beside the mesh\n\
         \x20 ip netns exec {KEPT}-n1 tcpdump -ni nodelink -A tcp               # what the link carries\n\
         \x20 {underpass} status --socket {}\n\
         \x20 {underpass} certs --socket {}\n\
         \x20 curl -s --unix-socket {} http://controller/agents              # what the controller knows\n\
         \x20 tail -f {} {}\n\
         To remove it all:\n\
         \x20 {} --clean",
        OUTSIDE.0,
        socket.display(),
        socket.display(),
        controller.display(),
        n1.display(),
        n2.display(),
        me.display(),
    );
    Ok(())
}

/// What a kept web server runs, inside its pod already. Never returns.
pub fn serve_forever(pod: &str) -> Result<()> {
    let _server = Server::start(&Netns::named(&format!("{KEPT}-{pod}")), WEB, http::serve(MARKER))?;
    loop {
        std::thread::park();
    }
}

fn spawn_server(me: &Path, ns: &Netns, dir: &Path, pod: &str) -> Result<()> {
    let log = std::fs::File::create(dir.join(format!("{pod}.log"))).context("a server's log")?;
    let child = Command::new(me)
        .args(["--serve", pod])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("dup")?)
        .stderr(log)
        .spawn()
        .context("starting a web server")?;
    // The sweep looks for the second line in the process's command line.
    std::fs::write(dir.join(format!("{pod}.pid")), format!("{}\n--serve\n", child.id()))
        .context("its pid file")?;
    let listens = || {
        let to = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, WEB));
        ns.run(|| std::net::TcpStream::connect(to)).is_ok()
    };
    if wait::until_true(wait::PATIENCE, "the web server listens", listens).is_err() {
        bail!("the web server of {pod} did not come up");
    }
    Ok(())
}
