//! The content of the offline cache inside the seal: protobuf messages, each with its length in front. First comes a [`Head`], then the
//! entries, then the SVIDs with what their certificates say, so that a start has to look into none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use identity::svid::{Facts, KeptSvid};
use identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain, X509Svid};
use prost::Message;
use runtime::clock::{from_unix_secs, unix_secs};
use zeroize::{Zeroize as _, Zeroizing};

use crate::entry::{Entries, Entry, Selector, in_order};
use crate::state::{Held, Snapshot};

/// What was known before.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) entries: Entries,
    pub(crate) held: BTreeMap<String, Held>,
    pub(crate) bundles: BundleSet,
    /// Entries whose SVIDs a tainted authority signed.
    pub(crate) unclean: BTreeSet<String>,
}

/// Why the content makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("the content is no document of ours")]
    Malformed(#[source] prost::DecodeError),
    #[error("{0} of the content is bad")]
    Part(&'static str),
}

/// What comes first.
#[derive(Message)]
struct Head {
    #[prost(message, repeated, tag = "1")]
    bundles: Vec<BundleRecord>,
    /// Certificates that many chains share, by their place.
    #[prost(bytes = "vec", repeated, tag = "2")]
    issuers: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "3")]
    unclean: Vec<String>,
    /// How many entries follow, and how many SVIDs after them.
    #[prost(uint64, tag = "4")]
    entries: u64,
    #[prost(uint64, tag = "5")]
    held: u64,
}

#[derive(Message)]
struct BundleRecord {
    #[prost(string, tag = "1")]
    trust_domain: String,
    #[prost(string, tag = "2")]
    document: String,
    #[prost(string, repeated, tag = "3")]
    tainted: Vec<String>,
}

#[derive(Message)]
struct EntryRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    spiffe_id: String,
    #[prost(message, repeated, tag = "3")]
    selectors: Vec<SelectorRecord>,
    #[prost(string, repeated, tag = "4")]
    federates_with: Vec<String>,
    #[prost(string, tag = "5")]
    hint: String,
    #[prost(bool, tag = "6")]
    store_svid: bool,
    #[prost(bool, tag = "7")]
    privileged: bool,
    #[prost(int64, tag = "8")]
    revision: i64,
    #[prost(int64, tag = "9")]
    created_at: i64,
}

#[derive(Message)]
struct SelectorRecord {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// An SVID. Its private key is wiped when this is dropped.
#[derive(Message)]
#[prost(skip_debug)]
struct HeldRecord {
    #[prost(string, tag = "1")]
    entry: String,
    #[prost(bytes = "vec", tag = "2")]
    leaf: Vec<u8>,
    #[prost(uint32, repeated, tag = "3")]
    issuers: Vec<u32>,
    /// PKCS#8.
    #[prost(bytes = "vec", tag = "4")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    public_key_spki: Vec<u8>,
    #[prost(int64, tag = "6")]
    revision: i64,
    /// Unix seconds, as the next.
    #[prost(uint64, tag = "7")]
    renew_at: u64,
    #[prost(uint64, tag = "8")]
    not_before: u64,
    #[prost(uint64, tag = "9")]
    not_after: u64,
    #[prost(string, tag = "10")]
    spiffe_id: String,
    #[prost(string, tag = "11")]
    serial: String,
    #[prost(string, repeated, tag = "12")]
    dns_names: Vec<String>,
}

impl Drop for HeldRecord {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Each record is made when it is written, so that thousands do not take memory at once.
pub(super) fn encode(snapshot: &Snapshot) -> Zeroizing<Vec<u8>> {
    let issuers = issuers(snapshot);
    let head = Head {
        bundles: snapshot.bundles.iter().map(|(_, bundle)| encode_bundle(bundle)).collect(),
        issuers: issuers.iter().map(|issuer| issuer.to_vec()).collect(),
        unclean: snapshot.unclean.iter().cloned().collect(),
        entries: snapshot.entries.len() as u64,
        held: snapshot.held.len() as u64,
    };
    let room = head.encoded_len() + snapshot.entries.len() * ENTRY_BYTES + snapshot.held.len() * HELD_BYTES;
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    put(&mut text, &head);
    snapshot.entries.iter().for_each(|entry| put(&mut text, &encode_entry(entry)));
    snapshot.held.iter().for_each(|(id, held)| put(&mut text, &encode_held(id, held, &issuers)));
    text
}

fn put(text: &mut Zeroizing<Vec<u8>>, message: &impl Message) {
    let more = message.encoded_len() + LENGTH_BYTES;
    if text.capacity() - text.len() < more {
        // As the vector itself would, but what it leaves behind is wiped.
        let mut larger = Zeroizing::new(Vec::with_capacity(text.capacity() * 2 + more));
        larger.extend_from_slice(text);
        *text = larger;
    }
    // A vector has room for everything: this cannot fail.
    let _ = message.encode_length_delimited(&mut **text);
}

fn take<M: Message + Default>(text: &mut &[u8]) -> Result<M, DocumentError> {
    M::decode_length_delimited(text).map_err(DocumentError::Malformed)
}

/// The certificates above the leaves, each once.
fn issuers(snapshot: &Snapshot) -> Vec<&[u8]> {
    let mut issuers: Vec<&[u8]> = Vec::new();
    for issuer in snapshot.held.values().flat_map(|held| held.svid.issuers().iter()) {
        if !issuers.contains(&issuer.as_ref()) {
            issuers.push(issuer);
        }
    }
    issuers
}

/// Reads what was kept. SVIDs that have ended are left out.
pub(super) fn decode(mut text: &[u8], own: &TrustDomain, now: SystemTime) -> Result<Stored, DocumentError> {
    let head: Head = take(&mut text)?;
    let bundles = head.bundles.into_iter().map(decode_bundle).collect::<Result<Vec<_>, _>>()?;
    if !bundles.iter().any(|bundle| bundle.trust_domain == *own) {
        return Err(DocumentError::Part("the own bundle"));
    }
    let mut entries = Vec::new();
    for _ in 0..head.entries {
        entries.push(decode_entry(take(&mut text)?)?);
    }
    let mut held: Vec<(String, Held)> = Vec::new();
    for _ in 0..head.held {
        let one = decode_held(take(&mut text)?, &head.issuers, held.last().map(|(_, before)| &*before.svid))?;
        if one.1.svid.not_after() > now {
            held.push(one);
        }
    }
    Ok(Stored {
        entries: Entries::new(entries),
        held: held.into_iter().collect(),
        bundles: BundleSet::new(bundles),
        unclean: head.unclean.into_iter().collect(),
    })
}

fn encode_held(id: &str, held: &Held, issuers: &[&[u8]]) -> HeldRecord {
    let svid = &held.svid;
    let Facts { id: spiffe_id, serial, not_before, not_after, dns_names } = svid.facts();
    HeldRecord {
        entry: id.to_owned(),
        leaf: svid.leaf_der().to_vec(),
        issuers: svid.issuers().iter().filter_map(|issuer| place(issuer, issuers)).collect(),
        key: svid.key().pkcs8_der().to_vec(),
        public_key_spki: svid.key().public_key_spki(),
        revision: held.revision,
        renew_at: unix_secs(held.renew_at),
        not_before: unix_secs(*not_before),
        not_after: unix_secs(*not_after),
        spiffe_id: spiffe_id.to_string(),
        serial: serial.to_string(),
        dns_names: dns_names.to_vec(),
    }
}

fn place(certificate: &[u8], issuers: &[&[u8]]) -> Option<u32> {
    issuers.iter().position(|known| *known == certificate).and_then(|place| u32::try_from(place).ok())
}

fn decode_held(
    mut record: HeldRecord,
    issuers: &[Vec<u8>],
    before: Option<&X509Svid>,
) -> Result<(String, Held), DocumentError> {
    let bad = || DocumentError::Part("an SVID");
    let mut chain = vec![std::mem::take(&mut record.leaf).into()];
    for place in &record.issuers {
        let issuer = usize::try_from(*place).ok().and_then(|place| issuers.get(place));
        chain.push(issuer.ok_or_else(bad)?.clone().into());
    }
    let facts = Facts {
        id: SpiffeId::parse(&record.spiffe_id).map_err(|_| bad())?,
        serial: record.serial.as_str().into(),
        not_before: moment(record.not_before).ok_or_else(bad)?,
        not_after: moment(record.not_after).ok_or_else(bad)?,
        dns_names: std::mem::take(&mut record.dns_names).into(),
    };
    let pkcs8 = Zeroizing::new(std::mem::take(&mut record.key));
    let public_key_spki = std::mem::take(&mut record.public_key_spki);
    let svid = X509Svid::kept(KeptSvid { facts, chain, pkcs8, public_key_spki }).map_err(|_| bad())?;
    let svid = match before {
        Some(before) => svid.sharing_issuers(before),
        None => svid,
    };
    let renew_at = moment(record.renew_at).ok_or_else(bad)?;
    Ok((std::mem::take(&mut record.entry), Held { svid: Arc::new(svid), revision: record.revision, renew_at }))
}

fn moment(secs: u64) -> Option<SystemTime> {
    i64::try_from(secs).ok().map(from_unix_secs)
}

fn encode_bundle(bundle: &TrustBundle) -> BundleRecord {
    BundleRecord {
        trust_domain: bundle.trust_domain.as_str().to_owned(),
        document: bundle.to_spiffe_json(),
        tainted: bundle.tainted.iter().cloned().collect(),
    }
}

fn decode_bundle(record: BundleRecord) -> Result<Arc<TrustBundle>, DocumentError> {
    let bad = || DocumentError::Part("a bundle");
    let trust_domain = TrustDomain::parse(&record.trust_domain).map_err(|_| bad())?;
    let mut bundle = TrustBundle::parse_spiffe_json(trust_domain, record.document.as_bytes()).map_err(|_| bad())?;
    bundle.tainted = record.tainted.into_iter().collect();
    Ok(Arc::new(bundle))
}

fn encode_entry(entry: &Entry) -> EntryRecord {
    let selector =
        |selector: &Selector| SelectorRecord { kind: selector.kind().to_owned(), value: selector.value().to_owned() };
    EntryRecord {
        id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.to_string(),
        selectors: entry.selectors.iter().map(selector).collect(),
        federates_with: entry.federates_with.iter().map(|name| name.as_str().to_owned()).collect(),
        hint: entry.hint.clone(),
        store_svid: entry.store_svid,
        privileged: entry.privileged,
        revision: entry.revision,
        created_at: entry.created_at,
    }
}

fn decode_entry(record: EntryRecord) -> Result<Arc<Entry>, DocumentError> {
    let bad = || DocumentError::Part("an entry");
    if record.selectors.is_empty() {
        return Err(bad());
    }
    let federated = record.federates_with.iter().map(|name| TrustDomain::parse(name));
    Ok(Arc::new(Entry {
        id: record.id,
        spiffe_id: SpiffeId::parse(&record.spiffe_id).map_err(|_| bad())?,
        selectors: in_order(record.selectors.into_iter().map(|selector| Selector::new(selector.kind, selector.value))),
        federates_with: federated.collect::<Result<_, _>>().map_err(|_| bad())?,
        hint: record.hint,
        store_svid: record.store_svid,
        privileged: record.privileged,
        revision: record.revision,
        created_at: record.created_at,
    }))
}

/// Room for one record, so that the text need not be copied while it grows; too little costs a copy.
const ENTRY_BYTES: usize = 400;
const HELD_BYTES: usize = 1_200;
/// The most bytes of a length in front of a message.
const LENGTH_BYTES: usize = 10;
