//! Ordered permit and deny rules: the first that matches decides, otherwise the default does.
//!
//! Where a request can be spelled or read in several ways, a deny rule matches if one of them does and an allow rule
//! only if all do. So neither `/x/../admin` nor a repeated header slips past a deny rule.

use serde_saphyr::Spanned;

use super::Fault;
use super::document::{self, Action};
use crate::facts::{Facts, HttpFacts};

/// The compiled rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorization {
    denies_by_default: bool,
    rules: Vec<Rule>,
}

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Let it pass.
    Allow {
        /// The rule that said so; `None` for the default.
        rule: Option<&'a str>,
    },
    /// Refuse it.
    Deny {
        /// The rule that said so; `None` for the default.
        rule: Option<&'a str>,
        /// HTTP status of the answer.
        status: u16,
        /// Body of the answer, if the rule has one of its own.
        body: Option<&'a str>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    name: String,
    when: Match,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Allow,
    Deny { status: u16, body: Option<String> },
}

/// `None` matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Match {
    methods: Option<Vec<String>>,
    path_prefixes: Option<Vec<String>>,
    hosts: Option<Vec<HostPattern>>,
    principals: Option<Vec<PrincipalPattern>>,
    headers: Vec<HeaderMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    Exact(String),
    /// Ends with this, dot included.
    Below(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PrincipalPattern {
    /// Any peer that has proven an identity.
    Any,
    Exact(String),
    Prefix(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct HeaderMatch {
    name: String,
    value: HeaderValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HeaderValue {
    Exact(String),
    Prefix(String),
    Present,
    Absent,
}

/// How many of a request's readings must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readings {
    Any,
    All,
}

impl Readings {
    fn hold<T>(self, mut readings: impl Iterator<Item = T>, test: impl FnMut(T) -> bool) -> bool {
        match self {
            Self::Any => readings.any(test),
            Self::All => readings.all(test),
        }
    }
}

impl Authorization {
    pub(super) fn compile(document: document::Authorization) -> Result<Self, Fault> {
        if let Some(rule) = document.rules.get(RULES_MAX) {
            return Err(Fault::at(&rule.name, format!("more than {RULES_MAX} rules")));
        }
        let mut rules = Vec::<Rule>::with_capacity(document.rules.len());
        for rule in document.rules {
            if rules.iter().any(|other| other.name == rule.name.value) {
                return Err(Fault::at(
                    &rule.name,
                    format!("a second rule `{}`; names tell rules apart in logs", rule.name.value),
                ));
            }
            rules.push(Rule::compile(rule)?);
        }
        Ok(Self { denies_by_default: document.default == Action::Deny, rules })
    }

    /// The answer to `request`.
    pub fn decide(&self, request: &Facts<'_>) -> Decision<'_> {
        match self.rules.iter().find(|rule| rule.matches(request)) {
            Some(Rule { name, outcome: Outcome::Allow, .. }) => Decision::Allow { rule: Some(name) },
            Some(Rule { name, outcome: Outcome::Deny { status, body }, .. }) => {
                Decision::Deny { rule: Some(name), status: *status, body: body.as_deref() }
            }
            None if self.denies_by_default => Decision::Deny { rule: None, status: STATUS_DENIED, body: None },
            None => Decision::Allow { rule: None },
        }
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether only the default answers.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What is answered where no rule matches: `allow` or `deny`.
    pub fn default_answer(&self) -> &'static str {
        if self.denies_by_default { "deny" } else { "allow" }
    }

    /// The names of the rules in their order, each with `allow` or `deny`.
    pub fn names(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.rules
            .iter()
            .map(|rule| (rule.name.as_str(), if matches!(rule.outcome, Outcome::Allow) { "allow" } else { "deny" }))
    }
}

impl Rule {
    fn compile(rule: document::Rule) -> Result<Self, Fault> {
        if rule.name.value.is_empty()
            || rule.name.value.len() > TEXT_BYTES_MAX
            || rule.name.value.chars().any(char::is_control)
        {
            return Err(Fault::at(&rule.name, format!("a rule's name has 1 to {TEXT_BYTES_MAX} printable bytes")));
        }
        let outcome = match rule.action {
            Action::Allow => Outcome::allow(rule.status.as_ref(), rule.body.as_ref())?,
            Action::Deny => Outcome::deny(rule.status, rule.body)?,
        };
        Ok(Self { name: rule.name.value, when: Match::compile(rule.when)?, outcome })
    }

    fn matches(&self, request: &Facts<'_>) -> bool {
        let readings = if matches!(self.outcome, Outcome::Allow) { Readings::All } else { Readings::Any };
        self.when.principal(request) && self.when.http(request.http.as_ref(), readings)
    }
}

impl Outcome {
    fn allow(status: Option<&Spanned<u16>>, body: Option<&Spanned<String>>) -> Result<Self, Fault> {
        if let Some(status) = status {
            return Err(Fault::at(status, "only a deny rule has a status"));
        }
        if let Some(body) = body {
            return Err(Fault::at(body, "only a deny rule has a body"));
        }
        Ok(Self::Allow)
    }

    fn deny(status: Option<Spanned<u16>>, body: Option<Spanned<String>>) -> Result<Self, Fault> {
        if let Some(status) = status.as_ref().filter(|status| !(400..600).contains(&status.value)) {
            return Err(Fault::at(status, "a denied request is answered with a status from 400 to 599"));
        }
        if let Some(body) = body.as_ref().filter(|body| body.value.len() > BODY_BYTES_MAX) {
            return Err(Fault::at(body, format!("longer than {BODY_BYTES_MAX} bytes")));
        }
        Ok(Self::Deny {
            status: status.map_or(STATUS_DENIED, |status| status.value),
            body: body.map(|body| body.value),
        })
    }
}

impl Match {
    fn compile(raw: document::Match) -> Result<Self, Fault> {
        Ok(Self {
            methods: list(raw.methods, |text| {
                let token = !text.is_empty()
                    && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_');
                if token { Ok(text) } else { Err("a method is written in capitals, such as GET") }
            })?,
            path_prefixes: list(raw.path_prefixes, |text| {
                if text.starts_with('/') && !text.contains(['?', '#', '*']) {
                    Ok(text)
                } else {
                    Err("a path prefix begins with / and has no ?, # or *")
                }
            })?,
            hosts: list(raw.hosts, |text| HostPattern::parse(&text))?,
            principals: list(raw.principals, |text| PrincipalPattern::parse(&text))?,
            headers: headers(raw.headers)?,
        })
    }

    fn principal(&self, request: &Facts<'_>) -> bool {
        let Some(patterns) = &self.principals else { return true };
        !request.principal.is_empty() && patterns.iter().any(|pattern| pattern.matches(request.principal))
    }

    /// A connection that is not HTTP has no method, host, path or header: a deny rule that asks for one then matches,
    /// an allow rule does not.
    fn http(&self, request: Option<&HttpFacts<'_>>, readings: Readings) -> bool {
        let Some(request) = request else {
            let asks = self.methods.is_some()
                || self.path_prefixes.is_some()
                || self.hosts.is_some()
                || !self.headers.is_empty();
            return !asks || readings == Readings::Any;
        };
        self.methods.as_ref().is_none_or(|methods| methods.iter().any(|method| method == request.method))
            && self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|host| host.matches(&request.host)))
            && self.path_prefixes.as_ref().is_none_or(|prefixes| {
                readings.hold(request.paths(), |path| prefixes.iter().any(|prefix| below(path, prefix)))
            })
            && self.headers.iter().all(|header| header.matches(request, readings))
    }
}

impl HostPattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix('*') {
            Some("") => Ok(Self::Any),
            Some(rest) if rest.len() > 1 && rest.starts_with('.') && !rest.contains('*') => {
                Ok(Self::Below(rest.to_owned()))
            }
            None if !lower.is_empty() && !lower.contains(['*', '/', ' ']) => Ok(Self::Exact(lower)),
            _ => Err("a host is a name, *.NAME or *"),
        }
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => host == name,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}

impl PrincipalPattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "a principal is a SPIFFE ID, the beginning of one with * at its end, or *";
        let (stem, open) = text.strip_suffix('*').map_or((text, false), |stem| (stem, true));
        if open && stem.is_empty() {
            return Ok(Self::Any);
        }
        if stem.contains('*') || !stem.starts_with("spiffe://") {
            return Err(FORM);
        }
        if !open {
            return identity::SpiffeId::parse(stem).map(|id| Self::Exact(id.as_str().to_owned())).map_err(|_| FORM);
        }
        // The trust domain must be whole: `spiffe://prod*` would also mean `spiffe://prod.attacker.example`.
        let whole = stem["spiffe://".len()..].split_once('/').is_some_and(|(domain, _)| !domain.is_empty());
        if whole { Ok(Self::Prefix(stem.to_owned())) } else { Err("the trust domain before * must end with /") }
    }

    fn matches(&self, principal: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(id) => principal == id,
            Self::Prefix(stem) => principal.starts_with(stem.as_str()),
        }
    }
}

impl HeaderMatch {
    fn compile(raw: document::Header) -> Result<Self, Fault> {
        let name = raw.name.value.to_ascii_lowercase();
        if name.is_empty()
            || name.len() > TEXT_BYTES_MAX
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        {
            return Err(Fault::at(&raw.name, "not a header name"));
        }
        let value = match (raw.exact, raw.prefix, raw.present) {
            (Some(text), None, None) => HeaderValue::Exact(text),
            (None, Some(text), None) => HeaderValue::Prefix(text),
            (None, None, Some(true)) => HeaderValue::Present,
            (None, None, Some(false)) => HeaderValue::Absent,
            _ => return Err(Fault::at(&raw.name, "a header needs one of exact, prefix, present")),
        };
        Ok(Self { name, value })
    }

    fn matches(&self, request: &HttpFacts<'_>, readings: Readings) -> bool {
        let lines = request.header(&self.name);
        let test = |value: &str| match &self.value {
            HeaderValue::Exact(text) => value == text,
            HeaderValue::Prefix(text) => value.starts_with(text.as_str()),
            HeaderValue::Present | HeaderValue::Absent => true,
        };
        match (&self.value, readings) {
            (HeaderValue::Present, _) => !lines.is_empty(),
            (HeaderValue::Absent, _) => lines.is_empty(),
            (_, Readings::All) => !lines.is_empty() && lines.iter().all(|line| test(line)),
            (_, Readings::Any) => lines.iter().any(|line| test(line) || line.split(',').any(|part| test(part.trim()))),
        }
    }
}

/// Whether `path` is `prefix` or lies below it, by whole segments.
fn below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}

fn list<T>(
    raw: Option<Spanned<Vec<String>>>,
    mut parse: impl FnMut(String) -> Result<T, &'static str>,
) -> Result<Option<Vec<T>>, Fault> {
    let Some(mut raw) = raw else { return Ok(None) };
    let elements = std::mem::take(&mut raw.value);
    if elements.is_empty() || elements.len() > LIST_MAX {
        return Err(Fault::at(
            &raw,
            format!("a list here has 1 to {LIST_MAX} elements; leave it out to match everything"),
        ));
    }
    if let Some(long) = elements.iter().find(|element| element.len() > PATTERN_BYTES_MAX) {
        return Err(Fault::at(&raw, format!("an element of {} bytes, more than {PATTERN_BYTES_MAX}", long.len())));
    }
    let parsed = elements
        .into_iter()
        .map(|element| parse(element.clone()).map_err(|why| Fault::at(&raw, format!("`{element}`: {why}"))));
    parsed.collect::<Result<_, _>>().map(Some)
}

fn headers(raw: Option<Spanned<Vec<document::Header>>>) -> Result<Vec<HeaderMatch>, Fault> {
    let Some(mut raw) = raw else { return Ok(Vec::new()) };
    let elements = std::mem::take(&mut raw.value);
    if elements.is_empty() || elements.len() > LIST_MAX {
        return Err(Fault::at(
            &raw,
            format!("a list here has 1 to {LIST_MAX} elements; leave it out to match everything"),
        ));
    }
    elements.into_iter().map(HeaderMatch::compile).collect()
}

/// The status where a deny rule names none.
const STATUS_DENIED: u16 = 403;
/// Rules in one file.
const RULES_MAX: usize = 1_000;
/// Elements of one list.
const LIST_MAX: usize = 256;
/// Bytes of one element of a list.
const PATTERN_BYTES_MAX: usize = 2_048;
/// Bytes of a name.
const TEXT_BYTES_MAX: usize = 128;
/// Bytes of a denied request's body.
const BODY_BYTES_MAX: usize = 8 << 10;

#[cfg(test)]
#[path = "authorization_tests.rs"]
mod tests;
