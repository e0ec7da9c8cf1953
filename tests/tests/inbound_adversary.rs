//! Who gets into a meshed pod and who is believed to be one, and why everybody else is not.
//!
//! The adversary stands outside of the mesh: on a pod that is not of it, with whatever papers, on a node,
//! and at an address that a meshed pod is said to have. What it never does is reach the application or
//! hear a word of it. Each attempt is one step away from one that succeeds, so that it is the step that is
//! refused.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use underpass_tests::access_log::Line;
use underpass_tests::capture::Capture;
use underpass_tests::cluster::{Cluster, SHORT};
use underpass_tests::hbone::{self, Attempt, Flood, Impostor, Outcome, Outstay};
use underpass_tests::hostile::{self, Tricks};
use underpass_tests::mesh::identity;
use underpass_tests::packet::RST;
use underpass_tests::pki::{Authority, Papers};
use underpass_tests::stories::{self, World};
use underpass_tests::work::server;
use underpass_tests::work::talk::{self, Refusal};
use underpass_tests::{Mesh, Netns, Server, Settings, Topology, wait};

fn main() -> ExitCode {
    stories::run(&[
        ("papers_that_are_not_in_order_open_no_tunnel", papers),
        ("who_is_no_service_account_is_admitted_by_name_or_not_at_all", machines),
        ("a_tunnel_speaks_http2_in_tls_13_or_not_at_all", protocols),
        ("a_tunnel_leads_to_its_own_pod_only_and_to_no_port_of_the_agent", targets),
        ("requests_that_make_no_sense_are_refused_and_the_agent_goes_on", nonsense),
        ("the_agents_own_ports_answer_nobody", own_ports),
        ("plaintext_is_dropped_passed_or_judged_as_the_mode_says", plaintext),
        ("claims_about_the_source_change_nothing_that_policy_sees", claims),
        ("a_forged_source_reaches_nobody", forged),
        ("a_pod_speaks_to_nobody_who_cannot_prove_the_expected_identity", impostors),
        ("a_crowd_without_papers_keeps_nobody_out", crowd),
        ("a_tunnel_takes_no_stream_once_its_certificate_has_expired", outstay),
    ])
}

/// The application's port in every pod.
const APP: u16 = 8080;

const TRUST: &str = "{bundles: [{trustDomain: partner.example, file: \"{dir}/partner.pem\"}]}";

struct Siege {
    cluster: Cluster,
    /// PERMISSIVE, no policy.
    open: Server,
    /// STRICT.
    strict: Server,
    /// PERMISSIVE with two policies: service account client or guest's address; the partner's billing.
    judged: Server,
    authority: Authority,
    /// Of a federated domain.
    partner: Authority,
    /// Service account client's.
    papers: Papers,
}

impl World for Siege {
    fn build() -> Result<Self> {
        let pods = [
            ("client", "n1"),
            ("stranger", "n1"),
            ("guest", "n1"),
            ("open", "n2"),
            ("strict", "n2"),
            ("judged", "n2"),
            ("fake", "n2"),
        ];
        let topology = Topology::new(&["n1", "n2"], &pods)?;
        let [guest4, guest6] = topology.pod("guest").addresses();
        let mut mesh = Mesh::default()
            .meshed("client", "client")
            .meshed("open", "server")
            .meshed("strict", "server")
            .meshed("judged", "server")
            .meshed("fake", "fake")
            .plain("stranger")
            .plain("guest")
            .policy(&format!(
                "name: guests\nnamespace: default\nscope: WORKLOAD_SELECTOR\naction: ALLOW\n\
                 groups: [{{rules: [{{matches: [{{principals: [\"*/sa/client\"]}}, \
                 {{sourceIps: [\"{guest4}\", \"{guest6}\"]}}]}}]}}]"
            ))
            .policy(
                "name: partners\nnamespace: default\nscope: WORKLOAD_SELECTOR\naction: ALLOW\n\
                 groups: [{rules: [{matches: [{principals: [\"partner.example/billing/*\"]}]}]}]",
            );
        mesh.workload("strict").mtls = "STRICT";
        // Of the mesh for all who dial it, but no agent serves it.
        mesh.workload("fake").enrolled = false;
        mesh.workload("judged").policies = vec!["default/guests".into(), "default/partners".into()];
        let (partner, certificate) = Authority::root("partner's root")?;
        std::fs::write(topology.dir().join("partner.pem"), certificate).context("writing a root")?;
        let echo = |pod: &str| Server::start(&topology.pod(pod).ns, APP, server::echo);
        let (open, strict, judged) = (echo("open")?, echo("strict")?, echo("judged")?);
        let cluster = Cluster::on(topology, mesh, Settings { trust: Some(TRUST), ..Settings::default() })?;
        let authority = cluster.authority()?;
        let papers = authority.papers(&identity("client"))?;
        Ok(Self { cluster, open, strict, judged, authority, partner, papers })
    }

    fn diagnose(&self) -> String {
        self.cluster.diagnose()
    }
}

fn papers(w: &mut Siege) -> Result<()> {
    let client = identity("client");
    let (ours, theirs) = (&w.authority, Authority::foreign()?);
    let table = [
        ("none", None, "tls_failed", "no certificate"),
        (
            "two URI SANs",
            Some(ours.papers_naming(&[&client, &identity("server")])?),
            "tls_failed",
            "exactly one URI SAN",
        ),
        ("no URI SAN", Some(ours.papers_naming(&[])?), "tls_failed", "exactly one URI SAN"),
        ("a URI that is no workload", Some(ours.papers("https://cluster.local/x")?), "tls_failed", "SPIFFE"),
        (
            "a SPIFFE id with a way up",
            Some(ours.papers("spiffe://cluster.local/x/../ns/default/sa/client")?),
            "tls_failed",
            "SPIFFE",
        ),
        ("a CA as leaf", Some(ours.ca_papers(&client)?), "tls_failed", "CA"),
        ("expired", Some(ours.expired_papers(&client)?), "tls_failed", "expired"),
        ("not yet valid", Some(ours.future_papers(&client)?), "tls_failed", "valid only from"),
        (
            "another trust domain under our root",
            Some(ours.papers("spiffe://elsewhere.example/ns/default/sa/client")?),
            "wrong_identity",
            "elsewhere.example",
        ),
        (
            "the right name under a foreign root",
            Some(theirs.papers(&client)?),
            "tls_failed",
            "chain to a root",
        ),
        (
            "a foreign name under a foreign root",
            Some(theirs.papers("spiffe://elsewhere.example/ns/default/sa/client")?),
            "wrong_identity",
            "elsewhere.example",
        ),
    ];
    for (from, v6) in [("stranger", false), ("stranger", true), ("n1", false), ("n2", false)] {
        w.works(from, v6)?;
        for (what, papers, cause, why) in &table {
            let attempt = w.attempt("open", papers.as_ref(), v6);
            let (outcome, line) = w.refused(from, &attempt).with_context(|| format!("{what} from {from}"))?;
            ensure!(matches!(outcome, Outcome::Cut(_)), "{what} from {from}: {outcome:?}");
            expect(&line, cause, why).with_context(|| format!("{what} from {from}"))?;
            ensure!(line.get("src.identity").is_none(), "{what}: nobody proved anything: {line}");
        }
    }
    Ok(())
}

/// A machine of the partner's has the name that the partner gave it, and what is like an account's is none.
fn machines(w: &mut Siege) -> Result<()> {
    let admitted = "spiffe://partner.example/billing/api";
    let refused = [
        (&w.partner, "spiffe://partner.example/billing"),
        (&w.partner, "spiffe://partner.example/ns/default/sa/client/billing"),
        (&w.partner, "spiffe://partner.example/ns/billing/sa/api"),
        (&w.authority, "spiffe://cluster.local/billing/api"),
        (&w.authority, "spiffe://cluster.local/ns/default/sa/client/x"),
    ];
    for v6 in [false, true] {
        let papers = w.partner.papers(admitted)?;
        let lines = w.cluster.n2.access()?.len();
        let outcome = w.attempt("judged", Some(&papers), v6).make(w.ns("stranger"))?;
        ensure!(outcome.reached(), "{admitted}: {outcome:?}");
        w.judged.forget();
        let line = w.cluster.n2.wait_access_after(lines, "the partner's connection", |_| true)?;
        ensure!(line.is("src.identity", admitted) && line.is("policy", "default/partners"), "{line}");
        ensure!(line.get("src.namespace").is_none(), "it is of no namespace: {line}");
        for (authority, named) in refused {
            let papers = authority.papers(named)?;
            let (outcome, line) = w.refused("stranger", &w.attempt("judged", Some(&papers), v6))?;
            ensure!(outcome.status() == Some(401), "{named}: {outcome:?}");
            expect(&line, "policy_denied", "").context(named)?;
            ensure!(line.is("src.identity", named), "{line}");
        }
        // Who signs for one domain cannot name a machine of the other.
        let forged = w.authority.papers(admitted)?;
        let (outcome, line) = w.refused("stranger", &w.attempt("judged", Some(&forged), v6))?;
        ensure!(matches!(outcome, Outcome::Cut(_)), "{outcome:?}");
        expect(&line, "tls_failed", "chain to a root")?;
    }
    Ok(())
}

fn protocols(w: &mut Siege) -> Result<()> {
    let proper = w.attempt("open", Some(&w.papers), false);
    let http1 = Attempt { alpn: vec!["http/1.1"], ..proper.clone() };
    let silent = Attempt { alpn: vec![], ..proper.clone() };
    for (what, attempt) in [("ALPN http/1.1", http1), ("no ALPN", silent)] {
        let (outcome, line) = w.refused("stranger", &attempt).context(what)?;
        ensure!(matches!(outcome, Outcome::Cut(_)), "{what}: {outcome:?}");
        expect(&line, "tls_failed", "").context(what)?;
    }
    for (what, words) in
        [("TLS 1.2", hbone::tls12_hello()), ("HTTP in plaintext", b"PRI * HTTP/2.0\r\n\r\n".to_vec())]
    {
        let lines = w.cluster.n2.access()?.len();
        let mut stream = talk::dial(w.ns("stranger"), w.cluster.addr("open", hbone::PORT, false))?;
        stream.write_all(&words)?;
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        // An alert at most.
        ensure!(answer.is_empty() || answer[0] == 21, "{what}: {answer:?}");
        let line = w.cluster.n2.wait_access_after(lines, what, |_| true)?;
        expect(&line, "tls_failed", "").context(what)?;
    }
    w.works("stranger", false)
}

fn targets(w: &mut Siege) -> Result<()> {
    for v6 in [false, true] {
        let own = w.cluster.ip("open", v6);
        let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port).to_string();
        let node = w.cluster.topology.node("n2").clone();
        let mut table = vec![
            ("another pod", at(w.cluster.ip("judged", v6), APP), 400),
            ("a pod of another node", at(w.cluster.ip("client", v6), APP), 400),
            ("a pod that is not of the mesh", at(w.cluster.ip("stranger", v6), APP), 400),
            ("the pod by its other family", at(w.cluster.ip("open", !v6), APP), 400),
            ("the node", at(if v6 { node.ip6.into() } else { node.ip4.into() }, 22), 400),
            ("127.0.0.1", at(Ipv4Addr::LOCALHOST.into(), APP), 400),
            ("::1", at(Ipv6Addr::LOCALHOST.into(), APP), 400),
            ("::ffff:127.0.0.1", at(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), APP), 400),
            ("0.0.0.0", at(Ipv4Addr::UNSPECIFIED.into(), APP), 400),
            ("::", at(Ipv6Addr::UNSPECIFIED.into(), APP), 400),
            ("localhost", format!("localhost:{APP}"), 503),
            ("a service of nobody", "shop.default.svc.cluster.local:80".into(), 503),
        ];
        for port in [15_001, 15_006, 15_008] {
            table.push(("a port of the agent", at(own, port), 503));
        }
        for (what, authority, status) in table {
            let attempt = Attempt { authority, ..w.attempt("open", Some(&w.papers), v6) };
            let what = format!("{what} ({})", attempt.authority);
            let (outcome, line) = w.refused("stranger", &attempt).with_context(|| what.clone())?;
            ensure!(outcome.status() == Some(status), "{what}: {outcome:?}");
            expect(&line, "bad_target", "CONNECT to").with_context(|| what.clone())?;
            ensure!(line.is("src.identity", &identity("client")), "{what}: {line}");
        }
        let closed = Attempt { authority: at(own, 9), ..w.attempt("open", Some(&w.papers), v6) };
        let (outcome, line) = w.refused("stranger", &closed)?;
        ensure!(outcome.status() == Some(503), "a port where nobody listens: {outcome:?}");
        expect(&line, "connect_refused", "")?;
        w.works("stranger", v6)?;
    }
    Ok(())
}

fn nonsense(w: &mut Siege) -> Result<()> {
    let own = w.cluster.ip("open", false);
    let words = [
        ("port 0", format!("{own}:0")),
        ("no port", own.to_string()),
        ("a port too many", format!("{own}:65536")),
        ("a port with a zero before it", format!("{own}:0{APP}")),
        ("a user before the address", format!("root@{own}:{APP}")),
        ("an address in hexadecimal", format!("0x7f.1:{APP}")),
        ("half an address", format!("127.1:{APP}")),
        ("a name that is too long", format!("{}:{APP}", "a".repeat(300))),
    ];
    for (what, authority) in words {
        let attempt = Attempt { authority, ..w.attempt("open", Some(&w.papers), false) };
        let (outcome, line) = w.refused("stranger", &attempt).context(what)?;
        ensure!(outcome.status() == Some(400), "{what}: {outcome:?}");
        expect(&line, "bad_request", "").context(what)?;
    }
    for method in ["GET", "POST", "TEAPOT"] {
        let attempt = Attempt {
            method: method.parse()?,
            authority: format!("http://{own}:{APP}/"),
            ..w.attempt("open", Some(&w.papers), false)
        };
        let (outcome, line) = w.refused("stranger", &attempt).context(method)?;
        ensure!(outcome.status() == Some(400), "{method}: {outcome:?}");
        expect(&line, "bad_request", "method").context(method)?;
    }

    let big = "x".repeat(200 << 10);
    let bomb = Attempt { headers: vec![("baggage", &big)], ..w.attempt("open", Some(&w.papers), false) };
    let outcome = w.silent("stranger", &bomb)?;
    ensure!(
        matches!(outcome, Outcome::Cut(_)) || outcome.status() == Some(431),
        "200 KiB of headers: {outcome:?}"
    );
    let many: Vec<String> = (0..5_000).map(|i| format!("x-{i}")).collect();
    let headers = many.iter().map(|name| (name.as_str(), "1")).collect();
    let bomb = Attempt { headers, ..w.attempt("open", Some(&w.papers), false) };
    let outcome = w.silent("stranger", &bomb)?;
    ensure!(
        matches!(outcome, Outcome::Cut(_)) || outcome.status() == Some(431),
        "5,000 headers: {outcome:?}"
    );
    w.works("stranger", false)?;

    // A stream that the agent had already taken may have reached the application, which costs it one
    // connection; a flood may not.
    let (to, target) = (w.cluster.addr("open", hbone::PORT, false), w.cluster.addr("open", APP, false));
    let flood = Flood { to, papers: &w.papers, target, streams: 5_000 };
    let ended = flood.make(w.ns("stranger"))?;
    ensure!(ended.is_some(), "the agent stood 5,000 streams opened and reset");
    let reached = w.open.peers().len();
    ensure!(reached <= 40, "the flood cost the application {reached} connections");
    wait::until_true(wait::PATIENCE, "the flood's connections are over", || w.idle().unwrap_or(false))?;
    w.works("stranger", false)
}

fn own_ports(w: &mut Siege) -> Result<()> {
    for pod in ["open", "strict", "judged"] {
        for v6 in [false, true] {
            for port in [15_001, 15_006, hbone::PORT] {
                let to = w.cluster.addr(pod, port, v6);
                for from in ["stranger", "client", "n1", "n2", pod] {
                    let seen = talk::try_echo(w.ns(from), to, SHORT);
                    ensure!(seen.is_err(), "{to} answered {from}");
                }
            }
            // From inside the pod, where the listeners can be reached.
            let own = w.cluster.ip(pod, v6);
            let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
            for (ip, port) in [own, loopback].into_iter().flat_map(|ip| [15_001, 15_006].map(|p| (ip, p))) {
                let to = SocketAddr::new(ip, port);
                let seen = talk::try_echo(w.ns(pod), to, SHORT);
                ensure!(
                    matches!(seen, Err(Refusal::Refused | Refusal::Reset)),
                    "{to} from inside {pod}: {seen:?}"
                );
            }
        }
    }
    // The application's own pod is not of the mesh's peers either: without papers there is no tunnel.
    let attempt = w.attempt("open", None, false);
    let seen = w.cluster.n2.access()?.len();
    let outcome = attempt.make(w.ns("open"))?;
    ensure!(!outcome.reached() && outcome.status().is_none(), "{outcome:?}");
    // Its line must not be taken for one of the next story's.
    w.cluster.n2.wait_access_after(seen, "a tunnel without papers", |l| l.cause() == "tls_failed")?;
    // A meshed pod's application does not get to dial another pod's tunnel port through its agent.
    let stolen = w.attempt("open", Some(&w.papers), false);
    let seen = w.cluster.n1.access()?.len();
    let outcome = stolen.make(w.ns("client"))?;
    ensure!(outcome.status().is_none(), "{outcome:?}");
    // Lines of the dials above may still come.
    let to = stolen.to.to_string();
    let line = w.cluster.n1.wait_access_after(seen, "the dial to 15008", |l| {
        l.is("direction", "outbound") && l.is("dst.addr", &to)
    })?;
    expect(&line, "loop", "15008")?;
    ensure!(w.nobody_came(), "an application was reached");
    Ok(())
}

fn plaintext(w: &mut Siege) -> Result<()> {
    for (from, v6) in [("stranger", false), ("stranger", true), ("n1", false), ("n2", false)] {
        let ns = w.ns(from);
        // PERMISSIVE, nothing to judge: untouched, and no line in the log.
        let lines = w.cluster.n2.access()?.len();
        talk::echo_once(ns, w.cluster.addr("open", APP, v6)).with_context(|| format!("{from} to open"))?;
        ensure!(w.open.peers().len() == 1, "{:?}", w.open.peers());
        w.open.forget();
        // STRICT: the kernel, and no line either.
        let refusal = talk::try_echo(ns, w.cluster.addr("strict", APP, v6), SHORT);
        ensure!(
            matches!(refusal, Err(Refusal::Refused | Refusal::Silence)),
            "{from} to strict (IPv6: {v6}): {refusal:?}"
        );
        // A policy has to see it: the agent resets it.
        let refusal = talk::try_echo(ns, w.cluster.addr("judged", APP, v6), SHORT);
        ensure!(refusal == Err(Refusal::Reset), "{from} to judged: {refusal:?}");
        let line = w.cluster.n2.wait_access_after(lines, "the judged connection", |_| true)?;
        expect(&line, "policy_denied", "")?;
        ensure!(line.source_ip() == Some(w.address(from, v6)), "{line}");
        ensure!(w.nobody_came(), "{from} reached an application");
    }
    for v6 in [false, true] {
        let lines = w.cluster.n2.access()?.len();
        talk::echo_once(w.ns("guest"), w.cluster.addr("judged", APP, v6)).context("guest to judged")?;
        ensure!(w.judged.peer_ips() == [w.cluster.ip("guest", v6)], "{:?}", w.judged.peers());
        w.judged.forget();
        let line = w.cluster.n2.wait_access_after(lines, "guest's connection", |_| true)?;
        expect(&line, "closed", "")?;
        ensure!(line.is("policy", "default/guests") && line.get("src.identity").is_none(), "{line}");
    }
    Ok(())
}

fn claims(w: &mut Siege) -> Result<()> {
    let intruder = w.authority.papers(&identity("intruder"))?;
    for v6 in [false, true] {
        let guest = w.cluster.addr("guest", 4242, v6);
        let lies = [
            format!("for=\"{guest}\";by=\"{guest}\""),
            guest.ip().to_string(),
            "k8s.namespace.name=default,k8s.pod.name=guest,service.name=client".to_owned(),
            format!("By={0};URI={0}", identity("client")),
        ];
        let headers = vec![
            ("forwarded", lies[0].as_str()),
            ("x-forwarded-for", &lies[1]),
            ("x-real-ip", &lies[1]),
            ("baggage", &lies[2]),
            ("x-forwarded-client-cert", &lies[3]),
            ("x-forwarded-network", "elsewhere"),
        ];
        let liar = Attempt { headers, ..w.attempt("judged", Some(&intruder), v6) };
        let (outcome, line) = w.refused("stranger", &liar)?;
        ensure!(outcome.status() == Some(401), "{outcome:?}");
        expect(&line, "policy_denied", "")?;
        ensure!(line.is("src.identity", &identity("intruder")), "{line}");
        ensure!(line.source_ip() == Some(w.cluster.ip("stranger", v6)), "{line}");
        ensure!(line.get("src.workload").is_none(), "an address alone made it a workload: {line}");

        // With papers that policy accepts, the application still sees where it really came from.
        let thief = Attempt { papers: Some(&w.papers), ..liar };
        let lines = w.cluster.n2.access()?.len();
        let outcome = thief.make(w.ns("stranger"))?;
        ensure!(outcome.reached(), "{outcome:?}");
        ensure!(w.judged.peer_ips() == [w.cluster.ip("stranger", v6)], "{:?}", w.judged.peers());
        w.judged.forget();
        let line = w.cluster.n2.wait_access_after(lines, "the thief's connection", |_| true)?;
        ensure!(line.source_ip() == Some(w.cluster.ip("stranger", v6)), "{line}");
    }
    Ok(())
}

fn forged(w: &mut Siege) -> Result<()> {
    let judged = w.cluster.topology.pod("judged").clone();
    // A raw SYN from the meshed pod, past every socket hook: the answer goes to the true guest, which
    // knows nothing of it.
    let lines = w.cluster.n2.access()?.len();
    let wire = Capture::start(&w.cluster.topology.node("n2").ns, &judged.node_veth)?;
    let guest = SocketAddrV4::new(w.cluster.topology.pod("guest").ip4, 4242);
    hostile::spoof_syn(w.ns("client"), guest, SocketAddrV4::new(judged.ip4, APP))?;
    wire.wait_for("the SYN with guest's address", |s| s.from == guest.into() && s.opens())?;
    wire.wait_for("guest's reset", |s| s.from == guest.into() && s.has(RST))?;

    for v6 in [false, true] {
        let guest = SocketAddr::new(w.cluster.ip("guest", v6), 0);
        let tricks = Tricks { source: Some(guest), ..Tricks::default() };
        // Bound in the meshed pod: captured, and refused by its own agent.
        let seen = w.cluster.n1.access()?.len();
        let dialled = hostile::dial(w.ns("client"), w.cluster.addr("judged", APP, v6), tricks, SHORT);
        ensure!(
            dialled.map_or(true, |mut s| talk::echo_or_refusal(&mut s).is_err()),
            "guest's address was as good as guest (IPv6: {v6})"
        );
        let line =
            w.cluster.n1.wait_access_after(seen, "the forged source", |l| l.is("direction", "outbound"))?;
        expect(&line, "spoofed_source", "")?;
        // Bound outside of the mesh, in plaintext and as a tunnel: answers go to the true guest.
        let dialled = hostile::dial(w.ns("stranger"), w.cluster.addr("judged", APP, v6), tricks, SHORT);
        ensure!(dialled.is_err(), "plaintext with guest's address was answered");
        let mut tunnel = w.attempt("judged", Some(&w.papers), v6);
        tunnel.source = Some(guest.ip());
        tunnel.patience = SHORT;
        let outcome = tunnel.make(w.ns("stranger"))?;
        ensure!(matches!(outcome, Outcome::NoConnection(_)), "{outcome:?}");
    }
    ensure!(w.judged.peers().is_empty(), "the application saw {:?}", w.judged.peers());
    let new: Vec<Line> = w.cluster.n2.access()?.into_iter().skip(lines).collect();
    ensure!(new.is_empty(), "the server's agent took: {new:?}");
    Ok(())
}

fn impostors(w: &mut Siege) -> Result<()> {
    let c = &w.cluster;
    let (mesh, foreign) = (&w.authority, Authority::foreign()?);
    let fake = identity("fake");
    let wrong = [
        ("somebody else of the mesh", mesh.papers(&identity("intruder"))?),
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

/// More than one address may have handshakes under way with one pod.
const CROWD: usize = 300;

fn crowd(w: &mut Siege) -> Result<()> {
    let to = w.cluster.addr("open", hbone::PORT, false);
    let agent = &w.cluster.n2;
    let refused = || agent.metric("underpass_connections_refused_total", &["direction=\"inbound\""]);
    let crowded = || agent.metric("underpass_connections_refused_total", &["cause=\"overloaded\""]);
    let unlogged = || agent.metric("underpass_access_log_suppressed_lines_total", &[]);
    let (refused0, unlogged0, lines0) = (refused()?, unlogged()?, agent.access()?.len());
    let crowd = w.ns("stranger").run(|| {
        (0..CROWD).map(|_| Ok(TcpStream::connect_timeout(&to, wait::PATIENCE)?)).collect::<Result<Vec<_>>>()
    })?;
    // The oldest gives way, long before its time for a handshake is over.
    crowd[0].set_read_timeout(Some(wait::PATIENCE))?;
    let end = (&crowd[0]).read(&mut [0; 1]);
    ensure!(!matches!(end, Ok(1..)), "{end:?}");
    wait::until_true(wait::PATIENCE, "somebody gave way", || crowded().is_ok_and(|n| n > 0.0))?;
    // Also from the crowd's own address.
    for from in ["guest", "n1", "stranger"] {
        w.works(from, false).with_context(|| format!("{from} beside the crowd"))?;
    }
    drop(crowd);
    wait::until_true(wait::PATIENCE, "each one is counted", || {
        refused().is_ok_and(|n| n - refused0 >= CROWD as f64)
    })?;
    let told = |lines: &[Line]| lines.iter().filter(|l| !l.is("verdict", "allow")).count() as f64;
    wait::until_true(wait::PATIENCE, "each one has a line or is counted as one without", || {
        let lines = agent.access().map_or(0.0, |all| told(&all[lines0..]));
        unlogged().is_ok_and(|n| lines + (n - unlogged0) == CROWD as f64)
    })
}

fn outstay(w: &mut Siege) -> Result<()> {
    let papers = w.authority.short_papers(&identity("client"), Duration::from_secs(8))?;
    let [to, target] = [hbone::PORT, APP].map(|port| w.cluster.addr("open", port, false));
    Outstay { to, papers: &papers, target }.make(w.ns("stranger"))?;
    w.open.forget();
    w.works("stranger", false)
}

impl Siege {
    /// A pod's namespace, or a node's.
    fn ns(&self, place: &str) -> &Netns {
        let nodes = self.cluster.topology.nodes();
        nodes.iter().find(|n| n.name == place).map_or_else(|| self.cluster.ns(place), |n| &n.ns)
    }

    /// The address that a connection to a pod of n2 comes from.
    fn address(&self, place: &str, v6: bool) -> IpAddr {
        match (place, v6) {
            ("n1", false) => self.cluster.topology.node("n1").ip4.into(),
            ("n1", true) => self.cluster.topology.node("n1").ip6.into(),
            // Its address on the pod's own link.
            ("n2", false) => [10, 201, 2, 1].into(),
            ("n2", true) => Ipv6Addr::new(0xfd00, 0x201, 2, 0, 0, 0, 0, 1).into(),
            (pod, v6) => self.cluster.ip(pod, v6),
        }
    }

    /// A proper CONNECT to a pod's application.
    fn attempt<'a>(&self, pod: &str, papers: Option<&'a Papers>, v6: bool) -> Attempt<'a> {
        let [to, target] = [hbone::PORT, APP].map(|port| self.cluster.addr(pod, port, v6));
        Attempt::to(to, papers, target)
    }

    /// The attempt that all others differ from, to show that it is the difference that is refused.
    fn works(&self, from: &str, v6: bool) -> Result<()> {
        let lines = self.cluster.n2.access()?.len();
        let outcome = self.attempt("open", Some(&self.papers), v6).make(self.ns(from))?;
        ensure!(outcome.reached(), "proper papers and words from {from}: {outcome:?}");
        self.cluster.n2.wait_access_after(lines, "the proper connection", |l| l.is("verdict", "allow"))?;
        self.open.forget();
        Ok(())
    }

    /// An attempt that must fail; with the line that the agent wrote about it.
    fn refused(&self, from: &str, attempt: &Attempt<'_>) -> Result<(Outcome, Line)> {
        let lines = self.cluster.n2.access()?.len();
        let outcome = self.silent(from, attempt)?;
        let ip = self.address(from, attempt.to.is_ipv6());
        let line = self.cluster.n2.wait_access_after(lines, "the refusal", |l| l.source_ip() == Some(ip));
        Ok((outcome.clone(), line.with_context(|| format!("it ended as {outcome:?}"))?))
    }

    /// An attempt that must fail.
    fn silent(&self, from: &str, attempt: &Attempt<'_>) -> Result<Outcome> {
        let outcome = attempt.make(self.ns(from))?;
        if !self.nobody_came() {
            bail!("the application was reached: {outcome:?}");
        }
        Ok(outcome)
    }

    /// Whether n2's agent has no connection left.
    fn idle(&self) -> Result<bool> {
        let live = self.cluster.n2.admin("/connections")?;
        Ok(live.as_array().context("/connections is no list")?.is_empty())
    }

    fn nobody_came(&self) -> bool {
        [&self.open, &self.strict, &self.judged].iter().all(|s| s.peers().is_empty())
    }
}

fn expect(line: &Line, cause: &str, why: &str) -> Result<()> {
    ensure!(line.cause() == cause, "expected {cause}: {line}");
    ensure!(line.get("error").unwrap_or_default().contains(why), "expected {why:?}: {line}");
    Ok(())
}
