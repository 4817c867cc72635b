//! The SPIFFE bundle map: the bundles of several trust domains in one document, each under its domain's name.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{BUNDLE_BYTES_MAX, BundleError, BundleSet, json};
use crate::spiffe_id::TrustDomain;
use crate::strict_json;

/// Writes the map. How often to fetch is the map's affair, so the bundles' own hints are left out.
pub(super) fn encode(set: &BundleSet) -> Value {
    let bundles = set.iter().map(|(name, bundle)| {
        let mut document = json::encode(bundle);
        if let Some(members) = document.as_object_mut() {
            members.remove(json::REFRESH_HINT);
        }
        (name.as_str().to_owned(), document)
    });
    serde_json::json!({ TRUST_DOMAINS: Value::Object(bundles.collect::<Map<_, _>>()) })
}

/// Reads a map. A name given twice is refused, as is any bundle that would be refused alone.
pub(super) fn decode(document: &[u8]) -> Result<BundleSet, BundleError> {
    if document.len() > BUNDLE_BYTES_MAX {
        return Err(BundleError::TooLong);
    }
    let members = strict_json::parse_object(document).ok_or(BundleError::Malformed("not one JSON object"))?;
    let bundles = members
        .get(TRUST_DOMAINS)
        .and_then(Value::as_object)
        .ok_or(BundleError::Malformed("there is no object trust_domains"))?;
    bundles
        .iter()
        .map(|(name, bundle)| {
            let name = TrustDomain::parse(name).map_err(|_| BundleError::Malformed("a name is no trust domain"))?;
            let members = bundle.as_object().ok_or(BundleError::Malformed("a bundle is not an object"))?;
            let mut bundle = json::decode_members(name, members)?;
            bundle.refresh_hint = None;
            Ok(Arc::new(bundle))
        })
        .collect()
}

pub(super) const TRUST_DOMAINS: &str = "trust_domains";
