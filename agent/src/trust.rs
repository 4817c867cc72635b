//! Whom the agent takes for its CA: the bundle that the CA published last, or what the operator gave for the first contact,
//! as a file or as fingerprints of roots.
//!
//! When the root has moved on while this node was off, the stored bundle no longer verifies the CA. Then what the operator gave
//! is looked at again: a file that was written later, or roots with the given fingerprints. A root that the CA once withdrew
//! is never taken up again by fingerprint.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use identity::{CertificateDer, TrustBundle, TrustDomain};
use runtime::fetch::{self, Fetch, FetchError};
use runtime::shutdown::Shutdown;
use serde::{Deserialize, Serialize};

use crate::ca::{self, CaError};
use crate::dice;
use crate::settings::Settings;
use crate::state::State;
use crate::store;

/// Roots by their fingerprints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPins {
    /// SHA-256 of each root certificate that is trusted, in hex with or without colons.
    pub fingerprints: BTreeSet<String>,
    /// Where the roots are fetched (PEM or SPIFFE bundle); from the CA itself when left out. Whoever answers is believed
    /// nothing but roots with one of the fingerprints.
    #[serde(default)]
    pub url: Option<String>,
}

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The CA's roots cannot be read.
    #[error("{}: trust_bundle cannot be read; take it from the CA with `kasbah bundle show`", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The CA's roots are no certificates.
    #[error("{}: trust_bundle holds no usable roots", file.display())]
    Content {
        /// Which file.
        file: PathBuf,
    },
    /// The roots cannot be fetched.
    #[error("the roots cannot be fetched from root_pins.url")]
    Fetch(#[source] FetchError),
    /// The CA does not tell its roots.
    #[error("the CA's roots cannot be fetched")]
    Ca(#[source] CaError),
    /// What came are other roots.
    #[error(
        "no root with one of the fingerprints of root_pins was found, but {found}; compare with `kasbah bundle show` at the CA"
    )]
    Pin {
        /// Fingerprints of those found.
        found: String,
    },
}

impl TrustError {
    /// Whether trying again may help.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            Self::Fetch(error) => !matches!(error, FetchError::Url { .. }),
            Self::Ca(error) => matches!(error, CaError::Unavailable { .. } | CaError::Busy { .. }),
            Self::File { .. } | Self::Content { .. } | Self::Pin { .. } => false,
        }
    }

    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } | Self::Content { .. } => "BUNDLE_INVALID",
            Self::Fetch(error) => error.reason(),
            Self::Ca(error) => error.reason(),
            Self::Pin { .. } => "ROOT_NOT_PINNED",
        }
    }
}

impl RootPins {
    /// What is wrong with it, if something is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self.fingerprints.is_empty() || !self.normal().iter().all(digest) {
            return Some("fingerprints: at least one SHA-256 of a root in hex (64 digits) is needed");
        }
        let bad_url = self.url.as_ref().is_some_and(|url| fetch::check_url(url).is_err());
        bad_url.then_some("url: write http://… or https://…")
    }

    fn normal(&self) -> BTreeSet<String> {
        self.fingerprints.iter().map(|text| text.replace(':', "").to_ascii_lowercase()).collect()
    }

    /// The bundle of those `roots` that are pinned and were not withdrawn.
    fn choose(
        &self,
        trust_domain: &TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        withdrawn: &BTreeSet<String>,
    ) -> Result<TrustBundle, TrustError> {
        let pins = self.normal();
        let found: Vec<String> = roots.iter().map(fingerprint).collect();
        let chosen = roots.into_iter().filter(|root| {
            let fingerprint = fingerprint(root);
            pins.contains(&fingerprint) && !withdrawn.contains(&fingerprint)
        });
        match TrustBundle::from_x509_authorities(trust_domain.clone(), chosen) {
            Ok(bundle) if !bundle.x509_authorities.is_empty() => Ok(bundle),
            _ => Err(TrustError::Pin { found: found.into_iter().take(SHOWN_MAX).collect::<Vec<_>>().join(", ") }),
        }
    }
}

/// What the agent starts with.
pub(crate) struct Loaded {
    /// Empty when the roots are still to be fetched.
    pub(crate) bundle: TrustBundle,
    pub(crate) has_run_before: bool,
}

/// Where trust comes from.
#[derive(Debug)]
pub(crate) struct Trust {
    trust_domain: TrustDomain,
    server: String,
    given: Option<PathBuf>,
    pins: Option<RootPins>,
    stored: PathBuf,
    withdrawn: PathBuf,
    looked: Mutex<Option<tokio::time::Instant>>,
}

impl Trust {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            trust_domain: settings.trust_domain.clone(),
            server: settings.server.clone(),
            given: settings.trust_bundle.clone(),
            pins: settings.root_pins.clone(),
            stored: settings.data_dir.join(BUNDLE_FILE),
            withdrawn: settings.data_dir.join(WITHDRAWN_FILE),
            looked: Mutex::default(),
        }
    }

    /// Trust that only keeps, in `dir`.
    #[cfg(test)]
    pub(crate) fn for_test(dir: &Path) -> Self {
        Self {
            trust_domain: crate::fake::domain(),
            server: String::new(),
            given: None,
            pins: None,
            stored: dir.join(BUNDLE_FILE),
            withdrawn: dir.join(WITHDRAWN_FILE),
            looked: Mutex::default(),
        }
    }

    /// The bundle that the CA last published, or the one of the settings: before the first contact, and when that file
    /// was written later, for then somebody who may has told this node what to trust while it slept.
    pub(crate) fn load(&self) -> Result<Loaded, TrustError> {
        let Some(stored) = self.load_stored() else {
            let bundle = match &self.given {
                Some(file) => self.load_given(file)?,
                None => TrustBundle::new(self.trust_domain.clone()),
            };
            return Ok(Loaded { bundle, has_run_before: false });
        };
        let bundle = self.newer_given(&stored).unwrap_or(stored);
        Ok(Loaded { bundle, has_run_before: true })
    }

    /// One attempt of [`Trust::complete`].
    pub(crate) async fn try_complete(&self, state: &State) -> Result<(), TrustError> {
        if !self.is_complete(state) {
            state.put_own_bundle(self.fetch().await?);
        }
        Ok(())
    }

    /// Fetches the pinned roots when there are none yet; waits for whoever has them.
    ///
    /// # Errors
    /// When what came are other roots than those pinned.
    pub(crate) async fn complete(&self, state: &State, shutdown: &Shutdown) -> Result<(), TrustError> {
        let mut failures = 0;
        while !self.is_complete(state) {
            let error = match shutdown.unless(self.fetch()).await {
                None => return Ok(()),
                Some(Ok(bundle)) => {
                    tracing::info!(roots = bundle.x509_authorities.len(), "roots with the given fingerprints found");
                    state.put_own_bundle(bundle);
                    return Ok(());
                }
                Some(Err(error @ TrustError::Pin { .. })) => return Err(error),
                Some(Err(error)) => error,
            };
            failures += 1;
            tracing::warn!(%error, reason = error.reason(), failures, "no roots yet, trying again");
            let (base, max) = (RETRY_WAIT_BASE, RETRY_WAIT_MAX);
            let wait = match &error {
                TrustError::Ca(error) => error.retry_wait(failures, base, max, dice::roll()),
                _ => identity::renewal::retry_wait(failures, base, max, dice::roll()),
            };
            if shutdown.unless(tokio::time::sleep(wait)).await.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// After a call that failed: when the CA could not be verified, looks again at what the operator gave.
    pub(crate) async fn look_again(&self, error: &CaError, state: &State) {
        if error.reason() != UNTRUSTED || !self.is_due() {
            return;
        }
        let current = state.current();
        let Some(own) = current.bundles.get(&self.trust_domain) else { return };
        let found = match (self.newer_given(own), &self.pins) {
            (Some(given), _) => Ok(given),
            (None, Some(_)) => self.fetch().await,
            (None, None) => {
                tracing::error!(
                    reason = UNTRUSTED,
                    "the CA cannot be verified by the bundle that this node knows; if its root has moved on while this node was \
                     off, write the present bundle (`kasbah bundle show`) into trust_bundle"
                );
                return;
            }
        };
        match found {
            Ok(found) if found.x509_authorities.iter().any(|root| !own.x509_authorities.contains(root)) => {
                tracing::warn!(
                    roots = found.x509_authorities.len(),
                    "the CA's root has moved on, taking up the one given"
                );
                state.put_own_bundle(found);
            }
            Ok(_) => tracing::error!(reason = UNTRUSTED, "the CA cannot be verified by the roots given either"),
            Err(error) => tracing::error!(reason = error.reason(), %error, "the CA cannot be verified"),
        }
    }

    /// Keeps the CA's newest bundle for the next start, and remembers which roots it has withdrawn.
    ///
    /// # Errors
    /// When they cannot be written; what was kept before stays.
    pub(crate) fn keep(&self, own: &TrustBundle) -> io::Result<()> {
        let before = self.load_stored();
        let gone = before.iter().flat_map(|before| &before.x509_authorities);
        let gone: Vec<String> = gone.filter(|root| !own.x509_authorities.contains(root)).map(fingerprint).collect();
        if !gone.is_empty() {
            let mut withdrawn = self.withdrawn();
            withdrawn.extend(gone);
            // What is in force now was not withdrawn, or was brought back by the CA itself.
            own.x509_authorities.iter().for_each(|root| {
                withdrawn.remove(&fingerprint(root));
            });
            let kept: Vec<&String> = withdrawn.iter().take(WITHDRAWN_MAX).collect();
            store::write(&self.withdrawn, serde_json::json!(kept).to_string().as_bytes())?;
        }
        store::write(&self.stored, own.to_spiffe_json().as_bytes())
    }

    fn is_complete(&self, state: &State) -> bool {
        let current = state.current();
        self.pins.is_none()
            || current.bundles.get(&self.trust_domain).is_some_and(|own| !own.x509_authorities.is_empty())
    }

    fn is_due(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = looked.is_none_or(|looked| looked.elapsed() >= LOOK_PAUSE);
        if due {
            *looked = Some(tokio::time::Instant::now());
        }
        due
    }

    /// The pinned roots, from the URL or from the CA.
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        let Some(pins) = &self.pins else { return Ok(TrustBundle::new(self.trust_domain.clone())) };
        let roots = match &pins.url {
            Some(url) => self.fetch_url(url).await?,
            None => {
                let bundle = ca::danger_fetch_bundle(&self.server, &self.trust_domain).await;
                bundle.map_err(TrustError::Ca)?.x509_authorities
            }
        };
        pins.choose(&self.trust_domain, roots, &self.withdrawn())
    }

    async fn fetch_url(&self, url: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        let tls = identity::tls::danger::unverified_client_config(&[identity::tls::ALPN_HTTP11]).ok();
        let text = Fetch { url, tls, bearer: None, bytes_max: BUNDLE_BYTES_MAX }.get().await;
        let text = text.map_err(TrustError::Fetch)?;
        let bundle = if text.windows(PEM_BEGIN.len()).any(|window| window == PEM_BEGIN) {
            TrustBundle::from_pem(self.trust_domain.clone(), &text)
        } else {
            TrustBundle::parse_spiffe_json(self.trust_domain.clone(), &text)
        };
        bundle.map(|bundle| bundle.x509_authorities).map_err(|_| TrustError::Pin { found: "no certificate".into() })
    }

    /// The operator's file, if it was written later than what the CA published and says something else.
    fn newer_given(&self, known: &TrustBundle) -> Option<TrustBundle> {
        let file = self.given.as_ref()?;
        if modified(file) <= modified(&self.stored) {
            return None;
        }
        let given = self.load_given(file).ok()?;
        let adds = given.x509_authorities.iter().any(|root| !known.x509_authorities.contains(root));
        if adds {
            tracing::warn!(file = %file.display(), "trust_bundle is newer than what is stored, using it");
        }
        adds.then_some(given)
    }

    fn load_stored(&self) -> Option<TrustBundle> {
        let stored = &self.stored;
        let document = store::read(stored, BUNDLE_BYTES_MAX as u64).ok().flatten()?;
        match TrustBundle::parse_spiffe_json(self.trust_domain.clone(), &document) {
            Ok(bundle) if !bundle.x509_authorities.is_empty() => return Some(bundle),
            Ok(_) => tracing::warn!(file = %stored.display(), "stored bundle is empty, using what the settings give"),
            Err(error) => {
                tracing::warn!(file = %stored.display(), %error, "stored bundle is damaged, using what the settings give");
            }
        }
        None
    }

    fn load_given(&self, file: &Path) -> Result<TrustBundle, TrustError> {
        let unreadable = |source| TrustError::File { file: file.to_owned(), source };
        let text = store::read(file, BUNDLE_BYTES_MAX as u64).map_err(unreadable)?;
        let text = text.ok_or_else(|| unreadable(io::ErrorKind::NotFound.into()))?;
        let bundle = TrustBundle::from_pem(self.trust_domain.clone(), &text);
        let bundle = bundle.ok().filter(|bundle| !bundle.x509_authorities.is_empty());
        bundle.ok_or_else(|| TrustError::Content { file: file.to_owned() })
    }

    fn withdrawn(&self) -> BTreeSet<String> {
        let text = store::read(&self.withdrawn, BUNDLE_BYTES_MAX as u64).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

fn fingerprint(root: &CertificateDer<'static>) -> String {
    identity::digest::hex(&identity::digest::sha256(root))
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|meta| meta.modified()).ok()
}

const BUNDLE_FILE: &str = "bundle.json";
const WITHDRAWN_FILE: &str = "withdrawn.json";
const BUNDLE_BYTES_MAX: usize = 4 << 20;
/// Withdrawn roots that are remembered.
pub(crate) const WITHDRAWN_MAX: usize = 1024;
const SHOWN_MAX: usize = 5;
const PEM_BEGIN: &[u8] = b"-----BEGIN ";
/// The code of a server that no root of ours vouches for.
const UNTRUSTED: &str = "TLS_PEER_UNTRUSTED";
const LOOK_PAUSE: Duration = Duration::from_secs(5);
const RETRY_WAIT_BASE: Duration = Duration::from_millis(250);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{domain, root, start};

    fn pins(fingerprints: &[&str]) -> RootPins {
        RootPins { fingerprints: fingerprints.iter().map(ToString::to_string).collect(), url: None }
    }

    #[test]
    fn fingerprints_are_digests_in_hex() {
        let digest = "ab".repeat(32);
        let colons = digest.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect::<Vec<_>>();
        for good in [digest.clone(), digest.to_uppercase(), colons.join(":")] {
            assert_eq!(pins(&[&good]).problem(), None, "{good}");
        }
        for bad in [&[][..], &[""], &["ab"], &[&digest[1..]], &[&"x".repeat(64)]] {
            assert!(pins(bad).problem().is_some(), "{bad:?}");
        }
        let url = |url: &str| RootPins { url: Some(url.into()), ..pins(&[&digest]) };
        assert_eq!(url("https://ca:8443/").problem(), None);
        assert!(url("file:///etc/passwd").problem().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn only_pinned_roots_are_taken_and_never_one_that_was_withdrawn() {
        let clock = runtime::clock::Clock::following_timers(start());
        let (ours, theirs) = (root(clock), root(clock));
        let (ours, theirs) = (ours.certificate().clone(), theirs.certificate().clone());
        let pin = fingerprint(&ours);
        let all = || vec![theirs.clone(), ours.clone()];
        let chosen = pins(&[&pin]).choose(&domain(), all(), &BTreeSet::new()).unwrap();
        assert_eq!(chosen.x509_authorities, std::slice::from_ref(&ours));
        let wrong = pins(&["00".repeat(32).as_str()]).choose(&domain(), all(), &BTreeSet::new()).unwrap_err();
        assert_eq!(wrong.reason(), "ROOT_NOT_PINNED");
        assert!(wrong.to_string().contains(&pin), "{wrong}");
        assert!(pins(&[&pin]).choose(&domain(), all(), &BTreeSet::from([pin.clone()])).is_err());
    }
}
