//! Prints, and keeps what came from elsewhere from commanding the terminal.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

use super::Answer;
use super::args::Output;

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
pub(super) fn print(text: &str) -> anyhow::Result<Answer> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(e).context("writing to standard output failed")
        }
        _ => Ok(Answer::Yes),
    }
}

/// The value in the asked form; `table` makes the human one.
pub(super) fn render<T: Serialize>(
    value: &T,
    output: Output,
    table: impl FnOnce() -> String,
) -> anyhow::Result<String> {
    Ok(match output {
        Output::Table => table(),
        Output::Json => serde_json::to_string_pretty(value).context("rendering JSON failed")? + "\n",
        Output::Yaml => serde_saphyr::to_string(value).context("rendering YAML failed")?,
    })
}

/// An error with its causes, each told once: many of our messages have their cause inside already. Some
/// are lists with a line for each part; everything else that commands a terminal is escaped.
pub(super) fn words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let lines: Vec<String> = text.lines().map(printable).collect();
    lines.join("\n")
}

/// Line ends and other control characters as escapes.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_format(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that change how others are shown.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
