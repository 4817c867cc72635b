//! Who gets through, who does not, and with which reason.

use std::net::SocketAddr;

use identity::authority::{LeafProfile, X509Authority};
use identity::tls::FixedSnapshot;
use identity::{BundleSet, PrivateKey, SpiffeId, TrustBundle, TrustDomain, X509Svid};
use proto::demo::helloworld::greeter_client::GreeterClient;
use proto::demo::helloworld::greeter_server::{Greeter, GreeterServer};
use proto::demo::helloworld::{HelloReply, HelloRequest};
use tonic::{Request, Response};

use super::*;
use crate::workload_api::{Identity, publisher};

/// Answers with the SPIFFE ID of the caller.
struct WhoAreYou;

#[tonic::async_trait]
impl Greeter for WhoAreYou {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let message = peer_of(&request).map_or_else(|| "nobody".to_owned(), |peer| peer.spiffe_id().to_string());
        Ok(Response::new(HelloReply { message }))
    }
}

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    domain().with_path(path).unwrap()
}

fn authority() -> X509Authority {
    X509Authority::generate_root(&domain(), Duration::from_secs(3600), clock::now()).unwrap()
}

fn identity(authority: &X509Authority, path: &str) -> Identity {
    let key = PrivateKey::generate_p256().unwrap();
    let profile = LeafProfile::new(id(path), Duration::from_secs(600));
    let chain = authority.sign_svid(&key.public_key_spki(), &profile, clock::now()).unwrap();
    let bundle = TrustBundle::from_x509_authorities(domain(), [authority.certificate().clone()]).unwrap();
    let svid = Arc::new(X509Svid::from_parts(chain, key).unwrap());
    Identity::new(vec![svid], Arc::new(BundleSet::new([Arc::new(bundle)]))).unwrap()
}

fn snapshot(identity: &Identity) -> FixedSnapshot {
    FixedSnapshot { svid: Some(identity.svid().clone()), bundles: identity.bundles().clone() }
}

struct Server {
    addr: SocketAddr,
    shutdown: Shutdown,
}

impl Server {
    fn start(source: impl Snapshot + 'static, client_auth: ClientAuth) -> Self {
        let listener = crate::listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let routes = Routes::new(GreeterServer::new(WhoAreYou));
        let serving = serve_tonic(listener, source, client_auth, routes, shutdown.clone());
        tokio::spawn(async move { serving.await.unwrap() });
        Self { addr, shutdown }
    }

    async fn ask(&self, source: impl Snapshot + 'static, peers: PeerRule) -> Result<String, Status> {
        let mut client = GreeterClient::new(channel(&self.addr.to_string(), source, peers));
        Ok(client.say_hello(HelloRequest::default()).await?.into_inner().message)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

#[tokio::test]
async fn both_sides_are_proven() {
    let root = authority();
    let server = Server::start(snapshot(&identity(&root, "/server")), ClientAuth::Required);
    let client = snapshot(&identity(&root, "/client"));
    let heard = server.ask(client, PeerRule::exactly(id("/server"))).await.unwrap();
    assert_eq!(heard, "spiffe://example.org/client");
}

#[tokio::test]
async fn a_client_without_an_svid_or_of_another_root_is_refused() {
    let root = authority();
    let server = Server::start(snapshot(&identity(&root, "/server")), ClientAuth::Required);
    let trusting = identity(&root, "/x").bundles().clone();
    let without = FixedSnapshot { svid: None, bundles: trusting.clone() };
    assert!(server.ask(without, PeerRule::AnyTrusted).await.is_err());
    let stranger = FixedSnapshot { svid: Some(identity(&authority(), "/client").svid().clone()), bundles: trusting };
    assert!(server.ask(stranger, PeerRule::AnyTrusted).await.is_err());
}

#[tokio::test]
async fn an_optional_client_is_nobody() {
    let root = authority();
    let server = Server::start(snapshot(&identity(&root, "/server")), ClientAuth::Optional);
    let without = FixedSnapshot { svid: None, bundles: identity(&root, "/x").bundles().clone() };
    assert_eq!(server.ask(without, PeerRule::AnyTrusted).await.unwrap(), "nobody");
}

#[tokio::test]
async fn a_failed_call_says_why_there_is_no_connection() {
    let root = authority();
    let server = Server::start(snapshot(&identity(&root, "/server")), ClientAuth::Optional);
    let client = snapshot(&identity(&root, "/client"));
    let status = server.ask(client.clone(), PeerRule::exactly(id("/other"))).await.unwrap_err();
    assert_eq!(connect_error_of(&status).unwrap().reason(), "TLS_PEER_ID_UNEXPECTED");
    let stranger = snapshot(&identity(&authority(), "/client"));
    let status = server.ask(stranger, PeerRule::AnyTrusted).await.unwrap_err();
    assert_eq!(connect_error_of(&status).unwrap().reason(), "TLS_PEER_UNTRUSTED");
    let mut nowhere = GreeterClient::new(channel("127.0.0.1:1", client.clone(), PeerRule::AnyTrusted));
    let status = nowhere.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(connect_error_of(&status).unwrap().reason(), "PEER_UNREACHABLE");
    let mut nonsense = GreeterClient::new(channel("nonsense", client, PeerRule::AnyTrusted));
    let status = nonsense.say_hello(HelloRequest::default()).await.unwrap_err();
    assert_eq!(connect_error_of(&status).unwrap().reason(), "ADDRESS_BAD");
}

#[tokio::test]
async fn a_rotated_identity_is_used_by_the_next_connection() {
    let (root, next_root) = (authority(), authority());
    let (publisher, source) = publisher();
    publisher.publish(identity(&root, "/server"));
    let server = Server::start(source, ClientAuth::Required);
    let old = snapshot(&identity(&root, "/client"));
    assert!(server.ask(old.clone(), PeerRule::AnyTrusted).await.is_ok());
    publisher.publish(identity(&next_root, "/server"));
    assert!(server.ask(old, PeerRule::AnyTrusted).await.is_err());
    let new = snapshot(&identity(&next_root, "/client"));
    assert!(server.ask(new, PeerRule::AnyTrusted).await.is_ok());
}
