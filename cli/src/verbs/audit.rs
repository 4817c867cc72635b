//! `kasbah audit`: who did what, from where, and what was refused.

use std::time::SystemTime;

use proto::kasbah::ca::v1::audit_client::AuditClient;
use proto::kasbah::ca::v1::{AuditRecord, ListRecordsRequest};
use serde_json::{Value, json};

use super::{ca, time_text, wait};
use crate::args::AuditCommand;
use crate::exit::Failure;
use crate::output;

pub(crate) fn run(command: &AuditCommand) -> Result<(), Failure> {
    let AuditCommand::List { ca: arg, since, actor, action, id, limit, output } = command;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let since = since.map_or(0, |since| now.saturating_sub(since.as_secs()));
    let request = ListRecordsRequest {
        since: i64::try_from(since).unwrap_or(i64::MAX),
        actor: actor.clone().unwrap_or_default(),
        action: action.clone().unwrap_or_default(),
        spiffe_id: id.clone().unwrap_or_default(),
        limit: *limit,
        with_issuance: true,
        ..Default::default()
    };
    let records = wait(async {
        let mut client = AuditClient::new(ca(arg).await?.channel());
        Ok(client.list_records(request).await?.into_inner().records)
    })?;
    let value: Vec<Value> = records.iter().map(document).collect();
    output::print(output.output, &value, || table(&records))
}

fn document(record: &AuditRecord) -> Value {
    json!({
        "id": record.id,
        "time": time_text(record.at),
        "actor": record.actor,
        "source": record.source,
        "action": record.action,
        "target": record.target,
        "spiffe_id": record.spiffe_id,
        "result": record.result,
        "reason": record.reason,
        "detail": record.detail,
        "times": record.times,
    })
}

fn table(records: &[AuditRecord]) -> String {
    let rows = records.iter().map(|record| {
        let result = match record.times {
            0 | 1 => record.result.clone(),
            times => format!("{} {times}x", record.result),
        };
        let target = if record.spiffe_id.is_empty() { record.target.clone() } else { record.spiffe_id.clone() };
        let why = if record.reason.is_empty() { record.detail.clone() } else { record.reason.clone() };
        [time_text(record.at), record.actor.clone(), record.action.clone(), target, result, record.source.clone(), why]
    });
    output::table(["TIME", "ACTOR", "ACTION", "TARGET", "RESULT", "FROM", "WHY"], rows)
}
