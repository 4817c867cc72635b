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
}
