//! gRPC refusals that carry a stable reason code, as `google.rpc.ErrorInfo`.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// A status with `reason` (UPPER_SNAKE) beside its text.
pub fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    status_of(DOMAIN, code, reason, message)
}

/// The same with a reason code of somebody else's domain, where a standard names the codes.
pub fn status_of(domain: &str, code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// The reason code that a status of ours carries.
pub fn reason_of(status: &Status) -> Option<String> {
    let found = status.get_details_error_info()?;
    (found.domain == DOMAIN).then_some(found.reason)
}

/// The text of one item of a batch: its status has no place for details, so the reason code ends the text.
pub fn item_text(reason: &str, message: &str) -> String {
    format!("{message} ({reason})")
}

/// Takes the text of an item apart: what is said, and the reason code if there is one.
pub fn split_item_text(text: &str) -> (&str, Option<&str>) {
    let split = text.strip_suffix(')').and_then(|text| text.rsplit_once(" ("));
    let is_code = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    match split {
        Some((message, reason)) if is_code(reason) => (message, Some(reason)),
        _ => (text, None),
    }
}

/// The domain of our reason codes.
pub const DOMAIN: &str = "kasbah.dev";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_travels_with_the_status() {
        let refused = status(Code::PermissionDenied, "NO_IDENTITY_ISSUED", "no identity issued");
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "no identity issued"));
        assert_eq!(reason_of(&refused).as_deref(), Some("NO_IDENTITY_ISSUED"));
        assert_eq!(reason_of(&Status::internal("x")), None);
    }

    #[test]
    fn the_reason_of_an_item_ends_its_text() {
        let text = item_text("ENTRY_UNKNOWN", "no such entry (of two)");
        assert_eq!(split_item_text(&text), ("no such entry (of two)", Some("ENTRY_UNKNOWN")));
        for text in ["", ")", "()", " ()", "a (b)", "no such entry", "(ENTRY_UNKNOWN)", "a (ENTRY_UNKNOWN) b", "a (_X)"]
        {
            assert_eq!(split_item_text(text), (text, None), "{text}");
        }
    }
}
