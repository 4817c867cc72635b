//! The agent's own identity: joined once with a token, kept in `data_dir`, renewed at half-life.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use identity::renewal::{renew_at, retry_wait};
use identity::{BundleSet, TrustDomain, X509Svid};
use runtime::clock::{Clock, rfc3339};
use runtime::shutdown::Shutdown;
use tokio::sync::watch;

use crate::ca::{Ca, CaError};
use crate::dice;
use crate::metrics::{Holder, Numbers, Outcome};
use crate::rotation::Prepared;
use crate::state::State;
use crate::store;

/// Why the agent has no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// There is neither a stored SVID nor a token.
    #[error(
        "this agent has not joined yet: create a token with `kasbah token create` and name its file as join_token_file"
    )]
    NoToken,
    /// The token file cannot be read.
    #[error("{}: cannot read the join token", file.display())]
    TokenFile {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The CA refuses the token.
    #[error("the CA refuses the join token (used, expired or unknown): create a new one with `kasbah token create` and put it into {}", file.display())]
    TokenRefused {
        /// Which file.
        file: PathBuf,
        /// What the CA says.
        #[source]
        source: CaError,
    },
    /// The CA's answer is no agent SVID.
    #[error("the CA answered the join with something that is no agent SVID")]
    Answer(#[source] CaError),
    /// The stored SVID has expired while the agent was off.
    #[error(
        "the stored SVID of this agent expired at {expired}: create a token with `kasbah token create`, put it into join_token_file and start again"
    )]
    Expired {
        /// When.
        expired: String,
        /// Why the new join failed.
        #[source]
        source: Box<Self>,
    },
    /// The SVID cannot be kept.
    #[error("{}: cannot store the agent's SVID; see that data_dir is writable", file.display())]
    Store {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The machine makes no keys.
    #[error("no key can be made")]
    Key,
}

impl JoinError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "JOIN_NO_TOKEN",
            Self::TokenFile { .. } => "JOIN_TOKEN_UNREADABLE",
            Self::TokenRefused { .. } => "JOIN_TOKEN_REFUSED",
            Self::Answer(_) => "JOIN_BAD_ANSWER",
            Self::Expired { .. } => "AGENT_SVID_EXPIRED",
            Self::Store { .. } => "DATA_DIR_UNWRITABLE",
            Self::Key => "KEY_NOT_MADE",
        }
    }
}

/// The agent's SVID beside the bundles it judges the CA by.
#[derive(Debug)]
pub(crate) struct NodeIdentity {
    own: ArcSwapOption<Own>,
    state: Arc<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Own {
    svid: Arc<X509Svid>,
    /// When this process got hold of it.
    since: SystemTime,
}

impl NodeIdentity {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { own: ArcSwapOption::empty(), state, changes: watch::Sender::new(0) }
    }

    pub(crate) fn svid(&self) -> Option<Arc<X509Svid>> {
        self.own.load().as_ref().map(|own| own.svid.clone())
    }

    pub(crate) fn serial(&self) -> Option<String> {
        self.own.load().as_ref().map(|own| own.svid.serial().to_owned())
    }

    /// For tests of what needs a joined agent.
    #[cfg(test)]
    pub(crate) fn set_for_test(&self, svid: X509Svid) {
        let since = svid.not_before();
        self.set(svid, since);
    }

    fn set(&self, svid: X509Svid, since: SystemTime) {
        self.own.store(Some(Arc::new(Own { svid: Arc::new(svid), since })));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Changes with every new SVID.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether the authority that signed the SVID is neither tainted nor gone; true while there is none.
    fn is_clean(&self) -> bool {
        self.svid().is_none_or(|svid| self.state.current().is_clean(&svid))
    }
}

impl identity::tls::Snapshot for NodeIdentity {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        Self::svid(self)
    }

    fn bundles(&self) -> Arc<BundleSet> {
        self.state.current().bundles.clone()
    }
}

/// Joins and renews.
pub(crate) struct Node {
    pub(crate) ca: Arc<dyn Ca>,
    pub(crate) identity: Arc<NodeIdentity>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) svid_file: PathBuf,
    pub(crate) join_token_file: Option<PathBuf>,
    pub(crate) clock: Clock,
    pub(crate) numbers: Numbers,
}

impl Node {
    /// Takes up the stored SVID, or joins. Waits for a CA that is away; answers only what waiting does not cure.
    ///
    /// # Errors
    /// When there is no way to an identity without the operator.
    pub(crate) async fn start(&self, shutdown: &Shutdown) -> Result<(), JoinError> {
        let expired = match self.load() {
            Some(svid) if svid.not_after() > self.clock.now() && !self.is_left_behind(&svid) => {
                tracing::info!(spiffe_id = %svid.id(), serial = svid.serial(), "stored SVID taken up");
                // Its age is unknown, but `not_before` is: a restart does not put off the renewal.
                let since = svid.not_before();
                self.identity.set(svid, since);
                return Ok(());
            }
            found => found.map(|svid| svid.not_after()),
        };
        let joined = self.join(shutdown).await;
        match (expired, joined) {
            (Some(at), Err(source)) => Err(JoinError::Expired { expired: rfc3339(at), source: Box::new(source) }),
            (_, joined) => joined,
        }
    }

    /// Whether the bundle has moved on without this SVID while the agent slept, and there is a token to join with.
    fn is_left_behind(&self, svid: &X509Svid) -> bool {
        let left_behind = !self.identity.state.current().is_clean(svid);
        let token = self.join_token_file.as_deref().is_some_and(|file| read_token(file).is_ok());
        if left_behind {
            tracing::warn!(
                reason = "ISSUER_TAINTED",
                can_join = token,
                "the authority of the stored SVID has left the bundle; the agent must join again"
            );
        }
        left_behind && token
    }

    /// Renews the agent's own SVID until `shutdown`.
    pub(crate) async fn keep_fresh(self, shutdown: Shutdown) {
        let mut failures = 0_u32;
        loop {
            let Some(own) = self.identity.own.load_full() else { return };
            let (now, not_after) = (self.clock.now(), own.svid.not_after());
            let due = renew_at(own.since.max(own.svid.not_before()), not_after, dice::roll());
            let left = not_after.duration_since(now).unwrap_or_default();
            let due = if failures == 0 {
                due
            } else {
                now + retry_wait(failures, RETRY_WAIT_BASE, wait_max(left), dice::roll())
            };
            if shutdown.unless(self.until_due(due, failures == 0)).await.is_none() {
                return;
            }
            let Some(renewed) = shutdown.unless(self.renew()).await else { return };
            self.numbers.renewed(Holder::agent, if renewed.is_ok() { Outcome::ok } else { Outcome::failed });
            failures = match renewed {
                Ok(()) if self.identity.is_clean() => 0,
                // Signed by what is tainted here: our bundle is older than the CA's, or it has not moved on yet.
                Ok(()) => failures.saturating_add(1),
                Err(error) => {
                    warn_renewal(&error, not_after);
                    failures.saturating_add(1)
                }
            };
        }
    }

    /// Waits for the moment of a renewal. With `early`, an SVID whose authority is tainted is due at once.
    async fn until_due(&self, due: SystemTime, early: bool) {
        let mut changes = self.identity.state.subscribe();
        let tainted = async {
            while self.identity.is_clean() {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            tracing::info!(reason = "ISSUER_TAINTED", "the agent's own SVID is renewed early");
        };
        tokio::select! {
            () = self.measured_sleep(due) => (),
            () = tainted, if early => (),
        }
    }

    async fn measured_sleep(&self, due: SystemTime) {
        loop {
            let now = self.clock.now();
            if let Some(svid) = self.identity.svid() {
                let left = svid.not_after().duration_since(now).unwrap_or_default();
                self.numbers.agent_svid_expiry.set(left.as_secs_f64());
            }
            if due <= now {
                return;
            }
            self.clock.sleep_until(due.min(now + MEASURE_INTERVAL)).await;
        }
    }

    async fn renew(&self) -> Result<(), CaError> {
        let prepared = Prepared::new().ok_or(CaError::BadAnswer { what: "no key can be made here" })?;
        let chain = self.ca.renew_agent(prepared.csr()).await?;
        let svid = self.check(prepared.into_svid(chain)?)?;
        // Used even when it cannot be stored: a running agent is worth more than a warm start.
        if let Err(error) = self.keep(&svid) {
            tracing::error!(reason = error.reason(), %error, "the agent's new SVID is not stored");
        }
        tracing::info!(spiffe_id = %svid.id(), serial = svid.serial(), "the agent's SVID renewed");
        self.identity.set(svid, self.clock.now());
        Ok(())
    }

    async fn join(&self, shutdown: &Shutdown) -> Result<(), JoinError> {
        let file = self.join_token_file.as_ref().ok_or(JoinError::NoToken)?;
        let mut failures = 0;
        loop {
            let token = read_token(file)?;
            let prepared = Prepared::new().ok_or(JoinError::Key)?;
            match shutdown.unless(self.ca.attest(&token, prepared.csr())).await {
                None => return Ok(()),
                Some(Ok(chain)) => {
                    let svid =
                        prepared.into_svid(chain).and_then(|svid| self.check(svid)).map_err(JoinError::Answer)?;
                    self.keep(&svid)?;
                    tracing::info!(spiffe_id = %svid.id(), serial = svid.serial(), "joined");
                    self.identity.set(svid, self.clock.now());
                    return Ok(());
                }
                Some(Err(source)) if source.is_refusal() => {
                    return Err(JoinError::TokenRefused { file: file.clone(), source });
                }
                Some(Err(source @ CaError::BadAnswer { .. })) => return Err(JoinError::Answer(source)),
                Some(Err(error)) => {
                    failures += 1;
                    tracing::warn!(%error, reason = error.reason(), failures, "cannot join yet, trying again");
                    let wait = retry_wait(failures, RETRY_WAIT_BASE, JOIN_RETRY_MAX, dice::roll());
                    if shutdown.unless(tokio::time::sleep(wait)).await.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// An agent's ID lies below `/spire/agent` of our trust domain.
    fn check(&self, svid: X509Svid) -> Result<X509Svid, CaError> {
        let own = svid.id().is_member_of(&self.trust_domain) && svid.id().path().starts_with(AGENT_PATH);
        if own && svid.not_after() > self.clock.now() {
            Ok(svid)
        } else {
            Err(CaError::BadAnswer { what: "no SVID of an agent" })
        }
    }

    fn keep(&self, svid: &X509Svid) -> Result<(), JoinError> {
        let mut text = svid.key().pkcs8_pem();
        text.push_str(&svid.chain_pem());
        store::write(&self.svid_file, text.as_bytes())
            .map_err(|source| JoinError::Store { file: self.svid_file.clone(), source })
    }

    /// The stored SVID; a damaged file counts as none and is named.
    fn load(&self) -> Option<X509Svid> {
        let damaged = |what: &dyn std::fmt::Display| {
            tracing::warn!(file = %self.svid_file.display(), error = %what, reason = "STORED_SVID_DAMAGED", "stored SVID not used");
        };
        let text = store::read(&self.svid_file, SVID_FILE_BYTES_MAX).inspect_err(|error| damaged(error)).ok()??;
        let key = identity::PrivateKey::from_pkcs8_pem(&text).inspect_err(|error| damaged(error)).ok()?;
        let chain = identity::pem::decode_certificates(&text).inspect_err(|error| damaged(error)).ok()?;
        let svid = X509Svid::from_parts(chain, key).inspect_err(|error| damaged(error)).ok()?;
        svid.id().is_member_of(&self.trust_domain).then_some(svid)
    }
}

fn read_token(file: &Path) -> Result<String, JoinError> {
    let unreadable = |source| JoinError::TokenFile { file: file.to_owned(), source };
    let bytes = store::read(file, TOKEN_BYTES_MAX).map_err(unreadable)?.ok_or(JoinError::NoToken)?;
    let token = String::from_utf8_lossy(&bytes).trim().to_owned();
    if token.is_empty() { Err(JoinError::NoToken) } else { Ok(token) }
}

fn warn_renewal(error: &CaError, not_after: SystemTime) {
    let expires = rfc3339(not_after);
    if error.is_refusal() {
        tracing::error!(%error, reason = error.reason(), expires,
            "the CA refuses to renew this agent; if it was evicted, create a new join token and remove its SVID from data_dir");
    } else {
        tracing::warn!(%error, reason = error.reason(), expires, "the agent's SVID is not renewed, trying again");
    }
}

fn wait_max(left: Duration) -> Duration {
    (left / 4).clamp(RETRY_WAIT_BASE, RETRY_WAIT_MAX)
}

const AGENT_PATH: &str = "/spire/agent/";
const RETRY_WAIT_BASE: Duration = Duration::from_millis(500);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);
const JOIN_RETRY_MAX: Duration = Duration::from_secs(2);
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);
const TOKEN_BYTES_MAX: u64 = 4096;
const SVID_FILE_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests;
