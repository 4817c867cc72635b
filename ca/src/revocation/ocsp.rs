//! Answering about single certificates (RFC 6960), signed by their issuer.
//!
//! *good*: on record as issued by that authority, and not revoked. *unknown*: never issued by it, or long expired.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use identity::authority::X509Authority;
use identity::revocation::{
    CertId, CertStatus, OcspError, OcspProfile, OcspRequest, RevocationReason, RevokedCertificate,
};

use super::{Revocations, moment};
use crate::certifier::{Certifier, secs};

/// Answers without a nonce, by the question; of use until the lists change or their time is over.
#[derive(Debug, Default)]
pub(super) struct Answers {
    number: u64,
    known: HashMap<Vec<u8>, Answer>,
}

/// An answer, and for how long it may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) der: Vec<u8>,
    /// Unix seconds; 0: not at all.
    pub(super) until: i64,
}

impl Answer {
    fn refusal(error: OcspError) -> Self {
        Self { der: error.response(), until: 0 }
    }
}

impl Revocations {
    /// The answer to a request in DER; a refusal is an answer as well.
    pub(super) async fn answer(&self, certifier: &Certifier, der: &[u8]) -> Answer {
        let number = self.current().lists.number;
        if let Some(known) = self.remembered(der, number, certifier.now_secs()) {
            return known;
        }
        let asked = match OcspRequest::decode(der) {
            Ok(asked) => asked,
            Err(error) => return Answer::refusal(error),
        };
        match self.sign(certifier, &asked).await {
            Ok(answer) => {
                if asked.nonce().is_none() {
                    self.remember(der, number, &answer);
                }
                answer
            }
            Err(error) => {
                tracing::debug!(reason = error.reason(), "OCSP request refused");
                Answer::refusal(error)
            }
        }
    }

    async fn sign(&self, certifier: &Certifier, asked: &OcspRequest) -> Result<Answer, OcspError> {
        let issuer = self.responders.of(&asked.certs()[0]).ok_or(OcspError::Unauthorized)?;
        let mut statuses = Vec::with_capacity(asked.certs().len());
        for cert in asked.certs() {
            if !cert.is_by(issuer.certificate()) {
                return Err(OcspError::Unauthorized);
            }
            statuses.push(self.status(certifier, &issuer, cert).await?);
        }
        certifier.clock_watch.check().map_err(|_| OcspError::TryLater)?;
        let now = certifier.now();
        let profile = OcspProfile { this_update: now - BACKDATE, next_update: now + ANSWER_LIFE };
        let der = issuer.sign_ocsp(asked, &statuses, &profile, now).map_err(|error| {
            tracing::error!(error = ?error, "OCSP answer not signed");
            OcspError::Internal
        })?;
        let until = if asked.nonce().is_some() { 0 } else { secs(now + ANSWER_LIFE) };
        Ok(Answer { der, until })
    }

    async fn status(
        &self,
        certifier: &Certifier,
        issuer: &X509Authority,
        cert: &CertId,
    ) -> Result<CertStatus, OcspError> {
        let serial = cert.serial();
        if let Some(revoked) = self.current().lists.revoked.get(&serial)
            && revoked.authority_id == issuer.subject_key_id()
        {
            let reason = u8::try_from(revoked.reason).ok().and_then(RevocationReason::from_code);
            return Ok(CertStatus::Revoked(RevokedCertificate { at: moment(revoked.revoked_at), reason }));
        }
        let record = certifier.store.issued_one(&serial).await.map_err(|_| OcspError::TryLater)?;
        let issued = record.is_some_and(|record| record.issuance.authority_id == issuer.subject_key_id());
        Ok(if issued { CertStatus::Good } else { CertStatus::Unknown })
    }

    pub(super) fn remembered(&self, der: &[u8], number: u64, now: i64) -> Option<Answer> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = (answers.number == number).then(|| answers.known.get(der)).flatten();
        known.filter(|answer| now < answer.until - REMEMBERED_MARGIN_SECS).cloned()
    }

    pub(super) fn remember(&self, der: &[u8], number: u64, answer: &Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.number != number || answers.known.len() >= ANSWERS_MAX {
            answers.known.clear();
            answers.number = number;
        }
        answers.known.insert(der.to_vec(), answer.clone());
    }

    #[cfg(test)]
    pub(super) fn answers_remembered(&self) -> usize {
        self.answers.lock().unwrap().known.len()
    }
}

/// Answers remembered; when there are more, all are forgotten.
pub(super) const ANSWERS_MAX: usize = 1024;
/// For how long an answer is good.
const ANSWER_LIFE: Duration = Duration::from_secs(600);
/// For clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// An answer is given out as long as it is good for that long yet.
const REMEMBERED_MARGIN_SECS: i64 = 300;
