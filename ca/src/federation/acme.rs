//! The certificate of the bundle endpoint of the web by ACME (RFC 8555): ordered when there is none, renewed at two thirds of its
//! life, and kept with its key and that of the account in `data_dir`.
//!
//! The domain is proven over HTTP (challenge `http-01`): a listener of its own answers what the ACME server asks for, and nothing
//! else. What cannot be had changes nothing: the certificate before goes on, and without one nothing is served.

mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::routing::get;
use identity::digest::hex;
use identity::key::PrivateKey;
use identity::pem;
use identity::renewal::retry_wait;
use identity::summary::CertificateSummary;
use identity::tls::{TlsError, certified_key_from_pem};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use runtime::clock::rfc3339;
use runtime::readiness::{Readiness, ReadyGuard};
use serde::{Deserialize, Serialize};

use self::wire::Wire;
use super::endpoint::WebCertificate;
use crate::certifier::{Certifier, secs};
use crate::key_file::write_new;

/// A certificate by ACME.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcmeSettings {
    /// Of the ACME server: `https://…` (`http://` for loopback).
    pub directory_url: String,
    /// The name by which others call the endpoint; the certificate is for it alone.
    pub domain_name: String,
    /// Whom the ACME server may write to.
    #[serde(default)]
    pub email: Option<String>,
    /// Whether the ACME server's terms of service are accepted; nothing is asked of it otherwise.
    #[serde(default)]
    pub tos_accepted: bool,
    /// Where the ACME server finds the proof: port 80 of the domain must lead here.
    #[serde(default = "default_http_listen")]
    pub http_listen: SocketAddr,
    /// Roots (PEM) by which the ACME server is believed; those of Mozilla's programme when absent.
    #[serde(default)]
    pub roots_file: Option<PathBuf>,
}

fn default_http_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 80))
}

impl AcmeSettings {
    /// What is wrong with it, if something is.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if !self.tos_accepted {
            return Some(
                "acme.tos_accepted must be true: read the terms of service of the ACME server, and say that you accept them",
            );
        }
        if !crate::names::is_dns_name(&self.domain_name)
            || self.domain_name.starts_with("*.")
            || !self.domain_name.contains('.')
        {
            return Some("acme.domain_name must be a DNS name without a star");
        }
        if wire::Target::parse(&self.directory_url).is_err() {
            return Some("acme.directory_url must be https://… (http://… for loopback addresses only)");
        }
        None
    }
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcmeError {
    /// The server says no.
    #[error("the ACME server refuses: {0}")]
    Refused(String),
    /// The server does not believe that the domain is ours.
    #[error("the ACME server does not accept the proof for {domain}: {problem}")]
    Unproven {
        /// The domain.
        domain: String,
        /// In the server's words.
        problem: String,
    },
    /// There is no conversation.
    #[error("the ACME server cannot be spoken to")]
    Unreachable(#[source] instant_acme::Error),
    /// It takes too long.
    #[error("the ACME server does not come to an end within {} s", ORDER_WAIT_MAX.as_secs())]
    Late,
    /// Another kind of proof is wanted.
    #[error("the ACME server does not offer the challenge http-01")]
    NoChallenge,
    /// What came is of no use.
    #[error("the certificate of the ACME server cannot be used: {0}")]
    Unfit(&'static str),
    /// What came does not fit its key, or is none.
    #[error("the certificate of the ACME server cannot be used")]
    Unusable(#[source] TlsError),
    /// No key, or no request.
    #[error("no key can be made")]
    Key,
    /// A file.
    #[error("{}: cannot be kept or read; see that data_dir is writable", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl AcmeError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(_) => "ACME_REFUSED",
            Self::Unproven { .. } => "ACME_DOMAIN_UNPROVEN",
            Self::Unreachable(_) | Self::Late => "ACME_UNREACHABLE",
            Self::NoChallenge => "ACME_NO_CHALLENGE",
            Self::Unfit(_) | Self::Unusable(_) => "ACME_CERTIFICATE_UNFIT",
            Self::Key => "KEY_NOT_MADE",
            Self::File { .. } => "DATA_DIR_UNUSABLE",
        }
    }
}

impl From<instant_acme::Error> for AcmeError {
    fn from(error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::Refused(problem.to_string()),
            instant_acme::Error::Timeout(_) => Self::Late,
            error => Self::Unreachable(error),
        }
    }
}

/// What is known about the certificate of the endpoint by ACME; for metrics and pages.
#[derive(Debug, Default)]
pub(crate) struct WebHealth(Mutex<Known>);

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// End of the certificate in use, Unix seconds; 0: there is none.
    pub(crate) not_after: i64,
    /// Attempts in a row that brought none.
    pub(crate) failures: u32,
    /// Why the last one did not; empty when all is well.
    pub(crate) reason: &'static str,
}

impl WebHealth {
    pub(crate) fn now(&self) -> Known {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, known: Known) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

impl Known {
    /// In one word.
    pub(crate) fn state(self) -> &'static str {
        if self.reason.is_empty() { "OK" } else { self.reason }
    }
}

/// Certificates of one domain from one server.
#[derive(Debug)]
pub(super) struct Acme {
    settings: AcmeSettings,
    /// One for each server and domain, so that a change of these settings begins anew.
    folder: PathBuf,
    proofs: Arc<Proofs>,
}

/// What the ACME server may ask for: tokens, each with its answer.
#[derive(Debug, Default)]
pub(crate) struct Proofs(Mutex<BTreeMap<String, String>>);

/// A certificate with its key, both in PEM.
pub(super) struct Pair {
    pub(super) chain: Vec<u8>,
    pub(super) key: Vec<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Acme {
    pub(super) fn new(settings: AcmeSettings, data_dir: &Path) -> Self {
        let names = format!("{} {}", settings.directory_url, settings.domain_name);
        let folder = data_dir.join("acme").join(&hex(&identity::digest::sha256(names.as_bytes()))[..FOLDER_DIGITS]);
        Self { settings, folder, proofs: Arc::default() }
    }

    pub(super) fn listen(&self) -> SocketAddr {
        self.settings.http_listen
    }

    /// `GET /.well-known/acme-challenge/TOKEN`, for the ACME server.
    pub(super) fn pages(&self) -> Router {
        Router::new().route("/.well-known/acme-challenge/{token}", get(proof)).with_state(self.proofs.clone())
    }

    /// The certificate that was kept, if it is still of use.
    pub(super) fn stored(&self, now: SystemTime) -> Option<Pair> {
        let file = self.folder.join(CERTIFICATE_FILE);
        let text = std::fs::read(&file).ok()?;
        let found = Pair::of(&text, &text, &self.settings.domain_name, now);
        let told = |error: &AcmeError| {
            tracing::warn!(file = %file.display(), reason = error.reason(), error = ?error, "stored certificate of the bundle endpoint not used");
        };
        found.inspect_err(told).ok()
    }

    /// Orders and renews, for ever.
    pub(super) async fn keep(&self, certificate: &WebCertificate, certifier: &Certifier, readiness: &Readiness) {
        let (mut failures, mut _note) = (0_u32, None::<ReadyGuard>);
        loop {
            let now = certifier.now();
            let wait = match self.round(certificate, now).await {
                Ok(pair) => {
                    (failures, _note) = (0, None);
                    let known = Known { not_after: secs(pair.not_after), failures, reason: "" };
                    certifier.web_health.set(known);
                    pair.due().duration_since(certifier.now()).unwrap_or_default().min(LOOK_AGAIN)
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let wait = retry_wait(failures, RETRY_WAIT_BASE, RETRY_WAIT_MAX, super::poll::dice());
                    let not_after = self.stored(now).map(|pair| pair.not_after);
                    let expires = not_after.map_or_else(|| "-".to_owned(), rfc3339);
                    let not_after = not_after.map_or(0, secs);
                    tracing::error!(reason = error.reason(), error = ?error, failures, expires, again_in = ?wait,
                        "no new certificate for the bundle endpoint");
                    let known = Known { not_after, failures, reason: error.reason() };
                    certifier.web_health.set(known);
                    // Nobody but those who federate depends on it: the authority stays ready.
                    _note = Some(readiness.note(format!("web bundle endpoint: {}", error.reason())));
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// The certificate that is in use after this: the one before, when it is not due.
    pub(super) async fn round(&self, certificate: &WebCertificate, now: SystemTime) -> Result<Pair, AcmeError> {
        if let Some(pair) = self.stored(now).filter(|pair| now < pair.due()) {
            return Ok(pair);
        }
        let ordered = tokio::time::timeout(ORDER_WAIT_MAX, self.order(now)).await;
        self.proofs.forget();
        let pair = ordered.map_err(|_| AcmeError::Late)??;
        certificate.take(&pair.chain, &pair.key).map_err(AcmeError::Unusable)?;
        self.write(CERTIFICATE_FILE, &[pair.key.as_slice(), &pair.chain].concat())?;
        let not_after = rfc3339(pair.not_after);
        tracing::info!(domain = self.settings.domain_name, not_after, "certificate of the bundle endpoint in force");
        Ok(pair)
    }

    async fn order(&self, now: SystemTime) -> Result<Pair, AcmeError> {
        let domain = &self.settings.domain_name;
        let account = self.account().await?;
        let identifiers = [Identifier::Dns(domain.clone())];
        let mut order = match account.new_order(&NewOrder::new(&identifiers)).await {
            Err(instant_acme::Error::Api(problem)) if problem.r#type.as_deref() == Some(ACCOUNT_UNKNOWN) => {
                // The server has forgotten us: the next attempt makes another account.
                let _ = std::fs::remove_file(self.folder.join(ACCOUNT_FILE));
                return Err(AcmeError::Refused(problem.to_string()));
            }
            ordered => ordered?,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let mut challenge = authorization.challenge(ChallengeType::Http01).ok_or(AcmeError::NoChallenge)?;
            self.proofs.put(&challenge.token, challenge.key_authorization().as_str());
            challenge.set_ready().await.map_err(|error| match error {
                instant_acme::Error::Api(problem) => self.unproven(problem.to_string()),
                error => error.into(),
            })?;
        }
        let patience = RetryPolicy::new().timeout(ORDER_WAIT_MAX);
        match order.poll_ready(&patience).await {
            Ok(OrderStatus::Ready) => (),
            Ok(_) | Err(instant_acme::Error::Api(_)) => return Err(self.unproven(why(&mut order).await)),
            Err(error) => return Err(error.into()),
        }
        let key = PrivateKey::generate_p256().map_err(|_| AcmeError::Key)?;
        let csr = key.csr_der_with(None, std::slice::from_ref(domain)).map_err(|_| AcmeError::Key)?;
        order.finalize_csr(&csr).await?;
        let chain = order.poll_certificate(&patience).await?;
        Pair::of(chain.as_bytes(), key.pkcs8_pem().as_bytes(), domain, now)
    }

    fn unproven(&self, problem: String) -> AcmeError {
        AcmeError::Unproven { domain: self.settings.domain_name.clone(), problem }
    }

    /// The account of before, or a new one.
    async fn account(&self) -> Result<Account, AcmeError> {
        let builder = || {
            Account::builder_with_http(Box::new(Wire::new(
                &self.settings.directory_url,
                self.settings.roots_file.clone(),
            )))
        };
        let stored = std::fs::read(self.folder.join(ACCOUNT_FILE)).ok();
        if let Some(credentials) = stored.and_then(|text| serde_json::from_slice::<AccountCredentials>(&text).ok()) {
            return Ok(builder().from_credentials(credentials).await?);
        }
        let email = self.settings.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = email.as_deref().into_iter().collect();
        let terms_of_service_agreed = self.settings.tos_accepted;
        let wanted = NewAccount { contact: &contact, terms_of_service_agreed, only_return_existing: false };
        let (account, credentials) = builder().create(&wanted, self.settings.directory_url.clone(), None).await?;
        let text = serde_json::to_vec(&credentials).map_err(|_| AcmeError::Key)?;
        self.write(ACCOUNT_FILE, &text)?;
        tracing::info!(
            directory = self.settings.directory_url,
            account = account.id(),
            "account at the ACME server made"
        );
        Ok(account)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), AcmeError> {
        let file = self.folder.join(name);
        write_new(&file, content, 0o600).map_err(|source| AcmeError::File { file, source })
    }
}

impl Pair {
    /// A chain and its key, when they fit, are for `domain`, and are not over at `now`.
    fn of(chain: &[u8], key: &[u8], domain: &str, now: SystemTime) -> Result<Self, AcmeError> {
        certified_key_from_pem(chain, key).map_err(AcmeError::Unusable)?;
        let chain = pem::decode_certificates(chain).map_err(|_| AcmeError::Unfit("it is no certificate"))?;
        let leaf = chain.first().ok_or(AcmeError::Unfit("it is empty"))?;
        let leaf = CertificateSummary::decode(leaf).map_err(|_| AcmeError::Unfit("it cannot be read"))?;
        if !leaf.dns_names.iter().any(|name| name.eq_ignore_ascii_case(domain)) {
            return Err(AcmeError::Unfit("it is for another domain"));
        }
        if leaf.not_after() <= now {
            return Err(AcmeError::Unfit("its time is over"));
        }
        let chain = pem::certificates(&chain).into_bytes();
        Ok(Self { chain, key: key.to_vec(), not_before: leaf.not_before(), not_after: leaf.not_after() })
    }

    /// When it is to be renewed.
    fn due(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life * 2 / 3
    }
}

impl Proofs {
    fn put(&self, token: &str, answer: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(token.to_owned(), answer.to_owned());
    }

    fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

async fn proof(State(proofs): State<Arc<Proofs>>, UrlPath(token): UrlPath<String>) -> Result<String, StatusCode> {
    let known = proofs.0.lock().unwrap_or_else(PoisonError::into_inner).get(&token).cloned();
    known.ok_or(StatusCode::NOT_FOUND)
}

/// What the server says about an order that it does not fulfil.
async fn why(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if let Ok(state) = authorization.refresh().await
            && let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref())
        {
            return problem.to_string();
        }
    }
    "it does not say why".into()
}

const ACCOUNT_FILE: &str = "account.json";
/// The key first, then the chain: one file, so that both are replaced together.
const CERTIFICATE_FILE: &str = "certificate.pem";
const FOLDER_DIGITS: usize = 16;
const ACCOUNT_UNKNOWN: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
/// How long one order may take.
const ORDER_WAIT_MAX: Duration = Duration::from_secs(120);
const RETRY_WAIT_BASE: Duration = Duration::from_secs(60);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(6 * 3600);
/// Timers may sleep through a suspended machine.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
