//! Regular expressions of operators: RE2 syntax, linear time, bounded size.

use std::fmt;

use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use regex_automata::{meta, util::syntax};

use crate::config::{At, ConfigError, required};

/// A regular expression that must match a whole value.
#[derive(Clone)]
pub struct Regex {
    pattern: Box<str>,
    program: meta::Regex,
}

impl Regex {
    /// Compiles a pattern within the limits of this crate.
    pub fn parse(pattern: &str) -> Result<Self, ConfigError> {
        check_alone(pattern)?;
        let program = build(&format!(r"\A(?:{pattern})\z"))?;
        Ok(Self { pattern: pattern.into(), program })
    }

    pub(crate) fn compile(value: &pb::RegexMatcher) -> Result<Self, ConfigError> {
        Self::parse(&value.regex).at("regex")
    }

    /// Whether the whole value matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.program.is_match(value)
    }

    /// The expression as it was written.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.pattern)
    }
}

/// Replaces every match of a pattern; `\1` in the replacement stands for the first group.
#[derive(Clone)]
pub struct Substitution {
    pattern: Box<str>,
    program: meta::Regex,
    replacement: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(Box<str>),
    Group(usize),
}

impl Substitution {
    pub(crate) fn compile(value: &pb::RegexMatchAndSubstitute) -> Result<Self, ConfigError> {
        let pattern = &required(value.pattern.as_ref()).at("pattern")?.regex;
        check_alone(pattern).at("pattern.regex")?;
        let program = build(pattern).at("pattern.regex")?;
        let replacement = parse_replacement(&value.substitution, program.captures_len()).at("substitution")?;
        Ok(Self { pattern: pattern.as_str().into(), program, replacement })
    }

    /// The value with every match replaced.
    pub fn apply(&self, value: &str) -> String {
        let mut out = String::with_capacity(value.len());
        let mut last = 0;
        for captures in self.program.captures_iter(value) {
            let Some(whole) = captures.get_match() else { continue };
            out.push_str(&value[last..whole.start()]);
            for piece in &self.replacement {
                match piece {
                    Piece::Text(text) => out.push_str(text),
                    Piece::Group(group) => {
                        out.push_str(captures.get_group(*group).map_or("", |span| &value[span.range()]));
                    }
                }
            }
            last = whole.end();
        }
        out.push_str(&value[last..]);
        out
    }
}

impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/ -> {:?}", self.pattern, self.replacement)
    }
}

fn parse_replacement(text: &str, groups: usize) -> Result<Vec<Piece>, ConfigError> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            literal.push(c);
            continue;
        }
        match chars.next() {
            Some('\\') => literal.push('\\'),
            Some(digit) if digit.is_ascii_digit() => {
                let group = digit as usize - '0' as usize;
                if group >= groups {
                    return Err(ConfigError::new(format!("the pattern has no group {group}")));
                }
                if !literal.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut literal).into()));
                }
                pieces.push(Piece::Group(group));
            }
            _ => return Err(ConfigError::new("a backslash must be followed by a digit or a backslash")),
        }
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal.into()));
    }
    Ok(pieces)
}

/// Parses the pattern by itself first, so that nothing in it can escape from the anchors put around it.
fn check_alone(pattern: &str) -> Result<(), ConfigError> {
    if pattern.len() > REGEX_BYTES_MAX {
        return Err(ConfigError::new(format!("a regular expression has at most {REGEX_BYTES_MAX} bytes")));
    }
    match syntax::parse(pattern) {
        Ok(_) => Ok(()),
        Err(error) => Err(ConfigError::new(format!("is not a regular expression: {error}"))),
    }
}

fn build(pattern: &str) -> Result<meta::Regex, ConfigError> {
    let config = meta::Config::new()
        .nfa_size_limit(Some(REGEX_PROGRAM_BYTES_MAX))
        .onepass_size_limit(Some(REGEX_PROGRAM_BYTES_MAX))
        .hybrid_cache_capacity(REGEX_CACHE_BYTES_MAX);
    meta::Builder::new()
        .configure(config)
        .build(pattern)
        .map_err(|error| ConfigError::new(format!("the regular expression is too large: {error}")))
}

/// The longest pattern.
pub(crate) const REGEX_BYTES_MAX: usize = 4096;
/// The largest compiled program.
pub(crate) const REGEX_PROGRAM_BYTES_MAX: usize = 1 << 20;
const REGEX_CACHE_BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn substitution(pattern: &str, replacement: &str) -> Result<Substitution, ConfigError> {
        Substitution::compile(&pb::RegexMatchAndSubstitute {
            pattern: Some(pb::RegexMatcher { regex: pattern.into(), ..Default::default() }),
            substitution: replacement.into(),
        })
    }

    #[test]
    fn a_pattern_must_match_the_whole_value() {
        for (pattern, value, expected) in [
            ("a.c", "abc", true),
            ("a.c", "xabc", false),
            ("a|b", "b", true),
            ("a|b", "bc", false),
            ("a|ab", "ab", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(Regex::parse(pattern).unwrap().matches(value.as_bytes()), expected, "{pattern} on {value}");
        }
    }

    #[test]
    fn nothing_escapes_from_the_anchors() {
        for pattern in ["a)|(b", "(", "[a", r"a\", "(?x)a # "] {
            assert!(Regex::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn size_is_limited_at_the_edge() {
        assert!(Regex::parse(&"a".repeat(REGEX_BYTES_MAX)).is_ok());
        assert!(Regex::parse(&"a".repeat(REGEX_BYTES_MAX + 1)).is_err());
        assert!(Regex::parse(r"(\pL{500}){500}").is_err());
    }

    #[test]
    fn groups_are_put_into_the_replacement() {
        let swap = substitution(r"^/([^/]+)/([^/]+)$", r"/\2/\1").unwrap();
        assert_eq!(swap.apply("/one/two"), "/two/one");
        assert_eq!(swap.apply("/one"), "/one");
        assert_eq!(substitution("a", r"\\").unwrap().apply("banana"), r"b\n\n\");
        assert!(substitution("a", r"\1").is_err());
        assert!(substitution("a", r"\x").is_err());
    }
}
