//! Entries of a SPIRE server as a document of ours: from what `spire-server entry show -output json` prints, or from a file
//! for `spire-server entry create -data`. Nothing here talks to a server.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What is to be made of the entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversion {
    /// `owner` of the document.
    pub(crate) owner: String,
    /// Parents under another ID here: theirs → ours.
    pub(crate) parents: BTreeMap<String, String>,
}

/// A document, and what a person should look at before it is applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Converted {
    pub(crate) document: Value,
    pub(crate) notes: Vec<String>,
}

/// Why a text was not converted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    #[error("it is not what `spire-server entry show -output json` prints")]
    Format(#[source] serde_json::Error),
    #[error("it holds more than {ENTRIES_MAX} entries")]
    TooMany,
    #[error("the entry {0} ends at a time that is none")]
    Moment(String),
}

/// Converts what SPIRE printed. Its fields that have no meaning here (revision, time of creation) are left out.
///
/// # Errors
/// When the text is something else.
pub(crate) fn convert(text: &[u8], conversion: &Conversion) -> Result<Converted, ConvertError> {
    let shown: Shown = serde_json::from_slice(text).map_err(ConvertError::Format)?;
    if shown.entries.len() > ENTRIES_MAX {
        return Err(ConvertError::TooMany);
    }
    let mut notes = Notes::default();
    let entries: Vec<Value> =
        shown.entries.iter().map(|entry| entry.convert(conversion, &mut notes)).collect::<Result<_, _>>()?;
    let document = json!({ "kind": "Entries", "owner": conversion.owner, "entries": entries });
    Ok(Converted { document, notes: notes.texts() })
}

#[derive(Debug, Deserialize)]
struct Shown {
    entries: Vec<Theirs>,
}

/// An entry, as protobuf's JSON has it.
#[derive(Debug, Deserialize)]
struct Theirs {
    #[serde(default, alias = "entry_id")]
    id: String,
    spiffe_id: Id,
    parent_id: Id,
    selectors: Vec<Selector>,
    /// Of SPIRE before 1.5, for both kinds of SVIDs.
    #[serde(default)]
    ttl: u32,
    #[serde(default)]
    x509_svid_ttl: u32,
    #[serde(default)]
    jwt_svid_ttl: u32,
    #[serde(default)]
    federates_with: Vec<String>,
    #[serde(default)]
    dns_names: Vec<String>,
    #[serde(default)]
    hint: String,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    downstream: bool,
    #[serde(default)]
    store_svid: bool,
    #[serde(default)]
    expires_at: Seconds,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Id {
    Parts { trust_domain: String, path: String },
    Text(String),
}

#[derive(Debug, Deserialize)]
struct Selector {
    r#type: String,
    value: String,
}

/// A 64-bit number, which protobuf's JSON writes as a text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(i64),
    Text(String),
}

impl Default for Seconds {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Id {
    fn text(&self) -> String {
        match self {
            Self::Parts { trust_domain, path } => format!("spiffe://{trust_domain}{path}"),
            Self::Text(text) => text.clone(),
        }
    }
}

impl Theirs {
    fn convert(&self, conversion: &Conversion, notes: &mut Notes) -> Result<Value, ConvertError> {
        let id = self.spiffe_id.text();
        let theirs = self.parent_id.text();
        let parent = conversion.parents.get(&theirs).unwrap_or(&theirs);
        // Selectors of nodes are found by attestors of nodes, which both servers name alike.
        let of_node = parent.ends_with("/spire/server");
        if parent == &theirs && theirs.contains("/spire/agent/") {
            *notes.parents.entry(theirs.clone()).or_default() += 1;
        }
        if !of_node {
            let unknown = self.selectors.iter().filter(|selector| !WORKLOAD_SELECTORS.contains(&&*selector.r#type));
            notes.selectors.extend(unknown.map(|selector| selector.r#type.clone()));
        }
        let mut fields = Map::new();
        if is_name(&self.id) {
            fields.insert("name".into(), self.id.clone().into());
        }
        fields.insert("spiffe_id".into(), plain(&id).into());
        fields.insert("parent_id".into(), plain(parent).into());
        let selectors = self.selectors.iter().map(|one| Value::from(plain(&format!("{}:{}", one.r#type, one.value))));
        fields.insert("selectors".into(), selectors.collect());
        let life = |own: u32| if own > 0 { own } else { self.ttl };
        for (name, secs) in [("x509_svid_ttl", life(self.x509_svid_ttl)), ("jwt_svid_ttl", life(self.jwt_svid_ttl))] {
            if secs > 0 {
                fields.insert(name.into(), format!("{secs}s").into());
            }
        }
        let domain = |text: &String| Value::from(plain(text.strip_prefix("spiffe://").unwrap_or(text)));
        for (name, texts) in [("dns_names", &self.dns_names), ("federates_with", &self.federates_with)] {
            if !texts.is_empty() {
                fields.insert(name.into(), texts.iter().map(domain).collect());
            }
        }
        if !self.hint.is_empty() {
            fields.insert("hint".into(), plain(&self.hint).into());
        }
        for (name, set) in [("admin", self.admin), ("downstream", self.downstream), ("store_svid", self.store_svid)] {
            if set {
                fields.insert(name.into(), true.into());
            }
        }
        if let Some(moment) = self.ends(&id)? {
            fields.insert("expires_at".into(), moment.into());
        }
        Ok(Value::Object(fields))
    }

    /// RFC 3339.
    fn ends(&self, id: &str) -> Result<Option<String>, ConvertError> {
        let bad = || ConvertError::Moment(id.to_owned());
        let secs = match &self.expires_at {
            Seconds::Number(secs) => *secs,
            Seconds::Text(text) => text.parse().map_err(|_| bad())?,
        };
        if secs == 0 {
            return Ok(None);
        }
        jiff::Timestamp::from_second(secs).map(|moment| Some(moment.to_string())).map_err(|_| bad())
    }
}

/// What a person should look at.
#[derive(Debug, Default)]
struct Notes {
    /// Agents by the IDs that SPIRE gave them, with how many entries each has.
    parents: BTreeMap<String, usize>,
    /// Kinds of selectors that no attestor of ours finds.
    selectors: BTreeSet<String>,
}

impl Notes {
    fn texts(&self) -> Vec<String> {
        let parents = self.parents.iter().map(|(parent, count)| {
            format!("{count} entries belong to the agent {parent}; if it has another ID here, add --parent {parent}=ID")
        });
        let selectors = self
            .selectors
            .iter()
            .map(|kind| format!("no attestor of the agent finds `{kind}:…`; give these workloads other selectors"));
        parents.chain(selectors).collect()
    }
}

/// What the document takes as an entry's name.
fn is_name(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && plain
}

/// A text in which the document sees no placeholder.
fn plain(text: &str) -> String {
    text.replace("${", "$${")
}

/// Kinds of selectors that the agent's attestors find.
const WORKLOAD_SELECTORS: [&str; 6] = ["cgroup", "container", "k8s", "launch", "systemd", "unix"];
const ENTRIES_MAX: usize = 100_000;
const NAME_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use identity::spiffe_id::TrustDomain;

    use super::super::{document, expand::expand};
    use super::*;
    use crate::ca_client::id_text;

    fn conversion(parents: &[(&str, &str)]) -> Conversion {
        let parents = parents.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        Conversion { owner: "spire".into(), parents }
    }

    /// As spire-server 1.x prints it.
    const SHOWN: &str = r#"{"entries":[
        {"id":"0b1c","spiffe_id":{"trust_domain":"example.org","path":"/ns/shop/sa/cart"},
         "parent_id":{"trust_domain":"example.org","path":"/spire/agent/join_token/a1"},
         "selectors":[{"type":"unix","value":"uid:1000"},{"type":"unix","value":"path:/opt/${x}"}],
         "x509_svid_ttl":3600,"federates_with":["spiffe://other.org"],"admin":false,"downstream":false,
         "expires_at":"1893456000","dns_names":["cart.example.org"],"revision_number":"4","store_svid":false,
         "jwt_svid_ttl":0,"hint":"main","created_at":"1700000000"},
        {"id":"0b1d","spiffe_id":{"trust_domain":"example.org","path":"/cluster/prod"},
         "parent_id":{"trust_domain":"example.org","path":"/spire/server"},
         "selectors":[{"type":"k8s_psat","value":"cluster:prod"}],"x509_svid_ttl":0,"federates_with":[],
         "admin":false,"downstream":true,"expires_at":"0","dns_names":[],"revision_number":"0","store_svid":false,
         "jwt_svid_ttl":0,"hint":"","created_at":"1700000000"}],"next_page_token":""}"#;

    #[test]
    fn what_spire_shows_becomes_a_document_that_asks_for_the_same() {
        let theirs = "spiffe://example.org/spire/agent/join_token/a1";
        let converted = convert(SHOWN.as_bytes(), &conversion(&[(theirs, "spiffe://example.org/node/a")])).unwrap();
        assert_eq!(converted.notes, Vec::<String>::new());
        let text = serde_saphyr::to_string(&converted.document).unwrap();
        let documents = document::parse(Path::new("spire.yaml"), &text).unwrap();
        let desired = expand(&documents, &TrustDomain::parse("example.org").unwrap(), &[]).unwrap();
        let [cart, cluster] = desired.as_slice() else { panic!("{desired:?}") };
        let (cart, cluster) = (&cart.entry, &cluster.entry);
        assert_eq!((cart.id.as_str(), cluster.id.as_str()), ("kasbah.spire.0b1c", "kasbah.spire.0b1d"));
        assert_eq!(id_text(cart.spiffe_id.as_ref()), "spiffe://example.org/ns/shop/sa/cart");
        assert_eq!(id_text(cart.parent_id.as_ref()), "spiffe://example.org/node/a");
        let selectors: Vec<&str> = cart.selectors.iter().map(|selector| selector.value.as_str()).collect();
        assert_eq!(selectors, ["uid:1000", "path:/opt/${x}"]);
        assert_eq!((cart.x509_svid_ttl, cart.jwt_svid_ttl, cart.expires_at), (3600, 0, 1_893_456_000));
        assert_eq!(
            (&*cart.federates_with, &*cart.dns_names),
            (&["other.org".to_owned()][..], &["cart.example.org".to_owned()][..])
        );
        assert_eq!((cart.hint.as_str(), cart.downstream, cluster.downstream), ("main", false, true));
        assert_eq!(id_text(cluster.parent_id.as_ref()), "spiffe://example.org/spire/server");
    }

    #[test]
    fn a_file_for_spires_entry_create_is_taken_too() {
        let text = r#"{"entries":[{"selectors":[{"type":"docker","value":"label:a:b"}],
            "spiffe_id":"spiffe://example.org/x","parent_id":"spiffe://example.org/spire/agent/x509pop/f0","ttl":60}]}"#;
        let converted = convert(text.as_bytes(), &conversion(&[])).unwrap();
        let entry = &converted.document["entries"][0];
        assert_eq!((&entry["x509_svid_ttl"], &entry["jwt_svid_ttl"]), (&json!("60s"), &json!("60s")));
        assert!(entry.get("name").is_none(), "{entry}");
        assert_eq!(
            converted.notes,
            [
                "1 entries belong to the agent spiffe://example.org/spire/agent/x509pop/f0; if it has another ID here, \
                 add --parent spiffe://example.org/spire/agent/x509pop/f0=ID",
                "no attestor of the agent finds `docker:…`; give these workloads other selectors",
            ]
        );
    }

    #[test]
    fn anything_else_is_refused_as_a_whole() {
        let one = |more: &str| {
            format!(r#"{{"entries":[{{"selectors":[],"spiffe_id":"spiffe://a/b","parent_id":"spiffe://a/c"{more}}}]}}"#)
        };
        assert!(convert(one("").as_bytes(), &conversion(&[])).is_ok());
        for text in ["", "[]", "{}", r#"{"entries":[{}]}"#, &one(r#","ttl":-1"#), &one(r#","expires_at":true"#)] {
            assert!(matches!(convert(text.as_bytes(), &conversion(&[])), Err(ConvertError::Format(_))), "{text}");
        }
        for moment in [r#""soon""#, r#""99999999999999""#] {
            let text = one(&format!(r#","expires_at":{moment}"#));
            assert!(matches!(convert(text.as_bytes(), &conversion(&[])), Err(ConvertError::Moment(_))), "{text}");
        }
    }
}
