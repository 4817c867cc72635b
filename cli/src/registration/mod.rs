//! Registration entries as documents: read with their places, expanded from templates, compared with what the CA has.
//!
//! [`document`] reads YAML, [`expand`] fills templates in, [`plan`] says what would change, [`spire`] makes a
//! document of a SPIRE server's entries. Nothing here talks to a CA.
//!
//! An entry that comes from a document carries the id `kasbah.OWNER.NAME`. That is the mark of ownership: only what
//! carries it is ever deleted. (The field `hint` is not used for it, because workloads see and read hints.)

pub(crate) mod document;
pub(crate) mod expand;
pub(crate) mod plan;
pub(crate) mod spire;
mod template;

use std::fmt;
use std::path::{Path, PathBuf};

/// Where something stands in a file; line and column count from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) line: u64,
    pub(crate) column: u64,
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) at: Place,
    pub(crate) text: String,
}

impl Place {
    fn new(file: &Path, location: serde_saphyr::Location) -> Self {
        Self { file: file.to_owned(), line: location.line(), column: location.column() }
    }
}

impl Problem {
    fn new(at: &Place, text: impl Into<String>) -> Self {
        Self { at: at.clone(), text: text.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.text)
    }
}

/// What the ids of entries begin with that documents of `owner` made.
pub(crate) fn mark_of(owner: &str) -> String {
    format!("{MARK}.{owner}.")
}

const MARK: &str = "kasbah";

#[cfg(test)]
mod tests;
