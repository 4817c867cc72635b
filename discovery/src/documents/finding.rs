//! What is wrong with a document, and where: the sentence an operator reads.

use std::fmt;
use std::path::{Path, PathBuf};

use super::tree::{At, Node};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The document serves; something in it has no effect or is unwise.
    Warning,
    /// The document is refused.
    Error,
}

/// One finding about one document. Displays as `FILE:LINE:COL Kind ns/name: REASON: text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file it is about.
    pub file: PathBuf,
    /// Line, counted from 1.
    pub line: u64,
    /// Column, counted from 1.
    pub column: u64,
    /// `Kind ns/name`, as far as it could be read; `-` where not even that.
    pub resource: String,
    /// Whether the document is refused.
    pub severity: Severity,
    /// Stable code, see [`crate::REASONS`].
    pub reason: &'static str,
    /// The sentence.
    pub text: String,
}

impl Finding {
    /// Whether this finding refuses the document.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The finding as the JSON object that `validate -o json` and `/findings` show.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "file": self.file.display().to_string(),
            "line": self.line,
            "column": self.column,
            "resource": self.resource,
            "level": match self.severity { Severity::Error => "Error", Severity::Warning => "Warning" },
            "code": self.reason,
            "message": self.text,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, resource, reason, text, .. } = self;
        write!(f, "{}:{line}:{column} {resource}: {reason}: {text}", file.display())
    }
}

/// Collects the findings about one document while its rules are checked.
pub(crate) struct Review<'a> {
    file: &'a Path,
    resource: String,
    node: &'a Node,
    pub(crate) findings: Vec<Finding>,
}

impl<'a> Review<'a> {
    pub(crate) fn new(file: &'a Path, resource: String, node: &'a Node) -> Self {
        Self { file, resource, node, findings: Vec::new() }
    }

    /// The document is refused; `path` such as `spec.http[0]` says where.
    pub(crate) fn error(&mut self, path: impl AsRef<str>, reason: &'static str, text: impl Into<String>) {
        self.note(Severity::Error, path.as_ref(), reason, text.into());
    }

    /// The document is accepted, but the operator should know.
    pub(crate) fn warn(&mut self, path: impl AsRef<str>, reason: &'static str, text: impl Into<String>) {
        self.note(Severity::Warning, path.as_ref(), reason, text.into());
    }

    fn note(&mut self, severity: Severity, path: &str, reason: &'static str, text: String) {
        let text = if path.is_empty() { text } else { format!("{path}: {text}") };
        self.note_at(severity, self.node.locate(path), reason, text);
    }

    pub(crate) fn note_at(&mut self, severity: Severity, at: At, reason: &'static str, text: String) {
        if self.findings.len() >= FINDINGS_PER_DOCUMENT_MAX {
            return;
        }
        let (file, resource) = (self.file.to_owned(), self.resource.clone());
        self.findings.push(Finding { file, line: at.line, column: at.column, resource, severity, reason, text });
    }

    pub(crate) fn refused(&self) -> bool {
        self.findings.iter().any(Finding::is_error)
    }
}

const FINDINGS_PER_DOCUMENT_MAX: usize = 64;
