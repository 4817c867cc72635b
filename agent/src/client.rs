//! The other side of the agent's sockets, for the command line: what `kasbah run` and `kasbah agent …` do. Printing is theirs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use runtime::ask::{self, AskError};
use runtime::workload_api::Identity;

pub use crate::admin::{NearMiss, WhoAmI, WhoAmIIdentity};
pub use runtime::workload_api::{Endpoint, JwtSvid, WorkloadApiError, fetch_jwt, fetch_x509, watch};

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
    pub fn reason(&self) -> &str {
        match self {
            Self::Unreachable { .. } => "AGENT_UNREACHABLE",
            Self::Refused { reason, .. } => reason,
            Self::Answer(_) => "AGENT_BAD_ANSWER",
            Self::Admin(error) => error.reason(),
        }
    }
}

/// Registers the calling process as launched under `name`; the name stays with it across `exec`. Answers the Workload API's
/// address. Blocking, because the caller is about to become another program.
///
/// # Errors
/// When the agent is not there or refuses.
pub fn register_launch(socket: &Path, name: &str) -> Result<Option<String>, ClientError> {
    let answer =
        exchange(socket, name).map_err(|source| ClientError::Unreachable { socket: socket.to_owned(), source })?;
    let answer: Answer = serde_json::from_str(&answer).map_err(ClientError::Answer)?;
    if answer.ok {
        return Ok(answer.workload_api);
    }
    Err(ClientError::Refused {
        message: answer.error.unwrap_or_else(|| "no reason given".into()),
        reason: answer.reason.unwrap_or_else(|| "AGENT_REFUSED".into()),
    })
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

/// Writes each SVID as `svid.N.pem` and `svid.N.key` and its trust domain's roots as `bundle.N.pem` into `dir`; keys are
/// readable by this user alone. Answers the files written.
///
/// # Errors
/// When a file cannot be written.
pub fn write_x509(dir: &Path, identity: &Identity) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir)?;
    let mut written = Vec::new();
    for (at, svid) in identity.svids().iter().enumerate() {
        let bundle =
            identity.bundles().get(&svid.id().trust_domain()).map(|bundle| bundle.to_pem()).unwrap_or_default();
        let files = [
            (format!("svid.{at}.pem"), svid.chain_pem(), 0o644),
            (format!("svid.{at}.key"), svid.key().pkcs8_pem().as_str().to_owned(), 0o600),
            (format!("bundle.{at}.pem"), bundle, 0o644),
        ];
        for (name, text, mode) in files {
            written.push(write(&dir.join(name), &text, mode)?);
        }
    }
    Ok(written)
}

fn exchange(socket: &Path, name: &str) -> io::Result<String> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(WAIT_MAX))?;
    stream.set_write_timeout(Some(WAIT_MAX))?;
    let request = serde_json::to_string(&Request { name: name.to_owned() }).map_err(io::Error::other)?;
    (&stream).write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut answer)?;
    Ok(answer)
}

/// A new file beside the old one, then renamed over it.
fn write(file: &Path, text: &str, mode: u32) -> io::Result<PathBuf> {
    let fresh = file.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
    out.write_all(text.as_bytes())?;
    std::fs::rename(&fresh, file)?;
    Ok(file.to_owned())
}
