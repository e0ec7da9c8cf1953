//! What the stories about the kernel programs share: a pod enrolled by hand, and a stand-in for the
//! agent that says what it was given. No proxy, no TLS, no policy: only the kernel half is on trial.
// A helper of tests, each of which uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod loaded;
pub mod rows;
pub mod sockets;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use self::sockets::{connect_at_once, is_refusal, tcp};
use anyhow::{Context, Result, ensure};
use socket2::{SockRef, Socket};
use underpass::bpf::{
    self, CaptureMode, Enrolment, Features, Kernel, Listeners, LogLevel, Marks, OwnPorts, Programs,
};
use underpass::model::{InboundAction, InboundPlan, NetnsCookie};
use underpass::sys;
use underpass::sys::socket::ListenOptions;
use underpass_tests::capture::{Capture, settle};
use underpass_tests::topology::POD_RANGES;
use underpass_tests::work::talk;
use underpass_tests::{Netns, Pod, Server, Topology};

/// Two nodes; a pod that gets enrolled, one elsewhere to dial, one beside it that stays unmeshed.
pub struct Place {
    pub programs: Arc<Programs>,
    pub config: bpf::Config,
    pub topology: Topology,
}

impl Place {
    pub fn new() -> Result<Self> {
        Self::with(Features::detect())
    }

    pub fn with(features: Features) -> Result<Self> {
        let topology = Topology::new(&["n1", "n2"], &[("client", "n1"), ("beside", "n1"), ("server", "n2")])?;
        let config = config(&topology, "a");
        let programs = Arc::new(load(&config, features)?);
        programs.set_ranges(&ranges())?;
        Ok(Self { programs, config, topology })
    }

    pub fn pod(&self, name: &str) -> &Pod {
        self.topology.pod(name)
    }

    /// Enrols a pod with a stand-in for the agent.
    pub fn enrol(&self, pod: &str, capture: CaptureMode) -> Result<StandIn> {
        StandIn::start(&self.programs, self.pod(pod), capture)
    }

    /// A server that says it is one, on the pod's addresses.
    pub fn real(&self, pod: &str, port: u16) -> Result<Server> {
        Server::start(&self.pod(pod).ns, port, |conn| {
            let local = conn.stream.local_addr()?;
            let local = SocketAddr::new(local.ip().to_canonical(), local.port());
            greet(&mut conn.stream, "server", local, conn.peer)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for instance in ["a", "b"] {
            if let Err(e) = bpf::uninstall(&self.config.pin_root, instance) {
                eprintln!("cleaning up: {e}");
            }
        }
    }
}

pub fn ranges() -> Vec<ipnet::IpNet> {
    POD_RANGES.iter().map(|r| r.parse().unwrap()).collect()
}

pub fn config(topology: &Topology, instance: &str) -> bpf::Config {
    bpf::Config {
        pin_root: PathBuf::from("/sys/fs/bpf").join(topology.prefix()),
        instance: instance.to_owned(),
        cgroup: None,
        log_level: LogLevel::Debug,
    }
}

/// Loads with the whole report as the error when the machine lacks something.
pub fn load(config: &bpf::Config, features: Features) -> Result<Programs> {
    Programs::load_with(config, features).with_context(|| bpf::Report::probe(config).to_string())
}

/// The agent's part for one pod: rule, route, listeners, rows.
pub struct StandIn {
    pub programs: Arc<Programs>,
    pub netns: sys::netns::Netns,
    pod: Pod,
    abandoned: bool,
    addresses: Vec<IpAddr>,
    capture: CaptureMode,
    listeners: Mutex<Option<Open>>,
    /// What each accepted connection was dialled to, and by whom.
    pub accepted: Arc<Mutex<Vec<Accepted>>>,
    /// The agent's ends of all accepted connections.
    pub streams: Arc<Mutex<Vec<TcpStream>>>,
}

/// A connection that the stand-in was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub listener: &'static str,
    pub original: SocketAddr,
    pub peer: SocketAddr,
}

struct Open {
    sockets: Vec<(&'static str, TcpListener)>,
    threads: Vec<JoinHandle<()>>,
}

impl StandIn {
    pub fn start(programs: &Arc<Programs>, pod: &Pod, capture: CaptureMode) -> Result<Self> {
        Self::start_with(programs, pod, &pod.addresses(), capture)
    }

    pub fn start_with(
        programs: &Arc<Programs>,
        pod: &Pod,
        addresses: &[IpAddr],
        capture: CaptureMode,
    ) -> Result<Self> {
        plumb(pod, capture)?;
        let this = Self::new(programs, pod, addresses, capture)?;
        this.enrol()?;
        this.open()?;
        this.inbound(InboundPlan::all(InboundAction::Pass))?;
        Ok(this)
    }

    fn new(programs: &Arc<Programs>, pod: &Pod, addresses: &[IpAddr], capture: CaptureMode) -> Result<Self> {
        Ok(Self {
            programs: programs.clone(),
            netns: sys::netns::Netns::open(&pod.ns.path())?,
            pod: pod.clone(),
            abandoned: false,
            addresses: addresses.to_vec(),
            capture,
            listeners: Mutex::new(None),
            accepted: Arc::default(),
            streams: Arc::default(),
        })
    }

    /// For a pod that a former agent enrolled and plumbed, whose plan is to be kept.
    pub fn adopt(programs: &Arc<Programs>, pod: &Pod) -> Result<Self> {
        let this = Self::new(programs, pod, &pod.addresses(), CaptureMode::Mark)?;
        this.enrol()?;
        this.open()?;
        Ok(this)
    }

    /// As an agent that was killed: its sockets close, nothing else is undone.
    pub fn abandon(mut self) {
        self.close();
        self.abandoned = true;
    }

    pub fn cookie(&self) -> NetnsCookie {
        self.netns.cookie()
    }

    pub fn enrol(&self) -> Result<()> {
        self.enrol_with(&self.programs)
    }

    pub fn enrol_with(&self, programs: &Programs) -> Result<()> {
        Ok(programs.enrol(&Enrolment {
            cookie: self.cookie(),
            netns: self.netns.fd(),
            addresses: &self.addresses,
            capture: self.capture,
            marks: Marks::default(),
            ports: OwnPorts::default(),
        })?)
    }

    pub fn inbound(&self, plan: InboundPlan) -> Result<()> {
        Ok(self.programs.set_inbound(self.cookie(), &plan)?)
    }

    /// Opens the listeners and hands them to the kernel.
    pub fn open(&self) -> Result<()> {
        let kernel = &*self.programs;
        let bound = [
            ("outbound", "127.0.0.1:15001", true),
            ("outbound", "[::1]:15001", true),
            ("plaintext", "127.0.0.1:15006", true),
            ("plaintext", "[::1]:15006", true),
            ("hbone", "0.0.0.0:15008", false),
            ("hbone", "[::]:15008", false),
        ];
        let mut sockets: Vec<(&'static str, TcpListener)> = Vec::new();
        for (name, addr, transparent) in bound {
            let addr: SocketAddr = addr.parse()?;
            sockets.push((name, self.listen(addr, transparent)?));
        }
        let fd = |i: usize| Some(sockets[i].1.as_fd());
        kernel.set_listeners(
            self.cookie(),
            &Listeners {
                outbound_v4: fd(0),
                outbound_v6: fd(1),
                plaintext_v4: fd(2),
                plaintext_v6: fd(3),
                hbone_v4: fd(4),
                hbone_v6: fd(5),
            },
        )?;
        let threads = sockets
            .iter()
            .map(|(name, socket)| {
                let (name, socket) = (*name, socket.try_clone()?);
                let (programs, pod) = (self.programs.clone(), self.cookie());
                let (accepted, streams) = (self.accepted.clone(), self.streams.clone());
                Ok(std::thread::spawn(move || accept(name, &socket, &programs, pod, &accepted, &streams)))
            })
            .collect::<Result<_>>()?;
        *self.listeners.lock().unwrap() = Some(Open { sockets, threads });
        Ok(())
    }

    /// A listener of the agent's inside the pod.
    pub fn listen(&self, addr: SocketAddr, transparent: bool) -> Result<TcpListener> {
        let options = ListenOptions { transparent, dual_stack: false };
        let socket = self.netns.run(|| -> Result<Socket> {
            let socket = sys::socket::tcp(addr.ip())?;
            self.programs.own(socket.as_fd())?;
            sys::socket::listen(&socket, addr, options)?;
            socket.set_nonblocking(false)?;
            Ok(socket)
        })??;
        Ok(socket.into())
    }

    /// The agent is away: its listeners are closed, everything else stays.
    pub fn close(&self) {
        let open = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(open) = open else { return };
        for (_, socket) in &open.sockets {
            // Wakes accept(2) with EINVAL.
            let _ = SockRef::from(socket).shutdown(std::net::Shutdown::Both);
        }
        for thread in open.threads {
            let _ = thread.join();
        }
    }

    /// Who was accepted so far, forgetting them.
    pub fn take_accepted(&self) -> Vec<Accepted> {
        std::mem::take(&mut self.accepted.lock().unwrap())
    }

    /// Connects to an application of the pod as the agent does, with any source address.
    pub fn deliver(&self, source: Option<IpAddr>, to: SocketAddr) -> Result<TcpStream> {
        let stream = self.netns.run(|| -> Result<Socket> {
            let socket = sys::socket::tcp(to.ip())?;
            self.programs.own(socket.as_fd())?;
            if let Some(source) = source {
                sys::socket::set_transparent(&socket, source)?;
                sys::socket::set_mark(&socket, Marks::default().returned)?;
                sys::socket::set_bind_no_port(&socket)?;
                socket.bind(&SocketAddr::new(source, 0).into())?;
            }
            socket.set_nonblocking(false)?;
            socket.connect_timeout(&to.into(), talk::DEADLINE)?;
            Ok(socket)
        })??;
        let stream = TcpStream::from(stream);
        talk::prepare(&stream, talk::DEADLINE)?;
        Ok(stream)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        self.close();
        if let Err(e) = self.programs.unenrol(self.cookie()) {
            eprintln!("cleaning up: {e}");
        }
        unplumb(&self.pod);
    }
}

fn accept(
    name: &'static str,
    listener: &TcpListener,
    programs: &Programs,
    pod: NetnsCookie,
    accepted: &Mutex<Vec<Accepted>>,
    streams: &Mutex<Vec<TcpStream>>,
) {
    while let Ok((mut stream, peer)) = listener.accept() {
        let Ok(local) = stream.local_addr() else { continue };
        let original = match programs.original_destination(pod, local) {
            Ok(original) => original.0,
            Err(e) => {
                eprintln!("{name}: {e}");
                continue;
            }
        };
        accepted.lock().unwrap().push(Accepted { listener: name, original, peer });
        let mut live = streams.lock().unwrap();
        // One that is over has no peer. A story that dials without end would use up the descriptors.
        live.retain(|stream| stream.peer_addr().is_ok());
        live.extend(stream.try_clone());
        drop(live);
        std::thread::spawn(move || {
            let _ = talk::prepare(&stream, talk::DEADLINE);
            greet(&mut stream, name, original, peer)
        });
    }
}

/// One line that says who answers, then an echo.
fn greet(stream: &mut TcpStream, who: &str, local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
    writeln!(stream, "{who} {local} {peer}")?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(std::net::Shutdown::Write),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

/// What a namespace needs for the mark; the product's own code for it is `pods`'.
pub fn plumb(pod: &Pod, capture: CaptureMode) -> Result<()> {
    pod.ns.sysctl("ipv4.tcp_fwmark_accept", "1")?;
    if capture == CaptureMode::Loopback {
        pod.ns
            .ip_batch(&format!("route replace local 127.128.0.0/9 dev lo src {} table local\n", pod.ip4))?;
        let prefix = underpass_common::LOOPBACK6_PREFIX;
        let mut address = [0; 16];
        address[..8].copy_from_slice(&prefix);
        let prefix = std::net::Ipv6Addr::from(address);
        pod.ns.ip(&format!("-6 route replace local {prefix}/64 dev lo src {} table local", pod.ip6))?;
        return Ok(());
    }
    // An agent that was killed may have left it.
    unplumb(pod);
    for (family, source) in [("-4", pod.ip(false)), ("-6", pod.ip(true))] {
        let source = format!("src {source}");
        pod.ns.ip(&format!("{family} route replace local default dev lo {source} table 15008"))?;
        pod.ns.ip(&format!(
            "{family} rule add fwmark {:#x}/{:#x} lookup 15008 priority 75",
            underpass_common::RULE_MARK,
            underpass_common::RULE_MASK
        ))?;
    }
    Ok(())
}

/// Takes back what [`plumb`] gave.
pub fn unplumb(pod: &Pod) {
    for family in ["-4", "-6"] {
        while pod.ns.ip(&format!("{family} rule del priority 75")).is_ok() {}
        let _ = pod.ns.ip(&format!("{family} route flush table 15008"));
    }
}

/// Dials from inside the namespace and reads who answers: `agent`'s listener or `server`, the address
/// that was dialled as it sees it, and the peer.
pub fn who(from: &Netns, to: SocketAddr) -> io::Result<String> {
    read_line(&mut talk::dial(from, to)?)
}

/// Reads the greeting.
pub fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if byte == *b"\n" => return Ok(String::from_utf8_lossy(&line).into_owned()),
            _ => line.push(byte[0]),
        }
    }
}

/// The first word of a greeting.
pub fn answerer(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// The port that [`answers`] and [`fails_closed`] dial.
pub const PORT: u16 = 8080;

/// Nothing answers a dial of the client's, at once, and nothing leaves.
pub fn fails_closed(place: &Place) -> Result<()> {
    let client = place.pod("client");
    let capture = Capture::start(&client.ns, "eth0")?;
    for v6 in [false, true] {
        let socket = tcp(&client.ns, v6, |_| Ok(()))?;
        let error =
            connect_at_once(&socket, at(place.pod("server").ip(v6), PORT)).err().context("connected")?;
        ensure!(is_refusal(&error), "{error}");
    }
    settle(&capture)?;
    ensure!(capture.count_on(PORT)? == 0);
    Ok(())
}

pub fn answers(place: &Place, pod: &str, v6: bool) -> Result<String> {
    let line = who(&place.pod(pod).ns, at(place.pod("server").ip(v6), PORT))?;
    Ok(answerer(&line).to_owned())
}

pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}
