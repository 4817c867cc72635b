//! The document: `kind: Entries`, an owner, and entries that may be templates. Unknown fields are refused, and every value
//! that can be wrong later remembers where it stood.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::{Place, Problem};

/// A document as it was written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) kind: Spanned<String>,
    /// Whose entries these are; letters, digits, dashes and underscores.
    pub(crate) owner: Spanned<String>,
    /// Values for `${var.NAME}`.
    #[serde(default)]
    pub(crate) vars: BTreeMap<String, String>,
    /// What entries say that do not say it themselves.
    #[serde(default)]
    pub(crate) defaults: Defaults,
    #[serde(default)]
    pub(crate) entries: Vec<Spanned<RawEntry>>,
    #[serde(skip)]
    pub(crate) file: PathBuf,
}

/// Values for entries that have none of their own.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    pub(crate) parent_id: Option<Spanned<String>>,
    pub(crate) x509_svid_ttl: Option<Spanned<String>>,
    pub(crate) jwt_svid_ttl: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) federates_with: Vec<Spanned<String>>,
}

/// An entry, or a template of entries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawEntry {
    /// The end of the entry's id; made from its content when left out.
    pub(crate) name: Option<Spanned<String>>,
    /// One entry for each value (`${each.value}`) or mapping (`${each.KEY}`).
    pub(crate) for_each: Option<Spanned<Vec<serde_json::Value>>>,
    /// One entry for each attested node that matches.
    pub(crate) for_each_node: Option<Spanned<NodeMatch>>,
    pub(crate) spiffe_id: Spanned<String>,
    pub(crate) parent_id: Option<Spanned<String>>,
    pub(crate) selectors: Vec<Spanned<String>>,
    pub(crate) x509_svid_ttl: Option<Spanned<String>>,
    pub(crate) jwt_svid_ttl: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) dns_names: Vec<Spanned<String>>,
    pub(crate) federates_with: Option<Vec<Spanned<String>>>,
    pub(crate) hint: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) admin: bool,
    #[serde(default)]
    pub(crate) downstream: bool,
    #[serde(default)]
    pub(crate) store_svid: bool,
    /// RFC 3339.
    pub(crate) expires_at: Option<Spanned<String>>,
    #[serde(default = "yes")]
    pub(crate) x509_svid_prefetch: bool,
    #[serde(default)]
    pub(crate) jwt_svid_jti: bool,
}

/// Which nodes; without any field all.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeMatch {
    pub(crate) attestation_type: Option<String>,
    /// The node has all of them.
    #[serde(default)]
    pub(crate) selectors: Vec<String>,
}

impl Document {
    pub(crate) fn at(&self, location: Location) -> Place {
        Place::new(&self.file, location)
    }
}

/// Reads files, and the `.yaml` and `.yml` files of folders.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Document>, Vec<Problem>> {
    let (mut documents, mut problems) = (Vec::new(), Vec::new());
    for path in paths {
        match files_of(path) {
            Ok(files) => {
                for file in files {
                    match read_file(&file) {
                        Ok(found) => documents.extend(found),
                        Err(problem) => problems.push(problem),
                    }
                }
            }
            Err(error) => problems.push(unreadable(path, &error)),
        }
    }
    if problems.is_empty() { Ok(documents) } else { Err(problems) }
}

fn files_of(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let yaml = file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        if yaml && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(file: &Path) -> Result<Vec<Document>, Problem> {
    let text = std::fs::metadata(file).and_then(|found| match found.len() {
        0..=FILE_BYTES_MAX => std::fs::read_to_string(file),
        _ => Err(std::io::ErrorKind::FileTooLarge.into()),
    });
    parse(file, &text.map_err(|error| unreadable(file, &error))?)
}

fn unreadable(file: &Path, error: &std::io::Error) -> Problem {
    let at = Place { file: file.to_owned(), line: 1, column: 1 };
    Problem::new(&at, format!("cannot be read: {error}"))
}

/// All documents of a text.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Vec<Document>, Problem> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: DEPTH_MAX, max_documents: DOCUMENTS_MAX },
    };
    let mut documents: Vec<Document> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| syntax(file, &error))?;
    for document in &mut documents {
        file.clone_into(&mut document.file);
        check(document)?;
    }
    Ok(documents)
}

fn check(document: &Document) -> Result<(), Problem> {
    let problem = |value: &Spanned<String>, text: String| Err(Problem::new(&document.at(value.referenced), text));
    if document.kind.value != KIND {
        return problem(
            &document.kind,
            format!("the kind is `{}`; registration documents are `{KIND}`", document.kind.value),
        );
    }
    let owner = &document.owner.value;
    let plain = owner.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if owner.is_empty() || owner.len() > OWNER_BYTES_MAX || !plain {
        let text =
            format!("the owner `{owner}` may hold at most {OWNER_BYTES_MAX} letters, digits, dashes and underscores");
        return problem(&document.owner, text);
    }
    Ok(())
}

fn syntax(file: &Path, error: &serde_saphyr::Error) -> Problem {
    let at = error.location().map_or_else(Place::default, |location| Place::new(file, location));
    let whole = error.without_snippet().to_string();
    // The place is reported beside the text, not inside it.
    let text = whole.rfind(" at line ").map_or(whole.as_str(), |cut| &whole[..cut]);
    let text = text.lines().next().unwrap_or_default().trim_end_matches(['.', ',', ':']);
    Problem::new(&Place { file: file.to_owned(), line: at.line.max(1), column: at.column.max(1) }, text)
}

const fn yes() -> bool {
    true
}

const KIND: &str = "Entries";
const FILE_BYTES_MAX: u64 = 4 << 20;
const DEPTH_MAX: usize = 32;
const DOCUMENTS_MAX: usize = 1_000;
const OWNER_BYTES_MAX: usize = 64;
