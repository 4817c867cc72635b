//! Exit codes and the one error type of the command line: what went wrong, and which code says so to a script.

use std::error::Error as _;
use std::fmt;
use std::process::ExitCode;

use crate::reasons;

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
    /// What analysis found reaches the threshold.
    Findings = 79,
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

/// A failure on its way to the user: the reason code, one sentence, cause and remedy, the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    reason: Option<String>,
    message: String,
    remedy: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, reason: None, message: message.into(), remedy: None }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// A refusal under a stable reason code, explained as `kasbah help reasons` does.
    pub(crate) fn refused(exit: Exit, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..Self::new(exit, message) }
    }

    /// The answer is no, and it has been printed.
    pub(crate) fn quiet() -> Self {
        Self::failed(String::new())
    }

    /// Whether nothing is left to say.
    pub(crate) fn is_quiet(&self) -> bool {
        self.message.is_empty()
    }

    /// What the user can do next, where more is known than the reason code's own remedy; printed on a line of its own.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// More to the sentence.
    pub(crate) fn and(mut self, more: &str) -> Self {
        self.message.push_str(more);
        self
    }

    /// Reason code and sentence alone, for one line among others.
    pub(crate) fn brief(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{reason}: {}", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doc = self.reason.as_deref().and_then(reasons::find);
        f.write_str(&self.brief())?;
        if let Some(doc) = doc {
            write!(f, "\n  cause: {}", doc.cause)?;
        }
        match self.remedy.as_deref().or_else(|| doc.map(|doc| doc.remedy)) {
            Some(remedy) => write!(f, "\n  to mend it: {remedy}"),
            None => Ok(()),
        }
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
        let exit = exit_of(status.code());
        if let Some(reason) = runtime::refusal::reason_of(&status) {
            return Self::refused(exit, reason, status.message());
        }
        // Not a refusal of ours: what the transport or somebody else's server says.
        let cause = status.source().map(|cause| format!(": {}", chain(cause))).unwrap_or_default();
        let failure = Self::new(exit, format!("{}{cause} (gRPC {:?})", status.message(), status.code()));
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => {
                failure.remedy("see whether it runs (`kasbah status`), then try again")
            }
            tonic::Code::Unimplemented => failure.remedy("the other side is of another version than this program"),
            _ => failure,
        }
    }
}

/// Whether the operating system has refused, somewhere in the chain of causes.
pub(crate) fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

impl Failure {
    /// From one item of a batch answer, whose status has its reason code in the text.
    pub(crate) fn of_item(code: tonic::Code, text: &str) -> Self {
        match runtime::refusal::split_item_text(text) {
            (message, Some(reason)) => Self::refused(exit_of(code), reason, message),
            (message, None) => tonic::Status::new(code, message).into(),
        }
    }
}

fn exit_of(code: tonic::Code) -> Exit {
    match code {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Exit::Unavailable,
        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Exit::Denied,
        tonic::Code::InvalidArgument => Exit::Data,
        _ => Exit::Failed,
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

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    fn refusal(code: Code, reason: &str) -> Failure {
        runtime::refusal::status(code, reason, "the text").into()
    }

    #[test]
    fn a_refusal_begins_with_its_code_and_says_cause_and_remedy() {
        let doc = reasons::find("ENTRY_EXISTS").unwrap();
        let said = refusal(Code::AlreadyExists, "ENTRY_EXISTS").to_string();
        assert_eq!(said, format!("ENTRY_EXISTS: the text\n  cause: {}\n  to mend it: {}", doc.cause, doc.remedy));
        let better = refusal(Code::AlreadyExists, "ENTRY_EXISTS").and(" and more").remedy("do this");
        assert!(better.to_string().starts_with("ENTRY_EXISTS: the text and more\n  cause: "), "{better}");
        assert!(better.to_string().ends_with("\n  to mend it: do this"), "{better}");
    }

    #[test]
    fn a_code_of_a_newer_part_is_said_all_the_same() {
        assert_eq!(refusal(Code::Aborted, "NOT_YET_INVENTED").to_string(), "NOT_YET_INVENTED: the text");
    }

    #[test]
    fn every_grpc_code_has_its_exit_code() {
        for number in 1..=16 {
            let code = Code::from_i32(number);
            let expected = match code {
                Code::Unavailable | Code::DeadlineExceeded => Exit::Unavailable,
                Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
                Code::InvalidArgument => Exit::Data,
                _ => Exit::Failed,
            };
            assert_eq!(refusal(code, "ENTRY_EXISTS").exit, expected, "{code:?}");
            let strange = Failure::from(Status::new(code, "the text"));
            assert_eq!(strange.exit, expected, "{code:?}");
            assert!(strange.to_string().starts_with("the text (gRPC "), "{strange}");
        }
    }

    #[test]
    fn an_item_of_a_batch_is_refused_as_a_call_is() {
        let text = runtime::refusal::item_text("ENTRY_EXISTS", "the text");
        let item = Failure::of_item(Code::AlreadyExists, &text);
        assert_eq!(item.to_string(), refusal(Code::AlreadyExists, "ENTRY_EXISTS").to_string());
        assert_eq!(item.exit, Exit::Failed);
        let plain = Failure::of_item(Code::PermissionDenied, "the text");
        assert_eq!((plain.to_string().as_str(), plain.exit), ("the text (gRPC PermissionDenied)", Exit::Denied));
    }

    #[test]
    fn a_reason_of_another_domain_is_no_code_of_ours() {
        let status = runtime::refusal::status_of("example.com", Code::NotFound, "ENTRY_UNKNOWN", "the text");
        assert_eq!(Failure::from(status).to_string(), "the text (gRPC NotFound)");
    }

    #[test]
    fn what_is_quiet_says_nothing() {
        assert!(Failure::quiet().is_quiet() && Failure::quiet().exit == Exit::Failed);
        assert!(!Failure::failed("no").is_quiet());
    }

    #[test]
    fn what_the_system_refuses_is_found_among_the_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("it cannot be opened")]
        struct Outer(#[source] std::io::Error);
        let of = |kind: std::io::ErrorKind| is_denied(&Outer(kind.into()));
        assert!(of(std::io::ErrorKind::PermissionDenied) && !of(std::io::ErrorKind::NotFound));
        assert!(is_denied(&std::io::Error::from(std::io::ErrorKind::PermissionDenied)));
    }

    #[test]
    fn the_codes_of_failures_are_those_of_the_table() {
        for exit in [Exit::Failed, Exit::Usage, Exit::Data, Exit::Unavailable, Exit::Denied, Exit::Findings] {
            assert!(EXIT_CODES.iter().any(|(code, _)| *code == exit as u8), "{exit:?}");
        }
    }
}
