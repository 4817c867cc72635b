//! Logs on stderr, as text for people or JSON lines for collectors, with a filter that can change at run time.

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt as line, reload};

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes the filter of the running process. Clones share it.
#[derive(Clone)]
pub struct LogControl(Arc<Shared>);

struct Shared {
    current: Mutex<String>,
    handle: Option<reload::Handle<EnvFilter, Registry>>,
}

/// Why a filter was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The text is no filter.
    #[error("the log filter `{filter}` is not understood; write for example `info` or `info,agent=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// Where it fails.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

impl LogError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Filter { .. } => "LOG_FILTER_BAD",
        }
    }
}

/// Starts logging for this process with the filter of `KASBAH_LOG` (default `info`).
///
/// A second call in one process (as tests do) leaves the first in place and answers a control without effect.
///
/// # Errors
/// When `KASBAH_LOG` is no filter.
pub fn init(role: &str, format: LogFormat) -> Result<LogControl, LogError> {
    let wanted = std::env::var("KASBAH_LOG").ok().filter(|text| !text.is_empty());
    let wanted = wanted.unwrap_or_else(|| FILTER_DEFAULT.to_owned());
    let (filter, handle) = reload::Layer::new(parse_filter(&wanted)?);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            registry.with(line::layer().with_writer(std::io::stderr).with_ansi(ansi)).try_init()
        }
        LogFormat::Json => {
            let layer = line::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
            registry.with(layer.with_writer(std::io::stderr)).try_init()
        }
    };
    tracing::debug!(role, filter = wanted, "logs started");
    let handle = started.is_ok().then_some(handle);
    Ok(LogControl(Arc::new(Shared { current: Mutex::new(wanted), handle })))
}

impl LogControl {
    /// A control that only remembers, for tests and tools.
    pub fn detached() -> Self {
        Self(Arc::new(Shared { current: Mutex::new(FILTER_DEFAULT.to_owned()), handle: None }))
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// When `filter` is not understood; the old one then stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse_filter(filter)?;
        if let Some(handle) = &self.0.handle {
            // Fails only when the subscriber is gone, and then nothing is logged any more.
            let _ = handle.reload(parsed);
        }
        filter.clone_into(&mut self.0.current.lock().unwrap_or_else(PoisonError::into_inner));
        tracing::info!(filter, "log filter changed");
        Ok(())
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").field("filter", &self.current()).finish()
    }
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    let too_long = filter.len() > FILTER_BYTES_MAX;
    let text = if too_long { "=" } else { filter };
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| LogError::Filter { filter: filter.chars().take(FILTER_SHOWN_MAX).collect(), source })
}

const FILTER_DEFAULT: &str = "info";
const FILTER_BYTES_MAX: usize = 4096;
const FILTER_SHOWN_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_and_the_old_one_stays() {
        let control = LogControl::detached();
        control.set("info,agent=debug").unwrap();
        assert_eq!(control.set("info,=,=").unwrap_err().reason(), "LOG_FILTER_BAD");
        assert_eq!(control.current(), "info,agent=debug");
    }

    #[test]
    fn a_very_long_filter_is_refused() {
        let long = "a".repeat(FILTER_BYTES_MAX + 1);
        assert!(LogControl::detached().set(&long).is_err());
    }
}
