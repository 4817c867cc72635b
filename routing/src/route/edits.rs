//! Changes of headers: removing, setting, appending, with values that may hold operators.

use core::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3 as core;
use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

use crate::config::{At, ConfigError, each, not_supported, required};
use crate::format::{Format, LogContext};
use crate::matcher::header_name;

/// Changes of headers. What is removed goes first.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    remove: Vec<HeaderName>,
    add: Vec<Addition>,
}

#[derive(Clone, Debug)]
struct Addition {
    name: HeaderName,
    value: Template,
    how: How,
    keep_empty: bool,
}

#[derive(Clone, Debug)]
enum Template {
    Literal(HeaderValue),
    Format(Format),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Append,
    AddIfAbsent,
    Overwrite,
    OverwriteIfPresent,
}

/// Changes whose values are known, ready to be made. Preparing and making are apart because values may come from the
/// very headers that are changed.
#[derive(Clone, Debug, Default)]
pub struct PreparedEdits {
    steps: SmallVec<[Step; 4]>,
}

#[derive(Clone, Debug)]
enum Step {
    Remove(HeaderName),
    Add(HeaderName, HeaderValue, How),
}

impl HeaderEdits {
    pub(crate) fn request(add: &[core::HeaderValueOption], remove: &[String]) -> Result<Self, ConfigError> {
        let edits = Self::compile("request_headers_to_add", add, "request_headers_to_remove", remove)?;
        // The host is changed by rewriting it, so that it is changed everywhere.
        let changes_host = edits.names().any(|name| name == header::HOST);
        match changes_host {
            true => not_supported("changing the host as a header").at("request_headers_to_add"),
            false => Ok(edits),
        }
    }

    pub(crate) fn response(add: &[core::HeaderValueOption], remove: &[String]) -> Result<Self, ConfigError> {
        Self::compile("response_headers_to_add", add, "response_headers_to_remove", remove)
    }

    pub(crate) fn compile(
        add_field: &str,
        add: &[core::HeaderValueOption],
        remove_field: &str,
        remove: &[String],
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            remove: each(remove_field, remove, |name| header_name(name))?,
            add: each(add_field, add, Addition::compile)?,
        })
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Works the values out and adds the changes to those that are already prepared.
    pub fn prepare(&self, context: &LogContext<'_>, prepared: &mut PreparedEdits) {
        prepared.steps.extend(self.remove.iter().cloned().map(Step::Remove));
        let added = self.add.iter().filter_map(|addition| addition.prepare(context));
        prepared.steps.extend(added);
    }

    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.remove.iter().chain(self.add.iter().map(|addition| &addition.name))
    }
}

impl Addition {
    fn compile(value: &core::HeaderValueOption) -> Result<Self, ConfigError> {
        let header = required(value.header.as_ref()).at("header")?;
        Ok(Self {
            name: header_name(&header.key).at("header.key")?,
            value: Template::compile(header)?,
            how: How::compile(value)?,
            keep_empty: value.keep_empty_value,
        })
    }

    fn prepare(&self, context: &LogContext<'_>) -> Option<Step> {
        let value = match &self.value {
            Template::Literal(value) => value.clone(),
            Template::Format(format) => {
                let mut text = String::new();
                format.render_header(context, &mut text);
                HeaderValue::try_from(text).ok()?
            }
        };
        let kept = self.keep_empty || !value.is_empty();
        kept.then(|| Step::Add(self.name.clone(), value, self.how))
    }
}

impl Template {
    fn compile(header: &core::HeaderValue) -> Result<Self, ConfigError> {
        let literal = |bytes: &[u8]| {
            HeaderValue::from_bytes(bytes).map_err(|_| ConfigError::new("is not a header value").under("header.value"))
        };
        if !header.raw_value.is_empty() {
            return literal(&header.raw_value).map(Self::Literal);
        }
        let format =
            Format::parse(&header.value).map_err(|error| ConfigError::new(error.to_string()).under("header.value"))?;
        match format.as_literal() {
            Some(text) => literal(text.as_bytes()).map(Self::Literal),
            None => Ok(Self::Format(format)),
        }
    }
}

impl How {
    fn compile(value: &core::HeaderValueOption) -> Result<Self, ConfigError> {
        if let Some(append) = &value.append {
            return Ok(if append.value { Self::Append } else { Self::Overwrite });
        }
        match HeaderAppendAction::try_from(value.append_action) {
            Ok(HeaderAppendAction::AppendIfExistsOrAdd) => Ok(Self::Append),
            Ok(HeaderAppendAction::AddIfAbsent) => Ok(Self::AddIfAbsent),
            Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => Ok(Self::Overwrite),
            Ok(HeaderAppendAction::OverwriteIfExists) => Ok(Self::OverwriteIfPresent),
            Err(_) => Err(ConfigError::new("unknown value").under("append_action")),
        }
    }
}

impl PreparedEdits {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Makes the changes.
    pub fn apply(self, headers: &mut HeaderMap) {
        for step in self.steps {
            match step {
                Step::Remove(name) => {
                    headers.remove(&name);
                }
                Step::Add(name, value, how) => how.apply(headers, name, value),
            }
        }
    }
}

impl How {
    fn apply(self, headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
        match (self, headers.try_entry(name)) {
            // A map that is full stays as it is.
            (_, Err(_)) => {}
            (Self::Append, Ok(Entry::Occupied(mut entry))) => entry.append(value),
            (Self::Append | Self::AddIfAbsent | Self::Overwrite, Ok(Entry::Vacant(entry))) => {
                let _ = entry.try_insert(value);
            }
            (Self::Overwrite | Self::OverwriteIfPresent, Ok(Entry::Occupied(mut entry))) => {
                entry.insert(value);
            }
            (Self::AddIfAbsent, Ok(Entry::Occupied(_))) | (Self::OverwriteIfPresent, Ok(Entry::Vacant(_))) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::PeerIdentity;

    fn option(key: &str, value: &str, action: HeaderAppendAction) -> core::HeaderValueOption {
        core::HeaderValueOption {
            header: Some(core::HeaderValue { key: key.into(), value: value.into(), raw_value: Vec::new() }),
            append_action: action as i32,
            ..Default::default()
        }
    }

    fn applied(add: &[core::HeaderValueOption], remove: &[&str], context: &LogContext<'_>) -> Vec<String> {
        let remove: Vec<String> = remove.iter().map(|&name| name.into()).collect();
        let edits = HeaderEdits::request(add, &remove).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-old", HeaderValue::from_static("1"));
        let mut prepared = PreparedEdits::default();
        edits.prepare(context, &mut prepared);
        prepared.apply(&mut headers);
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    #[test]
    fn every_way_of_adding() {
        use HeaderAppendAction as Action;
        let context = LogContext::default();
        for (action, name, expected) in [
            (Action::AppendIfExistsOrAdd, "x-old", vec!["x-old: 1", "x-old: 2"]),
            (Action::AddIfAbsent, "x-old", vec!["x-old: 1"]),
            (Action::OverwriteIfExistsOrAdd, "x-old", vec!["x-old: 2"]),
            (Action::OverwriteIfExists, "x-old", vec!["x-old: 2"]),
            (Action::AddIfAbsent, "x-new", vec!["x-new: 2", "x-old: 1"]),
            (Action::OverwriteIfExists, "x-new", vec!["x-old: 1"]),
        ] {
            assert_eq!(applied(&[option(name, "2", action)], &[], &context), expected, "{action:?} {name}");
        }
    }

    #[test]
    fn removing_comes_first() {
        let add = [option("x-old", "2", HeaderAppendAction::AppendIfExistsOrAdd)];
        assert_eq!(applied(&add, &["x-old"], &LogContext::default()), ["x-old: 2"]);
    }

    #[test]
    fn values_may_hold_operators_and_are_left_out_when_empty() {
        let peer = PeerIdentity::danger_assume("spiffe://td/a");
        let add = [option("x-peer", "%UPSTREAM_PEER_URI_SAN%", HeaderAppendAction::OverwriteIfExistsOrAdd)];
        let context = LogContext { upstream_peer: Some(&peer), ..LogContext::default() };
        assert_eq!(applied(&add, &["x-old"], &context), ["x-peer: spiffe://td/a"]);
        assert!(applied(&add, &["x-old"], &LogContext::default()).is_empty());
    }

    #[test]
    fn what_frames_a_request_is_not_a_header_to_change() {
        use HeaderAppendAction::AppendIfExistsOrAdd;
        for name in ["host", ":path", "a b", ""] {
            assert!(HeaderEdits::request(&[option(name, "x", AppendIfExistsOrAdd)], &[]).is_err(), "{name}");
        }
        assert!(HeaderEdits::request(&[option("x", "a\nb", AppendIfExistsOrAdd)], &[]).is_err());
        assert!(HeaderEdits::request(&[option("x", "%NOTHING%", AppendIfExistsOrAdd)], &[]).is_err());
    }
}
