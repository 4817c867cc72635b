//! Finding tokens in a request.

use smallvec::SmallVec;

use super::{JwtProvider, Location};
use crate::matcher::cookies;
use crate::request::Request;

/// Every different token at the provider's places, with the place where it was first seen.
pub(super) fn tokens<'r>(provider: &JwtProvider, request: &Request<'r>) -> SmallVec<[&'r str; 2]> {
    let mut found = SmallVec::new();
    for location in &provider.locations {
        location.each_token(request, &mut |token| {
            if !found.contains(&token) {
                found.push(token);
            }
        });
    }
    found
}

impl Location {
    fn each_token<'r>(&self, request: &Request<'r>, take: &mut impl FnMut(&'r str)) {
        match self {
            Self::Header { name, prefix } => {
                let headers: &'r http::HeaderMap = request.headers;
                let values = headers.get_all(name).iter();
                // A value that is not even text is a token that cannot verify.
                let texts = values.map(|value| value.to_str().unwrap_or(NOT_TEXT));
                texts.filter_map(|text| strip(text, prefix)).for_each(take);
            }
            Self::Param(name) => {
                let path: &'r crate::request::CanonicalPath = request.path;
                path.params().filter(|(key, _)| **key == **name).for_each(|(_, value)| take(value));
            }
            Self::Cookie(name) => cookies(request.headers, name).into_iter().for_each(take),
        }
    }
}

/// The token behind a prefix. A scheme such as `Bearer` is compared without regard to case (RFC 9110, 11.1).
fn strip<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    if text == NOT_TEXT {
        return Some(text);
    }
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| text[prefix.len()..].trim_matches(' ')).filter(|token| !token.is_empty())
}

const NOT_TEXT: &str = "\u{fffd}";
