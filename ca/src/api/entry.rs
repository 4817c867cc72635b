//! Registration entries: administration, and what an agent may issue for.

use std::sync::Arc;

use futures_util::future::join_all;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchCreateEntryResponse, BatchDeleteEntryRequest, BatchDeleteEntryResponse,
    BatchUpdateEntryRequest, BatchUpdateEntryResponse, CountEntriesRequest, CountEntriesResponse, EntryRevision,
    GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse, GetEntryRequest, ListEntriesRequest,
    ListEntriesResponse, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse, batch_create_entry_response,
    batch_delete_entry_response, batch_update_entry_response, entry_server,
};
use proto::spire::api::types;
use runtime::shutdown::Shutdown;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{EntryPatch, entry_id_of, entry_message, whole_mask};
use super::filter::EntryFilter;
use super::{Answers, Api, BATCH_ITEMS_MAX, Caller, next_message, page};
use crate::audit::Act;
use crate::certifier::Certifier;
use crate::entry::Entry;
use crate::federation::with_aliases;
use crate::refusal::Refusal;
use crate::rights::{Permit, Verb};
use crate::store::{Created, Updated};

#[tonic::async_trait]
impl entry_server::Entry for Api {
    async fn count_entries(
        &self,
        request: Request<CountEntriesRequest>,
    ) -> Result<Response<CountEntriesResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let filter = EntryFilter::of_count(request.into_inner().filter)?;
            let wanted = |entry: &&Arc<Entry>| permit.covers(&entry.spiffe_id) && filter.matches(entry);
            let count = self.certifier.store.registry().entries_after("").filter(wanted).count();
            Ok(CountEntriesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) })
        };
        self.answer("CountEntries", &caller, work).await
    }

    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let ListEntriesRequest { filter, output_mask, page_size, page_token } = request.into_inner();
            let filter = EntryFilter::of_list(filter)?;
            let registry = self.certifier.store.registry();
            let wanted = |entry: &&Arc<Entry>| permit.covers(&entry.spiffe_id) && filter.matches(entry);
            let found = registry.entries_after(&page_token).filter(wanted);
            let (entries, next_page_token) = page(found, page_size, |entry| entry.id.clone());
            let entries = entries.into_iter().map(|entry| entry_message(entry, output_mask.as_ref())).collect();
            Ok(ListEntriesResponse { entries, next_page_token })
        };
        self.answer("ListEntries", &caller, work).await
    }

    async fn get_entry(&self, request: Request<GetEntryRequest>) -> Result<Response<types::Entry>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.permit(&caller)?;
            let GetEntryRequest { id, output_mask } = request.into_inner();
            let entry = self.certifier.store.registry().entry(&id).ok_or(Refusal::EntryUnknown)?;
            permit.check(&entry.spiffe_id)?;
            Ok(entry_message(&entry, output_mask.as_ref()))
        };
        self.answer("GetEntry", &caller, work).await
    }

    async fn batch_create_entry(
        &self,
        request: Request<BatchCreateEntryRequest>,
    ) -> Result<Response<BatchCreateEntryResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.entry_permit(&caller)?;
            let BatchCreateEntryRequest { entries, output_mask } = request.into_inner();
            check_batch(entries.len())?;
            let mask = output_mask.as_ref();
            let created =
                join_all(entries.iter().map(|message| create(&self.certifier, &caller, &permit, message))).await;
            let results = created.into_iter().map(|(status, entry)| batch_create_entry_response::Result {
                status: Some(status),
                entry: entry.map(|entry| entry_message(&entry, mask)),
            });
            Ok(BatchCreateEntryResponse { results: results.collect() })
        };
        self.answer("BatchCreateEntry", &caller, work).await
    }

    async fn batch_update_entry(
        &self,
        request: Request<BatchUpdateEntryRequest>,
    ) -> Result<Response<BatchUpdateEntryResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.entry_permit(&caller)?;
            let BatchUpdateEntryRequest { entries, input_mask, output_mask } = request.into_inner();
            check_batch(entries.len())?;
            let (whole, mask) = (whole_mask(), output_mask.as_ref());
            let input = input_mask.as_ref().unwrap_or(&whole);
            let updated =
                join_all(entries.iter().map(|message| update(&self.certifier, &caller, &permit, message, input))).await;
            let results = updated.into_iter().map(|outcome| match outcome {
                Ok(entry) => {
                    batch_update_entry_response::Result { status: Some(ok()), entry: Some(entry_message(&entry, mask)) }
                }
                Err(refusal) => {
                    batch_update_entry_response::Result { status: Some(refusal.item_status()), entry: None }
                }
            });
            Ok(BatchUpdateEntryResponse { results: results.collect() })
        };
        self.answer("BatchUpdateEntry", &caller, work).await
    }

    async fn batch_delete_entry(
        &self,
        request: Request<BatchDeleteEntryRequest>,
    ) -> Result<Response<BatchDeleteEntryResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.entry_permit(&caller)?;
            let ids = request.into_inner().ids;
            check_batch(ids.len())?;
            let deleted = join_all(ids.iter().map(|id| delete(&self.certifier, &caller, &permit, id))).await;
            let mut results = Vec::with_capacity(ids.len());
            for (id, deleted) in ids.into_iter().zip(deleted) {
                let status = deleted.map_or_else(|refusal| refusal.item_status(), |()| ok());
                results.push(batch_delete_entry_response::Result { status: Some(status), id });
            }
            Ok(BatchDeleteEntryResponse { results })
        };
        self.answer("BatchDeleteEntry", &caller, work).await
    }

    async fn get_authorized_entries(
        &self,
        request: Request<GetAuthorizedEntriesRequest>,
    ) -> Result<Response<GetAuthorizedEntriesResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let mask = request.into_inner().output_mask;
            let entries = self.authorized(&caller).await?;
            let entries = entries.iter().map(|entry| entry_message(entry, mask.as_ref())).collect();
            Ok(GetAuthorizedEntriesResponse { entries })
        };
        self.answer("GetAuthorizedEntries", &caller, work).await
    }

    type SyncAuthorizedEntriesStream = Answers<SyncAuthorizedEntriesResponse>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let caller = self.caller(request.extensions());
        let messages = request.into_inner();
        let work = async {
            let entries = self.authorized(&caller).await?;
            Ok(Box::pin(sync(entries, messages, self.certifier.shutdown.clone())) as Self::SyncAuthorizedEntriesStream)
        };
        self.answer("SyncAuthorizedEntries", &caller, work).await
    }
}

/// What of entries somebody may write.
pub(super) struct EntryPermit {
    write: Permit,
    /// Entries that make administrators or authorities, too; or why not.
    admin: Result<Permit, Refusal>,
}

impl EntryPermit {
    /// Whoever may write some entries must not make himself an administrator by one of them.
    pub(super) fn check(&self, entry: &Entry) -> Result<(), Refusal> {
        self.write.check(&entry.spiffe_id)?;
        match &self.admin {
            Err(_) if entry.admin || entry.downstream => {
                self.write.refuse(Verb::EntryAdmin, " for entries that say `admin` or `downstream`")
            }
            _ => Ok(()),
        }
    }
}

impl Api {
    pub(super) fn entry_permit(&self, caller: &Caller) -> Result<EntryPermit, Refusal> {
        Ok(EntryPermit { write: self.permit(caller)?, admin: self.permit_for(caller, Verb::EntryAdmin) })
    }

    async fn authorized(&self, caller: &Caller) -> Result<Vec<Arc<Entry>>, Refusal> {
        let agent = self.agent(caller).await?;
        let registry = self.certifier.store.registry();
        let entries = registry.authorized(&agent, self.certifier.now_secs());
        Ok(with_aliases(entries, &self.certifier.aliases, &registry))
    }
}

/// Answers the first message with all entries when they fit into one page, and otherwise with revisions, then with the
/// entries that each further message asks for. What the agent may see was decided when the call began.
fn sync(
    entries: Vec<Arc<Entry>>,
    mut messages: Streaming<SyncAuthorizedEntriesRequest>,
    shutdown: Shutdown,
) -> impl futures_util::Stream<Item = Result<SyncAuthorizedEntriesResponse, Status>> {
    async_stream::try_stream! {
        let Some(first) = next_message(&mut messages, &shutdown).await? else { return };
        check_first(&first)?;
        let mask = first.output_mask;
        if entries.len() <= PAGE_ENTRIES {
            yield entries_page(&entries, mask.as_ref(), false);
            return;
        }
        let pages = entries.len().div_ceil(PAGE_ENTRIES);
        for (at, page) in entries.chunks(PAGE_ENTRIES).enumerate() {
            yield revisions_page(page, at + 1 < pages);
        }
        while let Some(request) = next_message(&mut messages, &shutdown).await? {
            let wanted: Vec<_> = request.ids.iter().filter_map(|id| find(&entries, id)).collect();
            let pages = wanted.len().div_ceil(PAGE_ENTRIES).max(1);
            for at in 0..pages {
                let page = &wanted[at * PAGE_ENTRIES..wanted.len().min((at + 1) * PAGE_ENTRIES)];
                yield entries_page(page, mask.as_ref(), at + 1 < pages);
            }
        }
    }
}

fn check_first(request: &SyncAuthorizedEntriesRequest) -> Result<(), Refusal> {
    if !request.ids.is_empty() {
        return Err(Refusal::Filter("ids in the first message"));
    }
    if request.output_mask.is_some_and(|mask| !mask.revision_number) {
        return Err(Refusal::Filter("output_mask without revision_number"));
    }
    Ok(())
}

/// `entries` are in the order of their ids.
fn find(entries: &[Arc<Entry>], id: &str) -> Option<Arc<Entry>> {
    let at = entries.binary_search_by(|entry| entry.id.as_str().cmp(id)).ok()?;
    Some(entries[at].clone())
}

fn entries_page(entries: &[Arc<Entry>], mask: Option<&types::EntryMask>, more: bool) -> SyncAuthorizedEntriesResponse {
    let entries = entries.iter().map(|entry| entry_message(entry, mask)).collect();
    SyncAuthorizedEntriesResponse { entries, more, ..Default::default() }
}

fn revisions_page(entries: &[Arc<Entry>], more: bool) -> SyncAuthorizedEntriesResponse {
    let revision = |entry: &Arc<Entry>| EntryRevision {
        id: entry.id.clone(),
        revision_number: entry.revision,
        created_at: entry.created_at,
    };
    SyncAuthorizedEntriesResponse {
        entry_revisions: entries.iter().map(revision).collect(),
        more,
        ..Default::default()
    }
}

async fn create(
    certifier: &Certifier,
    caller: &Caller,
    permit: &EntryPermit,
    message: &types::Entry,
) -> (types::Status, Option<Arc<Entry>>) {
    let refused = |refusal: &Refusal| {
        certifier.note_refusal(caller, "entry.create", &message.id, refusal.reason());
        refusal.item_status()
    };
    match try_create(certifier, caller, permit, message).await {
        Ok(Created::New(entry)) => {
            tracing::info!(entry_id = entry.id, spiffe_id = %entry.spiffe_id, caller = caller.name(), "entry created");
            (ok(), Some(entry))
        }
        Ok(Created::Same(entry)) => (refused(&Refusal::EntryExists), Some(entry)),
        Ok(Created::IdTaken) => (refused(&Refusal::EntryIdTaken), None),
        Err(refusal) => (refused(&refusal), None),
    }
}

async fn try_create(
    certifier: &Certifier,
    caller: &Caller,
    permit: &EntryPermit,
    message: &types::Entry,
) -> Result<Created, Refusal> {
    let entry = wanted(certifier, permit, message)?;
    Ok(certifier.acting(caller, act("entry.create", &entry)).create_entry(entry).await?)
}

/// The entry that a message wants to have created, if the caller may.
pub(super) fn wanted(certifier: &Certifier, permit: &EntryPermit, message: &types::Entry) -> Result<Entry, Refusal> {
    let patch = EntryPatch::read(message, &whole_mask(), &certifier.trust_domain, ttl_max(certifier))?;
    check_federation(certifier, &patch)?;
    let entry = patch.into_entry(entry_id_of(&message.id)?, certifier.now_secs())?;
    permit.check(&entry)?;
    Ok(entry)
}

async fn update(
    certifier: &Certifier,
    caller: &Caller,
    permit: &EntryPermit,
    message: &types::Entry,
    mask: &types::EntryMask,
) -> Result<Arc<Entry>, Refusal> {
    let updated = try_update(certifier, caller, permit, message, mask).await;
    if let Err(refusal) = &updated {
        certifier.note_refusal(caller, "entry.update", &message.id, refusal.reason());
    }
    updated
}

async fn try_update(
    certifier: &Certifier,
    caller: &Caller,
    permit: &EntryPermit,
    message: &types::Entry,
    mask: &types::EntryMask,
) -> Result<Arc<Entry>, Refusal> {
    let (patch, wanted) = changed(certifier, permit, message, mask)?;
    let store = certifier.acting(caller, act("entry.update", &wanted));
    match store.update_entry(&message.id, move |entry| patch.apply(entry)).await? {
        Updated::Done(entry) => {
            tracing::info!(entry_id = entry.id, spiffe_id = %entry.spiffe_id, caller = caller.name(), "entry updated");
            Ok(entry)
        }
        Updated::Unknown => Err(Refusal::EntryUnknown),
        Updated::Same(_) => Err(Refusal::EntryExists),
    }
}

/// What a message wants to have changed, and the entry as it then is, if the caller may.
pub(super) fn changed(
    certifier: &Certifier,
    permit: &EntryPermit,
    message: &types::Entry,
    mask: &types::EntryMask,
) -> Result<(EntryPatch, Entry), Refusal> {
    let patch = EntryPatch::read(message, mask, &certifier.trust_domain, ttl_max(certifier))?;
    check_federation(certifier, &patch)?;
    let known = certifier.store.registry().entry(&message.id).ok_or(Refusal::EntryUnknown)?;
    let mut wanted = Entry::clone(&known);
    patch.clone().apply(&mut wanted);
    permit.check(&known)?;
    permit.check(&wanted)?;
    Ok((patch, wanted))
}

async fn delete(certifier: &Certifier, caller: &Caller, permit: &EntryPermit, id: &str) -> Result<(), Refusal> {
    let known = certifier.store.registry().entry(id);
    if let Some(Err(refusal)) = known.as_ref().map(|entry| permit.check(entry)) {
        certifier.note_refusal(caller, "entry.delete", id, refusal.reason());
        return Err(refusal);
    }
    let act = known.map_or_else(|| Act::new("entry.delete", id), |entry| act("entry.delete", &entry));
    let refusal = match certifier.acting(caller, act).delete_entry(id).await {
        Ok(true) => {
            tracing::info!(entry_id = id, caller = caller.name(), "entry deleted");
            return Ok(());
        }
        Ok(false) => Refusal::EntryUnknown,
        Err(error) => Refusal::Store(error),
    };
    certifier.note_refusal(caller, "entry.delete", id, refusal.reason());
    Err(refusal)
}

/// What is done to an entry, with what it says.
pub(super) fn act(action: &'static str, entry: &Entry) -> Act {
    let selectors: Vec<String> = entry.selectors.iter().map(|s| format!("{}:{}", s.kind, s.value)).collect();
    let mut detail = format!("parent {}, selectors {}", entry.parent_id, selectors.join(" "));
    for (named, word) in [(entry.admin, "admin"), (entry.downstream, "downstream")] {
        if named {
            detail.push_str(&format!(", {word}"));
        }
    }
    if !entry.dns_names.is_empty() {
        detail.push_str(&format!(", DNS {}", entry.dns_names.join(" ")));
    }
    Act::new(action, &entry.id).of(&entry.spiffe_id).detail(detail)
}

fn check_federation(certifier: &Certifier, patch: &EntryPatch) -> Result<(), Refusal> {
    let registry = certifier.store.registry();
    match patch.federates_with().find(|domain| registry.federated(domain).is_none()) {
        Some(_) => {
            Err(Refusal::Entry { field: "federates_with", problem: "names a trust domain whose bundle is not known" })
        }
        None => Ok(()),
    }
}

fn check_batch(items: usize) -> Result<(), Refusal> {
    if items > BATCH_ITEMS_MAX { Err(Refusal::TooMany(BATCH_ITEMS_MAX)) } else { Ok(()) }
}

fn ttl_max(certifier: &Certifier) -> i64 {
    i64::try_from(certifier.ttls.max.as_secs()).unwrap_or(i64::MAX)
}

fn ok() -> types::Status {
    types::Status { code: 0, message: "OK".into() }
}

/// Entries in one message of a synchronisation.
pub(super) const PAGE_ENTRIES: usize = 500;
