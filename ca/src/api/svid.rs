//! Issuance: for agents by entry, for administrators by name.

use std::sync::Arc;
use std::time::Duration;

use identity::csr::Csr;
use identity::spiffe_id::SpiffeId;
use proto::spire::api::server::svid::v1::{
    BatchNewWitsvidRequest, BatchNewWitsvidResponse, BatchNewX509svidRequest, BatchNewX509svidResponse,
    MintJwtsvidRequest, MintJwtsvidResponse, MintWitsvidRequest, MintWitsvidResponse, MintX509svidRequest,
    MintX509svidResponse, NewDownstreamX509caRequest, NewDownstreamX509caResponse, NewJwtsvidRequest,
    NewJwtsvidResponse, NewX509svidParams, batch_new_x509svid_response, svid_server,
};
use proto::spire::api::types;
use tonic::{Request, Response, Status};

use super::convert::{audiences_of, check_not_reserved, id_message, workload_of};
use super::{Api, Caller, wit};
use crate::agent::Agent;
use crate::certifier::Certifier;
use crate::cores;
use crate::entry::Entry;
use crate::issue::{Admission, IssuedToken, IssuedX509, JwtOrder, X509Order};
use crate::names;
use crate::refusal::Refusal;
use crate::rights::Permit;
use crate::store::IssuanceKind;

#[tonic::async_trait]
impl svid_server::Svid for Api {
    async fn mint_x509svid(
        &self,
        request: Request<MintX509svidRequest>,
    ) -> Result<Response<MintX509svidResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            mint_x509(&self.certifier, &caller, &permit, request.into_inner()).await
        };
        self.answer("MintX509SVID", &caller, work).await
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            mint_jwt(&self.certifier, &caller, &permit, request.into_inner()).await
        };
        self.answer("MintJWTSVID", &caller, work).await
    }

    async fn mint_witsvid(
        &self,
        request: Request<MintWitsvidRequest>,
    ) -> Result<Response<MintWitsvidResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            wit::mint(&self.certifier, &caller, &permit, request.into_inner()).await
        };
        self.answer("MintWITSVID", &caller, work).await
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<BatchNewX509svidRequest>,
    ) -> Result<Response<BatchNewX509svidResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let agent = self.agent(&caller).await?;
            let params = request.into_inner().params;
            if params.len() > BATCH_SVIDS_MAX {
                return Err(Refusal::TooMany(BATCH_SVIDS_MAX));
            }
            Ok(BatchNewX509svidResponse { results: batch(&self.certifier, &agent, params).await? })
        };
        self.answer("BatchNewX509SVID", &caller, work).await
    }

    async fn new_jwtsvid(&self, request: Request<NewJwtsvidRequest>) -> Result<Response<NewJwtsvidResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let agent = self.agent(&caller).await?;
            let issued = new_jwt(&self.certifier, &agent, request.into_inner()).await;
            if let Err(refusal) = &issued {
                self.certifier.counts.refused(IssuanceKind::Jwt.as_str(), refusal.reason());
            }
            issued
        };
        self.answer("NewJWTSVID", &caller, work).await
    }

    async fn batch_new_witsvid(
        &self,
        request: Request<BatchNewWitsvidRequest>,
    ) -> Result<Response<BatchNewWitsvidResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let agent = self.agent(&caller).await?;
            let params = request.into_inner().params;
            if params.len() > BATCH_SVIDS_MAX {
                return Err(Refusal::TooMany(BATCH_SVIDS_MAX));
            }
            Ok(BatchNewWitsvidResponse { results: wit::batch(&self.certifier, &agent, params).await? })
        };
        self.answer("BatchNewWITSVID", &caller, work).await
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = self.new_downstream(&caller, request.into_inner());
        self.answer("NewDownstreamX509CA", &caller, work).await
    }
}

/// Signs what the agent may have, records all of it at once, and then hands out; each item has its own outcome. The cores
/// share the work but for the policy, whose quotas count in the order of the items.
async fn batch(
    certifier: &Arc<Certifier>,
    agent: &Arc<Agent>,
    params: Vec<NewX509svidParams>,
) -> Result<Vec<batch_new_x509svid_response::Result>, Refusal> {
    let coming = certifier.store.coming();
    let entry_ids: Vec<String> = params.iter().map(|item| item.entry_id.clone()).collect();
    let (shared, asking) = (certifier.clone(), agent.clone());
    let asked = cores::each(params, move |item| order_of(&shared, &asking, &item)).await?;
    let admit = |asked: Result<Asked, Refusal>| {
        let asked = asked?;
        Ok((certifier.admit_x509(&asked.order, &asked.csr)?, asked))
    };
    let admitted: Vec<_> = asked.into_iter().map(admit).collect();
    let shared = certifier.clone();
    let sign = move |admitted: Result<(Admission, Asked), Refusal>| {
        let (admission, asked) = admitted?;
        let (issued, record) = shared.sign_admitted(&asked.order, &asked.csr, &admission)?;
        Ok((asked.entry, issued, record))
    };
    let signed: Vec<Result<_, Refusal>> = cores::each(admitted, sign).await?;
    let (mut results, mut records) = (Vec::with_capacity(signed.len()), Vec::with_capacity(signed.len()));
    for (signed, entry_id) in signed.into_iter().zip(entry_ids) {
        results.push(match signed {
            Ok((entry, issued, record)) => {
                records.push(record);
                let svid = x509_message(&entry.spiffe_id, issued, &entry.hint);
                let status = types::Status { code: 0, message: "OK".into() };
                batch_new_x509svid_response::Result { status: Some(status), svid: Some(svid) }
            }
            Err(refusal) => {
                certifier.counts.refused(IssuanceKind::X509.as_str(), refusal.reason());
                let (agent, reason) = (&agent.id, refusal.reason());
                tracing::info!(%agent, entry_id, reason, error = %refusal, "issuance refused");
                batch_new_x509svid_response::Result { status: Some(refusal.item_status()), svid: None }
            }
        });
    }
    drop(coming);
    certifier.record(records).await?;
    Ok(results)
}

/// What an agent asks for and its entry allows.
struct Asked {
    entry: Arc<Entry>,
    csr: Csr,
    order: X509Order,
}

fn order_of(certifier: &Certifier, agent: &Agent, params: &NewX509svidParams) -> Result<Asked, Refusal> {
    let entry = authorized_entry(certifier, agent, &params.entry_id)?;
    let csr = Csr::decode_der(&params.csr).map_err(Refusal::Csr)?;
    let order = X509Order {
        kind: IssuanceKind::X509,
        id: entry.spiffe_id.clone(),
        dns_names: entry.dns_names.clone(),
        ip_addresses: Vec::new(),
        ttl: ttl_within(certifier, &entry, entry.x509_svid_ttl, certifier.ttls.x509_svid),
        entry_id: entry.id.clone(),
        caller: agent.id.to_string(),
    };
    Ok(Asked { entry, csr, order })
}

/// The entry, if the agent may issue for it. Whether another agent's entry exists is not told.
pub(super) fn authorized_entry(certifier: &Certifier, agent: &Agent, id: &str) -> Result<Arc<Entry>, Refusal> {
    let registry = certifier.store.registry();
    let entry = registry.entry(id).ok_or(Refusal::EntryNotAuthorized)?;
    if registry.is_authorized(agent, &entry, certifier.now_secs()) {
        Ok(entry)
    } else {
        Err(Refusal::EntryNotAuthorized)
    }
}

/// The life of an SVID: what the entry asks for, but no longer than the entry itself.
fn ttl_within(certifier: &Certifier, entry: &Entry, asked_secs: i64, default: Duration) -> Duration {
    let ttl = certifier.ttls.or_default(asked_secs, default);
    match u64::try_from(entry.expires_at.saturating_sub(certifier.now_secs())) {
        Ok(left) if entry.expires_at != 0 => ttl.min(Duration::from_secs(left.max(1))),
        _ => ttl,
    }
}

async fn new_jwt(
    certifier: &Certifier,
    agent: &Agent,
    request: NewJwtsvidRequest,
) -> Result<NewJwtsvidResponse, Refusal> {
    let entry = authorized_entry(certifier, agent, &request.entry_id)?;
    let order = JwtOrder {
        kind: IssuanceKind::Jwt,
        id: entry.spiffe_id.clone(),
        audiences: audiences_of(request.audience)?,
        ttl: ttl_within(certifier, &entry, entry.jwt_svid_ttl, certifier.ttls.jwt_svid),
        with_token_id: entry.jwt_jti,
        entry_id: entry.id.clone(),
        caller: agent.id.to_string(),
    };
    let issued = certifier.issue_jwt(order).await?;
    Ok(NewJwtsvidResponse { svid: Some(jwt_message(&entry.spiffe_id, issued, &entry.hint)) })
}

async fn mint_x509(
    certifier: &Certifier,
    caller: &Caller,
    permit: &Permit,
    request: MintX509svidRequest,
) -> Result<MintX509svidResponse, Refusal> {
    let csr = Csr::decode_der(&request.csr).map_err(Refusal::Csr)?;
    // The one case where the request names the identity: the caller may give out any.
    let [uri] = csr.uris() else { return Err(Refusal::CsrNames) };
    let field = "csr";
    let id = SpiffeId::parse(uri).map_err(|source| Refusal::Id { field, source })?;
    if !id.is_member_of(&certifier.trust_domain) || id.path().is_empty() {
        return Err(Refusal::IdRefused { field, problem: "is not the ID of a workload of this trust domain" });
    }
    check_not_reserved(field, &id)?;
    permit.check(&id)?;
    if !csr.dns_names().iter().all(|name| names::is_dns_name(name)) {
        return Err(Refusal::CsrNames);
    }
    let order = X509Order {
        kind: IssuanceKind::MintX509,
        id: id.clone(),
        dns_names: csr.dns_names().to_vec(),
        ip_addresses: Vec::new(),
        ttl: certifier.ttls.or_default(positive(request.ttl)?, certifier.ttls.x509_svid),
        entry_id: String::new(),
        caller: caller.name(),
    };
    let issued = certifier.mint_x509(caller, order, &csr).await?;
    Ok(MintX509svidResponse { svid: Some(x509_message(&id, issued, "")) })
}

async fn mint_jwt(
    certifier: &Certifier,
    caller: &Caller,
    permit: &Permit,
    request: MintJwtsvidRequest,
) -> Result<MintJwtsvidResponse, Refusal> {
    let id = workload_of("id", request.id.as_ref(), &certifier.trust_domain)?;
    permit.check(&id)?;
    let order = JwtOrder {
        kind: IssuanceKind::MintJwt,
        id: id.clone(),
        audiences: audiences_of(request.audience)?,
        ttl: certifier.ttls.or_default(positive(request.ttl)?, certifier.ttls.jwt_svid),
        with_token_id: false,
        entry_id: String::new(),
        caller: caller.name(),
    };
    let issued = certifier.mint_jwt(caller, order).await?;
    Ok(MintJwtsvidResponse { svid: Some(jwt_message(&id, issued, "")) })
}

pub(super) fn positive(ttl: i32) -> Result<i64, Refusal> {
    if ttl < 0 { Err(Refusal::Ttl) } else { Ok(i64::from(ttl)) }
}

pub(super) fn x509_message(id: &SpiffeId, issued: IssuedX509, hint: &str) -> types::X509svid {
    types::X509svid {
        cert_chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
        id: Some(id_message(id)),
        expires_at: issued.not_after,
        hint: hint.to_owned(),
        kasbah_renew_at: issued.renew_at,
    }
}

fn jwt_message(id: &SpiffeId, issued: IssuedToken, hint: &str) -> types::Jwtsvid {
    types::Jwtsvid {
        token: issued.token,
        id: Some(id_message(id)),
        expires_at: issued.expires_at,
        issued_at: issued.issued_at,
        hint: hint.to_owned(),
    }
}

/// The most certificates in one request.
pub(crate) const BATCH_SVIDS_MAX: usize = 500;
