//! The difference between what documents ask for and what the CA has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::spire::api::types::Entry;
use serde_json::{Value, json};

use super::expand::{Desired, meaning};
use super::mark_of;
use crate::ca_client::id_text;
use crate::output;

/// What would be done.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) create: Vec<Entry>,
    pub(crate) update: Vec<Update>,
    /// Carry the mark of a document's owner, and no document asks for them any more.
    pub(crate) delete: Vec<Entry>,
    /// The same, left alone because nobody asked to prune.
    pub(crate) orphaned: Vec<Entry>,
    pub(crate) unchanged: Vec<Entry>,
}

/// An entry that says something else than its document.
#[derive(Debug)]
pub(crate) struct Update {
    /// As it shall be, with the id of the entry that is there.
    pub(crate) entry: Entry,
    pub(crate) changes: Vec<Change>,
}

/// One field that differs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) field: &'static str,
    pub(crate) from: String,
    pub(crate) to: String,
}

impl Plan {
    /// Compares. An entry is found by its marked id, or, where somebody made it by hand, by what it says.
    pub(crate) fn make(desired: Vec<Desired>, existing: &[Entry], owners: &BTreeSet<String>, prune: bool) -> Self {
        let by_id: BTreeMap<&str, &Entry> = existing.iter().map(|entry| (entry.id.as_str(), entry)).collect();
        let by_meaning: BTreeMap<String, &Entry> = existing.iter().map(|entry| (meaning(entry), entry)).collect();
        let (mut plan, mut wanted) = (Self::default(), BTreeSet::new());
        for Desired { entry, .. } in desired {
            let found = by_id.get(entry.id.as_str()).or_else(|| by_meaning.get(&meaning(&entry)));
            let Some(found) = found else {
                plan.create.push(entry);
                continue;
            };
            wanted.insert(found.id.clone());
            let changes = changes(found, &entry);
            let entry = Entry { id: found.id.clone(), ..entry };
            if changes.is_empty() { plan.unchanged.push(entry) } else { plan.update.push(Update { entry, changes }) }
        }
        let marks: Vec<String> = owners.iter().map(|owner| mark_of(owner)).collect();
        let owned = |entry: &&Entry| marks.iter().any(|mark| entry.id.starts_with(mark.as_str()));
        let unwanted = existing.iter().filter(owned).filter(|entry| !wanted.contains(&entry.id)).cloned().collect();
        if prune {
            plan.delete = unwanted;
        } else {
            plan.orphaned = unwanted;
        }
        plan
    }

    /// Whether applying it would change anything.
    pub(crate) fn is_pending(&self) -> bool {
        !(self.create.is_empty() && self.update.is_empty() && self.delete.is_empty())
    }

    pub(crate) fn document(&self) -> Value {
        let briefs = |entries: &[Entry]| entries.iter().map(brief).collect::<Vec<_>>();
        let updates = self.update.iter().map(|Update { entry, changes }| {
            let mut document = brief(entry);
            let change = |change: &Change| (change.field.to_owned(), json!({"from": change.from, "to": change.to}));
            document["changes"] = Value::Object(changes.iter().map(change).collect());
            document
        });
        json!({
            "pending": self.is_pending(),
            "create": briefs(&self.create),
            "update": updates.collect::<Vec<_>>(),
            "delete": briefs(&self.delete),
            "orphaned": briefs(&self.orphaned),
            "unchanged": briefs(&self.unchanged),
        })
    }

    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        for entry in &self.create {
            lines.push(format!("+ create  {}", title(entry)));
            lines.push(format!("            parent {}", id_text(entry.parent_id.as_ref())));
            lines.push(format!("            selectors {}", selectors(entry)));
        }
        for Update { entry, changes } in &self.update {
            lines.push(format!("~ update  {}", title(entry)));
            for Change { field, from, to } in changes {
                lines.push(format!("            {field}: {from} -> {to}"));
            }
        }
        lines.extend(self.delete.iter().map(|entry| format!("- delete  {}", title(entry))));
        lines.extend(
            self.orphaned
                .iter()
                .map(|entry| format!("? no document asks for {} any more; --prune deletes it", title(entry))),
        );
        lines.push(self.summary());
        lines.join("\n")
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "{} to create, {} to update, {} to delete, {} unchanged",
            self.create.len(),
            self.update.len(),
            self.delete.len(),
            self.unchanged.len()
        )
    }
}

fn title(entry: &Entry) -> String {
    format!("{}  {}", entry.id, id_text(entry.spiffe_id.as_ref()))
}

fn brief(entry: &Entry) -> Value {
    json!({
        "id": entry.id,
        "spiffe_id": id_text(entry.spiffe_id.as_ref()),
        "parent_id": id_text(entry.parent_id.as_ref()),
        "selectors": selector_list(entry),
    })
}

fn selector_list(entry: &Entry) -> Vec<String> {
    let texts: BTreeSet<String> = entry.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
    texts.into_iter().collect()
}

fn selectors(entry: &Entry) -> String {
    selector_list(entry).join(", ")
}

/// Every field that an operator can set, as text.
fn fields(entry: &Entry) -> [(&'static str, String); 13] {
    let list = |values: &[String]| values.join(", ");
    let federates: BTreeSet<&str> =
        entry.federates_with.iter().map(|name| name.strip_prefix("spiffe://").unwrap_or(name)).collect();
    let attributes = entry.additional_attributes.unwrap_or_default();
    [
        ("spiffe_id", id_text(entry.spiffe_id.as_ref())),
        ("parent_id", id_text(entry.parent_id.as_ref())),
        ("selectors", selectors(entry)),
        ("x509_svid_ttl", ttl(entry.x509_svid_ttl)),
        ("jwt_svid_ttl", ttl(entry.jwt_svid_ttl)),
        ("dns_names", list(&entry.dns_names)),
        ("federates_with", federates.into_iter().collect::<Vec<_>>().join(", ")),
        ("hint", entry.hint.clone()),
        ("admin", entry.admin.to_string()),
        ("downstream", entry.downstream.to_string()),
        ("store_svid", entry.store_svid.to_string()),
        ("expires_at", crate::verbs::time_text(entry.expires_at)),
        (
            "attributes",
            format!("prefetch {}, jti {}", !attributes.disable_x509_svid_prefetch, attributes.jwt_svid_include_jti),
        ),
    ]
}

fn changes(from: &Entry, to: &Entry) -> Vec<Change> {
    let pairs = fields(from).into_iter().zip(fields(to));
    let differing = pairs.filter(|((_, from), (_, to))| from != to);
    differing.map(|((field, from), (_, to))| Change { field, from, to }).collect()
}

fn ttl(secs: i32) -> String {
    match u64::try_from(secs) {
        Ok(0) | Err(_) => "default".to_owned(),
        Ok(secs) => output::duration(Duration::from_secs(secs)),
    }
}
