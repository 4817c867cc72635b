//! Node attestation: what a node shows, who checks it, and which node it is then.
//!
//! An attestor takes evidence, may ask a question back, and answers with an [`Attested`] that nobody else can make. A
//! node's ID always lies below `/spire/agent/ATTESTOR/`, so that no attestor can speak for the nodes of another. Evidence
//! comes from strangers: its size, the time it takes and the number of those who show some at once are limited.

mod error;
mod http_challenge;
mod join_token;
mod k8s_psat;
mod oidc_jwt;
pub(crate) mod old_svid;
mod path;
mod settings;
mod x509pop;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use identity::CertificateDer;
use identity::spiffe_id::{SpiffeId, TrustDomain};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use error::AttestError;
pub(crate) use http_challenge::is_metadata;
pub(crate) use join_token::token_agent_id;
pub(crate) use settings::AttestorProblem;
pub use settings::{
    AgentIdSource, HttpChallenge, KubernetesCluster, KubernetesPsat, NodeAttestors, OidcIssuer, OidcJwt, OldSvid,
    X509Pop, X509PopMode,
};

use crate::entry::Selector;

/// The attestors that the settings switch on.
#[derive(Debug)]
pub(crate) struct Attestors {
    known: Vec<Attestor>,
    /// How long after its end a node's SVID brings it back; `None`: never.
    old_svid_age_max: Option<Duration>,
    places: Semaphore,
}

/// One way of proving what a node is.
#[derive(Debug)]
enum Attestor {
    JoinToken,
    X509Pop(x509pop::Attestor),
    K8sPsat(k8s_psat::Attestor),
    OidcJwt(oidc_jwt::Attestor),
    HttpChallenge(http_challenge::Attestor),
}

/// A node that has proven what it is. Only [`Attestors::attest`] makes one.
#[derive(Clone, Debug)]
pub(crate) struct Attested {
    id: SpiffeId,
    kind: &'static str,
    selectors: BTreeSet<Selector>,
    can_reattest: bool,
    token: Option<JoinToken>,
}

/// A join token that admission has to use up.
#[derive(Clone)]
pub(crate) struct JoinToken(String);

/// What attestors know about the world.
#[derive(Clone, Debug)]
pub(crate) struct World<'a> {
    pub(crate) trust_domain: &'a TrustDomain,
    /// The roots of our own bundle.
    pub(crate) roots: &'a [CertificateDer<'static>],
    pub(crate) now: SystemTime,
}

/// The other side, which answers challenges.
#[tonic::async_trait]
pub(crate) trait Respondent: Send {
    /// Sends a challenge and waits for the answer, not for ever.
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError>;
}

impl Attestors {
    /// Builds what `settings` switch on.
    ///
    /// # Errors
    /// When a setting cannot be, or a file that it names cannot be read.
    pub(crate) fn build(settings: &NodeAttestors) -> Result<Self, AttestorProblem> {
        settings.check()?;
        let mut known = Vec::new();
        if settings.join_token {
            known.push(Attestor::JoinToken);
        }
        if let Some(settings) = &settings.x509pop {
            known.push(Attestor::X509Pop(x509pop::Attestor::build(settings)?));
        }
        if let Some(settings) = &settings.k8s_psat {
            known.push(Attestor::K8sPsat(k8s_psat::Attestor::build(settings)?));
        }
        if let Some(settings) = &settings.oidc_jwt {
            known.push(Attestor::OidcJwt(oidc_jwt::Attestor::build(settings)?));
        }
        if let Some(settings) = &settings.http_challenge {
            known.push(Attestor::HttpChallenge(http_challenge::Attestor::build(settings)?));
        }
        let old_svid_age_max = Some(settings.old_svid.age_max).filter(|age_max| !age_max.is_zero());
        Ok(Self { known, old_svid_age_max, places: Semaphore::new(AT_ONCE_MAX) })
    }

    /// Names of the attestors, for people.
    pub(crate) fn names(&self) -> String {
        self.known.iter().map(Attestor::name).collect::<Vec<_>>().join(", ")
    }

    /// Checks evidence of the kind `kind`.
    ///
    /// # Errors
    /// When nobody here knows the kind, or the evidence proves nothing.
    pub(crate) async fn attest(
        &self,
        kind: &str,
        payload: &[u8],
        world: &World<'_>,
        respondent: &mut dyn Respondent,
    ) -> Result<Attested, AttestError> {
        let attestor = self.known.iter().find(|attestor| attestor.name() == kind);
        let attestor = attestor.ok_or_else(|| AttestError::AttestorUnknown { known: self.names() })?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(AttestError::Malformed("is too large"));
        }
        let _place = self.place()?;
        match attestor {
            Attestor::JoinToken => join_token::attest(payload, world),
            Attestor::X509Pop(attestor) => attestor.attest(payload, world, respondent).await,
            Attestor::K8sPsat(attestor) => attestor.attest(payload, world),
            Attestor::OidcJwt(attestor) => attestor.attest(payload, world),
            Attestor::HttpChallenge(attestor) => attestor.attest(payload, world, respondent).await,
        }
    }
}

impl Attestors {
    /// A place among those who attest at this moment. Whoever finds none comes again; a queue of strangers would only grow.
    pub(crate) fn place(&self) -> Result<SemaphorePermit<'_>, AttestError> {
        self.places.try_acquire().map_err(|_| AttestError::Busy)
    }
}

impl Attestor {
    fn name(&self) -> &'static str {
        match self {
            Self::JoinToken => join_token::NAME,
            Self::X509Pop(_) => x509pop::NAME,
            Self::K8sPsat(_) => k8s_psat::NAME,
            Self::OidcJwt(_) => oidc_jwt::NAME,
            Self::HttpChallenge(_) => http_challenge::NAME,
        }
    }
}

impl Attested {
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The attestor.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    pub(crate) fn selectors(&self) -> &BTreeSet<Selector> {
        &self.selectors
    }

    /// Whether the same node may attest again; otherwise its first attestation is the only one.
    pub(crate) fn can_reattest(&self) -> bool {
        self.can_reattest
    }

    pub(crate) fn token(&self) -> Option<&JoinToken> {
        self.token.as_ref()
    }
}

impl JoinToken {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken(redacted)")
    }
}

/// Selectors of one attestor; a value that no entry could name is left out.
fn selectors<'a>(
    kind: &str,
    facts: impl IntoIterator<Item = (impl AsRef<str>, Option<&'a str>)>,
) -> BTreeSet<Selector> {
    let selector = |(name, value): (_, Option<&str>)| {
        let value = format!("{}:{}", AsRef::<str>::as_ref(&name), value.filter(|value| !value.is_empty())?);
        let usable = value.len() <= crate::entry::SELECTOR_VALUE_BYTES_MAX && !value.chars().any(char::is_control);
        usable.then(|| Selector::new(kind, value))
    };
    facts.into_iter().filter_map(selector).take(NODE_SELECTORS_MAX).collect()
}

/// The most bytes of evidence; a chain of certificates fits.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// The most attestations at once.
const AT_ONCE_MAX: usize = 64;
/// The most selectors of one node.
const NODE_SELECTORS_MAX: usize = 256;

#[cfg(test)]
pub(crate) mod tests;
