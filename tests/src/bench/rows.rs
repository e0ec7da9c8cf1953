//! The rows of the table.

use super::rounds::Sample;

pub(super) struct Row {
    pub(super) label: &'static str,
    pub(super) test: &'static str,
    pub(super) value: fn(&Sample) -> Option<f64>,
    /// The test whose value on the same path it is compared with; none: its own on plain TCP.
    pub(super) against: Option<&'static str>,
}

pub(super) const ROWS: [Row; 30] = [
    row("RR p50, 1 conn, all on one CPU (µs)", "rr1p", |s| s.p50_us),
    row("RR p99, 1 conn, all on one CPU (µs)", "rr1p", |s| s.p99_us),
    row("connect + first byte p50, all on one CPU (µs)", "crr1p", |s| s.p50_us),
    row("RR p50, 1 conn (µs)", "rr1", |s| s.p50_us),
    row("RR p99, 1 conn (µs)", "rr1", |s| s.p99_us),
    row("RR rate, 1 conn (/s)", "rr1", |s| s.per_second),
    row("RR p50, 64 conns (µs)", "rr64", |s| s.p50_us),
    row("RR p99, 64 conns (µs)", "rr64", |s| s.p99_us),
    row("RR rate, 64 conns (/s)", "rr64", |s| s.per_second),
    row("connect + first byte p50, serial (µs)", "crr1", |s| s.p50_us),
    row("connect + first byte p99, serial (µs)", "crr1", |s| s.p99_us),
    row("new connections, serial (/s)", "crr1", |s| s.per_second),
    row("new connections, serial, all on one CPU (/s)", "crr1p", |s| s.per_second),
    row("new connections, 16 at once (/s)", "crr16", |s| s.per_second),
    row("throughput, 1 stream (Gbit/s)", "tp1", |s| s.gbit),
    row("throughput, 8 streams (Gbit/s)", "tp8", |s| s.gbit),
    row("HTTP request p50, all on one CPU (µs)", "http1p", |s| s.p50_us),
    row("HTTP request, judged, p50, all on one CPU (µs; × unjudged)", "judged1p", |s| s.p50_us)
        .against("http1p"),
    row("HTTP request rate, 64 conns (/s)", "http64", |s| s.per_second),
    row("HTTP request rate, judged, 64 conns (/s; × unjudged)", "judged64", |s| s.per_second)
        .against("http64"),
    row("agent CPU per HTTP request, 64 conns (µs)", "http64", |s| s.agent.map(micros)),
    row("agent CPU per HTTP request, judged, 64 conns (µs; × unjudged)", "judged64", |s| {
        s.agent.map(micros)
    })
    .against("http64"),
    row("agent CPU per GB, 1 stream (s)", "tp1", |s| s.agent),
    row("agent CPU per GB, 8 streams (s)", "tp8", |s| s.agent),
    row("agent CPU per request, 64 conns (µs)", "rr64", |s| s.agent.map(micros)),
    row("agent CPU per new connection, serial (µs)", "crr1", |s| s.agent.map(micros)),
    row("agent CPU per new connection, 16 at once (µs)", "crr16", |s| s.agent.map(micros)),
    row("whole-machine CPU per GB, 1 stream (s)", "tp1", |s| s.machine),
    row("whole-machine CPU per request, 64 conns (µs)", "rr64", |s| s.machine.map(micros)),
    row("whole-machine CPU per new connection, 16 at once (µs)", "crr16", |s| s.machine.map(micros)),
];

const fn row(label: &'static str, test: &'static str, value: fn(&Sample) -> Option<f64>) -> Row {
    Row { label, test, value, against: None }
}

impl Row {
    const fn against(self, test: &'static str) -> Self {
        Self { against: Some(test), ..self }
    }
}

fn micros(seconds: f64) -> f64 {
    seconds * 1e6
}
