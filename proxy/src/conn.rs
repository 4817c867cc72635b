//! One downstream connection, as the requests on it see it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use http::HeaderValue;
use identity::VerifiedPeer;
use identity::digest::hex;
use routing::listener::Direction;
use routing::request::Connection;

use crate::http::hygiene::ClientCert;
use crate::obs::labels::{Security, WorkloadLabels};
use crate::worker::conns::{Life, Place};
use crate::worker::state::Worker;

/// A connection being served.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) worker: Rc<Worker>,
    /// Addresses, server name and peer, in the form that policy reads.
    pub(crate) facts: Connection,
    /// Where the client wanted to go, if the kernel brought it here instead.
    pub(crate) original: Option<SocketAddr>,
    /// Towards the local workload.
    pub(crate) inbound: bool,
    /// Who connected, for metrics.
    pub(crate) peer_labels: WorkloadLabels,
    pub(crate) security: Security,
    /// What decides the labels of a request on this connection, by number.
    pub(crate) labels_key: u64,
    /// What `x-forwarded-client-cert` says of the peer.
    pub(crate) client_cert: Option<HeaderValue>,
    /// Requests so far.
    pub(crate) requests: Cell<u32>,
    place: Place,
}

impl Conn {
    pub(crate) fn new(
        worker: Rc<Worker>,
        place: Place,
        facts: Connection,
        local: SocketAddr,
        peer: Option<&VerifiedPeer>,
    ) -> Self {
        let inbound = place.life.listener.listener.direction == Direction::Inbound;
        let peer_labels =
            peer.map(|peer| WorkloadLabels::from_spiffe_id(peer.spiffe_id().as_str())).unwrap_or_default();
        let client_cert = peer.and_then(|peer| {
            let own = worker.process.identity.svid_now();
            let hash = hex(peer.fingerprint_sha256());
            let cert = ClientCert {
                by: own.as_ref().map(|svid| svid.id().as_str()),
                hash: &hash,
                uri: peer.spiffe_id().as_str(),
            };
            HeaderValue::from_str(&cert.element()).ok()
        });
        let security = match (inbound, peer) {
            (false, _) => Security::Unknown,
            (true, Some(_)) => Security::MutualTls,
            (true, None) => Security::None,
        };
        let labels_key = worker.labels_key(&peer_labels, inbound, security);
        let original = Some(facts.destination).filter(|wanted| *wanted != local);
        Self {
            worker,
            facts,
            original,
            inbound,
            peer_labels,
            security,
            labels_key,
            client_cert,
            requests: Cell::new(0),
            place,
        }
    }

    pub(crate) fn life(&self) -> &Rc<Life> {
        &self.place.life
    }
}
