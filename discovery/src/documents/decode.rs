//! Decodes a kind's type from a document's tree, strictly: unknown fields, wrong types and unknown enum values are refused,
//! each with its place, its path and, where one is near, the name that was probably meant.
//!
//! A `null` field counts as absent, as it does for Kubernetes.

use std::fmt;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::tree::{At, Key, Node, Value};

/// What was wrong, before its place is known to be final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    UnknownField { name: String, near: Option<String> },
    MissingField { name: String },
    WrongType { expected: String, found: String },
    UnknownValue { value: String, expected: String },
    Invalid(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DecodeError {
    pub(crate) at: Option<At>,
    /// Outermost step last, while the error travels outwards.
    steps: Vec<String>,
    pub(crate) fault: Fault,
}

pub(crate) fn decode<T: DeserializeOwned>(node: &Node) -> Result<T, DecodeError> {
    T::deserialize(TreeDecoder { node }).map_err(|error| error.at(node.at))
}

impl DecodeError {
    fn new(fault: Fault) -> Self {
        Self { at: None, steps: Vec::new(), fault }
    }

    fn at(mut self, at: At) -> Self {
        self.at.get_or_insert(at);
        self
    }

    fn within(mut self, step: String) -> Self {
        self.steps.push(step);
        self
    }

    pub(crate) fn path(&self) -> String {
        let mut path = String::new();
        for step in self.steps.iter().rev() {
            if !path.is_empty() && !step.starts_with('[') {
                path.push('.');
            }
            path.push_str(step);
        }
        path
    }

    pub(crate) fn reason(&self) -> &'static str {
        match self.fault {
            Fault::UnknownField { .. } => "FIELD_UNKNOWN",
            Fault::MissingField { .. } => "FIELD_MISSING",
            Fault::WrongType { .. } => "TYPE_WRONG",
            Fault::UnknownValue { .. } => "VALUE_UNKNOWN",
            Fault::Invalid(_) => "VALUE_INVALID",
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        match &self.fault {
            Fault::UnknownField { name, near: Some(near) } => write!(f, "unknown field `{name}`; is `{near}` meant?"),
            Fault::UnknownField { name, near: None } => write!(f, "unknown field `{name}`"),
            Fault::MissingField { name } => write!(f, "field `{name}` is required"),
            Fault::WrongType { expected, found } => write!(f, "{found} found, {expected} expected"),
            Fault::UnknownValue { value, expected } => write!(f, "unknown value `{value}`, expected {expected}"),
            Fault::Invalid(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::new(Fault::Invalid(text.to_string()))
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Fault::WrongType { expected: expected.to_string(), found: unexpected.to_string() })
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Fault::Invalid(format!("{unexpected} is out of range, {expected} expected")))
    }

    fn unknown_variant(value: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Fault::UnknownValue { value: value.to_owned(), expected: expected.join(", ") })
    }

    fn unknown_field(name: &str, expected: &'static [&'static str]) -> Self {
        let near = nearest(name, expected).map(str::to_owned);
        Self::new(Fault::UnknownField { name: name.to_owned(), near })
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(Fault::MissingField { name: name.to_owned() })
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::new(Fault::Invalid(format!("field `{name}` is given twice")))
    }
}

/// The candidate with the least edits, if it is near enough to be a typing error.
pub(crate) fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let (distance, near) = candidates.iter().map(|candidate| (edits(name, candidate), *candidate)).min()?;
    (distance <= 1 + name.len() / 4).then_some(near)
}

fn edits(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().take(NAME_COMPARED_MAX).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[derive(Clone, Copy)]
struct TreeDecoder<'a> {
    node: &'a Node,
}

impl TreeDecoder<'_> {
    fn wrong(&self, expected: &dyn de::Expected) -> DecodeError {
        let hint = match self.node.value {
            Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_)
                if expected.to_string().contains("string") =>
            {
                " (put it in quotes)"
            }
            _ => "",
        };
        let found = self.node.type_name().to_owned();
        DecodeError::new(Fault::WrongType { expected: format!("{expected}{hint}"), found }).at(self.node.at)
    }
}

impl<'de> Deserializer<'de> for TreeDecoder<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let at = self.node.at;
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::UInt(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::List(items) => visitor.visit_seq(ListAccess { items, index: 0 }),
            Value::Map(entries) => visitor.visit_map(FieldAccess { entries, index: 0, skip_null: false }),
        }
        .map_err(|error| error.at(at))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Map(entries) => visitor
                .visit_map(FieldAccess { entries, index: 0, skip_null: true })
                .map_err(|error| error.at(self.node.at)),
            _ => Err(self.wrong(&"a mapping")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Map(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong(&"a mapping")),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::List(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong(&"a list")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Text(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong(&"a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Bool(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong(&"true or false")),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Int(_) | Value::UInt(_) | Value::Float(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong(&"a number")),
        }
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Int(_) | Value::UInt(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong(&"an integer")),
        }
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_u32(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_u32(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_u32(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_u32(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Text(text) => {
                visitor.visit_enum(VariantName { text }).map_err(|error: DecodeError| error.at(self.node.at))
            }
            _ => Err(self.wrong(&format!("one of {}", variants.join(", ")).as_str())),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct ListAccess<'a> {
    items: &'a [Node],
    index: usize,
}

impl<'de> SeqAccess<'de> for ListAccess<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        let Some(node) = self.items.get(self.index) else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        let located = |error: DecodeError| error.at(node.at).within(format!("[{index}]"));
        seed.deserialize(TreeDecoder { node }).map(Some).map_err(located)
    }
}

struct FieldAccess<'a> {
    entries: &'a [(Key, Node)],
    index: usize,
    skip_null: bool,
}

impl<'de> MapAccess<'de> for FieldAccess<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        while self.skip_null && self.entries.get(self.index).is_some_and(|(_, node)| node.value == Value::Null) {
            self.index += 1;
        }
        let Some((key, _)) = self.entries.get(self.index) else { return Ok(None) };
        let text: StrDeserializer<'_, DecodeError> = key.text.as_str().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|error| error.at(key.at))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let (key, node) = &self.entries[self.index];
        self.index += 1;
        seed.deserialize(TreeDecoder { node }).map_err(|error| error.at(node.at).within(key.text.clone()))
    }
}

struct VariantName<'a> {
    text: &'a str,
}

impl<'de> EnumAccess<'de> for VariantName<'_> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), DecodeError> {
        let name: StringDeserializer<DecodeError> = self.text.to_owned().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for VariantName<'_> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, DecodeError> {
        Err(de::Error::custom("a plain name is expected"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, DecodeError> {
        Err(de::Error::custom("a plain name is expected"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, DecodeError> {
        Err(de::Error::custom("a plain name is expected"))
    }
}

const NAME_COMPARED_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::super::tree::parse_stream;
    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Sample {
        host_name: String,
        ports: Vec<Port>,
        labels: BTreeMap<String, String>,
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Port {
        number: u16,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    enum Mode {
        #[serde(rename = "STRICT")]
        Strict,
    }

    fn check(text: &str, expected: &str) {
        let node = parse_stream(text).unwrap().remove(0);
        let error = decode::<Sample>(&node).unwrap_err();
        let at = error.at.unwrap();
        assert_eq!(format!("{}:{} {}: {error}", at.line, at.column, error.reason()), expected);
    }

    #[test]
    fn good_documents_decode_and_null_means_absent() {
        let node =
            parse_stream("hostName: a\nports: [{number: 80}]\nlabels: {8080: x}\nmode: STRICT").unwrap().remove(0);
        let sample: Sample = decode(&node).unwrap();
        assert_eq!(sample.ports, [Port { number: 80 }]);
        assert_eq!(sample.labels["8080"], "x");
        let node = parse_stream("hostName: a\nports:\nlabels: ~").unwrap().remove(0);
        assert_eq!(decode::<Sample>(&node).unwrap().ports, []);
    }

    #[test]
    fn faults_name_place_path_and_remedy() {
        check("hostNme: a", "1:1 FIELD_UNKNOWN: unknown field `hostNme`; is `hostName` meant?");
        check("hostName: a\nzzz: 1", "2:1 FIELD_UNKNOWN: unknown field `zzz`");
        check("ports:\n- number: http", "2:11 TYPE_WRONG: ports[0].number: a string found, an integer expected");
        check("ports:\n- {}", "2:3 FIELD_MISSING: ports[0]: field `number` is required");
        check(
            "ports: [{number: 70000}]",
            "1:18 VALUE_INVALID: ports[0].number: integer `70000` is out of range, u16 expected",
        );
        check("labels: {a: 1}", "1:13 TYPE_WRONG: labels.a: an integer found, a string (put it in quotes) expected");
        check("mode: strict", "1:7 VALUE_UNKNOWN: mode: unknown value `strict`, expected STRICT");
        check("ports: {}", "1:8 TYPE_WRONG: ports: a mapping found, a list expected");
    }
}
