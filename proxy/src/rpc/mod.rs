//! Calls of our own to gRPC services, over the same clusters, pools and identities as requests take.

pub(crate) mod access_log;
pub(crate) mod ext_authz;
pub(crate) mod rate_limit;

use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, Method};
use http_body_util::{BodyExt, Limited};
use prost::Message;
use routing::filters::GrpcTarget;

use crate::http::body::Body;
use crate::http::reply::{GRPC_MESSAGE, GRPC_STATUS};
use crate::upstream::pool::Speak;
use crate::upstream::send::{Answered, Failure, Outgoing, Progress, send};
use crate::worker::state::Worker;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RpcError {
    #[error("there is no cluster {0}")]
    NoCluster(Rc<str>),
    #[error("no endpoint of the service can be used")]
    NoEndpoint,
    #[error("the service cannot be reached: {0}")]
    Failed(String),
    #[error("the service did not answer in time")]
    Timeout,
    #[error("the service answered with status {code}: {message}")]
    Status {
        /// Its gRPC status.
        code: u16,
        message: String,
    },
    #[error("the answer cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    #[error("the answer is no gRPC message")]
    Malformed,
}

/// Calls `path` of a service with one message and takes one message back.
pub(crate) async fn call<Q, A>(
    worker: &Rc<Worker>,
    target: &GrpcTarget,
    path: &'static str,
    question: &Q,
    timeout: Duration,
) -> Result<A, RpcError>
where
    Q: Message,
    A: Message + Default,
{
    call_framed(worker, target, path, frame(question), timeout).await
}

/// Calls `path` with a message that is encoded already.
pub(crate) async fn call_encoded<A: Message + Default>(
    worker: &Rc<Worker>,
    target: &GrpcTarget,
    path: &'static str,
    message: &[u8],
    timeout: Duration,
) -> Result<A, RpcError> {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(message);
    call_framed(worker, target, path, framed.freeze(), timeout).await
}

async fn call_framed<A: Message + Default>(
    worker: &Rc<Worker>,
    target: &GrpcTarget,
    path: &'static str,
    message: Bytes,
    timeout: Duration,
) -> Result<A, RpcError> {
    let exchange = async {
        let answered = begin(worker, target, path, message).await?;
        let answer = finish(answered).await?;
        Ok(A::decode(answer)?)
    };
    tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(RpcError::Timeout))
}

async fn begin(
    worker: &Rc<Worker>,
    target: &GrpcTarget,
    path: &'static str,
    message: Bytes,
) -> Result<Answered, RpcError> {
    let cluster = worker.config().cluster(&target.cluster);
    let cluster = cluster.ok_or_else(|| RpcError::NoCluster(Rc::from(&*target.cluster)))?;
    let authority = target.authority.as_deref().unwrap_or(&target.cluster);
    let outgoing = Outgoing {
        method: Method::POST,
        scheme: Scheme::HTTP,
        authority: authority.parse().unwrap_or_else(|_| Authority::from_static("service")),
        path: PathAndQuery::from_static(path),
        headers: headers(target),
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let chosen = cluster.pick(worker.random.next(), None, &[], None).ok_or(RpcError::NoEndpoint)?;
        let pool = cluster.pool(worker, &chosen, authority);
        let _in_flight = cluster.begin(chosen.index);
        match send(&pool, Speak::Http2, &outgoing, Body::Full(message.clone())).await {
            Ok(answered) => return Ok(answered),
            Err(failure) if tries < TRIES_MAX && may_repeat(&failure) => {}
            Err(failure) => return Err(RpcError::Failed(format!("{}: {}", failure.reason, failure.details))),
        }
    }
}

/// A question to a service changes nothing there, so it may be asked again.
fn may_repeat(failure: &Failure) -> bool {
    matches!(failure.progress, Progress::NotSent | Progress::Refused | Progress::Sent { reused: true })
}

async fn finish(answered: Answered) -> Result<Bytes, RpcError> {
    let Answered { head, body, hold, .. } = answered;
    check_status(&head.headers)?;
    let collected =
        Limited::new(body, MESSAGE_BYTES_MAX).collect().await.map_err(|e| RpcError::Failed(e.to_string()))?;
    drop(hold);
    if let Some(trailers) = collected.trailers() {
        check_status(trailers)?;
    }
    unframe(collected.to_bytes())
}

fn check_status(headers: &HeaderMap) -> Result<(), RpcError> {
    let Some(status) = headers.get(&GRPC_STATUS) else { return Ok(()) };
    let code: u16 = status.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    if code == 0 {
        return Ok(());
    }
    let message = headers.get(&GRPC_MESSAGE).map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
    Err(RpcError::Status { code, message: message.unwrap_or_default() })
}

fn headers(target: &GrpcTarget) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("kasbah-proxy"));
    for (name, value) in &target.metadata {
        let name: &HeaderName = name;
        headers.append(name.clone(), value.clone());
    }
    headers
}

/// A message with the five bytes in front.
pub(crate) fn frame<M: Message>(message: &M) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(len + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // The buffer grows as needed, so there is always room.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// The first message of a body.
fn unframe(mut body: Bytes) -> Result<Bytes, RpcError> {
    let Some((head, rest)) = body.split_at_checked(5) else { return Err(RpcError::Malformed) };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || rest.len() < len {
        return Err(RpcError::Malformed);
    }
    Ok(body.split_off(5).slice(..len))
}

const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
const TRIES_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitRequest;

    use super::*;

    #[test]
    fn messages_are_framed_and_short_frames_refused() {
        let request = RateLimitRequest { domain: "d".into(), hits_addend: 3, ..RateLimitRequest::default() };
        let framed = frame(&request);
        assert_eq!(RateLimitRequest::decode(unframe(framed.clone()).unwrap()).unwrap(), request);
        assert!(matches!(unframe(framed.slice(..framed.len() - 1)), Err(RpcError::Malformed)));
        assert!(matches!(unframe(Bytes::from_static(&[1, 0, 0, 0, 0])), Err(RpcError::Malformed)));
        assert!(matches!(unframe(Bytes::new()), Err(RpcError::Malformed)));
    }
}
