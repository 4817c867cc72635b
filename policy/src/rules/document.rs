//! The rules file as it is written; [`super::Rules`] is what it means.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::limits::Unit;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) authorization: Authorization,
    #[serde(default)]
    pub(super) quotas: Vec<Quotas>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Authorization {
    /// The answer where no rule matches.
    #[serde(default)]
    pub(super) default: Action,
    #[serde(default)]
    pub(super) rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    #[default]
    Allow,
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) name: Spanned<String>,
    pub(super) action: Action,
    /// Everything, when left out.
    #[serde(default, rename = "match")]
    pub(super) when: Match,
    /// Status of the answer to a denied request.
    pub(super) status: Option<Spanned<u16>>,
    /// Body of the answer to a denied request.
    pub(super) body: Option<Spanned<String>>,
}

/// All parts that are given must match; of a list, one element.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Match {
    pub(super) methods: Option<Spanned<Vec<String>>>,
    pub(super) path_prefixes: Option<Spanned<Vec<String>>>,
    pub(super) hosts: Option<Spanned<Vec<String>>>,
    pub(super) principals: Option<Spanned<Vec<String>>>,
    /// Every header must match.
    pub(super) headers: Option<Spanned<Vec<Header>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) name: Spanned<String>,
    pub(super) exact: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) present: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Quotas {
    pub(super) domain: Spanned<String>,
    pub(super) limits: Vec<Limit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    pub(super) descriptor: Spanned<Vec<Entry>>,
    pub(super) requests: Spanned<u32>,
    pub(super) per: Unit,
    /// How many may come at once; as many as `requests`, when left out.
    pub(super) burst: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Any value, each with a bucket of its own, when left out.
    pub(super) value: Option<String>,
}
