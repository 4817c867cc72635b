//! Streams that never end by themselves: a gRPC call and a WebSocket.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use harness::steady::Counts;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_stream::wrappers::ReceiverStream;

use super::{ANSWER_MAX, PAUSE};

/// A call of `grpc.reflection.v1.ServerReflection/ServerReflectionInfo`, asked again and again, for as long as it is let be. No
/// stream ends by itself, so one that has answered and ends was ended by the mesh.
pub(super) fn reflect(address: SocketAddr, host: &str, counts: &Counts) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(address).await?;
        let (mut send, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
        tokio::spawn(conn);
        let (asks, asked) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
        let request =
            hyper::Request::post(format!("http://{host}/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(StreamBody::new(ReceiverStream::new(asked)))?;
        asks.send(Ok(Frame::data(LIST_SERVICES))).await?;
        let answer = tokio::time::timeout(ANSWER_MAX, send.send_request(request)).await??;
        ensure!(answer.status() == 200, "{answer:?}");
        let mut body = answer.into_body();
        let mut begun = false;
        while counts.goes_on() {
            if !is_answered(&mut body).await? {
                ensure!(begun, "ended before it answered");
                counts.reopened();
                return Ok(());
            }
            begun = true;
            counts.answered();
            tokio::time::sleep(PAUSE).await;
            // Whoever does not hear any more has ended the stream, which the next look tells.
            let _ = asks.send(Ok(Frame::data(LIST_SERVICES))).await;
        }
        Ok(())
    })
}

/// Reads one message; false when the stream has ended.
async fn is_answered(body: &mut Incoming) -> Result<bool> {
    let mut message = Vec::new();
    loop {
        let Some(Ok(frame)) = tokio::time::timeout(ANSWER_MAX, body.frame()).await? else { return Ok(false) };
        let Ok(data) = frame.into_data() else { return Ok(false) };
        message.extend_from_slice(&data);
        if let Some((head, rest)) = message.split_first_chunk::<5>()
            && rest.len() >= u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize
        {
            return Ok(true);
        }
    }
}

/// A WebSocket that is asked again and again, for as long as it holds.
pub(super) fn chat(address: SocketAddr, host: &str, counts: &Counts) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_nodelay(true)?;
    let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: \
                   AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(format!("GET /helloworld/ws HTTP/1.1\r\nhost: {host}\r\n{upgrade}").as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        ensure!(head.len() < HEAD_BYTES_MAX, "a head without an end");
    }
    ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    while counts.goes_on() {
        stream.write_all(QUESTION)?;
        let mut back = [0; ANSWER.len()];
        match stream.read(&mut back)? {
            0 => {
                counts.reopened();
                return Ok(());
            }
            got => stream.read_exact(&mut back[got..])?,
        }
        if back != *ANSWER {
            bail!("another echo: {back:?}");
        }
        counts.answered();
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// `ServerReflectionRequest { list_services: "*" }` in a gRPC frame.
const LIST_SERVICES: Bytes = Bytes::from_static(b"\0\0\0\0\x03\x3a\x01*");
/// A text frame with `drill`, masked with zeros, and its echo.
const QUESTION: &[u8] = b"\x81\x85\0\0\0\0drill";
const ANSWER: &[u8; 7] = b"\x81\x05drill";
const HEAD_BYTES_MAX: usize = 16 * 1024;
