//! SPIRE's Delegated Identity API: who calls is attested as a workload, and must have an identity that the settings name.

use std::collections::BTreeSet;
use std::sync::Arc;

use identity::TrustBundle;
use proto::spire::api::agent::delegatedidentity::v1 as wire;
use proto::spire::api::agent::delegatedidentity::v1::delegated_identity_server::{
    DelegatedIdentity, DelegatedIdentityServer,
};
use proto::spire::api::types;
use runtime::clock::unix_secs;
use runtime::refusal;
use tonic::{Code, Request, Response, Status};

use super::{Answers, entries, subscribe};
use crate::attest::Process;
use crate::caller::{Caller, Desk, svids};
use crate::entry::{Entry, SELECTORS_MAX, Selector};
use crate::state::{Held, Snapshot};
use crate::workload_api::{check_audience, every_bundle, jwt_svids};

/// The service.
pub(super) struct Service {
    desk: Arc<Desk>,
    delegates: BTreeSet<String>,
}

impl Service {
    pub(super) fn server(desk: Arc<Desk>, delegates: &[String]) -> DelegatedIdentityServer<Self> {
        let delegates = delegates.iter().cloned().collect();
        DelegatedIdentityServer::new(Self { desk, delegates }).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// The caller, if it may act for others.
    async fn delegate<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let mut caller = self.desk.caller(request.extensions())?;
        let (_, own) = entries(&self.desk, &mut caller).await?;
        if own.iter().any(|entry| self.delegates.contains(entry.spiffe_id.as_str())) {
            return Ok(caller);
        }
        let message = "no identity of the caller is among `delegates`";
        Err(refusal::status(Code::PermissionDenied, "DELEGATE_NOT_ALLOWED", message))
    }

    async fn workload<T>(
        &self,
        request: &Request<T>,
        selectors: &[types::Selector],
        pid: i32,
    ) -> Result<Caller, Status> {
        self.delegate(request).await?;
        let invalid = |what: &str| refusal::status(Code::InvalidArgument, "REQUEST_FIELD_EMPTY", what);
        match (selectors, pid) {
            ([], 0) => Err(invalid("selectors or a pid are needed")),
            ([], pid) if pid > 0 => {
                let gone = |_| refusal::status(Code::NotFound, "ATTEST_PROCESS_GONE", "there is no such process");
                Process::open(pid).map(Caller::delegated_process).map_err(gone)
            }
            ([_, ..], 0) if selectors.len() <= SELECTORS_MAX => {
                let facts = selectors.iter().map(|sent| Selector::new(sent.r#type.as_str(), sent.value.as_str()));
                Ok(Caller::delegated_facts(facts.collect()))
            }
            _ => Err(invalid("either selectors or a positive pid are needed, and not too many")),
        }
    }
}

#[tonic::async_trait]
impl DelegatedIdentity for Service {
    type SubscribeToX509SVIDsStream = Answers<wire::SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Answers<wire::SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Answers<wire::SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<wire::SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let asked = request.get_ref();
        let caller = self.workload(&request, &asked.selectors, asked.pid).await?;
        Ok(Response::new(subscribe(&self.desk, caller, true, x509_svids, |status| status)?))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<wire::SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let caller = self.delegate(&request).await?;
        let answers = subscribe(
            &self.desk,
            caller,
            false,
            |_, snapshot, _| wire::SubscribeToX509BundlesResponse {
                ca_certificates: every_bundle(snapshot, TrustBundle::to_concatenated_der),
            },
            |status| status,
        )?;
        Ok(Response::new(answers))
    }

    async fn fetch_jwtsvi_ds(
        &self,
        request: Request<wire::FetchJwtsviDsRequest>,
    ) -> Result<Response<wire::FetchJwtsviDsResponse>, Status> {
        let asked = request.get_ref();
        let audience = check_audience(&asked.audience)?;
        let mut caller = self.workload(&request, &asked.selectors, asked.pid).await?;
        let (_, known) = entries(&self.desk, &mut caller).await?;
        let issued = jwt_svids(&self.desk, &caller, &known, &audience).await?;
        let svids = issued.into_iter().zip(&known).map(|(svid, entry)| types::Jwtsvid {
            token: svid.svid,
            id: Some(id_of(entry)),
            hint: svid.hint,
            ..types::Jwtsvid::default()
        });
        Ok(Response::new(wire::FetchJwtsviDsResponse { svids: svids.collect() }))
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<wire::SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let caller = self.delegate(&request).await?;
        let answers = subscribe(
            &self.desk,
            caller,
            false,
            |_, snapshot, _| wire::SubscribeToJwtBundlesResponse {
                bundles: every_bundle(snapshot, |bundle| bundle.jwt_jwks().to_string().into_bytes()),
            },
            |status| status,
        )?;
        Ok(Response::new(answers))
    }
}

fn x509_svids(desk: &Desk, snapshot: &Snapshot, entries: &[Arc<Entry>]) -> wire::SubscribeToX509sviDsResponse {
    let svid = |(entry, held): (&Arc<Entry>, &Held)| wire::X509svidWithKey {
        x509_svid: Some(types::X509svid {
            cert_chain: held.svid.chain().map(|der| der.to_vec()).collect(),
            id: Some(id_of(entry)),
            expires_at: i64::try_from(unix_secs(held.svid.not_after())).unwrap_or(i64::MAX),
            hint: entry.hint.clone(),
            kasbah_renew_at: 0,
        }),
        x509_svid_key: held.svid.key().pkcs8_der().to_vec(),
    };
    let federated: BTreeSet<String> =
        entries.iter().flat_map(|entry| &entry.federates_with).map(|name| name.id().to_string()).collect();
    wire::SubscribeToX509sviDsResponse {
        x509_svids: svids(desk, snapshot, entries).into_iter().map(svid).collect(),
        federates_with: federated.into_iter().collect(),
    }
}

fn id_of(entry: &Entry) -> types::Spiffeid {
    types::Spiffeid { trust_domain: entry.spiffe_id.trust_domain_name().into(), path: entry.spiffe_id.path().into() }
}

const REQUEST_BYTES_MAX: usize = 128 << 10;
