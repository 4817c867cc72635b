//! Brokers and delegates over real sockets; the workload is a child process of this test.

use std::process::{Child, Command};
use std::time::Duration;

use identity::tls::{ALPN_H2, FixedSnapshot};
use identity::{BundleSet, PrivateKey, X509Svid};
use prost::Message as _;
use proto::spiffe::broker as wire;
use proto::spiffe::broker::api_client::ApiClient;
use proto::spire::api::agent::delegatedidentity::v1 as delegation;
use proto::spire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use proto::spire::api::types;
use runtime::serve::Limits;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::*;
use crate::fake::{Service as Site, changed, domain, entry};

const BROKER: &str = "spiffe://example.org/node-proxy";

struct Workload(Child);

impl Workload {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.end();
    }
}

/// The selector of a workload.
fn sleeping() -> String {
    format!("unix:path:{}", std::fs::canonicalize("/bin/sleep").unwrap().display())
}

fn settings() -> BrokerSettings {
    BrokerSettings {
        socket: Some("/unused".into()),
        brokers: vec![Broker { id: BROKER.into(), references: vec![ReferenceKind::Pid] }],
        delegated_socket: Some("/unused".into()),
        delegates: vec![BROKER.into()],
    }
}

/// An agent that serves the Broker API beside the Delegated Identity API.
fn site() -> Site {
    let site = Site::start(|desk| delegated(desk, &settings()));
    site.publish([entry("w", "/web", &[&sleeping()])]).rotate();
    site
}

async fn serve(site: &Site) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let listener = runtime::listen::unix(&dir.path().join("broker.sock"), 0o777).unwrap();
    let own = identity_of(site, "spiffe://example.org/spire/agent/x");
    let router = api(&site.desk, &settings());
    let (peers, shutdown) = (settings().peers(), site.desk.shutdown.clone());
    tokio::spawn(async move {
        runtime::mtls::serve_local(listener, Arc::new(own), peers, router, Limits::default(), shutdown).await.unwrap();
    });
    dir
}

fn identity_of(site: &Site, id: &str) -> FixedSnapshot {
    let key = PrivateKey::generate_p256().unwrap();
    let chain = site.ca.sign(&SpiffeId::parse(id).unwrap(), &key.csr_der(None).unwrap());
    let bundle = Arc::new(site.ca.bundle.lock().unwrap().clone());
    FixedSnapshot {
        svid: Some(Arc::new(X509Svid::from_parts(chain, key).unwrap())),
        bundles: Arc::new(BundleSet::new([bundle])),
    }
}

/// The Broker API as the holder of `id` reaches it.
async fn broker(site: &Site, dir: &tempfile::TempDir, id: &str) -> Result<ApiClient<Channel>, tonic::transport::Error> {
    let config = identity::tls::client_config(Arc::new(identity_of(site, id)), PeerRule::AnyTrusted, &[ALPN_H2]);
    let (connector, path) = (tokio_rustls::TlsConnector::from(config.unwrap()), dir.path().join("broker.sock"));
    let dial = move |_| {
        let (connector, path) = (connector.clone(), path.clone());
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            let name = rustls_pki_types::ServerName::try_from("agent").unwrap();
            connector.connect(name, stream).await.map(hyper_util::rt::TokioIo::new)
        }
    };
    let channel = Endpoint::from_static("http://agent").connect_with_connector(tower::service_fn(dial)).await?;
    Ok(ApiClient::new(channel))
}

fn named<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("broker.spiffe.io", "true".parse().unwrap());
    request
}

fn any(name: &str, value: Vec<u8>) -> Option<wire::WorkloadReference> {
    let type_url = format!("type.googleapis.com/spiffe.broker.{name}");
    Some(wire::WorkloadReference { reference: Some(prost_types::Any { type_url, value }) })
}

fn by_pid(pid: i32) -> wire::SubscribeToX509svidRequest {
    let reference = any("WorkloadPIDReference", wire::WorkloadPidReference { pid }.encode_to_vec());
    wire::SubscribeToX509svidRequest { reference }
}

/// The standard's code of a refusal, in the standard's domain.
fn code(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "spiffe.io");
    (status.code(), info.reason)
}

#[tokio::test]
async fn k_01_and_k_08_a_broker_gets_a_workloads_whole_state_until_that_ends() {
    let site = site();
    let dir = serve(&site).await;
    let mut workload = Workload::start();
    let mut client = broker(&site, &dir, BROKER).await.unwrap();
    let mut stream = loop {
        // The child may be between fork and exec.
        if let Ok(answer) = client.subscribe_to_x509svid(named(by_pid(workload.pid()))).await {
            let mut stream = answer.into_inner();
            if let Ok(Some(first)) = stream.message().await {
                assert_eq!(first.svids[0].spiffe_id, "spiffe://example.org/web");
                assert!(!first.svids[0].x509_svid_key.is_empty() && !first.svids[0].bundle.is_empty());
                break stream;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    site.rotate();
    assert_eq!(stream.message().await.unwrap().unwrap().svids.len(), 1);
    workload.end();
    let end = stream.message().await.unwrap_err();
    assert_eq!(code(&end), (Code::NotFound, "WORKLOAD_NOT_FOUND".into()));
}

#[tokio::test]
async fn k_01_an_identity_that_is_not_on_the_list_is_not_let_in() {
    let site = site();
    let dir = serve(&site).await;
    let workload = Workload::start();
    let refused = match broker(&site, &dir, "spiffe://example.org/other").await {
        // TLS 1.3: the client hears of the refusal with its first call.
        Ok(mut client) => client.subscribe_to_x509svid(named(by_pid(workload.pid()))).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}

#[tokio::test]
async fn k_02_every_call_needs_the_header() {
    let site = site();
    let dir = serve(&site).await;
    let workload = Workload::start();
    let mut client = broker(&site, &dir, BROKER).await.unwrap();
    for value in [None, Some("True"), Some("false")] {
        let mut request = Request::new(by_pid(workload.pid()));
        if let Some(value) = value {
            request.metadata_mut().insert("broker.spiffe.io", value.parse().unwrap());
        }
        assert_eq!(client.subscribe_to_x509svid(request).await.unwrap_err().code(), Code::InvalidArgument, "{value:?}");
    }
}

#[tokio::test]
async fn k_04_to_k_07_references_are_judged_and_refused_by_the_standards_codes() {
    let site = site();
    let dir = serve(&site).await;
    let mut client = broker(&site, &dir, BROKER).await.unwrap();
    let mut refused = async |reference| {
        let request = wire::SubscribeToX509svidRequest { reference };
        match client.subscribe_to_x509svid(named(request)).await {
            Err(status) => code(&status),
            Ok(stream) => code(&stream.into_inner().message().await.unwrap_err()),
        }
    };
    let invalid = (Code::InvalidArgument, "WORKLOAD_REFERENCE_INVALID".to_owned());
    let pid = |pid| any("WorkloadPIDReference", wire::WorkloadPidReference { pid }.encode_to_vec());
    assert_eq!(refused(None).await, invalid);
    assert_eq!(refused(any("Nonsense", Vec::new())).await, invalid);
    assert_eq!(refused(any("WorkloadPIDReference", vec![0xff])).await, invalid);
    for bad in [0, -1] {
        assert_eq!(refused(pid(bad)).await, invalid, "{bad}");
    }
    // Without a kubelet pods cannot be named.
    assert_eq!(refused(any("KubernetesObjectReference", Vec::new())).await, invalid);
    assert_eq!(refused(pid(i32::MAX)).await, (Code::NotFound, "WORKLOAD_NOT_FOUND".into()));
    let own = i32::try_from(std::process::id()).unwrap();
    assert_eq!(refused(pid(own)).await, (Code::PermissionDenied, "WORKLOAD_NOT_ENTITLED".into()));
}

#[tokio::test]
async fn what_may_administer_is_given_to_nobody_on_anothers_behalf() {
    let site = site();
    let dir = serve(&site).await;
    let privileged = changed(&entry("w", "/admin", &[&sleeping()]), |entry| entry.privileged = true);
    site.publish([privileged]).rotate();
    let workload = Workload::start();
    let mut client = broker(&site, &dir, BROKER).await.unwrap();
    let refused =
        client.subscribe_to_x509svid(named(by_pid(workload.pid()))).await.unwrap().into_inner().message().await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn tokens_and_bundles_come_through_the_broker_as_well() {
    let site = site();
    let dir = serve(&site).await;
    let workload = Workload::start();
    let mut client = broker(&site, &dir, BROKER).await.unwrap();
    let reference = || by_pid(workload.pid()).reference;
    let token =
        wire::FetchJwtsvidRequest { reference: reference(), audience: vec!["db".into()], spiffe_id: String::new() };
    let svids = loop {
        match client.fetch_jwtsvid(named(token.clone())).await {
            Ok(answer) => break answer.into_inner().svids,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!(svids[0].spiffe_id, "spiffe://example.org/web");
    let other = wire::FetchJwtsvidRequest { spiffe_id: "spiffe://example.org/other".into(), ..token };
    assert_eq!(code(&client.fetch_jwtsvid(named(other)).await.unwrap_err()).0, Code::PermissionDenied);
    let request = wire::SubscribeToX509BundlesRequest { reference: reference() };
    let bundles = client.subscribe_to_x509_bundles(named(request)).await.unwrap().into_inner().message().await;
    assert!(bundles.unwrap().unwrap().bundles.contains_key("spiffe://example.org"));
    let request = wire::SubscribeToJwtBundlesRequest { reference: reference() };
    let bundles = client.subscribe_to_jwt_bundles(named(request)).await.unwrap().into_inner().message().await;
    let bundles = bundles.unwrap().unwrap().bundles;
    let keys: serde_json::Value = serde_json::from_slice(&bundles["spiffe://example.org"]).unwrap();
    assert!(keys["keys"].as_array().unwrap().iter().all(|key| key["use"] == "jwt-svid"));
}

#[tokio::test]
async fn a_delegate_gets_identities_by_pid_and_by_selectors_and_others_get_nothing() {
    let site = site();
    let workload = Workload::start();
    let uid = format!("uid:{}", rustix::process::getuid().as_raw());
    let own = entry("d", "/node-proxy", &[&format!("unix:{uid}"), "unix:path:/nowhere"]);
    site.publish([entry("w", "/web", &[&sleeping()]), own]).rotate();
    let mut client = DelegatedIdentityClient::new(site.channel().await);
    let by_selector = delegation::SubscribeToX509sviDsRequest {
        selectors: vec![types::Selector { r#type: "unix".into(), value: sleeping().replace("unix:", "") }],
        pid: 0,
    };
    let refused = client.subscribe_to_x509svi_ds(by_selector.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "this process has no identity at all");
    let own = entry("d", "/node-proxy", &[&format!("unix:{uid}")]);
    site.publish([entry("w", "/web", &[&sleeping()]), own]).rotate();
    let found = client.subscribe_to_x509svi_ds(by_selector).await.unwrap().into_inner().message().await;
    let svids = found.unwrap().unwrap().x509_svids;
    assert_eq!(svids[0].x509_svid.as_ref().unwrap().id.as_ref().unwrap().path, "/web");
    assert!(!svids[0].x509_svid_key.is_empty());
    let request =
        delegation::FetchJwtsviDsRequest { audience: vec!["db".into()], selectors: vec![], pid: workload.pid() };
    let token = loop {
        match client.fetch_jwtsvi_ds(request.clone()).await {
            Ok(answer) if answer.get_ref().svids.len() == 2 => break answer.into_inner().svids.remove(0),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!(token.id.unwrap().trust_domain, domain().as_str());
    for (selectors, pid) in [(vec![], 0), (vec![], -1), (vec![types::Selector::default()], 1)] {
        let bad = delegation::SubscribeToX509sviDsRequest { selectors, pid };
        assert_eq!(client.subscribe_to_x509svi_ds(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let request = delegation::SubscribeToX509BundlesRequest {};
    let bundles = client.subscribe_to_x509_bundles(request).await.unwrap().into_inner().message().await;
    assert!(bundles.unwrap().unwrap().ca_certificates.contains_key("spiffe://example.org"));
}

#[test]
fn settings_that_cannot_work_are_named() {
    assert_eq!(settings().problem(), None);
    assert!(BrokerSettings { brokers: Vec::new(), ..settings() }.problem().is_some());
    assert!(BrokerSettings { delegated_socket: None, ..settings() }.problem().is_some());
    assert!(BrokerSettings { delegates: vec!["web".into()], ..settings() }.problem().unwrap().contains("web"));
    let mute = Broker { id: BROKER.into(), references: Vec::new() };
    assert!(BrokerSettings { brokers: vec![mute], ..settings() }.problem().is_some());
}
