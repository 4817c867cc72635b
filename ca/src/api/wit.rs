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
use crate::cores;
use crate::entry::Entry;
use crate::issue::wit::{WitOrder, holder_key};
use crate::issue::{Admission, IssuedToken};
use crate::refusal::Refusal;
use crate::rights::Permit;
use crate::store::IssuanceKind;

/// Signs what the agent may have, records all of it at once, and then hands out; each item has its own outcome. The cores
/// share the work but for the policy, whose quotas count in the order of the items.
pub(super) async fn batch(
    certifier: &Arc<Certifier>,
    agent: &Arc<Agent>,
    params: Vec<NewWitsvidParams>,
) -> Result<Vec<batch_new_witsvid_response::Result>, Refusal> {
    let coming = certifier.store.coming();
    let entry_ids: Vec<String> = params.iter().map(|item| item.entry_id.clone()).collect();
    let (shared, asking) = (certifier.clone(), agent.clone());
    let asked = cores::each(params, move |item| order_of(&shared, &asking, &item)).await?;
    let admit = |asked: Result<Asked, Refusal>| {
        let (entry, order) = asked?;
        Ok((certifier.admit_wit(&order)?, (entry, order)))
    };
    let admitted: Vec<_> = asked.into_iter().map(admit).collect();
    let shared = certifier.clone();
    let sign = move |admitted: Result<(Admission, Asked), Refusal>| {
        let (admission, (entry, order)) = admitted?;
        let (issued, record) = shared.sign_admitted_wit(order, &admission)?;
        Ok((entry, issued, record))
    };
    let signed: Vec<Result<_, Refusal>> = cores::each(admitted, sign).await?;
    let (mut results, mut records) = (Vec::with_capacity(signed.len()), Vec::with_capacity(signed.len()));
    for (signed, entry_id) in signed.into_iter().zip(entry_ids) {
        results.push(match signed {
            Ok((entry, issued, record)) => {
                records.push(record);
                let svid = message(&entry.spiffe_id, issued, &entry.hint);
                let status = types::Status { code: 0, message: "OK".into() };
                batch_new_witsvid_response::Result { status: Some(status), svid: Some(svid) }
            }
            Err(refusal) => {
                certifier.counts.refused(IssuanceKind::Wit.as_str(), refusal.reason());
                let (agent, reason) = (&agent.id, refusal.reason());
                tracing::info!(%agent, entry_id, reason, error = %refusal, "issuance refused");
                batch_new_witsvid_response::Result { status: Some(refusal.item_status()), svid: None }
            }
        });
    }
    drop(coming);
    certifier.record(records).await?;
    Ok(results)
}

/// What an agent asks for and its entry allows.
type Asked = (Arc<Entry>, WitOrder);

fn order_of(certifier: &Certifier, agent: &Agent, params: &NewWitsvidParams) -> Result<Asked, Refusal> {
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
    Ok((entry, order))
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
