//! `kasbah bundle`: what the trust domain's peers trust, and what it trusts of others.

use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use proto::spire::api::types::Bundle;
use serde_json::{Value, json};

use super::{ca, wait};
use crate::args::{BundleCommand, BundleFormat, DeleteMode};
use crate::bundle_message::{self, from_wire};
use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) fn run(command: &BundleCommand) -> Result<(), Failure> {
    wait(dispatch(command))
}

async fn dispatch(command: &BundleCommand) -> Result<(), Failure> {
    match command {
        BundleCommand::Show { ca: arg, format } => print_whole(&[ca(arg).await?.bundle().await?], *format),
        BundleCommand::List { ca: arg, id, format, output } => {
            let ca = ca(arg).await?;
            let bundles = match id {
                Some(id) => vec![ca.federated_bundle(id).await?],
                None => ca.federated_bundles().await?,
            };
            match (format, id) {
                (Some(format), _) => print_whole(&bundles, *format),
                (None, Some(_)) if output.output == output::Format::Table => print_whole(&bundles, BundleFormat::Pem),
                (None, _) => {
                    let value: Vec<Value> = bundles.iter().map(document).collect::<Result<_, _>>()?;
                    output::print(output.output, &value, || table(&bundles))
                }
            }
        }
        BundleCommand::Set { ca: arg, id, format, path, output } => {
            let bundle = bundle_message::read(id, *format, path.as_deref())?;
            let set = ca(arg).await?.set_federated_bundle(bundle).await?;
            output::print(output.output, &document(&set)?, || table(std::slice::from_ref(&set)))
        }
        BundleCommand::Append { ca: arg, format, path, output } => {
            let ca = ca(arg).await?;
            let own = ca.bundle().await?.trust_domain;
            let bundle = bundle_message::read(&own, *format, path.as_deref())?;
            let now = ca.append_bundle(bundle).await?;
            output::print(output.output, &document(&now)?, || table(std::slice::from_ref(&now)))
        }
        BundleCommand::Delete { ca: arg, id, mode } => {
            let mode = match mode {
                DeleteMode::Restrict => Mode::Restrict,
                DeleteMode::Delete => Mode::Delete,
                DeleteMode::Dissociate => Mode::Dissociate,
            };
            ca(arg).await?.delete_federated_bundle(id, mode).await?;
            output::message(&format!("deleted the bundle of {id}"));
            Ok(())
        }
    }
}

/// One bundle as it is; of several each below its name.
fn print_whole(bundles: &[Bundle], format: BundleFormat) -> Result<(), Failure> {
    for wire in bundles {
        let bundle = from_wire(wire)?;
        if bundles.len() > 1 {
            if format == BundleFormat::Spiffe {
                return Err(Failure::new(Exit::Usage, "SPIFFE documents are printed one at a time")
                    .remedy("name one with --id TD, or use -o json"));
            }
            output::line(&format!("# {}", bundle.trust_domain));
        }
        output::line(bundle_message::text(&bundle, format).trim_end());
    }
    Ok(())
}

/// The bundle as programs read it; `document` is the SPIFFE bundle document.
pub(super) fn document(wire: &Bundle) -> Result<Value, Failure> {
    let spiffe: Value = serde_json::from_str(&from_wire(wire)?.to_spiffe_json()).map_err(anyhow::Error::from)?;
    Ok(json!({
        "trust_domain": wire.trust_domain,
        "sequence": wire.sequence_number,
        "refresh_hint_secs": wire.refresh_hint,
        "x509_authorities": wire.x509_authorities.len(),
        "jwt_authorities": wire.jwt_authorities.len(),
        "wit_authorities": wire.wit_authorities.len(),
        "document": spiffe,
    }))
}

fn table(bundles: &[Bundle]) -> String {
    let rows = bundles.iter().map(|bundle| {
        [
            bundle.trust_domain.clone(),
            bundle.sequence_number.to_string(),
            bundle.x509_authorities.len().to_string(),
            bundle.jwt_authorities.len().to_string(),
            bundle.wit_authorities.len().to_string(),
        ]
    });
    output::table(["TRUST DOMAIN", "SEQUENCE", "ROOTS", "JWT KEYS", "WIT KEYS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_shown_the_same_way_each_time() {
        let bundle =
            Bundle { trust_domain: "other.org".into(), sequence_number: 7, refresh_hint: 300, ..Bundle::default() };
        let value = document(&bundle).unwrap();
        let golden = json!({
            "trust_domain": "other.org", "sequence": 7, "refresh_hint_secs": 300,
            "x509_authorities": 0, "jwt_authorities": 0, "wit_authorities": 0,
            "document": {"keys": [], "spiffe_sequence": 7, "spiffe_refresh_hint": 300},
        });
        assert_eq!(value, golden);
        let golden = "TRUST DOMAIN  SEQUENCE  ROOTS  JWT KEYS  WIT KEYS\nother.org     7         0      0         0";
        assert_eq!(table(&[bundle]), golden);
    }
}
