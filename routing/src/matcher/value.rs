//! Tests of structured values: the claims of verified tokens and what filters noted about a request.

use std::fmt;

use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use pb::{double_matcher, list_matcher, metadata_matcher::path_segment::Segment, value_matcher::MatchPattern};
use serde_json::Value;

use super::text::StringMatcher;
use crate::config::{At, ConfigError, each, required};
use crate::request::{Metadata, MetadataValue};

/// A test of one JSON value.
#[derive(Clone, Debug)]
pub enum ValueMatcher {
    /// The value is null.
    Null,
    /// The value is a number in this half-open range.
    Range(f64, f64),
    /// The value is exactly this number.
    Number(f64),
    /// The value is a string that passes.
    Text(StringMatcher),
    /// The value is this truth value.
    Bool(bool),
    /// The value is there, or is not.
    Present(bool),
    /// The value is a list with an item that passes.
    OneOf(Box<Self>),
    /// The value passes one of these tests.
    Any(Vec<Self>),
}

impl ValueMatcher {
    pub(crate) fn compile(value: &pb::ValueMatcher) -> Result<Self, ConfigError> {
        Ok(match required(value.match_pattern.as_ref()).at("match_pattern")? {
            MatchPattern::NullMatch(_) => Self::Null,
            MatchPattern::DoubleMatch(number) => Self::compile_number(number).at("double_match")?,
            MatchPattern::StringMatch(text) => Self::Text(StringMatcher::compile(text).at("string_match")?),
            MatchPattern::BoolMatch(value) => Self::Bool(*value),
            MatchPattern::PresentMatch(value) => Self::Present(*value),
            MatchPattern::ListMatch(list) => {
                let list_matcher::MatchPattern::OneOf(item) =
                    required(list.match_pattern.as_ref()).at("list_match.match_pattern")?;
                Self::OneOf(Box::new(Self::compile(item).at("list_match.one_of")?))
            }
            MatchPattern::OrMatch(or) => {
                Self::Any(each("value_matchers", &or.value_matchers, Self::compile).at("or_match")?)
            }
        })
    }

    fn compile_number(value: &pb::DoubleMatcher) -> Result<Self, ConfigError> {
        Ok(match required(value.match_pattern.as_ref()).at("match_pattern")? {
            double_matcher::MatchPattern::Range(range) => Self::Range(range.start, range.end),
            double_matcher::MatchPattern::Exact(value) => Self::Number(*value),
        })
    }

    fn matches(&self, value: Option<MetadataValue<'_>>) -> bool {
        match (self, value) {
            (Self::Any(tests), value) => tests.iter().any(|test| test.matches(value)),
            (Self::Present(expected), value) => *expected == value.is_some(),
            (_, None) => false,
            (Self::OneOf(test), Some(value)) => value.items().any(|item| test.matches(Some(item))),
            (Self::Text(test), Some(value)) => value.as_str().is_some_and(|text| test.matches(text.as_bytes())),
            (_, Some(MetadataValue::Text(_))) => false,
            (_, Some(MetadataValue::Json { value, .. })) => self.matches_scalar(value),
        }
    }

    fn matches_scalar(&self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Bool(expected) => value.as_bool() == Some(*expected),
            Self::Number(expected) => value.as_f64() == Some(*expected),
            Self::Range(start, end) => value.as_f64().is_some_and(|number| (*start..*end).contains(&number)),
            Self::Text(_) | Self::Present(_) | Self::OneOf(_) | Self::Any(_) => false,
        }
    }
}

impl fmt::Display for ValueMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Range(start, end) => write!(f, "{start} to {end}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Present(true) => f.write_str("*"),
            Self::Present(false) => f.write_str("absent"),
            Self::OneOf(item) => write!(f, "{item}"),
            Self::Any(tests) => {
                // A claim is tested as a list and as a text; that reads as one.
                let mut texts: Vec<String> = tests.iter().map(ToString::to_string).collect();
                texts.dedup();
                f.write_str(&texts.join(" or "))
            }
        }
    }
}

/// A test of a value that some filter has noted, found by the filter's name and a path of keys.
#[derive(Clone, Debug)]
pub struct MetadataMatcher {
    filter: Box<str>,
    path: Vec<Box<str>>,
    value: ValueMatcher,
    invert: bool,
}

impl MetadataMatcher {
    pub(crate) fn compile(value: &pb::MetadataMatcher) -> Result<Self, ConfigError> {
        if value.path.is_empty() {
            return Err(ConfigError::new("needs at least one segment").under("path"));
        }
        let path = each("path", &value.path, |segment| {
            let Segment::Key(key) = required(segment.segment.as_ref()).at("segment")?;
            Ok(key.as_str().into())
        })?;
        let test = required(value.value.as_ref()).and_then(ValueMatcher::compile).at("value")?;
        Ok(Self { filter: value.filter.as_str().into(), path, value: test, invert: value.invert })
    }

    /// Whether the noted value passes; a value that is absent passes only a test for absence.
    pub fn matches(&self, metadata: &Metadata) -> bool {
        self.value.matches(metadata.find(&self.filter, &self.path)) != self.invert
    }

    /// What is tested, in words: `claim groups`.
    pub(crate) fn subject(&self) -> String {
        match self.path.split_first() {
            Some((_, claim)) if self.reads_claims() => format!("claim {}", claim.join(".")),
            _ => format!("{} of {}", self.path.join("."), self.filter),
        }
    }

    /// The noted value, as headers and logs show it.
    pub(crate) fn found(&self, metadata: &Metadata) -> Option<String> {
        metadata.find(&self.filter, &self.path).map(MetadataValue::to_text)
    }

    /// The test of the value.
    pub(crate) fn wanted(&self) -> &ValueMatcher {
        &self.value
    }

    /// Whether this test reads the claims of a verified token.
    pub fn reads_claims(&self) -> bool {
        *self.filter == *crate::request::JWT_FILTER
    }

    /// Whether the outcome is turned around.
    pub fn is_inverted(&self) -> bool {
        self.invert
    }
}
