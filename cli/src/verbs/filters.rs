//! Filters: pure functions from stdin to stdout, one answer line per input line; no server, no network, no state.

pub(crate) mod authz;
pub(crate) mod cert;
pub(crate) mod jws;
pub(crate) mod jwt;
mod parallel;

use std::io::{BufRead, BufWriter, Write};

use identity::reason::ReasonDoc;
use identity::spiffe_id::SpiffeId;

use crate::exit::Failure;

/// `kasbah spiffe-id --lines`: a JSON string in, `ok TRUST_DOMAIN PATH` or `err CODE` out.
pub(crate) fn spiffe_id() -> Result<(), Failure> {
    lines(|line| {
        let Ok(text) = serde_json::from_slice::<String>(line) else { return "err BAD_JSON".to_owned() };
        match SpiffeId::parse(&text) {
            Ok(id) => format!("ok {} {}", id.trust_domain(), id.path()),
            Err(error) => format!("err {}", error.reason()),
        }
    })
}

/// Answers each line of stdin; flushed at the end of input. A closed stdout ends the run quietly.
fn lines(mut answer: impl FnMut(&[u8]) -> String) -> Result<(), Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().split(b'\n') {
        let line = line?;
        if writeln!(out, "{}", answer(&line)).is_err() {
            return Ok(());
        }
    }
    let _ = out.flush();
    Ok(())
}

/// The codes that only filters give, in lexical order.
pub(crate) const REASONS: &[ReasonDoc] = &[
    ReasonDoc {
        code: "BAD_EXPECTATION",
        cause: "A line's issuer, audiences or now is not of its kind.",
        remedy: "Write issuer as a text, audiences as a list of texts, now as RFC 3339 with an offset.",
    },
    ReasonDoc {
        code: "BAD_JSON",
        cause: "A line is not JSON of the shape that the filter reads, or names a member twice.",
        remedy: "Write one JSON value a line, as the filter's help shows it.",
    },
];
