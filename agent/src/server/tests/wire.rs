//! The CA of [`crate::fake`] behind SPIRE's server API over mTLS, as far as agents use it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use identity::tls::{ClientAuth, FixedSnapshot};
use identity::{BundleSet, PrivateKey, SpiffeId, X509Svid};
use proto::kasbah::node::v1 as node;
use proto::spire::api::server::agent::v1 as agent;
use proto::spire::api::server::bundle::v1 as bundle;
use proto::spire::api::server::entry::v1 as entry;
use proto::spire::api::server::svid::v1 as svid;
use proto::spire::api::types;
use runtime::mtls;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::*;
use crate::ca::{Chain, Issued, denied_status};
use crate::entry::Entry;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How the server hands out entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Whole,
    ByDifference,
    ListOnly,
}

pub(super) struct Server {
    pub(super) addr: SocketAddr,
    service: Service,
    shutdown: Shutdown,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone)]
struct Service {
    ca: Arc<FakeCa>,
    mode: Arc<Mutex<Mode>>,
    sent: Arc<AtomicUsize>,
    /// Without what only our CA has.
    is_stock: bool,
}

impl Server {
    pub(super) fn start(ca: Arc<FakeCa>, path: &str) -> Self {
        Self::start_at(ca, path, "127.0.0.1:0".parse().unwrap())
    }

    /// As a server of SPIRE: nothing but its own services.
    pub(super) fn start_stock(ca: Arc<FakeCa>) -> Self {
        Self::start_with(ca, "/spire/server", "127.0.0.1:0".parse().unwrap(), true)
    }

    pub(super) fn start_at(ca: Arc<FakeCa>, path: &str, addr: SocketAddr) -> Self {
        Self::start_with(ca, path, addr, false)
    }

    fn start_with(ca: Arc<FakeCa>, path: &str, addr: SocketAddr, is_stock: bool) -> Self {
        let key = PrivateKey::generate_p256().unwrap();
        let chain = ca.sign(&domain().with_path(path).unwrap(), &key.csr_der(None).unwrap());
        let bundle = Arc::new(ca.bundle.lock().unwrap().clone());
        let source = FixedSnapshot {
            svid: Some(Arc::new(X509Svid::from_parts(chain, key).unwrap())),
            bundles: Arc::new(BundleSet::new([bundle])),
        };
        let service = Service { ca, mode: Arc::new(Mutex::new(Mode::Whole)), sent: Arc::default(), is_stock };
        let routes = Routes::new(agent::agent_server::AgentServer::new(service.clone()))
            .add_service(entry::entry_server::EntryServer::new(service.clone()))
            .add_service(svid::svid_server::SvidServer::new(service.clone()))
            .add_service(bundle::bundle_server::BundleServer::new(service.clone()));
        let node = (!is_stock).then(|| node::node_server::NodeServer::new(service.clone()));
        let routes = match node {
            Some(node) => routes.add_service(node),
            None => routes,
        };
        let listener = listen::tcp(addr).unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let serving = mtls::serve_tonic(listener, source, ClientAuth::Optional, routes, shutdown.clone());
        let task = Mutex::new(Some(tokio::spawn(async move { serving.await.unwrap() })));
        Self { addr, service, shutdown, task }
    }

    pub(super) async fn stop(&self) {
        self.shutdown.trigger();
        // As a killed process: nothing is drained.
        let task = self.task.lock().unwrap().take().unwrap();
        task.abort();
        let _ = task.await;
    }

    pub(super) fn set_mode(&self, mode: Mode) {
        *self.service.mode.lock().unwrap() = mode;
    }

    /// Entries sent since the last call of this.
    pub(super) fn entries_sent(&self) -> usize {
        self.service.sent.swap(0, Ordering::SeqCst)
    }
}

impl Service {
    /// Only agents may call, and whoever calls is the one the certificate names. A server of SPIRE knows whom it evicted.
    fn check_agent<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let peer = mtls::peer_of(request).ok_or_else(|| Status::permission_denied("no SVID"))?;
        assert!(peer.spiffe_id().path().starts_with("/spire/agent/"));
        let evicted = self.is_stock && self.ca.evicted.load(Ordering::SeqCst);
        if evicted { Err(denied_status("/spire.api.server.x.v1.X/Y", AGENT_NOT_ATTESTED)) } else { Ok(()) }
    }

    fn page(&self, entries: &[Arc<Entry>], more: bool) -> entry::SyncAuthorizedEntriesResponse {
        self.sent.fetch_add(entries.len(), Ordering::SeqCst);
        let entries = entries.iter().map(encode_entry).collect();
        entry::SyncAuthorizedEntriesResponse { entries, more, ..Default::default() }
    }
}

fn status_of(error: CaError) -> Status {
    match error {
        CaError::Refused { code, message, .. } => Status::new(code, message),
        other => Status::unavailable(other.to_string()),
    }
}

fn encode_id(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().into(), path: id.path().into() }
}

fn encode_entry(entry: &Arc<Entry>) -> types::Entry {
    let selector = |text: String| {
        let (kind, value) = text.split_once(':').unwrap();
        types::Selector { r#type: kind.into(), value: value.into() }
    };
    types::Entry {
        id: entry.id.clone(),
        spiffe_id: Some(encode_id(&entry.spiffe_id)),
        selectors: entry.selectors.iter().map(ToString::to_string).map(selector).collect(),
        federates_with: entry.federates_with.iter().map(ToString::to_string).collect(),
        revision_number: entry.revision,
        created_at: entry.created_at,
        hint: entry.hint.clone(),
        ..types::Entry::default()
    }
}

fn encode_svid(chain: Chain) -> types::X509svid {
    types::X509svid { cert_chain: chain.iter().map(|der| der.to_vec()).collect(), ..types::X509svid::default() }
}

/// The methods of a service that are written here, and those that are not offered.
macro_rules! service {
    (impl $service:path { $($own:tt)* } not offered { $($method:ident($ask:ty) -> $answer:ty;)* }) => {
        #[tonic::async_trait]
        impl $service for Service {
            $($own)*
            $(async fn $method(&self, _: Request<$ask>) -> Result<Response<$answer>, Status> {
                Err(Status::unimplemented("not offered"))
            })*
        }
    };
}

service! {
    impl agent::agent_server::Agent {
        type AttestAgentStream = Answers<agent::AttestAgentResponse>;

        async fn attest_agent(
            &self,
            request: Request<Streaming<agent::AttestAgentRequest>>,
        ) -> Result<Response<Self::AttestAgentStream>, Status> {
            let asked = request.into_inner().message().await?.and_then(|message| message.step);
            let Some(agent::attest_agent_request::Step::Params(params)) = asked else { panic!("{asked:?}") };
            let (data, csr) = (params.data.unwrap(), params.params.unwrap().csr);
            let kinds = ["join_token", "k8s_psat", crate::evidence::OLD_SVID];
            let kind = kinds.into_iter().find(|kind| *kind == data.r#type).unwrap();
            let mut evidence = Evidence::plain(kind, &data.payload);
            let chain = self.ca.attest(&mut evidence, csr).await.map_err(status_of)?;
            let result = agent::attest_agent_response::Result { svid: Some(encode_svid(chain)), reattestable: false };
            let step = Some(agent::attest_agent_response::Step::Result(result));
            Ok(Response::new(Box::pin(tokio_stream::iter([Ok(agent::AttestAgentResponse { step })]))))
        }

        async fn renew_agent(&self, request: Request<agent::RenewAgentRequest>) -> Result<Response<agent::RenewAgentResponse>, Status> {
            self.check_agent(&request)?;
            let chain = self.ca.renew_agent(request.into_inner().params.unwrap().csr).await.map_err(status_of)?;
            Ok(Response::new(agent::RenewAgentResponse { svid: Some(encode_svid(chain)) }))
        }

        async fn post_status(&self, request: Request<agent::PostStatusRequest>) -> Result<Response<agent::PostStatusResponse>, Status> {
            self.check_agent(&request)?;
            self.ca.post_status(request.into_inner().current_bundle_serial).await.map_err(status_of)?;
            Ok(Response::new(agent::PostStatusResponse {}))
        }
    } not offered {
        count_agents(agent::CountAgentsRequest) -> agent::CountAgentsResponse;
        list_agents(agent::ListAgentsRequest) -> agent::ListAgentsResponse;
        get_agent(agent::GetAgentRequest) -> types::Agent;
        delete_agent(agent::DeleteAgentRequest) -> ();
        ban_agent(agent::BanAgentRequest) -> ();
        create_join_token(agent::CreateJoinTokenRequest) -> types::JoinToken;
    }
}

service! {
    impl entry::entry_server::Entry {
        type SyncAuthorizedEntriesStream = Answers<entry::SyncAuthorizedEntriesResponse>;

        async fn sync_authorized_entries(
            &self,
            request: Request<Streaming<entry::SyncAuthorizedEntriesRequest>>,
        ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
            self.check_agent(&request)?;
            let (mode, service) = (*self.mode.lock().unwrap(), self.clone());
            if mode == Mode::ListOnly {
                return Err(Status::unimplemented("an old server"));
            }
            let mut asked = request.into_inner();
            Ok(Response::new(Box::pin(async_stream::try_stream! {
                let entries = service.ca.entries.lock().unwrap().clone();
                let first = asked.message().await?.unwrap();
                assert!(first.ids.is_empty());
                if mode == Mode::Whole {
                    yield service.page(&entries, false);
                    return;
                }
                let revision = |entry: &Arc<Entry>| entry::EntryRevision {
                    id: entry.id.clone(),
                    revision_number: entry.revision,
                    created_at: entry.created_at,
                };
                let (one, other) = entries.split_at(entries.len() / 2);
                for (half, more) in [(one, true), (other, false)] {
                    let entry_revisions = half.iter().map(revision).collect();
                    yield entry::SyncAuthorizedEntriesResponse { entry_revisions, more, ..Default::default() };
                }
                while let Some(page) = asked.message().await? {
                    assert!(page.ids.len() <= 500);
                    let wanted: Vec<_> = entries.iter().filter(|entry| page.ids.contains(&entry.id)).cloned().collect();
                    let (one, other) = wanted.split_at(wanted.len() / 2);
                    yield service.page(one, true);
                    yield service.page(other, false);
                }
            })))
        }

        async fn get_authorized_entries(
            &self,
            request: Request<entry::GetAuthorizedEntriesRequest>,
        ) -> Result<Response<entry::GetAuthorizedEntriesResponse>, Status> {
            self.check_agent(&request)?;
            let entries = self.page(&self.ca.entries.lock().unwrap(), false).entries;
            Ok(Response::new(entry::GetAuthorizedEntriesResponse { entries }))
        }
    } not offered {
        count_entries(entry::CountEntriesRequest) -> entry::CountEntriesResponse;
        list_entries(entry::ListEntriesRequest) -> entry::ListEntriesResponse;
        get_entry(entry::GetEntryRequest) -> types::Entry;
        batch_create_entry(entry::BatchCreateEntryRequest) -> entry::BatchCreateEntryResponse;
        batch_update_entry(entry::BatchUpdateEntryRequest) -> entry::BatchUpdateEntryResponse;
        batch_delete_entry(entry::BatchDeleteEntryRequest) -> entry::BatchDeleteEntryResponse;
    }
}

service! {
    impl svid::svid_server::Svid {
        async fn batch_new_x509svid(
            &self,
            request: Request<svid::BatchNewX509svidRequest>,
        ) -> Result<Response<svid::BatchNewX509svidResponse>, Status> {
            self.check_agent(&request)?;
            let asked = request.into_inner().params.into_iter().map(|params| (params.entry_id, params.csr)).collect();
            let answers = self.ca.new_x509_svids(asked, crate::ca::CALL_WAIT_MAX).await.map_err(status_of)?;
            let encode = |answer: Result<Issued, CaError>| match answer.map_err(status_of) {
                Ok(issued) => svid::batch_new_x509svid_response::Result {
                    status: Some(types::Status { code: Code::Ok as i32, message: String::new() }),
                    svid: Some(types::X509svid {
                        kasbah_renew_at: issued.renew_at.map_or(0, |at| i64::try_from(runtime::clock::unix_secs(at)).unwrap()),
                        ..encode_svid(issued.chain)
                    }),
                },
                Err(status) => svid::batch_new_x509svid_response::Result {
                    status: Some(types::Status { code: status.code() as i32, message: status.message().into() }),
                    svid: None,
                },
            };
            Ok(Response::new(svid::BatchNewX509svidResponse { results: answers.into_iter().map(encode).collect() }))
        }

        async fn batch_new_witsvid(
            &self,
            request: Request<svid::BatchNewWitsvidRequest>,
        ) -> Result<Response<svid::BatchNewWitsvidResponse>, Status> {
            self.check_agent(&request)?;
            let asked = request.into_inner().params.into_iter();
            let asked = asked.map(|params| (params.entry_id, params.public_key)).collect();
            let unix_secs = |at| i64::try_from(runtime::clock::unix_secs(at)).unwrap();
            let answers = self.ca.new_wit_svids(asked).await.map_err(status_of)?;
            let encode = |answer: Result<crate::ca::TokenSvid, CaError>| match answer.map_err(status_of) {
                Ok(svid) => svid::batch_new_witsvid_response::Result {
                    status: Some(types::Status { code: Code::Ok as i32, message: String::new() }),
                    svid: Some(types::Witsvid {
                        token: svid.token,
                        issued_at: unix_secs(svid.issued_at),
                        expires_at: unix_secs(svid.expires_at),
                        ..types::Witsvid::default()
                    }),
                },
                Err(status) => svid::batch_new_witsvid_response::Result {
                    status: Some(types::Status { code: status.code() as i32, message: status.message().into() }),
                    svid: None,
                },
            };
            Ok(Response::new(svid::BatchNewWitsvidResponse { results: answers.into_iter().map(encode).collect() }))
        }

        async fn new_jwtsvid(&self, request: Request<svid::NewJwtsvidRequest>) -> Result<Response<svid::NewJwtsvidResponse>, Status> {
            self.check_agent(&request)?;
            let asked = request.into_inner();
            let svid = self.ca.new_jwt_svid(&asked.entry_id, asked.audience).await.map_err(status_of)?;
            let unix_secs = |at| i64::try_from(runtime::clock::unix_secs(at)).unwrap();
            let svid = types::Jwtsvid {
                token: svid.token,
                issued_at: unix_secs(svid.issued_at),
                expires_at: unix_secs(svid.expires_at),
                ..types::Jwtsvid::default()
            };
            Ok(Response::new(svid::NewJwtsvidResponse { svid: Some(svid) }))
        }
    } not offered {
        mint_x509svid(svid::MintX509svidRequest) -> svid::MintX509svidResponse;
        mint_jwtsvid(svid::MintJwtsvidRequest) -> svid::MintJwtsvidResponse;
        mint_witsvid(svid::MintWitsvidRequest) -> svid::MintWitsvidResponse;
        new_downstream_x509ca(svid::NewDownstreamX509caRequest) -> svid::NewDownstreamX509caResponse;
    }
}

service! {
    impl bundle::bundle_server::Bundle {
        async fn get_bundle(&self, _: Request<bundle::GetBundleRequest>) -> Result<Response<types::Bundle>, Status> {
            let bundle = self.ca.bundle.lock().unwrap();
            let root = |der: &identity::CertificateDer<'_>| types::X509Certificate { asn1: der.to_vec(), tainted: false };
            let key = |key: &identity::JwtAuthority| types::JwtKey {
                public_key: key.spki_der(),
                key_id: key.key_id.clone(),
                ..types::JwtKey::default()
            };
            let wit = |key: &identity::JwtAuthority| types::WitKey {
                public_key: key.spki_der(),
                key_id: key.key_id.clone(),
                ..types::WitKey::default()
            };
            Ok(Response::new(types::Bundle {
                trust_domain: bundle.trust_domain.to_string(),
                x509_authorities: bundle.x509_authorities.iter().map(root).collect(),
                jwt_authorities: bundle.jwt_authorities.iter().map(key).collect(),
                wit_authorities: bundle.wit_authorities.iter().map(wit).collect(),
                sequence_number: bundle.sequence,
                ..types::Bundle::default()
            }))
        }

        async fn get_federated_bundle(&self, request: Request<bundle::GetFederatedBundleRequest>) -> Result<Response<types::Bundle>, Status> {
            self.check_agent(&request)?;
            Err(Status::not_found("bundle not found"))
        }
    } not offered {
        count_bundles(bundle::CountBundlesRequest) -> bundle::CountBundlesResponse;
        append_bundle(bundle::AppendBundleRequest) -> types::Bundle;
        publish_jwt_authority(bundle::PublishJwtAuthorityRequest) -> bundle::PublishJwtAuthorityResponse;
        publish_wit_authority(bundle::PublishWitAuthorityRequest) -> bundle::PublishWitAuthorityResponse;
        list_federated_bundles(bundle::ListFederatedBundlesRequest) -> bundle::ListFederatedBundlesResponse;
        batch_create_federated_bundle(bundle::BatchCreateFederatedBundleRequest) -> bundle::BatchCreateFederatedBundleResponse;
        batch_update_federated_bundle(bundle::BatchUpdateFederatedBundleRequest) -> bundle::BatchUpdateFederatedBundleResponse;
        batch_set_federated_bundle(bundle::BatchSetFederatedBundleRequest) -> bundle::BatchSetFederatedBundleResponse;
        batch_delete_federated_bundle(bundle::BatchDeleteFederatedBundleRequest) -> bundle::BatchDeleteFederatedBundleResponse;
    }
}

#[tonic::async_trait]
impl node::node_server::Node for Service {
    type WatchStream = Answers<node::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<node::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.check_agent(&request)?;
        let mut heard = request.into_inner();
        Ok(Response::new(Box::pin(async_stream::try_stream! {
            while let Some(progress) = heard.message().await? {
                assert!(progress.bundle_sequence_enforced > 0);
                let bundle_sequence = progress.bundle_sequence_enforced;
                yield node::WatchResponse { entries_revision: 1, bundle_sequence, ..node::WatchResponse::default() };
            }
        })))
    }

    /// As a server from before revocation.
    async fn fetch_revocations(
        &self,
        _: Request<node::RevocationsRequest>,
    ) -> Result<Response<node::RevocationsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Of SPIRE's `PermissionDeniedDetails`.
const AGENT_NOT_ATTESTED: u8 = 2;
