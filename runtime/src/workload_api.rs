//! A client of the SPIFFE Workload API: this process's own identity, followed as it rotates.
//!
//! When the agent is away, the last identity stays in use. When the agent says that there is none any more, it is dropped.

mod claims;
mod endpoint;
mod source;

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use identity::renewal::retry_wait;
use identity::revocation::RevocationIndex;
use identity::svid::split_concatenated_der;
use identity::{BundleSet, PrivateKey, SpiffeId, TrustBundle, TrustDomain, X509Svid};
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{
    JwtsvidRequest, ValidateJwtsvidRequest, WitsvidRequest, X509svid, X509svidRequest, X509svidResponse,
};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::refusal;
use crate::shutdown::Shutdown;

pub use endpoint::{Endpoint, EndpointError};
pub use source::{Identity, IdentityPublisher, IdentitySource, publisher};

/// Why the Workload API gave nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadApiError {
    /// The agent is not there.
    #[error("{endpoint}: the agent cannot be reached; is it running, and is SPIFFE_ENDPOINT_SOCKET its socket?")]
    Unreachable {
        /// Where we looked.
        endpoint: Endpoint,
        /// What failed.
        #[source]
        source: tonic::transport::Error,
    },
    /// The agent refuses.
    #[error("the agent refuses: {}", .0.message())]
    Refused(Box<Status>),
    /// The answer is incomplete or malformed.
    #[error("the agent's answer is bad: {what}")]
    Answer {
        /// What is wrong with it.
        what: &'static str,
    },
}

impl WorkloadApiError {
    /// The stable code: the agent's own where it sent one.
    pub fn reason(&self) -> String {
        match self {
            Self::Unreachable { .. } => "AGENT_UNREACHABLE".into(),
            Self::Refused(status) => refusal::reason_of(status).unwrap_or_else(|| "AGENT_REFUSED".into()),
            Self::Answer { .. } => "AGENT_BAD_ANSWER".into(),
        }
    }

    /// Whether the agent has spoken: this process has no identity.
    pub fn is_no_identity(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::PermissionDenied)
    }
}

impl From<Status> for WorkloadApiError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// A JWT-SVID as the agent gave it.
#[derive(Clone)]
pub struct JwtSvid {
    /// Whom it proves.
    pub id: SpiffeId,
    /// The token. A secret for its lifetime.
    pub token: String,
    /// What the operator says it is for.
    pub hint: String,
}

impl std::fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtSvid").field("id", &self.id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// Follows the identity of this process until `shutdown`, or until the last clone of the source is dropped.
pub fn watch(endpoint: impl Into<Endpoint>, shutdown: Shutdown) -> IdentitySource {
    let (publisher, source) = publisher();
    let endpoint = endpoint.into();
    let task = tokio::spawn(async move { shutdown.unless(follow(endpoint, publisher)).await });
    source.owning(task.abort_handle())
}

/// What the agent says about this process's identity, message by message, without coming back after an error. Most
/// programs want [`watch`] instead.
#[derive(Debug)]
pub struct IdentityStream(tonic::Streaming<X509svidResponse>);

impl IdentityStream {
    /// Opens the stream.
    ///
    /// # Errors
    /// When the agent is not there or refuses.
    pub async fn open(endpoint: &Endpoint) -> Result<Self, WorkloadApiError> {
        let request = with_header(X509svidRequest {});
        Ok(Self(connect(endpoint).await?.fetch_x509svid(request).await?.into_inner()))
    }

    /// Waits for the next message; `None` when the agent has closed the stream.
    pub async fn next(&mut self) -> Option<Result<Identity, WorkloadApiError>> {
        match self.0.message().await {
            Ok(answer) => answer.map(decode),
            Err(status) => Some(Err(status.into())),
        }
    }
}

/// The identity of this moment.
///
/// # Errors
/// When the agent is not there, refuses, or answers badly.
pub async fn fetch_x509(endpoint: &Endpoint) -> Result<Identity, WorkloadApiError> {
    let first = IdentityStream::open(endpoint).await?.next().await;
    first.ok_or(WorkloadApiError::Answer { what: "no message" })?
}

/// JWT-SVIDs for `audience`: of one identity, or of all that this process has.
///
/// # Errors
/// As [`fetch_x509`].
pub async fn fetch_jwt(
    endpoint: &Endpoint,
    audience: Vec<String>,
    id: Option<&SpiffeId>,
) -> Result<Vec<JwtSvid>, WorkloadApiError> {
    let spiffe_id = id.map(ToString::to_string).unwrap_or_default();
    let request = with_header(JwtsvidRequest { audience, spiffe_id });
    let answer = connect(endpoint).await?.fetch_jwtsvid(request).await?.into_inner();
    let decode = |svid: proto::workload::Jwtsvid| {
        let id = SpiffeId::parse(&svid.spiffe_id).map_err(|_| WorkloadApiError::Answer { what: "a SPIFFE ID" })?;
        Ok(JwtSvid { id, token: svid.svid, hint: svid.hint })
    };
    answer.svids.into_iter().map(decode).collect()
}

/// What the agent says of a JWT-SVID that it found valid.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedJwt {
    /// Whom it proves.
    pub id: SpiffeId,
    /// Its claims, as JSON.
    pub claims: serde_json::Value,
}

/// Has the agent validate a JWT-SVID for `audience`, by the bundles of this process.
///
/// # Errors
/// As [`fetch_x509`]; a token that is not valid is refused.
pub async fn validate_jwt(endpoint: &Endpoint, audience: &str, token: &str) -> Result<ValidatedJwt, WorkloadApiError> {
    let request = with_header(ValidateJwtsvidRequest { audience: audience.to_owned(), svid: token.to_owned() });
    let answer = connect(endpoint).await?.validate_jwtsvid(request).await?.into_inner();
    let id = SpiffeId::parse(&answer.spiffe_id).map_err(|_| WorkloadApiError::Answer { what: "a SPIFFE ID" })?;
    Ok(ValidatedJwt { id, claims: claims::decode(answer.claims.unwrap_or_default()) })
}

/// A WIT-SVID as the agent gave it, with its key.
#[derive(Clone)]
pub struct WitSvid {
    /// Whom it names.
    pub id: SpiffeId,
    /// The token. It is of use only with proofs made by the key, and never a bearer token.
    pub token: String,
    /// The private key as a JWK. A secret for the token's lifetime.
    pub key: String,
    /// What the operator says it is for.
    pub hint: String,
}

impl std::fmt::Debug for WitSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WitSvid").field("id", &self.id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// WIT-SVIDs of this moment: of one identity, or of all that this process has.
///
/// # Errors
/// As [`fetch_x509`].
pub async fn fetch_wit(endpoint: &Endpoint, id: Option<&SpiffeId>) -> Result<Vec<WitSvid>, WorkloadApiError> {
    let request = with_header(WitsvidRequest { spiffe_id: id.map(ToString::to_string).unwrap_or_default() });
    let mut answers = connect(endpoint).await?.fetch_witsvid(request).await?.into_inner();
    let answer = answers.message().await?.ok_or(WorkloadApiError::Answer { what: "no message" })?;
    let decode = |svid: proto::workload::Witsvid| {
        let id = SpiffeId::parse(&svid.spiffe_id).map_err(|_| WorkloadApiError::Answer { what: "a SPIFFE ID" })?;
        if svid.wit_svid.is_empty() || svid.wit_svid_key.is_empty() {
            return Err(WorkloadApiError::Answer { what: "a WIT-SVID" });
        }
        Ok(WitSvid { id, token: svid.wit_svid, key: svid.wit_svid_key, hint: svid.hint })
    };
    answer.svids.into_iter().map(decode).collect()
}

async fn follow(endpoint: Endpoint, publisher: IdentityPublisher) {
    let mut failures = 0_u32;
    loop {
        let ended = listen(&endpoint, &publisher, &mut failures).await;
        failures = failures.saturating_add(1);
        if let Err(error) = ended {
            if error.is_no_identity() && publisher.withdraw() {
                tracing::error!(reason = error.reason(), "the agent has withdrawn the identity of this process");
            } else if failures.is_power_of_two() {
                tracing::warn!(%error, reason = error.reason(), failures, "no identity from the agent, trying again");
            }
        }
        tokio::time::sleep(retry_wait(failures, RETRY_WAIT_BASE, RETRY_WAIT_MAX, jitter())).await;
    }
}

/// Publishes what one stream brings; `failures` goes back to 0 with the first good message.
async fn listen(
    endpoint: &Endpoint,
    publisher: &IdentityPublisher,
    failures: &mut u32,
) -> Result<(), WorkloadApiError> {
    let mut stream = IdentityStream::open(endpoint).await?;
    while let Some(message) = stream.next().await {
        match message {
            Ok(identity) => {
                *failures = 0;
                let svid = identity.svid();
                tracing::info!(spiffe_id = %svid.id(), serial = svid.serial(), "identity received");
                publisher.publish(identity);
            }
            Err(error @ WorkloadApiError::Answer { .. }) => {
                tracing::warn!(%error, reason = error.reason(), "message of the agent ignored");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn connect(endpoint: &Endpoint) -> Result<SpiffeWorkloadApiClient<Channel>, WorkloadApiError> {
    let target = endpoint.clone();
    let dialer = tower::service_fn(move |_| {
        let target = target.clone();
        async move { dial(target).await }
    });
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_WAIT_MAX)
        .connect_with_connector(dialer)
        .await
        .map_err(|source| WorkloadApiError::Unreachable { endpoint: endpoint.clone(), source })?;
    Ok(SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Either kind of socket.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for S {}

async fn dial(endpoint: Endpoint) -> std::io::Result<TokioIo<Box<dyn Stream>>> {
    let stream: Box<dyn Stream> = match endpoint {
        Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Endpoint::Tcp(addr) => Box::new(TcpStream::connect(addr).await?),
    };
    Ok(TokioIo::new(stream))
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    request
}

/// All or nothing: a message that breaks the standard anywhere is not used at all.
fn decode(answer: X509svidResponse) -> Result<Identity, WorkloadApiError> {
    let mut bundles = BundleSet::default();
    for (name, der) in &answer.federated_bundles {
        bundles.insert(decode_bundle(name, der)?);
    }
    let revocations = RevocationIndex::decode(&answer.crl);
    let revocations = revocations.map_err(|_| WorkloadApiError::Answer { what: "a revocation list" })?;
    let mut svids = Vec::with_capacity(answer.svids.len());
    for wire in answer.svids {
        let bundle = decode_bundle(&wire.spiffe_id, &wire.bundle)?;
        bundles.insert(bundle);
        svids.push(Arc::new(decode_svid(wire)?));
    }
    heed(&mut bundles, revocations);
    Identity::new(svids, Arc::new(bundles)).ok_or(WorkloadApiError::Answer { what: "no SVID" })
}

/// Lists do not say of which trust domain they are: each is asked by whom its issuer has signed, whatever the domain.
fn heed(bundles: &mut BundleSet, revocations: RevocationIndex) {
    if revocations.is_empty() {
        return;
    }
    let (revocations, domains) = (Arc::new(revocations), bundles.iter().map(|(name, _)| name.clone()));
    for domain in domains.collect::<Vec<_>>() {
        bundles.set_revocations(domain, revocations.clone());
    }
}

fn decode_svid(wire: X509svid) -> Result<X509Svid, WorkloadApiError> {
    let bad = |what| WorkloadApiError::Answer { what };
    let chain = split_concatenated_der(&wire.x509_svid).map_err(|_| bad("a certificate chain"))?;
    let key = PrivateKey::from_pkcs8_der(&wire.x509_svid_key).map_err(|_| bad("a private key"))?;
    let svid = X509Svid::from_parts(chain, key).map_err(|_| bad("an SVID"))?.with_hint(&wire.hint);
    if svid.id().as_str() == wire.spiffe_id { Ok(svid) } else { Err(bad("an SVID of another ID than it says")) }
}

/// The bundle of the trust domain that `id` names or belongs to.
fn decode_bundle(id: &str, der: &[u8]) -> Result<Arc<TrustBundle>, WorkloadApiError> {
    let bad = || WorkloadApiError::Answer { what: "a bundle" };
    let trust_domain: TrustDomain = SpiffeId::parse(id).map_err(|_| bad())?.trust_domain();
    let certificates = split_concatenated_der(der).map_err(|_| bad())?;
    TrustBundle::from_x509_authorities(trust_domain, certificates).map(Arc::new).map_err(|_| bad())
}

fn jitter() -> f64 {
    f64::from(u32::from_le_bytes(identity::digest::random::<4>())) / f64::from(u32::MAX)
}

const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
const RETRY_WAIT_BASE: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);
const MESSAGE_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests;
