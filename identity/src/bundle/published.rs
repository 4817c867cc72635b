//! What a bundle endpoint publishes: one bundle, or a bundle map with that of the wanted trust domain in it.
//!
//! Neither form proves whose bundle it is; the endpoint was authenticated, and the name is the asker's. What contradicts
//! the name is refused: a map without it, and a root that carries the ID of another trust domain.

use std::time::Duration;

use serde_json::Value;

use super::json::{self, REFRESH_HINT};
use super::map::TRUST_DOMAINS;
use super::{BUNDLE_BYTES_MAX, BundleError, TrustBundle};
use crate::spiffe_id::TrustDomain;
use crate::strict_json;
use crate::summary::CertificateSummary;

pub(super) fn decode(trust_domain: TrustDomain, document: &[u8]) -> Result<TrustBundle, BundleError> {
    if document.len() > BUNDLE_BYTES_MAX {
        return Err(BundleError::TooLong);
    }
    let members = strict_json::parse_object(document).ok_or(BundleError::Malformed("not one JSON object"))?;
    let bundle = match members.get(TRUST_DOMAINS) {
        None => json::decode_members(trust_domain, &members)?,
        Some(map) => {
            let map = map.as_object().ok_or(BundleError::Malformed("trust_domains is no object"))?;
            let own = map.get(trust_domain.as_str()).ok_or_else(|| BundleError::NotInMap(trust_domain.clone()))?;
            let own = own.as_object().ok_or(BundleError::Malformed("a bundle is not an object"))?;
            let mut bundle = json::decode_members(trust_domain, own)?;
            // How often to fetch is the map's affair.
            bundle.refresh_hint = members.get(REFRESH_HINT).and_then(Value::as_u64).map(Duration::from_secs);
            bundle
        }
    };
    check_roots(&bundle)?;
    Ok(bundle)
}

/// A root may carry the ID of its trust domain (X.509-SVID, section 4.1); then it must be this one.
fn check_roots(bundle: &TrustBundle) -> Result<(), BundleError> {
    for root in &bundle.x509_authorities {
        let Some(id) = CertificateSummary::decode(root).ok().and_then(|root| root.spiffe_id) else { continue };
        if !id.is_member_of(&bundle.trust_domain) {
            return Err(BundleError::OtherTrustDomain(id.trust_domain_name().to_owned()));
        }
    }
    Ok(())
}
