//! URI templates: `*` stands for one path segment, `**` for any rest, `{name}` and `{name=…}` for the same with a name.

use std::fmt;

use crate::config::ConfigError;

use super::regex::Regex;

/// A pattern over paths.
#[derive(Clone, Debug)]
pub struct UriTemplate {
    text: Box<str>,
    regex: Regex,
}

impl UriTemplate {
    /// Reads a template such as `/books/*/pages/**`.
    pub fn parse(template: &str) -> Result<Self, ConfigError> {
        if !template.starts_with('/') {
            return Err(ConfigError::new("a path template begins with `/`"));
        }
        let mut pattern = String::with_capacity(template.len() * 2);
        translate(template, &mut pattern, 0)?;
        Ok(Self { text: template.into(), regex: Regex::parse(&pattern)? })
    }

    /// Whether the path, without its query, has the template's form.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.regex.matches(path)
    }
}

impl fmt::Display for UriTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn translate(template: &str, out: &mut String, depth: usize) -> Result<(), ConfigError> {
    let mut rest = template;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("**") {
            out.push_str(".*");
            rest = after;
        } else if let Some(after) = rest.strip_prefix('*') {
            out.push_str("[^/]+");
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let (inside, after) =
                after.split_once('}').ok_or_else(|| ConfigError::new("a `{` of the template is not closed"))?;
            translate_variable(inside, out, depth)?;
            rest = after;
        } else {
            push_literal(c, out)?;
            rest = &rest[c.len_utf8()..];
        }
    }
    Ok(())
}

fn translate_variable(inside: &str, out: &mut String, depth: usize) -> Result<(), ConfigError> {
    let pattern = match inside.split_once('=') {
        Some((_, pattern)) => pattern,
        None if inside.starts_with('*') => inside,
        None => "*",
    };
    if depth > 0 || pattern.is_empty() {
        return Err(ConfigError::new("a variable of the template has no valid pattern"));
    }
    translate(pattern, out, depth + 1)
}

/// Only characters that a canonical path can hold; everything but letters and digits is escaped.
fn push_literal(c: char, out: &mut String) -> Result<(), ConfigError> {
    match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '/' | '_' => out.push(c),
        '}' => return Err(ConfigError::new("a `}` of the template was not opened")),
        c if c.is_ascii_graphic() => out.extend(['\\', c]),
        _ => return Err(ConfigError::new("the template holds a character that no path has")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_segments_and_rests() {
        for (template, path, expected) in [
            ("/foo/*", "/foo/bar", true),
            ("/foo/*", "/foo/", false),
            ("/foo/*", "/foo/bar/baz", false),
            ("/foo/**", "/foo/bar/baz", true),
            ("/foo/**", "/foo/", true),
            ("/foo/**", "/foo", false),
            ("/foo/{id}/x", "/foo/7/x", true),
            ("/foo/{*}/x", "/foo/7/x", true),
            ("/foo/{**}", "/foo/7/x", true),
            ("/foo/{id=a/*}/x", "/foo/a/7/x", true),
            ("/v/*.mp4", "/v/one.mp4", true),
            ("/v/*.mp4", "/v/onexmp4", false),
            ("/a.b", "/axb", false),
            ("/foo/*", "/foo/*", true),
            ("/foo/a", "/foo/*", false),
        ] {
            assert_eq!(UriTemplate::parse(template).unwrap().matches(path.as_bytes()), expected, "{template} {path}");
        }
    }

    #[test]
    fn malformed_templates_are_refused() {
        for template in ["foo", "/a/{", "/a/}", "/a/{x=}", "/a/{x={y}}", "/ä"] {
            assert!(UriTemplate::parse(template).is_err(), "{template}");
        }
    }
}
