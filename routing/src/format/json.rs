//! Logs as JSON objects: operators keep their types, missing values are null or left out.

use std::fmt::Write;

use envoy_types::pb::google::protobuf::{Struct, Value as PbValue, value::Kind};

use super::operator::{Plain, Value};
use super::{Format, FormatError, LogContext, Style};

/// A JSON object whose texts are formats.
#[derive(Clone, Debug)]
pub struct JsonFormat {
    fields: Vec<(Box<str>, Node)>,
    omit_missing: bool,
}

#[derive(Clone, Debug)]
enum Node {
    Object(Vec<(Box<str>, Self)>),
    List(Vec<Self>),
    Literal(Box<str>),
    Format(Format),
}

impl JsonFormat {
    pub(crate) fn compile(value: &Struct, omit_missing: bool) -> Result<Self, FormatError> {
        Ok(Self { fields: fields(value)?, omit_missing })
    }

    /// Appends the object, without a line end.
    pub fn render(&self, context: &LogContext<'_>, out: &mut String) {
        self.write_object(&self.fields, context, out);
    }

    fn write_object(&self, fields: &[(Box<str>, Node)], context: &LogContext<'_>, out: &mut String) {
        out.push('{');
        let start = out.len();
        for (key, node) in fields {
            if self.omit_missing && node.is_missing(context) {
                continue;
            }
            if out.len() > start {
                out.push(',');
            }
            write_string(key, out);
            out.push(':');
            self.write_node(node, context, out);
        }
        out.push('}');
    }

    fn write_node(&self, node: &Node, context: &LogContext<'_>, out: &mut String) {
        match node {
            Node::Object(fields) => self.write_object(fields, context, out),
            Node::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    self.write_node(item, context, out);
                }
                out.push(']');
            }
            Node::Literal(json) => out.push_str(json),
            Node::Format(format) => write_format(format, context, out),
        }
    }
}

impl Node {
    fn compile(value: &PbValue) -> Result<Self, FormatError> {
        Ok(match value.kind.as_ref() {
            None | Some(Kind::NullValue(_)) => Self::Literal("null".into()),
            Some(Kind::NumberValue(number)) => Self::Literal(serde_json::json!(number).to_string().into()),
            Some(Kind::BoolValue(value)) => Self::Literal(value.to_string().into()),
            Some(Kind::StringValue(text)) => Self::Format(Format::parse(text)?),
            Some(Kind::StructValue(object)) => Self::Object(fields(object)?),
            Some(Kind::ListValue(list)) => Self::List(list.values.iter().map(Self::compile).collect::<Result<_, _>>()?),
        })
    }

    fn is_missing(&self, context: &LogContext<'_>) -> bool {
        match self {
            Self::Format(format) => {
                matches!(format.single(context), Some(Value::None | Value::Plain(Plain::None) | Value::Text("")))
            }
            _ => false,
        }
    }
}

/// Sorted by name, so that lines of one format always look alike.
fn fields(value: &Struct) -> Result<Vec<(Box<str>, Node)>, FormatError> {
    let mut fields = value
        .fields
        .iter()
        .map(|(key, value)| Ok((key.as_str().into(), Node::compile(value)?)))
        .collect::<Result<Vec<(Box<str>, Node)>, FormatError>>()?;
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(fields)
}

fn write_format(format: &Format, context: &LogContext<'_>, out: &mut String) {
    match format.single(context) {
        Some(Value::None | Value::Plain(Plain::None)) => out.push_str("null"),
        Some(Value::Plain(number @ Plain::Number(_))) => number.write(out),
        _ => {
            let mut text = String::new();
            format.write(context, Style::Raw, &mut text);
            write_string(&text, out);
        }
    }
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
