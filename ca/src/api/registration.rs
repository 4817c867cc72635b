//! Many changes of registration entries at once, all or nothing.

use proto::kasbah::ca::v1::{ApplyEntriesRequest, ApplyEntriesResponse, RefusedEntry, registration_server};
use tonic::{Request, Response, Status};

use super::convert::whole_mask;
use super::entry::{EntryPermit, act, changed, wanted};
use super::{Api, Caller};
use crate::certifier::Certifier;
use crate::refusal::Refusal;
use crate::store::{AuditRecord, EntryChange, Hindrance};

#[tonic::async_trait]
impl registration_server::Registration for Api {
    async fn apply_entries(
        &self,
        request: Request<ApplyEntriesRequest>,
    ) -> Result<Response<ApplyEntriesResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            let permit = self.entry_permit(&caller)?;
            let request = request.into_inner();
            if request.update.len() + request.create.len() + request.delete.len() > APPLY_ITEMS_MAX {
                return Err(Refusal::TooMany(APPLY_ITEMS_MAX));
            }
            let refused = apply(&self.certifier, &caller, &permit, request).await?;
            Ok(ApplyEntriesResponse { refused })
        };
        self.answer("Registration.ApplyEntries", &caller, work).await
    }
}

/// One change, by the id of its entry and the name of the act.
struct Step {
    id: String,
    action: &'static str,
    outcome: Result<(EntryChange, AuditRecord), Refusal>,
}

async fn apply(
    certifier: &Certifier,
    caller: &Caller,
    permit: &EntryPermit,
    request: ApplyEntriesRequest,
) -> Result<Vec<RefusedEntry>, Refusal> {
    let steps = steps(certifier, caller, permit, request);
    let names: Vec<(String, &'static str)> = steps.iter().map(|step| (step.id.clone(), step.action)).collect();
    let refuse = |at: usize, refusal: &Refusal| {
        let (id, action) = &names[at];
        certifier.note_refusal(caller, action, id, refusal.reason());
        RefusedEntry { id: id.clone(), status: Some(refusal.item_status()) }
    };
    let (mut changes, mut refused) = (Vec::with_capacity(steps.len()), Vec::new());
    for (at, step) in steps.into_iter().enumerate() {
        match step.outcome {
            Ok(change) => changes.push(change),
            Err(refusal) => refused.push(refuse(at, &refusal)),
        }
    }
    if !refused.is_empty() || changes.is_empty() {
        return Ok(refused);
    }
    if let Err((at, hindrance)) = certifier.store.apply_entries(changes).await? {
        return Ok(vec![refuse(at, &refusal_of(hindrance))]);
    }
    tracing::info!(changes = names.len(), caller = caller.name(), "entries applied");
    Ok(Vec::new())
}

/// What changes first and what is new next, so that no identity is missing between.
fn steps(certifier: &Certifier, caller: &Caller, permit: &EntryPermit, request: ApplyEntriesRequest) -> Vec<Step> {
    let ApplyEntriesRequest { update, create, delete } = request;
    let record = |act| certifier.record_of(caller, act);
    let mask = whole_mask();
    let mut steps = Vec::new();
    for message in update {
        let outcome = changed(certifier, permit, &message, &mask).map(|(patch, entry)| {
            let change = EntryChange::Update(message.id.clone(), Box::new(move |entry| patch.apply(entry)));
            (change, record(act("entry.update", &entry)))
        });
        steps.push(Step { id: message.id, action: "entry.update", outcome });
    }
    for message in create {
        let outcome = wanted(certifier, permit, &message);
        let outcome = outcome.map(|entry| (EntryChange::Create(entry.clone()), record(act("entry.create", &entry))));
        steps.push(Step { id: message.id, action: "entry.create", outcome });
    }
    for id in delete {
        let known = certifier.store.registry().entry(&id).ok_or(Refusal::EntryUnknown);
        let outcome = known.and_then(|entry| permit.check(&entry).map(|()| entry));
        let outcome = outcome.map(|entry| (EntryChange::Delete(id.clone()), record(act("entry.delete", &entry))));
        steps.push(Step { id, action: "entry.delete", outcome });
    }
    steps
}

fn refusal_of(hindrance: Hindrance) -> Refusal {
    match hindrance {
        Hindrance::Unknown => Refusal::EntryUnknown,
        Hindrance::Same => Refusal::EntryExists,
        Hindrance::IdTaken => Refusal::EntryIdTaken,
    }
}

/// The most changes of one request: about a second of the writer's time.
pub(crate) const APPLY_ITEMS_MAX: usize = 500;
