//! The CA over SPIRE's server API.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use identity::bundle::JwtAuthority;
use identity::tls::PeerRule;
use identity::{CertificateDer, TrustBundle, TrustDomain};
use proto::kasbah::node::v1 as node;
use proto::spire::api::server::agent::v1 as agent;
use proto::spire::api::server::bundle::v1 as bundle;
use proto::spire::api::server::entry::v1 as entry;
use proto::spire::api::server::svid::v1 as svid;
use proto::spire::api::types;
use runtime::clock::from_unix_secs;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{CALL_WAIT_MAX, Ca, CaError, Chain, Issued, Progress, Report, TokenSvid};
use crate::enforced::Configured;
use crate::entry::{ENTRIES_MAX, Entries, Entry};
use crate::evidence::Evidence;
use crate::node::{Anonymous, NodeIdentity};
use crate::revocations::News;

/// Calls the CA over mTLS. The channel is made anew whenever the agent's own SVID has changed, because the CA judges a
/// call by the certificate of its connection.
pub(crate) struct GrpcCa {
    server: String,
    trust_domain: TrustDomain,
    identity: Arc<NodeIdentity>,
    channel: Mutex<Option<Kept>>,
}

/// The channel that calls share.
struct Kept {
    channel: Channel,
    /// The serial of the agent's own SVID that it was made with.
    of: Option<String>,
    since: Instant,
}

impl GrpcCa {
    pub(crate) fn new(server: String, trust_domain: TrustDomain, identity: Arc<NodeIdentity>) -> Self {
        Self { server, trust_domain, identity, channel: Mutex::default() }
    }

    fn channel(&self) -> Result<Channel, CaError> {
        let serial = self.identity.serial();
        let mut kept = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Kept { channel, of, .. }) = &*kept
            && *of == serial
        {
            return Ok(channel.clone());
        }
        let server_id =
            self.trust_domain.with_path(SERVER_PATH).map_err(|_| CaError::BadAnswer { what: "server id" })?;
        let channel = runtime::mtls::channel(&self.server, self.identity.clone(), PeerRule::exactly(server_id));
        *kept = Some(Kept { channel: channel.clone(), of: serial, since: Instant::now() });
        Ok(channel)
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, CaError>>) -> Result<T, CaError> {
        self.within(CALL_WAIT_MAX, call).await
    }

    /// A call without an answer may have been made on a connection whose other end is gone: the next call has a new one.
    async fn within<T>(&self, wait: Duration, call: impl Future<Output = Result<T, CaError>>) -> Result<T, CaError> {
        let began = Instant::now();
        let late = |_| {
            let mut kept = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
            // One that was made meanwhile is not to blame.
            kept.take_if(|kept| kept.since <= began);
            no_answer_within(wait)
        };
        tokio::time::timeout(wait, call).await.map_err(late)?
    }

    /// A channel without a certificate: who attests may have one that has expired.
    fn anonymous(&self) -> Result<Channel, CaError> {
        let server_id =
            self.trust_domain.with_path(SERVER_PATH).map_err(|_| CaError::BadAnswer { what: "server id" })?;
        let source = Arc::new(Anonymous(self.identity.clone()));
        Ok(runtime::mtls::channel(&self.server, source, PeerRule::exactly(server_id)))
    }

    /// The entries by difference: the CA names every entry's revision and sends what we do not have.
    async fn sync_entries(&self, known: &Entries) -> Result<Vec<Arc<Entry>>, CaError> {
        let mut client =
            entry::entry_client::EntryClient::new(self.channel()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (ask, asked) = mpsc::channel(1);
        let first = entry::SyncAuthorizedEntriesRequest { output_mask: Some(entry_mask()), ids: Vec::new() };
        // The receiving end is alive: it is handed to the call below.
        let _ = ask.send(first).await;
        let asked = ReceiverStream::new(asked);
        let mut answers = client.sync_authorized_entries(asked).await?.into_inner();
        let (revisions, mut sent) = read_page(&mut answers).await?;
        let stale = stale_ids(&revisions, known);
        for ids in stale.chunks(PAGE_ENTRIES) {
            let page = entry::SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() };
            if ask.send(page).await.is_err() {
                return Err(CaError::unavailable("the entries stream ended early"));
            }
            sent.extend(read_page(&mut answers).await?.1);
        }
        let unchanged = revisions.iter().filter(|revision| !stale.contains(&revision.id));
        let mut entries: Vec<_> = unchanged.filter_map(|revision| known.get(&revision.id).cloned()).collect();
        entries.extend(self.decode_entries(sent));
        Ok(entries)
    }

    async fn list_entries(&self) -> Result<Vec<Arc<Entry>>, CaError> {
        let mut client =
            entry::entry_client::EntryClient::new(self.channel()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request = entry::GetAuthorizedEntriesRequest { output_mask: Some(entry_mask()) };
        let sent = client.get_authorized_entries(request).await?.into_inner().entries;
        if sent.len() > ENTRIES_MAX {
            return Err(CaError::BadAnswer { what: "more entries than a node may have" });
        }
        Ok(self.decode_entries(sent))
    }

    /// A bad entry is left out and named; the others are served.
    fn decode_entries(&self, sent: Vec<types::Entry>) -> Vec<Arc<Entry>> {
        let decode = |wire| {
            Entry::decode(wire, &self.trust_domain)
                .inspect_err(|error| tracing::warn!(%error, reason = "ENTRY_BAD", "entry left out"))
                .ok()
                .map(Arc::new)
        };
        sent.into_iter().filter_map(decode).collect()
    }
}

/// The bundle that whoever answers at `server` shows. Nothing of it may be believed but what the caller knows otherwise.
pub(crate) async fn danger_fetch_bundle(server: &str, trust_domain: &TrustDomain) -> Result<TrustBundle, CaError> {
    let channel = runtime::mtls::danger_unverified_channel(server);
    let mut client = bundle::bundle_client::BundleClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let answer = tokio::time::timeout(CALL_WAIT_MAX, client.get_bundle(bundle::GetBundleRequest::default())).await;
    let answer = answer.map_err(|_| no_answer_within(CALL_WAIT_MAX))??.into_inner();
    decode_bundle(answer, trust_domain)
}

#[tonic::async_trait]
impl Ca for GrpcCa {
    async fn attest(&self, evidence: &mut Evidence, csr: Vec<u8>) -> Result<Chain, CaError> {
        let mut client = agent::agent_client::AgentClient::new(self.anonymous()?);
        let data = types::AttestationData { r#type: evidence.kind.into(), payload: evidence.payload.clone() };
        let params = agent::AgentX509svidParams { csr };
        let params = agent::attest_agent_request::Params { data: Some(data), params: Some(params) };
        let (tell, told) = mpsc::channel(1);
        // The receiving end is alive: it is handed to the call below.
        let _ = tell.send(attest_step(agent::attest_agent_request::Step::Params(params))).await;
        let work = async {
            let mut answers = client.attest_agent(ReceiverStream::new(told)).await?.into_inner();
            for _ in 0..=CHALLENGES_MAX {
                match answers.message().await?.and_then(|answer| answer.step) {
                    Some(agent::attest_agent_response::Step::Result(result)) => return chain_of(result.svid),
                    Some(agent::attest_agent_response::Step::Challenge(challenge)) => {
                        let answer = evidence.answer(&challenge)?;
                        // When the CA has gone, the next answer says why.
                        let _ =
                            tell.send(attest_step(agent::attest_agent_request::Step::ChallengeResponse(answer))).await;
                    }
                    None => return Err(CaError::BadAnswer { what: "no result" }),
                }
            }
            Err(CaError::BadAnswer { what: "too many challenges" })
        };
        tokio::time::timeout(ATTEST_WAIT_MAX, work).await.map_err(|_| no_answer_within(ATTEST_WAIT_MAX))?
    }

    async fn renew_agent(&self, csr: Vec<u8>) -> Result<Chain, CaError> {
        let mut client = agent::agent_client::AgentClient::new(self.channel()?);
        let request = agent::RenewAgentRequest { params: Some(agent::AgentX509svidParams { csr }) };
        self.in_time(async { chain_of(client.renew_agent(request).await?.into_inner().svid) }).await
    }

    async fn entries(&self, known: &Entries) -> Result<Vec<Arc<Entry>>, CaError> {
        match self.in_time(self.sync_entries(known)).await {
            Err(CaError::Unsupported) => self.in_time(self.list_entries()).await,
            other => other,
        }
    }

    async fn bundle(&self) -> Result<TrustBundle, CaError> {
        let mut client =
            bundle::bundle_client::BundleClient::new(self.channel()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = self
            .in_time(async { Ok(client.get_bundle(bundle::GetBundleRequest::default()).await?.into_inner()) })
            .await?;
        decode_bundle(answer, &self.trust_domain)
    }

    async fn federated_bundle(&self, trust_domain: &TrustDomain) -> Result<Option<TrustBundle>, CaError> {
        let mut client =
            bundle::bundle_client::BundleClient::new(self.channel()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request =
            bundle::GetFederatedBundleRequest { trust_domain: trust_domain.as_str().into(), output_mask: None };
        match self.in_time(async { Ok(client.get_federated_bundle(request).await?.into_inner()) }).await {
            Ok(answer) => decode_bundle(answer, trust_domain).map(Some),
            Err(CaError::Refused { code: Code::NotFound, .. } | CaError::Unsupported) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn revocations(&self, known: u64) -> Result<News, CaError> {
        let mut client =
            node::node_client::NodeClient::new(self.channel()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request = node::RevocationsRequest { known_generation: known };
        let told = self.in_time(async { Ok(client.fetch_revocations(request).await?.into_inner()) }).await?;
        decode_revocations(told)
    }

    async fn new_x509_svids(
        &self,
        asked: Vec<(String, Vec<u8>)>,
        wait: Duration,
    ) -> Result<Vec<Result<Issued, CaError>>, CaError> {
        let mut client =
            svid::svid_client::SvidClient::new(self.channel()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let count = asked.len();
        let params = asked.into_iter().map(|(entry_id, csr)| svid::NewX509svidParams { entry_id, csr }).collect();
        let request = svid::BatchNewX509svidRequest { params };
        let answer = self.within(wait, async { Ok(client.batch_new_x509svid(request).await?.into_inner()) }).await?;
        if answer.results.len() != count {
            return Err(CaError::BadAnswer { what: "not one result for each CSR" });
        }
        Ok(answer.results.into_iter().map(issued_of_result).collect())
    }

    async fn new_jwt_svid(&self, entry_id: &str, audience: Vec<String>) -> Result<TokenSvid, CaError> {
        let mut client = svid::svid_client::SvidClient::new(self.channel()?);
        let request = svid::NewJwtsvidRequest { entry_id: entry_id.to_owned(), audience };
        let answer = self.in_time(async { Ok(client.new_jwtsvid(request).await?.into_inner()) }).await?;
        let svid =
            answer.svid.filter(|svid| !svid.token.is_empty()).ok_or(CaError::BadAnswer { what: "no JWT-SVID" })?;
        Ok(TokenSvid {
            token: svid.token,
            issued_at: from_unix_secs(svid.issued_at),
            expires_at: from_unix_secs(svid.expires_at),
        })
    }

    async fn new_wit_svids(&self, asked: Vec<(String, Vec<u8>)>) -> Result<Vec<Result<TokenSvid, CaError>>, CaError> {
        let mut client =
            svid::svid_client::SvidClient::new(self.channel()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let count = asked.len();
        let params = |(entry_id, public_key)| svid::NewWitsvidParams {
            entry_id,
            public_key,
            signing_algorithm: WIT_ALGORITHM.into(),
        };
        let request = svid::BatchNewWitsvidRequest { params: asked.into_iter().map(params).collect() };
        let answer = self.in_time(async { Ok(client.batch_new_witsvid(request).await?.into_inner()) }).await?;
        if answer.results.len() != count {
            return Err(CaError::BadAnswer { what: "not one result for each key" });
        }
        Ok(answer.results.into_iter().map(wit_of_result).collect())
    }

    async fn post_status(&self, bundle_sequence: u64) -> Result<(), CaError> {
        let mut client = agent::agent_client::AgentClient::new(self.channel()?);
        let request = agent::PostStatusRequest {
            current_bundle_serial: bundle_sequence,
            agent_version: env!("CARGO_PKG_VERSION").into(),
        };
        self.in_time(async { Ok(client.post_status(request).await.map(|_| ())?) }).await
    }

    async fn watch(&self, report: watch::Receiver<Report>, changed: mpsc::Sender<Progress>) -> Result<(), CaError> {
        let mut client = node::node_client::NodeClient::new(self.channel()?);
        // Nothing is enforced before the first sync, and so nothing reported.
        let reports = WatchStream::new(report).filter(|report| report.enforced > 0);
        let reports = reports.map(|report| node::WatchRequest {
            bundle_sequence_enforced: report.enforced,
            entries_revision: report.entries_revision,
            bundle_sequence_fetched: report.fetched,
            waiting_for: report.waiting_for,
            revocations_enforced: report.revocations,
            configured: report.configured.into_iter().map(configured_message).collect(),
        });
        let mut hints = self.in_time(async { Ok(client.watch(reports).await?.into_inner()) }).await?;
        while let Some(hint) = hints.message().await? {
            let hint = Progress {
                bundle_sequence: hint.bundle_sequence,
                entries_revision: hint.entries_revision,
                revocations: hint.revocation_generation,
            };
            // A full queue already holds a reason to sync.
            if let Err(mpsc::error::TrySendError::Closed(_)) = changed.try_send(hint) {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn attest_step(step: agent::attest_agent_request::Step) -> agent::AttestAgentRequest {
    agent::AttestAgentRequest { step: Some(step) }
}

fn configured_message(Configured { workload, versions }: Configured) -> types::KasbahConfigured {
    types::KasbahConfigured { workload, versions }
}

fn no_answer_within(wait: Duration) -> CaError {
    CaError::unavailable(format!("no answer within {} s", wait.as_secs()))
}

/// Reads answers until one says that no more follow.
async fn read_page(
    answers: &mut tonic::Streaming<entry::SyncAuthorizedEntriesResponse>,
) -> Result<(Vec<entry::EntryRevision>, Vec<types::Entry>), CaError> {
    let (mut revisions, mut entries) = (Vec::new(), Vec::new());
    while let Some(answer) = answers.message().await? {
        revisions.extend(answer.entry_revisions);
        entries.extend(answer.entries);
        if revisions.len().max(entries.len()) > ENTRIES_MAX {
            return Err(CaError::BadAnswer { what: "more entries than a node may have" });
        }
        if !answer.more {
            break;
        }
    }
    Ok((revisions, entries))
}

fn stale_ids(revisions: &[entry::EntryRevision], known: &Entries) -> Vec<String> {
    let current = |revision: &&entry::EntryRevision| {
        known
            .get(&revision.id)
            .is_some_and(|entry| entry.revision == revision.revision_number && entry.created_at == revision.created_at)
    };
    revisions.iter().filter(|revision| !current(revision)).map(|revision| revision.id.clone()).collect()
}

fn entry_mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        selectors: true,
        federates_with: true,
        revision_number: true,
        hint: true,
        store_svid: true,
        admin: true,
        downstream: true,
        created_at: true,
        ..types::EntryMask::default()
    }
}

fn chain_of(svid: Option<types::X509svid>) -> Result<Chain, CaError> {
    let chain = svid.map(|svid| svid.cert_chain).unwrap_or_default();
    if chain.is_empty() || chain.len() > CHAIN_MAX {
        return Err(CaError::BadAnswer { what: "no certificate chain" });
    }
    Ok(chain.into_iter().map(CertificateDer::from).collect())
}

fn wit_of_result(result: svid::batch_new_witsvid_response::Result) -> Result<TokenSvid, CaError> {
    let status = result.status.unwrap_or_default();
    match Code::from(status.code) {
        Code::Ok => {
            let svid = result.svid.filter(|svid| !svid.token.is_empty());
            let svid = svid.ok_or(CaError::BadAnswer { what: "no WIT-SVID" })?;
            let (issued_at, expires_at) = (from_unix_secs(svid.issued_at), from_unix_secs(svid.expires_at));
            Ok(TokenSvid { token: svid.token, issued_at, expires_at })
        }
        code => Err(Status::new(code, status.message).into()),
    }
}

fn issued_of_result(result: svid::batch_new_x509svid_response::Result) -> Result<Issued, CaError> {
    let status = result.status.unwrap_or_default();
    match Code::from(status.code) {
        Code::Ok => {
            let advised = result.svid.as_ref().map(|svid| svid.kasbah_renew_at).filter(|moment| *moment > 0);
            Ok(Issued { chain: chain_of(result.svid)?, renew_at: advised.map(from_unix_secs) })
        }
        code => Err(Status::new(code, status.message).into()),
    }
}

fn decode_revocations(told: node::RevocationsResponse) -> Result<News, CaError> {
    let token = |token: node::RevokedToken| {
        let hash = token.sha256.try_into().map_err(|_| CaError::BadAnswer { what: "the hash of a token" })?;
        Ok((hash, token.not_after))
    };
    Ok(News {
        generation: told.generation,
        whole: told.whole,
        lists: told.lists.into_iter().map(|list| (list.issuer_id, list.crl)).collect(),
        issuers: told.issuers,
        tokens: told.tokens.into_iter().map(token).collect::<Result<_, CaError>>()?,
    })
}

/// A bundle from the wire. It must be of the trust domain that was asked for, or one CA could speak for another.
fn decode_bundle(wire: types::Bundle, expected: &TrustDomain) -> Result<TrustBundle, CaError> {
    if wire.trust_domain.trim_start_matches("spiffe://") != expected.as_str() {
        return Err(CaError::BadAnswer { what: "the bundle of another trust domain" });
    }
    let token_keys = wire.jwt_authorities.len().max(wire.wit_authorities.len());
    if wire.x509_authorities.len().max(token_keys) > AUTHORITIES_MAX {
        return Err(CaError::BadAnswer { what: "too many authorities in a bundle" });
    }
    let mut bundle = TrustBundle::new(expected.clone());
    for authority in wire.x509_authorities {
        let certificate = CertificateDer::from(authority.asn1);
        if authority.tainted {
            bundle.taint_x509_authority(&certificate);
        }
        bundle
            .add_x509_authority(certificate)
            .map_err(|_| CaError::BadAnswer { what: "a root that is no certificate" })?;
    }
    let mut keys = BTreeMap::new();
    for key in wire.jwt_authorities {
        if key.tainted {
            bundle.taint_key(&key.key_id);
        }
        let expires_at = (key.expires_at > 0).then(|| from_unix_secs(key.expires_at));
        let authority = JwtAuthority::from_spki_der(&key.key_id, &key.public_key, expires_at)
            .map_err(|_| CaError::BadAnswer { what: "a JWT authority's public key" })?;
        keys.insert(key.key_id, authority);
    }
    bundle.jwt_authorities = keys.into_values().collect();
    let mut keys = BTreeMap::new();
    for key in wire.wit_authorities {
        if key.tainted {
            bundle.taint_key(&key.key_id);
        }
        let expires_at = (key.expires_at > 0).then(|| from_unix_secs(key.expires_at));
        let authority = JwtAuthority::from_spki_der(&key.key_id, &key.public_key, expires_at)
            .map_err(|_| CaError::BadAnswer { what: "a WIT authority's public key" })?;
        keys.insert(key.key_id, authority);
    }
    bundle.wit_authorities = keys.into_values().collect();
    bundle.sequence = wire.sequence_number;
    bundle.refresh_hint = u64::try_from(wire.refresh_hint).ok().filter(|secs| *secs > 0).map(Duration::from_secs);
    Ok(bundle)
}

const SERVER_PATH: &str = "/spire/server";
/// The agent's WIT keys are P-256 keys.
const WIT_ALGORITHM: &str = "ES256";
const PAGE_ENTRIES: usize = 500;
const CHAIN_MAX: usize = 8;
const CHALLENGES_MAX: usize = 4;
/// How long an attestation may take; the CA may have to call back.
const ATTEST_WAIT_MAX: Duration = Duration::from_secs(30);
const AUTHORITIES_MAX: usize = 100;
const MESSAGE_BYTES_MAX: usize = 64 << 20;
