//! Why a server of SPIRE refuses an agent, as a reason code: SPIRE puts a detail of its own beside one text for all refusals.

use prost::Message;
use proto::spire::api::types::PermissionDeniedDetails;
use proto::spire::api::types::permission_denied_details::Reason;
use tonic::Status;

/// The reason code that the same refusal has at our CA.
pub(super) fn reason_of(status: &Status) -> Option<&'static str> {
    let whole = tonic_types::Status::decode(status.details()).ok()?;
    let detail = whole.details.iter().find(|detail| detail.type_url == DENIED_TYPE)?;
    match PermissionDeniedDetails::decode(detail.value.as_slice()).ok()?.reason() {
        Reason::Unknown => None,
        Reason::AgentExpired => Some("AGENT_EXPIRED"),
        Reason::AgentNotAttested => Some("AGENT_NOT_ATTESTED"),
        Reason::AgentNotActive => Some("AGENT_NOT_ACTIVE"),
        Reason::AgentBanned => Some("AGENT_BANNED"),
        Reason::AgentMustReattest => Some("AGENT_MUST_REATTEST"),
    }
}

const DENIED_TYPE: &str = "type.googleapis.com/spire.api.types.PermissionDeniedDetails";

#[cfg(test)]
pub(crate) mod tests {
    use tonic::Code;

    use super::*;

    /// What `spire-server` answers to a node that was evicted (2) or banned (4).
    pub(crate) fn denied_status(method: &str, reason: u8) -> Status {
        let text = format!("authorization denied for method {method}");
        let detail = prost_types::Any { type_url: DENIED_TYPE.into(), value: vec![0x08, reason] };
        let code = Code::PermissionDenied;
        let whole = tonic_types::Status { code: code as i32, message: text.clone(), details: vec![detail] };
        Status::with_details(code, text, whole.encode_to_vec().into())
    }

    #[test]
    fn the_detail_of_spire_is_a_reason_code() {
        let check = |reason, expected| assert_eq!(reason_of(&denied_status("/a.B/C", reason)), expected, "{reason}");
        check(0, None);
        check(1, Some("AGENT_EXPIRED"));
        check(2, Some("AGENT_NOT_ATTESTED"));
        check(4, Some("AGENT_BANNED"));
        check(5, Some("AGENT_MUST_REATTEST"));
        check(9, None);
        assert_eq!(reason_of(&Status::permission_denied("no")), None);
        let torn = Status::with_details(Code::PermissionDenied, "no", vec![0x1a, 0xff, 0x01].into());
        assert_eq!(reason_of(&torn), None);
    }
}
