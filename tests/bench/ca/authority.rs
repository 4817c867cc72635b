//! The process under measurement, and those who may ask it: an administrator at its socket, nodes over mutual TLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::program::Running;
use harness::{Program, mesh, tools};
use identity::bundle::{BundleSet, TrustBundle};
use identity::key::PrivateKey;
use identity::spiffe_id::TrustDomain;
use identity::svid::X509Svid;
use identity::tls::{FixedSnapshot, PeerRule};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest, attest_agent_request, attest_agent_response,
};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, BatchDeleteEntryRequest};
use proto::spire::api::types;
use runtime::mtls;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

/// A node's SVID.
pub(crate) type Svid = Arc<X509Svid>;

/// A running authority.
pub(crate) struct Authority {
    process: Running,
    address: String,
    pub(crate) admin: Channel,
    bundles: Arc<BundleSet>,
    _dir: tempfile::TempDir,
}

impl Authority {
    pub(crate) async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = format!("127.0.0.1:{}", mesh::free_port()?);
        let (socket, bundle) = (dir.path().join("admin.sock"), dir.path().join("bundle.pem"));
        let settings = json!({
            "trust_domain": DOMAIN,
            "data_dir": dir.path().join("data"),
            "grpc": address,
            "admin_socket": socket,
            "bundle_file": bundle,
        });
        let file = dir.path().join("ca.yaml");
        std::fs::write(&file, serde_json::to_vec_pretty(&settings)?)?;
        let program = Program::new(tools::kasbah()).args(["ca", "run", "--config"]).arg(&file);
        // As in production: what is issued is in the record, not in the log.
        let process = program.env("KASBAH_LOG", "info").background(&dir.path().join("ca.log"))?;
        let admin = connect(&socket).await.with_context(|| said(&dir.path().join("ca.log")))?;
        let domain = TrustDomain::parse(DOMAIN)?;
        let bundles = Arc::new(BundleSet::new([Arc::new(TrustBundle::from_pem(domain, &std::fs::read(&bundle)?)?)]));
        Ok(Self { process, address, admin, bundles, _dir: dir })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A connection of its own, made when it is first used.
    pub(crate) fn channel(&self, svid: Option<&Svid>) -> Channel {
        let server = TrustDomain::parse(DOMAIN).and_then(|domain| domain.with_path("/spire/server"));
        let peers = server.map_or(PeerRule::AnyTrusted, PeerRule::exactly);
        let snapshot = FixedSnapshot { svid: svid.cloned(), bundles: self.bundles.clone() };
        mtls::channel(&self.address, Arc::new(snapshot), peers)
    }

    /// `HOST:PORT` of its gRPC.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Its roots.
    pub(crate) fn bundle_pem(&self) -> String {
        self.bundles.iter().map(|(_, bundle)| bundle.to_pem()).collect()
    }

    /// A join token for a node that will also be called `alias`.
    pub(crate) async fn token(&self, alias: &str) -> Result<String> {
        let request = CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: Some(id(alias)) };
        Ok(AgentClient::new(self.admin.clone()).create_join_token(request).await?.into_inner().value)
    }

    /// A node that has joined, and is also called `alias`.
    pub(crate) async fn join(&self, alias: &str) -> Result<Svid> {
        let token = self.token(alias).await?;
        let key = PrivateKey::generate_p256()?;
        let data = types::AttestationData { r#type: "join_token".into(), payload: token.into_bytes() };
        let csr = key.csr_der(None)?;
        let params = attest_agent_request::Params { data: Some(data), params: Some(AgentX509svidParams { csr }) };
        let request = AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) };
        let mut client = AgentClient::new(self.channel(None));
        let mut answers = client.attest_agent(tokio_stream::once(request)).await?.into_inner();
        let step = answers.message().await?.context("no answer")?.step;
        let Some(attest_agent_response::Step::Result(result)) = step else { anyhow::bail!("no result: {step:?}") };
        let chain = result.svid.context("no SVID")?.cert_chain.into_iter().map(Into::into).collect();
        Ok(Arc::new(X509Svid::from_parts(chain, key)?))
    }

    pub(crate) async fn create_entry(&self, path: &str, parent: &str) -> Result<String> {
        let mut created = self.create_entries(vec![entry(path, parent)]).await?;
        created.pop().context("no entry")
    }

    /// Creates entries and answers their ids.
    pub(crate) async fn create_entries(&self, entries: Vec<types::Entry>) -> Result<Vec<String>> {
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        let answer = EntryClient::new(self.admin.clone()).batch_create_entry(request).await?.into_inner();
        answer.results.into_iter().map(|result| Ok(result.entry.context("not created")?.id)).collect()
    }

    /// Deletes entries by id.
    pub(crate) async fn delete_entries(&self, ids: Vec<String>) -> Result<()> {
        let request = BatchDeleteEntryRequest { ids };
        EntryClient::new(self.admin.clone()).batch_delete_entry(request).await?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and answers how long that took.
    pub(crate) async fn stop(self) -> Result<Duration> {
        let Self { mut process, admin, _dir, .. } = self;
        let begun = Instant::now();
        Program::new("kill").args(["-TERM", &process.id().to_string()]).ok()?;
        while !process.has_ended() {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(30), "the authority does not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(admin);
        Ok(begun.elapsed())
    }
}

async fn connect(socket: &std::path::Path) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    let begun = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) if begun.elapsed() > Duration::from_secs(30) => {
                return Err(error).context("the CA does not start");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn said(log: &PathBuf) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

pub(crate) fn id(path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: DOMAIN.into(), path: path.into() }
}

pub(crate) fn entry(path: &str, parent: &str) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id(path)),
        parent_id: Some(id(parent)),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1000".into() }],
        ..types::Entry::default()
    }
}

pub(crate) const DOMAIN: &str = "bench.example";
