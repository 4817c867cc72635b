//! Why a policy holds or does not: the tests of [`super::rule`] put into words, each by its own answer.

use std::sync::Arc;

use super::rule::{Facts, HttpTest, PeerTest, Rule};
use super::{Engine, Policy, RbacFilter};
use crate::request::{Connection, Request};

/// One policy, tried on a request or a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Its name.
    pub policy: Arc<str>,
    /// Whether it matches.
    pub matched: bool,
    /// What decided that, in words.
    pub why: String,
}

impl RbacFilter {
    /// Every enforced policy, tried on a request, in the order of their names. The first that matches decides.
    pub fn try_all(&self, request: &Request<'_>) -> Vec<Tried> {
        self.rules.as_ref().map(|engine| engine.try_all(&Facts::request(request))).unwrap_or_default()
    }

    /// Every enforced policy, tried on a connection.
    pub fn try_all_on_connection(&self, connection: &Connection) -> Vec<Tried> {
        self.rules.as_ref().map(|engine| engine.try_all(&Facts::connection(connection))).unwrap_or_default()
    }

    /// Every watched policy, tried on a request.
    pub fn try_all_watched(&self, request: &Request<'_>) -> Vec<Tried> {
        self.shadow.as_ref().map(|engine| engine.try_all(&Facts::request(request))).unwrap_or_default()
    }
}

impl Engine {
    fn try_all(&self, facts: &Facts<'_>) -> Vec<Tried> {
        self.policies.iter().map(|policy| policy.tried(facts)).collect()
    }
}

impl Policy {
    fn tried(&self, facts: &Facts<'_>) -> Tried {
        let matched = self.matches(facts);
        let parts = [&self.permissions, &self.principals].into_iter().filter(|part| part.matches(facts) == matched);
        let mut whys: Vec<String> = parts.map(|part| Why::of(part, facts).text()).collect();
        whys.retain(|why| !why.is_empty());
        whys.dedup();
        if whys.is_empty() {
            whys.push("it has no conditions".to_owned());
        }
        Tried { policy: self.name.clone(), matched, why: whys.join("; ") }
    }
}

/// An answer in parts, so that tests of one thing can be told together.
enum Why {
    /// Nothing was asked.
    Always,
    Never,
    Fact {
        subject: String,
        /// What the request has; `None` where it has nothing of the kind.
        found: Option<String>,
        wanted: Vec<String>,
        passes: bool,
    },
    All(Vec<Self>),
    /// It is so, and must not be.
    Excluded(Box<Self>),
}

impl Why {
    /// Why the rule has the answer that it has.
    fn of(rule: &Rule, facts: &Facts<'_>) -> Self {
        let answer = rule.matches(facts);
        match rule {
            Rule::Always => Self::Always,
            Rule::All(rules) if answer => Self::joined(rules.iter(), facts),
            Rule::All(rules) => Self::first(rules, facts, false),
            Rule::Any(rules) if answer => Self::first(rules, facts, true),
            Rule::Any(rules) => Self::joined(rules.iter(), facts),
            Rule::Not(inner) => match Self::of(inner, facts) {
                Self::Always => Self::Never,
                Self::Never => Self::Always,
                Self::Fact { subject, found: None, wanted, .. } if answer => {
                    Self::Fact { subject, found: None, wanted, passes: true }
                }
                other if answer => other,
                other => Self::Excluded(Box::new(other)),
            },
            leaf => Self::of_test(leaf, facts, answer),
        }
    }

    fn first(rules: &[Rule], facts: &Facts<'_>, answer: bool) -> Self {
        rules.iter().find(|rule| rule.matches(facts) == answer).map_or(Self::Never, |rule| Self::of(rule, facts))
    }

    /// What several say together; failing tests of one thing become one.
    fn joined<'r>(rules: impl Iterator<Item = &'r Rule>, facts: &Facts<'_>) -> Self {
        let mut parts: Vec<Self> = Vec::new();
        for part in rules.map(|rule| Self::of(rule, facts)).filter(|part| !matches!(part, Self::Always)) {
            let left = match parts.last_mut() {
                Some(last) => last.absorb(part),
                None => Some(part),
            };
            parts.extend(left);
        }
        match parts.len() {
            0 => Self::Always,
            1 => parts.remove(0),
            _ => Self::All(parts),
        }
    }

    /// Takes over what another failing test of the same thing wanted; gives back what is something else.
    fn absorb(&mut self, other: Self) -> Option<Self> {
        let Self::Fact { subject, found, wanted, passes: false } = self else { return Some(other) };
        match other {
            Self::Fact { subject: of, found: with, wanted: more, passes: false }
                if *subject == of && *found == with =>
            {
                wanted.extend(more);
                None
            }
            other => Some(other),
        }
    }

    fn of_test(rule: &Rule, facts: &Facts<'_>, passes: bool) -> Self {
        let connection = facts.connection;
        let fact = |subject: &str, found: Option<String>, wanted: String| Self::Fact {
            subject: subject.to_owned(),
            found,
            wanted: vec![wanted],
            passes,
        };
        match rule {
            Rule::Http(test, _) => match facts.request {
                Some(request) => Self::of_http(test, request, passes),
                None => fact("the request", None, "a test of HTTP, which a connection cannot answer".to_owned()),
            },
            Rule::DestinationIp(range) => {
                fact("destination", Some(connection.destination.ip().to_string()), range.to_string())
            }
            Rule::DestinationPort(first, last) => {
                let wanted = if first == last { first.to_string() } else { format!("{first} to {last}") };
                fact("port", Some(connection.destination.port().to_string()), wanted)
            }
            Rule::ServerName(test) => fact("server name", connection.sni.as_deref().map(Into::into), test.to_string()),
            Rule::Peer(test) => {
                let wanted = match test {
                    PeerTest::Present => "*".to_owned(),
                    PeerTest::Name(test) | PeerTest::Uri(test) | PeerTest::Dns(test) => test.to_string(),
                };
                fact("peer", connection.peer.as_ref().map(ToString::to_string), wanted)
            }
            Rule::DirectSource(range) => {
                fact("source", Some(connection.direct_source.ip().to_string()), range.to_string())
            }
            Rule::Source(range) => fact("source", Some(connection.source.ip().to_string()), range.to_string()),
            Rule::Remote(range) => fact("remote", Some(facts.remote().to_string()), range.to_string()),
            Rule::Always | Rule::All(_) | Rule::Any(_) | Rule::Not(_) => Self::Always,
        }
    }

    fn of_http(test: &HttpTest, request: &Request<'_>, passes: bool) -> Self {
        let path = || Some(request.path.path().to_owned());
        let (subject, found, wanted, passes) = match test {
            HttpTest::Header(test) => {
                (test.subject(), test.found(request), test.wanted(), passes != test.is_inverted())
            }
            HttpTest::Path(test) => ("path".to_owned(), path(), test.to_string(), passes),
            HttpTest::Template(test) => ("path".to_owned(), path(), test.to_string(), passes),
            HttpTest::Metadata(test) => {
                let found = test.found(request.metadata);
                (test.subject(), found, test.wanted().to_string(), passes != test.is_inverted())
            }
        };
        Self::Fact { subject, found, wanted: vec![wanted], passes }
    }

    fn text(&self) -> String {
        match self {
            Self::Always => String::new(),
            Self::Never => "it matches nothing".to_owned(),
            Self::Excluded(inner) => format!("{}, which is excluded", inner.text()),
            Self::All(parts) => {
                let texts: Vec<String> = parts.iter().map(Self::text).filter(|text| !text.is_empty()).collect();
                texts.join(", ")
            }
            Self::Fact { subject, found, wanted, passes } => fact_text(subject, found.as_deref(), wanted, *passes),
        }
    }
}

fn fact_text(subject: &str, found: Option<&str>, wanted: &[String], passes: bool) -> String {
    let found = found.map(shortened);
    let list = wanted.join(", ");
    match (found, passes, wanted) {
        (None, false, _) => format!("{subject} is absent, wanted {}", wanted.join(" or ")),
        (None, true, _) => format!("{subject} is absent"),
        (Some(found), true, [one]) if one == "*" => format!("{subject} {found} is there"),
        (Some(found), true, [one]) if *one == found => format!("{subject} is {found}"),
        (Some(found), true, _) => format!("{subject} {found} is {list}"),
        (Some(found), false, [_]) => format!("{subject} {found} is not {list}"),
        (Some(found), false, _) => format!("{subject} {found} is none of {list}"),
    }
}

/// A peer may send long values; the beginning tells enough.
fn shortened(text: &str) -> String {
    if text.chars().count() <= FOUND_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(FOUND_CHARS_MAX).chain(['…']).collect()
}

/// The most of a request's value that is repeated.
const FOUND_CHARS_MAX: usize = 200;
