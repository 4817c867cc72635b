//! A CA in memory, and what tests put around it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use identity::authority::{LeafProfile, X509Authority};
use identity::csr::Csr;
use identity::jwt::{JwtAuthorityKey, JwtSvidProfile};
use identity::wit::{HolderKey, WitAuthorityKey, WitKey, WitSvidProfile};
use identity::{SpiffeId, TrustBundle, TrustDomain};
use runtime::clock::Clock;
use tokio::sync::{mpsc, watch};
use tonic::Code;

use crate::ca::{Ca, CaError, Chain, Issued, Progress, Report, TokenSvid};
use crate::entry::tests::{decode, wire};
use crate::entry::{Entries, Entry};
use crate::evidence::Evidence;
use crate::revocations::News;
use crate::state::State;

/// A CA that does what the test says.
pub(crate) struct FakeCa {
    pub(crate) clock: Clock,
    pub(crate) root: Mutex<X509Authority>,
    pub(crate) jwt_key: JwtAuthorityKey,
    pub(crate) wit_key: Mutex<WitAuthorityKey>,
    pub(crate) entries: Mutex<Vec<Arc<Entry>>>,
    pub(crate) bundle: Mutex<TrustBundle>,
    pub(crate) federated: Mutex<Vec<TrustBundle>>,
    pub(crate) ttl: Mutex<Duration>,
    /// No call gets through.
    pub(crate) down: AtomicBool,
    /// Calls get through and are not answered.
    pub(crate) silent: AtomicBool,
    /// Signs with this ID instead of the entry's.
    pub(crate) wrong_id: AtomicBool,
    pub(crate) token: Mutex<Option<String>>,
    pub(crate) joins: AtomicUsize,
    /// When agents tried to join.
    pub(crate) attempts: Mutex<Vec<SystemTime>>,
    /// How long it wants to be left alone by those who join; at once when absent.
    pub(crate) asked_wait: Mutex<Option<Duration>>,
    /// The CA has forgotten this agent.
    pub(crate) evicted: AtomicBool,
    /// Whether the CA lets nodes come back with their last SVID.
    pub(crate) old_svids: AtomicBool,
    pub(crate) batches: Mutex<Vec<usize>>,
    pub(crate) jwts: AtomicUsize,
    pub(crate) wits: AtomicUsize,
    pub(crate) posted: Mutex<Vec<u64>>,
    /// How long after its issue it advises to renew an SVID.
    pub(crate) advice: Mutex<Option<Duration>>,
    /// What is revoked; without it the call is not offered.
    pub(crate) revocations: Mutex<Option<News>>,
    /// What the watch stream sends; without it the call is not offered.
    pub(crate) hints: Mutex<Option<mpsc::Receiver<Progress>>>,
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// A moment tests start at.
pub(crate) fn start() -> SystemTime {
    runtime::clock::from_unix_secs(1_800_000_000)
}

/// An entry, as the CA has it.
pub(crate) fn entry(id: &str, path: &str, selectors: &[&str]) -> Arc<Entry> {
    decode(wire(id, path, selectors))
}

/// An entry that this test process matches.
pub(crate) fn own_entry(id: &str, path: &str) -> Arc<Entry> {
    entry(id, path, &[&format!("unix:uid:{}", rustix::process::getuid().as_raw())])
}

pub(crate) fn changed(entry: &Arc<Entry>, change: impl FnOnce(&mut Entry)) -> Arc<Entry> {
    let mut entry = Entry::clone(entry);
    change(&mut entry);
    Arc::new(entry)
}

pub(crate) fn root(clock: Clock) -> X509Authority {
    X509Authority::generate_root(&domain(), Duration::from_secs(30 * 86_400), clock.now()).unwrap()
}

impl FakeCa {
    pub(crate) fn new(clock: Clock, ttl: Duration) -> Arc<Self> {
        let (root, jwt_key) = (root(clock), JwtAuthorityKey::generate().unwrap());
        let mut bundle = TrustBundle::from_x509_authorities(domain(), [root.certificate().clone()]).unwrap();
        bundle.jwt_authorities.push(jwt_key.public(None));
        let wit_key = WitAuthorityKey::generate().unwrap();
        bundle.wit_authorities.push(wit_key.public(None));
        bundle.sequence = 1;
        Arc::new(Self {
            clock,
            root: Mutex::new(root),
            jwt_key,
            wit_key: Mutex::new(wit_key),
            entries: Mutex::default(),
            bundle: Mutex::new(bundle),
            federated: Mutex::default(),
            ttl: Mutex::new(ttl),
            down: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            wrong_id: AtomicBool::new(false),
            token: Mutex::default(),
            joins: AtomicUsize::new(0),
            attempts: Mutex::default(),
            asked_wait: Mutex::default(),
            evicted: AtomicBool::new(false),
            old_svids: AtomicBool::new(false),
            batches: Mutex::default(),
            jwts: AtomicUsize::new(0),
            wits: AtomicUsize::new(0),
            posted: Mutex::default(),
            advice: Mutex::default(),
            revocations: Mutex::default(),
            hints: Mutex::default(),
        })
    }

    /// A state that knows this CA's bundle and `entries`, as after a sync.
    pub(crate) fn synced_state(&self, entries: impl IntoIterator<Item = Arc<Entry>>) -> Arc<State> {
        let state = Arc::new(State::new(self.bundle.lock().unwrap().clone()));
        *self.entries.lock().unwrap() = entries.into_iter().collect();
        self.publish(&state);
        state
    }

    /// What a sync does.
    pub(crate) fn publish(&self, state: &State) {
        let entries = Entries::new(self.entries.lock().unwrap().iter().cloned());
        let own = self.bundle.lock().unwrap().clone();
        let federated = self.federated.lock().unwrap().clone();
        let bundles = federated.into_iter().chain([own]).map(Arc::new);
        state.put_synced(entries, identity::BundleSet::new(bundles));
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub(crate) fn sign(&self, id: &SpiffeId, csr: &[u8]) -> Chain {
        let csr = Csr::decode_der(csr).unwrap();
        let profile = LeafProfile {
            backdate: Duration::from_secs(10),
            ..LeafProfile::new(id.clone(), *self.ttl.lock().unwrap())
        };
        self.root.lock().unwrap().sign_svid(csr.public_key_spki(), &profile, self.clock.now()).unwrap()
    }

    /// A proof of possession by a private JWK, for the relying party of a test.
    pub(crate) fn prove(&self, private_jwk: &str, wit: &str) -> String {
        let key = WitKey::from_private_jwk(private_jwk).unwrap();
        key.prove(wit, "relying party", Duration::from_secs(30), self.clock.now()).unwrap()
    }

    /// Revokes certificates of its root, in the next list.
    pub(crate) fn revoke(&self, serials: &[&str]) -> News {
        let root = self.root.lock().unwrap();
        let mut known = self.revocations.lock().unwrap();
        let generation = known.as_ref().map_or(1, |news| news.generation + 1);
        let revoked = serials.iter().map(|serial| identity::authority::RevokedSerial {
            serial: identity::revocation::serial_bytes(serial).unwrap(),
            at: self.clock.now(),
            reason: None,
        });
        let profile = identity::authority::CrlProfile {
            number: generation,
            this_update: self.clock.now(),
            next_update: self.clock.now() + Duration::from_secs(86_400),
            revoked: revoked.collect(),
            distribution_point: None,
        };
        let id = root.subject_key_id().to_owned();
        let lists = vec![(id.clone(), root.sign_crl(&profile).unwrap())];
        let news = News { generation, whole: true, lists, issuers: vec![id], tokens: Vec::new() };
        *known = Some(news.clone());
        news
    }

    /// The node of an old SVID, if that is the policy. The proof of the key is the wire's business.
    fn come_back(&self, payload: &[u8], csr: &[u8]) -> Result<Chain, CaError> {
        if !self.old_svids.load(Ordering::SeqCst) {
            return Err(refused(Code::PermissionDenied));
        }
        let shown: serde_json::Value = serde_json::from_slice(payload).unwrap();
        let der = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, shown["certificates"][0].as_str().unwrap());
        let old = identity::summary::CertificateSummary::decode(&der.unwrap().into()).unwrap();
        self.joins.fetch_add(1, Ordering::SeqCst);
        Ok(self.sign(&old.spiffe_id.unwrap(), csr))
    }

    fn reach(&self) -> Result<(), CaError> {
        if self.down.load(Ordering::SeqCst) { Err(CaError::unavailable("down")) } else { Ok(()) }
    }
}

pub(crate) fn refused(code: Code) -> CaError {
    CaError::Refused { code, message: "no".into(), reason: None }
}

#[tonic::async_trait]
impl Ca for FakeCa {
    async fn attest(&self, evidence: &mut Evidence, csr: Vec<u8>) -> Result<Chain, CaError> {
        self.reach()?;
        self.attempts.lock().unwrap().push(self.clock.now());
        if let Some(wait) = *self.asked_wait.lock().unwrap() {
            return Err(CaError::Busy { message: "too many".into(), wait });
        }
        if evidence.kind == crate::evidence::OLD_SVID {
            return self.come_back(&evidence.payload, &csr);
        }
        if evidence.kind != "join_token" {
            self.joins.fetch_add(1, Ordering::SeqCst);
            self.evicted.store(false, Ordering::SeqCst);
            return Ok(self.sign(&domain().with_path(&format!("/spire/agent/{}/n", evidence.kind)).unwrap(), &csr));
        }
        let token = std::str::from_utf8(&evidence.payload).unwrap();
        let expected = self.token.lock().unwrap().take();
        if expected.as_deref() != Some(token) {
            return Err(refused(Code::InvalidArgument));
        }
        self.joins.fetch_add(1, Ordering::SeqCst);
        self.evicted.store(false, Ordering::SeqCst);
        Ok(self.sign(&domain().with_path(&format!("/spire/agent/join_token/{token}")).unwrap(), &csr))
    }

    async fn renew_agent(&self, csr: Vec<u8>) -> Result<Chain, CaError> {
        self.reach()?;
        if self.evicted.load(Ordering::SeqCst) {
            return Err(refused(Code::PermissionDenied));
        }
        Ok(self.sign(&domain().with_path("/spire/agent/join_token/t").unwrap(), &csr))
    }

    async fn entries(&self, _: &Entries) -> Result<Vec<Arc<Entry>>, CaError> {
        self.reach()?;
        Ok(self.entries.lock().unwrap().clone())
    }

    async fn bundle(&self) -> Result<TrustBundle, CaError> {
        self.reach()?;
        Ok(self.bundle.lock().unwrap().clone())
    }

    async fn federated_bundle(&self, trust_domain: &TrustDomain) -> Result<Option<TrustBundle>, CaError> {
        self.reach()?;
        Ok(self.federated.lock().unwrap().iter().find(|bundle| bundle.trust_domain == *trust_domain).cloned())
    }

    async fn revocations(&self, known: u64) -> Result<News, CaError> {
        self.reach()?;
        let told = self.revocations.lock().unwrap().clone().ok_or(CaError::Unsupported)?;
        Ok(if known == told.generation { News { lists: Vec::new(), whole: false, ..told } } else { told })
    }

    async fn new_x509_svids(
        &self,
        asked: Vec<(String, Vec<u8>)>,
        wait: Duration,
    ) -> Result<Vec<Result<Issued, CaError>>, CaError> {
        if self.silent.load(Ordering::SeqCst) {
            tokio::time::sleep(wait).await;
            return Err(CaError::unavailable("no answer"));
        }
        self.reach()?;
        self.batches.lock().unwrap().push(asked.len());
        let entries = self.entries.lock().unwrap().clone();
        let one = |(id, csr): (String, Vec<u8>)| {
            let entry = entries.iter().find(|entry| entry.id == id).ok_or_else(|| refused(Code::NotFound))?;
            let wrong = domain().with_path("/somebody/else").unwrap();
            let id = if self.wrong_id.load(Ordering::SeqCst) { &wrong } else { &entry.spiffe_id };
            let advice = *self.advice.lock().unwrap();
            Ok(Issued { chain: self.sign(id, &csr), renew_at: advice.map(|after| self.clock.now() + after) })
        };
        Ok(asked.into_iter().map(one).collect())
    }

    async fn new_jwt_svid(&self, entry_id: &str, audience: Vec<String>) -> Result<TokenSvid, CaError> {
        self.reach()?;
        self.jwts.fetch_add(1, Ordering::SeqCst);
        let entries = self.entries.lock().unwrap().clone();
        let entry = entries.iter().find(|entry| entry.id == entry_id).ok_or_else(|| refused(Code::NotFound))?;
        let profile = JwtSvidProfile {
            id: entry.spiffe_id.clone(),
            audiences: audience,
            ttl: *self.ttl.lock().unwrap(),
            issuer: None,
            token_id: None,
        };
        let svid = self.jwt_key.sign_svid(&profile, self.clock.now()).unwrap();
        Ok(TokenSvid { token: svid.token, issued_at: svid.issued_at, expires_at: svid.expires_at })
    }

    async fn new_wit_svids(&self, asked: Vec<(String, Vec<u8>)>) -> Result<Vec<Result<TokenSvid, CaError>>, CaError> {
        self.reach()?;
        self.wits.fetch_add(asked.len(), Ordering::SeqCst);
        let entries = self.entries.lock().unwrap().clone();
        let one = |(id, public_key): (String, Vec<u8>)| {
            let entry = entries.iter().find(|entry| entry.id == id).ok_or_else(|| refused(Code::NotFound))?;
            let wrong = domain().with_path("/somebody/else").unwrap();
            let profile = WitSvidProfile {
                id: if self.wrong_id.load(Ordering::SeqCst) { wrong } else { entry.spiffe_id.clone() },
                key: HolderKey::from_spki_der(&public_key, "ES256").unwrap(),
                ttl: *self.ttl.lock().unwrap(),
                backdate: Duration::from_secs(10),
                token_id: None,
            };
            let svid = self.wit_key.lock().unwrap().sign_svid(&profile, self.clock.now()).unwrap();
            Ok(TokenSvid { token: svid.token, issued_at: svid.issued_at, expires_at: svid.expires_at })
        };
        Ok(asked.into_iter().map(one).collect())
    }

    async fn post_status(&self, bundle_sequence: u64) -> Result<(), CaError> {
        self.posted.lock().unwrap().push(bundle_sequence);
        Ok(())
    }

    async fn watch(&self, _: watch::Receiver<Report>, changed: mpsc::Sender<Progress>) -> Result<(), CaError> {
        let hints = self.hints.lock().unwrap().take();
        let Some(mut hints) = hints else { return Err(CaError::Unsupported) };
        while let Some(hint) = hints.recv().await {
            let _ = changed.send(hint).await;
        }
        Ok(())
    }
}

/// An agent's sockets, served in this process, over a CA in memory. Workloads are this test process itself.
pub(crate) struct Service {
    pub(crate) ca: Arc<FakeCa>,
    pub(crate) state: Arc<State>,
    pub(crate) desk: Arc<crate::caller::Desk>,
    pub(crate) socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
    shutdown: runtime::shutdown::Shutdown,
}

impl Service {
    /// Serves what `router` makes of the desk.
    pub(crate) fn start(router: impl FnOnce(&Arc<crate::caller::Desk>) -> axum::Router) -> Self {
        let ca = FakeCa::new(Clock::system(), Duration::from_secs(600));
        let state = Arc::new(State::new(ca.bundle.lock().unwrap().clone()));
        let dir = tempfile::tempdir().unwrap();
        let launches = Arc::new(crate::attest::Launches::load(dir.path().join("launches.json")));
        let shutdown = runtime::shutdown::Shutdown::new();
        let desk = Arc::new(crate::caller::Desk {
            state: state.clone(),
            ca: ca.clone(),
            attestor: crate::attest::Attestor::new(launches, None),
            clock: Clock::system(),
            numbers: crate::metrics::Numbers::default(),
            enforced: Arc::default(),
            streams: crate::tally::Tally::new(crate::caller::STREAM_LIMITS),
            calls: crate::tally::Tally::new(crate::caller::CALL_LIMITS),
            delegated: crate::tally::Tally::new(crate::caller::DELEGATED_LIMITS),
            jwts: crate::workload_api::JwtCache::default(),
            shutdown: shutdown.clone(),
        });
        let socket = dir.path().join("agent.sock");
        let listener = runtime::listen::unix(&socket, 0o777).unwrap();
        tokio::spawn(crate::server::serve_workloads(listener, router(&desk), desk.clone()));
        Self { ca, state, desk, socket, _dir: dir, shutdown }
    }

    /// Makes `entries` known, as a sync does.
    pub(crate) fn publish(&self, entries: impl IntoIterator<Item = Arc<Entry>>) -> &Self {
        *self.ca.entries.lock().unwrap() = entries.into_iter().collect();
        self.ca.publish(&self.state);
        self
    }

    /// Issues a new SVID for each entry, as the rotation does.
    pub(crate) fn rotate(&self) -> &Self {
        let entries = self.state.current().entries.clone();
        let one = |entry: &Arc<Entry>| {
            let prepared = crate::rotation::Prepared::new().unwrap();
            let chain = self.ca.sign(&entry.spiffe_id, &prepared.csr());
            let svid = Arc::new(prepared.into_svid(chain).unwrap());
            let held = crate::state::Held { renew_at: svid.not_after(), svid, revision: entry.revision };
            (entry.id.clone(), held)
        };
        assert!(self.state.put_held(entries.iter().map(one).collect()).is_empty());
        self
    }

    pub(crate) async fn channel(&self) -> tonic::transport::Channel {
        let socket = self.socket.clone();
        let dial = move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        };
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        endpoint.connect_with_connector(tower::service_fn(dial)).await.unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}
