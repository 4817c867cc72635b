//! What a verified token changes about its request.

use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use http::HeaderValue;
use serde_json::Value;

use super::{JwtGrant, JwtProvider, Location};
use crate::request::TokenClaims;

impl JwtProvider {
    /// Adds headers for the payload and single claims, and takes the token away unless it is to be forwarded.
    pub(super) fn describe(&self, token: &str, claims: &TokenClaims, grant: &mut JwtGrant) {
        grant.clear_route_cache |= self.clear_route_cache;
        if let Some((name, pad)) = &self.payload_header {
            let payload = token.split('.').nth(1).unwrap_or_default();
            let text = if *pad { padded(payload) } else { payload.to_owned() };
            grant.set_headers.extend(HeaderValue::try_from(text).ok().map(|value| (name.clone(), value)));
        }
        for (name, path) in &self.claim_headers {
            let claim = path.iter().try_fold(claims.json(), |value, key| value.as_object()?.get(&**key));
            grant.set_headers.extend(claim.and_then(claim_value).map(|value| (name.clone(), value)));
        }
        if !self.forward {
            self.take_away(grant);
        }
    }

    fn take_away(&self, grant: &mut JwtGrant) {
        for location in &self.locations {
            match location {
                Location::Header { name, .. } => grant.remove_headers.push(name.clone()),
                Location::Param(name) => grant.remove_params.push(name.clone()),
                // A cookie line holds more than the token; the application gets it whole.
                Location::Cookie(_) => {}
            }
        }
    }
}

/// The value in a form that fits a header: plain text as it is, lists and objects encoded, everything else left out.
fn claim_value(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Array(_) | Value::Object(_) => URL_SAFE_NO_PAD.encode(claim.to_string()),
        Value::Null => return None,
    };
    let fits = text.len() <= CLAIM_HEADER_BYTES_MAX && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    HeaderValue::try_from(text).ok().filter(|_| fits)
}

fn padded(payload: &str) -> String {
    URL_SAFE_NO_PAD.decode(payload).map_or_else(|_| payload.to_owned(), |bytes| URL_SAFE.encode(bytes))
}

/// The longest header made of a claim.
pub(crate) const CLAIM_HEADER_BYTES_MAX: usize = 4096;
