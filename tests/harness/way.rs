//! The way to a server, which can be made as bad as networks and servers under stress are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What happens to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Bytes go both ways.
    Fair,
    /// What the server says comes so much later.
    Slow(Duration),
    /// Half of what the server says next comes, then the end.
    Half,
    /// Every connection, also an open one, is reset.
    Reset,
    /// Connections are taken and nothing is ever said again on them, also in better weather.
    Silent,
    /// Nobody listens, and what was open is cut.
    Away,
}

/// A port of its own in front of a server.
#[derive(Debug)]
pub struct Way {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    taken: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Way {
    /// A way in fair weather.
    ///
    /// # Errors
    /// When no port is free.
    pub fn to(server: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let (address, taken) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let weather = watch::Sender::new(Weather::Fair);
        runtime.spawn(take(listener, server, weather.subscribe(), taken.clone()));
        Ok(Self { address, weather, taken, runtime: Some(runtime) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// How many connections were taken so far.
    pub fn connections(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn take(first: TcpListener, server: SocketAddr, mut weather: watch::Receiver<Weather>, taken: Arc<AtomicUsize>) {
    let Ok(address) = first.local_addr() else { return };
    let mut listener = Some(first);
    loop {
        if weather.wait_for(|now| *now != Weather::Away).await.is_err() {
            return;
        }
        let open = match listener.take() {
            Some(open) => open,
            None => match TcpListener::bind(address).await {
                Ok(open) => open,
                Err(_) => return,
            },
        };
        loop {
            tokio::select! {
                accepted = open.accept() => if let Ok((client, _)) = accepted {
                    taken.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(carry(client, server, weather.clone()));
                },
                over = until(weather.clone(), &[Weather::Away]) => if over { break } else { return },
            }
        }
    }
}

/// Waits for one of these; false when the way is no more.
async fn until(mut weather: watch::Receiver<Weather>, any: &[Weather]) -> bool {
    weather.wait_for(|now| any.contains(now)).await.is_ok()
}

async fn carry(mut client: TcpStream, server: SocketAddr, weather: watch::Receiver<Weather>) {
    let now = *weather.borrow();
    if now == Weather::Silent {
        let mut ignored = [0; 1024];
        while client.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
        return;
    }
    if now != Weather::Reset
        && let Ok(mut server) = TcpStream::connect(server).await
    {
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
        tokio::select! {
            _ = tokio::io::copy(&mut from_client, &mut to_server) => (),
            _ = answers(&mut from_server, &mut to_client, &weather) => (),
            _ = until(weather.clone(), &[Weather::Reset, Weather::Away]) => (),
        }
    }
    if *weather.borrow() == Weather::Reset {
        // A reset instead of an orderly end.
        let _ = client.set_zero_linger();
    }
}

async fn answers(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    weather: &watch::Receiver<Weather>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let now = *weather.borrow();
        match now {
            Weather::Half => return to.write_all(&buffer[..read / 2]).await,
            Weather::Silent => std::future::pending().await,
            Weather::Slow(late) => tokio::time::sleep(late).await,
            Weather::Fair | Weather::Reset | Weather::Away => (),
        }
        to.write_all(&buffer[..read]).await?;
    }
}
