//! Answers of our own: refusals and direct responses, in the language of the request.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::response::Parts;
use http::{Response, StatusCode};

use super::body::Body;
use super::hygiene::X_KASBAH_REASON;
use crate::refusal::Refusal;

/// An answer that is on its way to downstream.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: Parts,
    pub(crate) body: Body,
}

/// The answer to a refused request.
pub(crate) fn refuse(refusal: &Refusal, grpc: bool, say_reason: bool) -> Reply {
    let mut reply = if grpc {
        grpc_status(grpc_code(refusal.status, refusal.reason), refusal.reason)
    } else {
        text(refusal.status, Bytes::from_static(refusal.reason.as_bytes()))
    };
    if refusal.status == StatusCode::UNAUTHORIZED {
        reply.head.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"mesh\""));
    }
    self::say_reason(&mut reply, refusal.reason, say_reason);
    reply
}

/// Adds the reason, where that is wanted.
pub(crate) fn say_reason(reply: &mut Reply, reason: &'static str, wanted: bool) {
    if wanted {
        reply.head.headers.insert(X_KASBAH_REASON, HeaderValue::from_static(reason));
    }
}

/// A plain text answer.
pub(crate) fn text(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = empty(status);
    if !body.is_empty() {
        reply.head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        reply.head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        reply.body = Body::Full(body);
    }
    reply
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Reply {
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = status;
    Reply { head, body: Body::Empty }
}

/// A gRPC status in the form that has nothing but headers.
pub(crate) fn grpc_status(code: u16, message: &str) -> Reply {
    let mut reply = empty(StatusCode::OK);
    reply.head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    reply.head.headers.insert(GRPC_STATUS, HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(message) {
        reply.head.headers.insert(GRPC_MESSAGE, message);
    }
    reply
}

/// The gRPC status for an HTTP status of ours.
fn grpc_code(status: StatusCode, reason: &str) -> u16 {
    match status.as_u16() {
        400 | 431 => 3,
        401 => 16,
        403 => 7,
        404 | 405 => 12,
        429 => 8,
        504 => 4,
        _ if reason == crate::refusal::HOST_NOT_IN_MESH => 5,
        502 | 503 => 14,
        _ => 2,
    }
}

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_client_gets_a_grpc_status() {
        let refusal = Refusal::no_endpoint();
        let reply = refuse(&refusal, true, true);
        assert_eq!(reply.head.status, 200);
        assert_eq!(reply.head.headers["grpc-status"], "14");
        assert_eq!(reply.head.headers["grpc-message"], "NO_HEALTHY_ENDPOINT");
        assert_eq!(reply.head.headers["x-kasbah-reason"], "NO_HEALTHY_ENDPOINT");
    }

    #[test]
    fn the_reason_header_can_be_left_out() {
        let reply = refuse(&Refusal::no_route(), false, false);
        assert_eq!(reply.head.status, 404);
        assert!(!reply.head.headers.contains_key("x-kasbah-reason"));
    }
}
