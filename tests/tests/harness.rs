//! The harness itself: a check that cannot fail proves nothing, so each instrument is first seen to show
//! what it is there to show, without any agent.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use underpass::config::{Config, Environment};
use underpass::discovery::file;
use underpass_tests::capture::{Capture, settle};
use underpass_tests::hbone::{self, Attempt, Impostor, Outcome};
use underpass_tests::hostile::{self, Tricks};
use underpass_tests::pki::Authority;
use underpass_tests::stories::{self, World};
use underpass_tests::topology::NODE_LINK;
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::work::{http, pattern, server};
use underpass_tests::{Mesh, Server, Settings, Topology};

fn main() -> ExitCode {
    stories::run(&[
        ("plain_tcp_between_nodes_shows_its_marker_and_its_source", plain_tcp_shows_its_marker),
        ("a_marker_across_two_segments_is_found", split_marker_is_found),
        ("pods_of_one_node_reach_each_other_and_their_node", same_node),
        ("refused_reset_ended_and_silent_are_told_apart", refusals),
        ("a_transfer_is_exact", transfer),
        ("hbone_client_and_impostor_understand_each_other", hbone_works),
        ("a_root_containers_tricks_work_where_nobody_forbids_them", tricks_work),
        ("the_agents_files_are_what_the_agent_reads", files_are_read),
        ("pods_come_and_go_and_nothing_stays", nothing_stays),
    ])
}

struct Plain(Topology);

impl World for Plain {
    fn build() -> Result<Self> {
        Ok(Self(Topology::new(&["n1", "n2"], &[("client", "n1"), ("twin", "n1"), ("server", "n2")])?))
    }
}

const MARKER: &str = "harness-marker-in-plain-sight";

fn plain_tcp_shows_its_marker(w: &mut Plain) -> Result<()> {
    let (client, server) = (w.0.pod("client"), w.0.pod("server"));
    let web = Server::start(&server.ns, 8080, http::serve(MARKER))?;
    for v6 in [false, true] {
        let capture = Capture::start(&w.0.node("n1").ns, NODE_LINK)?;
        let to = SocketAddr::new(server.ip(v6), 8080);
        let answer = http::request(&mut talk::dial(&client.ns, to)?, "server", "/", b"")?;
        ensure!(answer.status == 200 && answer.body == MARKER.as_bytes());
        settle(&capture)?;
        ensure!(capture.shows(MARKER.as_bytes())?, "the capture missed the marker");
        ensure!(!capture.shows(b"harness-marker-that-nobody-sent")?);
        ensure!(capture.count_on(8080)? >= 6 && capture.count_on(15008)? == 0);
        ensure!(web.peer_ips().last() == Some(&client.ip(v6)), "peers: {:?}", web.peers());
    }
    Ok(())
}

fn split_marker_is_found(w: &mut Plain) -> Result<()> {
    let (client, server) = (w.0.pod("client"), w.0.pod("server"));
    let _echo = Server::start(&server.ns, 7001, server::echo)?;
    let capture = Capture::start(&w.0.node("n2").ns, NODE_LINK)?;
    let mut stream = talk::dial(&client.ns, SocketAddr::new(server.ip(false), 7001))?;
    // The echo in between makes them two segments for sure.
    talk::echo(&mut stream, &MARKER.as_bytes()[..10])?;
    talk::echo(&mut stream, &MARKER.as_bytes()[10..])?;
    settle(&capture)?;
    ensure!(capture.shows(MARKER.as_bytes())?);
    Ok(())
}

fn same_node(w: &mut Plain) -> Result<()> {
    let (client, twin) = (w.0.pod("client"), w.0.pod("twin"));
    let _echo = Server::start(&twin.ns, 7002, server::echo)?;
    for v6 in [false, true] {
        talk::echo_once(&client.ns, SocketAddr::new(twin.ip(v6), 7002))?;
        talk::echo_once(&w.0.node("n1").ns, SocketAddr::new(twin.ip(v6), 7002))?;
    }
    Ok(())
}

fn refusals(w: &mut Plain) -> Result<()> {
    let (client, server) = (w.0.pod("client"), w.0.pod("server"));
    let _reset = Server::start(&server.ns, 7003, server::resetter(1))?;
    let _ended = Server::start(&server.ns, 7004, |_| Ok(()))?;
    let _silent = Server::start(&server.ns, 7005, |conn| {
        std::thread::sleep(Duration::from_secs(1));
        server::echo(conn)
    })?;
    let patience = Duration::from_millis(300);
    for (port, expected) in
        [(7009, Refusal::Refused), (7003, Refusal::Reset), (7004, Refusal::Ended), (7005, Refusal::Silence)]
    {
        let to = SocketAddr::new(server.ip(false), port);
        let seen = talk::try_echo(&client.ns, to, patience);
        // A server that closes with a byte unread resets instead of ending.
        let ended_early = port == 7004 && seen == Err(Refusal::Reset);
        ensure!(seen == Err(expected) || ended_early, "port {port}: {seen:?}");
    }
    Ok(())
}

fn transfer(w: &mut Plain) -> Result<()> {
    const BYTES: usize = 5_000_000;
    let (client, server) = (w.0.pod("client"), w.0.pod("server"));
    let _sink = Server::start(&server.ns, 7006, server::sink)?;
    let _source = Server::start(&server.ns, 7007, server::source(BYTES))?;
    let _slow = Server::start(&server.ns, 7008, server::slow_reader(40_000, Duration::from_millis(2)))?;
    for (port, expected) in [(7006, pattern::Check::exact(BYTES)), (7008, BYTES.to_string())] {
        let mut up = talk::dial(&client.ns, SocketAddr::new(server.ip(true), port))?;
        pattern::write(&mut up, BYTES)?;
        let told = String::from_utf8(talk::finish(up)?)?;
        ensure!(told.trim() == expected, "port {port}: {told}");
    }
    let mut down = talk::dial(&client.ns, SocketAddr::new(server.ip(false), 7007))?;
    ensure!(pattern::read(&mut down)?.to_string() == pattern::Check::exact(BYTES));
    Ok(())
}

fn hbone_works(w: &mut Plain) -> Result<()> {
    let (client, server) = (w.0.pod("client"), w.0.pod("server"));
    let authority = Authority::foreign()?;
    let papers = authority.papers("spiffe://cluster.local/ns/default/sa/server")?;
    let impostor = Impostor::start(&server.ns, &papers)?;
    for v6 in [false, true] {
        let to = SocketAddr::new(server.ip(v6), hbone::PORT);
        let target = SocketAddr::new(server.ip(v6), 8080);
        let seen = Attempt::to(to, Some(&papers), target).make(&client.ns)?;
        ensure!(seen.reached(), "{seen:?}");
        let seen = Attempt::to(to, None, target).make(&client.ns)?;
        ensure!(matches!(seen, Outcome::Cut(_)), "the impostor wants a certificate, any at all: {seen:?}");
        let mut plain = talk::dial(&client.ns, to)?;
        ensure!(talk::echo_or_refusal(&mut plain).is_err());
    }
    ensure!(impostor.requests() == 2 && impostor.connections() == 6 && impostor.bytes() == 10);
    Ok(())
}

fn tricks_work(w: &mut Plain) -> Result<()> {
    let (client, server) = (w.0.pod("client"), w.0.pod("server"));
    let _echo = Server::start(&server.ns, 7010, server::echo)?;
    let patience = Duration::from_millis(300);
    for v6 in [false, true] {
        let to = SocketAddr::new(server.ip(v6), 7010);
        let plain = [
            Tricks { mark: Some(0x539), ..Tricks::default() },
            Tricks { mark_after: Some(0x77000), ..Tricks::default() },
            Tricks { device: Some("eth0"), ..Tricks::default() },
        ];
        for tricks in plain {
            let mut stream = hostile::dial(&client.ns, to, tricks, patience)?;
            talk::echo(&mut stream, b"hello")?;
        }
        let foreign: IpAddr = if v6 { "fd00:201:1::99".parse()? } else { "10.201.1.99".parse()? };
        let tricks = Tricks { source: Some(SocketAddr::new(foreign, 0)), ..Tricks::default() };
        ensure!(hostile::dial(&client.ns, to, tricks, patience).is_err(), "who answered a foreign source?");
    }
    let capture = Capture::start(&w.0.node("n1").ns, NODE_LINK)?;
    let spoofed = SocketAddrV4::new(Ipv4Addr::new(10, 201, 1, 99), 4242);
    hostile::spoof_syn(&client.ns, spoofed, SocketAddrV4::new(server.ip4, 7010))?;
    capture.wait_for("the spoofed SYN", |s| s.from == spoofed.into() && s.opens())?;
    capture.wait_for("its SYN-ACK", |s| s.to == spoofed.into())?;

    let addr = SocketAddr::new(server.ip(false), 7011);
    let _one = hostile::bind(&server.ns, addr, true)?;
    let _two = hostile::bind(&server.ns, addr, true)?;
    ensure!(hostile::bind(&server.ns, addr, false).is_err());
    Ok(())
}

fn files_are_read(w: &mut Plain) -> Result<()> {
    let settings = Settings::default().text("n1", "up1-0-n1", w.0.dir())?;
    Config::parse(&settings, &Environment::default()).map_err(|e| anyhow!("{e}\n{settings}"))?;
    let mut mesh = Mesh::default()
        .meshed("client", "client")
        .meshed("server", "server")
        .plain("twin")
        .service("web", 1, &[(80, 8080)])
        .rule("only-client", "ALLOW", "principals: [\"*/sa/client\"]")
        .strict();
    mesh.workload("server").services = vec![("web".into(), vec![(80, 8081)])];
    mesh.workload("server").healthy = false;
    let text = mesh.text_for(&w.0, "n1");
    let read = file::parse(&text).map_err(|e| anyhow!("{e}\n{text}"))?;
    let state = read.state;
    ensure!(read.warnings.is_empty(), "{:?}\n{text}", read.warnings);
    ensure!(state.workloads.len() == 3 && state.services.len() == 1 && state.policies.len() == 1, "{text}");
    ensure!(
        state.local_pods.len() == 1 && state.local_pods[0].netns == w.0.pod("client").ns.path(),
        "{text}"
    );
    Ok(())
}

fn nothing_stays(w: &mut Plain) -> Result<()> {
    w.0.add_pod("late", "n2")?;
    let late = w.0.pod("late").clone();
    let path = late.ns.path();
    {
        let _echo = Server::start(&late.ns, 7000, server::echo)?;
        talk::echo_once(&w.0.pod("client").ns, SocketAddr::new(late.ip(true), 7000))?;
    }
    w.0.remove_pod("late")?;
    ensure!(!path.exists());

    let other = Topology::new(&["n1"], &[("a", "n1")])?;
    let (paths, dir) = ([other.node("n1").ns.path(), other.pod("a").ns.path()], other.dir().to_owned());
    ensure!(paths.iter().all(|p| p.exists()) && dir.exists());
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _other = other;
        // Unwinds without the report of a panic.
        std::panic::resume_unwind(Box::new("on purpose"));
    }));
    ensure!(died.is_err() && !dir.exists() && paths.iter().all(|p: &std::path::PathBuf| !Path::exists(p)));
    Ok(())
}
