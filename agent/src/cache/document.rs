//! What the offline cache holds: bundles and what SVIDs share in the head, then the entries, then the SVIDs with what their
//! certificates say, so that a start has to look into none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use identity::seal::SealKey;
use identity::svid::{Facts, KeptSvid};
use identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain, X509Svid};
use runtime::clock::{Clock, from_unix_secs, unix_secs};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::parts::{PartsError, PartsReader, PartsWriter};
use super::record::{Malformed, Reader, Writer};
use crate::entry::{Entries, Entry, Selector, in_order};
use crate::state::{Held, Snapshot, State};

/// What was known before, but for the SVIDs.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) entries: Entries,
    pub(crate) bundles: BundleSet,
    /// Entries whose SVIDs a tainted authority signed.
    pub(crate) unclean: BTreeSet<String>,
}

/// The SVIDs, still sealed: there may be thousands, of which the first workload that comes wants one.
#[derive(Debug)]
pub(crate) struct KeptSvids {
    parts: PartsReader,
    /// The first part that has SVIDs.
    from: usize,
    /// Certificates that many chains share, by their place.
    issuers: Vec<CertificateDer<'static>>,
    count: u64,
}

/// What the head says beside the places of the parts.
struct Head {
    bundles: Vec<Arc<TrustBundle>>,
    issuers: Vec<CertificateDer<'static>>,
    unclean: BTreeSet<String>,
    entry_parts: usize,
    entries: u64,
    held: u64,
}

/// Writes the content of the sealed file.
pub(super) fn encode(
    snapshot: &Snapshot,
    file: impl io::Write,
    key: &Arc<SealKey>,
    trust_domain: &TrustDomain,
) -> io::Result<()> {
    let issuers = issuers(snapshot);
    let mut parts = PartsWriter::new(file, key, trust_domain);
    for entry in snapshot.entries.iter() {
        parts.add(&entry.id, |record| write_entry(record, entry))?;
    }
    parts.end_part()?;
    let entry_parts = parts.len() as u64;
    for (id, held) in snapshot.held.iter() {
        parts.add(id, |record| write_held(record, id, held, &issuers))?;
    }
    parts.finish(|head| {
        let bundles: Vec<_> = snapshot.bundles.iter().map(|(_, bundle)| bundle).collect();
        head.list(bundles.into_iter(), |head, bundle| write_bundle(head, bundle));
        head.list(issuers.iter(), |head, issuer| head.sized(issuer));
        head.list(snapshot.unclean.iter(), |head, id| head.text(id));
        head.number(entry_parts);
        head.number(snapshot.entries.len() as u64);
        head.number(snapshot.held.len() as u64);
    })
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

/// Reads all but the SVIDs.
pub(super) fn decode(
    file: File,
    key: &Arc<SealKey>,
    own: &TrustDomain,
    bytes_max: u64,
) -> Result<(Stored, KeptSvids), PartsError> {
    let (parts, head) = PartsReader::open(file, key, own, bytes_max)?;
    let head = read_head(&mut Reader::new(&head))?;
    if head.entry_parts > parts.len() || !head.bundles.iter().any(|bundle| bundle.trust_domain == *own) {
        return Err(Malformed.into());
    }
    let mut entries = Vec::new();
    for part in 0..head.entry_parts {
        let text = parts.part(part)?;
        let mut records = Reader::new(&text);
        while !records.is_empty() {
            entries.push(Arc::new(read_entry(&mut records)?));
        }
    }
    if entries.len() as u64 != head.entries {
        return Err(Malformed.into());
    }
    let stored =
        Stored { entries: Entries::new(entries), bundles: BundleSet::new(head.bundles), unclean: head.unclean };
    Ok((stored, KeptSvids { parts, from: head.entry_parts, issuers: head.issuers, count: head.held }))
}

impl KeptSvids {
    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.count
    }

    /// Hands all that have not ended to `state`, those first that somebody waits for. What cannot be read is left out and said.
    pub(crate) fn restore(self, state: &State, clock: Clock) {
        let mut all = BTreeMap::new();
        let mut left: BTreeSet<usize> = (self.from..self.parts.len()).collect();
        while let Some(next) = left.first().copied() {
            let wanted: BTreeSet<usize> = state
                .waited_for()
                .iter()
                .filter_map(|id| self.parts.part_of(self.from, id))
                .filter(|part| left.contains(part))
                .collect();
            let is_wanted = !wanted.is_empty();
            for part in if is_wanted { wanted } else { BTreeSet::from([next]) } {
                left.remove(&part);
                if let Err(error) = self.read_part(part, clock.now(), &mut all) {
                    tracing::warn!(%error, reason = "CACHE_DAMAGED", "a part of the offline cache is not used");
                }
            }
            if is_wanted {
                let known = |id: String| all.get(&id).cloned().map(|held| (id, held));
                state.put_restored(state.waited_for().into_iter().filter_map(known));
            }
        }
        state.end_restore(all);
    }

    fn read_part(&self, part: usize, now: SystemTime, all: &mut BTreeMap<String, Held>) -> Result<(), PartsError> {
        let text = self.parts.part(part)?;
        let mut records = Reader::new(&text);
        let mut before: Option<Arc<X509Svid>> = None;
        while !records.is_empty() {
            let (id, held) = read_held(&mut records, &self.issuers, before.as_deref())?;
            if held.svid.not_after() > now {
                before = Some(held.svid.clone());
                all.insert(id, held);
            }
        }
        Ok(())
    }
}

fn read_head(head: &mut Reader<'_>) -> Result<Head, Malformed> {
    Ok(Head {
        bundles: head.list(read_bundle)?,
        issuers: head.list(|head| Ok(head.sized()?.to_vec().into()))?,
        unclean: head.list(|head| head.text().map(str::to_owned))?.into_iter().collect(),
        entry_parts: usize::try_from(head.number()?).map_err(|_| Malformed)?,
        entries: head.number()?,
        held: head.number()?,
    })
}

fn write_bundle(head: &mut Writer, bundle: &TrustBundle) {
    head.text(bundle.trust_domain.as_str());
    head.text(&bundle.to_spiffe_json());
    head.list(bundle.tainted.iter(), |head, tainted| head.text(tainted));
}

fn read_bundle(head: &mut Reader<'_>) -> Result<Arc<TrustBundle>, Malformed> {
    let trust_domain = TrustDomain::parse(head.text()?).map_err(|_| Malformed)?;
    let mut bundle = TrustBundle::parse_spiffe_json(trust_domain, head.sized()?).map_err(|_| Malformed)?;
    bundle.tainted = head.list(|head| head.text().map(str::to_owned))?.into_iter().collect();
    Ok(Arc::new(bundle))
}

fn write_entry(record: &mut Writer, entry: &Entry) {
    record.text(&entry.id);
    record.text(entry.spiffe_id.as_str());
    record.list(entry.selectors.iter(), |record, selector| {
        record.text(selector.kind());
        record.text(selector.value());
    });
    record.list(entry.federates_with.iter(), |record, name| record.text(name.as_str()));
    record.text(&entry.hint);
    record.flag(entry.store_svid);
    record.flag(entry.privileged);
    record.signed(entry.revision);
    record.signed(entry.created_at);
}

fn read_entry(record: &mut Reader<'_>) -> Result<Entry, Malformed> {
    let entry = Entry {
        id: record.text()?.to_owned(),
        spiffe_id: read_id(record)?,
        selectors: in_order(record.list(|record| Ok(Selector::new(record.text()?, record.text()?)))?),
        federates_with: record
            .list(|record| TrustDomain::parse(record.text()?).map_err(|_| Malformed))?
            .into_iter()
            .collect(),
        hint: record.text()?.to_owned(),
        store_svid: record.flag()?,
        privileged: record.flag()?,
        revision: record.signed()?,
        created_at: record.signed()?,
    };
    // One without selectors would match every process.
    if entry.selectors.is_empty() { Err(Malformed) } else { Ok(entry) }
}

fn write_held(record: &mut Writer, id: &str, held: &Held, issuers: &[&[u8]]) {
    let svid = &held.svid;
    let Facts { id: spiffe_id, serial, not_before, not_after, dns_names } = svid.facts();
    record.text(id);
    record.signed(held.revision);
    record.number(unix_secs(held.renew_at));
    record.text(spiffe_id.as_str());
    record.text(serial);
    record.number(unix_secs(*not_before));
    record.number(unix_secs(*not_after));
    record.list(dns_names.iter(), |record, name| record.text(name));
    record.sized(svid.leaf_der());
    let place = |issuer: &CertificateDer<'_>| issuers.iter().position(|known| *known == issuer.as_ref());
    record.list(svid.issuers().iter(), |record, issuer| record.number(place(issuer).unwrap_or_default() as u64));
    record.sized(&svid.key().public_key_spki());
    record.sized(svid.key().pkcs8_der());
}

fn read_held(
    record: &mut Reader<'_>,
    issuers: &[CertificateDer<'static>],
    before: Option<&X509Svid>,
) -> Result<(String, Held), Malformed> {
    let id = record.text()?.to_owned();
    let (revision, renew_at) = (record.signed()?, read_moment(record)?);
    let facts = Facts {
        id: read_id(record)?,
        serial: record.text()?.into(),
        not_before: read_moment(record)?,
        not_after: read_moment(record)?,
        dns_names: record.list(|record| record.text().map(str::to_owned))?.into(),
    };
    let mut chain = vec![record.sized()?.to_vec().into()];
    chain.extend(record.list(|record| {
        let place = usize::try_from(record.number()?).map_err(|_| Malformed)?;
        issuers.get(place).cloned().ok_or(Malformed)
    })?);
    let public_key_spki = record.sized()?.to_vec();
    let pkcs8 = Zeroizing::new(record.sized()?.to_vec());
    let svid = X509Svid::kept(KeptSvid { facts, chain, pkcs8, public_key_spki }).map_err(|_| Malformed)?;
    let svid = match before {
        Some(before) => svid.sharing_issuers(before),
        None => svid,
    };
    Ok((id, Held { svid: Arc::new(svid), revision, renew_at }))
}

fn read_id(record: &mut Reader<'_>) -> Result<SpiffeId, Malformed> {
    SpiffeId::parse(record.text()?).map_err(|_| Malformed)
}

/// Whole seconds.
fn read_moment(record: &mut Reader<'_>) -> Result<SystemTime, Malformed> {
    i64::try_from(record.number()?).map(from_unix_secs).map_err(|_| Malformed)
}
