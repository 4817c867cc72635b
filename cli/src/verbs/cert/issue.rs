//! `kasbah cert issue`: an administrator has a certificate issued, for a CSR or with a new key.

use std::path::Path;
use std::time::Duration;

use identity::csr::Csr;
use identity::key::PrivateKey;
use identity::{CertificateDer, pem};
use proto::spire::api::server::svid::v1::MintX509svidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::types::X509svid;
use serde_json::json;

use crate::args::{CaArg, OutputArg};
use crate::bundle_message;
use crate::exit::{Exit, Failure, chain};
use crate::output::{self, Format};
use crate::up::layout::write_atomically;
use crate::verbs::{ca, spiffe_id, time_text, wait};

/// What is asked for.
pub(super) struct Order<'a> {
    pub(super) spiffe_id: Option<&'a str>,
    pub(super) csr: Option<&'a Path>,
    pub(super) dns: &'a [String],
    pub(super) ttl: Option<Duration>,
}

pub(super) fn run(ca_arg: &CaArg, order: &Order<'_>, write: Option<&Path>, output: OutputArg) -> Result<(), Failure> {
    let (csr, key) = request(order)?;
    let ttl = order.ttl.map_or(0, |ttl| i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX));
    let (svid, bundle) = wait(async {
        let client = ca(ca_arg).await?;
        let request = MintX509svidRequest { csr, ttl };
        let answer = SvidClient::new(client.channel()).mint_x509svid(request).await?.into_inner();
        let svid = answer.svid.ok_or_else(|| Failure::failed("the CA answered without a certificate"))?;
        Ok((svid, client.bundle().await?))
    })?;
    let chain: Vec<CertificateDer<'_>> = svid.cert_chain.iter().map(|der| der.as_slice().into()).collect();
    let text = pem::certificates(&chain);
    let Some(folder) = write else { return print(&svid, &text, output) };
    std::fs::create_dir_all(folder)?;
    if let Some(key) = key {
        write_atomically(&folder.join("svid.key"), key.pkcs8_pem().as_bytes(), 0o600)?;
    }
    write_atomically(&folder.join("svid.pem"), text.as_bytes(), 0o644)?;
    write_atomically(&folder.join("bundle.pem"), bundle_message::from_wire(&bundle)?.to_pem().as_bytes(), 0o644)?;
    output::message(&format!("wrote the identity to {}", folder.display()));
    print(&svid, "", output)
}

/// The CSR to send, and the key made for it.
fn request(order: &Order<'_>) -> Result<(Vec<u8>, Option<PrivateKey>), Failure> {
    if let Some(file) = order.csr {
        let bad = |why: String| Failure::new(Exit::Data, format!("{}: {why}", file.display()));
        let text = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
        // Decoded here so that a bad one is named by its file.
        Csr::decode_pem(&text).map_err(|error| bad(chain(&error)))?;
        let der = pem::decode_csr(&text).map_err(|error| bad(chain(&error)))?;
        return Ok((der.to_vec(), None));
    }
    let id = order.spiffe_id.unwrap_or_default();
    let id = spiffe_id(id)?;
    let failed = |error: identity::key::KeyError| Failure::failed(chain(&error));
    let key = PrivateKey::generate_p256().map_err(failed)?;
    Ok((key.csr_der_with(Some(&id), order.dns).map_err(failed)?, Some(key)))
}

fn print(svid: &X509svid, pem: &str, output: OutputArg) -> Result<(), Failure> {
    let id = crate::ca_client::id_text(svid.id.as_ref());
    let document = json!({"spiffe_id": id, "not_after": time_text(svid.expires_at), "certificate": pem});
    if pem.is_empty() && output.output == Format::Table {
        output::message(&format!("{id}, until {}", time_text(svid.expires_at)));
        return Ok(());
    }
    output::print(output.output, &document, || pem.to_owned())
}
