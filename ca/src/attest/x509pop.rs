//! `x509pop`: a device certificate, and a signature over randomness of both sides. The messages are those of SPIRE's
//! attestor of that name, so its stock agent attests here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::CertificateDer;
use identity::device::{DEVICE_CHAIN_MAX, DeviceError, DeviceKeyKind, PossessionProof, VerifiedDevice};
use serde::{Deserialize, Serialize};

use super::path::{PathTemplate, Value};
use super::settings::AttestorProblem;
use super::{AttestError, Attested, Respondent, World, X509Pop, X509PopMode, selectors};

/// The attestor with its roots.
#[derive(Debug)]
pub(super) struct Attestor {
    mode: X509PopMode,
    roots: RootFiles,
    svid_prefix: String,
    template: PathTemplate,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    certificates: Vec<String>,
}

/// One of the two is set, by the kind of the key.
#[derive(Serialize)]
struct Challenge {
    rsa_signature: Option<Nonce>,
    ecdsa_signature: Option<Nonce>,
}

#[derive(Serialize)]
struct Nonce {
    nonce: String,
}

#[derive(Deserialize)]
struct Answer {
    rsa_signature: Option<RsaAnswer>,
    ecdsa_signature: Option<EcdsaAnswer>,
}

#[derive(Deserialize)]
struct RsaAnswer {
    nonce: String,
    signature: String,
}

#[derive(Deserialize)]
struct EcdsaAnswer {
    nonce: String,
    r: String,
    s: String,
}

impl Attestor {
    pub(super) fn build(settings: &X509Pop) -> Result<Self, AttestorProblem> {
        let roots = RootFiles { files: settings.ca_bundles.clone(), known: Mutex::default() };
        roots.read().map_err(|problem| AttestorProblem::new("x509pop.ca_bundles", problem))?;
        let svid_prefix = format!("{}/", settings.svid_prefix);
        Ok(Self { mode: settings.mode, roots, svid_prefix, template: template(settings)? })
    }

    pub(super) async fn attest(
        &self,
        payload: &[u8],
        world: &World<'_>,
        respondent: &mut dyn Respondent,
    ) -> Result<Attested, AttestError> {
        let chain = chain_of(payload)?;
        let configured;
        let roots = match self.mode {
            X509PopMode::Spiffe => world.roots,
            X509PopMode::ExternalPki => {
                configured = self.roots.current()?;
                &configured[..]
            }
        };
        let now = identity::unix_time(world.now);
        let device = VerifiedDevice::verify(&chain, roots, now).map_err(AttestError::Device)?;
        // The name first: what can have no name needs no challenge.
        let id = self.template.fill(world.trust_domain, NAME, {
            let trimmed = self.trimmed(&device, world)?;
            let device = &device;
            move |field| value_of(device, trimmed.as_deref(), field)
        })?;
        let kind = device.key_kind().map_err(AttestError::Device)?;
        prove(kind, |message, proof| device.check_possession(message, proof), respondent).await?;
        Ok(Attested { id, kind: NAME, selectors: facts(&device, world), can_reattest: true, token: None })
    }

    /// What of an exchangeable SVID's path follows the prefix.
    fn trimmed(&self, device: &VerifiedDevice, world: &World<'_>) -> Result<Option<String>, AttestError> {
        if self.mode == X509PopMode::ExternalPki {
            return Ok(None);
        }
        let id = device.spiffe_id().map_err(AttestError::Device)?;
        let trimmed = id.path().strip_prefix(&self.svid_prefix).filter(|_| id.is_member_of(world.trust_domain));
        trimmed.map(|trimmed| Some(trimmed.to_owned())).ok_or(AttestError::SvidNotExchangeable)
    }
}

/// Asks for the signature and checks it.
pub(super) async fn prove(
    kind: DeviceKeyKind,
    check: impl Fn(&[u8], &PossessionProof) -> Result<(), DeviceError>,
    respondent: &mut dyn Respondent,
) -> Result<(), AttestError> {
    let ours = identity::digest::random::<NONCE_LEN>();
    let nonce = || Some(Nonce { nonce: STANDARD.encode(ours) });
    let challenge = match kind {
        DeviceKeyKind::Rsa => Challenge { rsa_signature: nonce(), ecdsa_signature: None },
        DeviceKeyKind::Ecdsa => Challenge { rsa_signature: None, ecdsa_signature: nonce() },
    };
    let challenge = serde_json::to_vec(&challenge).map_err(|_| AttestError::AnswerMalformed("cannot be asked for"))?;
    let answer = respondent.ask(challenge).await?;
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| AttestError::AnswerMalformed("is not JSON of its kind"))?;
    let (theirs, proof) = match (kind, answer) {
        (DeviceKeyKind::Rsa, Answer { rsa_signature: Some(answer), .. }) => {
            (answer.nonce, PossessionProof::Rsa(decode(&answer.signature)?))
        }
        (DeviceKeyKind::Ecdsa, Answer { ecdsa_signature: Some(answer), .. }) => {
            (answer.nonce, PossessionProof::Ecdsa { r: decode(&answer.r)?, s: decode(&answer.s)? })
        }
        _ => return Err(AttestError::Device(DeviceError::ProofKind)),
    };
    let theirs = decode(&theirs)?;
    if theirs.len() != NONCE_LEN {
        return Err(AttestError::AnswerMalformed("has a nonce of another length than 32 bytes"));
    }
    check(&[&ours[..], &theirs].concat(), &proof).map_err(AttestError::Device)
}

fn decode(text: &str) -> Result<Vec<u8>, AttestError> {
    STANDARD.decode(text).map_err(|_| AttestError::AnswerMalformed("is not base64"))
}

pub(super) fn chain_of(payload: &[u8]) -> Result<Vec<CertificateDer<'static>>, AttestError> {
    let payload: Payload =
        serde_json::from_slice(payload).map_err(|_| AttestError::Malformed("is not JSON of its kind"))?;
    if payload.certificates.len() > DEVICE_CHAIN_MAX {
        return Err(AttestError::Device(DeviceError::ChainTooLong(payload.certificates.len())));
    }
    let decode = |text: &String| STANDARD.decode(text).map(CertificateDer::from);
    payload
        .certificates
        .iter()
        .map(decode)
        .collect::<Result<_, _>>()
        .map_err(|_| AttestError::Malformed("is not base64"))
}

fn value_of(device: &VerifiedDevice, trimmed: Option<&str>, field: &str) -> Option<Value> {
    let part = |text: &str| Some(Value::Part(text.to_owned()));
    match field {
        "Fingerprint" => part(&device.fingerprint_sha1()),
        "FingerprintSHA256" => part(&device.fingerprint_sha256()),
        "Subject.CommonName" => part(device.common_name()?),
        "SerialNumberHex" => part(device.serial()),
        "SVIDPathTrimmed" => Some(Value::Path(trimmed?.to_owned())),
        _ => None,
    }
}

fn facts(device: &VerifiedDevice, world: &World<'_>) -> std::collections::BTreeSet<crate::entry::Selector> {
    let sha256 = device.fingerprint_sha256();
    let own = [
        ("subject:cn".to_owned(), device.common_name()),
        ("serialnumber".to_owned(), Some(device.serial())),
        ("fingerprint:sha256".to_owned(), Some(&sha256)),
    ];
    let issuers = device.issuer_fingerprints_sha1();
    let issuers = issuers.iter().map(|fingerprint| ("ca:fingerprint".to_owned(), Some(fingerprint.as_str())));
    let prefix = format!("x509pop://{}/", world.trust_domain);
    let names = device.uris().iter().filter_map(|uri| uri.strip_prefix(&prefix)?.split_once(':'));
    let names = names.map(|(key, value)| (format!("san:{key}"), Some(value)));
    selectors(NAME, own.into_iter().chain(issuers).chain(names))
}

pub(super) fn template(settings: &X509Pop) -> Result<PathTemplate, AttestorProblem> {
    let (fields, default): (&[&str], _) = match settings.mode {
        X509PopMode::ExternalPki => {
            (&["Fingerprint", "FingerprintSHA256", "Subject.CommonName", "SerialNumberHex"], "{{ .Fingerprint }}")
        }
        X509PopMode::Spiffe => (&["SVIDPathTrimmed", "Fingerprint", "FingerprintSHA256"], "{{ .SVIDPathTrimmed }}"),
    };
    let text = settings.agent_path_template.as_deref().unwrap_or(default);
    PathTemplate::parse(text, fields).map_err(|problem| AttestorProblem::new("x509pop.agent_path_template", problem))
}

/// Root certificates in files, looked at again after a while.
#[derive(Debug)]
struct RootFiles {
    files: Vec<PathBuf>,
    known: Mutex<Option<(Instant, Roots)>>,
}

type Roots = Arc<Vec<CertificateDer<'static>>>;

impl RootFiles {
    fn current(&self) -> Result<Roots, AttestError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((looked, roots)) = &*known
            && looked.elapsed() < LOOK_PAUSE
        {
            return Ok(roots.clone());
        }
        let roots = match (self.read(), &*known) {
            (Ok(roots), _) => Arc::new(roots),
            (Err(problem), Some((_, roots))) => {
                tracing::warn!(problem, "roots of devices not readable, keeping those known");
                roots.clone()
            }
            (Err(problem), None) => {
                tracing::error!(problem, reason = "DEVICE_ROOTS_UNAVAILABLE", "roots of devices not readable");
                return Err(AttestError::RootsUnavailable);
            }
        };
        *known = Some((Instant::now(), roots.clone()));
        Ok(roots)
    }

    fn read(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let mut roots = Vec::new();
        for file in &self.files {
            let shown = file.display();
            let len = std::fs::metadata(file).map_err(|error| format!("{shown}: {error}"))?.len();
            if len > ROOTS_BYTES_MAX {
                return Err(format!("{shown}: larger than {ROOTS_BYTES_MAX} bytes"));
            }
            let text = std::fs::read(file).map_err(|error| format!("{shown}: {error}"))?;
            let found = identity::pem::decode_certificates(&text).map_err(|error| format!("{shown}: {error}"))?;
            if found.is_empty() {
                return Err(format!("{shown}: holds no certificate"));
            }
            roots.extend(found);
        }
        Ok(roots)
    }
}

pub(super) const NAME: &str = "x509pop";
const NONCE_LEN: usize = 32;
const LOOK_PAUSE: Duration = Duration::from_secs(1);
const ROOTS_BYTES_MAX: u64 = 1 << 20;
