//! A loose look into a document: every field may be missing or of another type, and then reads as nothing.
//!
//! Analysis also judges documents that validation refuses, and kinds whose schema is not ours. Nothing here fails.

use crate::documents::shapes::Labels;
use crate::documents::tree::{At, Node, Value};

/// A place in a document's tree, or where it would stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    node: Option<&'a Node>,
    at: At,
}

impl<'a> View<'a> {
    pub(crate) fn of(node: &'a Node) -> Self {
        Self { node: Some(node), at: node.at }
    }

    /// Where nothing stands.
    pub(crate) fn nothing() -> Self {
        Self { node: None, at: At::default() }
    }

    /// The field; what is missing stands where its parent does.
    pub(crate) fn get(self, name: &str) -> Self {
        match self.node.and_then(|node| node.entry(name)) {
            Some((key, node)) => Self { node: Some(node), at: place_of(key.at, node) },
            None => Self { node: None, at: self.at },
        }
    }

    /// The field at the end of a path such as `spec.template.spec`. Names with dots go through [`Self::get`].
    pub(crate) fn path(self, path: &str) -> Self {
        path.split('.').fold(self, Self::get)
    }

    /// The elements of a list; none of anything else.
    pub(crate) fn items(self) -> impl Iterator<Item = Self> {
        let items: &'a [Node] = match self.value() {
            Some(Value::List(items)) => items,
            _ => &[],
        };
        items.iter().map(View::of)
    }

    /// The fields of a mapping; none of anything else.
    pub(crate) fn entries(self) -> impl Iterator<Item = (&'a str, Self)> {
        let entries = match self.value() {
            Some(Value::Map(entries)) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|(key, node)| (key.text.as_str(), View { node: Some(node), at: place_of(key.at, node) }))
    }

    /// Whether something other than `null` stands here.
    pub(crate) fn exists(self) -> bool {
        self.value().is_some_and(|value| *value != Value::Null)
    }

    /// A string; empty when there is none.
    pub(crate) fn text(self) -> &'a str {
        self.node.and_then(Node::text).unwrap_or_default()
    }

    /// A string, number or boolean as it would be written; empty when there is none.
    pub(crate) fn word(self) -> String {
        match self.value() {
            Some(Value::Text(text)) => text.clone(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Int(value)) => value.to_string(),
            Some(Value::UInt(value)) => value.to_string(),
            Some(Value::Float(value)) => value.to_string(),
            _ => String::new(),
        }
    }

    /// Whether this word stands here.
    pub(crate) fn is(self, word: &str) -> bool {
        match self.value() {
            Some(Value::Text(text)) => text == word,
            _ => self.word() == word,
        }
    }

    /// A number that is not negative, also in quotes.
    pub(crate) fn number(self) -> Option<u64> {
        self.word().parse().ok()
    }

    pub(crate) fn is_true(self) -> bool {
        self.word() == "true"
    }

    /// The strings of a list.
    pub(crate) fn texts(self) -> Vec<&'a str> {
        self.items().map(View::text).filter(|text| !text.is_empty()).collect()
    }

    /// A mapping of names to words.
    pub(crate) fn labels(self) -> Labels {
        self.entries().map(|(name, value)| (name.to_owned(), value.word())).collect()
    }

    pub(crate) fn at(self) -> At {
        self.at
    }

    /// The node, where there is one.
    pub(crate) fn node(self) -> Option<&'a Node> {
        self.node
    }

    fn value(self) -> Option<&'a Value> {
        self.node.map(|node| &node.value)
    }
}

/// A scalar is pointed at itself, a collection at its key.
fn place_of(key: At, node: &Node) -> At {
    match node.value {
        Value::List(_) | Value::Map(_) | Value::Null => key,
        _ => node.at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::tree::parse_stream;

    #[test]
    fn what_is_missing_or_of_another_type_reads_as_nothing() {
        let document = parse_stream("a:\n  b: [x, 7, {c: '80'}]\n  d: null\n  e: true\n").unwrap().remove(0);
        let view = View::of(&document);
        assert_eq!(view.path("a.b").texts(), ["x"]);
        let third = view.path("a.b").items().nth(2).unwrap();
        assert_eq!((third.get("c").number(), third.get("c").text()), (Some(80), "80"));
        assert!(view.path("a.e").is_true() && !view.path("a.d").exists() && !view.path("a.b.c.d").exists());
        assert_eq!(view.path("a.nothing.at.all").at().line, 1);
        assert_eq!(view.path("a.b").labels(), Labels::new());
        assert_eq!(view.get("a").labels()["e"], "true");
        assert!(view.path("a.e").is("true") && !view.path("a.e").is("false") && view.get("nothing").is(""));
    }
}
