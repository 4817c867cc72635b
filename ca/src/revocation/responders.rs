//! The authorities that answer about their certificates: every intermediate that has not ended. Roots sign their lists and
//! are closed again.

use std::sync::Arc;

use arc_swap::ArcSwap;
use identity::authority::X509Authority;
use identity::revocation::CertId;

use crate::authorities::Signing;

/// Intermediates by which OCSP is answered.
#[derive(Debug, Default)]
pub(super) struct Responders(ArcSwap<Vec<Arc<X509Authority>>>);

impl Responders {
    /// Whether all that there are now are known.
    pub(super) fn know(&self, signing: &Signing, now: i64) -> bool {
        let known = self.0.load();
        signing.intermediate_ids(now).all(|id| known.iter().any(|one| one.subject_key_id() == id))
    }

    /// Keeps the intermediates among opened authorities.
    pub(super) fn take_up(&self, issuers: &[Arc<X509Authority>]) {
        let intermediates = issuers.iter().filter(|issuer| !issuer.is_root()).cloned();
        self.0.store(Arc::new(intermediates.collect()));
    }

    /// The issuer that a question is about.
    pub(super) fn of(&self, cert: &CertId) -> Option<Arc<X509Authority>> {
        self.0.load().iter().find(|issuer| cert.is_by(issuer.certificate())).cloned()
    }
}
