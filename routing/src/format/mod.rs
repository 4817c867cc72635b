//! Texts with operators such as `%REQ(X-REQUEST-ID)%`, as in Envoy's access logs and header edits.
//!
//! Formats are compiled once. What a peer wrote can never break out of a log line: control characters, quotes and
//! backslashes are escaped in text, and JSON is JSON.

mod context;
mod json;
mod operator;
mod parse;
mod time;

pub use context::{LogContext, ResponseFlags};
pub use json::JsonFormat;
pub(crate) use time::TimeFormat;

use operator::{Operator, Value};

/// A compiled text with operators.
#[derive(Clone, Debug)]
pub struct Format {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(Box<str>),
    Operator { operator: Operator, len_max: Option<usize> },
}

/// Why a format was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A percent sign without its partner.
    #[error("the operator at byte {0} does not end")]
    Open(usize),
    /// An operator that is not known here.
    #[error("unknown operator %{0}%")]
    Unknown(String),
    /// An operator whose argument makes no sense.
    #[error("%{0}% has a malformed argument")]
    Argument(String),
}

/// How values are written and what stands for a missing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A line of a log: `-` for what is missing, peers' texts escaped.
    Line,
    /// A header's value: nothing for what is missing, control characters left out.
    Header,
    /// Inside a JSON string: `-` for what is missing; the caller escapes.
    Raw,
}

impl Format {
    /// Compiles a text. `%%` stands for a percent sign.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        parse::pieces(text).map(|pieces| Self { pieces })
    }

    /// Appends a line of a log.
    pub fn render(&self, context: &LogContext<'_>, out: &mut String) {
        self.write(context, Style::Line, out);
    }

    /// Appends a header's value.
    pub fn render_header(&self, context: &LogContext<'_>, out: &mut String) {
        self.write(context, Style::Header, out);
    }

    /// The text, if there is no operator in it.
    pub fn as_literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    fn write(&self, context: &LogContext<'_>, style: Style, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Operator { operator, len_max } => operator.value(context).write(style, *len_max, out),
            }
        }
    }

    /// The value of a format that is one operator and nothing else, so that JSON can keep its type.
    fn single<'a>(&self, context: &LogContext<'a>) -> Option<Value<'a>> {
        match self.pieces.as_slice() {
            [Piece::Operator { operator, len_max: None }] => Some(operator.value(context)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
