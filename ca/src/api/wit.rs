//! WIT-SVIDs: for agents by entry, for administrators by name.

use std::sync::Arc;

use identity::spiffe_id::SpiffeId;
use proto::spire::api::server::svid::v1::{
    MintWitsvidRequest, MintWitsvidResponse, NewWitsvidParams, batch_new_witsvid_response,
};
use proto::spire::api::types;

use super::Caller;
use super::convert::{id_message, workload_of};
use super::svid::{authorized_entry, positive};
use crate::agent::Agent;
use crate::certifier::Certifier;
use crate::entry::Entry;
use crate::issue::IssuedToken;
use crate::issue::wit::{WitOrder, holder_key};
use crate::refusal::Refusal;
use crate::rights::Permit;
use crate::store::{Issuance, IssuanceKind};

/// Signs what the agent may have, records all of it at once, and then hands out; each item has its own outcome.
pub(super) async fn batch(
    certifier: &Certifier,
    agent: &Agent,
    params: &[NewWitsvidParams],
) -> Result<Vec<batch_new_witsvid_response::Result>, Refusal> {
    let (mut results, mut records) = (Vec::with_capacity(params.len()), Vec::with_capacity(params.len()));
    for item in params {
        results.push(match sign_for_entry(certifier, agent, item) {
            Ok((entry, issued, record)) => {
                records.push(record);
                let svid = message(&entry.spiffe_id, issued, &entry.hint);
                let status = types::Status { code: 0, message: "OK".into() };
                batch_new_witsvid_response::Result { status: Some(status), svid: Some(svid) }
            }
            Err(refusal) => {
                certifier.counts.refused(IssuanceKind::Wit.as_str(), refusal.reason());
                let (agent, reason) = (&agent.id, refusal.reason());
                tracing::info!(%agent, entry_id = item.entry_id, reason, error = %refusal, "issuance refused");
                batch_new_witsvid_response::Result { status: Some(refusal.item_status()), svid: None }
            }
        });
    }
    certifier.record(records).await?;
    Ok(results)
}

fn sign_for_entry(
    certifier: &Certifier,
    agent: &Agent,
    params: &NewWitsvidParams,
) -> Result<(Arc<Entry>, IssuedToken, Issuance), Refusal> {
    let entry = authorized_entry(certifier, agent, &params.entry_id)?;
    let order = WitOrder {
        kind: IssuanceKind::Wit,
        id: entry.spiffe_id.clone(),
        key: holder_key(&params.public_key, &params.signing_algorithm)?,
        // A WIT is bound to a key, so it lives as certificates do, and not as bearer tokens.
        ttl: certifier.ttls.or_default(entry.x509_svid_ttl, certifier.ttls.wit_svid),
        entry_id: entry.id.clone(),
        caller: agent.id.to_string(),
    };
    let (issued, record) = certifier.sign_wit(order)?;
    Ok((entry, issued, record))
}

pub(super) async fn mint(
    certifier: &Certifier,
    caller: &Caller,
    permit: &Permit,
    request: MintWitsvidRequest,
) -> Result<MintWitsvidResponse, Refusal> {
    let id = workload_of("id", request.id.as_ref(), &certifier.trust_domain)?;
    permit.check(&id)?;
    let order = WitOrder {
        kind: IssuanceKind::MintWit,
        id: id.clone(),
        key: holder_key(&request.public_key, &request.signing_algorithm)?,
        ttl: certifier.ttls.or_default(positive(request.ttl)?, certifier.ttls.wit_svid),
        entry_id: String::new(),
        caller: caller.name(),
    };
    let issued = certifier.mint_wit(caller, order).await?;
    Ok(MintWitsvidResponse { svid: Some(message(&id, issued, "")) })
}

fn message(id: &SpiffeId, issued: IssuedToken, hint: &str) -> types::Witsvid {
    types::Witsvid {
        token: issued.token,
        id: Some(id_message(id)),
        expires_at: issued.expires_at,
        issued_at: issued.issued_at,
        hint: hint.to_owned(),
    }
}
