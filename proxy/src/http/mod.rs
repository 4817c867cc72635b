//! HTTP connections and the requests on them.

pub(crate) mod audit;
pub(crate) mod body;
pub(crate) mod budget;
pub(crate) mod canonical;
pub(crate) mod exchange;
pub(crate) mod filters;
pub(crate) mod forward;
pub(crate) mod grpc;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod hcm;
pub(crate) mod hygiene;
pub(crate) mod jwt;
pub(crate) mod mirror;
pub(crate) mod pump;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod reply;
pub(crate) mod tunnel;

use std::rc::Rc;

use identity::tls::{ALPN_H2, ALPN_HTTP11};
use routing::hcm::Codec;

use self::hcm::HcmState;
use crate::conn::Conn;
use crate::io::Io;
use crate::refusal;
use crate::serve::Rejected;
use crate::sniff::http::HttpKind;
use crate::sniff::sniff_http;

/// Serves HTTP on `io`; `kind` is what sniffing found on a plain connection.
pub(crate) async fn serve(
    conn: Rc<Conn>,
    hcm: Rc<HcmState>,
    mut io: Io,
    kind: Option<HttpKind>,
) -> Result<(), Rejected> {
    let timeouts = &hcm.config.timeouts;
    conn.life().limit(timeouts.idle, timeouts.connection);
    let negotiated = conn.facts.alpn.as_deref().map(str::as_bytes);
    let kind = match (hcm.config.codec, negotiated, kind) {
        (Codec::Http1, ..) | (_, Some(ALPN_HTTP11), _) => HttpKind::Http1,
        (Codec::Http2, ..) | (_, Some(ALPN_H2), _) => HttpKind::Http2,
        (_, _, Some(kind)) => kind,
        (_, _, None) => {
            let sniffed = tokio::time::timeout(h1::HEAD_TIMEOUT, sniff_http(&mut io)).await;
            let sniffed = sniffed.map_err(|_| Rejected::new(refusal::SNIFF_TIMEOUT, "the client said nothing"))?;
            let (kind, prefix) = sniffed.map_err(|error| Rejected::new("CLIENT_GONE", error.to_string()))?;
            io = io.unread(prefix);
            kind
        }
    };
    match kind {
        HttpKind::Http2 => h2::serve(conn, hcm, io).await,
        // What is no HTTP at all is answered 400 by the parser.
        HttpKind::Http1 | HttpKind::Other => h1::serve(conn, hcm, io).await,
    }
}
