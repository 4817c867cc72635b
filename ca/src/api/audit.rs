//! The audit trail for those who read it.

use proto::kasbah::ca::v1::{AuditRecord as Message, ListRecordsRequest, ListRecordsResponse, audit_server};
use tonic::{Request, Response, Status};

use super::Api;
use crate::refusal::Refusal;
use crate::store::{AuditFilter, AuditRecord, Recorded};

#[tonic::async_trait]
impl audit_server::Audit for Api {
    async fn list_records(
        &self,
        request: Request<ListRecordsRequest>,
    ) -> Result<Response<ListRecordsResponse>, Status> {
        let caller = self.caller(request.extensions());
        let work = async {
            self.admin(&caller)?;
            Ok(ListRecordsResponse { records: self.records(request.into_inner()).await? })
        };
        self.answer("ListAuditRecords", &caller, work).await
    }
}

impl Api {
    async fn records(&self, request: ListRecordsRequest) -> Result<Vec<Message>, Refusal> {
        let limit = if request.limit == 0 { RECORDS_MAX } else { request.limit.min(RECORDS_MAX) };
        let filter = AuditFilter {
            since: request.since,
            until: request.until,
            actor: request.actor,
            action: request.action,
            spiffe_id: request.spiffe_id,
            target: request.target,
        };
        // What was refused a moment ago is wanted too.
        self.certifier.refusals.flush(&self.certifier.store).await?;
        let mut records: Vec<Message> = Vec::new();
        records.extend(self.certifier.store.audit(&filter, limit).await?.into_iter().map(message));
        if request.with_issuance {
            records.extend(self.certifier.store.issued_by(&filter, limit).await?.into_iter().map(issuance_message));
            records.sort_by(|one, two| (two.at, &two.id).cmp(&(one.at, &one.id)));
            records.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        Ok(records)
    }
}

/// What a refused RPC would have done; RPCs that change nothing keep their name.
pub(super) fn action_of(rpc: &'static str) -> &'static str {
    match rpc {
        "BatchCreateEntry" => "entry.create",
        "BatchUpdateEntry" => "entry.update",
        "BatchDeleteEntry" => "entry.delete",
        "Registration.ApplyEntries" => "entry.apply",
        "DeleteAgent" => "node.evict",
        "BanAgent" => "node.ban",
        "AttestAgent" => "node.attest",
        "RenewAgent" => "node.renew",
        "CreateJoinToken" => "token.create",
        "BatchNewX509SVID" => "issue.x509",
        "NewJWTSVID" => "issue.jwt",
        "BatchNewWITSVID" => "issue.wit",
        "MintX509SVID" => "issue.mint_x509",
        "MintJWTSVID" => "issue.mint_jwt",
        "MintWITSVID" => "issue.mint_wit",
        "Revocation.Revoke" => "cert.revoke",
        "BatchCreateFederatedBundle" => "bundle.create",
        "BatchUpdateFederatedBundle" => "bundle.update",
        "BatchSetFederatedBundle" => "bundle.set",
        "BatchDeleteFederatedBundle" => "bundle.delete",
        "BatchCreateFederationRelationship" => "federation.create",
        "BatchUpdateFederationRelationship" => "federation.update",
        "BatchDeleteFederationRelationship" => "federation.delete",
        "RefreshBundle" => "bundle.refresh",
        other => other,
    }
}

fn message(record: AuditRecord) -> Message {
    let result = if record.is_refusal() { "refused" } else { "done" };
    Message {
        id: record.id,
        at: record.at,
        actor: record.actor,
        source: record.source,
        action: record.action,
        target: record.target,
        spiffe_id: record.spiffe_id,
        result: result.into(),
        reason: record.reason,
        detail: record.detail,
        times: record.times.unsigned_abs(),
    }
}

/// An issued SVID, as an act of who asked for it.
fn issuance_message(Recorded { issuance, kind }: Recorded) -> Message {
    let millis = issuance.issued_at.unsigned_abs().saturating_mul(1_000);
    Message {
        id: format!("{millis:012x}-{}", issuance.log_index),
        at: issuance.issued_at,
        actor: issuance.caller,
        source: String::new(),
        action: format!("issue.{kind}"),
        target: issuance.serial,
        spiffe_id: issuance.spiffe_id,
        result: "done".into(),
        reason: String::new(),
        detail: if issuance.entry_id.is_empty() { String::new() } else { format!("entry {}", issuance.entry_id) },
        times: 1,
    }
}

/// The most records of one answer.
const RECORDS_MAX: u32 = 1_000;
