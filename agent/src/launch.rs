//! The launch socket: `kasbah run --name NAME -- CMD` registers itself here before it becomes CMD.
//!
//! One line of JSON in, one line of JSON out, then the connection ends.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime::serve::pause_after;
use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::attest::{LaunchError, Launches, Process};

/// What `kasbah run` sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) name: String,
}

/// What it is answered.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) workload_api: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// Serves launches until `shutdown`.
pub(crate) async fn serve(listener: UnixListener, launches: Arc<Launches>, workload_api: String, shutdown: Shutdown) {
    let mut tasks = TaskSet::new();
    while let Some(accepted) = shutdown.unless(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        if tasks.len() >= CONNECTIONS_MAX {
            tasks.finished().await;
        }
        let (launches, workload_api) = (launches.clone(), workload_api.clone());
        tasks.spawn("launch", async move {
            match tokio::time::timeout(WAIT_MAX, exchange(stream, &launches, workload_api)).await {
                Ok(Ok(())) => (),
                Ok(Err(error)) => tracing::debug!(%error, "launch connection broke off"),
                Err(_) => tracing::debug!("launch connection timed out"),
            }
        });
    }
    tasks.abort().await;
}

/// The text form of a socket path that clients understand.
pub(crate) fn endpoint_of(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    format!("unix://{}", absolute.display())
}

async fn exchange(stream: UnixStream, launches: &Launches, workload_api: String) -> io::Result<()> {
    let caller = Process::of_peer(&stream);
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(REQUEST_BYTES_MAX).read_until(b'\n', &mut line).await?;
    let registered = caller.map_err(LaunchError::Attest).and_then(|caller| register(&line, &caller, launches));
    let answer = match registered {
        Ok(()) => Answer { ok: true, workload_api: Some(workload_api), ..Answer::default() },
        Err(error) => {
            tracing::warn!(reason = error.reason(), "launch refused");
            Answer { error: Some(error.to_string()), reason: Some(error.reason().to_owned()), ..Answer::default() }
        }
    };
    let mut bytes = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    bytes.push(b'\n');
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

fn register(line: &[u8], caller: &Process, launches: &Launches) -> Result<(), LaunchError> {
    let request: Request = serde_json::from_slice(line).map_err(|_| LaunchError::Request)?;
    launches.register(&request.name, caller)?;
    tracing::info!(name = request.name, pid = caller.pid(), "launch registered");
    Ok(())
}

/// The longest request.
pub(crate) const REQUEST_BYTES_MAX: u64 = 4096;
/// How long one exchange may take.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    struct Socket {
        _dir: tempfile::TempDir,
        path: std::path::PathBuf,
        shutdown: Shutdown,
        launches: Arc<Launches>,
    }

    fn start() -> Socket {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("launch.sock");
        let launches = Arc::new(Launches::load(dir.path().join("launches.json")));
        let (listener, shutdown) = (runtime::listen::unix(&path, 0o600).unwrap(), Shutdown::new());
        tokio::spawn(serve(listener, launches.clone(), "unix:///run/agent.sock".into(), shutdown.clone()));
        Socket { _dir: dir, path, shutdown, launches }
    }

    async fn ask(socket: &Socket, request: &str) -> Answer {
        let mut stream = UnixStream::connect(&socket.path).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    #[tokio::test]
    async fn a_launch_is_registered_and_told_where_the_workload_api_is() {
        let socket = start();
        let answer = ask(&socket, "{\"name\":\"helloworld\"}\n").await;
        assert!(answer.ok);
        assert_eq!(answer.workload_api.as_deref(), Some("unix:///run/agent.sock"));
        assert_eq!(socket.launches.len(), 1);
        socket.shutdown.trigger();
    }

    #[tokio::test]
    async fn nonsense_and_bad_names_are_refused_with_a_reason() {
        let socket = start();
        let long = "x".repeat(usize::try_from(REQUEST_BYTES_MAX).unwrap());
        for (request, reason) in [
            ("hello\n", "LAUNCH_REQUEST_BAD"),
            ("{\"name\":\"a\",\"as\":\"root\"}\n", "LAUNCH_REQUEST_BAD"),
            (&long, "LAUNCH_REQUEST_BAD"),
            ("{\"name\":\"a b\"}\n", "LAUNCH_NAME_BAD"),
        ] {
            assert_eq!(ask(&socket, request).await.reason.as_deref(), Some(reason));
        }
        assert_eq!(socket.launches.len(), 0);
    }
}
