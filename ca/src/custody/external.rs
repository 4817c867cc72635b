//! Keys with an external signer: any program that serves `kasbah.signer.v1` on a Unix socket.
//!
//! The socket's other end must belong to the user that the settings name: the kernel says so, not the signer.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use identity::key::KeyKind;
use proto::kasbah::signer::v1::signer_client::SignerClient;
use proto::kasbah::signer::v1::{CheckHealthRequest, CreateKeyRequest, KeyKind as WireKind, SignRequest};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::desk::{Keeper, KeeperError};

/// Where the external signer is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalSigner {
    /// Its Unix socket.
    pub socket: PathBuf,
    /// The user that it must run as (a number) [default: the user of the authority].
    #[serde(default)]
    pub owner: Option<u32>,
}

/// One connection to a signer, with a small runtime of its own, because the desk's threads have none.
pub(super) struct External {
    settings: ExternalSigner,
    connection: Option<(Runtime, SignerClient<Channel>)>,
}

impl External {
    pub(super) fn new(settings: ExternalSigner) -> Self {
        Self { settings, connection: None }
    }

    /// Asks, a second time over a new connection if the one before has broken since: the signer was started again.
    fn ask<T>(
        &mut self,
        call: impl AsyncFn(&mut SignerClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, KeeperError> {
        let was_connected = self.connection.is_some();
        match self.ask_once(&call) {
            Err(KeeperError::Away(_)) if was_connected => self.ask_once(&call),
            answered => answered,
        }
    }

    /// Connects if need be, and asks; a connection that failed is not used again.
    fn ask_once<T>(
        &mut self,
        call: &impl AsyncFn(&mut SignerClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, KeeperError> {
        if self.connection.is_none() {
            self.connection = Some(connect(&self.settings)?);
        }
        let Some((runtime, client)) = &mut self.connection else {
            return Err(KeeperError::Away("the signer is not connected".into()));
        };
        let answered = runtime.block_on(async { tokio::time::timeout(CALL_MAX, call(client)).await });
        let outcome = answered.unwrap_or_else(|_| Err(Status::unavailable("the signer does not answer in time")));
        outcome.map_err(|status| {
            let error = error_of(&status);
            if matches!(error, KeeperError::Away(_)) {
                self.connection = None;
            }
            error
        })
    }
}

impl Keeper for External {
    fn create(&mut self, name: &str, kind: KeyKind) -> Result<Vec<u8>, KeeperError> {
        let request = CreateKeyRequest { name: name.to_owned(), kind: wire(kind).into() };
        let key = self.ask(async |client| client.create_key(request.clone()).await.map(tonic::Response::into_inner))?;
        if key.kind() != wire(kind) || KeyKind::of_spki(&key.public_key) != Some(kind) {
            return Err(KeeperError::Refused("the signer made a key of another kind".into()));
        }
        Ok(key.public_key)
    }

    fn sign(&mut self, name: &str, kind: KeyKind, message: &[u8]) -> Result<Vec<u8>, KeeperError> {
        let request = SignRequest { name: name.to_owned(), kind: wire(kind).into(), message: message.to_owned() };
        Ok(self.ask(async |client| client.sign(request.clone()).await.map(tonic::Response::into_inner))?.signature)
    }

    fn check(&mut self) -> Result<(), KeeperError> {
        self.ask(async |client| client.check_health(CheckHealthRequest {}).await.map(drop))
    }
}

fn connect(settings: &ExternalSigner) -> Result<(Runtime, SignerClient<Channel>), KeeperError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| KeeperError::Away(error.to_string()))?;
    let wanted = settings.clone();
    let connector = tower::service_fn(move |_| {
        let wanted = wanted.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(dial(&wanted).await?)) }
    });
    let endpoint = Endpoint::from_static("http://signer").connect_timeout(CALL_MAX);
    let connected = runtime.block_on(endpoint.connect_with_connector(connector));
    let channel =
        connected.map_err(|error| KeeperError::Away(format!("the signer cannot be reached: {}", why(&error))))?;
    Ok((runtime, SignerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)))
}

/// Connects, and has the kernel say who serves.
async fn dial(settings: &ExternalSigner) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(&settings.socket).await?;
    let (found, wanted) = (stream.peer_cred()?.uid(), settings.owner.unwrap_or_else(super::own_uid));
    if found == wanted {
        return Ok(stream);
    }
    let text = format!("the signer at {} runs as user {found}, not as {wanted}", settings.socket.display());
    Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, text))
}

/// The last cause, which says most.
fn why(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

fn error_of(status: &Status) -> KeeperError {
    let text = format!("the signer says {:?}: {}", status.code(), status.message());
    match status.code() {
        Code::NotFound
        | Code::AlreadyExists
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented => KeeperError::Refused(text),
        _ => KeeperError::Away(text),
    }
}

pub(super) fn wire(kind: KeyKind) -> WireKind {
    match kind {
        KeyKind::P256 => WireKind::P256,
        KeyKind::P384 => WireKind::P384,
        KeyKind::Ed25519 => WireKind::Ed25519,
        KeyKind::Rsa => WireKind::Rsa,
    }
}

/// Two of them are below what the desk waits, so that the cause is known.
const CALL_MAX: Duration = Duration::from_secs(2);
/// The largest answer: a key with its name.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests;
