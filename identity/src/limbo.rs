//! Judges the cases of an x509-limbo document (C2SP) as our path validation does, for comparison with other
//! implementations.
//!
//! Names of peers are not judged: a mesh knows its peers by SPIFFE ID. Everything else of a case counts: the time, the
//! kind of peer, the longest path, the revocation lists.

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::path::{self, INTERMEDIATES_MAX, PathError, PathRules, TrustRoots, Usage};
use crate::pem;
use crate::profile::Grade;
use crate::revocation::{Crl, CrlError, RevocationIndex};

/// The part of a document that matters to us.
#[derive(Deserialize)]
struct Document {
    testcases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    validation_kind: Kind,
    trusted_certs: Vec<String>,
    untrusted_intermediates: Vec<String>,
    peer_certificate: String,
    #[serde(default)]
    validation_time: Option<String>,
    #[serde(default)]
    max_chain_depth: Option<usize>,
    #[serde(default)]
    crls: Vec<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    Client,
    Server,
}

/// A results document.
#[derive(Debug, Serialize)]
pub struct Results {
    version: u8,
    harness: &'static str,
    results: Vec<CaseResult>,
}

/// What we think of one case.
#[derive(Debug, Serialize)]
pub struct CaseResult {
    /// Which case.
    pub id: String,
    /// Whether the path was accepted.
    pub actual_result: Verdict,
    /// Why not: a reason code and its text.
    pub context: Option<String>,
}

/// Whether a path was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Verdict {
    Success,
    Failure,
}

impl Results {
    /// The single results, in the order of the cases.
    pub fn cases(&self) -> &[CaseResult] {
        &self.results
    }
}

/// Judges every case of a document. `now` counts for cases that name no time.
pub fn judge(document: &[u8], now: UnixTime) -> Result<Results, LimboError> {
    let document: Document = serde_json::from_slice(document).map_err(LimboError::Document)?;
    let results = document.testcases.into_iter().map(|case| judge_case(case, now)).collect();
    Ok(Results { version: 1, harness: "kasbah", results })
}

fn judge_case(case: Case, now: UnixTime) -> CaseResult {
    let (actual_result, context) = match verify(&case, now) {
        Ok(()) => (Verdict::Success, None),
        Err(error) => (Verdict::Failure, Some(format!("{}: {}", error.reason(), error.text()))),
    };
    CaseResult { id: case.id, actual_result, context }
}

fn verify(case: &Case, now: UnixTime) -> Result<(), CaseError> {
    let now = case.validation_time.as_deref().map_or(Some(now), parse_time).ok_or(CaseError::Time)?;
    let leaf = certificate(&case.peer_certificate)?;
    let roots = certificates(&case.trusted_certs)?;
    let intermediates = certificates(&case.untrusted_intermediates)?;
    let lists: Vec<Vec<Crl>> = case
        .crls
        .iter()
        .map(|text| Crl::decode_pem(text.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(CaseError::Crl)?;
    let revocations = RevocationIndex::new(lists.into_iter().flatten()).map_err(CaseError::Crl)?;
    let rules = PathRules {
        strictness: Grade::Web,
        usage: match case.validation_kind {
            Kind::Client => Usage::Client,
            Kind::Server => Usage::Server,
        },
        intermediates_max: case.max_chain_depth.unwrap_or(INTERMEDIATES_MAX),
        revocations: Some(&revocations),
    };
    path::verify_path(&leaf, &intermediates, &TrustRoots::new(&roots), &rules, now).map(drop).map_err(CaseError::Path)
}

fn parse_time(text: &str) -> Option<UnixTime> {
    let secs = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp();
    Some(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(secs).ok()?)))
}

fn certificates(texts: &[String]) -> Result<Vec<CertificateDer<'static>>, CaseError> {
    texts.iter().map(|text| certificate(text)).collect()
}

fn certificate(text: &str) -> Result<CertificateDer<'static>, CaseError> {
    pem::decode_certificates(text.as_bytes()).ok().and_then(|found| found.into_iter().next()).ok_or(CaseError::Pem)
}

/// Why a case was not accepted.
enum CaseError {
    Time,
    Pem,
    Crl(CrlError),
    Path(PathError),
}

impl CaseError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Time => "CERT_TIME_ENCODING",
            Self::Pem => "PEM_INVALID",
            Self::Crl(error) => error.reason(),
            Self::Path(error) => error.reason(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Time => "the case's time is not RFC 3339".to_owned(),
            Self::Pem => "the case holds no readable certificate where one must be".to_owned(),
            Self::Crl(error) => error.to_string(),
            Self::Path(error) => match std::error::Error::source(error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            },
        }
    }
}

/// Why a document cannot be judged at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimboError {
    /// It is not an x509-limbo document.
    #[error("not an x509-limbo document")]
    Document(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests;
