//! `${name}` in the texts of a document. What a value may hold depends on where it goes, so that a value from a node's
//! evidence, or from a list somebody else keeps, cannot become more than one part of what the operator wrote. `$${` is a
//! plain `${`.

use std::collections::BTreeMap;

/// Where a text with placeholders stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// In a SPIFFE ID: one part of one path segment.
    Id,
    /// In a parent's ID: the same, or the whole text is one placeholder for a whole ID.
    Parent,
    /// In a selector, behind its type.
    Selector,
    /// In a DNS name: letters, digits, dashes, underscores, dots.
    DnsName,
    /// In the entry's own name.
    Name,
    /// In any other text: no control characters.
    Text,
}

/// The values by their full names: `var.region`, `each.value`, `node.id`, `trust_domain`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    plain: BTreeMap<String, String>,
    /// Selectors of the node, for `node.selector.TYPE:KEY`.
    node_selectors: Option<Vec<(String, String)>>,
}

impl Values {
    pub(crate) fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.plain.insert(name.into(), value.into());
    }

    pub(crate) fn set_node_selectors(&mut self, selectors: Vec<(String, String)>) {
        self.node_selectors = Some(selectors);
    }

    fn get(&self, name: &str) -> Result<&str, String> {
        if let Some(value) = self.plain.get(name) {
            return Ok(value);
        }
        if let (Some(wanted), Some(selectors)) = (name.strip_prefix(NODE_SELECTOR), &self.node_selectors) {
            return node_selector(selectors, wanted);
        }
        let known: Vec<&str> = self.plain.keys().map(String::as_str).collect();
        Err(format!("`${{{name}}}` is not known here; known are {}", known.join(", ")))
    }
}

/// The value of the one selector `TYPE:KEY:VALUE`.
fn node_selector<'a>(selectors: &'a [(String, String)], wanted: &str) -> Result<&'a str, String> {
    let Some((kind, key)) = wanted.split_once(':') else {
        return Err(format!("`${{{NODE_SELECTOR}{wanted}}}`: write TYPE:KEY, such as k8s_psat:agent_node_name"));
    };
    let value = |(of, value): &'a (String, String)| value.strip_prefix(key)?.strip_prefix(':').filter(|_| of == kind);
    let mut found = selectors.iter().filter_map(value);
    match (found.next(), found.next()) {
        (Some(value), None) => Ok(value),
        (None, _) => Err(format!("the node has no selector {wanted}")),
        (Some(_), Some(_)) => Err(format!("the node has several selectors {wanted}")),
    }
}

/// Fills `text` in for its `slot`.
pub(crate) fn fill(text: &str, slot: Slot, values: &Values) -> Result<String, String> {
    let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    if let (Slot::Parent, Some(name @ "node.id")) = (slot, name) {
        return values.get(name).map(str::to_owned);
    }
    let (literal_kind, rest) = match (slot, text.split_once(':')) {
        (Slot::Selector, Some((kind, _))) if kind.contains("${") => {
            return Err(format!("the type of the selector `{text}` must be written out"));
        }
        (Slot::Selector, Some((kind, _))) => text.split_at(kind.len()),
        _ => ("", text),
    };
    Ok(format!("{literal_kind}{}", replace(rest, slot, values)?))
}

fn replace(text: &str, slot: Slot, values: &Values) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &from[2..];
            continue;
        }
        out.push_str(before);
        let (name, after) = from[2..].split_once('}').ok_or_else(|| format!("`{text}` has `${{` without `}}`"))?;
        let value = values.get(name)?;
        if !slot.takes(value) {
            return Err(format!("the value {value:?} of `${{{name}}}` cannot stand here: {}", slot.rule()));
        }
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

impl Slot {
    fn takes(self, value: &str) -> bool {
        let only = |also: &[u8]| value.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte));
        let limited = !value.is_empty() && value.len() <= VALUE_BYTES_MAX;
        limited
            && match self {
                Self::Id | Self::Parent => only(b"-._") && value != "." && value != "..",
                Self::DnsName | Self::Name => only(b"-._"),
                Self::Selector | Self::Text => !value.chars().any(char::is_control),
            }
    }

    fn rule(self) -> &'static str {
        match self {
            Self::Id | Self::Parent => "a part of a path segment holds letters, digits, dot, dash and underscore",
            Self::DnsName | Self::Name => "it holds letters, digits, dot, dash and underscore",
            Self::Selector | Self::Text => "it must not be empty, very long, or hold control characters",
        }
    }
}

const NODE_SELECTOR: &str = "node.selector.";
const VALUE_BYTES_MAX: usize = 1024;
