//! Who may speak to a meshed pod, and to whom a meshed pod speaks: everybody who may not, tries.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use http::Method;
use underpass_tests::cluster::SHORT;
use underpass_tests::hbone::{self, Attempt, Impostor, Outcome};
use underpass_tests::mesh::identity;
use underpass_tests::pki::{Authority, Papers};
use underpass_tests::stories::{self, World};
use underpass_tests::work::{server, talk};
use underpass_tests::{Cluster, Mesh, Server};

fn main() -> ExitCode {
    stories::run(&[
        ("the_agents_ports_answer_nobody_who_dials_them", own_ports),
        ("hbone_is_spoken_only_with_a_certificate_of_the_mesh", certificates),
        ("connect_reaches_this_pod_and_nothing_else", targets),
        ("a_tunnels_source_is_who_it_proves_to_be_not_what_it_claims", claims),
        ("a_pod_speaks_to_nobody_who_cannot_prove_the_expected_identity", impostors),
    ])
}

struct Who(Cluster);

impl World for Who {
    fn build() -> Result<Self> {
        let pods =
            [("client", "n1"), ("unmeshed", "n1"), ("server", "n2"), ("neighbour", "n2"), ("fake", "n2")];
        let mut mesh = Mesh::default()
            .meshed("client", "client")
            .meshed("server", "server")
            .meshed("neighbour", "neighbour")
            .meshed("fake", "fake")
            .plain("unmeshed");
        // Of the mesh for all who dial it, but no agent serves it.
        mesh.workload("fake").enrolled = false;
        Ok(Self(Cluster::start(&pods, mesh)?))
    }

    fn diagnose(&self) -> String {
        self.0.diagnose()
    }
}

const APP: u16 = 8080;

fn own_ports(w: &mut Who) -> Result<()> {
    let c = &w.0;
    let echo = Server::start(c.ns("server"), APP, server::echo)?;
    let node = c.topology.node("n2").ns.clone();
    for (who, from) in [
        ("unmeshed", c.ns("unmeshed")),
        ("client", c.ns("client")),
        ("the node", &node),
        ("the pod itself", c.ns("server")),
    ] {
        for v6 in [false, true] {
            for port in [15_001, 15_006, hbone::PORT] {
                let seen = talk::try_echo(from, c.addr("server", port, v6), SHORT);
                ensure!(seen.is_err(), "{who} was answered on {port}, v6 {v6}");
            }
        }
    }
    for port in [15_001, 15_006, hbone::PORT] {
        for loopback in ["127.0.0.1", "::1"] {
            let to = std::net::SocketAddr::new(loopback.parse()?, port);
            let seen = talk::try_echo(c.ns("client"), to, SHORT);
            ensure!(seen.is_err(), "{loopback}:{port} answered the pod itself");
        }
    }
    ensure!(echo.peers().is_empty(), "the application was reached: {:?}", echo.peers());
    talk::echo_once(c.ns("client"), c.addr("server", APP, false))?;
    Ok(())
}

fn certificates(w: &mut Who) -> Result<()> {
    let c = &w.0;
    let echo = Server::start(c.ns("server"), APP, server::echo)?;
    let (mesh, foreign) = (c.authority()?, Authority::foreign()?);
    let client = identity("client");
    let wrong: Vec<(&str, Option<Papers>)> = vec![
        ("no certificate", None),
        ("another root, the right name", Some(foreign.papers(&client)?)),
        ("another trust domain", Some(mesh.papers("spiffe://elsewhere.example/ns/default/sa/client")?)),
        ("no name", Some(mesh.papers_naming(&[])?)),
        ("a name that is no SPIFFE id", Some(mesh.papers("https://cluster.local/ns/default/sa/client")?)),
        ("a SPIFFE id that is no workload's", Some(mesh.papers("spiffe://cluster.local/client")?)),
        ("two names", Some(mesh.papers_naming(&[&client, &identity("other")])?)),
        ("a certificate of yesterday", Some(mesh.expired_papers(&client)?)),
        ("an authority's certificate", Some(mesh.ca_papers(&client)?)),
    ];
    let right = mesh.papers(&client)?;
    for v6 in [false, true] {
        let (to, target) = (c.addr("server", hbone::PORT, v6), c.addr("server", APP, v6));
        for (what, papers) in &wrong {
            let seen = Attempt::to(to, papers.as_ref(), target).make(c.ns("unmeshed"))?;
            ensure!(matches!(seen, Outcome::Cut(_)), "{what}, v6 {v6}: {seen:?}");
        }
        ensure!(echo.peers().is_empty(), "somebody got through: {:?}", echo.peers());
        let mut old = talk::dial(c.ns("unmeshed"), to)?;
        old.write_all(&hbone::tls12_hello())?;
        let mut answer = vec![];
        let _ = old.read_to_end(&mut answer);
        ensure!(!matches!(answer.first(), Some(0x16)), "TLS 1.2 was answered with a handshake");
        let http1 = Attempt { alpn: vec!["http/1.1"], ..Attempt::to(to, Some(&right), target) };
        ensure!(matches!(http1.make(c.ns("unmeshed"))?, Outcome::Cut(_)), "HTTP/1.1 was accepted");
        let seen = Attempt::to(to, Some(&right), target).make(c.ns("unmeshed"))?;
        ensure!(seen.reached(), "the right papers, v6 {v6}: {seen:?}");
        echo.forget();
    }
    c.n2.wait_access("a refused handshake", |l| {
        ["tls_failed", "wrong_identity"].contains(&l.cause().as_str())
    })?;
    Ok(())
}

fn targets(w: &mut Who) -> Result<()> {
    let c = &w.0;
    let echo = Server::start(c.ns("server"), APP, server::echo)?;
    let neighbour = Server::start(c.ns("neighbour"), APP, server::echo)?;
    let papers = c.authority()?.papers(&identity("client"))?;
    for v6 in [false, true] {
        let to = c.addr("server", hbone::PORT, v6);
        let ip = |pod, v6| match c.ip(pod, v6) {
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            ip => ip.to_string(),
        };
        let own = ip("server", v6);
        let table = [
            (400, format!("{}:{APP}", ip("neighbour", v6))),
            (400, format!("{}:{APP}", ip("server", !v6))),
            (400, format!("127.0.0.1:{APP}")),
            (400, format!("[::1]:{APP}")),
            (400, format!("0.0.0.0:{APP}")),
            (400, format!("[::]:{APP}")),
            (400, format!("{}:{APP}", ip("unmeshed", v6))),
            (503, format!("{own}:15001")),
            (503, format!("{own}:15006")),
            (503, format!("{own}:15008")),
            (503, format!("localhost:{APP}")),
            (503, format!("server.default.svc.cluster.local:{APP}")),
            (503, format!("{own}:9")),
        ];
        for (status, authority) in table {
            let proper = Attempt::to(to, Some(&papers), c.addr("server", APP, v6));
            let seen = Attempt { authority: authority.clone(), ..proper }.make(c.ns("unmeshed"))?;
            ensure!(seen.status() == Some(status), "CONNECT {authority}: {seen:?}, not {status}");
        }
        for method in [Method::GET, Method::POST] {
            let proper = Attempt::to(to, Some(&papers), c.addr("server", APP, v6));
            let authority = format!("http://{}/", proper.authority);
            let seen = Attempt { method: method.clone(), authority, ..proper }.make(c.ns("unmeshed"))?;
            ensure!(seen.status() == Some(400), "{method}: {seen:?}");
        }
    }
    ensure!(echo.peers().is_empty() && neighbour.peers().is_empty(), "an application was reached");
    c.n2.wait_access("a bad target", |l| l.cause() == "bad_target")?;
    let seen = Attempt::to(c.addr("server", hbone::PORT, false), Some(&papers), c.addr("server", APP, false));
    ensure!(seen.make(c.ns("unmeshed"))?.reached());
    Ok(())
}

fn claims(w: &mut Who) -> Result<()> {
    let c = &w.0;
    let echo = Server::start(c.ns("server"), APP, server::echo)?;
    let papers = c.authority()?.papers(&identity("client"))?;
    let (to, target) = (c.addr("server", hbone::PORT, false), c.addr("server", APP, false));
    // Headers are not believed: neither the address nor the workload that they claim.
    let claimed = c.ip("neighbour", false).to_string();
    let forwarded = format!("for=\"{claimed}:4242\"");
    let attempt = Attempt {
        headers: vec![
            ("forwarded", &forwarded),
            ("x-forwarded-for", &claimed),
            ("baggage", "k8s.namespace.name=kube-system,k8s.deployment.name=neighbour"),
        ],
        ..Attempt::to(to, Some(&papers), target)
    };
    ensure!(attempt.make(c.ns("unmeshed"))?.reached());
    ensure!(echo.peer_ips() == [c.ip("unmeshed", false)], "the server was told {:?}", echo.peers());
    c.n2.wait_access("the proven identity", |l| {
        l.source_ip() == Some(c.ip("unmeshed", false)) && l.is("src.identity", &identity("client"))
    })?;
    // A foreign source address gets no answer back, so no tunnel comes to be.
    echo.forget();
    let spoofed = Attempt {
        source: Some(c.ip("client", false)),
        patience: SHORT,
        ..Attempt::to(to, Some(&papers), target)
    };
    let seen = spoofed.make(c.ns("unmeshed"))?;
    ensure!(matches!(seen, Outcome::NoConnection(_)) && echo.peers().is_empty(), "{seen:?}");
    Ok(())
}

fn impostors(w: &mut Who) -> Result<()> {
    let c = &w.0;
    let (mesh, foreign) = (c.authority()?, Authority::foreign()?);
    let fake = identity("fake");
    let wrong = [
        ("somebody else of the mesh", mesh.papers(&identity("neighbour"))?),
        ("another root, the right name", foreign.papers(&fake)?),
        ("another trust domain", mesh.papers("spiffe://elsewhere.example/ns/default/sa/fake")?),
        ("no name", mesh.papers_naming(&[])?),
        ("a certificate of yesterday", mesh.expired_papers(&fake)?),
        ("two names, one of them right", mesh.papers_naming(&[&fake, &identity("other")])?),
    ];
    for v6 in [false, true] {
        for (what, papers) in &wrong {
            let impostor = Impostor::start(c.ns("fake"), papers)?;
            let seen = talk::try_echo(c.ns("client"), c.addr("fake", APP, v6), talk::DEADLINE);
            let reset = matches!(seen, Err(talk::Refusal::Reset | talk::Refusal::Refused));
            ensure!(reset, "{what}, v6 {v6}: the application saw {seen:?}, not a reset");
            ensure!(impostor.connections() > 0, "{what}: the impostor was never asked");
            ensure!(impostor.requests() == 0 && impostor.bytes() == 0, "{what} was trusted");
        }
        let honest = Impostor::start(c.ns("fake"), &mesh.papers(&fake)?)?;
        talk::echo_once(c.ns("client"), c.addr("fake", APP, v6))?;
        ensure!(honest.requests() == 1);
    }
    c.n1.wait_access("the wrong identity", |l| l.cause() == "wrong_identity")?;
    Ok(())
}
