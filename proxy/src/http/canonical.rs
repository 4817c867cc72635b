//! Brings a request into the one form that policy, routes, logs and the upstream see.
//!
//! What belongs to the connection is removed before anything of ours is added; what only the mesh may say is removed
//! at its edge; host and path are parsed once, and nothing reads the raw ones after that.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use routing::format::ResponseFlags;
use routing::hcm::{ForwardClientCert, HttpConnectionManager, Underscores};
use routing::request::{CanonicalPath, Host, Scheme};

use super::hygiene::{
    X_FORWARDED_CLIENT_CERT, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_REQUEST_ID, append_forwarded_for, request_id,
    request_id_is_sane, strip_hop_by_hop, strip_internal,
};
use crate::conn::Conn;
use crate::refusal::{self, Refusal};

/// The canonical parts of a request.
#[derive(Debug)]
pub(crate) struct Canonical {
    pub(crate) host: Host,
    pub(crate) path: CanonicalPath,
    pub(crate) scheme: Scheme,
    /// The client's address, after trusted hops.
    pub(crate) remote: SocketAddr,
}

/// Makes the headers of `head` canonical and parses host and path.
pub(crate) fn canonicalize(
    conn: &Rc<Conn>,
    hcm: &HttpConnectionManager,
    head: &mut Parts,
) -> Result<Canonical, Refusal> {
    check_method(head)?;
    let host = Host::of(head).map_err(|error| Refusal::malformed(error.reason()))?;
    let path = parse_path(head, hcm)?;
    if head.headers.len() > usize::try_from(hcm.limits.headers_max).unwrap_or(usize::MAX) {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refusal::new(status, refusal::HEADERS_TOO_MANY, ResponseFlags::DPE));
    }
    check_expectation(&mut head.headers)?;
    if head.version < Version::HTTP_2 {
        strip_hop_by_hop(&mut head.headers);
    }
    // The authority speaks for the host everywhere.
    head.headers.remove(header::HOST);
    let edge = hcm.forwarding.use_remote_address;
    strip_internal(&mut head.headers, edge);
    apply_underscores(&mut head.headers, hcm.underscores)?;
    let remote = trust_forwarded(conn, hcm, &mut head.headers);
    let scheme = settle_scheme(conn, edge, &mut head.headers);
    settle_request_id(conn, hcm, edge, &mut head.headers);
    settle_client_cert(conn, hcm.forward_client_cert, &mut head.headers);
    Ok(Canonical { host, path, scheme, remote })
}

fn check_method(head: &Parts) -> Result<(), Refusal> {
    let refused = head.method == Method::TRACE || (head.method == Method::CONNECT && head.version >= Version::HTTP_2);
    if refused {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, refusal::METHOD_NOT_ALLOWED, ResponseFlags::DPE));
    }
    Ok(())
}

fn parse_path(head: &Parts, hcm: &HttpConnectionManager) -> Result<CanonicalPath, Refusal> {
    let root = PathAndQuery::from_static("/");
    let raw = match head.uri.path_and_query() {
        Some(raw) => raw,
        // CONNECT names an authority only.
        None => &root,
    };
    CanonicalPath::parse_with(raw, &hcm.path).map_err(|error| Refusal::malformed(error.reason()))
}

/// `100-continue` is answered by the codec when the body is first wanted, which is after policy.
fn check_expectation(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let Some(expect) = headers.remove(header::EXPECT) else { return Ok(()) };
    if expect.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::EXPECTATION_FAILED, refusal::HTTP_MALFORMED, ResponseFlags::DPE))
}

fn apply_underscores(headers: &mut HeaderMap, action: Underscores) -> Result<(), Refusal> {
    if action == Underscores::Allow || !headers.keys().any(|name| name.as_str().contains('_')) {
        return Ok(());
    }
    if action == Underscores::Refuse {
        return Err(Refusal::malformed(refusal::HTTP_MALFORMED));
    }
    let names: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    Ok(())
}

/// The client's address by the trusted hops of `x-forwarded-for`; at the edge the address we saw is appended.
fn trust_forwarded(conn: &Conn, hcm: &HttpConnectionManager, headers: &mut HeaderMap) -> SocketAddr {
    let seen = conn.facts.source;
    let forwarding = &hcm.forwarding;
    let hops = usize::try_from(forwarding.trusted_hops).unwrap_or(0);
    // Counted from the right; at the edge the address that we saw is the first hop.
    let skip = if forwarding.use_remote_address { hops.checked_sub(1) } else { Some(hops) };
    let told = skip.and_then(|skip| nth_from_right(headers, skip));
    if forwarding.use_remote_address && !forwarding.skip_append {
        append_forwarded_for(headers, seen.ip());
    }
    told.map_or(seen, |ip| SocketAddr::new(ip, 0))
}

fn nth_from_right(headers: &HeaderMap, skip: usize) -> Option<IpAddr> {
    let value = headers.get_all(&X_FORWARDED_FOR).iter().next_back()?.to_str().ok()?;
    value.rsplit(',').nth(skip)?.trim().parse().ok()
}

fn settle_scheme(conn: &Conn, edge: bool, headers: &mut HeaderMap) -> Scheme {
    let told = headers.get(&X_FORWARDED_PROTO).filter(|_| !edge).map(HeaderValue::as_bytes);
    let scheme = match told {
        Some(b"https") => return Scheme::Https,
        Some(b"http") => return Scheme::Http,
        _ if conn.facts.tls && edge => Scheme::Https,
        _ => Scheme::Http,
    };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme.as_str()));
    scheme
}

fn settle_request_id(conn: &Conn, hcm: &HttpConnectionManager, edge: bool, headers: &mut HeaderMap) {
    let keep = !edge || hcm.request_id.preserve_external;
    if keep && headers.get(&X_REQUEST_ID).is_some_and(request_id_is_sane) {
        return;
    }
    if hcm.request_id.generate {
        let random = &conn.worker.random;
        headers.insert(X_REQUEST_ID, request_id(random.next(), random.next()));
    } else if headers.contains_key(&X_REQUEST_ID) {
        headers.remove(&X_REQUEST_ID);
    }
}

fn settle_client_cert(conn: &Conn, mode: ForwardClientCert, headers: &mut HeaderMap) {
    let own = conn.client_cert.as_ref();
    match (mode, own) {
        (ForwardClientCert::AlwaysForwardOnly, _) | (ForwardClientCert::ForwardOnly, Some(_)) => {}
        (ForwardClientCert::SanitizeSet, Some(own)) => {
            headers.insert(X_FORWARDED_CLIENT_CERT, own.clone());
        }
        (ForwardClientCert::AppendForward, Some(own)) => {
            let joined = match headers.get(&X_FORWARDED_CLIENT_CERT) {
                Some(before) => [before.as_bytes(), b",", own.as_bytes()].concat(),
                None => own.as_bytes().to_vec(),
            };
            if let Ok(value) = HeaderValue::from_bytes(&joined) {
                headers.insert(X_FORWARDED_CLIENT_CERT, value);
            }
        }
        (ForwardClientCert::Sanitize, _) | (_, None) => {
            headers.remove(&X_FORWARDED_CLIENT_CERT);
        }
    }
}
