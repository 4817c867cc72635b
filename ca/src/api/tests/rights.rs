//! Every method of every service, asked by every kind of caller: who is let in stands in one table.

use std::collections::BTreeMap;

use prost::Message;
use prost::bytes::{Buf, BufMut};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;

use super::*;

/// Methods that an agent may call; everybody else may not.
const AGENT: &[&str] = &[
    "BatchNewX509SVID",
    "BatchNewWITSVID",
    "NewJWTSVID",
    "GetAuthorizedEntries",
    "SyncAuthorizedEntries",
    "RenewAgent",
    "PostStatus",
    "Watch",
    "FetchRevocations",
];
/// Methods that agents and administrators may call.
const AGENT_AND_ADMIN: &[&str] = &["GetFederatedBundle"];
/// Methods that servers below this one may call; everybody else may not.
const DOWNSTREAM: &[&str] = &["NewDownstreamX509CA", "PublishJWTAuthority", "PublishWITAuthority"];
/// Methods that anyone may call.
const ANYONE: &[&str] = &["GetBundle", "AttestAgent"];

#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// Path by method name.
fn methods() -> BTreeMap<String, String> {
    let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = BTreeMap::new();
    for file in &set.file {
        let package = file.package();
        if !package.starts_with("spire.api.server.") && package != "kasbah.node.v1" {
            continue;
        }
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{package}.{}/{}", service.name(), method.name());
                assert!(methods.insert(method.name().to_owned(), path).is_none(), "{} twice", method.name());
            }
        }
    }
    assert!(methods.len() > 50, "{}", methods.len());
    methods
}

/// The refusal's reason when the caller has no right, `None` when the method at least looked at the request.
async fn refused(channel: &Channel, path: &str) -> Option<String> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let request = tonic::Request::new(tokio_stream::once(Vec::new()));
    let outcome = match grpc.streaming(request, path.parse().unwrap(), Raw).await {
        Ok(answers) => answers.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    let status = outcome.err().filter(|status| status.code() == Code::PermissionDenied)?;
    Some(runtime::refusal::reason_of(&status).expect("a reason"))
}

async fn check(channel: Channel, open: &[&[&str]], reason: &str) {
    for (name, path) in methods() {
        let expected = match name.as_str() {
            name if open.iter().any(|group| group.contains(&name)) => None,
            name if DOWNSTREAM.contains(&name) && reason != "CLIENT_CERTIFICATE_MISSING" => {
                Some("CALLER_NOT_DOWNSTREAM")
            }
            _ => Some(reason),
        };
        assert_eq!(refused(&channel, &path).await.as_deref(), expected, "{path}");
    }
}

/// An authority that hears every stranger out.
async fn unlimited() -> Running {
    let limits = crate::AddressLimitSettings { requests_per_minute: 0, refusals_per_minute: 0, ..Default::default() };
    Running::start_with(|settings| settings.address_limits = limits).await
}

async fn a_caller_without_a_certificate_may_next_to_nothing() {
    let ca = unlimited().await;
    check(ca.network(None), &[ANYONE], "CLIENT_CERTIFICATE_MISSING").await;
}

async fn a_workload_may_no_more_than_anyone() {
    let ca = Running::start().await;
    let web = ca.mint("/ns/default/sa/web").await;
    let channel = ca.network(Some(&web));
    for (name, path) in methods() {
        let reason = refused(&channel, &path).await;
        let expected = match name.as_str() {
            name if ANYONE.contains(&name) => None,
            name if AGENT.contains(&name) => Some("CALLER_NOT_AGENT"),
            name if DOWNSTREAM.contains(&name) => Some("CALLER_NOT_DOWNSTREAM"),
            _ => Some("CALLER_NOT_ADMIN"),
        };
        assert_eq!(reason.as_deref(), expected, "{path}");
    }
}

async fn an_agent_may_what_agents_may() {
    let ca = Running::start().await;
    let node = ca.node(None).await;
    check(ca.network(Some(&node)), &[ANYONE, AGENT, AGENT_AND_ADMIN], "CALLER_NOT_ADMIN").await;
}

async fn the_local_socket_may_all_but_act_as_an_agent() {
    let ca = Running::start().await;
    let (channel, all) = (ca.local().await, methods());
    let of_others = |name: &&str| AGENT.contains(name) || DOWNSTREAM.contains(name);
    let open: Vec<&str> = all.keys().map(String::as_str).filter(|name| !of_others(name)).collect();
    check(channel, &[&open], "CALLER_NOT_AGENT").await;
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&ca.addresses.admin_socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

/// Whoever sends noise has an answer for each call, and everybody else is served.
async fn noise_from_strangers_hurts_nobody() {
    let ca = unlimited().await;
    let channel = ca.network(None);
    for (name, path) in methods() {
        for round in 0..8_u8 {
            let mut noise = identity::digest::random::<64>().to_vec();
            // Lengths and tags that lie come up more often than by chance.
            noise[usize::from(round)] = [0xff, 0x0a, 0x12, 0x80][usize::from(round % 4)];
            let mut grpc = Grpc::new(channel.clone());
            grpc.ready().await.unwrap();
            let request = tonic::Request::new(tokio_stream::iter([noise.clone(), Vec::new()]));
            let outcome = match grpc.streaming(request, path.parse().unwrap(), Raw).await {
                Ok(answers) => answers.into_inner().message().await.map(drop),
                Err(status) => Err(status),
            };
            if let Err(status) = outcome {
                let broken =
                    ["h2 protocol error", "transport error"].iter().any(|word| status.message().contains(word));
                assert!(!broken, "{name} {noise:02x?}: {status:?}");
            }
        }
    }
    ca.mint("/ops").await;
}

crate::testing::database::on_each_database! {
    noise_from_strangers_hurts_nobody,
    a_caller_without_a_certificate_may_next_to_nothing,
    a_workload_may_no_more_than_anyone,
    an_agent_may_what_agents_may,
    the_local_socket_may_all_but_act_as_an_agent,
}
