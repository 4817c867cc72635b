//! A whole authority in this process, and clients of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use identity::bundle::{BundleSet, TrustBundle};
use identity::key::PrivateKey;
use identity::svid::X509Svid;
use identity::tls::{FixedSnapshot, PeerRule};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest, attest_agent_request, attest_agent_response,
};
use proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::svid::v1::MintX509svidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::types;
use runtime::clock::Clock;
use runtime::logs::LogControl;
use runtime::mtls;
use runtime::shutdown::Shutdown;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::{database, id, trust_domain};
use crate::certifier::Certifier;
use crate::server::{Addresses, RunError};
use crate::settings::Settings;

/// An authority that serves.
pub(crate) struct Running {
    pub(crate) settings: Settings,
    pub(crate) addresses: Addresses,
    pub(crate) certifier: Arc<Certifier>,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
    dir: Arc<tempfile::TempDir>,
}

/// Settings with every service on a free port.
pub(crate) fn settings(dir: &std::path::Path) -> Settings {
    let any = "127.0.0.1:0".parse().unwrap();
    Settings {
        grpc: any,
        bundle_endpoint: Some(any),
        oidc_listen: Some(any),
        admin: Some(any),
        bundle_file: Some(dir.join("bundle.pem")),
        server_names: vec!["localhost".into(), "127.0.0.1".into()],
        ..Settings::new(trust_domain(), dir.join("data"))
    }
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut settings = settings(dir.path());
        settings.database = database::setting_in(dir.path()).await;
        change(&mut settings);
        Self::start_in(dir, settings).await
    }

    pub(crate) async fn start_in(dir: Arc<tempfile::TempDir>, settings: Settings) -> Self {
        Self::start_at(dir, settings, Clock::system()).await
    }

    pub(crate) async fn start_at(dir: Arc<tempfile::TempDir>, settings: Settings, clock: Clock) -> Self {
        let shutdown = Shutdown::new();
        let server = loop {
            let built = settings.clone().build_with(clock, LogControl::detached(), shutdown.clone());
            match built.await {
                // A program that another test is just starting has a copy of the lock until it runs.
                Err(RunError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                built => break built.unwrap(),
            }
        };
        let (addresses, certifier) = (server.addresses().clone(), server.certifier.clone());
        Self { settings, addresses, certifier, shutdown, task: tokio::spawn(server.run()), dir }
    }

    /// Below this authority.
    pub(crate) async fn start_below(
        dir: Arc<tempfile::TempDir>,
        settings: Settings,
        upstream: Arc<dyn crate::upstream::Upstream>,
    ) -> Self {
        let shutdown = Shutdown::new();
        let (clock, logs) = (Clock::system(), LogControl::detached());
        let server = settings.clone().build_below(Some(upstream), clock, logs, shutdown.clone()).await.unwrap();
        let (addresses, certifier) = (server.addresses().clone(), server.certifier.clone());
        Self { settings, addresses, certifier, shutdown, task: tokio::spawn(server.run()), dir }
    }

    /// Ends it and starts it again on the same directory.
    pub(crate) async fn restart(self) -> Self {
        let (dir, settings) = (self.dir.clone(), self.settings.clone());
        self.stop().await;
        Self::start_in(dir, settings).await
    }

    /// Another replica on the same database, with the same key file.
    pub(crate) async fn replica(&self) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let (database, key_file) = (self.settings.database.clone(), Some(self.settings.key_file()));
        let settings = Settings { database, key_file, ..settings(dir.path()) };
        Self::start_in(dir, settings).await
    }

    /// Ends it without a farewell: its tasks and connections are gone at once.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub(crate) async fn stop(self) {
        self.shutdown.trigger();
        drop(self.certifier);
        self.task.await.unwrap().unwrap();
    }

    pub(crate) fn dir(&self) -> Arc<tempfile::TempDir> {
        self.dir.clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Over the local socket.
    pub(crate) async fn local(&self) -> Channel {
        let uri = format!("unix://{}", self.addresses.admin_socket.display());
        Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
    }

    /// Over TLS with this SVID, or without one.
    pub(crate) fn network(&self, svid: Option<&Arc<X509Svid>>) -> Channel {
        let peers = PeerRule::exactly(id("/spire/server"));
        mtls::channel(&self.addresses.grpc.to_string(), Arc::new(self.snapshot(svid)), peers)
    }

    /// What a client knows who has the published bundle.
    pub(crate) fn snapshot(&self, svid: Option<&Arc<X509Svid>>) -> FixedSnapshot {
        snapshot_of(&self.path("bundle.pem"), svid)
    }

    /// A join token whose node is also called `alias`.
    pub(crate) async fn token(&self, alias: Option<&str>) -> String {
        let agent_id = alias.map(id_message);
        let request = CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id };
        AgentClient::new(self.local().await).create_join_token(request).await.unwrap().into_inner().value
    }

    /// A node that has joined.
    pub(crate) async fn node(&self, alias: Option<&str>) -> Arc<X509Svid> {
        self.join(&self.token(alias).await).await.unwrap()
    }

    pub(crate) async fn join(&self, token: &str) -> Result<Arc<X509Svid>, Status> {
        let key = PrivateKey::generate_p256().unwrap();
        let request = join_request(token, key.csr_der(None).unwrap());
        let mut answers =
            AgentClient::new(self.network(None)).attest_agent(tokio_stream::once(request)).await?.into_inner();
        let answer = answers.message().await?.unwrap();
        let Some(attest_agent_response::Step::Result(result)) = answer.step else { panic!("no result: {answer:?}") };
        Ok(svid_of(result.svid.unwrap(), key))
    }

    /// An entry; answers its id.
    pub(crate) async fn entry(&self, spiffe_id: &str, parent_id: &str) -> String {
        self.entry_with(spiffe_id, parent_id, |_| ()).await.unwrap()
    }

    pub(crate) async fn entry_with(
        &self,
        spiffe_id: &str,
        parent_id: &str,
        change: impl FnOnce(&mut types::Entry),
    ) -> Result<String, types::Status> {
        let mut entry = entry_message(spiffe_id, parent_id);
        change(&mut entry);
        let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let answer = EntryClient::new(self.local().await).batch_create_entry(request).await.unwrap().into_inner();
        let result = answer.results.into_iter().next().unwrap();
        match result.status {
            Some(status) if status.code != 0 => Err(status),
            _ => Ok(result.entry.unwrap().id),
        }
    }

    /// An SVID from the administrator's hand.
    pub(crate) async fn mint(&self, path: &str) -> Arc<X509Svid> {
        let key = PrivateKey::generate_p256().unwrap();
        let request = MintX509svidRequest { csr: key.csr_der(Some(&id(path))).unwrap(), ttl: 0 };
        let answer = SvidClient::new(self.local().await).mint_x509svid(request).await.unwrap().into_inner();
        svid_of(answer.svid.unwrap(), key)
    }
}

/// What a client knows who has this bundle file.
pub(crate) fn snapshot_of(file: &std::path::Path, svid: Option<&Arc<X509Svid>>) -> FixedSnapshot {
    let bundle = TrustBundle::from_pem(trust_domain(), &std::fs::read(file).unwrap()).unwrap();
    FixedSnapshot { svid: svid.cloned(), bundles: Arc::new(BundleSet::new([Arc::new(bundle)])) }
}

pub(crate) fn join_request(token: &str, csr: Vec<u8>) -> AttestAgentRequest {
    let data = types::AttestationData { r#type: "join_token".into(), payload: token.as_bytes().to_vec() };
    let params = attest_agent_request::Params { data: Some(data), params: Some(AgentX509svidParams { csr }) };
    AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) }
}

pub(crate) fn id_message(path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: trust_domain().to_string(), path: path.into() }
}

pub(crate) fn entry_message(spiffe_id: &str, parent_id: &str) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id_message(spiffe_id)),
        parent_id: Some(id_message(parent_id)),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1000".into() }],
        ..types::Entry::default()
    }
}

pub(crate) fn svid_of(message: types::X509svid, key: PrivateKey) -> Arc<X509Svid> {
    let chain = message.cert_chain.into_iter().map(Into::into).collect();
    Arc::new(X509Svid::from_parts(chain, key).unwrap())
}

/// Waits for something to become true.
pub(crate) async fn until(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> bool) -> Duration {
    let begun = tokio::time::Instant::now();
    while !check().await {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// The reason code of a refusal.
pub(crate) fn reason<T: std::fmt::Debug>(outcome: Result<T, Status>) -> String {
    let status = outcome.expect_err("refused");
    runtime::refusal::reason_of(&status).unwrap_or_else(|| format!("no reason: {status:?}"))
}
