//! TCP echo.

use std::io;
use std::sync::Arc;

use runtime::shutdown::Shutdown;
use runtime::tasks::TaskSet;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Gives back to every connection what it sends, until `shutdown`.
pub(super) async fn run(listener: TcpListener, shutdown: Shutdown) {
    let (mut tasks, room) = (TaskSet::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    loop {
        let accepted = shutdown.unless(async {
            let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((listener.accept().await?.0, permit))
        });
        match accepted.await {
            None => break,
            Some(Err(error)) => runtime::serve::pause_after(&error).await,
            Some(Ok((stream, permit))) => tasks.spawn("echo", async move {
                if let Err(error) = echo(stream).await {
                    tracing::debug!(%error, "echo ended");
                }
                drop(permit);
            }),
        }
    }
    tasks.abort().await;
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

/// Connections at once; further ones wait.
const CONNECTIONS_MAX: usize = 1_024;
