//! The rights file as it is written. What it says is checked here, with line and column; [`Rights`] is what it means.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Grant, Right, Rights, Scope, Verb};
use crate::policy::pattern::PathPattern;

/// Why rights cannot be in force.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RightsError {
    /// The file cannot be read.
    #[error("{}: the rights file cannot be read: {text}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// The system's answer.
        text: String,
    },
    /// The file says something impossible.
    #[error("{}:{line}:{column}: {text}", file.display())]
    Invalid {
        /// Which.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        text: String,
    },
}

impl RightsError {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "RIGHTS_UNREADABLE",
            Self::Invalid { .. } => "RIGHTS_INVALID",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    roles: BTreeMap<String, BTreeMap<String, Option<Vec<Spanned<String>>>>>,
    #[serde(default)]
    grants: Vec<GrantDocument>,
    #[serde(default)]
    two_person: Vec<Spanned<String>>,
    #[serde(default, with = "humantime_serde")]
    approval_life: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantDocument {
    #[serde(default)]
    ids: Vec<Spanned<String>>,
    #[serde(default)]
    users: BTreeSet<u32>,
    #[serde(default)]
    groups: BTreeSet<u32>,
    roles: Spanned<Vec<Spanned<String>>>,
}

/// Something impossible at a place.
struct Fault {
    line: u64,
    column: u64,
    text: String,
}

impl Fault {
    fn at<T>(place: &Spanned<T>, text: impl Into<String>) -> Self {
        Self { line: place.referenced.line(), column: place.referenced.column(), text: text.into() }
    }

    /// Names of roles and verbs carry no place of their own: it is found in the text.
    fn of(source: &str, word: &str, text: impl Into<String>) -> Self {
        let found = source.lines().enumerate().find_map(|(line, text)| Some((line, text.find(word)?)));
        let (line, column) = found.map_or((1, 1), |(line, column)| (line as u64 + 1, column as u64 + 1));
        Self { line, column, text: text.into() }
    }
}

impl Rights {
    /// Reads rights from a file.
    ///
    /// # Errors
    /// When it cannot be read or says something impossible; the error names the place.
    pub fn load(file: &Path) -> Result<Self, RightsError> {
        let unreadable = |text: String| RightsError::Unreadable { file: file.to_owned(), text };
        let bytes = std::fs::metadata(file).map_err(|error| unreadable(error.to_string()))?.len();
        if bytes > BYTES_MAX {
            return Err(unreadable(format!("it has {bytes} bytes, more than {BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?;
        Self::parse(file, &text)
    }

    /// The same from its text.
    ///
    /// # Errors
    /// When it says something impossible.
    pub fn parse(file: &Path, text: &str) -> Result<Self, RightsError> {
        let document: Document = serde_saphyr::from_str(text).map_err(|error| syntax(file, &error))?;
        document.check(text).map_err(|Fault { line, column, text }| RightsError::Invalid {
            file: file.to_owned(),
            line,
            column,
            text,
        })
    }
}

impl Document {
    fn check(&self, source: &str) -> Result<Rights, Fault> {
        let mut roles = BTreeMap::new();
        for (name, verbs) in &self.roles {
            roles.insert(name.as_str(), role(source, name, verbs)?);
        }
        let grants = self.grants.iter().map(|grant| grant.check(&roles)).collect::<Result<_, _>>()?;
        let two_person = self.two_person.iter().map(two_person_verb).collect::<Result<_, _>>()?;
        let approval_life = self.approval_life.unwrap_or(APPROVAL_LIFE);
        if !(APPROVAL_LIFE_MIN..=APPROVAL_LIFE_MAX).contains(&approval_life) {
            return Err(Fault::of(source, "approval_life", "`approval_life` must be from 1m to 24h"));
        }
        Ok(Rights { grants, two_person, approval_life, roles: roles.len() })
    }
}

type Verbs = BTreeMap<String, Option<Vec<Spanned<String>>>>;

fn role(source: &str, name: &str, verbs: &Verbs) -> Result<Vec<Right>, Fault> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Fault::of(source, name, format!("a role's name has 1 to {NAME_BYTES_MAX} bytes")));
    }
    let mut rights = Vec::new();
    for (word, ids) in verbs {
        let verb = Verb::parse(word).ok_or_else(|| Fault::of(source, word, unknown(word)))?;
        let ids = ids.as_deref().unwrap_or_default();
        let scope = match (verb.is_scoped(), ids.first()) {
            // Nothing is never everything: a list that was forgotten must not open all.
            (true, None) => {
                let text = format!("`{verb}` needs the identities that it is for; [/**] is all of them");
                return Err(Fault::of(source, word, text));
            }
            (true, Some(_)) => scope(ids)?,
            (false, None) => Scope::Whole,
            (false, Some(first)) => {
                return Err(Fault::at(first, format!("`{verb}` is not for identities; leave its list empty")));
            }
        };
        rights.push(Right { role: name.to_owned(), verb, scope });
    }
    Ok(rights)
}

fn scope(ids: &[Spanned<String>]) -> Result<Scope, Fault> {
    if ids.iter().any(|id| id.value == "/**") {
        return Ok(Scope::Whole);
    }
    patterns(ids).map(Scope::Ids)
}

fn patterns(texts: &[Spanned<String>]) -> Result<Vec<PathPattern>, Fault> {
    texts.iter().map(|text| PathPattern::parse(&text.value).map_err(|problem| Fault::at(text, problem))).collect()
}

impl GrantDocument {
    fn check(&self, roles: &BTreeMap<&str, Vec<Right>>) -> Result<Grant, Fault> {
        if self.ids.is_empty() && self.users.is_empty() && self.groups.is_empty() {
            return Err(Fault::at(&self.roles, "a grant needs `ids`, `users` or `groups`"));
        }
        let mut rights = Vec::new();
        for name in &self.roles.value {
            let role = roles.get(name.value.as_str());
            let unknown = || Fault::at(name, format!("there is no role {:?}", name.value));
            rights.extend(role.ok_or_else(unknown)?.iter().cloned());
        }
        Ok(Grant { ids: patterns(&self.ids)?, users: self.users.clone(), groups: self.groups.clone(), rights })
    }
}

fn two_person_verb(word: &Spanned<String>) -> Result<Verb, Fault> {
    Verb::parse(&word.value).ok_or_else(|| Fault::at(word, unknown(&word.value)))
}

fn unknown(word: &str) -> String {
    let verbs: Vec<&str> = Verb::ALL.into_iter().map(Verb::as_str).collect();
    format!("there is no verb {word:?}; there are {}", verbs.join(", "))
}

fn syntax(file: &Path, error: &serde_saphyr::Error) -> RightsError {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let text = first.strip_suffix(&format!(" at line {line}, column {column}")).unwrap_or(first).to_owned();
    RightsError::Invalid { file: file.to_owned(), line, column, text }
}

/// The largest rights file.
pub(super) const BYTES_MAX: u64 = 1 << 20;
const NAME_BYTES_MAX: usize = 128;
const APPROVAL_LIFE: Duration = Duration::from_secs(15 * 60);
const APPROVAL_LIFE_MIN: Duration = Duration::from_secs(60);
const APPROVAL_LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
