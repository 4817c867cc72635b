//! The log's JSON forms: a tree head, and the lines of an exported log. A value only yields a hash after it was verified.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::digest::hex;
use identity::transparency::{Hash, IssuanceLeaf, LogPublicKey, SignedTreeHead, TransparencyError, TreeHead as Head};
use proto::kasbah::ca::v1 as wire;
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure};
use crate::verbs::time_text;

/// A signed tree head. Hashes are hexadecimal, key and signature base64.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HeadDocument {
    pub(super) trust_domain: String,
    pub(super) tree_size: u64,
    pub(super) root_hash: String,
    pub(super) timestamp: String,
    pub(super) timestamp_ms: u64,
    pub(super) log_id: String,
    pub(super) public_key: String,
    pub(super) signature: String,
}

/// The first line of an exported log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    format: String,
    head: HeadDocument,
}

/// A further line: one leaf.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct EntryDocument {
    pub(super) index: u64,
    pub(super) leaf_hash: String,
    /// Absent when the CA no longer keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) record: Option<RecordDocument>,
}

/// What a leaf says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordDocument {
    pub(super) kind: String,
    pub(super) serial: String,
    pub(super) spiffe_id: String,
    pub(super) entry_id: String,
    pub(super) caller: String,
    pub(super) authority_id: String,
    pub(super) fingerprint_sha256: String,
    pub(super) issued_at: jiff::Timestamp,
    pub(super) not_after: jiff::Timestamp,
}

impl Header {
    pub(super) fn new(head: HeadDocument) -> Self {
        Self { format: FORMAT.into(), head }
    }

    /// The head, if the file is of a version that we know.
    pub(super) fn head(self) -> Result<HeadDocument, Failure> {
        if self.format == FORMAT {
            return Ok(self.head);
        }
        Err(Failure::new(Exit::Data, format!("the exported log is of the format {:?}, not {FORMAT}", self.format)))
    }
}

impl HeadDocument {
    /// The head, its signature verified with the key that it names.
    pub(super) fn verified(&self) -> Result<SignedTreeHead, Failure> {
        let signed = SignedTreeHead {
            head: Head { size: self.tree_size, root: parse(&self.root_hash)?, timestamp_ms: self.timestamp_ms },
            log_id: parse(&self.log_id)?,
            signature: STANDARD.decode(&self.signature).map_err(|_| TransparencyError::Signature)?,
        };
        let key = STANDARD.decode(&self.public_key).map_err(|_| TransparencyError::Key)?;
        LogPublicKey::from_spki_der(&key)?.verify(&signed)?;
        Ok(signed)
    }
}

impl EntryDocument {
    /// The hash of the leaf; its record, where there is one, has that hash.
    pub(super) fn verified(&self) -> Result<Hash, Failure> {
        let hash = parse(&self.leaf_hash)?;
        match &self.record {
            Some(record) if record.hash() != hash => Err(TransparencyError::Record(self.index).into()),
            _ => Ok(hash),
        }
    }
}

impl RecordDocument {
    pub(super) fn hash(&self) -> Hash {
        let leaf = IssuanceLeaf {
            kind: &self.kind,
            serial: &self.serial,
            spiffe_id: &self.spiffe_id,
            entry_id: &self.entry_id,
            caller: &self.caller,
            authority_id: &self.authority_id,
            fingerprint: &self.fingerprint_sha256,
            issued_at: self.issued_at.as_second(),
            not_after: self.not_after.as_second(),
        };
        leaf.hash()
    }
}

impl From<wire::SignedTreeHead> for HeadDocument {
    fn from(message: wire::SignedTreeHead) -> Self {
        let secs = i64::try_from(message.timestamp_ms / 1_000).unwrap_or(i64::MAX);
        Self {
            trust_domain: message.trust_domain,
            tree_size: message.tree_size,
            root_hash: hex(&message.root_hash),
            timestamp: time_text(secs),
            timestamp_ms: message.timestamp_ms,
            log_id: hex(&message.log_id),
            public_key: STANDARD.encode(message.public_key),
            signature: STANDARD.encode(message.signature),
        }
    }
}

impl From<wire::LogEntry> for EntryDocument {
    fn from(message: wire::LogEntry) -> Self {
        Self { index: message.index, leaf_hash: hex(&message.leaf_hash), record: message.record.map(record) }
    }
}

fn record(message: wire::IssuanceRecord) -> RecordDocument {
    let time = |secs| jiff::Timestamp::from_second(secs).unwrap_or_default();
    RecordDocument {
        kind: message.kind,
        serial: message.serial,
        spiffe_id: message.spiffe_id,
        entry_id: message.entry_id,
        caller: message.caller,
        authority_id: message.authority_id,
        fingerprint_sha256: message.fingerprint,
        issued_at: time(message.issued_at),
        not_after: time(message.not_after),
    }
}

/// A hash as it came over the wire.
pub(super) fn hash_of(bytes: &[u8]) -> Result<Hash, Failure> {
    bytes.try_into().map_err(|_| Failure::refused(Exit::Failed, "LOG_PROOF_INVALID", "a hash has 32 bytes"))
}

/// A hash in hexadecimal.
fn parse(text: &str) -> Result<Hash, Failure> {
    let digits = text.as_bytes();
    let malformed = || Failure::refused(Exit::Failed, "LOG_LEAVES_CHANGED", "a hash has 64 hexadecimal digits");
    if digits.len() != 64 {
        return Err(malformed());
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|c| c.is_ascii_hexdigit()));
        *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(malformed)?;
    }
    Ok(hash)
}

const FORMAT: &str = "kasbah-log-1";
