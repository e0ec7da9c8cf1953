//! A packet capture in memory: what was on an interface while something happened.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recvfrom, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Netns;
use crate::packet::{self, Segment};
use crate::wait;

/// A running capture; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Sends on the interface.
    sender: OwnedFd,
    marks: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The last mark that was read.
    read: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    segments: Vec<Segment>,
    bytes: usize,
    overflow: bool,
}

/// What is kept at most; a capture that met more refuses to answer.
const LIMIT: usize = 256 << 20;

impl Capture {
    /// Captures the TCP segments of both directions on `interface` inside `ns`, from now on.
    pub fn start(ns: &Netns, interface: &str) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (started, ready) = mpsc::channel();
        let (name, theirs) = (interface.to_owned(), shared.clone());
        let thread = ns.spawn(move || match open(&name) {
            Ok((fd, index, sender)) => {
                let _ = started.send(Ok(sender));
                collect(&fd, index, &theirs);
            }
            Err(e) => drop(started.send(Err(e))),
        });
        let sender = ready.recv().context("the capture's thread died")??;
        Ok(Self { shared, thread: Some(thread), sender, marks: AtomicU64::new(0) })
    }

    /// Returns when everything that was on the interface until now has been read. A busy machine lets the
    /// thread that reads wait for longer than any fixed time.
    fn flush(&self) -> Result<()> {
        let mark = self.marks.fetch_add(1, Ordering::Relaxed) + 1;
        let mut frame = [0; 60];
        frame[..MARK.len()].copy_from_slice(&MARK);
        frame[MARK.len()..][..8].copy_from_slice(&mark.to_be_bytes());
        send(self.sender.as_raw_fd(), &frame, MsgFlags::empty())
            .context("sending a mark on the interface")?;
        wait::until_true(wait::PATIENCE, "the capture has read what was sent before", || {
            self.shared.read.load(Ordering::Acquire) >= mark
        })
    }

    /// Everything that was captured so far.
    pub fn segments(&self) -> Result<Vec<Segment>> {
        let kept = self.shared.kept.lock().unwrap_or_else(|p| p.into_inner());
        if kept.overflow {
            bail!("the capture met more than {LIMIT} bytes and is not complete");
        }
        Ok(kept.segments.clone())
    }

    /// Waits for a segment that was to be seen.
    pub fn wait_for(&self, what: &str, mut is_it: impl FnMut(&Segment) -> bool) -> Result<Segment> {
        wait::until(wait::PATIENCE, &format!("a packet was seen: {what}"), || {
            self.segments().ok()?.into_iter().find(&mut is_it)
        })
    }

    /// Segments that have this port at either end.
    pub fn count_on(&self, port: u16) -> Result<usize> {
        Ok(self.segments()?.iter().filter(|s| s.on_port(port)).count())
    }

    /// What servers on this port sent, by connection.
    pub fn sent_from(&self, port: u16) -> Result<Vec<Vec<u8>>> {
        let all = streams(&self.segments()?);
        Ok(all.into_iter().filter(|((from, _), _)| from.port() == port).map(|(_, sent)| sent).collect())
    }

    /// Whether the bytes travelled in any one direction of any connection, also across segments.
    pub fn shows(&self, marker: &[u8]) -> Result<bool> {
        let segments = self.segments()?;
        Ok(streams(&segments).values().any(|s| contains(s, marker)))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How a frame begins that only tells how far a capture has read: to a station that is not there, of the
/// type that IEEE 802 leaves to experiments.
const MARK: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];

fn open(interface: &str) -> Result<(OwnedFd, usize, OwnedFd)> {
    let index =
        nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("opening a packet socket")?;
    setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20)).context("SO_RCVBUFFORCE on a packet socket")?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).context("SO_RCVTIMEO")?;
    let sender = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("opening a packet socket that sends")?;
    bind(sender.as_raw_fd(), &packet_address(index)?)
        .with_context(|| format!("binding a packet socket to {interface}"))?;
    Ok((fd, index as usize, sender))
}

/// Where a packet socket sends on one interface, and receives nothing.
fn packet_address(index: u32) -> Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index.try_into()?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: it points to a whole sockaddr_ll, which is copied.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(size_of_val(&address) as u32)) }
        .context("nix takes no packet address")
}

/// The socket is not bound to the interface, so it sees all of the namespace and picks by index.
fn collect(fd: &OwnedFd, index: usize, shared: &Shared) {
    let mut buffer = vec![0; 1 << 17];
    loop {
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) {
            Ok((n, Some(from))) if from.ifindex() == index => match mark_in(&buffer[..n]) {
                Some(mark) => shared.read.store(mark, Ordering::Release),
                None => keep(&buffer[..n], shared),
            },
            Ok(_) => {}
            // Only an empty queue ends a capture: what was on the wire before the end is looked at.
            Err(nix::Error::EAGAIN) if shared.stop.load(Ordering::Relaxed) => return,
            Err(nix::Error::EAGAIN | nix::Error::EINTR | nix::Error::ENETDOWN) => {}
            Err(_) => return,
        }
    }
}

fn mark_in(frame: &[u8]) -> Option<u64> {
    let mark = frame.strip_prefix(&MARK)?.first_chunk()?;
    Some(u64::from_be_bytes(*mark))
}

fn keep(frame: &[u8], shared: &Shared) {
    let Some(segment) = packet::parse(frame) else { return };
    let mut kept = shared.kept.lock().unwrap_or_else(|p| p.into_inner());
    kept.bytes += size_of::<Segment>() + segment.payload.len();
    if kept.bytes > LIMIT {
        kept.overflow = true;
        kept.segments.clear();
    }
    if !kept.overflow {
        kept.segments.push(segment);
    }
}

/// Payload by direction of a connection, in order of sequence numbers, retransmissions once.
fn streams(segments: &[Segment]) -> BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> {
    let mut by_flow: BTreeMap<_, Vec<&Segment>> = BTreeMap::new();
    for s in segments.iter().filter(|s| !s.payload.is_empty()) {
        by_flow.entry((s.from, s.to)).or_default().push(s);
    }
    by_flow
        .into_iter()
        .map(|(flow, mut parts)| {
            let base = parts[0].seq;
            parts.sort_by_key(|s| s.seq.wrapping_sub(base) as i32);
            parts.dedup_by_key(|s| s.seq);
            (flow, parts.iter().flat_map(|s| s.payload.iter().copied()).collect())
        })
        .collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Gives packets that are on their way the time to be seen: waits until nothing new was for a while, and
/// everything that was there has been read.
pub fn settle(capture: &Capture) -> Result<()> {
    let mut last = usize::MAX;
    wait::until_true(Duration::from_secs(5), "the interface is quiet", || {
        std::thread::sleep(Duration::from_millis(60));
        let now = capture.flush().and_then(|()| capture.segments()).map_or(0, |s| s.len());
        let quiet = now == last;
        last = now;
        quiet
    })?;
    capture.flush()
}
