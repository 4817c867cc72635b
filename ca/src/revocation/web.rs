//! Lists and OCSP over HTTP, for everybody.
//!
//! | path | is |
//! |---|---|
//! | `/crl/ISSUER.crl`, `.pem` | the newest list of the authority with that subject key identifier |
//! | `/crl/ISSUER-N.crl`, `.pem` | a part of it, where it is long |
//! | `/crl` | which lists there are (JSON) |
//! | `/tokens` | SHA-256 of revoked JWT-SVIDs and WIT-SVIDs (JSON) |
//! | `/ocsp` (POST), `/ocsp/BASE64` (GET) | OCSP |

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use identity::pem;
use identity::revocation::{OCSP_REQUEST_BYTES_MAX, OcspError};
use runtime::clock::{from_unix_secs, rfc3339};
use serde_json::json;

use super::{ocsp::Answer, seconds_until};
use crate::certifier::Certifier;

/// All pages.
pub(crate) fn router(certifier: Arc<Certifier>) -> Router {
    Router::new()
        .route("/crl", get(overview))
        .route("/crl/{file}", get(list))
        .route("/tokens", get(tokens))
        .route("/ocsp", post(ask))
        .route("/ocsp/{*request}", get(ask_by_path))
        .layer(DefaultBodyLimit::max(OCSP_REQUEST_BYTES_MAX))
        .with_state(certifier)
}

async fn overview(State(certifier): State<Arc<Certifier>>) -> Response {
    let current = certifier.revocations.current();
    let lists = current.lists.lists.iter().map(|list| {
        let part = if list.part > 0 { format!("-{}", list.part) } else { String::new() };
        json!({
            "issuer": list.issuer_id,
            "part": list.part,
            "number": list.number,
            "this_update": rfc3339(from_unix_secs(list.this_update)),
            "next_update": rfc3339(from_unix_secs(list.next_update)),
            "path": format!("/crl/{}{part}.crl", list.issuer_id),
        })
    });
    Json(json!({ "number": current.lists.number, "lists": lists.collect::<Vec<_>>() })).into_response()
}

async fn list(State(certifier): State<Arc<Certifier>>, Path(file): Path<String>, headers: HeaderMap) -> Response {
    let current = certifier.revocations.current();
    let found = parse_file(&file).and_then(|(issuer, part, form)| {
        let list = current.list(issuer, part);
        Some((list.or_else(|| current.last_list(issuer).filter(|_| part == 0))?, form))
    });
    let Some((list, form)) = found else {
        let lists = "there is no such list; GET /crl names those that there are\n";
        return (StatusCode::NOT_FOUND, lists).into_response();
    };
    let age = seconds_until(list.next_update, certifier.now_secs()).min(LIST_CACHE_SECS_MAX);
    let tag = format!("\"{}-{}\"", list.number, if form == Form::Pem { "pem" } else { "der" });
    let caching = [(ETAG, tag.clone()), (CACHE_CONTROL, format!("public, max-age={age}"))];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| matches(known.as_bytes(), &tag)) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    match form {
        Form::Der => (caching, [(CONTENT_TYPE, "application/pkix-crl")], list.der.clone()).into_response(),
        Form::Pem => {
            (caching, [(CONTENT_TYPE, "application/x-pem-file")], pem::encode("X509 CRL", &list.der)).into_response()
        }
    }
}

async fn tokens(State(certifier): State<Arc<Certifier>>) -> Response {
    let current = certifier.revocations.current();
    let tokens = current
        .tokens_since(0)
        .map(|(hash, not_after)| json!({ "sha256": hash, "not_after": rfc3339(from_unix_secs(not_after)) }));
    let body = json!({ "number": current.lists.number, "tokens": tokens.collect::<Vec<_>>() });
    ([(CACHE_CONTROL, "public, max-age=5")], Json(body)).into_response()
}

async fn ask(State(certifier): State<Arc<Certifier>>, body: Bytes) -> Response {
    answer(certifier.revocations.answer(&certifier, &body).await, &certifier)
}

/// `GET /ocsp/` and the request in base64 (RFC 6960, appendix A.1), with or without padding, as URLs have it or not.
async fn ask_by_path(State(certifier): State<Arc<Certifier>>, Path(request): Path<String>) -> Response {
    let text = request.trim_end_matches('=');
    let der = STANDARD_NO_PAD.decode(text).or_else(|_| URL_SAFE_NO_PAD.decode(text));
    let told = match der.or_else(|_| STANDARD.decode(&request)) {
        Ok(der) => certifier.revocations.answer(&certifier, &der).await,
        Err(_) => Answer { der: OcspError::Malformed.response(), until: 0 },
    };
    answer(told, &certifier)
}

fn answer(answer: Answer, certifier: &Certifier) -> Response {
    let age = seconds_until(answer.until, certifier.now_secs()).min(ANSWER_CACHE_SECS_MAX);
    let caching = match age {
        0 => "no-store".to_owned(),
        age => format!("public, max-age={age}, no-transform, must-revalidate"),
    };
    ([(CONTENT_TYPE, "application/ocsp-response".to_owned()), (CACHE_CONTROL, caching)], answer.der).into_response()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Der,
    Pem,
}

/// Issuer, part and form of `ISSUER.crl`, `ISSUER-3.pem`.
fn parse_file(file: &str) -> Option<(&str, i64, Form)> {
    let (name, form) = match file.rsplit_once('.')? {
        (name, "crl" | "der") => (name, Form::Der),
        (name, "pem") => (name, Form::Pem),
        _ => return None,
    };
    match name.split_once('-') {
        None => Some((name, 0, form)),
        Some((issuer, part)) => part.parse().ok().filter(|part| *part > 0).map(|part| (issuer, part, form)),
    }
}

/// Whether `If-None-Match` names the tag.
fn matches(known: &[u8], tag: &str) -> bool {
    let known = String::from_utf8_lossy(known);
    known.split(',').any(|one| one.trim() == "*" || one.trim().trim_start_matches("W/") == tag)
}

/// Whoever fetches a list asks again after that time: what is revoked meanwhile is on the next one.
const LIST_CACHE_SECS_MAX: u64 = 60;
const ANSWER_CACHE_SECS_MAX: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_issuer_part_and_form() {
        assert_eq!(parse_file("ab12.crl"), Some(("ab12", 0, Form::Der)));
        assert_eq!(parse_file("ab12-3.pem"), Some(("ab12", 3, Form::Pem)));
        for bad in ["ab12", "ab12.txt", "ab12-0.crl", "ab12-x.crl", "ab12-.crl"] {
            assert_eq!(parse_file(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_known_list_is_not_sent_again() {
        assert!(
            matches(b"\"7-der\"", "\"7-der\"") && matches(b"\"1\", W/\"7-der\"", "\"7-der\"") && matches(b"*", "\"7\"")
        );
        assert!(!matches(b"\"6-der\"", "\"7-der\""));
    }
}
