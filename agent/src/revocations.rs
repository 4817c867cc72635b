//! What is revoked, as the CA told: signed lists of certificates, and hashes of tokens.
//!
//! Lists are judged by whoever verifies with them; here they are only decoded, so that no malformed one is passed on.

use std::collections::BTreeMap;
use std::sync::Arc;

use identity::CertificateDer;
use identity::revocation::{CrlError, RevocationIndex};
use identity::summary::CertificateSummary;

/// Everything that is revoked at one moment.
#[derive(Debug, Default)]
pub(crate) struct Revocations {
    /// Grows with every change; 0: the CA has told nothing.
    pub(crate) generation: u64,
    /// Lists in DER, by issuer.
    lists: BTreeMap<String, Vec<Vec<u8>>>,
    pub(crate) index: Arc<RevocationIndex>,
    /// SHA-256 of tokens, and their ends in Unix seconds.
    tokens: BTreeMap<[u8; 32], i64>,
}

/// What the CA says is new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) generation: u64,
    /// This is everything.
    pub(crate) whole: bool,
    /// Issuer and list in DER.
    pub(crate) lists: Vec<(String, Vec<u8>)>,
    /// All issuers that have lists.
    pub(crate) issuers: Vec<String>,
    pub(crate) tokens: Vec<([u8; 32], i64)>,
}

impl Revocations {
    /// The next state: `news` on top of this one.
    ///
    /// # Errors
    /// When a list is malformed, or there are more than may be.
    pub(crate) fn with(&self, news: News, now: i64) -> Result<Self, CrlError> {
        let (mut lists, mut tokens) =
            if news.whole { (BTreeMap::new(), BTreeMap::new()) } else { (self.lists.clone(), self.tokens.clone()) };
        lists.retain(|issuer, _| news.issuers.contains(issuer));
        let mut fresh: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for (issuer, der) in news.lists {
            fresh.entry(issuer).or_default().push(der);
        }
        lists.extend(fresh);
        tokens.extend(news.tokens);
        tokens.retain(|_, not_after| *not_after > now);
        if tokens.len() > TOKENS_MAX {
            return Err(CrlError::TooLong);
        }
        let index = Arc::new(RevocationIndex::decode(lists.values().flatten())?);
        Ok(Self { generation: news.generation, lists, index, tokens })
    }

    /// All lists in DER.
    pub(crate) fn lists(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.lists.values().flatten()
    }

    /// Whether anything at all stands on a list.
    pub(crate) fn revokes_certificates(&self) -> bool {
        self.index.lists().any(|list| !list.is_empty())
    }

    /// Whether each of these roots has a list. One whose key is kept elsewhere signs none.
    pub(crate) fn cover(&self, roots: &[CertificateDer<'_>]) -> bool {
        let id = |root| CertificateSummary::decode(root).ok().and_then(|summary| summary.subject_key_id);
        roots.iter().all(|root| id(root).is_some_and(|id| self.lists.contains_key(&id)))
    }

    /// Whether a token is revoked.
    pub(crate) fn revokes_token(&self, token: &str) -> bool {
        !self.tokens.is_empty() && self.tokens.contains_key(&identity::digest::sha256(token.as_bytes()))
    }

    /// How many tokens are revoked.
    pub(crate) fn token_count(&self) -> usize {
        self.tokens.len()
    }
}

/// The most revoked tokens remembered.
pub(crate) const TOKENS_MAX: usize = 200_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use identity::authority::{CrlProfile, RevokedSerial, X509Authority};

    use super::*;
    use crate::fake::{domain, start};

    fn authority() -> X509Authority {
        X509Authority::generate_root(&domain(), Duration::from_secs(86_400), start()).unwrap()
    }

    fn list(authority: &X509Authority, number: u64, serials: &[u8]) -> (String, Vec<u8>) {
        let revoked = serials.iter().map(|n| RevokedSerial { serial: vec![*n], at: start(), reason: None });
        let profile = CrlProfile {
            number,
            this_update: start(),
            next_update: start() + Duration::from_secs(3600),
            revoked: revoked.collect(),
            distribution_point: None,
        };
        (authority.subject_key_id().to_owned(), authority.sign_crl(&profile).unwrap())
    }

    #[test]
    fn news_come_on_top_and_a_whole_takes_the_place() {
        let (one, two) = (authority(), authority());
        let ids = || vec![one.subject_key_id().to_owned(), two.subject_key_id().to_owned()];
        let lists = vec![list(&one, 1, &[]), list(&two, 1, &[])];
        let first = News { generation: 1, whole: true, lists, issuers: ids(), tokens: vec![([1; 32], 100)] };
        let first = Revocations::default().with(first, 50).unwrap();
        assert!(!first.revokes_certificates());
        assert_eq!((first.lists().count(), first.token_count()), (2, 1));
        let second = News { generation: 2, lists: vec![list(&one, 2, &[7])], issuers: ids(), ..News::default() };
        let second = first.with(second, 99).unwrap();
        assert!(second.revokes_certificates());
        assert_eq!((second.generation, second.lists().count(), second.token_count()), (2, 2, 1));
        let third = News { generation: 3, issuers: vec![two.subject_key_id().to_owned()], ..News::default() };
        let third = second.with(third, 100).unwrap();
        assert_eq!((third.lists().count(), third.token_count()), (1, 0), "the issuer is gone, the token has ended");
        let whole = News { generation: 9, whole: true, ..News::default() };
        assert_eq!(second.with(whole, 50).unwrap().lists().count(), 0);
    }

    #[test]
    fn a_malformed_list_and_too_many_tokens_are_refused() {
        let bad = News { lists: vec![("a".into(), vec![1, 2, 3])], issuers: vec!["a".into()], ..News::default() };
        assert!(Revocations::default().with(bad, 0).is_err());
        let token = |n: usize| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.to_be_bytes());
            (hash, 10)
        };
        let many = |count| News { tokens: (0..count).map(token).collect(), ..News::default() };
        assert!(Revocations::default().with(many(TOKENS_MAX), 0).is_ok());
        assert!(Revocations::default().with(many(TOKENS_MAX + 1), 0).is_err());
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let hash = identity::digest::sha256(b"a.b.c");
        let news = News { tokens: vec![(hash, 10)], ..News::default() };
        let known = Revocations::default().with(news, 0).unwrap();
        assert!(known.revokes_token("a.b.c") && !known.revokes_token("a.b.d"));
    }
}
