//! Pilot's serving half: aggregated discovery (ADS), state of the world and delta, to any number of streams.
//!
//! Each stream is a task with a pure state machine ([`sotw`], [`delta`]) and shares the current [`Generation`]. A slow
//! client blocks nobody: at most one push per stream is under way, and a newer generation replaces one not yet sent.

mod delta;
mod hub;
mod server;
#[cfg(test)]
mod server_tests;
mod sotw;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Any;

use crate::resources::Type;

pub(crate) use hub::{CLIENTS_MAX, Generation, Hub};
pub(crate) use server::AdsServer;

/// What a request turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A first request or a change of subscription.
    Request,
    /// The last answer is in force.
    Acknowledged,
    /// The last answer was refused by the client; the text is the client's.
    Rejected(String),
    /// It answers something older than the last answer.
    Stale,
    /// A resource type that is not served.
    UnknownType,
}

/// How far a client is with one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) kind: Type,
    pub(crate) sent: String,
    pub(crate) acknowledged: String,
    /// The client's words about the last rejected answer, until it accepts one.
    pub(crate) rejected: Option<String>,
}

/// Sent and acknowledged, for one type on one stream.
#[derive(Debug, Default)]
struct Progress {
    nonce: String,
    sent: String,
    acknowledged: String,
    rejected: Option<String>,
    /// Clusters as last sent, and those that the last answer left out.
    held: BTreeMap<String, Any>,
    retired: BTreeMap<String, Any>,
}

impl Progress {
    fn send(&mut self, nonce: &str, version: &str) {
        nonce.clone_into(&mut self.nonce);
        version.clone_into(&mut self.sent);
    }

    fn hear(&mut self, error: Option<&str>) -> Heard {
        if let Some(text) = error {
            let text: String = text.chars().take(ERROR_CHARS_MAX).collect();
            self.rejected = Some(text.clone());
            return Heard::Rejected(text);
        }
        self.acknowledged.clone_from(&self.sent);
        self.rejected = None;
        Heard::Acknowledged
    }

    fn ack(&self, kind: Type) -> Ack {
        Ack { kind, sent: self.sent.clone(), acknowledged: self.acknowledged.clone(), rejected: self.rejected.clone() }
    }
}

/// Nonces of one stream: a counter is enough, since a nonce has no meaning beyond its stream.
#[derive(Debug, Default)]
struct Nonces(u64);

impl Nonces {
    fn next(&mut self) -> String {
        self.0 += 1;
        self.0.to_string()
    }
}

/// Names that one subscription may hold.
pub(crate) const NAMES_MAX: usize = 100_000;
/// Length of a client's rejection that is kept and logged.
const ERROR_CHARS_MAX: usize = 500;
