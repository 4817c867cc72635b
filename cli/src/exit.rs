//! Exit codes and the one error type of the command line: what went wrong, and which code says so to a script.

use std::fmt;
use std::process::ExitCode;

/// The exit codes that every verb keeps to. The numbers 64 to 78 follow `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The answer is no, or it failed.
    Failed = 1,
    /// Wrong usage: an option or argument that does not exist or does not fit.
    Usage = 64,
    /// Bad input data: a document, certificate or settings file that is not what it should be.
    Data = 65,
    /// A needed part cannot be reached.
    Unavailable = 69,
    /// Not allowed.
    Denied = 77,
}

/// Codes and meanings as `kasbah help exit-codes` prints them.
pub(crate) const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done, or the answer is yes"),
    (1, "the answer is no, or it failed"),
    (64, "wrong usage: an option or argument that does not exist or does not fit"),
    (65, "bad input data: a document, settings file, token or certificate is not what it should be"),
    (69, "a needed part cannot be reached (is the mesh up? `kasbah status`)"),
    (77, "not allowed"),
    (79, "analysis findings reach the threshold"),
];

/// A failure on its way to the user: one sentence, the chain of causes, the remedy, the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: String,
    remedy: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), remedy: None }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The answer is no, and it has been printed.
    pub(crate) fn quiet() -> Self {
        Self::failed(String::new())
    }

    /// Whether nothing is left to say.
    pub(crate) fn is_quiet(&self) -> bool {
        self.message.is_empty()
    }

    /// What the user can do next; printed on a line of its own.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  to mend it: {remedy}")?;
        }
        Ok(())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(chain(error.as_ref()))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let exit = match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Exit::Unavailable,
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Exit::Denied,
            tonic::Code::InvalidArgument => Exit::Data,
            _ => Exit::Failed,
        };
        Self::new(exit, format!("{} ({})", status.message(), code_name(status.code())))
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure.exit as u8)
    }
}

/// An error and all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

fn code_name(code: tonic::Code) -> String {
    format!("gRPC {code:?}")
}
