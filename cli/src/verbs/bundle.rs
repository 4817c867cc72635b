//! `kasbah bundle`: what the trust domain's peers trust.

use std::time::Duration;

use identity::bundle::{JwtAuthority, TrustBundle};
use identity::spiffe_id::TrustDomain;
use proto::spire::api::types::Bundle;

use super::{ca, wait};
use crate::args::{BundleCommand, BundleFormat};
use crate::exit::{Exit, Failure, chain};
use crate::output;

pub(crate) fn run(command: &BundleCommand) -> Result<(), Failure> {
    let BundleCommand::Show { ca: arg, format } = command;
    let bundle = from_wire(&wait(async { ca(arg).await?.bundle().await })?)?;
    output::line(
        match format {
            BundleFormat::Pem => bundle.to_pem(),
            BundleFormat::Spiffe => bundle.to_spiffe_json(),
        }
        .trim_end(),
    );
    Ok(())
}

pub(super) fn from_wire(wire: &Bundle) -> Result<TrustBundle, Failure> {
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
