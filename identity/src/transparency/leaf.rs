//! What the log says about one issued SVID.

use super::{Hash, leaf_hash};

/// The content of a leaf. Its encoding is a version byte, then each text as its length (four bytes, big endian) and its
/// bytes, then the times as eight bytes each: two different records never encode alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuanceLeaf<'a> {
    /// By which way it was handed out.
    pub kind: &'a str,
    /// X.509: serial (hex). JWT and WIT: SHA-256 of the token (hex).
    pub serial: &'a str,
    /// Whom it names.
    pub spiffe_id: &'a str,
    /// The registration entry that allowed it; empty for none.
    pub entry_id: &'a str,
    /// Who asked.
    pub caller: &'a str,
    /// What signed it.
    pub authority_id: &'a str,
    /// X.509: SHA-256 of the certificate (hex). Tokens: empty, their serial is that already.
    pub fingerprint: &'a str,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub not_after: i64,
}

impl IssuanceLeaf<'_> {
    /// The bytes that are hashed.
    pub fn encode(&self) -> Vec<u8> {
        let texts =
            [self.kind, self.serial, self.spiffe_id, self.entry_id, self.caller, self.authority_id, self.fingerprint];
        let mut out = Vec::with_capacity(1 + texts.iter().map(|text| 4 + text.len()).sum::<usize>() + 16);
        out.push(VERSION);
        for text in texts {
            // Longer texts than that cannot be: every field has a limit far below.
            out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(&self.issued_at.to_be_bytes());
        out.extend_from_slice(&self.not_after.to_be_bytes());
        out
    }

    /// The hash of the leaf.
    pub fn hash(&self) -> Hash {
        leaf_hash(&self.encode())
    }
}

const VERSION: u8 = 1;
