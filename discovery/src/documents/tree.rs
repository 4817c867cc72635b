//! A YAML stream as a tree that remembers where every key and value stood.
//!
//! Decoding into a kind's type happens from this tree, so that an unknown field, a wrong type and a semantic fault found
//! much later all point at the same line and column.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// A place in a text: both counted from 1; 0 when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) at: At,
    pub(crate) text: String,
}

/// The text is no YAML, or exceeds a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct SyntaxError {
    pub(crate) at: At,
    pub(crate) text: String,
}

/// All documents of a stream; empty ones are skipped.
pub(crate) fn parse_stream(text: &str) -> Result<Vec<Node>, SyntaxError> {
    if text.len() > TEXT_BYTES_MAX {
        let text = format!("{} bytes, at most {TEXT_BYTES_MAX} are read", text.len());
        return Err(SyntaxError { at: At { line: 1, column: 1 }, text });
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: DEPTH_MAX, max_documents: DOCUMENTS_MAX },
    };
    let documents: Vec<Spanned<Value>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| SyntaxError::of(&error))?;
    Ok(documents.into_iter().map(Node::from).collect())
}

impl SyntaxError {
    fn of(error: &serde_saphyr::Error) -> Self {
        let at = error.location().map(At::from).unwrap_or_default();
        let whole = error.without_snippet().to_string();
        // The place is reported beside the text, not inside it.
        let text = match whole.rfind(" at line ") {
            Some(cut) => whole[..cut].to_owned(),
            None => whole,
        };
        let text = text.lines().next().unwrap_or_default().trim_end_matches(['.', ',', ':']).to_owned();
        Self { at, text }
    }
}

impl Node {
    pub(crate) fn null() -> Self {
        Self { at: At::default(), value: Value::Null }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        self.entry(name).map(|(_, node)| node)
    }

    pub(crate) fn entry(&self, name: &str) -> Option<(&Key, &Self)> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.text == name).map(|(key, node)| (key, node)),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Where `path` (`spec.http[0].match`) stands; of the deepest part that exists.
    pub(crate) fn locate(&self, path: &str) -> At {
        let mut node = self;
        let mut at = self.at;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match (&node.value, step.strip_suffix(']')) {
                (Value::List(items), Some(index)) => {
                    index.parse::<usize>().ok().and_then(|index| items.get(index)).map(|item| (item.at, item))
                }
                (Value::Map(_), None) => node.entry(step).map(|(key, child)| (key.at, child)),
                _ => None,
            };
            let Some((place, child)) = next else { break };
            (at, node) = (place, child);
        }
        match node.value {
            // A scalar is pointed at itself, a collection at its key.
            Value::List(_) | Value::Map(_) | Value::Null => at,
            _ => node.at,
        }
    }

    /// The same content as JSON, for `/config_dump`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::UInt(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(value) => value.as_str().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.text.clone(), node.to_json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::UInt(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

impl From<Location> for At {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { at: spanned.referenced.into(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::UInt(value), Value::Int))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Value>>()? {
            items.push(item.into());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value = map.next_value::<Spanned<Value>>()?;
            entries.push((Key { at: key.referenced.into(), text: key.value }, value.into()));
        }
        Ok(Value::Map(entries))
    }
}

/// Longest text that is read as one stream.
pub(crate) const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
const DEPTH_MAX: usize = 64;
const DOCUMENTS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_key_and_value_knows_its_place() {
        let stream = "a: 1\nb:\n  - x: yes\n    y: '1'\n---\nc: null\n";
        let documents = parse_stream(stream).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].locate("b[0].y"), At { line: 4, column: 8 });
        assert_eq!(documents[0].locate("b[0]"), At { line: 3, column: 5 });
        assert_eq!(documents[0].locate("b[7].nothing"), At { line: 2, column: 1 });
        assert_eq!(documents[1].locate("c"), At { line: 6, column: 1 });
        assert_eq!(documents[0].field("b").unwrap().to_json(), serde_json::json!([{"x": true, "y": "1"}]));
    }

    #[test]
    fn broken_text_is_refused_with_its_place() {
        let error = parse_stream("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.at.line >= 2, "{error:?}");
        let error = parse_stream("a: 1\na: 2\n").unwrap_err();
        assert_eq!(error.at.line, 2, "{error:?}");
    }

    #[test]
    fn limits_hold_at_their_edge() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse_stream(&deep(DEPTH_MAX)).is_ok());
        assert!(parse_stream(&deep(DEPTH_MAX + 1)).is_err());
        let long = format!("a: {}", "x".repeat(TEXT_BYTES_MAX - 3));
        assert!(parse_stream(&long).is_ok());
        assert!(parse_stream(&format!("{long}x")).is_err());
    }
}
