//! What differs from run to run is replaced by names that stay.

use std::path::Path;

use anyhow::Result;
use regex::{Captures, Regex};

/// Replacements, in their order.
pub(crate) struct Names {
    paths: Vec<(String, String)>,
    patterns: Vec<(Regex, &'static str)>,
}

impl Names {
    /// With names for some folders.
    ///
    /// # Errors
    /// When a pattern is none.
    pub(crate) fn new(folders: &[(&Path, &str)]) -> Result<Self> {
        let paths = folders.iter().map(|(path, name)| (path.display().to_string(), (*name).to_owned())).collect();
        let pattern = |(pattern, name): &(&str, &'static str)| Ok((Regex::new(pattern)?, *name));
        Ok(Self { paths, patterns: PATTERNS.iter().map(pattern).collect::<Result<_>>()? })
    }

    pub(crate) fn replaced(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (path, name) in &self.paths {
            text = text.replace(path, name);
        }
        for (pattern, name) in &self.patterns {
            text = match *name {
                // A long word is base64 when it mixes its letters; a path does not.
                BASE64 => pattern.replace_all(&text, |found: &Captures<'_>| base64_or(&found[0])).into_owned(),
                name => pattern.replace_all(&text, name).into_owned(),
            };
        }
        text
    }
}

fn base64_or(word: &str) -> String {
    let mixed = word.contains(|c: char| c.is_ascii_uppercase()) && word.contains(|c: char| c.is_ascii_lowercase());
    if mixed { BASE64.to_owned() } else { word.to_owned() }
}

const BASE64: &str = "BASE64";

const PATTERNS: &[(&str, &str)] = &[
    (r"-----BEGIN ([A-Z ]+)-----[^-]+-----END", "-----BEGIN $1-----\nBASE64\n-----END"),
    (r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", "JWT"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", "TIME"),
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UUID"),
    (r"\b([0-9A-Fa-f]{2}:){7,}[0-9A-Fa-f]{2}\b", "HEX"),
    (r"\b[0-9a-f]{16,}\b", "HEX"),
    (r"\b127\.\d+\.\d+\.\d+:\d+", "IP:PORT"),
    (r"\b127\.\d+\.\d+\.\d+\b", "IP"),
    (r"\b127\.\d+\.\d+\.\d+_", "IP_"),
    (r"\blocalhost:\d+", "localhost:PORT"),
    (r"[A-Za-z0-9+/_-]{40,}={0,2}", BASE64),
    (r"\b[A-Za-z0-9+/]{20,}={1,2}", BASE64),
    (r"\b(\d+(years?|months?|days?|ms|us|µs|ns|d|h|m|s))+\b", "DURATION"),
    (r"\b\d+(\.\d+)? ?%", "PERCENT"),
    (r"\b\d+(\.\d+)? (MiB|KiB|GiB|bytes)\b", "SIZE"),
    (r"\b\d+(\.\d+)?/s\b", "RATE"),
    (r"\bprocess \d+\b", "process PID"),
    (r"\bpid \d+, uid \d+\b", "pid PID, uid UID"),
    // Seconds since the epoch.
    (r"\b[12]\d{9}\b", "SECONDS"),
    (
        r#""(pid|uid|memory_bytes|cpu_percent|ready_after_ms|life_left_percent|requests|denied|failed|connections|requests_per_second|denied_per_second|failed_per_second)": [\d.]+"#,
        r#""$1": N"#,
    ),
    (r"\b(kasbah|version) \d+\.\d+\.\d+\b", "$1 VERSION"),
    // The width of a column is that of its longest value.
    (r"(?m)(\S) {2,}", "$1  "),
];
