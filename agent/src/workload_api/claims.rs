//! Verified claims in the form the Workload API gives them.

use identity::jwt::VerifiedClaims;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;

/// The claims of a verified JWT-SVID; of a foreign trust domain only those that every JWT-SVID has, because the rest means
/// something only there. `aud` is always a list.
pub(super) fn encode(claims: &VerifiedClaims, own: bool) -> Struct {
    let shown = claims.claims().iter().filter(|(name, _)| own || STANDARD.contains(&name.as_str()));
    let mut fields: std::collections::BTreeMap<String, Value> =
        shown.map(|(name, value)| (name.clone(), encode_value(value))).collect();
    let audiences = claims.audiences().iter().map(|name| text(name)).collect();
    fields.insert("aud".into(), Value { kind: Some(Kind::ListValue(ListValue { values: audiences })) });
    Struct { fields }
}

fn encode_value(value: &Json) -> Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(encode_value).collect() }),
        Json::Object(members) => Kind::StructValue(Struct {
            fields: members.iter().map(|(name, value)| (name.clone(), encode_value(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

const STANDARD: &[&str] = &["sub", "exp", "aud"];
