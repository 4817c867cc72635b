//! Secrets taken out of texts of any kind: what has a secret's shape, and what stands where a secret stands.
//!
//! It errs on the side of removing: a name that sounds like a secret's loses its value, also if that was harmless.

/// Takes secrets out.
pub(super) struct Redactor {
    known: Vec<String>,
}

impl Redactor {
    /// Removes also these wherever they stand; what is too short to be a secret is not among them.
    pub(super) fn with_known(known: Vec<String>) -> Self {
        Self { known: known.into_iter().filter(|secret| secret.len() >= KNOWN_BYTES_MIN).collect() }
    }

    pub(super) fn clean(&self, text: &str) -> String {
        let text = self.known.iter().fold(text.to_owned(), |text, secret| text.replace(secret, REMOVED));
        let text = without_secret_documents(&text);
        let text = without_blocks(&text);
        let text = without_url_passwords(&text);
        let text = without_shapes(&text);
        without_named(&text)
    }
}

/// YAML documents that are Kubernetes Secrets.
fn without_secret_documents(text: &str) -> String {
    let is_secret = |part: &str| {
        part.lines().any(|line| line.trim_end().trim_matches(['{', ',']).replace(['"', '\''], "") == "kind: Secret")
    };
    let parts = text.split("\n---").map(|part| if is_secret(part) { "\n# removed: a Secret" } else { part });
    parts.collect::<Vec<_>>().join("\n---")
}

/// PEM blocks of keys, with real line ends or written as `\n`.
fn without_blocks(text: &str) -> String {
    let (mut clean, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(begin) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(begin);
        clean.push_str(before);
        let label =
            block.get(BEGIN.len()..).and_then(|text| text.split_once("-----")).map_or(block, |(label, _)| label);
        let end = block.find(END).and_then(|at| Some(at + END.len() + block.get(at + END.len()..)?.find("-----")? + 5));
        // A block without an end is one all the same.
        let (block, after) = block.split_at(end.unwrap_or(block.len()));
        clean.push_str(if label.ends_with("CERTIFICATE") { block } else { REMOVED });
        rest = after;
    }
    clean.push_str(rest);
    clean
}

/// `scheme://user:password@host`.
fn without_url_passwords(text: &str) -> String {
    let (mut clean, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + "://".len());
        clean.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "\"'`<>,".contains(c)).unwrap_or(after.len());
        let (url, after) = after.split_at(end);
        match url.rsplit_once('@').and_then(|(login, host)| Some((login.split_once(':')?.0, host))) {
            Some((user, host)) => clean.push_str(&format!("{user}:{REMOVED}@{host}")),
            None => clean.push_str(url),
        }
        rest = after;
    }
    clean.push_str(rest);
    clean
}

/// Words that look like tokens and keys: JWTs, private keys in base64.
fn without_shapes(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.+/=~".contains(c);
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_part(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        clean.push_str(if is_token(word) || is_key(word) { REMOVED } else { word });
        let mut chars = after.chars();
        clean.extend(chars.next());
        rest = chars.as_str();
    }
    clean
}

/// A JSON object in base64url begins with `eyJ`; signed, it goes on with a dot.
fn is_token(word: &str) -> bool {
    word.match_indices("eyJ").any(|(at, _)| word.get(at..).is_some_and(|rest| rest.contains('.')))
}

fn is_key(word: &str) -> bool {
    word.len() >= KEY_BYTES_MIN && KEYS.iter().any(|begin| word.contains(begin))
}

/// Values of names that sound like a secret's: `name: value`, `name=value`, `"name": "value"`; and what follows `Bearer`.
fn without_named(text: &str) -> String {
    let mut clean: Vec<String> = Vec::new();
    let mut block: Option<usize> = None;
    for line in text.split('\n') {
        let indent = line.len() - line.trim_start().len();
        if block.is_some_and(|above| line.trim().is_empty() || indent > above) {
            continue;
        }
        let (line, opens) = line_without_named(line);
        block = opens.then_some(indent);
        clean.push(line);
    }
    clean.join("\n")
}

/// The line, and whether a value below it belongs to a secret's name.
fn line_without_named(line: &str) -> (String, bool) {
    let (mut clean, mut rest) = (String::with_capacity(line.len()), line);
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    while let Some(begin) = rest.find(is_name) {
        clean.push_str(&rest[..begin]);
        let word = &rest[begin..];
        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
        let (name, after) = word.split_at(end);
        clean.push_str(name);
        rest = after;
        let Some(value_at) = (if name.eq_ignore_ascii_case("bearer") { spaces(after) } else { value_of(name, after) })
        else {
            continue;
        };
        let (between, value) = after.split_at(value_at);
        clean.push_str(between);
        if value.is_empty() || value.starts_with(['|', '>']) && value.len() <= "|-2".len() {
            return (format!("{clean}{REMOVED}"), true);
        }
        let end = value_end(value);
        clean.push_str(REMOVED);
        rest = &value[end..];
    }
    clean.push_str(rest);
    (clean, false)
}

fn spaces(after: &str) -> Option<usize> {
    let value = after.trim_start_matches(' ');
    (value.len() < after.len() && !value.is_empty()).then(|| after.len() - value.len())
}

/// Where the value of a secret's name begins in what follows the name.
fn value_of(name: &str, after: &str) -> Option<usize> {
    if !is_secret_name(name) {
        return None;
    }
    let value = after.trim_start_matches(['"', '\'', '\\', ' ']).strip_prefix([':', '='])?.trim_start();
    Some(after.len() - value.len())
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let place = ["_file", "_path", "_ttl", "_dir", "_name", "_at", "_type", "_id", "_max", "_seconds"];
    if place.iter().any(|end| name.ends_with(end)) {
        return false;
    }
    JWK_PRIVATE.contains(&name.as_str()) || SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// Where a value ends: at its quote, or where the next member or field begins.
fn value_end(value: &str) -> usize {
    let (quote, skip) = match value.as_bytes() {
        [b'\\', b'"', ..] => ("\\\"", 2),
        [b'"', ..] => ("\"", 1),
        [b'\'', ..] => ("'", 1),
        _ => return value.find([',', '}', ']', '&']).unwrap_or(value.len()),
    };
    let mut at = skip;
    while let Some(found) = value.get(at..).and_then(|rest| rest.find(quote)) {
        let escaped = quote == "\"" && value.as_bytes().get(at + found - 1) == Some(&b'\\') && found > 0;
        at += found + quote.len();
        if !escaped {
            return at;
        }
    }
    value.len()
}

const REMOVED: &str = "[removed]";
const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const KNOWN_BYTES_MIN: usize = 8;
const KEY_BYTES_MIN: usize = 40;
/// How PKCS#8 and SEC1 keys begin in base64: P-256, P-384, Ed25519, RSA of 2048 to 4096 bits.
const KEYS: &[&str] =
    &["MIGHAgEA", "MIG2AgEA", "MC4CAQ", "MFECAQ", "AgEAMA0G", "IBADAN", "AgEAAo", "MHcCAQ", "MIGkAgEB"];
const SECRET_NAMES: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "credential",
    "private_key",
    "privatekey",
    "api_key",
    "apikey",
    "pin",
    "seed",
];
/// Members of JWKs that are secret (RFC 7518, 6.2.2, 6.3.2, 6.4).
const JWK_PRIVATE: &[&str] = &["d", "k", "p", "q", "dp", "dq", "qi", "oth"];

#[cfg(test)]
mod tests;
