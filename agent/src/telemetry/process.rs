//! The process's own log, on standard error: what the agent did and what failed, for its operator.
//!
//! `tracing-subscriber`'s own formats let a line break in a value through, and values come from peers
//! (certificates, HTTP/2 errors); these do not.

use std::fmt::{self, Debug, Write};
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use super::access::clock::rfc3339;
use super::escape::push_escaped;
use super::{Format, LogConfig, TelemetryError};

/// Reads and changes the log's filter while the process runs.
#[derive(Clone)]
pub struct LogControl {
    get: Arc<dyn Fn() -> String + Send + Sync>,
    set: Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

/// Installs the log for the whole process, the `log` crate's users included.
pub fn init(config: &LogConfig) -> Result<LogControl, TelemetryError> {
    let (subscriber, control) = subscriber(config, io::stderr)?;
    subscriber.try_init().map_err(|e| TelemetryError::AlreadyLogging(e.to_string()))?;
    Ok(control)
}

impl LogControl {
    /// The filter in force, as `RUST_LOG` writes it.
    pub fn filter(&self) -> String {
        (self.get)()
    }

    /// Changes the filter until it is changed again or the process ends.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        let parsed = parse(filter)?;
        (self.set)(parsed).map_err(|why| TelemetryError::Filter { filter: filter.into(), why })
    }
}

/// A control that is tied to no log, for tests of whoever uses one.
#[cfg(test)]
pub(crate) fn detached(filter: &str) -> LogControl {
    let filter = Arc::new(std::sync::Mutex::new(parse(filter).unwrap()));
    let kept = Arc::clone(&filter);
    LogControl {
        get: Arc::new(move || kept.lock().unwrap().to_string()),
        set: Arc::new(move |new| {
            *filter.lock().unwrap() = new;
            Ok(())
        }),
    }
}

fn subscriber<W>(
    config: &LogConfig,
    output: W,
) -> Result<(impl Subscriber + Send + Sync + use<W>, LogControl), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    let lines = Lines(config.format);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(output)
        .event_format(lines)
        .fmt_fields(lines)
        .with_filter(filter);
    let reader = handle.clone();
    let control = LogControl {
        get: Arc::new(move || reader.with_current(ToString::to_string).unwrap_or_default()),
        set: Arc::new(move |filter| handle.reload(filter).map_err(|e| e.to_string())),
    };
    Ok((tracing_subscriber::registry().with(layer), control))
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let refuse = |why: String| TelemetryError::Filter { filter: filter.into(), why };
    if filter.trim().is_empty() {
        return Err(refuse("it is empty".into()));
    }
    EnvFilter::builder().parse(filter).map_err(|e| refuse(e.to_string()))
}

#[derive(Clone, Copy)]
struct Lines(Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // What came through the `log` bridge carries its level and target in fields.
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut found = Found::new(self.0);
        event.record(&mut found);
        let (level, time) = (level(*metadata.level()), rfc3339(SystemTime::now()));
        // Through the bridge a target is any text, not only a module's path.
        let target = escaped(metadata.target());
        let spans = context.event_scope().into_iter().flat_map(|scope| scope.from_root());
        match self.0 {
            Format::Text => {
                write!(out, "{time}\t{level}\t{target}\t{}", found.message)?;
                let mut separator = '\t';
                for span in spans {
                    let extensions = span.extensions();
                    let fields = extensions.get::<FormattedFields<N>>().map_or("", |f| f.fields.as_str());
                    write!(out, "{separator}{}{{{fields}}}", span.name())?;
                    separator = ' ';
                }
                if !found.fields.is_empty() {
                    write!(out, "{separator}{}", found.fields)?;
                }
                out.write_char('\n')
            }
            Format::Json => {
                write!(
                    out,
                    "{{\"level\":\"{level}\",\"time\":\"{time}\",\"scope\":\"{target}\",\"message\":\"{}\"",
                    found.message
                )?;
                for span in spans {
                    let extensions = span.extensions();
                    let fields = extensions.get::<FormattedFields<N>>().map_or("", |f| f.fields.as_str());
                    write!(out, ",\"{}\":{{{fields}}}", span.name())?;
                }
                if !found.fields.is_empty() {
                    write!(out, ",{}", found.fields)?;
                }
                out.write_str("}\n")
            }
        }
    }
}

impl<'w> FormatFields<'w> for Lines {
    fn format_fields<R: RecordFields>(&self, mut out: Writer<'w>, fields: R) -> fmt::Result {
        let mut found = Found::new(self.0);
        fields.record(&mut found);
        out.write_str(&found.fields)
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn escaped(value: &str) -> String {
    let mut out = Vec::with_capacity(value.len());
    push_escaped(&mut out, value);
    // It was UTF-8 before, and escapes are ASCII.
    String::from_utf8(out).unwrap_or_default()
}

/// An event's or a span's fields, escaped.
struct Found {
    format: Format,
    message: String,
    fields: String,
}

impl Found {
    fn new(format: Format) -> Self {
        Self { format, message: String::new(), fields: String::new() }
    }

    fn add(&mut self, field: &Field, value: &dyn fmt::Display, quoted: bool) {
        let escaped = escaped(&value.to_string());
        match field.name() {
            "message" => self.message = escaped,
            name if name.starts_with("log.") => {}
            name => self.push(name, &escaped, quoted),
        }
    }

    fn push(&mut self, name: &str, value: &str, quoted: bool) {
        let (between, key_quote, colon) = match self.format {
            Format::Text => (" ", "", "="),
            Format::Json => (",", "\"", ":"),
        };
        let between = if self.fields.is_empty() { "" } else { between };
        let quote = if quoted { "\"" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(self.fields, "{between}{key_quote}{name}{key_quote}{colon}{quote}{value}{quote}");
    }
}

impl Visit for Found {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, &format_args!("{value:?}"), true);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, &value, true);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value, false);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value, false);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tracing::{debug, error, info, info_span};

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `log` prints, each line without its time.
    fn printed(format: Format, filter: &str, log: impl FnOnce(&LogControl)) -> Vec<String> {
        let output = Output::default();
        let writer = output.clone();
        let config = LogConfig { filter: filter.into(), format };
        let (subscriber, control) = subscriber(&config, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || log(&control));
        let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| match format {
                Format::Text => line.split_once('\t').unwrap().1.to_owned(),
                Format::Json => {
                    assert!(serde_json::from_str::<serde_json::Value>(line).unwrap().is_object());
                    let (before, after) = line.split_once(r#""time":""#).unwrap();
                    format!("{before}{}", after.split_once(r#"Z","#).unwrap().1)
                }
            })
            .collect()
    }

    #[test]
    fn text_lines() {
        let lines = printed(Format::Text, "info", |_| {
            debug!("not shown");
            info!(target: "t", pods = 3, all = true, name = "a b", "enrolled");
            let _span = info_span!(target: "t", "pod", uid = "u-1").entered();
            error!(target: "t", error = %io::Error::other("no"), "cannot enrol {}", "it");
        });
        assert_eq!(
            lines,
            [
                "info\tt\tenrolled\tpods=3 all=true name=\"a b\"",
                "error\tt\tcannot enrol it\tpod{uid=\"u-1\"} error=\"no\"",
            ]
        );
    }

    #[test]
    fn json_lines() {
        let lines = printed(Format::Json, "info", |_| {
            let _span = info_span!(target: "t", "pod", uid = "u-1").entered();
            info!(target: "t", pods = 3, "enrolled");
        });
        assert_eq!(
            lines,
            [r#"{"level":"info","scope":"t","message":"enrolled","pod":{"uid":"u-1"},"pods":3}"#]
        );
    }

    #[test]
    fn nothing_from_a_peer_starts_a_line_or_a_field() {
        let evil = "x\" level=\"info\n2026-01-01T00:00:00Z\tinfo\tt\tall is well\u{1b}[2J\u{2028}";
        for format in [Format::Text, Format::Json] {
            let lines = printed(format, "info", |_| {
                let _span = info_span!(target: "t", "pod", evil).entered();
                error!(target: "t", error = %evil, debug = ?evil, "{evil}");
            });
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(!lines[0].contains(['\u{1b}', '\u{2028}']), "{lines:?}");
        }
    }

    #[test]
    fn the_filter_changes_while_running_and_a_bad_one_is_refused() {
        let lines = printed(Format::Text, "info", |control| {
            assert_eq!(control.filter(), "info");
            debug!(target: "t", "hidden");
            control.set_filter("warn,t=debug").unwrap();
            debug!(target: "t", "shown");
            info!(target: "other", "hidden");
            for bad in ["", "t=loud", "a=b=c"] {
                assert!(control.set_filter(bad).is_err(), "{bad:?}");
            }
            assert!(control.filter().contains("t=debug"), "{}", control.filter());
        });
        assert_eq!(lines, ["debug\tt\tshown"]);
    }
}
