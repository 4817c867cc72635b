//! Templates of node IDs: `{{ .Field }}` in a path below `/spire/agent/ATTESTOR/`.
//!
//! Values come from certificates and tokens, so from strangers. A value fills a part of one segment or, where it is a
//! path itself, whole segments at the end; it can never add a separator, climb with `..`, or leave the attestor's prefix.
//! One segment holds one field, because two side by side could be told apart in several ways.

use identity::spiffe_id::{SpiffeId, TrustDomain};

use super::AttestError;
use crate::api::AGENT_PATH;

/// A checked template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathTemplate {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    before: String,
    field: Option<String>,
    after: String,
}

/// What a field stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// A part of one segment.
    Part(String),
    /// Whole segments, at the end.
    Path(String),
}

impl PathTemplate {
    /// Reads a template that may use `fields`; one that ends in a dot stands for all that begin with it. A leading
    /// `{{ .PluginName }}/` says what holds anyway and is dropped.
    pub(crate) fn parse(text: &str, fields: &[&str]) -> Result<Self, String> {
        let text = text.strip_prefix('/').unwrap_or(text);
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(format!("is longer than {TEMPLATE_BYTES_MAX} bytes"));
        }
        let mut segments: Vec<Segment> =
            text.split('/').map(|text| Segment::parse(text, fields)).collect::<Result<_, _>>()?;
        if segments.first().is_some_and(Segment::is_plugin_name) {
            segments.remove(0);
        }
        if segments.is_empty() || segments.iter().any(Segment::is_plugin_name) {
            return Err("must name something below the attestor's own path".into());
        }
        Ok(Self { segments })
    }

    /// The node's ID.
    pub(crate) fn fill(
        &self,
        domain: &TrustDomain,
        prefix: &str,
        value_of: impl Fn(&str) -> Option<Value>,
    ) -> Result<SpiffeId, AttestError> {
        let last = self.segments.len().saturating_sub(1);
        let mut path = format!("{AGENT_PATH}{prefix}");
        for (at, segment) in self.segments.iter().enumerate() {
            path.push('/');
            path.push_str(&segment.before);
            if let Some(field) = &segment.field {
                let unusable = || AttestError::NameUnusable { field: field.clone() };
                match value_of(field).ok_or_else(unusable)? {
                    Value::Part(value) if is_part(&value) => path.push_str(&value),
                    Value::Path(value) if at == last && segment.is_only_field() && value.split('/').all(is_part) => {
                        path.push_str(&value);
                    }
                    _ => return Err(unusable()),
                }
            }
            path.push_str(&segment.after);
        }
        domain.with_path(&path).map_err(|_| AttestError::NameUnusable { field: "path".into() })
    }
}

impl Segment {
    fn parse(text: &str, fields: &[&str]) -> Result<Self, String> {
        let literal = |text: &str| {
            let plain = text.bytes().all(is_path_byte);
            if plain {
                Ok(text.to_owned())
            } else {
                Err(format!("holds `{text}`; letters, digits, `.`, `_`, `-` and {{{{ .Field }}}} are understood"))
            }
        };
        let Some((before, rest)) = text.split_once("{{") else {
            let before = literal(text)?;
            if !is_part(&before) {
                return Err("has an empty segment, `.` or `..`".into());
            }
            return Ok(Self { before, field: None, after: String::new() });
        };
        let (field, after) = rest.split_once("}}").ok_or("has `{{` without `}}`")?;
        let field =
            field.trim().strip_prefix('.').ok_or_else(|| format!("holds {{{{{field}}}}}, which is no field"))?;
        if after.contains("{{") {
            return Err(format!("has two fields in one segment, `{text}`: write them with `/` between"));
        }
        let known = fields.iter().chain(&[PLUGIN_NAME]).any(|known| {
            (*known == field && !known.ends_with('.'))
                || (known.ends_with('.') && field.len() > known.len() && field.starts_with(known))
        });
        if !known {
            return Err(format!("names the field .{field}; known are .{}", fields.join(", .")));
        }
        Ok(Self { before: literal(before)?, field: Some(field.to_owned()), after: literal(after)? })
    }

    fn is_only_field(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    fn is_plugin_name(&self) -> bool {
        self.field.as_deref() == Some(PLUGIN_NAME)
    }
}

/// Whether a text may be one segment of a path, or a part of one.
pub(crate) fn is_part(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && text.len() <= PART_BYTES_MAX && text.bytes().all(is_path_byte)
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

const PLUGIN_NAME: &str = "PluginName";
const TEMPLATE_BYTES_MAX: usize = 1024;
const PART_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::trust_domain;

    const FIELDS: &[&str] = &["A", "Deep", "Claims."];

    fn fill(template: &str, value: Value) -> Option<String> {
        let template = PathTemplate::parse(template, FIELDS).unwrap();
        let id = template.fill(&trust_domain(), "x509pop", |_| Some(value.clone())).ok()?;
        Some(id.path().to_owned())
    }

    fn part(value: &str) -> Value {
        Value::Part(value.into())
    }

    #[test]
    fn a_field_fills_its_place() {
        let under = |path: &str| Some(format!("/spire/agent/x509pop/{path}"));
        assert_eq!(fill("{{ .A }}", part("n1")), under("n1"));
        assert_eq!(fill("/{{.PluginName}}/cn/{{ .A }}", part("n1")), under("cn/n1"));
        assert_eq!(fill("rack-{{ .Claims.rack }}.x/host", part("7")), under("rack-7.x/host"));
        assert_eq!(fill("{{ .Deep }}", Value::Path("a/b".into())), under("a/b"));
        assert_eq!(fill("{{ .A }}", part("..x")), under("..x"));
    }

    #[test]
    fn a_value_that_would_leave_its_place_is_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "/", "a b", "a%2fb", "a\0", "ä", "a:b", "{{ .A }}", &"a".repeat(256)]
        {
            assert_eq!(fill("{{ .A }}", part(bad)), None, "{bad}");
        }
        assert_eq!(fill(".{{ .A }}", part(".")), None);
        assert_eq!(fill(".{{ .A }}", part("a")).as_deref(), Some("/spire/agent/x509pop/.a"));
        for bad in ["", "/", "a//b", "../a", "a/..", "a/", "/a"] {
            assert_eq!(fill("{{ .Deep }}", Value::Path(bad.into())), None, "{bad}");
        }
        for template in ["{{ .Deep }}/x", "a-{{ .Deep }}"] {
            assert_eq!(fill(template, Value::Path("a/b".into())), None, "{template}");
        }
        let template = PathTemplate::parse("{{ .A }}", FIELDS).unwrap();
        assert!(template.fill(&trust_domain(), "x509pop", |_| None).is_err());
    }

    #[test]
    fn a_template_that_cannot_be_is_refused_with_its_fault() {
        for (template, word) in [
            ("", "empty"),
            ("a//b", "empty"),
            ("../{{ .A }}", ".."),
            ("{{ .A }}-{{ .A }}", "two fields"),
            ("{{ .B }}", ".B"),
            ("{{ .Claims. }}", ".Claims."),
            ("{{ A }}", "no field"),
            ("{{ .A | printf }}", "A | printf"),
            ("{{ .A", "}}"),
            ("a b/{{ .A }}", "a b"),
            ("{{ .PluginName }}", "below"),
            ("x/{{ .PluginName }}", "below"),
        ] {
            let problem = PathTemplate::parse(template, FIELDS).unwrap_err();
            assert!(problem.contains(word), "{template}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_values_are_the_id_stays_below_its_attestor(
            template in "(/)?([a-z.]{0,3}(\\{\\{ \\.(A|Deep|Claims\\.x) \\}\\})?[a-z.]{0,2}/?){1,4}",
            value in "[a-z./%:\\\\ \\PC]{0,12}",
            deep in any::<bool>(),
        ) {
            if let Ok(template) = PathTemplate::parse(&template, FIELDS) {
                let value = if deep { Value::Path(value) } else { Value::Part(value) };
                if let Ok(id) = template.fill(&trust_domain(), "x509pop", |_| Some(value.clone())) {
                    prop_assert!(id.path().starts_with("/spire/agent/x509pop/"));
                    prop_assert!(!id.path().split('/').skip(1).any(|part| matches!(part, "" | "." | "..")));
                    prop_assert_eq!(SpiffeId::parse(id.as_str()).unwrap(), id);
                }
            }
        }
    }
}
