//! The newest revocation list of each issuer of a trust domain, or of each part of its certificates.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::crl::{Crl, CrlError, LISTS_MAX, RevokedCertificate};
use super::{Issuer, Link};
use crate::digest;

/// Lists of one trust domain. Cheap to clone: the lists are shared.
#[derive(Debug, Clone, Default)]
pub struct RevocationIndex {
    lists: Vec<Arc<Entry>>,
}

struct Entry {
    crl: Crl,
    /// The hash of the key that was found to have signed the list, and may sign lists.
    verified_by: OnceLock<[u8; 32]>,
}

impl RevocationIndex {
    /// An index of the given lists; of two of the same issuer the one with the higher number counts.
    pub fn new(lists: impl IntoIterator<Item = Crl>) -> Result<Self, CrlError> {
        let mut index = Self::default();
        for crl in lists {
            match index.insert(crl) {
                Ok(()) | Err(CrlError::Older) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(index)
    }

    /// Puts a list in the place of its issuer's former one, which must have a lower number; the very same list is no error.
    pub fn insert(&mut self, crl: Crl) -> Result<(), CrlError> {
        let same_issuer = |known: &Arc<Entry>| {
            known.crl.issuer_name == crl.issuer_name
                && known.crl.authority_key_id == crl.authority_key_id
                && known.crl.distribution_point == crl.distribution_point
        };
        match self.lists.iter().position(same_issuer) {
            Some(at) if self.lists[at].crl == crl => {}
            Some(at) if crl.is_newer_than(&self.lists[at].crl) => self.lists[at] = Entry::new(crl),
            Some(_) => return Err(CrlError::Older),
            None if self.lists.len() == LISTS_MAX => return Err(CrlError::TooMany),
            None => self.lists.push(Entry::new(crl)),
        }
        Ok(())
    }

    /// Decodes lists as they come from outside and indexes them.
    pub fn decode<L: AsRef<[u8]>>(lists: impl IntoIterator<Item = L>) -> Result<Self, CrlError> {
        let mut index = Self::default();
        for list in lists {
            match index.insert(Crl::decode(list.as_ref())?) {
                Ok(()) | Err(CrlError::Older) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(index)
    }

    /// The lists.
    pub fn lists(&self) -> impl Iterator<Item = &Crl> {
        self.lists.iter().map(|entry| &entry.crl)
    }

    /// Whether there is no list.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Whether every certificate of a verified path is unrevoked, as far as there are lists of their issuers.
    pub fn check<'l>(&self, path: impl IntoIterator<Item = &'l Link>, now: SystemTime) -> Result<(), RevocationError> {
        path.into_iter().try_for_each(|link| self.check_link(link, now))
    }

    fn check_link(&self, link: &Link, now: SystemTime) -> Result<(), RevocationError> {
        for entry in &self.lists {
            if !entry.speaks_for(&link.issuer)? {
                continue;
            }
            if let Some(revoked) = entry.crl.find(&link.serial) {
                return Err(RevocationError::Revoked { serial: digest::serial_hex(&link.serial), revoked: *revoked });
            }
            if entry.crl.next_update() < now {
                return Err(RevocationError::Stale);
            }
        }
        Ok(())
    }
}

impl PartialEq for RevocationIndex {
    fn eq(&self, other: &Self) -> bool {
        self.lists().eq(other.lists())
    }
}

impl Eq for RevocationIndex {}

impl Entry {
    fn new(crl: Crl) -> Arc<Self> {
        Arc::new(Self { crl, verified_by: OnceLock::new() })
    }

    /// Whether the list is by this issuer. A list that names the issuer's key must be good; one that has only the issuer's
    /// name may be by another key of that name.
    fn speaks_for(&self, issuer: &Issuer) -> Result<bool, RevocationError> {
        if self.crl.issuer_name != *issuer.name {
            return Ok(false);
        }
        let names_key = match (&self.crl.authority_key_id, &issuer.key_id) {
            (Some(named), Some(own)) if **named != **own => return Ok(false),
            (Some(_), Some(_)) => true,
            (None, _) | (_, None) => false,
        };
        if self.verified_by.get() == Some(&issuer.spki_hash) {
            return Ok(true);
        }
        match self.crl.verify_by(issuer) {
            Ok(()) => {
                let _ = self.verified_by.set(issuer.spki_hash);
                Ok(true)
            }
            Err(CrlError::BadSignature) if !names_key => Ok(false),
            Err(error) => Err(RevocationError::List(error)),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.crl.fmt(f)
    }
}

/// Why a path is refused because of a revocation list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RevocationError {
    /// A certificate of the path is revoked.
    #[error("the certificate with the serial number {serial} is revoked")]
    Revoked {
        /// Which one, hexadecimal.
        serial: String,
        /// Since when, and why.
        revoked: RevokedCertificate,
    },
    /// The issuer's list should have been replaced by now.
    #[error("the issuer's revocation list is too old")]
    Stale,
    /// The issuer's list is not usable.
    #[error("the issuer's revocation list cannot be used")]
    List(#[source] CrlError),
}

impl RevocationError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Revoked { .. } => "CERT_REVOKED",
            Self::Stale | Self::List(_) => "TLS_PEER_REVOCATION_UNKNOWN",
        }
    }
}
