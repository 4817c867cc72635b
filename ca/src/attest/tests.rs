//! Attestors against evidence, good and bad.

mod devices;
mod hosts;
mod tokens;

use std::collections::BTreeSet;

use super::*;
use crate::testing::trust_domain;

/// A node that answers challenges as the test says.
pub(super) struct Answering<F>(pub(super) F);

#[tonic::async_trait]
impl<F: FnMut(Vec<u8>) -> Vec<u8> + Send> Respondent for Answering<F> {
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        Ok((self.0)(challenge))
    }
}

/// A node that never answers.
pub(super) struct Silent;

#[tonic::async_trait]
impl Respondent for Silent {
    async fn ask(&mut self, _: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        Err(AttestError::Unanswered)
    }
}

pub(super) fn build(settings: &str) -> Attestors {
    Attestors::build(&serde_saphyr::from_str(settings).unwrap()).unwrap()
}

/// The ID's path, or the reason code.
pub(super) async fn attest(
    attestors: &Attestors,
    kind: &str,
    payload: &[u8],
    respondent: &mut dyn Respondent,
) -> Result<Attested, &'static str> {
    let domain = trust_domain();
    let world = World { trust_domain: &domain, roots: &[], now: SystemTime::now() };
    let attested = attestors.attest(kind, payload, &world, respondent).await;
    attested
        .inspect(|attested| assert!(attested.id().path().starts_with(&format!("/spire/agent/{kind}/"))))
        .map_err(|error| error.reason())
}

pub(super) fn values(attested: &Attested) -> BTreeSet<&str> {
    assert!(attested.selectors().iter().all(|selector| selector.kind == attested.kind()));
    attested.selectors().iter().map(|selector| selector.value.as_str()).collect()
}

#[tokio::test]
async fn what_is_not_switched_on_is_unknown() {
    let attestors = build("join_token: false");
    for kind in ["join_token", "x509pop", "k8s_psat", "oidc_jwt", "http_challenge", "aws_iid", ""] {
        assert_eq!(attest(&attestors, kind, b"{}", &mut Silent).await.unwrap_err(), "ATTESTOR_UNKNOWN", "{kind}");
    }
}

#[tokio::test]
async fn a_join_token_is_one_segment_of_a_path() {
    let attestors = build("{}");
    let good = attest(&attestors, "join_token", b"t-1", &mut Silent).await.unwrap();
    assert_eq!((good.id().path(), good.can_reattest()), ("/spire/agent/join_token/t-1", false));
    assert!(!format!("{good:?}").contains("t-1\""), "a token is in no debug text: {good:?}");
    for bad in [&b""[..], b"..", b"a/b", b"a b", b"\xff", &[b'a'; 256]] {
        assert_eq!(attest(&attestors, "join_token", bad, &mut Silent).await.unwrap_err(), "JOIN_TOKEN_UNKNOWN");
    }
}

#[tokio::test]
async fn evidence_and_the_number_of_strangers_are_limited() {
    let attestors = build("{}");
    let large = vec![b'a'; PAYLOAD_BYTES_MAX + 1];
    assert_eq!(attest(&attestors, "join_token", &large, &mut Silent).await.unwrap_err(), "EVIDENCE_MALFORMED");
    let places: Vec<_> = (0..AT_ONCE_MAX).map(|_| attestors.places.try_acquire().unwrap()).collect();
    assert_eq!(attest(&attestors, "join_token", b"t", &mut Silent).await.unwrap_err(), "ATTESTATION_BUSY");
    drop(places);
    assert!(attest(&attestors, "join_token", b"t", &mut Silent).await.is_ok());
}
