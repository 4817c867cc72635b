//! The content of the offline cache, as JSON inside the seal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain, X509Svid};
use runtime::clock::{from_unix_secs, unix_secs};
use serde::{Deserialize, Serialize, Serializer};
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
    Json(#[source] serde_json::Error),
    #[error("{0} of the content is bad")]
    Part(&'static str),
}

#[derive(Deserialize)]
struct Document {
    bundles: Vec<BundleRecord>,
    entries: Vec<EntryRecord>,
    held: Vec<HeldRecord>,
    /// Certificates that many chains share, by their place.
    issuers: Vec<String>,
    unclean: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct BundleRecord {
    trust_domain: String,
    document: String,
    tainted: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct EntryRecord {
    id: String,
    spiffe_id: String,
    selectors: Vec<(String, String)>,
    federates_with: Vec<String>,
    hint: String,
    store_svid: bool,
    privileged: bool,
    revision: i64,
    created_at: i64,
}

#[derive(Serialize, Deserialize)]
struct HeldRecord {
    entry: String,
    leaf: String,
    issuers: Vec<usize>,
    key: KeyText,
    revision: i64,
    renew_at: u64,
}

/// A private key as text, wiped when it is dropped.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct KeyText(String);

impl Drop for KeyText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A [`Document`] on its way out: each record is made when it is written, so that thousands do not take memory at once.
#[derive(Serialize)]
struct Outgoing<'a> {
    bundles: Vec<BundleRecord>,
    #[serde(serialize_with = "write_entries")]
    entries: &'a Snapshot,
    #[serde(serialize_with = "write_held")]
    held: (&'a Snapshot, &'a [&'a [u8]]),
    issuers: Vec<String>,
    unclean: &'a BTreeSet<String>,
}

pub(super) fn encode(snapshot: &Snapshot) -> Zeroizing<Vec<u8>> {
    let issuers = issuers(snapshot);
    let document = Outgoing {
        bundles: snapshot.bundles.iter().map(|(_, bundle)| encode_bundle(bundle)).collect(),
        entries: snapshot,
        held: (snapshot, &issuers),
        issuers: issuers.iter().map(|issuer| STANDARD.encode(issuer)).collect(),
        unclean: &snapshot.unclean,
    };
    let mut text = Zeroizing::new(Vec::with_capacity(
        BYTES_AROUND + snapshot.entries.len() * ENTRY_BYTES + snapshot.held.len() * HELD_BYTES,
    ));
    // Maps with text keys, numbers and texts into memory: this cannot fail.
    let _ = serde_json::to_writer(&mut *text, &document);
    text
}

fn write_entries<S: Serializer>(snapshot: &&Snapshot, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(snapshot.entries.iter().map(|entry| encode_entry(entry)))
}

fn write_held<S: Serializer>((snapshot, issuers): &(&Snapshot, &[&[u8]]), serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(snapshot.held.iter().map(|(id, held)| encode_held(id, held, issuers)))
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
pub(super) fn decode(text: &[u8], own: &TrustDomain, now: SystemTime) -> Result<Stored, DocumentError> {
    let document: Document = serde_json::from_slice(text).map_err(DocumentError::Json)?;
    let bundles = document.bundles.into_iter().map(decode_bundle).collect::<Result<Vec<_>, _>>()?;
    if !bundles.iter().any(|bundle| bundle.trust_domain == *own) {
        return Err(DocumentError::Part("the own bundle"));
    }
    let entries = document.entries.into_iter().map(decode_entry).collect::<Result<Vec<_>, _>>()?;
    let issuers = document.issuers.iter().map(|issuer| der(issuer)).collect::<Result<Vec<_>, _>>()?;
    let mut held: Vec<(String, Held)> = Vec::with_capacity(document.held.len());
    for record in document.held {
        held.push(decode_held(record, &issuers, held.last().map(|(_, before)| &*before.svid))?);
    }
    Ok(Stored {
        entries: Entries::new(entries),
        held: held.into_iter().filter(|(_, held)| held.svid.not_after() > now).collect(),
        bundles: BundleSet::new(bundles),
        unclean: document.unclean,
    })
}

fn encode_held(id: &str, held: &Held, issuers: &[&[u8]]) -> HeldRecord {
    HeldRecord {
        entry: id.to_owned(),
        leaf: STANDARD.encode(held.svid.leaf_der()),
        issuers: held.svid.issuers().iter().filter_map(|issuer| place(issuer, issuers)).collect(),
        key: KeyText(STANDARD.encode(held.svid.key().pkcs8_der())),
        revision: held.revision,
        renew_at: unix_secs(held.renew_at),
    }
}

fn place(certificate: &[u8], issuers: &[&[u8]]) -> Option<usize> {
    issuers.iter().position(|known| *known == certificate)
}

fn decode_held(
    record: HeldRecord,
    issuers: &[Vec<u8>],
    before: Option<&X509Svid>,
) -> Result<(String, Held), DocumentError> {
    let bad = || DocumentError::Part("an SVID");
    let key = Zeroizing::new(STANDARD.decode(record.key.0.as_bytes()).map_err(|_| bad())?);
    let mut chain = vec![der(&record.leaf)?.into()];
    for place in record.issuers {
        chain.push(issuers.get(place).ok_or_else(bad)?.clone().into());
    }
    let svid = X509Svid::kept(chain, key).map_err(|_| bad())?;
    let svid = match before {
        Some(before) => svid.sharing_issuers(before),
        None => svid,
    };
    let renew_at = from_unix_secs(i64::try_from(record.renew_at).map_err(|_| bad())?);
    Ok((record.entry, Held { svid: Arc::new(svid), revision: record.revision, renew_at }))
}

fn encode_bundle(bundle: &TrustBundle) -> BundleRecord {
    BundleRecord {
        trust_domain: bundle.trust_domain.as_str().to_owned(),
        document: bundle.to_spiffe_json(),
        tainted: bundle.tainted.clone(),
    }
}

fn decode_bundle(record: BundleRecord) -> Result<Arc<TrustBundle>, DocumentError> {
    let bad = || DocumentError::Part("a bundle");
    let trust_domain = TrustDomain::parse(&record.trust_domain).map_err(|_| bad())?;
    let mut bundle = TrustBundle::parse_spiffe_json(trust_domain, record.document.as_bytes()).map_err(|_| bad())?;
    bundle.tainted = record.tainted;
    Ok(Arc::new(bundle))
}

fn encode_entry(entry: &Entry) -> EntryRecord {
    let selector = |selector: &Selector| (selector.kind().to_owned(), selector.value().to_owned());
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
        selectors: in_order(record.selectors.into_iter().map(|(kind, value)| Selector::new(kind, value))),
        federates_with: federated.collect::<Result<_, _>>().map_err(|_| bad())?,
        hint: record.hint,
        store_svid: record.store_svid,
        privileged: record.privileged,
        revision: record.revision,
        created_at: record.created_at,
    }))
}

fn der(text: &str) -> Result<Vec<u8>, DocumentError> {
    STANDARD.decode(text).map_err(|_| DocumentError::Part("a certificate"))
}

/// Room for one record, so that the text need not be copied while it grows; too little costs a copy.
const ENTRY_BYTES: usize = 400;
const HELD_BYTES: usize = 1_400;
const BYTES_AROUND: usize = 16 << 10;
