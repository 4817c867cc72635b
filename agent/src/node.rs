//! The agent's own identity: joined with evidence of what the node is, kept in `data_dir`, renewed at half-life. When it is
//! lost (run out, evicted), the agent joins anew by itself, if its evidence may be shown again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use identity::renewal::{renew_at, retry_wait};
use identity::{BundleSet, TrustDomain, X509Svid};
use runtime::clock::{Clock, rfc3339};
use runtime::shutdown::Shutdown;
use tokio::sync::{Notify, watch};

use crate::ca::{Ca, CaError};
use crate::dice;
use crate::evidence::{Evidence, Source};
use crate::metrics::{Holder, Numbers, Outcome};
use crate::rotation::Prepared;
use crate::state::State;
use crate::store;
use crate::trust::Trust;

/// Why the agent has no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// There is neither a stored SVID nor a token.
    #[error(
        "this agent has not joined yet: create a token with `kasbah token create` and name its file as join_token_file, or set one of x509pop, k8s_psat, oidc_jwt, http_challenge"
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
    #[error(
        "the CA refuses the join token (used, expired or unknown): create a new one with `kasbah token create` and put it into join_token_file"
    )]
    TokenRefused(#[source] CaError),
    /// The CA refuses other evidence.
    #[error("the CA does not admit this node by {kind}: {remedy}")]
    Refused {
        /// The attestor.
        kind: &'static str,
        /// What to do.
        remedy: &'static str,
        /// What the CA says.
        #[source]
        source: CaError,
    },
    /// The CA cannot be asked now.
    #[error("the CA cannot be asked to admit this node")]
    Away(#[source] CaError),
    /// A file that proves what this node is cannot be read.
    #[error("{}: cannot read what {setting} names; see that it exists and is readable for the agent's user", file.display())]
    EvidenceFile {
        /// Which setting.
        setting: &'static str,
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that proves nothing.
    #[error("{}: what {setting} names {problem}", file.display())]
    EvidenceBad {
        /// Which setting.
        setting: &'static str,
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// The device's key cannot be used.
    #[error("{}: x509pop.private_key_file cannot be used", file.display())]
    DeviceKey {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: identity::device::DeviceKeyError,
    },
    /// The challenge cannot be served.
    #[error("the address of http_challenge.listen cannot be opened")]
    ChallengeListen(#[source] runtime::listen::ListenError),
    /// The CA's answer is no agent SVID.
    #[error("the CA answered the join with something that is no agent SVID")]
    Answer(#[source] CaError),
    /// The stored SVID has expired while the agent was off.
    #[error(
        "the stored SVID of this agent expired at {expired}, and it cannot join anew; with a join token: create one with `kasbah token create`, put it into join_token_file and start again"
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
    /// Whether trying again may help.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self, Self::Away(_))
    }

    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "JOIN_NO_TOKEN",
            Self::TokenFile { .. } => "JOIN_TOKEN_UNREADABLE",
            Self::TokenRefused(_) => "JOIN_TOKEN_REFUSED",
            Self::Refused { .. } => "JOIN_REFUSED",
            Self::Away(error) => error.reason(),
            Self::EvidenceFile { .. } => "JOIN_EVIDENCE_UNREADABLE",
            Self::EvidenceBad { .. } => "JOIN_EVIDENCE_BAD",
            Self::DeviceKey { source, .. } => source.reason(),
            Self::ChallengeListen(error) => error.reason(),
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
    /// The CA was heard to say that it does not know the SVID.
    disowned: Notify,
}

#[derive(Debug)]
struct Own {
    svid: Arc<X509Svid>,
    /// When this process got hold of it.
    since: SystemTime,
}

impl NodeIdentity {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { own: ArcSwapOption::empty(), state, changes: watch::Sender::new(0), disowned: Notify::new() }
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

    /// The CA does not know the SVID any more: it is renewed at once, or the agent joins anew. Said again while it lasts.
    pub(crate) fn disown(&self) {
        self.disowned.notify_waiters();
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
        self.state.current().plain.clone()
    }
}

/// What an agent shows that has no identity, or one that counts no more.
#[derive(Debug)]
pub(crate) struct Anonymous(pub(crate) Arc<NodeIdentity>);

impl identity::tls::Snapshot for Anonymous {
    fn svid(&self) -> Option<Arc<X509Svid>> {
        None
    }

    fn bundles(&self) -> Arc<BundleSet> {
        identity::tls::Snapshot::bundles(&*self.0)
    }
}

/// Joins and renews.
pub(crate) struct Node {
    pub(crate) ca: Arc<dyn Ca>,
    pub(crate) identity: Arc<NodeIdentity>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) svid_file: PathBuf,
    pub(crate) evidence: Source,
    pub(crate) trust: Arc<Trust>,
    pub(crate) clock: Clock,
    pub(crate) numbers: Numbers,
    /// The SVID in use could not be stored.
    pub(crate) unstored: AtomicBool,
}

impl Node {
    /// Takes up the stored SVID, or joins. Waits for a CA that is away; answers only what waiting does not cure.
    ///
    /// # Errors
    /// When there is no way to an identity without the operator.
    pub(crate) async fn start(&self, shutdown: &Shutdown) -> Result<(), JoinError> {
        let old = match self.load() {
            Some(svid) if svid.not_after() > self.clock.now() && !self.is_left_behind(&svid).await => {
                if self.identity.svid().is_some() {
                    return Ok(());
                }
                tracing::info!(spiffe_id = %svid.id(), serial = svid.serial(), "stored SVID taken up");
                // Its age is unknown, but `not_before` is: a restart does not put off the renewal.
                let since = svid.not_before();
                self.identity.set(svid, since);
                return Ok(());
            }
            found => found,
        };
        let joined = self.join(old.as_ref(), shutdown).await;
        match (old, joined) {
            (Some(old), Err(source)) if old.not_after() <= self.clock.now() => {
                Err(JoinError::Expired { expired: rfc3339(old.not_after()), source: Box::new(source) })
            }
            (_, joined) => joined,
        }
    }

    /// One attempt to join, with the stored SVID if there is one and otherwise with evidence.
    pub(crate) async fn try_start(&self) -> Result<(), JoinError> {
        match self.load() {
            Some(svid) if svid.not_after() > self.clock.now() => {
                let since = svid.not_before();
                self.identity.set(svid, since);
                Ok(())
            }
            old => {
                self.come_back(old.as_ref()).await?;
                // Nobody would be left to try again.
                let unstored = self.identity.svid().filter(|_| self.unstored.load(Ordering::Relaxed));
                unstored.map_or(Ok(()), |svid| self.keep(&svid))
            }
        }
    }

    /// Whether the bundle has moved on without this SVID while the agent slept, and there is something new to join with. With
    /// nothing new the old SVID itself may bring the agent back; what it then has is in use when this answers.
    async fn is_left_behind(&self, svid: &X509Svid) -> bool {
        if self.identity.state.current().is_clean(svid) {
            return false;
        }
        let can_join = self.evidence.is_repeatable();
        tracing::warn!(
            reason = "ISSUER_TAINTED",
            can_join,
            "the authority of the stored SVID has left the bundle; the agent must join again"
        );
        if !can_join && let Err(error) = self.reenroll(svid).await {
            tracing::warn!(reason = error.reason(), error = chain_text(&error), "not let back with the old SVID");
        }
        can_join
    }

    /// Renews the agent's own SVID until `shutdown`.
    pub(crate) async fn keep_fresh(self, shutdown: Shutdown) {
        let (mut failures, mut asked) = (0_u32, Duration::ZERO);
        loop {
            let Some(own) = self.identity.own.load_full() else { return };
            let (now, not_after) = (self.clock.now(), own.svid.not_after());
            let due = renew_at(own.since.max(own.svid.not_before()), not_after, dice::roll());
            let left = not_after.duration_since(now).unwrap_or_default();
            let due = if failures == 0 {
                due
            } else {
                now + retry_wait(failures, RETRY_WAIT_BASE, wait_max(left), dice::roll()).max(asked)
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
                    match shutdown.unless(self.rejoin(&error, not_after)).await {
                        None => return,
                        Some(Ok(())) => 0,
                        Some(Err(wait)) => {
                            asked = wait;
                            failures.saturating_add(1)
                        }
                    }
                }
            };
        }
    }

    /// Waits for the moment of a renewal. With `early`, an SVID whose authority is tainted, or that the CA does not know any
    /// more, is due at once.
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
            () = self.identity.disowned.notified(), if early => {
                tracing::warn!(reason = "CA_REFUSED", "the CA does not know this agent any more; it asks to be let in again");
            }
        }
    }

    /// Not longer than until the clock is set back: then nobody knows whether something is due.
    async fn measured_sleep(&self, due: SystemTime) {
        let begun = self.clock.moment();
        loop {
            let now = self.clock.now();
            if let Some(svid) = self.identity.svid() {
                let left = svid.not_after().duration_since(now).unwrap_or_default();
                self.numbers.agent_svid_expiry.set(left.as_secs_f64());
                if self.unstored.load(Ordering::Relaxed) {
                    self.store(&svid);
                }
            }
            if due <= now || self.clock.was_set_back_since(begun) {
                return;
            }
            self.clock.sleep_until(due.min(now + MEASURE_INTERVAL)).await;
        }
    }

    async fn renew(&self) -> Result<(), CaError> {
        let prepared = Prepared::new().ok_or(CaError::BadAnswer { what: "no key can be made here" })?;
        let chain = self.ca.renew_agent(prepared.csr()).await?;
        let svid = self.check(prepared.into_svid(chain)?)?;
        tracing::info!(spiffe_id = %svid.id(), serial = svid.serial(), "the agent's SVID renewed");
        self.take_up(svid)
    }

    /// Uses a new SVID, even when it cannot be stored: a running agent is worth more than a warm start. One that is over by
    /// the clock of this machine is taken up too, because the CA knows no other any more.
    fn take_up(&self, svid: X509Svid) -> Result<(), CaError> {
        self.store(&svid);
        let (now, not_before, not_after) = (self.clock.now(), svid.not_before(), svid.not_after());
        self.identity.set(svid, now);
        if not_after > now {
            return Ok(());
        }
        Err(CaError::ClockAhead { by: now.duration_since(not_before).unwrap_or_default() })
    }

    /// Stores the SVID in use; tried again while it fails. It matters: once an SVID has been used, the CA knows the one before it
    /// no more.
    fn store(&self, svid: &X509Svid) {
        match self.keep(svid) {
            Ok(()) if self.unstored.swap(false, Ordering::Relaxed) => tracing::info!("the agent's SVID stored again"),
            Ok(()) => (),
            Err(error) => {
                self.numbers.not_written(error.reason());
                if !self.unstored.swap(true, Ordering::Relaxed) {
                    let error = chain_text(&error);
                    tracing::error!(
                        reason = "DATA_DIR_UNWRITABLE",
                        error,
                        "the agent's new SVID is not stored, trying again"
                    );
                }
            }
        }
    }

    /// Joins, as often as the CA is away: with the SVID of before, if there is one, otherwise with new evidence.
    async fn join(&self, old: Option<&X509Svid>, shutdown: &Shutdown) -> Result<(), JoinError> {
        let mut failures = 0;
        loop {
            let error = match shutdown.unless(self.come_back(old)).await {
                None => return Ok(()),
                Some(Err(JoinError::Away(error))) => error,
                Some(done) => return done,
            };
            self.trust.look_again(&error, &self.identity.state).await;
            failures += 1;
            tracing::warn!(%error, reason = error.reason(), failures, "cannot join yet, trying again");
            let wait = error.retry_wait(failures, RETRY_WAIT_BASE, JOIN_RETRY_MAX, dice::roll());
            if shutdown.unless(tokio::time::sleep(wait)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// The old SVID proves the node, if the CA lets it; what the settings say comes after that.
    async fn come_back(&self, old: Option<&X509Svid>) -> Result<(), JoinError> {
        let Some(old) = old else { return self.attest().await };
        match self.reenroll(old).await {
            Err(refused @ JoinError::Refused { .. }) => {
                tracing::warn!(
                    reason = refused.reason(),
                    error = chain_text(&refused),
                    "not let back with the old SVID"
                );
                match self.attest().await {
                    // There is nothing else to show: then this was the reason.
                    Err(JoinError::NoToken) => Err(refused),
                    done => done,
                }
            }
            done => done,
        }
    }

    async fn reenroll(&self, old: &X509Svid) -> Result<(), JoinError> {
        let evidence = Evidence::old_svid(old).ok_or(JoinError::Key)?;
        self.show(evidence).await
    }

    /// Shows the evidence once and takes up the SVID that it brings.
    async fn attest(&self) -> Result<(), JoinError> {
        self.show(self.evidence.gather().await?).await
    }

    async fn show(&self, mut evidence: Evidence) -> Result<(), JoinError> {
        let prepared = Prepared::new().ok_or(JoinError::Key)?;
        let chain = self.ca.attest(&mut evidence, prepared.csr()).await;
        let chain = chain.map_err(|error| refused(evidence.kind, error))?;
        let svid = prepared.into_svid(chain).and_then(|svid| self.check(svid)).map_err(JoinError::Answer)?;
        tracing::info!(spiffe_id = %svid.id(), serial = svid.serial(), attestation_type = evidence.kind, "joined");
        if let Err(error) = self.take_up(svid) {
            tracing::error!(reason = error.reason(), %error, "the agent's new SVID is over already");
        }
        Ok(())
    }

    /// After a renewal that failed: joins anew, when the SVID has run out or the CA knows it no longer, and there is
    /// evidence that may be shown again. No person is needed. Otherwise answers how long the CA wants to be left alone.
    async fn rejoin(&self, error: &CaError, not_after: SystemTime) -> Result<(), Duration> {
        self.trust.look_again(error, &self.identity.state).await;
        // An SVID that has run out, or whose root has gone, opens no connection by which it could be renewed.
        let useless = not_after <= self.clock.now() || !self.identity.is_clean();
        // With a wrong clock the next SVID is of no more use than the last.
        if !error.is_refusal() && !useless || matches!(error, CaError::ClockAhead { .. }) {
            return Err(error.asked_wait());
        }
        let joined = match self.identity.svid().filter(|_| useless) {
            Some(old) => self.come_back(Some(&old)).await,
            None if self.evidence.is_repeatable() => self.attest().await,
            None => return Err(error.asked_wait()),
        };
        joined.map_err(|error| {
            tracing::warn!(reason = error.reason(), error = chain_text(&error), "cannot join anew, trying again");
            if let JoinError::Away(error) = error { error.asked_wait() } else { Duration::ZERO }
        })
    }

    /// An agent's ID lies below `/spire/agent` of our trust domain.
    fn check(&self, svid: X509Svid) -> Result<X509Svid, CaError> {
        let own = svid.id().is_member_of(&self.trust_domain) && svid.id().path().starts_with(AGENT_PATH);
        if own { Ok(svid) } else { Err(CaError::BadAnswer { what: "no SVID of an agent" }) }
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

fn refused(kind: &'static str, source: CaError) -> JoinError {
    match source {
        source @ CaError::BadAnswer { .. } => JoinError::Answer(source),
        source if source.is_refusal() => match kind {
            "join_token" => JoinError::TokenRefused(source),
            kind => JoinError::Refused { kind, remedy: remedy_of(&source), source },
        },
        source => JoinError::Away(source),
    }
}

/// What to do about a refusal of evidence that is no join token.
fn remedy_of(source: &CaError) -> &'static str {
    match source.refused_because() {
        Some("AGENT_BANNED") => "it was banned; `kasbah node evict` at the CA lifts the ban",
        Some("AGENT_ALREADY_ATTESTED") => {
            "it attested before, and this attestor admits a node once; if this is the same machine set up anew, run `kasbah node evict` at the CA"
        }
        Some("OLD_SVID_TOO_OLD") => {
            "it was away for longer than node_attestors.old_svid.age_max of the CA allows; give it new evidence, such as a join token"
        }
        Some("OLD_SVID_UNKNOWN") => {
            "its SVID is not the last one that the CA issued for this node, or the node was evicted; give it new evidence, such as a join token"
        }
        Some("ATTESTOR_UNKNOWN") => "switch the attestor on in node_attestors of the CA's settings",
        Some("JWT_EXPIRED") => "its token has expired; see that the token file is refreshed, and compare the clocks",
        Some("DEVICE_CHAIN_UNTRUSTED") => {
            "add the device CA to node_attestors.x509pop.ca_bundles of the CA, and the intermediates to certificate_file"
        }
        _ => "the CA's words follow; `kasbah help reasons` has the remedy of each code",
    }
}

/// An error and all its causes in one line.
fn chain_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn warn_renewal(error: &CaError, not_after: SystemTime) {
    let expires = rfc3339(not_after);
    if error.is_refusal() {
        tracing::error!(%error, reason = error.reason(), expires,
            "the CA refuses to renew this agent; if it was evicted and joins by token, put a new token into join_token_file");
    } else {
        tracing::warn!(%error, reason = error.reason(), expires, "the agent's SVID is not renewed, trying again");
    }
}

fn wait_max(left: Duration) -> Duration {
    if left.is_zero() {
        return RETRY_EXPIRED_MAX;
    }
    (left / 4).clamp(RETRY_WAIT_BASE, RETRY_WAIT_MAX)
}

const AGENT_PATH: &str = "/spire/agent/";
const RETRY_WAIT_BASE: Duration = Duration::from_millis(500);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);
/// Between attempts to get back in after the SVID has run out.
const RETRY_EXPIRED_MAX: Duration = Duration::from_secs(10);
const JOIN_RETRY_MAX: Duration = Duration::from_secs(2);
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);
const SVID_FILE_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests;
