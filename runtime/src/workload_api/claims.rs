//! Claims as the Workload API carries them, in the form that JSON has.

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde_json::{Map, Value as Json};

/// The claims as one JSON object.
pub(super) fn decode(claims: Struct) -> Json {
    Json::Object(members(claims, DEPTH_MAX))
}

fn members(claims: Struct, depth: usize) -> Map<String, Json> {
    claims.fields.into_iter().map(|(name, value)| (name, value_of(value, depth))).collect()
}

fn value_of(value: Value, depth: usize) -> Json {
    match value.kind {
        Some(Kind::BoolValue(value)) => Json::Bool(value),
        Some(Kind::NumberValue(value)) => number(value),
        Some(Kind::StringValue(value)) => Json::String(value),
        Some(Kind::ListValue(list)) if depth > 0 => {
            Json::Array(list.values.into_iter().map(|value| value_of(value, depth - 1)).collect())
        }
        Some(Kind::StructValue(inner)) if depth > 0 => Json::Object(members(inner, depth - 1)),
        _ => Json::Null,
    }
}

/// Times are whole numbers, which the wire carries as floating point.
#[allow(clippy::cast_possible_truncation, reason = "whole and small enough, as was checked")]
fn number(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < WHOLE_END { Json::from(value as i64) } else { Json::from(value) }
}

/// Claims that lie deeper are left out.
const DEPTH_MAX: usize = 32;
const WHOLE_END: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    use prost_types::ListValue;

    use super::*;

    #[test]
    fn claims_come_out_as_they_went_in_and_the_deepest_are_left_out() {
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
        let list = Value { kind: Some(Kind::ListValue(ListValue { values: vec![text("db")] })) };
        let exp = Value { kind: Some(Kind::NumberValue(1_800_000_000.0)) };
        let claims = Struct { fields: [("aud".into(), list), ("exp".into(), exp), ("sub".into(), text("x"))].into() };
        assert_eq!(decode(claims).to_string(), r#"{"aud":["db"],"exp":1800000000,"sub":"x"}"#);
        let mut deep = text("bottom");
        for _ in 0..=DEPTH_MAX {
            deep = Value { kind: Some(Kind::ListValue(ListValue { values: vec![deep] })) };
        }
        let claims = Struct { fields: [("x".into(), deep)].into() };
        assert!(!decode(claims).to_string().contains("bottom"));
    }
}
