//! From documents to the entries they ask for.

use std::collections::BTreeMap;

use identity::digest;
use identity::spiffe_id::{SpiffeId, TrustDomain};
use proto::spire::api::types::{Agent, Entry, Selector, Spiffeid, entry::AdditionalAttributes};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::document::{Document, NodeMatch, RawEntry};
use super::template::{Slot, Values, fill};
use super::{Place, Problem, mark_of};
use crate::ca_client::{id_text, to_id_message};

/// An entry that a document asks for.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    /// With its marked id.
    pub(crate) entry: Entry,
    pub(crate) at: Place,
}

/// Everything that the documents ask for; all problems at once.
pub(crate) fn expand(
    documents: &[Document],
    trust_domain: &TrustDomain,
    nodes: &[Agent],
) -> Result<Vec<Desired>, Vec<Problem>> {
    let (mut desired, mut problems) = (Vec::new(), Vec::new());
    for document in documents {
        let mut values = Values::default();
        values.set("trust_domain", trust_domain.as_str());
        for (name, value) in &document.vars {
            values.set(format!("var.{name}"), value);
        }
        for raw in &document.entries {
            let maker = Maker { document, raw: &raw.value, at: document.at(raw.referenced) };
            match maker.make_all(&values, nodes) {
                Ok(made) => desired.extend(made),
                Err(problem) => problems.push(problem),
            }
        }
    }
    problems.extend(doubles(&desired));
    if desired.len() > ENTRIES_MAX {
        let at = desired[ENTRIES_MAX].at.clone();
        problems.push(Problem { at, text: format!("more than {ENTRIES_MAX} entries") });
    }
    if problems.is_empty() { Ok(desired) } else { Err(problems) }
}

/// What tells whether two entries say the same: identity, parent and selectors.
pub(crate) fn meaning(entry: &Entry) -> String {
    let mut selectors: Vec<String> =
        entry.selectors.iter().map(|selector| format!("{}:{}", selector.r#type, selector.value)).collect();
    selectors.sort();
    selectors.dedup();
    format!("{}\n{}\n{}", id_text(entry.spiffe_id.as_ref()), id_text(entry.parent_id.as_ref()), selectors.join("\n"))
}

fn doubles(desired: &[Desired]) -> Vec<Problem> {
    let (mut ids, mut meanings) = (BTreeMap::new(), BTreeMap::new());
    let mut problems = Vec::new();
    for one in desired {
        if let Some(first) = ids.insert(one.entry.id.clone(), &one.at) {
            problems.push(Problem::new(&one.at, format!("the name of {} is taken at {first}", one.entry.id)));
        } else if let Some(first) = meanings.insert(meaning(&one.entry), &one.at) {
            problems.push(Problem::new(&one.at, format!("says the same as the entry at {first}")));
        }
    }
    problems
}

struct Maker<'a> {
    document: &'a Document,
    raw: &'a RawEntry,
    at: Place,
}

impl Maker<'_> {
    fn make_all(&self, values: &Values, nodes: &[Agent]) -> Result<Vec<Desired>, Problem> {
        match (&self.raw.for_each, &self.raw.for_each_node) {
            (None, None) => Ok(vec![self.make(values)?]),
            (Some(_), Some(_)) => Err(Problem::new(&self.at, "for_each and for_each_node exclude each other")),
            (Some(items), None) => self.for_each(items, values),
            (None, Some(which)) => self.for_each_node(&which.value, values, nodes),
        }
    }

    fn for_each(&self, items: &Spanned<Vec<Value>>, values: &Values) -> Result<Vec<Desired>, Problem> {
        let each = |item: &Value| {
            let mut values = values.clone();
            match item {
                Value::Object(fields) => {
                    for (name, value) in fields {
                        values.set(format!("each.{name}"), self.scalar(value, items)?);
                    }
                }
                scalar => values.set("each.value", self.scalar(scalar, items)?),
            }
            self.make(&values)
        };
        items.value.iter().map(each).collect()
    }

    fn scalar(&self, value: &Value, items: &Spanned<Vec<Value>>) -> Result<String, Problem> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                let at = self.document.at(items.referenced);
                Err(Problem::new(&at, "for_each takes values, or mappings of names to values"))
            }
        }
    }

    fn for_each_node(&self, which: &NodeMatch, values: &Values, nodes: &[Agent]) -> Result<Vec<Desired>, Problem> {
        let matching = nodes.iter().filter(|node| matches(which, node));
        let each = |node: &Agent| {
            let mut values = values.clone();
            let id = id_text(node.id.as_ref());
            values.set("node.name", id.rsplit('/').next().unwrap_or_default());
            values.set("node.id", id);
            values.set("node.attestation_type", &node.attestation_type);
            values.set_node_selectors(node.selectors.iter().map(|s| (s.r#type.clone(), s.value.clone())).collect());
            self.make(&values).map_err(|problem| {
                let text = format!("{} (for the node {})", problem.text, id_text(node.id.as_ref()));
                Problem { text, ..problem }
            })
        };
        matching.map(each).collect()
    }

    fn make(&self, values: &Values) -> Result<Desired, Problem> {
        let (raw, defaults) = (self.raw, &self.document.defaults);
        let parent = raw.parent_id.as_ref().or(defaults.parent_id.as_ref());
        let parent = parent.ok_or_else(|| Problem::new(&self.at, "parent_id is missing, here and in defaults"))?;
        let federates = raw.federates_with.as_ref().unwrap_or(&defaults.federates_with);
        let mut entry = Entry {
            spiffe_id: Some(self.id(&raw.spiffe_id, Slot::Id, values)?),
            parent_id: Some(self.id(parent, Slot::Parent, values)?),
            selectors: raw.selectors.iter().map(|text| self.selector(text, values)).collect::<Result<_, _>>()?,
            x509_svid_ttl: self.ttl(raw.x509_svid_ttl.as_ref().or(defaults.x509_svid_ttl.as_ref()), values)?,
            jwt_svid_ttl: self.ttl(raw.jwt_svid_ttl.as_ref().or(defaults.jwt_svid_ttl.as_ref()), values)?,
            dns_names: self.fill_all(&raw.dns_names, Slot::DnsName, values)?,
            federates_with: self.fill_all(federates, Slot::DnsName, values)?,
            hint: raw.hint.as_ref().map_or(Ok(String::new()), |hint| self.fill(hint, Slot::Text, values))?,
            admin: raw.admin,
            downstream: raw.downstream,
            store_svid: raw.store_svid,
            expires_at: self.moment(values)?,
            ..Entry::default()
        };
        if entry.selectors.is_empty() {
            return Err(Problem::new(&self.at, "selectors must name at least one"));
        }
        let attributes = AdditionalAttributes {
            disable_x509_svid_prefetch: !raw.x509_svid_prefetch,
            jwt_svid_include_jti: raw.jwt_svid_jti,
        };
        entry.additional_attributes = (!raw.x509_svid_prefetch || raw.jwt_svid_jti).then_some(attributes);
        entry.id = self.marked_id(&entry, values)?;
        Ok(Desired { entry, at: self.at.clone() })
    }

    fn marked_id(&self, entry: &Entry, values: &Values) -> Result<String, Problem> {
        let name = match &self.raw.name {
            Some(name) => {
                let text = self.fill(name, Slot::Name, values)?;
                let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
                if text.is_empty() || text.len() > NAME_BYTES_MAX || !plain {
                    let text = format!(
                        "the name `{text}` may hold at most {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores"
                    );
                    return Err(Problem::new(&self.document.at(name.referenced), text));
                }
                text
            }
            None => digest::hex(&digest::sha256(meaning(entry).as_bytes()))[..UNNAMED_LEN].to_owned(),
        };
        Ok(format!("{}{name}", mark_of(&self.document.owner.value)))
    }

    fn fill(&self, text: &Spanned<String>, slot: Slot, values: &Values) -> Result<String, Problem> {
        fill(&text.value, slot, values).map_err(|problem| Problem::new(&self.document.at(text.referenced), problem))
    }

    fn fill_all(&self, texts: &[Spanned<String>], slot: Slot, values: &Values) -> Result<Vec<String>, Problem> {
        texts.iter().map(|text| self.fill(text, slot, values)).collect()
    }

    /// The rules of SPIFFE IDs are checked after the expansion, on the whole.
    fn id(&self, text: &Spanned<String>, slot: Slot, values: &Values) -> Result<Spiffeid, Problem> {
        let filled = self.fill(text, slot, values)?;
        let id = SpiffeId::parse(&filled).map_err(|error| {
            Problem::new(&self.document.at(text.referenced), format!("`{filled}` is no SPIFFE ID: {error}"))
        })?;
        Ok(to_id_message(&id))
    }

    fn selector(&self, text: &Spanned<String>, values: &Values) -> Result<Selector, Problem> {
        let filled = self.fill(text, Slot::Selector, values)?;
        match filled.split_once(':') {
            Some((kind, value)) if !kind.is_empty() && !value.is_empty() => {
                Ok(Selector { r#type: kind.to_owned(), value: value.to_owned() })
            }
            _ => {
                let text_ = format!("`{filled}` is no selector; write TYPE:VALUE, such as unix:uid:1000");
                Err(Problem::new(&self.document.at(text.referenced), text_))
            }
        }
    }

    fn ttl(&self, text: Option<&Spanned<String>>, values: &Values) -> Result<i32, Problem> {
        let Some(text) = text else { return Ok(0) };
        let filled = self.fill(text, Slot::Text, values)?;
        let secs = humantime::parse_duration(&filled).ok().map(|ttl| ttl.as_secs()).filter(|secs| *secs > 0);
        secs.and_then(|secs| i32::try_from(secs).ok()).ok_or_else(|| {
            let problem = format!("`{filled}` is no life; write 20s, 10m or 1h30m");
            Problem::new(&self.document.at(text.referenced), problem)
        })
    }

    fn moment(&self, values: &Values) -> Result<i64, Problem> {
        let Some(text) = &self.raw.expires_at else { return Ok(0) };
        let filled = self.fill(text, Slot::Text, values)?;
        let moment: Option<jiff::Timestamp> = filled.parse().ok();
        moment.map(jiff::Timestamp::as_second).filter(|secs| *secs > 0).ok_or_else(|| {
            let problem = format!("`{filled}` is no time; write 2027-01-31T12:00:00Z");
            Problem::new(&self.document.at(text.referenced), problem)
        })
    }
}

fn matches(which: &NodeMatch, node: &Agent) -> bool {
    let has = |wanted: &String| node.selectors.iter().any(|s| format!("{}:{}", s.r#type, s.value) == *wanted);
    !node.banned
        && which.attestation_type.as_ref().is_none_or(|kind| *kind == node.attestation_type)
        && which.selectors.iter().all(has)
}

const ENTRIES_MAX: usize = 100_000;
const NAME_BYTES_MAX: usize = 128;
const UNNAMED_LEN: usize = 24;
