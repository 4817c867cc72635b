//! A small external signer: it keeps keys as files of a folder, and signs for whoever may use its socket.
//!
//! It is an example of a program that serves `kasbah.signer.v1`, and good for machines where the authority's user must not
//! read the keys: run it as another user, and let the group of its socket be the authority's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use identity::key::{KeyKind, PrivateKey};
use identity::signing_key::SigningKey;
use proto::kasbah::signer::v1::signer_server::{self, SignerServer};
use proto::kasbah::signer::v1::{
    CheckHealthRequest, CheckHealthResponse, CreateKeyRequest, GetKeyRequest, Key, KeyKind as WireKind,
    ListKeysRequest, ListKeysResponse, SignRequest, SignResponse,
};
use runtime::listen::{self, ListenError};
use runtime::serve::{self, Limits};
use runtime::shutdown::Shutdown;
use tokio::net::UnixStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::key_file;

/// Serves until `shutdown`. The keys are in `dir`, which only its owner may read; `mode` is the socket's.
///
/// # Errors
/// When the folder or the socket cannot be used.
pub async fn serve_signer(dir: &Path, socket: &Path, mode: u32, shutdown: Shutdown) -> Result<(), SignerError> {
    let unusable = |source| SignerError { dir: dir.to_owned(), source };
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(dir).map_err(unusable)?;
    let listener = listen::unix(socket, mode).map_err(|error| unusable(socket_error(&error)))?;
    let signer = FolderSigner { dir: Arc::new(dir.to_owned()) };
    let router = Routes::new(SignerServer::new(signer)).prepare().into_axum_router();
    let accept = |stream: UnixStream| async move { Some((stream, http::Extensions::new())) };
    tracing::info!(socket = %socket.display(), dir = %dir.display(), "signer serves");
    serve::grpc(listener, accept, router, Limits::default(), shutdown).await;
    Ok(())
}

fn socket_error(error: &ListenError) -> io::Error {
    io::Error::other(error.to_string())
}

/// Why the signer cannot serve.
#[derive(Debug, thiserror::Error)]
#[error("the signer cannot use its folder {} or its socket", dir.display())]
pub struct SignerError {
    dir: PathBuf,
    #[source]
    source: io::Error,
}

impl SignerError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        "SIGNER_UNUSABLE"
    }
}

/// Keys as files `NAME.pem` (PKCS#8).
#[derive(Clone, Debug)]
struct FolderSigner {
    dir: Arc<PathBuf>,
}

impl FolderSigner {
    fn file(&self, name: &str) -> Result<PathBuf, Status> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let good = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain);
        if !good || name.starts_with('.') {
            return Err(Status::invalid_argument("the name of a key has lower-case letters, digits, `.`, `_` and `-`"));
        }
        Ok(self.dir.join(format!("{name}.pem")))
    }

    fn load(&self, name: &str) -> Result<PrivateKey, Status> {
        let text = match std::fs::read(self.file(name)?) {
            Ok(text) => zeroize::Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Status::not_found("no such key")),
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        PrivateKey::from_pem(&text, None).map_err(|error| Status::unavailable(error.to_string()))
    }

    fn create(&self, name: &str, kind: KeyKind) -> Result<Key, Status> {
        let (file, key) = (self.file(name)?, PrivateKey::generate_kind(kind));
        let key = key.map_err(|error| Status::invalid_argument(error.to_string()))?;
        match key_file::create_new(&file, key.pkcs8_pem().as_bytes(), 0o600) {
            Ok(()) => Ok(described(name, &key)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Status::already_exists("there is a key of this name"))
            }
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    fn list(&self) -> Result<Vec<Key>, Status> {
        let away = |error: io::Error| Status::unavailable(error.to_string());
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(self.dir.as_path()).map_err(away)? {
            let file = entry.map_err(away)?.file_name();
            let name = file.to_str().and_then(|name| name.strip_suffix(".pem"));
            if let Some(name) = name.filter(|name| !name.starts_with('.')) {
                keys.push(described(name, &self.load(name)?));
            }
        }
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(keys)
    }
}

#[tonic::async_trait]
impl signer_server::Signer for FolderSigner {
    async fn check_health(&self, _: Request<CheckHealthRequest>) -> Result<Response<CheckHealthResponse>, Status> {
        std::fs::read_dir(self.dir.as_path()).map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(CheckHealthResponse {}))
    }

    async fn list_keys(&self, _: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        Ok(Response::new(ListKeysResponse { keys: self.list()? }))
    }

    async fn create_key(&self, request: Request<CreateKeyRequest>) -> Result<Response<Key>, Status> {
        let kind = kind_of(request.get_ref().kind())?;
        let key = self.create(&request.get_ref().name, kind)?;
        tracing::info!(name = key.name, kind = kind.as_str(), "key made");
        Ok(Response::new(key))
    }

    async fn get_key(&self, request: Request<GetKeyRequest>) -> Result<Response<Key>, Status> {
        let name = &request.get_ref().name;
        Ok(Response::new(described(name, &self.load(name)?)))
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let (kind, SignRequest { name, message, .. }) = (kind_of(request.get_ref().kind())?, request.into_inner());
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(Status::invalid_argument("the message is longer than 64 KiB"));
        }
        let key = self.load(&name)?;
        if KeyKind::of_spki(&key.public_key_spki()) != Some(kind) {
            return Err(Status::invalid_argument("the key is of another kind"));
        }
        let signature = SigningKey::from(key).sign(&message);
        let signature = signature.map_err(|_| Status::unavailable("the signature cannot be made"))?;
        Ok(Response::new(SignResponse { signature }))
    }
}

fn described(name: &str, key: &PrivateKey) -> Key {
    let public_key = key.public_key_spki();
    let kind = match KeyKind::of_spki(&public_key) {
        Some(KeyKind::P256) => WireKind::P256,
        Some(KeyKind::P384) => WireKind::P384,
        Some(KeyKind::Ed25519) => WireKind::Ed25519,
        Some(KeyKind::Rsa) => WireKind::Rsa,
        None => WireKind::Unspecified,
    };
    Key { name: name.to_owned(), kind: kind.into(), public_key }
}

fn kind_of(kind: WireKind) -> Result<KeyKind, Status> {
    match kind {
        WireKind::P256 => Ok(KeyKind::P256),
        WireKind::P384 => Ok(KeyKind::P384),
        WireKind::Ed25519 => Ok(KeyKind::Ed25519),
        WireKind::Rsa => Ok(KeyKind::Rsa),
        WireKind::Unspecified => Err(Status::invalid_argument("the kind of key is missing")),
    }
}

const NAME_BYTES_MAX: usize = 128;
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
