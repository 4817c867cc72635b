//! The rights file as it is written. What it says is checked here, with line and column; [`Rights`] is what it means.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Grant, Right, Rights, Scope, Verb};
use crate::document::{DocumentError, DocumentKind, Fault};
use crate::policy::pattern::PathPattern;

/// The rights among the documents that operators write.
pub(super) const KIND: DocumentKind = DocumentKind {
    name: "rights file",
    unreadable: "RIGHTS_UNREADABLE",
    invalid: "RIGHTS_INVALID",
    bytes_max: 1 << 20,
};

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

impl Rights {
    /// Reads rights from a file.
    ///
    /// # Errors
    /// When it cannot be read or says something impossible; the error names the place.
    pub fn load(file: &Path) -> Result<Self, DocumentError> {
        Self::parse(file, &KIND.read(file)?)
    }

    /// The same from its text.
    ///
    /// # Errors
    /// When it says something impossible.
    pub fn parse(file: &Path, text: &str) -> Result<Self, DocumentError> {
        KIND.parse(file, text, |document: &Document| document.check(text))
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

const NAME_BYTES_MAX: usize = 128;
const APPROVAL_LIFE: Duration = Duration::from_secs(15 * 60);
const APPROVAL_LIFE_MIN: Duration = Duration::from_secs(60);
const APPROVAL_LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
