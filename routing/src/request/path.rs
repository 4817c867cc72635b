//! Paths in their one canonical form (RFC 3986, section 6.2.2), so that no rule can be walked around by spelling.
//!
//! Percent-encoded unreserved characters are decoded once, the other encodings are written in upper case, dot segments
//! and doubled slashes are removed. Whatever backends read in different ways (encoded slashes, backslashes, NUL, control
//! characters, fragments, `..;`) is refused unless the listener says otherwise. What was never decoded by the rules
//! above is forwarded as it came, and nothing is ever decoded twice.

use http::uri::PathAndQuery;

/// A path and query that policy and routes may rely on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath {
    text: PathAndQuery,
    bare: Option<Box<str>>,
    changed: bool,
}

/// How a listener wants paths to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathOptions {
    /// Whether to normalise at all. Without, a path is only checked for characters that no path may have.
    pub normalize: bool,
    /// Whether `//` becomes `/`.
    pub merge_slashes: bool,
    /// What becomes of `%2F`, `%5C` and `\`.
    pub escaped_slashes: EscapedSlashes,
}

/// What becomes of slashes in disguise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// The request is refused.
    Refuse,
    /// `%2F` and `%5C` stay as they are and are no separators; a bare backslash becomes a slash.
    Keep,
    /// They become slashes before anything else is done.
    Decode,
}

/// Why a path was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path {fault}")]
pub struct PathError {
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("is longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
    #[error("does not begin with a slash")]
    NotAbsolute,
    #[error("holds a character that must be encoded")]
    Character,
    #[error("holds a fragment")]
    Fragment,
    #[error("holds a percent sign without two hexadecimal digits")]
    Encoding,
    #[error("holds an encoded NUL")]
    Nul,
    #[error("holds an encoded slash or a backslash")]
    EscapedSlash,
    #[error("climbs above the root")]
    AboveRoot,
    #[error("holds a dot segment with parameters")]
    DotParameters,
}

impl PathError {
    /// The stable code for logs and answers.
    pub fn reason(self) -> &'static str {
        match self.fault {
            Fault::TooLong => "PATH_TOO_LONG",
            _ => "PATH_NOT_CANONICAL",
        }
    }
}

impl From<Fault> for PathError {
    fn from(fault: Fault) -> Self {
        Self { fault }
    }
}

impl PathOptions {
    /// Everything normalised, everything ambiguous refused.
    pub const STRICT: Self = Self { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Refuse };
}

impl Default for PathOptions {
    fn default() -> Self {
        Self::STRICT
    }
}

impl CanonicalPath {
    /// Reads `/path?query`, or `*`, by the strict rules.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        Self::parse_raw(text, &PathOptions::STRICT)
    }

    /// Reads path and query by a listener's rules.
    pub fn parse_raw(text: &str, options: &PathOptions) -> Result<Self, PathError> {
        if text.bytes().any(|byte| byte == b'#') {
            return Err(Fault::Fragment.into());
        }
        let raw = PathAndQuery::try_from(text).map_err(|_| Fault::Character)?;
        Self::parse_with(&raw, options)
    }

    /// Reads path and query by a listener's rules; nothing is copied if they are canonical already.
    pub fn parse_with(raw: &PathAndQuery, options: &PathOptions) -> Result<Self, PathError> {
        let text = raw.as_str();
        if text.len() > PATH_BYTES_MAX {
            return Err(Fault::TooLong.into());
        }
        if text == "*" {
            return Ok(Self { text: raw.clone(), bare: None, changed: false });
        }
        if !text.starts_with('/') {
            return Err(Fault::NotAbsolute.into());
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Fault::Character.into());
        }
        let path = raw.path();
        check_encodings(path)?;
        if !options.normalize || is_canonical(path) {
            return Ok(Self { text: raw.clone(), bare: without_parameters(path), changed: false });
        }
        Self::normalize(raw, options)
    }

    fn normalize(raw: &PathAndQuery, options: &PathOptions) -> Result<Self, PathError> {
        let decoded = decode_unreserved(raw.path(), options.escaped_slashes)?;
        let mut text = remove_dot_segments(&decoded, options.merge_slashes)?;
        let bare = without_parameters(&text);
        if text == raw.path() {
            return Ok(Self { text: raw.clone(), bare, changed: false });
        }
        if let Some(query) = raw.query() {
            text.push('?');
            text.push_str(query);
        }
        let text = PathAndQuery::try_from(text).map_err(|_| Fault::Character)?;
        Ok(Self { text, bare, changed: true })
    }

    /// The path without its query.
    pub fn path(&self) -> &str {
        self.text.path()
    }

    /// The path without `;parameters` in its segments, as some backends read it; only if that differs.
    pub fn path_without_parameters(&self) -> Option<&str> {
        self.bare.as_deref()
    }

    /// What follows the question mark.
    pub fn query(&self) -> Option<&str> {
        self.text.query()
    }

    /// Path and query.
    pub fn as_str(&self) -> &str {
        self.text.as_str()
    }

    /// Path and query, in the form that requests are built from.
    pub fn path_and_query(&self) -> &PathAndQuery {
        &self.text
    }

    /// Whether the client had written it in another way.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// The query's parameters, still encoded.
    pub fn params(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    /// The same path without any query parameter of this name.
    #[must_use]
    pub fn without_param(&self, name: &str) -> Self {
        let Some(query) = self.query() else { return self.clone() };
        let kept: Vec<&str> =
            query.split('&').filter(|pair| pair.split_once('=').map_or(*pair, |(key, _)| key) != name).collect();
        let text = match kept.is_empty() {
            true => self.path().to_owned(),
            false => format!("{}?{}", self.path(), kept.join("&")),
        };
        match PathAndQuery::try_from(text) {
            Ok(text) => Self { text, bare: self.bare.clone(), changed: true },
            Err(_) => self.clone(),
        }
    }
}

/// Every percent sign starts an encoding, and none is of NUL.
fn check_encodings(path: &str) -> Result<(), Fault> {
    let mut rest = path.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        match rest.get(at + 1..at + 3).and_then(hex_byte) {
            None => return Err(Fault::Encoding),
            Some(0) => return Err(Fault::Nul),
            Some(_) => rest = &rest[at + 3..],
        }
    }
    Ok(())
}

/// Whether nothing can need a change: no encoding, no backslash, no doubled slash, no segment that begins with a dot.
fn is_canonical(path: &str) -> bool {
    let bytes = path.as_bytes();
    let plain = bytes.iter().all(|byte| !matches!(byte, b'%' | b'\\'));
    plain && bytes.windows(2).all(|pair| pair[0] != b'/' || !matches!(pair[1], b'/' | b'.'))
}

fn decode_unreserved(path: &str, slashes: EscapedSlashes) -> Result<String, Fault> {
    let mut out = String::with_capacity(path.len());
    let bytes = path.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'%' => {
                let value = bytes.get(at + 1..at + 3).and_then(hex_byte).ok_or(Fault::Encoding)?;
                push_decoded(value, slashes, &mut out)?;
                at += 3;
                continue;
            }
            b'\\' if slashes == EscapedSlashes::Refuse => return Err(Fault::EscapedSlash),
            b'\\' => out.push('/'),
            byte => out.push(char::from(*byte)),
        }
        at += 1;
    }
    Ok(out)
}

fn push_decoded(value: u8, slashes: EscapedSlashes, out: &mut String) -> Result<(), Fault> {
    match value {
        b'/' | b'\\' => match slashes {
            EscapedSlashes::Refuse => return Err(Fault::EscapedSlash),
            EscapedSlashes::Decode => out.push('/'),
            EscapedSlashes::Keep => push_encoded(value, out),
        },
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(value)),
        value => push_encoded(value, out),
    }
    Ok(())
}

fn push_encoded(value: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(value >> 4)]));
    out.push(char::from(DIGITS[usize::from(value & 15)]));
}

fn remove_dot_segments(path: &str, merge_slashes: bool) -> Result<String, Fault> {
    let mut out = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => out.push('/'),
            "." => {}
            ".." => {
                let parent = out.rfind('/').ok_or(Fault::AboveRoot)?;
                out.truncate(parent);
                if last {
                    out.push('/');
                }
            }
            "" if merge_slashes && !last => {}
            _ if is_dot_with_parameters(segment) => return Err(Fault::DotParameters),
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    Ok(out)
}

fn is_dot_with_parameters(segment: &str) -> bool {
    segment.starts_with(".;") || segment.starts_with("..;")
}

/// The path with the `;parameters` of its segments removed, if it has any.
fn without_parameters(path: &str) -> Option<Box<str>> {
    if !path.contains(';') {
        return None;
    }
    let bare: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    Some(bare.join("/").into())
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match digits {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

/// The longest path with its query.
pub(crate) const PATH_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
