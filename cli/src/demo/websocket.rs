//! WebSocket echo over an HTTP/1.1 upgrade (RFC 6455).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use runtime::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// The room for WebSockets. Clones share it.
#[derive(Clone)]
pub(super) struct WebSockets {
    room: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl WebSockets {
    pub(super) fn new(shutdown: Shutdown) -> Self {
        Self { room: Arc::new(Semaphore::new(WEBSOCKETS_MAX)), shutdown }
    }
}

/// Answers the handshake and echoes in a task of its own.
pub(super) fn accept(sockets: &WebSockets, mut request: Request) -> Response {
    let Some(key) = handshake_key(request.headers()) else {
        let hint = [(header::UPGRADE, "websocket"), (header::SEC_WEBSOCKET_VERSION, "13")];
        return (StatusCode::UPGRADE_REQUIRED, hint, "this is a WebSocket\n").into_response();
    };
    let Ok(permit) = sockets.room.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many WebSockets\n").into_response();
    };
    let accepted = derive_accept_key(key.as_bytes());
    let (upgrade, shutdown) = (hyper::upgrade::on(&mut request), sockets.shutdown.clone());
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => echo(TokioIo::new(stream), shutdown, permit).await,
            Err(error) => tracing::debug!(%error, "websocket upgrade failed"),
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accepted),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

/// The client's key, if it asks for a WebSocket of the one version there is.
fn handshake_key(headers: &HeaderMap) -> Option<String> {
    let asks = has_token(headers, &header::CONNECTION, "upgrade")
        && has_token(headers, &header::UPGRADE, "websocket")
        && has_token(headers, &header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    asks.then(|| key.to_owned())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: S, shutdown: Shutdown, permit: OwnedSemaphorePermit) {
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    match shutdown.unless(echo_messages(&mut socket)).await {
        Some(Err(error)) => tracing::debug!(%error, "websocket ended"),
        Some(Ok(())) => (),
        None => {
            let away = CloseFrame { code: CloseCode::Away, reason: "the workload ends".into() };
            let _ = tokio::time::timeout(GOODBYE_MAX, socket.close(Some(away))).await;
        }
    }
    drop(permit);
}

async fn echo_messages<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> Result<(), Error> {
    while let Ok(Some(message)) = tokio::time::timeout(IDLE_MAX, socket.next()).await {
        match message? {
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await?,
            Message::Close(_) => return farewell(socket).await,
            // A ping's pong is queued by the library and needs only to be sent.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => socket.flush().await?,
        }
    }
    Ok(())
}

/// Sends the answer to the client's close frame, which the library has queued.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> Result<(), Error> {
    match socket.flush().await {
        Err(Error::ConnectionClosed) => Ok(()),
        other => other,
    }
}

/// WebSockets at once.
const WEBSOCKETS_MAX: usize = 1_024;
/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How long a silent WebSocket is kept.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long the last word may take.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
