//! What nobody wants to hear: by an annotation on the document, as Istio has it, or by the caller.

use std::fmt;

use super::message::Message;
use super::resource::Resource;

/// `CODE=Kind ns/name`, where both sides may have `*` for any text; `CODE` alone is for every document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppression {
    code: String,
    resource: String,
}

/// A text is no suppression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("written as CODE=KIND NS/NAME, such as `IST0102=Namespace foo` or `IST0107=*`")]
pub struct SuppressionError;

impl Suppression {
    /// Reads one.
    ///
    /// # Errors
    /// When there is no code.
    pub fn parse(text: &str) -> Result<Self, SuppressionError> {
        let (code, resource) = text.split_once('=').unwrap_or((text, "*"));
        let (code, resource) = (code.trim(), resource.trim());
        let is_code = !code.is_empty() && code.chars().all(|c| c.is_ascii_alphanumeric() || c == '*');
        if !is_code || resource.is_empty() {
            return Err(SuppressionError);
        }
        Ok(Self { code: code.to_ascii_uppercase(), resource: resource.to_owned() })
    }

    /// Whether the message is meant.
    #[must_use]
    pub fn is_for(&self, message: &Message) -> bool {
        glob(&self.code, message.code) && names(&message.resource).iter().any(|name| glob(&self.resource, name))
    }
}

/// `Kind ns/name`, without a namespace that is the default one, and `Kind name.ns`, as Istio writes it.
fn names(resource: &str) -> Vec<String> {
    let mut names = vec![resource.to_owned(), resource.replacen(" default/", " ", 1)];
    if let Some((kind, (namespace, name))) =
        resource.split_once(' ').and_then(|(kind, full)| Some((kind, full.split_once('/')?)))
    {
        names.push(format!("{kind} {name}.{namespace}"));
    }
    names
}

impl fmt::Display for Suppression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.code, self.resource)
    }
}

/// Whether the document's own annotation forbids the code.
pub(crate) fn by_annotation(resource: &Resource, code: &str) -> bool {
    let codes = resource.annotations.get(ANNOTATION).map(String::as_str).unwrap_or_default();
    codes.split(',').map(str::trim).any(|one| one == "*" || one == code)
}

/// Whether the text is as the pattern says, in which `*` stands for any text.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((begin, mut rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(begin) else { return false };
    while let Some((middle, after)) = rest.split_once('*') {
        let Some(at) = text.find(middle) else { return false };
        text = &text[at + middle.len()..];
        rest = after;
    }
    text.ends_with(rest)
}

pub(crate) const ANNOTATION: &str = "galley.istio.io/analyze-suppress";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("ab*bc", "abc", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_no_suppression_is_refused() {
        for text in ["", "=x", "IST 1=x", "IST0101="] {
            assert_eq!(Suppression::parse(text), Err(SuppressionError), "{text}");
        }
        assert_eq!(Suppression::parse("ist0102 = Namespace foo").unwrap().to_string(), "IST0102=Namespace foo");
        assert_eq!(Suppression::parse("IST0102").unwrap().to_string(), "IST0102=*");
    }
}
