//! Reading formats.

use super::operator::Operator;
use super::{FormatError, Piece};

/// Splits a text into literal parts and operators.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut at = 0;
    while let Some(found) = text[at..].find('%') {
        literal.push_str(&text[at..at + found]);
        at += found;
        if text[at..].starts_with("%%") {
            literal.push('%');
            at += 2;
            continue;
        }
        let (piece, len) = operator(&text[at..]).map_err(|error| error.located(at))?;
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal).into()));
        }
        pieces.push(piece);
        at += len;
    }
    literal.push_str(&text[at..]);
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal.into()));
    }
    Ok(pieces)
}

enum Fault {
    Open,
    Other(FormatError),
}

impl Fault {
    fn located(self, at: usize) -> FormatError {
        match self {
            Self::Open => FormatError::Open(at),
            Self::Other(error) => error,
        }
    }
}

/// Reads `%NAME%`, `%NAME(argument)%` or `%NAME(argument):length%` and tells how long it was.
fn operator(text: &str) -> Result<(Piece, usize), Fault> {
    let inside = &text[1..];
    let name_len = inside.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
    let (name, mut rest) = inside.split_at(name_len);
    let mut argument = None;
    if let Some(after) = rest.strip_prefix('(') {
        let end = argument_end(after).ok_or(Fault::Open)?;
        argument = Some(&after[..end]);
        rest = &after[end + 1..];
    }
    let mut len_max = None;
    if let Some(after) = rest.strip_prefix(':') {
        let digits = after.find('%').ok_or(Fault::Open)?;
        let malformed = || Fault::Other(FormatError::Argument(name.to_owned()));
        len_max = Some(after[..digits].parse::<usize>().map_err(|_| malformed())?);
        rest = &after[digits..];
    }
    let rest = rest.strip_prefix('%').ok_or(Fault::Open)?;
    let operator = Operator::parse(name, argument).map_err(Fault::Other)?;
    Ok((Piece::Operator { operator, len_max }, text.len() - rest.len()))
}

/// Where the argument ends: at the first closing parenthesis that the operator's end follows. A time format may hold
/// percent signs of its own.
fn argument_end(text: &str) -> Option<usize> {
    text.match_indices(')').map(|(at, _)| at).find(|at| {
        let rest = &text[at + 1..];
        let digits = rest.strip_prefix(':').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        digits.unwrap_or(rest).starts_with('%')
    })
}
