//! Just enough of Ethernet, IP and TCP to say what a capture shows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One TCP segment as captured. Segmentation offload makes some longer than the link's MTU.
#[derive(Clone, Debug)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub flags: u8,
    pub payload: Vec<u8>,
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;

impl Segment {
    /// Whether either end is this port.
    pub fn on_port(&self, port: u16) -> bool {
        self.from.port() == port || self.to.port() == port
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The first SYN of a connection.
    pub fn opens(&self) -> bool {
        self.has(SYN) && self.flags & 0x10 == 0
    }

    /// Whether the payload begins a TLS record of this type (22 handshake, 23 application data).
    pub fn is_tls(&self, record: u8) -> bool {
        matches!(self.payload[..], [r, 3, 0..=4, ..] if r == record)
    }
}

/// Parses an Ethernet frame; `None` for anything that is not a whole TCP segment.
pub fn parse(frame: &[u8]) -> Option<Segment> {
    let (ethertype, packet) = (frame.get(12..14)?, frame.get(14..)?);
    match ethertype {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 15) * 4;
            let total = usize::from(be16(packet, 2)?);
            // Offloaded IPv4 packets of 64 KiB and more carry 0 here.
            let end = if total == 0 { packet.len() } else { total };
            let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (packet.get(9)? == &6).then_some(())?;
            tcp(packet.get(header..end)?, Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into())
        }
        [0x86, 0xdd] => {
            let length = usize::from(be16(packet, 4)?);
            let end = if length == 0 { packet.len() } else { 40 + length };
            let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (packet.get(6)? == &6).then_some(())?;
            tcp(packet.get(40..end)?, Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into())
        }
        _ => None,
    }
}

fn tcp(segment: &[u8], from: IpAddr, to: IpAddr) -> Option<Segment> {
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from, be16(segment, 0)?),
        to: SocketAddr::new(to, be16(segment, 2)?),
        seq: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
        flags: *segment.get(13)?,
        payload: segment.get(header..)?.to_vec(),
    })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_frames_are_no_segments() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 43, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x30, 0x39, 0x00, 0x50, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, SYN, 0, 0, 0, 0, 0, 0]);
        frame.extend(b"abc");
        let whole = parse(&frame).unwrap();
        assert_eq!(whole.from, "10.0.0.1:12345".parse().unwrap());
        assert_eq!(whole.to, "10.0.0.2:80".parse().unwrap());
        assert_eq!((whole.seq, whole.opens(), whole.payload), (7, true, b"abc".to_vec()));
        for cut in 0..frame.len() {
            assert!(parse(&frame[..cut]).is_none(), "{cut} bytes were taken for a segment");
        }
    }
}
