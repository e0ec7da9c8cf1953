//! HTTP/2 frames by hand, for tests of what is on the wire and of peers that break the rules.

use tokio::io::{AsyncRead, AsyncReadExt};

pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Of a SETTINGS frame, by number.
    pub(crate) fn settings(&self) -> Vec<(u16, u32)> {
        let parse =
            |c: &[u8]| (u16::from_be_bytes([c[0], c[1]]), u32::from_be_bytes([c[2], c[3], c[4], c[5]]));
        let mut all: Vec<_> = self.payload.chunks(6).map(parse).collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// Of RST_STREAM or GOAWAY.
    pub(crate) fn error(&self) -> u32 {
        self.word(if self.kind == 7 { 4 } else { 0 })
    }
}

pub(crate) async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> Frame {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    from.read_exact(&mut payload).await.unwrap();
    Frame { kind: head[3], payload }
}

/// Reads until `count` frames of `kind` came, and gives those.
pub(crate) async fn read_frames(from: &mut (impl AsyncRead + Unpin), kind: u8, count: usize) -> Vec<Frame> {
    let mut found = Vec::new();
    while found.len() < count {
        let frame = read_frame(from).await;
        if frame.kind == kind {
            found.push(frame);
        }
    }
    found
}

/// What a client says first: the magic words and SETTINGS without a setting.
pub(crate) fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HEADERS of a CONNECT, complete.
pub(crate) fn connect(stream: u32) -> Vec<u8> {
    frame(1, 4, stream, &connect_block())
}

/// `:method` CONNECT, `:authority` 10.0.0.9:80, as HPACK literals.
pub(crate) fn connect_block() -> Vec<u8> {
    [&[2, 7][..], b"CONNECT", &[1, 11], b"10.0.0.9:80"].concat()
}
