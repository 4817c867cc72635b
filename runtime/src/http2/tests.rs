//! The server beside a real client, and against clients that break every rule (RFC 9113; names of attacks as they became known).

use std::time::Duration;

use axum::Router;
use axum::body::Body as AxumBody;
use axum::routing::post;
use futures_util::StreamExt as _;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use super::frame::{self, Code, HEAD_BYTES, Head, PREFACE};
use super::*;

/// What the tests ask.
fn router() -> Router {
    let answer = |body: AxumBody| async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        AxumBody::new(body.with_trailers(async move { Some(Ok(trailers)) }))
    };
    Router::new()
        .route("/echo", post(answer))
        .route("/path", post(|request: Request<AxumBody>| async move { request.uri().path().to_owned() }))
        .route("/never", post(std::future::pending::<String>))
        .route(
            "/endless",
            post(|| async {
                let frames = futures_util::stream::repeat(Bytes::from_static(&[7; 1_000]));
                AxumBody::new(StreamBody::new(frames.map(|bytes| Ok::<_, Infallible>(http_body::Frame::data(bytes)))))
            }),
        )
        .route("/left", post(|| async { "done" }))
        .route(
            "/hoard",
            post(|body: Bytes| async move {
                std::future::pending::<()>().await;
                drop(body);
            }),
        )
        .route("/count", post(|body: Bytes| async move { body.len().to_string() }))
        .route(
            "/elsewhere",
            post(|body: AxumBody| async move {
                let read = tokio::spawn(async move { body.collect().await.unwrap().to_bytes().len() });
                read.await.unwrap().to_string()
            }),
        )
        .route(
            "/slow",
            post(|| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                "done"
            }),
        )
}

fn serve_one() -> (DuplexStream, JoinHandle<()>, Shutdown) {
    serve_with(Limits::default())
}

fn serve_with(limits: Limits) -> (DuplexStream, JoinHandle<()>, Shutdown) {
    let (client, server) = tokio::io::duplex(1 << 16);
    let shutdown = Shutdown::new();
    let asked = shutdown.clone();
    let serving = tokio::spawn(async move { serve(server, Extensions::new(), router(), limits, &asked).await });
    (client, serving, shutdown)
}

/// A real client.
async fn connect() -> (h2::client::SendRequest<Bytes>, JoinHandle<()>, Shutdown) {
    connect_with(Limits::default()).await
}

async fn connect_with(limits: Limits) -> (h2::client::SendRequest<Bytes>, JoinHandle<()>, Shutdown) {
    let (client, serving, shutdown) = serve_with(limits);
    let (sender, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    (sender, serving, shutdown)
}

fn request(path: &str) -> Request<()> {
    Request::post(format!("http://socket{path}")).header("x-many", "a").body(()).unwrap()
}

/// Sends `body` as fast as the server takes it.
async fn send(mut to: h2::SendStream<Bytes>, mut body: Bytes) {
    while !body.is_empty() {
        to.reserve_capacity(body.len());
        let room = poll_fn(|cx| to.poll_capacity(cx)).await.unwrap().unwrap();
        to.send_data(body.split_to(room.min(body.len())), false).unwrap();
    }
    to.send_data(Bytes::new(), true).unwrap();
}

async fn whole(mut body: h2::RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut read = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes.unwrap();
        body.flow_control().release_capacity(bytes.len()).unwrap();
        read.extend_from_slice(&bytes);
    }
    (read, body.trailers().await.unwrap())
}

#[tokio::test]
async fn bodies_larger_than_every_window_go_both_ways_with_their_trailers() {
    let (sender, _serving, _) = connect().await;
    let exchanges = (0..8_u8).map(|number| {
        let mut sender = sender.clone();
        async move {
            let body = Bytes::from(vec![number; 300_000 + usize::from(number)]);
            sender = sender.ready().await.unwrap();
            let (response, to) = sender.send_request(request("/echo"), false).unwrap();
            let answer = async {
                let response = response.await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                whole(response.into_body()).await
            };
            let ((read, trailers), ()) = tokio::join!(answer, send(to, body.clone()));
            assert!(read == body, "{} bytes of {number}", read.len());
            assert_eq!(trailers.unwrap().get("grpc-status").unwrap(), "0");
        }
    });
    futures_util::future::join_all(exchanges).await;
}

#[tokio::test]
async fn one_connection_serves_one_request_after_the_other() {
    let (mut sender, _serving, _) = connect().await;
    for count in 0..3_000 {
        sender = sender.ready().await.unwrap();
        let (response, to) = sender.send_request(request("/left"), count % 2 == 0).unwrap();
        let response = response.await.unwrap();
        assert_eq!(whole(response.into_body()).await.0, b"done");
        // The other half of the requests is never completed: the server takes no interest in the rest.
        drop(to);
    }
    sender = sender.ready().await.unwrap();
    let (response, _) = sender.send_request(request("/missing"), true).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_body_nobody_reads_gives_its_window_back() {
    let (mut sender, _serving, _) = connect().await;
    for _ in 0..40 {
        sender = sender.ready().await.unwrap();
        let (response, mut to) = sender.send_request(request("/slow"), false).unwrap();
        to.reserve_capacity(10_000);
        poll_fn(|cx| to.poll_capacity(cx)).await.unwrap().unwrap();
        let _ = to.send_data(Bytes::from(vec![0; 10_000]), true);
        response.await.unwrap();
    }
}

/// Each stream alone has too little to speak of, all together have used up what they share.
#[tokio::test]
async fn streams_that_send_a_little_each_do_not_starve_each_other() {
    for path in ["/count", "/elsewhere"] {
        let (mut client, _serving, _shutdown) = serve_one();
        client.write_all(&hello()).await.unwrap();
        for stream in (1..20).step_by(2) {
            client.write_all(&open(stream, path, 0)).await.unwrap();
            client.write_all(&framed(frame::DATA, 0, stream, &[0; 6_500])).await.unwrap();
        }
        let (mut bytes, mut room) = (Vec::new(), 0);
        while room < 3 * 16_384 {
            let read = tokio::time::timeout(Duration::from_secs(10), client.read_buf(&mut bytes)).await;
            assert!(read.expect("the window comes back").unwrap() > 0);
            let updates = frames(&bytes).into_iter().filter(|(head, _)| head.kind == frame::WINDOW_UPDATE);
            room = updates
                .filter(|(head, _)| head.stream == 0)
                .map(|(_, more)| u32::from_be_bytes(more.try_into().unwrap()))
                .sum();
        }
    }
}

#[tokio::test]
async fn what_unanswered_requests_bring_is_limited() {
    let limits = Limits { unanswered_max: 2 << 20, ..Limits::default() };
    let (mut sender, _serving, _) = connect_with(limits).await;
    let mut waiting = Vec::new();
    for _ in 0..60 {
        sender = sender.ready().await.unwrap();
        let (response, to) = sender.send_request(request("/hoard"), false).unwrap();
        waiting.push(response);
        // One that was reset takes no more.
        let sent = tokio::spawn(send(to, Bytes::from(vec![0; 50_000])));
        let _ = sent.await;
    }
    let mut refused = 0;
    for response in waiting {
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(5), response).await {
            assert_eq!(answer.unwrap_err().reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
            refused += 1;
        }
    }
    assert!((15..25).contains(&refused), "{refused} of 60 do not fit into 2 MiB");
    sender = sender.ready().await.unwrap();
    let (response, _) = sender.send_request(request("/left"), true).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK, "others are served");
}

#[tokio::test]
async fn shutdown_completes_what_is_at_hand_and_takes_no_more() {
    let (mut sender, serving, shutdown) = connect().await;
    let (response, to) = sender.send_request(request("/echo"), false).unwrap();
    let (response, ()) = tokio::join!(response, async {
        tokio::task::yield_now().await;
        shutdown.trigger();
        send(to, Bytes::from_static(b"late")).await;
    });
    assert_eq!(whole(response.unwrap().into_body()).await.0, b"late");
    serving.await.unwrap();
    assert!(sender.ready().await.is_err());
}

/// What stands in front of everything a client says.
fn hello() -> Vec<u8> {
    [&PREFACE[..], &framed(frame::SETTINGS, 0, 0, &[])].concat()
}

fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::put(&mut bytes, kind, flags, stream, payload);
    bytes
}

/// A POST without compression.
fn post_head(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", "POST"), (":scheme", "http"), (":path", path)].iter().chain(more) {
        hpack::put_field(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

fn open(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    framed(frame::HEADERS, flags | frame::END_HEADERS, stream, &post_head(path, &[]))
}

/// Sends `bytes` and reads until the server closes.
async fn said(bytes: &[u8]) -> Vec<(Head, Vec<u8>)> {
    let (mut client, serving, _) = serve_one();
    let (mut reader, mut writer) = tokio::io::split(&mut client);
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), async {
        let written = async {
            let _ = writer.write_all(bytes).await;
        };
        let (_, read) = tokio::join!(written, reader.read_to_end(&mut answer));
        read
    });
    read.await.expect("the server ends").unwrap();
    serving.await.unwrap();
    frames(&answer)
}

fn frames(mut bytes: &[u8]) -> Vec<(Head, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(head) = Head::read(bytes).filter(|head| bytes.len() >= HEAD_BYTES + head.length) {
        frames.push((head, bytes[HEAD_BYTES..HEAD_BYTES + head.length].to_vec()));
        bytes = &bytes[HEAD_BYTES + head.length..];
    }
    frames
}

fn goodbye(frames: &[(Head, Vec<u8>)]) -> Option<u32> {
    let (_, payload) = frames.iter().find(|(head, _)| head.kind == frame::GOAWAY)?;
    Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))
}

#[tokio::test]
async fn whoever_breaks_the_rules_is_told_how_and_closed() {
    let ask = open(1, "/never", frame::END_STREAM);
    let long = vec![0; 16_385];
    let bad_settings = |name: u16, value: u32| {
        framed(frame::SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
    };
    let continued = |count: usize, part: &[u8]| {
        let first = framed(frame::HEADERS, 0, 1, &[]);
        [first, framed(frame::CONTINUATION, 0, 1, part).repeat(count)].concat()
    };
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("a frame that is too long", framed(frame::DATA, 0, 1, &long), Code::FrameSize),
        ("data before a request", framed(frame::DATA, 0, 1, b"x"), Code::Protocol),
        ("data on the connection", framed(frame::DATA, 0, 0, b"x"), Code::Protocol),
        ("padding longer than its frame", framed(frame::HEADERS, frame::PADDED | 4, 1, &[9, 0]), Code::Protocol),
        ("an even stream", open(2, "/echo", 1), Code::Protocol),
        ("stream 0", open(0, "/echo", 1), Code::Protocol),
        ("a push", framed(frame::PUSH_PROMISE, 4, 1, &[0; 8]), Code::Protocol),
        ("continuation of nothing", framed(frame::CONTINUATION, 4, 1, &[0x82]), Code::Protocol),
        (
            "a header block interrupted",
            [continued(0, b""), framed(frame::PING, 0, 0, &[0; 8])].concat(),
            Code::Protocol,
        ),
        ("many continuations", continued(100, b""), Code::EnhanceYourCalm),
        ("long continuations", continued(3, &vec![0; 16_000]), Code::EnhanceYourCalm),
        ("garbled header compression", framed(frame::HEADERS, 4, 1, &[0xff; 20]), Code::Compression),
        ("a short ping", framed(frame::PING, 0, 0, &[0; 7]), Code::FrameSize),
        ("a ping on a stream", framed(frame::PING, 0, 1, &[0; 8]), Code::Protocol),
        ("a short window update", framed(frame::WINDOW_UPDATE, 0, 0, &[0; 3]), Code::FrameSize),
        ("a window update of nothing", framed(frame::WINDOW_UPDATE, 0, 0, &[0; 4]), Code::Protocol),
        ("a window beyond the largest", framed(frame::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]), Code::FlowControl),
        ("a window update of an idle stream", framed(frame::WINDOW_UPDATE, 0, 7, &[0, 0, 0, 1]), Code::Protocol),
        ("a reset of an idle stream", framed(frame::RST_STREAM, 0, 7, &[0; 4]), Code::Protocol),
        ("a short reset", [ask.clone(), framed(frame::RST_STREAM, 0, 1, &[0; 3])].concat(), Code::FrameSize),
        ("settings of 5 bytes", framed(frame::SETTINGS, 0, 0, &[0; 5]), Code::FrameSize),
        ("settings of a stream", framed(frame::SETTINGS, 0, 1, &[]), Code::Protocol),
        ("an acknowledgement with content", framed(frame::SETTINGS, 1, 0, &[0; 6]), Code::FrameSize),
        ("an initial window beyond the largest", bad_settings(4, 1 << 31), Code::FlowControl),
        ("tiny frames", bad_settings(5, 1), Code::Protocol),
        ("a push setting of 2", bad_settings(2, 2), Code::Protocol),
        ("a priority of 4 bytes", framed(frame::PRIORITY, 0, 1, &[0; 4]), Code::FrameSize),
        ("a goodbye of a stream", framed(frame::GOAWAY, 0, 1, &[0; 8]), Code::Protocol),
        (
            "requests taken back again and again",
            (0..200)
                .flat_map(|at| [open(at * 2 + 1, "/never", 1), framed(frame::RST_STREAM, 0, at * 2 + 1, &[0; 4])])
                .collect::<Vec<_>>()
                .concat(),
            Code::EnhanceYourCalm,
        ),
        (
            "more than the window",
            [open(1, "/never", 0), framed(frame::DATA, 0, 1, &[0; 16_384]).repeat(4)].concat(),
            Code::FlowControl,
        ),
    ];
    for (what, bytes, code) in cases {
        let heard = said(&[hello(), bytes].concat()).await;
        assert_eq!(goodbye(&heard), Some(code as u32), "{what}: {heard:?}");
    }
    let first = said(&[&PREFACE[..], &framed(frame::PING, 0, 0, &[0; 8])].concat()).await;
    assert_eq!(goodbye(&first), Some(Code::Protocol as u32), "settings come first");
}

#[tokio::test]
async fn a_bad_request_costs_its_stream_alone() {
    let head = |stream: u32, more: &[(&str, &str)]| {
        framed(frame::HEADERS, frame::END_HEADERS, stream, &post_head("/echo", more))
    };
    let long = "x".repeat(9_000);
    let large = [("a", long.as_str()), ("b", &long), ("c", &long), ("d", &long)];
    let mut block = post_head("/echo", &large);
    let tail = block.split_off(16_000);
    let (tail, end) = tail.split_at(16_000);
    let streams = [
        (head(1, &[("connection", "close")]), Code::Protocol),
        ([head(3, &[("content-length", "2")]), framed(frame::DATA, 1, 3, b"x")].concat(), Code::Protocol),
        ([head(5, &[("content-length", "2")]), framed(frame::DATA, 0, 5, b"xyz")].concat(), Code::Protocol),
        ([head(7, &[]), framed(frame::HEADERS, 4, 7, &post_head("/", &[]))].concat(), Code::Protocol),
        ([open(9, "/never", 1), framed(frame::DATA, 0, 9, b"x")].concat(), Code::StreamClosed),
        ([open(11, "/never", 1), framed(frame::WINDOW_UPDATE, 0, 11, &[0; 4])].concat(), Code::Protocol),
    ];
    let mut bytes = hello();
    streams.iter().for_each(|(sent, _)| bytes.extend_from_slice(sent));
    bytes.extend(open(21, "/path", frame::END_STREAM));
    bytes.extend(framed(frame::GOAWAY, 0, 0, &[0; 8]));
    let heard = said(&bytes).await;
    for (at, (_, code)) in streams.iter().enumerate() {
        let id = u32::try_from(at * 2 + 1).unwrap();
        let reset = heard.iter().find(|(head, _)| head.kind == frame::RST_STREAM && head.stream == id);
        assert_eq!(reset.map(|(_, payload)| &payload[..]), Some(&(*code as u32).to_be_bytes()[..]), "stream {id}");
    }
    let answer = heard.iter().find(|(head, _)| head.kind == frame::DATA && head.stream == 21).unwrap();
    assert_eq!(answer.1, b"/path", "the others are served");

    let head = [
        framed(frame::HEADERS, 1, 1, &block),
        framed(frame::CONTINUATION, 0, 1, tail),
        framed(frame::CONTINUATION, 4, 1, end),
    ];
    let heard = said(&[hello(), head.concat()].concat()).await;
    assert_eq!(goodbye(&heard), Some(Code::EnhanceYourCalm as u32), "a head of 36,000 bytes");
}

#[tokio::test]
async fn streams_at_once_are_limited() {
    let limits = Limits { streams_max: 3, ..Limits::default() };
    let (mut client, _serving, shutdown) = serve_with(limits);
    let asked: Vec<u8> = (0..5).flat_map(|at| open(at * 2 + 1, "/never", frame::END_STREAM)).collect();
    client.write_all(&[hello(), asked].concat()).await.unwrap();
    let mut bytes = vec![0; 4096];
    let mut read = 0;
    while frames(&bytes[..read]).iter().filter(|(head, _)| head.kind == frame::RST_STREAM).count() < 2 {
        read += client.read(&mut bytes[read..]).await.unwrap();
    }
    let refused: Vec<_> = frames(&bytes[..read])
        .into_iter()
        .filter(|(head, _)| head.kind == frame::RST_STREAM)
        .map(|(head, payload)| (head.stream, payload[3]))
        .collect();
    assert_eq!(refused, [(7, Code::RefusedStream as u8), (9, Code::RefusedStream as u8)]);
    drop(shutdown);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_greets_or_never_reads_is_closed() {
    let (mut silent, serving, _) = serve_one();
    silent.write_all(&PREFACE[..10]).await.unwrap();
    serving.await.unwrap();

    let (mut deaf, serving, _) = serve_one();
    let window =
        [framed(frame::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]), framed(frame::WINDOW_UPDATE, 0, 1, &[0x7f, 0, 0, 0])];
    deaf.write_all(&[hello(), open(1, "/endless", 1), window.concat()].concat()).await.unwrap();
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_is_kept() {
    let (mut slow, serving, _) = serve_one();
    let wide = |stream| framed(frame::WINDOW_UPDATE, 0, stream, &[0x7f, 0, 0, 0]);
    slow.write_all(&[hello(), open(1, "/endless", 1), wide(0), wide(1)].concat()).await.unwrap();
    let mut bytes = [0; 1_000];
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        slow.read_exact(&mut bytes).await.unwrap();
        slow.write_all(&framed(frame::PING, 0, 0, b"12345678")).await.unwrap();
    }
    assert!(!serving.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_connection_at_rest_stays() {
    let (mut client, serving, _) = serve_one();
    client.write_all(&[hello(), open(1, "/never", 1)].concat()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    assert!(!serving.is_finished());
    drop(client);
    serving.await.unwrap();
}

#[tokio::test]
async fn pings_are_answered_and_a_flood_of_them_does_not_pile_up() {
    let (mut client, serving, _) = serve_one();
    let (mut reader, mut writer) = tokio::io::split(&mut client);
    writer.write_all(&hello()).await.unwrap();
    let flood = framed(frame::PING, 0, 0, b"12345678").repeat(1_000);
    // Nobody reads the answers: the server stops to read the questions.
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_millis(200), writer.write_all(&flood)).await.is_ok() {
        sent += flood.len();
        assert!(sent < 1 << 20, "the server takes questions whose answers nobody reads");
    }
    let mut answer = vec![0; 40_000];
    reader.read_exact(&mut answer).await.unwrap();
    let answer = answer.windows(HEAD_BYTES + 8).find(|bytes| bytes.ends_with(b"12345678")).unwrap();
    assert_eq!(Head::read(answer).map(|head| (head.kind, head.flags)), Some((frame::PING, frame::ACK)));
    drop(client);
    serving.await.unwrap();
}

#[tokio::test]
async fn another_protocol_is_told_what_is_spoken_here() {
    let (mut client, serving, _) = serve_one();
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 505 ") && answer.ends_with("gRPC over HTTP/2.\n"), "{answer}");
    serving.await.unwrap();
    let (mut client, serving, _) = serve_one();
    client.write_all(&[0x16, 3, 1, 0, 1]).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"");
    serving.await.unwrap();
}

#[tokio::test]
async fn a_smaller_table_is_acknowledged_before_the_next_head() {
    let settings = framed(frame::SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]);
    let ask = [open(1, "/path", 1), framed(frame::GOAWAY, 0, 0, &[0; 8])].concat();
    let heard = said(&[&PREFACE[..], &settings, &ask].concat()).await;
    let (_, block) = heard.iter().find(|(head, _)| head.kind == frame::HEADERS).unwrap();
    assert_eq!(block[..2], [0x20, 0x88]);
}

/// Frames that are nearly right: kinds, flags and streams that exist, payloads of all sorts.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(post_head("/echo", &[])),
        Just(post_head("/endless", &[])),
        Just(vec![0, 0, 0, 1]),
        Just(vec![0; 8]),
    ];
    (0_u8..11, any::<u8>(), 0_u32..8, payload)
        .prop_map(|(kind, flags, stream, payload)| framed(kind, flags, stream, &payload))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_server_neither_panics_nor_holds_on(
        frames in proptest::collection::vec(any_frame(), 0..40),
        noise in proptest::collection::vec(any::<u8>(), 0..30),
        cut in 1_usize..2_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, serving, _) = serve_one();
            let bytes = [hello(), frames.concat(), noise].concat();
            let (mut reader, mut writer) = tokio::io::split(client);
            let reading = tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while reader.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
            });
            for part in bytes.chunks(cut) {
                if writer.write_all(part).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let _ = writer.shutdown().await;
            drop(writer);
            serving.await.expect("no panic");
            reading.abort();
        });
    }
}
