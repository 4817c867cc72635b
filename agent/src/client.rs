//! The other side of the agent's sockets, for the command line: what `kasbah run` and `kasbah agent …` do. Printing is theirs.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use identity::{BundleSet, SpiffeId, X509Svid};
use runtime::ask::{self, AskError};
use runtime::workload_api::{self, Endpoint, EndpointError, Identity, IdentityStream, WorkloadApiError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub use crate::admin::{NearMiss, WhoAmI, WhoAmIIdentity};
pub use runtime::workload_api::{ValidatedJwt, WitSvid};

use crate::launch::{Answer, REQUEST_BYTES_MAX, Request, WAIT_MAX};

/// Why the agent did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The launch socket cannot be reached.
    #[error("{}: the agent's launch socket cannot be reached; is the agent running, and are you its user?", socket.display())]
    Unreachable {
        /// Where we looked.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address of the Workload API is malformed.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The Workload API gave nothing.
    #[error(transparent)]
    WorkloadApi(#[from] WorkloadApiError),
    /// What was asked for is no SPIFFE ID.
    #[error("`{id}` is no SPIFFE ID")]
    SpiffeId {
        /// What was given.
        id: String,
        /// What is wrong with it.
        #[source]
        source: identity::spiffe_id::SpiffeIdError,
    },
    /// The agent refuses.
    #[error("the agent refuses: {message}")]
    Refused {
        /// Its words.
        message: String,
        /// Its reason code.
        reason: String,
    },
    /// The answer cannot be understood.
    #[error("the agent's answer cannot be understood; compare the versions")]
    Answer(#[source] serde_json::Error),
    /// The admin address gives no answer.
    #[error(transparent)]
    Admin(#[from] AskError),
}

impl ClientError {
    /// The stable code: the agent's own where it sent one.
    pub fn reason(&self) -> String {
        match self {
            Self::Unreachable { .. } => "AGENT_UNREACHABLE".into(),
            Self::Endpoint(error) => error.reason().into(),
            Self::WorkloadApi(error) => error.reason(),
            Self::SpiffeId { source, .. } => source.reason().into(),
            Self::Refused { reason, .. } => reason.clone(),
            Self::Answer(_) => "AGENT_BAD_ANSWER".into(),
            Self::Admin(error) => error.reason().into(),
        }
    }

    /// Whether the agent has spoken: this process has no identity.
    pub fn is_no_identity(&self) -> bool {
        matches!(self, Self::WorkloadApi(error) if error.is_no_identity())
    }

    /// Whether the agent is not there, so that waiting or starting it may help.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::WorkloadApi(WorkloadApiError::Unreachable { .. })
                | Self::Admin(AskError::Connect { .. })
        )
    }
}

/// What a launched process is told.
#[derive(Clone, Debug)]
pub struct Launched {
    /// The Workload API's address, for `SPIFFE_ENDPOINT_SOCKET`.
    pub workload_api: String,
}

/// The identities of this process and whom it trusts.
#[derive(Clone, Debug)]
pub struct X509Context {
    /// The SVIDs, the default one first.
    pub svids: Vec<Arc<X509Svid>>,
    /// The bundles of the own and all federated trust domains.
    pub bundles: Arc<BundleSet>,
}

/// A JWT-SVID of this process. The token is a secret for its lifetime.
#[derive(Clone)]
pub struct FetchedJwt {
    /// Whom it proves.
    pub spiffe_id: SpiffeId,
    /// The token.
    pub token: String,
    /// What the operator says it is for.
    pub hint: String,
}

impl std::fmt::Debug for FetchedJwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FetchedJwt")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

/// The identities of this process as they rotate.
#[derive(Debug)]
pub struct X509Updates(IdentityStream);

/// Registers the calling process as launched under `name`; the name stays with it across `exec`.
///
/// # Errors
/// When the agent is not there or refuses.
pub async fn register_launch(socket: &Path, name: &str) -> Result<Launched, ClientError> {
    let unreachable = |source| ClientError::Unreachable { socket: socket.to_owned(), source };
    let exchanged = tokio::time::timeout(WAIT_MAX, exchange(socket, name)).await;
    let answer = exchanged.unwrap_or_else(|late| Err(late.into())).map_err(unreachable)?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(ClientError::Answer)?;
    match (answer.ok, answer.workload_api) {
        (true, Some(workload_api)) => Ok(Launched { workload_api }),
        _ => Err(ClientError::Refused {
            message: answer.error.unwrap_or_else(|| "no reason given".into()),
            reason: answer.reason.unwrap_or_else(|| "AGENT_REFUSED".into()),
        }),
    }
}

/// The identities of this process, from the Workload API at `address` (`unix:///…` or `tcp://IP:PORT`).
///
/// # Errors
/// When the agent is not there, refuses, or answers badly.
pub async fn fetch_x509(address: &str) -> Result<X509Context, ClientError> {
    Ok(workload_api::fetch_x509(&Endpoint::parse(address)?).await?.into())
}

/// As [`fetch_x509`], now and at each change.
///
/// # Errors
/// When the agent is not there or refuses.
pub async fn watch_x509(address: &str) -> Result<X509Updates, ClientError> {
    Ok(X509Updates(IdentityStream::open(&Endpoint::parse(address)?).await?))
}

/// JWT-SVIDs for `audiences`: of one identity, or of all that this process has.
///
/// # Errors
/// When the agent is not there, refuses, or answers badly.
pub async fn fetch_jwt(
    address: &str,
    audiences: &[String],
    spiffe_id: Option<&str>,
) -> Result<Vec<FetchedJwt>, ClientError> {
    let parse = |id: &str| SpiffeId::parse(id).map_err(|source| ClientError::SpiffeId { id: id.to_owned(), source });
    let wanted = spiffe_id.map(parse).transpose()?;
    let svids = workload_api::fetch_jwt(&Endpoint::parse(address)?, audiences.to_vec(), wanted.as_ref()).await?;
    let fetched = svids.into_iter().map(|svid| FetchedJwt { spiffe_id: svid.id, token: svid.token, hint: svid.hint });
    Ok(fetched.collect())
}

/// WIT-SVIDs with their keys: of one identity, or of all that this process has.
///
/// # Errors
/// When the agent is not there, refuses, or answers badly.
pub async fn fetch_wit(address: &str, spiffe_id: Option<&str>) -> Result<Vec<WitSvid>, ClientError> {
    let parse = |id: &str| SpiffeId::parse(id).map_err(|source| ClientError::SpiffeId { id: id.to_owned(), source });
    let wanted = spiffe_id.map(parse).transpose()?;
    Ok(workload_api::fetch_wit(&Endpoint::parse(address)?, wanted.as_ref()).await?)
}

/// Has the agent validate a JWT-SVID for `audience`, by the bundles of this process.
///
/// # Errors
/// When the agent is not there, refuses, or finds the token not valid.
pub async fn validate_jwt(address: &str, audience: &str, token: &str) -> Result<ValidatedJwt, ClientError> {
    Ok(workload_api::validate_jwt(&Endpoint::parse(address)?, audience, token).await?)
}

/// What process `pid` is to the agent whose admin address is `admin`, and why.
///
/// # Errors
/// When the agent is not there or there is no such process.
pub async fn whoami(admin: SocketAddr, pid: i32) -> Result<WhoAmI, ClientError> {
    let (status, body) = ask::get(admin, &format!("/whoami?pid={pid}")).await?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(ClientError::Answer);
    }
    let refused: serde_json::Value = serde_json::from_slice(&body).map_err(ClientError::Answer)?;
    let text = |name: &str| refused[name].as_str().unwrap_or("AGENT_REFUSED").to_owned();
    Err(ClientError::Refused { message: text("error"), reason: text("reason") })
}

impl X509Updates {
    /// Waits for the next change; `None` when the agent has closed the stream.
    pub async fn next(&mut self) -> Option<Result<X509Context, ClientError>> {
        Some(self.0.next().await?.map(Into::into).map_err(Into::into))
    }
}

impl From<Identity> for X509Context {
    fn from(identity: Identity) -> Self {
        Self { svids: identity.svids().to_vec(), bundles: identity.bundles().clone() }
    }
}

async fn exchange(socket: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut request = serde_json::to_vec(&Request { name: name.to_owned() }).map_err(io::Error::other)?;
    request.push(b'\n');
    stream.write_all(&request).await?;
    let mut answer = Vec::new();
    stream.take(REQUEST_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}
