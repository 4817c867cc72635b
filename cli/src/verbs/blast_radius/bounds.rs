//! Policies as they are at least and at most: what only a request can tell is read once in the caller's favour and once
//! against. What an identity decides (`principals`, `namespaces` and their opposites) stays as it is.

use serde_json::{Map, Value};

/// What is allowed to somebody who can send any request: unknown conditions of ALLOW hold, those of DENY do not.
pub(super) fn generous(documents: &[Value]) -> String {
    written(documents, true)
}

/// What is allowed whatever the request is like.
pub(super) fn strict(documents: &[Value]) -> String {
    written(documents, false)
}

/// One JSON document after the other, which is YAML, too.
fn written(documents: &[Value], generous: bool) -> String {
    let read: Vec<String> =
        documents.iter().filter_map(|one| bounded(one, generous)).map(|one| one.to_string()).collect();
    read.join("\n---\n")
}

fn bounded(document: &Value, generous: bool) -> Option<Value> {
    if document["kind"] != "AuthorizationPolicy" {
        return Some(document.clone());
    }
    let mut document = document.clone();
    let spec = document.get_mut("spec")?.as_object_mut()?;
    let action = spec.get("action").and_then(Value::as_str).unwrap_or("ALLOW").to_owned();
    match action.as_str() {
        "AUDIT" => return None,
        // A service is asked, and nobody knows what it says.
        "CUSTOM" if generous => return None,
        "CUSTOM" => {
            spec.insert("action".to_owned(), "DENY".into());
            spec.remove("provider");
        }
        _ => {}
    }
    // A condition that is left out widens a rule; a rule that is left out narrows a policy.
    let widen = (action == "ALLOW") == generous;
    if let Some(Value::Array(rules)) = spec.remove("rules") {
        let rules: Vec<Value> = rules.iter().filter_map(|rule| self::rule(rule.as_object(), widen)).collect();
        // Without rules ALLOW closes, and the others do nothing.
        if rules.is_empty() && action != "ALLOW" {
            return None;
        }
        if !rules.is_empty() {
            spec.insert("rules".to_owned(), Value::Array(rules));
        }
    }
    Some(document)
}

/// A rule without what cannot be known, or `None` when it is not to count.
fn rule(rule: Option<&Map<String, Value>>, widen: bool) -> Option<Value> {
    let Some(rule) = rule else { return widen.then(|| Value::Object(Map::new())) };
    let asks = |name: &str| rule.get(name).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if !widen && (asks("to") || asks("when")) {
        return None;
    }
    let mut kept = Map::new();
    if let Some(Value::Array(from)) = rule.get("from").filter(|_| asks("from")) {
        let sources: Option<Vec<Value>> =
            from.iter().filter_map(|one| source(one, widen)).map(Known::into_value).collect();
        // `None`: one of them holds for everybody.
        if let Some(sources) = sources {
            if sources.is_empty() {
                return None;
            }
            kept.insert("from".to_owned(), Value::Array(sources));
        }
    }
    Some(Value::Object(kept))
}

/// What is left of a source.
enum Known {
    Everybody,
    Some(Value),
}

impl Known {
    fn into_value(self) -> Option<Value> {
        match self {
            Self::Everybody => None,
            Self::Some(value) => Some(value),
        }
    }
}

fn source(from: &Value, widen: bool) -> Option<Known> {
    let source = from.get("source").and_then(Value::as_object)?;
    let (known, unknown): (Vec<_>, Vec<_>) = source.iter().partition(|(name, _)| BY_IDENTITY.contains(&name.as_str()));
    if !widen && !unknown.is_empty() {
        return None;
    }
    if known.is_empty() {
        return Some(Known::Everybody);
    }
    let known: Map<String, Value> = known.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    Some(Known::Some(serde_json::json!({ "source": known })))
}

/// What the SPIFFE ID alone decides.
const BY_IDENTITY: &[&str] =
    &["principals", "notPrincipals", "namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts"];
