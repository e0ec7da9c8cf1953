//! What both ends of a tunnel are set to. The wire values are those of Istio's ztunnel in 2026
//! (`proxy/h2/{client,server}.rs`, `config.rs`), our interoperability peer.

use std::time::Duration;

use h2::{client, server};

/// The end that dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    pub flow: FlowSettings,
    /// Streams that one connection carries at most; the peer's own limit may be lower.
    pub max_streams: usize,
    /// For the connection's TCP and TLS handshakes together. The connector may have stricter limits.
    pub connect_timeout: Duration,
    /// For a stream to be opened: a handshake if need be, and the peer's answer, which waits for the
    /// application's own TCP handshake.
    pub answer_timeout: Duration,
    /// A connection without streams is closed after this time.
    pub idle_timeout: Duration,
    pub keepalive: KeepaliveSettings,
}

/// The end that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    pub flow: FlowSettings,
    /// SETTINGS_MAX_CONCURRENT_STREAMS as we state it.
    pub max_streams: u32,
    /// For the client's HTTP/2 preface, once TLS stands.
    pub preface_timeout: Duration,
    /// A connection without streams is sent GOAWAY after this time. Longer than the client's, so that
    /// the client, who knows whether it is about to open a stream, usually closes first.
    pub idle_timeout: Duration,
    pub keepalive: KeepaliveSettings,
}

/// Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowSettings {
    /// What the peer may send on one stream before we consume it: bounds what a slow application makes
    /// us hold.
    pub stream_window: u32,
    /// The same over all streams of a connection.
    pub connection_window: u32,
    pub max_frame: u32,
    pub max_header_list: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepaliveSettings {
    /// From the handshake to the first PING, and from each answer to the next PING.
    pub interval: Duration,
    /// How long the peer may take to answer.
    pub timeout: Duration,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            flow: FlowSettings { max_header_list: 16 * 1024, ..FlowSettings::default() },
            max_streams: 100,
            connect_timeout: Duration::from_secs(20),
            answer_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(5 * 60),
            keepalive: KeepaliveSettings::default(),
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            flow: FlowSettings { max_header_list: 64 * 1024, ..FlowSettings::default() },
            max_streams: 200,
            preface_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15 * 60),
            keepalive: KeepaliveSettings::default(),
        }
    }
}

impl Default for FlowSettings {
    fn default() -> Self {
        Self {
            stream_window: 4 * 1024 * 1024,
            // Four times a stream's, so that a few stalled streams do not stop the others.
            connection_window: 16 * 1024 * 1024,
            max_frame: 1024 * 1024,
            max_header_list: 64 * 1024,
        }
    }
}

impl Default for KeepaliveSettings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) }
    }
}

impl ClientSettings {
    pub(super) fn builder(&self) -> client::Builder {
        let mut b = client::Builder::new();
        b.initial_window_size(self.flow.stream_window)
            .initial_connection_window_size(self.flow.connection_window)
            .max_frame_size(self.flow.max_frame)
            .max_header_list_size(self.flow.max_header_list)
            .max_send_buffer_size(MAX_SEND_BUFFER)
            .enable_push(false);
        b
    }
}

impl ServerSettings {
    pub(super) fn builder(&self) -> server::Builder {
        let mut b = server::Builder::new();
        b.initial_window_size(self.flow.stream_window)
            .initial_connection_window_size(self.flow.connection_window)
            .max_frame_size(self.flow.max_frame)
            .max_header_list_size(self.flow.max_header_list)
            .max_concurrent_streams(self.max_streams)
            .max_send_buffer_size(MAX_SEND_BUFFER)
            // Streams that the peer opened and reset before we looked at them: one more and the
            // connection ends with ENHANCE_YOUR_CALM (CVE-2023-44487, "rapid reset"). `h2`'s default of
            // 20 is what two dozen connections that an impatient client drops in one moment cost it.
            .max_pending_accept_reset_streams(self.max_streams as usize)
            .max_local_error_reset_streams(Some(MAX_STREAM_ERRORS));
        b
    }
}

/// `h2`'s own limit a stream. [`super::TunnelStream`] keeps to a lower one by itself.
const MAX_SEND_BUFFER: usize = 400 * 1024;

/// Streams that we had to reset because the peer broke the protocol on them, over a connection's life.
const MAX_STREAM_ERRORS: usize = 1024;
