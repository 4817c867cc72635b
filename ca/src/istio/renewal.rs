//! Renewal by certificate: who shows a live certificate of this authority and no token gets the next one for the same identity
//! and a new key, as Istio's CA has it for agents with mounted certificates.
//!
//! What is renewed was handed out by the record: to nobody else, under an entry that still stands, and not revoked.

use std::sync::Arc;

use identity::VerifiedPeer;

use crate::certifier::{Certifier, secs};
use crate::issue::X509Order;
use crate::refusal::Refusal;
use crate::store::IssuanceKind;

/// What the holder of a certificate may have next; its life is the caller's wish.
pub(super) async fn next(
    certifier: &Arc<Certifier>,
    peer: &VerifiedPeer,
    ttl: std::time::Duration,
) -> Result<X509Order, Refusal> {
    let refused = |why: &'static str| {
        tracing::info!(peer = %peer.spiffe_id(), serial = peer.leaf_serial(), why, reason = "RENEWAL_REFUSED", "renewal refused");
        Refusal::Renewal
    };
    let now = secs(certifier.now());
    if peer.not_after() <= certifier.now() || !peer.spiffe_id().is_member_of(&certifier.trust_domain) {
        return Err(refused("the certificate has ended, or is of another trust domain"));
    }
    if certifier.revocations.current().is_revoked(peer.leaf_serial()) {
        return Err(Refusal::CertificateRevoked);
    }
    let record = certifier.store.issued_one(peer.leaf_serial()).await?;
    let record = record.ok_or_else(|| refused("no record of the certificate is kept"))?;
    let renews = [IssuanceKind::X509, IssuanceKind::Csr, IssuanceKind::MintX509];
    if !renews.iter().any(|kind| kind.as_str() == record.kind) {
        return Err(refused("the certificate is a node's or the authority's"));
    }
    let entry_id = record.issuance.entry_id;
    if !entry_id.is_empty() {
        let entry = certifier.store.registry().entry(&entry_id);
        let stands = entry.is_some_and(|entry| entry.is_live(now) && entry.spiffe_id == *peer.spiffe_id());
        if !stands {
            return Err(refused("the entry is gone"));
        }
    }
    Ok(X509Order {
        kind: IssuanceKind::Csr,
        id: peer.spiffe_id().clone(),
        dns_names: peer.dns_names().to_vec(),
        ip_addresses: Vec::new(),
        ttl,
        entry_id,
        caller: peer.spiffe_id().to_string(),
    })
}
