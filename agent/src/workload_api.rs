//! The SPIFFE Workload API (`SPIFFE_Workload_API.md`): identities and bundles for the calling process, pushed on change.

mod claims;
mod jwt_cache;
mod wit;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;

use identity::{SpiffeId, TrustBundle, TrustDomain};
use proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use runtime::refusal;
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::attest::AttestError;
use crate::caller::{Caller, Desk, Refusal, StreamGuard, name_of, svids};
use crate::enforced::Standing;
use crate::entry::Entry;
use crate::metrics::Api;
use crate::state::Snapshot;
pub(crate) use jwt_cache::JwtCache;
use wit::WitCache;

/// The service.
pub(crate) struct WorkloadApi {
    desk: Arc<Desk>,
    wits: Arc<WitCache>,
}

/// A stream of messages.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// Makes a stream's message from what is known now.
pub(crate) type Render<T> = fn(&Desk, &Snapshot, &[Arc<Entry>]) -> T;

impl WorkloadApi {
    pub(crate) fn server(desk: Arc<Desk>) -> SpiffeWorkloadApiServer<Self> {
        SpiffeWorkloadApiServer::new(Self { desk, wits: Arc::default() }).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        check_header(request.metadata())?;
        self.desk.caller(request.extensions())
    }

    fn push<T, M>(
        &self,
        request: &Request<T>,
        with_svid: bool,
        render: Render<M>,
    ) -> Result<Response<Answers<M>>, Status>
    where
        M: prost::Message + 'static,
    {
        let caller = self.caller(request)?;
        let guard = self.desk.open_stream(&caller, Api::workload_api)?;
        Ok(Response::new(answers(self.desk.clone(), caller, guard, with_svid, render)))
    }

    /// The caller's entries, once they are known.
    async fn entries<T>(&self, request: &Request<T>) -> Result<(Caller, Arc<Snapshot>, Vec<Arc<Entry>>), Status> {
        let mut caller = self.caller(request)?;
        let mut changes = self.desk.state.subscribe();
        match self.desk.await_entries(&mut caller, &mut changes, false).await {
            Ok((snapshot, entries)) => Ok((caller, snapshot, entries)),
            Err(refused) => Err(self.desk.refuse(&refused, Some(&caller))),
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<WitsvidResponse>;
    type FetchWITBundlesStream = Answers<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.push(&request, true, x509_svids)
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.push(&request, false, |desk, snapshot, entries| X509BundlesResponse {
            bundles: bundles(desk, snapshot, entries, TrustBundle::to_concatenated_der),
            crl: snapshot.revocations.lists().cloned().collect(),
        })
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.push(&request, false, |desk, snapshot, entries| JwtBundlesResponse {
            bundles: bundles(desk, snapshot, entries, |bundle| bundle.jwt_jwks().to_string().into_bytes()),
        })
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let audience = check_audience(&request.get_ref().audience)?;
        let wanted = parse_wanted(&request.get_ref().spiffe_id)?;
        let (caller, _, entries) = self.entries(&request).await?;
        let entries = select(entries, wanted.as_ref());
        let entries = entries.map_err(|refused| self.desk.refuse(&refused, Some(&caller)))?;
        Ok(Response::new(JwtsvidResponse { svids: jwt_svids(&self.desk, &caller, &entries, &audience).await? }))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let asked = request.get_ref();
        if asked.audience.is_empty() || asked.svid.is_empty() {
            return Err(invalid("REQUEST_FIELD_EMPTY", "audience and svid must be given"));
        }
        let (_, snapshot, entries) = self.entries(&request).await?;
        let own = self.desk.state.trust_domain();
        let verified =
            identity::jwt::verify_svid(&asked.svid, &snapshot.bundles, &asked.audience, self.desk.clock.now())
                .map_err(|error| invalid(error.reason(), format!("the JWT-SVID is not valid: {error}")))?;
        if snapshot.revocations.revokes_token(&asked.svid) {
            return Err(invalid("TOKEN_REVOKED", "the JWT-SVID is revoked"));
        }
        let trust_domain = verified.spiffe_id().trust_domain();
        // The caller trusts its own domain and those that its entries federate with, not all that this node knows.
        if trust_domain != *own && !entries.iter().any(|entry| entry.federates_with.contains(&trust_domain)) {
            return Err(invalid(
                "JWT_TRUST_DOMAIN_UNKNOWN",
                format!("no bundle of `{trust_domain}` for this workload"),
            ));
        }
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: verified.spiffe_id().to_string(),
            claims: Some(claims::encode(verified.claims(), trust_domain == *own)),
        }))
    }

    async fn fetch_witsvid(
        &self,
        request: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        let wanted = parse_wanted(&request.get_ref().spiffe_id)?;
        let (caller, snapshot, entries) = self.entries(&request).await?;
        wit::check_offered(&self.desk, &snapshot)?;
        select(entries, wanted.as_ref()).map_err(|refused| self.desk.refuse(&refused, Some(&caller)))?;
        let _counted = self.desk.count_call(&caller)?;
        let guard = self.desk.open_stream(&caller, Api::workload_api)?;
        Ok(Response::new(wit::answers(self.desk.clone(), self.wits.clone(), caller, guard, wanted)))
    }

    async fn fetch_wit_bundles(
        &self,
        request: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        let (_, snapshot, _) = self.entries(&request).await?;
        wit::check_offered(&self.desk, &snapshot)?;
        self.push(&request, false, |desk, snapshot, entries| WitBundlesResponse {
            bundles: bundles(desk, snapshot, entries, |bundle| bundle.wit_jwks().to_string()),
        })
    }
}

/// A JWT-SVID of each of `entries`, one after the other.
pub(crate) async fn jwt_svids(
    desk: &Desk,
    caller: &Caller,
    entries: &[Arc<Entry>],
    audience: &[String],
) -> Result<Vec<Jwtsvid>, Status> {
    let _counted = desk.count_call(caller)?;
    let mut svids = Vec::with_capacity(entries.len());
    for entry in entries {
        let issued = desk.jwts.fetch(desk, entry, audience).await;
        let svid = issued.map_err(|error| {
            tracing::warn!(entry = entry.id, %error, reason = error.reason(), "JWT-SVID not issued");
            refusal::status(Code::Unavailable, error.reason(), format!("the JWT-SVID could not be issued: {error}"))
        })?;
        svids.push(Jwtsvid { spiffe_id: entry.spiffe_id.to_string(), svid: svid.token, hint: entry.hint.clone() });
    }
    Ok(svids)
}

/// The whole state at once and after every change of it; equal messages are not sent again.
pub(crate) fn answers<M>(
    desk: Arc<Desk>,
    mut caller: Caller,
    guard: StreamGuard,
    with_svid: bool,
    render: Render<M>,
) -> Answers<M>
where
    M: prost::Message + 'static,
{
    Box::pin(async_stream::stream! {
        guard.presence.expect();
        let (mut changes, mut last) = (desk.state.subscribe(), None);
        loop {
            // What it needs while it looks at the process does not stay with a stream that waits for days.
            match Box::pin(desk.await_entries(&mut caller, &mut changes, with_svid)).await {
                Ok((snapshot, entries)) => {
                    let (answer, settled) = (render(&desk, &snapshot, &entries), snapshot.level());
                    guard.presence.name(name_of(&entries));
                    drop(snapshot);
                    let print = fingerprint(&answer);
                    if last.replace(print) != Some(print) {
                        yield Ok(answer);
                    }
                    // Sent: this API knows no acknowledgement.
                    guard.presence.set(Standing::Enforces(settled));
                }
                Err(refused) => {
                    yield Err(desk.refuse(&refused, Some(&caller)));
                    return;
                }
            }
            tokio::select! {
                () = desk.shutdown.requested() => {
                    yield Err(desk.refuse(&Refusal::ShuttingDown, Some(&caller)));
                    return;
                }
                _ = changes.changed() => (),
                // Whose connection it is ends by itself with the process.
                () = caller.ended(&desk), if caller.is_delegated() => {
                    yield Err(desk.refuse(&Refusal::NotAttested(AttestError::Gone), Some(&caller)));
                    return;
                }
            }
        }
    })
}

pub(crate) fn x509_svids(desk: &Desk, snapshot: &Snapshot, entries: &[Arc<Entry>]) -> X509svidResponse {
    let own = desk.state.trust_domain();
    let own_bundle = snapshot.bundles.get(own).map(|bundle| bundle.to_concatenated_der()).unwrap_or_default();
    let svids = svids(desk, snapshot, entries).into_iter().map(|(entry, held)| X509svid {
        spiffe_id: held.svid.id().to_string(),
        x509_svid: held.svid.concatenated_der(),
        x509_svid_key: held.svid.key().pkcs8_der().to_vec(),
        bundle: own_bundle.clone(),
        hint: entry.hint.clone(),
    });
    let mut federated_bundles = bundles(desk, snapshot, entries, TrustBundle::to_concatenated_der);
    federated_bundles.remove(own.id().as_str());
    let crl = snapshot.revocations.lists().cloned().collect();
    X509svidResponse { svids: svids.collect(), crl, federated_bundles }
}

/// The own domain's bundle and those that `entries` federate with, by trust domain ID.
pub(crate) fn bundles<T>(
    desk: &Desk,
    snapshot: &Snapshot,
    entries: &[Arc<Entry>],
    write: impl Fn(&TrustBundle) -> T,
) -> BTreeMap<String, T> {
    let federated = entries.iter().flat_map(|entry| &entry.federates_with);
    let names = std::iter::once(desk.state.trust_domain()).chain(federated);
    let known = names.filter_map(|name: &TrustDomain| Some((name, snapshot.bundles.get(name)?)));
    known.map(|(name, bundle)| (name.id().to_string(), write(bundle))).collect()
}

/// Every bundle that this agent knows, by trust domain ID.
pub(crate) fn every_bundle<T>(snapshot: &Snapshot, write: impl Fn(&TrustBundle) -> T) -> BTreeMap<String, T> {
    snapshot.bundles.iter().map(|(name, bundle)| (name.id().to_string(), write(bundle))).collect()
}

/// The entries of the identity that is wanted, all if none is named.
pub(crate) fn select(mut entries: Vec<Arc<Entry>>, wanted: Option<&SpiffeId>) -> Result<Vec<Arc<Entry>>, Refusal> {
    if let Some(wanted) = wanted {
        entries.retain(|entry| entry.spiffe_id == *wanted);
        if entries.is_empty() {
            return Err(Refusal::NotEntitled { id: wanted.to_string() });
        }
    }
    Ok(entries)
}

/// The standard asks for this header so that a web page cannot reach the API through a careless HTTP client.
fn check_header(metadata: &MetadataMap) -> Result<(), Status> {
    let mut values = metadata.get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes() == b"true" => Ok(()),
        _ => Err(invalid("WORKLOAD_HEADER_MISSING", "the metadata `workload.spiffe.io: true` is missing")),
    }
}

pub(crate) fn check_audience(audience: &[String]) -> Result<Vec<String>, Status> {
    let fits = |value: &String| (1..=AUDIENCE_BYTES_MAX).contains(&value.len());
    if audience.is_empty() || audience.len() > AUDIENCES_MAX || !audience.iter().all(fits) {
        return Err(invalid(
            "JWT_AUDIENCE_MISSING",
            format!("1 to {AUDIENCES_MAX} audiences of up to {AUDIENCE_BYTES_MAX} bytes are needed"),
        ));
    }
    Ok(audience.to_vec())
}

pub(crate) fn parse_wanted(id: &str) -> Result<Option<SpiffeId>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    SpiffeId::parse(id).map(Some).map_err(|error| invalid(error.reason(), format!("spiffe_id: {error}")))
}

fn invalid(reason: &str, message: impl Into<String>) -> Status {
    refusal::status(Code::InvalidArgument, reason, message)
}

fn fingerprint<M: prost::Message>(message: &M) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

const HEADER: &str = "workload.spiffe.io";
/// Audiences of one JWT-SVID.
pub(crate) const AUDIENCES_MAX: usize = 32;
const AUDIENCE_BYTES_MAX: usize = 1024;
const REQUEST_BYTES_MAX: usize = 128 << 10;

#[cfg(test)]
mod tests;
