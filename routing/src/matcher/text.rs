//! String tests: exact, prefix, suffix, contains and regular expression, with or without regard to ASCII case.

use std::fmt;

use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use pb::string_matcher::MatchPattern;

use super::regex::Regex;
use crate::config::{At, ConfigError, not_supported, required};

/// A test of one string.
#[derive(Clone, Debug)]
pub struct StringMatcher {
    test: Test,
    ignore_case: bool,
}

#[derive(Clone, Debug)]
enum Test {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Contains(Box<str>),
    Regex(Regex),
}

impl StringMatcher {
    /// Matches exactly this text.
    pub fn exact(text: &str) -> Self {
        Self { test: Test::Exact(text.into()), ignore_case: false }
    }

    /// Matches what begins with this text.
    pub fn prefix(text: &str) -> Self {
        Self { test: Test::Prefix(text.into()), ignore_case: false }
    }

    /// Matches what ends with this text.
    pub fn suffix(text: &str) -> Self {
        Self { test: Test::Suffix(text.into()), ignore_case: false }
    }

    /// Matches what holds this text.
    pub fn contains(text: &str) -> Self {
        Self { test: Test::Contains(text.into()), ignore_case: false }
    }

    /// Matches what this expression matches as a whole.
    pub fn regex(regex: Regex) -> Self {
        Self { test: Test::Regex(regex), ignore_case: false }
    }

    /// The same test without regard to ASCII case. A regular expression stays as it is.
    #[must_use]
    pub fn ignoring_case(mut self, ignore_case: bool) -> Self {
        self.ignore_case = ignore_case;
        self
    }

    /// Compiles a matcher of xDS.
    pub fn compile(value: &pb::StringMatcher) -> Result<Self, ConfigError> {
        let matcher = match required(value.match_pattern.as_ref()).at("match_pattern")? {
            MatchPattern::Exact(text) => Self::exact(text),
            MatchPattern::Prefix(text) => Self::prefix(text),
            MatchPattern::Suffix(text) => Self::suffix(text),
            MatchPattern::Contains(text) => Self::contains(text),
            MatchPattern::SafeRegex(regex) => Self::regex(Regex::compile(regex).at("safe_regex")?),
            MatchPattern::Custom(_) => return not_supported("a custom matcher").at("custom"),
        };
        Ok(matcher.ignoring_case(value.ignore_case))
    }

    /// Whether the value passes the test.
    pub fn matches(&self, value: &[u8]) -> bool {
        let fold = self.ignore_case;
        match &self.test {
            Test::Exact(text) => same(value, text.as_bytes(), fold),
            Test::Prefix(text) => value.get(..text.len()).is_some_and(|head| same(head, text.as_bytes(), fold)),
            Test::Suffix(text) => {
                value.len().checked_sub(text.len()).is_some_and(|start| same(&value[start..], text.as_bytes(), fold))
            }
            Test::Contains(text) => contains(value, text.as_bytes(), fold),
            Test::Regex(regex) => regex.matches(value),
        }
    }

    /// The text, if the test is for exactly one.
    pub fn as_exact(&self) -> Option<&str> {
        match &self.test {
            Test::Exact(text) if !self.ignore_case => Some(text),
            _ => None,
        }
    }
}

/// As operators write it: `text`, `begin*`, `*end`, `*part*`, `/expression/`; `*` for whatever is there.
impl fmt::Display for StringMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.test {
            Test::Exact(text) => f.write_str(text),
            Test::Prefix(text) => write!(f, "{text}*"),
            Test::Suffix(text) => write!(f, "*{text}"),
            Test::Contains(text) => write!(f, "*{text}*"),
            Test::Regex(regex) if regex.pattern() == ".+" => f.write_str("*"),
            Test::Regex(regex) => write!(f, "{regex:?}"),
        }
    }
}

fn same(a: &[u8], b: &[u8], fold: bool) -> bool {
    if fold { a.eq_ignore_ascii_case(b) } else { a == b }
}

fn contains(value: &[u8], text: &[u8], fold: bool) -> bool {
    text.is_empty() || value.windows(text.len()).any(|window| same(window, text, fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_every_kind() {
        let matcher = StringMatcher::exact;
        for (matcher, value, expected) in [
            (matcher("a"), "a", true),
            (matcher("a"), "A", false),
            (matcher("a").ignoring_case(true), "A", true),
            (StringMatcher::prefix("/ab"), "/abc", true),
            (StringMatcher::prefix("/ab"), "/a", false),
            (StringMatcher::suffix("bc"), "abc", true),
            (StringMatcher::suffix("abcd"), "bcd", false),
            (StringMatcher::contains("b"), "abc", true),
            (StringMatcher::contains("B").ignoring_case(true), "abc", true),
            (StringMatcher::contains(""), "", true),
            (StringMatcher::regex(Regex::parse("a+").unwrap()), "aaa", true),
            (StringMatcher::regex(Regex::parse("a+").unwrap()), "aab", false),
        ] {
            assert_eq!(matcher.matches(value.as_bytes()), expected, "{matcher:?} on {value}");
        }
    }

    #[test]
    fn an_empty_matcher_is_refused() {
        assert!(StringMatcher::compile(&pb::StringMatcher::default()).is_err());
    }
}
