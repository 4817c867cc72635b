//! `kasbah entry`: which selectors get which SPIFFE ID.

use std::time::Duration;

use proto::spire::api::types::Entry;
use serde_json::{Value, json};

use super::{ca, registration, time_text, wait};
use crate::args::{EntryArgs, EntryCommand};
use crate::ca_client::{EntryFilter, EntrySpec, id_text};
use crate::exit::Failure;
use crate::output::{self, Format};

pub(crate) fn run(command: &EntryCommand) -> Result<(), Failure> {
    wait(dispatch(command))
}

async fn dispatch(command: &EntryCommand) -> Result<(), Failure> {
    match command {
        EntryCommand::Create { ca: arg, entry, output } => {
            let created = ca(arg).await?.create_entry(&spec(entry)).await?;
            print_one(output.output, &created, || created.id.clone())
        }
        EntryCommand::Update { ca: arg, id, entry, output } => {
            let updated = ca(arg).await?.update_entry(id, &spec(entry)).await?;
            print_one(output.output, &updated, || updated.id.clone())
        }
        EntryCommand::Plan { documents, exit_code } => registration::plan(documents, *exit_code).await,
        EntryCommand::Apply { documents } => registration::apply(documents).await,
        EntryCommand::Convert { spire, owner, parents } => registration::convert(spire.as_deref(), owner, parents),
        EntryCommand::Explain { ca, selectors, parent, spiffe_id, output } => {
            registration::explain_verb(ca, selectors, parent.as_deref(), spiffe_id.as_deref(), output.output).await
        }
        EntryCommand::List { ca: arg, spiffe_id, parent_id, selectors, hint, federates_with, downstream, output } => {
            let filter = EntryFilter {
                spiffe_id: spiffe_id.as_deref(),
                parent_id: parent_id.as_deref(),
                selectors,
                hint: hint.as_deref(),
                federates_with,
                downstream: *downstream,
            };
            let entries = ca(arg).await?.list_entries(&filter).await?;
            let value: Vec<Value> = entries.iter().map(document).collect();
            output::print(output.output, &value, || table(&entries))
        }
        EntryCommand::Show { ca: arg, id, output } => {
            let entry = ca(arg).await?.entry(id).await?;
            print_one(output.output, &entry, || table(std::slice::from_ref(&entry)))
        }
        EntryCommand::Delete { ca: arg, id } => {
            ca(arg).await?.delete_entry(id).await?;
            output::message(&format!("deleted {id}"));
            Ok(())
        }
    }
}

fn print_one(format: Format, entry: &Entry, table: impl FnOnce() -> String) -> Result<(), Failure> {
    output::print(format, &document(entry), table)
}

fn spec(args: &EntryArgs) -> EntrySpec {
    EntrySpec {
        spiffe_id: args.spiffe_id.clone(),
        parent_id: args.parent_id.clone(),
        selectors: args.selectors.clone(),
        x509_svid_ttl: secs(args.x509_svid_ttl),
        jwt_svid_ttl: secs(args.jwt_svid_ttl),
        dns_names: args.dns_names.clone(),
        federates_with: args.federates_with.clone(),
        hint: args.hint.clone(),
        admin: args.admin,
        downstream: args.downstream,
        store_svid: args.store_svid,
        expires_at: args.expires_at.unwrap_or_default(),
    }
}

fn secs(ttl: Option<Duration>) -> i32 {
    ttl.map_or(0, |ttl| i32::try_from(ttl.as_secs().max(1)).unwrap_or(i32::MAX))
}

fn document(entry: &Entry) -> Value {
    json!({
        "id": entry.id,
        "spiffe_id": id_text(entry.spiffe_id.as_ref()),
        "parent_id": id_text(entry.parent_id.as_ref()),
        "selectors": selectors(entry),
        "x509_svid_ttl": ttl_text(entry.x509_svid_ttl),
        "jwt_svid_ttl": ttl_text(entry.jwt_svid_ttl),
        "dns_names": entry.dns_names,
        "federates_with": entry.federates_with,
        "hint": entry.hint,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "store_svid": entry.store_svid,
        "x509_svid_prefetch": !entry.additional_attributes.is_some_and(|more| more.disable_x509_svid_prefetch),
        "jwt_svid_jti": entry.additional_attributes.is_some_and(|more| more.jwt_svid_include_jti),
        "revision": entry.revision_number,
        "created_at": time_text(entry.created_at),
        "expires_at": time_text(entry.expires_at),
    })
}

fn selectors(entry: &Entry) -> Vec<String> {
    entry.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect()
}

fn ttl_text(secs: i32) -> String {
    match u64::try_from(secs) {
        Ok(0) | Err(_) => "default".to_owned(),
        Ok(secs) => output::duration(Duration::from_secs(secs)),
    }
}

fn table(entries: &[Entry]) -> String {
    let rows = entries.iter().map(|entry| {
        [
            entry.id.clone(),
            id_text(entry.spiffe_id.as_ref()),
            id_text(entry.parent_id.as_ref()),
            selectors(entry).join(","),
            ttl_text(entry.x509_svid_ttl),
        ]
    });
    output::table(["ID", "SPIFFE ID", "PARENT", "SELECTORS", "X509 TTL"], rows)
}
