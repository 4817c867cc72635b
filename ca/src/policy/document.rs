//! The policy file as it is written. What it says is checked here, with line and column; [`Policy`] is what it means.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::pattern::{CallerPattern, DnsPattern, PathPattern};
use super::quota::{By, Quota};
use super::{KeyType, Policy, Rule};
use crate::document::{DocumentError, DocumentKind, Fault};

/// The policy among the documents that operators write.
pub(super) const KIND: DocumentKind = DocumentKind {
    name: "issuance policy",
    unreadable: "ISSUANCE_POLICY_UNREADABLE",
    invalid: "ISSUANCE_POLICY_INVALID",
    bytes_max: 4 << 20,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// The answer where no rule speaks.
    default: Default,
    #[serde(default)]
    rules: Vec<RuleDocument>,
    #[serde(default)]
    quotas: Vec<QuotaDocument>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Default {
    Allow,
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleDocument {
    name: Spanned<String>,
    #[serde(default)]
    deny: bool,
    ids: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    callers: Vec<Spanned<String>>,
    #[serde(default)]
    kinds: Vec<Spanned<String>>,
    ttl: Option<Spanned<TtlDocument>>,
    dns_names: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    key_types: Vec<Spanned<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TtlDocument {
    #[serde(default, with = "humantime_serde")]
    min: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    max: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaDocument {
    name: Spanned<String>,
    by: By,
    #[serde(default)]
    ids: Vec<Spanned<String>>,
    limit: Spanned<u32>,
    #[serde(with = "humantime_serde")]
    per: Duration,
}

impl Policy {
    /// Reads the policy of the authority of `trust_domain` from a file.
    ///
    /// # Errors
    /// When it cannot be read, or says something impossible: with line and column.
    pub fn load(file: &Path, trust_domain: &str) -> Result<Self, DocumentError> {
        Self::parse(file, &KIND.read(file)?, trust_domain)
    }

    /// The same from its text.
    ///
    /// # Errors
    /// When it says something impossible.
    pub fn parse(file: &Path, text: &str, trust_domain: &str) -> Result<Self, DocumentError> {
        KIND.parse(file, text, |document: &Document| document.check(trust_domain))
    }
}

impl Document {
    fn check(&self, trust_domain: &str) -> Result<Policy, Fault> {
        let mut names = BTreeSet::new();
        let mut named = |name: &Spanned<String>| {
            if name.value.is_empty() || name.value.len() > NAME_BYTES_MAX {
                return Err(Fault::at(name, format!("a name has 1 to {NAME_BYTES_MAX} bytes")));
            }
            if !names.insert(name.value.clone()) {
                return Err(Fault::at(name, format!("the name {:?} is given twice", name.value)));
            }
            Ok(())
        };
        for name in self.rules.iter().map(|rule| &rule.name).chain(self.quotas.iter().map(|quota| &quota.name)) {
            named(name)?;
        }
        Ok(Policy {
            rules: self.rules.iter().map(|rule| rule.check(trust_domain)).collect::<Result<_, _>>()?,
            deny_by_default: self.default == Default::Deny,
            quotas: self.quotas.iter().map(QuotaDocument::check).collect::<Result<_, _>>()?,
        })
    }
}

impl RuleDocument {
    fn check(&self, trust_domain: &str) -> Result<Rule, Fault> {
        if self.ids.value.is_empty() {
            return Err(Fault::at(&self.ids, "a rule needs at least one pattern in `ids`; /** is every identity"));
        }
        if let Some(ttl) = &self.ttl {
            let TtlDocument { min, max } = ttl.value;
            if min.zip(max).is_some_and(|(min, max)| min > max) || max.is_some_and(|max| max.is_zero()) {
                return Err(Fault::at(ttl, "no life is as long as `min` and as short as `max`"));
            }
        }
        let ttl = self.ttl.as_ref().map(|ttl| ttl.value);
        Ok(Rule {
            name: self.name.value.clone(),
            deny: self.deny,
            ids: each(&self.ids.value, PathPattern::parse)?,
            callers: each(&self.callers, |text| CallerPattern::parse(text, trust_domain))?,
            kinds: each(&self.kinds, kind)?,
            ttl_min: ttl.and_then(|ttl| ttl.min),
            ttl_max: ttl.and_then(|ttl| ttl.max),
            dns_names: self.dns_names.as_ref().map(|names| each(names, DnsPattern::parse)).transpose()?,
            key_types: each(&self.key_types, key_type)?,
        })
    }
}

impl QuotaDocument {
    fn check(&self) -> Result<Quota, Fault> {
        if self.limit.value == 0 {
            return Err(Fault::at(
                &self.limit,
                "a quota of 0 would stop everything; write a rule with `deny: true` instead",
            ));
        }
        if !(PER_MIN..=PER_MAX).contains(&self.per) {
            return Err(Fault::at(&self.name, "`per` must be from 1s to 31 days"));
        }
        Ok(Quota {
            name: self.name.value.clone(),
            by: self.by,
            ids: each(&self.ids, PathPattern::parse)?,
            limit: self.limit.value,
            per: self.per,
        })
    }
}

fn each<T>(texts: &[Spanned<String>], parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Fault> {
    texts.iter().map(|text| parse(&text.value).map_err(|problem| Fault::at(text, problem))).collect()
}

fn kind(text: &str) -> Result<String, String> {
    if KINDS.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("there is no kind {text:?}; there are {}", KINDS.join(", ")))
}

fn key_type(text: &str) -> Result<KeyType, String> {
    KeyType::parse(text).ok_or_else(|| {
        format!("there is no key type {text:?}; there are P-256, P-384, Ed25519 and RSA-BITS from RSA-2048 up")
    })
}

/// The ways of issuing that a rule can name. Nodes' own SVIDs are not judged.
const KINDS: [&str; 7] = ["x509", "jwt", "wit", "csr", "mint_x509", "mint_jwt", "mint_wit"];
const NAME_BYTES_MAX: usize = 128;
const PER_MIN: Duration = Duration::from_secs(1);
const PER_MAX: Duration = Duration::from_secs(31 * 24 * 3600);
