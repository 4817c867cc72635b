//! Printing results: a table for people, JSON or YAML for programs; results on stdout, messages on stderr.

// This module is where the command line writes; everything else hands it values.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the one place that prints")]

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::exit::Failure;

/// The form of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON document; field names are stable.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Prints `value` as JSON or YAML, or calls `table` for the human form.
pub(crate) fn print<T: Serialize>(format: Format, value: &T, table: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table(),
        Format::Json => {
            serde_json::to_string_pretty(value).map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?
        }
        Format::Yaml => {
            serde_saphyr::to_string(value).map_err(|e| Failure::failed(format!("cannot write YAML: {e}")))?
        }
    };
    let text = text.trim_end();
    if !text.is_empty() {
        line(text);
    }
    Ok(())
}

/// Prints one of many results that come one after the other: JSON then is one line each, YAML a stream of documents.
pub(crate) fn record<T: Serialize>(format: Format, value: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if format == Format::Yaml {
        line("---");
    }
    if format != Format::Json {
        return print(format, value, text);
    }
    line(&serde_json::to_string(value).map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?);
    Ok(())
}

/// One line (or block) of result on stdout. A closed pipe ends the output quietly.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").is_err() {
        CLOSED.store(true, Ordering::Relaxed);
    }
}

/// Whether nobody reads stdout any more. What would go on and on ends then; what changes something goes on to its end.
pub(crate) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

static CLOSED: AtomicBool = AtomicBool::new(false);

/// What steers a terminal, on stdout.
pub(crate) fn raw(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// One line of message or progress on stderr.
pub(crate) fn message(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// A table without borders, headers in capitals, as operators know it from kubectl.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|l| l.trim_end().trim_start_matches(' ').to_owned()).collect::<Vec<_>>().join("\n")
}

/// Whether stderr is a terminal that wants colour (`NO_COLOR` is honoured).
pub(crate) fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Whether stdout is a terminal that wants colour (`NO_COLOR` is honoured).
fn stdout_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A page with the lines that `is_bad` picks in red, where colour is wanted.
pub(crate) fn marked(page: &str, is_bad: impl Fn(&str) -> bool) -> String {
    if !stdout_colour() {
        return page.to_owned();
    }
    let line = |line: &str| if is_bad(line) { format!("\u{1b}[31m{line}\u{1b}[0m") } else { line.to_owned() };
    page.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Shows a page in place of the one before: a terminal is cleared, anything else gets one page after the other.
pub(crate) fn page(text: &str) {
    let dumb = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
    let clear = if std::io::stdout().is_terminal() && !dumb { "\u{1b}[H\u{1b}[2J" } else { "" };
    line(&format!("{clear}{text}"));
}

/// A duration as people write it: `1h30m`, `45s`, `1s46ms`, `120ms`.
pub(crate) fn duration(value: std::time::Duration) -> String {
    let rounded = if value.as_secs() >= 10 {
        std::time::Duration::from_secs(value.as_secs())
    } else {
        std::time::Duration::from_millis(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    };
    humantime::format_duration(rounded).to_string().replace(' ', "")
}

/// A long time without its small change.
pub(crate) fn span(time: std::time::Duration) -> String {
    let secs = time.as_secs();
    match (secs / 86_400, secs % 86_400 / 3600) {
        (0, 0) => duration(std::time::Duration::from_secs(secs)),
        (0, _) => duration(std::time::Duration::from_secs(secs / 60 * 60)),
        (days @ 1..10, hours @ 1..) => format!("{days}d{hours}h"),
        (days, _) => format!("{days}d"),
    }
}
