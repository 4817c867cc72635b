//! What analysis says: a stable code, a level, the document with its place, a sentence, and what to do.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use super::codes::{self, Code};
use super::resource::{Resource, What};
use super::suppress;
use super::view::View;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Probably not what was meant.
    Warning,
    /// It does not work, or protects nobody.
    Error,
}

impl Level {
    /// `Info`, `Warning`, `Error`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        }
    }
}

/// One thing that analysis says. Displays as `FILE:LINE Level [CODE] (Kind ns/name) text`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// The file of the document.
    pub file: PathBuf,
    /// Line, counted from 1.
    pub line: u64,
    /// `IST0101` and the like: Istio's own numbers; `KSB…` are ours.
    pub code: &'static str,
    /// How bad it is.
    pub level: Level,
    /// `Kind ns/name`; `Kind name` for kinds without namespaces.
    pub resource: String,
    /// The sentence.
    pub text: String,
    /// What to do.
    pub fix: &'static str,
    /// Which analyzer says it.
    pub analyzer: &'static str,
}

impl Message {
    /// The message as `analyze -o json` prints it.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "code": self.code,
            "level": self.level.name(),
            "resource": self.resource,
            "file": self.file.display().to_string(),
            "line": self.line,
            "message": self.text,
            "fix": self.fix,
        })
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, code, level, resource, text, .. } = self;
        write!(f, "{}:{line} {} [{code}] ({resource}) {text}", self.file.display(), level.name())
    }
}

/// Collects what the analyzers say about a set.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) analyzer: &'static str,
    messages: BTreeSet<Message>,
    /// Code, document and sentence of each.
    told: BTreeSet<(&'static str, String, String)>,
    /// How many were too many.
    pub(crate) left_out: usize,
}

impl Report {
    /// Says something about a place of a document. The same sentence about a document is said once, at its first place.
    pub(crate) fn tell(&mut self, code: &'static str, resource: &Resource, at: View<'_>, text: impl Into<String>) {
        self.tell_line(code, resource, resource.line(at.at()), text.into());
    }

    pub(crate) fn tell_line(&mut self, code: &'static str, resource: &Resource, line: u64, text: String) {
        let namespace = if resource.what == What::Namespace { &resource.name } else { &resource.namespace };
        let is_untold = resource.is_assumed || UNTOLD_NAMESPACES.contains(&namespace.as_str());
        if is_untold || suppress::by_annotation(resource, code) {
            return;
        }
        if self.messages.len() >= MESSAGES_MAX {
            self.left_out += 1;
            return;
        }
        let Code { code, level, fix, .. } = codes::of(code);
        if !self.told.insert((code, format!("{} {}", resource.title(), resource.file.display()), text.clone())) {
            return;
        }
        self.messages.insert(Message {
            file: resource.file.to_path_buf(),
            line,
            code,
            level: *level,
            resource: resource.title(),
            text,
            fix,
            analyzer: self.analyzer,
        });
    }

    /// An analyzer has failed; what it would have said is not known.
    pub(crate) fn failed(&mut self) {
        let Code { code, level, fix, .. } = codes::of("IST0001");
        self.messages.insert(Message {
            file: PathBuf::new(),
            line: 0,
            code,
            level: *level,
            resource: "-".to_owned(),
            text: format!("the analyzer {} failed and was left out", self.analyzer),
            fix,
            analyzer: self.analyzer,
        });
    }

    /// Everything said, by file and line.
    pub(crate) fn into_messages(self) -> Vec<Message> {
        self.messages.into_iter().collect()
    }
}

/// Names as a list to read, some of them when there are many.
pub(crate) fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<T> = names.into_iter().collect();
    let some: Vec<&str> = names.iter().take(NAMES_MAX).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(NAMES_MAX) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

/// Most messages of one analysis.
const MESSAGES_MAX: usize = 10_000;
const NAMES_MAX: usize = 5;
/// Of Kubernetes itself: nobody who reads this can change what is there.
const UNTOLD_NAMESPACES: &[&str] = &["kube-node-lease", "kube-public", "kube-system", "local-path-storage"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::tree::parse_stream;

    #[test]
    fn the_number_of_messages_has_a_limit() {
        let node = parse_stream("{kind: Pod, metadata: {name: a}}").unwrap().remove(0);
        let pod = Resource::read(node, &std::path::Path::new("a.yaml").into(), 0).unwrap();
        let mut report = Report::default();
        for number in 0..MESSAGES_MAX + 2 {
            report.tell("IST0101", &pod, pod.name_view(), number.to_string());
        }
        assert_eq!(report.left_out, 2);
        assert_eq!(report.into_messages().len(), MESSAGES_MAX);
    }

    #[test]
    fn the_same_sentence_is_said_once_and_long_lists_are_cut() {
        let node = parse_stream("{kind: Pod, metadata: {name: a}}").unwrap().remove(0);
        let pod = Resource::read(node, &std::path::Path::new("a.yaml").into(), 0).unwrap();
        let mut report = Report::default();
        report.tell("IST0101", &pod, pod.name_view(), "x");
        report.tell("IST0101", &pod, pod.spec(), "x");
        assert_eq!(report.into_messages().len(), 1);
        assert_eq!(list(["a"; 5]), "a, a, a, a, a");
        assert_eq!(list(["a"; 7]), "a, a, a, a, a and 2 more");
    }
}
