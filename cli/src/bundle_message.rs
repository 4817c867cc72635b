//! Bundles between SPIRE's messages and the forms that people keep them in.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use identity::bundle::{BUNDLE_BYTES_MAX, BundleError, JwtAuthority, TrustBundle};
use identity::spiffe_id::TrustDomain;
use proto::spire::api::types::{Bundle, JwtKey, WitKey, X509Certificate};

use crate::args::BundleFormat;
use crate::exit::{Exit, Failure, chain};

/// A bundle as the CA told it.
pub(crate) fn from_wire(wire: &Bundle) -> Result<TrustBundle, Failure> {
    let bad = |what: &str, error: &dyn std::error::Error| {
        Failure::new(Exit::Data, format!("the CA's bundle holds a bad {what}: {}", chain(error)))
    };
    let trust_domain = TrustDomain::parse(&wire.trust_domain).map_err(|e| bad("trust domain", &e))?;
    let jwt_authorities = wire
        .jwt_authorities
        .iter()
        .map(|key| JwtAuthority::from_spki_der(&key.key_id, &key.public_key, None))
        .collect::<Result<_, _>>()
        .map_err(|e| bad("JWT authority", &e))?;
    let wit_authorities = wire
        .wit_authorities
        .iter()
        .map(|key| JwtAuthority::from_spki_der(&key.key_id, &key.public_key, None))
        .collect::<Result<_, _>>()
        .map_err(|e| bad("WIT authority", &e))?;
    Ok(TrustBundle {
        trust_domain,
        x509_authorities: wire.x509_authorities.iter().map(|a| a.asn1.clone().into()).collect(),
        jwt_authorities,
        wit_authorities,
        tainted: std::collections::BTreeSet::new(),
        sequence: wire.sequence_number,
        refresh_hint: u64::try_from(wire.refresh_hint).ok().filter(|s| *s > 0).map(Duration::from_secs),
    })
}

/// A bundle for the CA.
pub(crate) fn to_wire(bundle: &TrustBundle) -> Bundle {
    let x509 = bundle.x509_authorities.iter().map(|root| X509Certificate { asn1: root.to_vec(), tainted: false });
    let jwt = bundle.jwt_authorities.iter().map(|key| JwtKey {
        public_key: key.spki_der(),
        key_id: key.key_id.clone(),
        ..JwtKey::default()
    });
    let wit = bundle.wit_authorities.iter().map(|key| WitKey {
        public_key: key.spki_der(),
        key_id: key.key_id.clone(),
        ..WitKey::default()
    });
    Bundle {
        trust_domain: bundle.trust_domain.to_string(),
        x509_authorities: x509.collect(),
        jwt_authorities: jwt.collect(),
        wit_authorities: wit.collect(),
        refresh_hint: bundle.refresh_hint.map_or(0, |hint| i64::try_from(hint.as_secs()).unwrap_or(i64::MAX)),
        sequence_number: bundle.sequence,
    }
}

/// A bundle as a text.
pub(crate) fn text(bundle: &TrustBundle, format: BundleFormat) -> String {
    match format {
        BundleFormat::Pem => bundle.to_pem(),
        BundleFormat::Spiffe => bundle.to_spiffe_json(),
    }
}

/// Reads the bundle of `name` from a file, or from stdin.
pub(crate) fn read(name: &str, format: BundleFormat, path: Option<&Path>) -> Result<Bundle, Failure> {
    let shown = path.map_or_else(|| "stdin".to_owned(), |path| path.display().to_string());
    let name = name.strip_prefix("spiffe://").unwrap_or(name);
    let domain = TrustDomain::parse(name).map_err(|error| {
        Failure::refused(Exit::Usage, error.reason(), format!("`{name}` is no trust domain: {error}"))
    })?;
    let mut content = Vec::new();
    let limit = BUNDLE_BYTES_MAX as u64 + 1;
    match path {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut content)),
        None => std::io::stdin().lock().take(limit).read_to_end(&mut content),
    }
    .map_err(|error| Failure::new(Exit::Data, format!("{shown} cannot be read: {error}")))?;
    let bundle = match format {
        BundleFormat::Pem => TrustBundle::from_pem(domain, &content),
        BundleFormat::Spiffe => TrustBundle::parse_published(domain, &content),
    };
    let refused =
        |error: BundleError| Failure::refused(Exit::Data, error.reason(), format!("{shown}: {}", chain(&error)));
    Ok(to_wire(&bundle.map_err(refused)?))
}
