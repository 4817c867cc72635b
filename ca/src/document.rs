//! What the documents that operators write for the authority have in common: how they are read, how they are refused, and how
//! a running authority follows them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::de::DeserializeOwned;
use serde_saphyr::Spanned;

use crate::stamp::Stamp;

/// Which document it is.
#[derive(Debug, PartialEq, Eq)]
pub struct DocumentKind {
    /// As messages call it.
    pub(crate) name: &'static str,
    /// The stable code when it cannot be read.
    pub(crate) unreadable: &'static str,
    /// The stable code when it says something impossible.
    pub(crate) invalid: &'static str,
    /// The largest file.
    pub(crate) bytes_max: u64,
}

/// Why a document cannot be in force.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The file cannot be read.
    #[error("{}: the {} cannot be read: {text}", file.display(), kind.name)]
    Unreadable {
        /// What it should be.
        kind: &'static DocumentKind,
        /// Which.
        file: PathBuf,
        /// The system's answer.
        text: String,
    },
    /// The file says something impossible.
    #[error("{}:{line}:{column}: {text}", file.display())]
    Invalid {
        /// What it should be.
        kind: &'static DocumentKind,
        /// Which.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        text: String,
    },
}

impl DocumentError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { kind, .. } => kind.unreadable,
            Self::Invalid { kind, .. } => kind.invalid,
        }
    }
}

/// Something impossible at a place.
pub(crate) struct Fault {
    line: u64,
    column: u64,
    text: String,
}

impl Fault {
    pub(crate) fn at<T>(place: &Spanned<T>, text: impl Into<String>) -> Self {
        Self { line: place.referenced.line(), column: place.referenced.column(), text: text.into() }
    }

    /// Keys of a mapping carry no place of their own: it is found in the text.
    pub(crate) fn of(source: &str, word: &str, text: impl Into<String>) -> Self {
        let found = source.lines().enumerate().find_map(|(line, text)| Some((line, text.find(word)?)));
        let (line, column) = found.map_or((1, 1), |(line, column)| (line as u64 + 1, column as u64 + 1));
        Self { line, column, text: text.into() }
    }

    fn of_syntax(error: &serde_saphyr::Error) -> Self {
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let text = error.without_snippet().to_string();
        let first = text.lines().next().unwrap_or_default();
        let text = first.strip_suffix(&format!(" at line {line}, column {column}")).unwrap_or(first).to_owned();
        Self { line, column, text }
    }
}

impl DocumentKind {
    /// The text of a file.
    pub(crate) fn read(&'static self, file: &Path) -> Result<String, DocumentError> {
        let unreadable = |text: String| DocumentError::Unreadable { kind: self, file: file.to_owned(), text };
        let mut bytes = Vec::new();
        let opened = File::open(file).map_err(|error| unreadable(error.to_string()))?;
        opened.take(self.bytes_max + 1).read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
        if bytes.len() as u64 > self.bytes_max {
            return Err(unreadable(format!("it has more than {} bytes", self.bytes_max)));
        }
        String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8".into()))
    }

    /// What a text means: its syntax, and then whatever `check` says of it.
    pub(crate) fn parse<D: DeserializeOwned, T>(
        &'static self,
        file: &Path,
        text: &str,
        check: impl FnOnce(&D) -> Result<T, Fault>,
    ) -> Result<T, DocumentError> {
        let document = serde_saphyr::from_str(text).map_err(|error| Fault::of_syntax(&error));
        document.and_then(|document| check(&document)).map_err(|Fault { line, column, text }| DocumentError::Invalid {
            kind: self,
            file: file.to_owned(),
            line,
            column,
            text,
        })
    }
}

/// The document that decides now. Clones share it.
#[derive(Debug, Default)]
pub(crate) struct InForce<T>(Arc<Inner<T>>);

#[derive(Debug, Default)]
struct Inner<T> {
    document: ArcSwap<T>,
    problem: Mutex<Option<DocumentError>>,
}

impl<T> InForce<T> {
    /// The document itself.
    pub(crate) fn current(&self) -> Arc<T> {
        self.0.document.load_full()
    }

    /// Why the file as it stands is not in force, if so.
    pub(crate) fn problem(&self) -> Option<DocumentError> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_problem(&self, problem: Option<DocumentError>) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

impl<T> Clone for InForce<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

type Load<T> = Box<dyn Fn(&Path) -> Result<T, DocumentError> + Send>;

/// A document's file, looked at again and again. One that is refused, or gone, changes nothing: the last good one stays, and
/// log and status say so.
pub(crate) struct FollowedFile<T> {
    file: PathBuf,
    load: Load<T>,
    seen: Option<Stamp>,
    in_force: InForce<T>,
}

impl<T> FollowedFile<T> {
    /// Reads it for the first time. `load` logs what it found.
    ///
    /// # Errors
    /// When it is refused: an authority does not begin with a document that nobody wrote.
    pub(crate) fn open(file: PathBuf, load: Load<T>) -> Result<Self, DocumentError> {
        let seen = Stamp::of(&file);
        let document = ArcSwap::from_pointee(load(&file)?);
        let in_force = InForce(Arc::new(Inner { document, problem: Mutex::default() }));
        Ok(Self { file, load, seen, in_force })
    }

    /// What it says, for those who decide by it.
    pub(crate) fn in_force(&self) -> InForce<T> {
        self.in_force.clone()
    }

    /// Follows the file for ever.
    pub(crate) async fn keep_read(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    /// Takes over what the file says now, if it has changed.
    pub(crate) fn look(&mut self) {
        let now = Stamp::of(&self.file);
        if now == self.seen {
            return;
        }
        self.seen = now;
        let problem = match (self.load)(&self.file) {
            Ok(document) => {
                self.in_force.0.document.store(Arc::new(document));
                None
            }
            Err(error) => {
                tracing::error!(reason = error.reason(), %error, "document refused, the last good one stays in force");
                Some(error)
            }
        };
        self.in_force.set_problem(problem);
    }
}

impl<T> std::fmt::Debug for FollowedFile<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FollowedFile").field("file", &self.file).finish_non_exhaustive()
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
