//! `x509pop`: the device's certificates, and the proof that its key is here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::device::{DeviceKey, PossessionProof};
use serde::Deserialize;
use serde_json::{Value, json};

use super::read;
use crate::ca::CaError;
use crate::node::JoinError;
use crate::settings::X509Pop;

#[derive(Deserialize)]
struct Challenge {
    rsa_signature: Option<Nonce>,
    ecdsa_signature: Option<Nonce>,
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

pub(super) fn gather(settings: &X509Pop) -> Result<(Vec<u8>, DeviceKey), JoinError> {
    let X509Pop { certificate_file, private_key_file } = settings;
    let bad = |problem| JoinError::EvidenceBad { setting: CERTIFICATE, file: certificate_file.clone(), problem };
    let chain = identity::pem::decode_certificates(&read(CERTIFICATE, certificate_file)?);
    let chain = chain.map_err(|_| bad("holds no certificate in PEM form"))?;
    if chain.is_empty() {
        return Err(bad("holds no certificate"));
    }
    let key = DeviceKey::from_pem(&read(KEY, private_key_file)?);
    let key = key.map_err(|source| JoinError::DeviceKey { file: private_key_file.clone(), source })?;
    let certificates: Vec<String> = chain.iter().map(|certificate| STANDARD.encode(certificate)).collect();
    Ok((json!({"certificates": certificates}).to_string().into_bytes(), key))
}

pub(super) fn answer(key: &DeviceKey, challenge: &[u8]) -> Result<Vec<u8>, CaError> {
    let bad = |what| CaError::BadAnswer { what };
    let challenge: Challenge =
        serde_json::from_slice(challenge).map_err(|_| bad("a challenge that is not x509pop's"))?;
    let nonce =
        challenge.rsa_signature.or(challenge.ecdsa_signature).ok_or_else(|| bad("a challenge without a nonce"))?;
    let theirs = STANDARD.decode(nonce.nonce).map_err(|_| bad("a challenge that is not base64"))?;
    // Never sign what somebody else chose alone: half of the message is ours.
    if theirs.len() != NONCE_LEN {
        return Err(bad("a nonce of another length than 32 bytes"));
    }
    let ours = identity::digest::random::<NONCE_LEN>();
    let proof = key.prove(&[&theirs[..], &ours].concat()).map_err(|_| bad("a challenge that cannot be signed"))?;
    let ours = STANDARD.encode(ours);
    let answer: Value = match proof {
        PossessionProof::Rsa(signature) => {
            json!({"rsa_signature": {"nonce": ours, "signature": STANDARD.encode(signature)}, "ecdsa_signature": null})
        }
        PossessionProof::Ecdsa { r, s } => {
            json!({"rsa_signature": null, "ecdsa_signature": {"nonce": ours, "r": STANDARD.encode(r), "s": STANDARD.encode(s)}})
        }
    };
    Ok(answer.to_string().into_bytes())
}

const NONCE_LEN: usize = 32;
const CERTIFICATE: &str = "x509pop.certificate_file";
const KEY: &str = "x509pop.private_key_file";
