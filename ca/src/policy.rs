//! The issuance policy: who may get which SVIDs, for how long, with which names and keys, and how many.
//!
//! A policy is a list of rules; the first rule that names identity, caller and kind of a request decides, and what no rule
//! names is answered by `default`. Patterns are paths by segment, never regular expressions. Nodes' own SVIDs and the server's
//! are not judged: a policy cannot lock the mesh out of itself. Without a policy everything that entries allow is allowed.

mod document;
mod in_force;
pub(crate) mod pattern;
mod quota;

use std::fmt;
use std::time::Duration;

use identity::public_key::{Curve, PublicKey};
use identity::spiffe_id::SpiffeId;

pub(crate) use in_force::PolicyInForce;
use pattern::{CallerPattern, DnsPattern, PathPattern};
use quota::Quota;

/// What is to be issued, and to whom.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The identity.
    pub id: &'a SpiffeId,
    /// Everything that the caller is called: a node by its ID and its aliases, `local` at the admin socket.
    pub callers: &'a [String],
    /// By which way: `x509`, `jwt`, `wit`, `csr`, `mint_x509`, …
    pub kind: &'a str,
    /// How long it is to live.
    pub ttl: Duration,
    /// DNS names beside the identity.
    pub dns_names: &'a [String],
    /// The kind of its key; none for tokens, which the authority's key signs.
    pub key: Option<KeyType>,
}

/// What a policy says to that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, for this long.
    Allowed {
        /// The rule that says so; none for the default.
        rule: Option<String>,
        /// What was asked for, cut to the rule's maximum.
        ttl: Duration,
    },
    /// No.
    Refused(PolicyRefusal),
}

/// Why not, and what would be allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct PolicyRefusal {
    problem: Problem,
    /// The rule or quota that says so; none for the default.
    pub rule: Option<String>,
    text: String,
    /// When asking again makes sense; none when it never does.
    pub retry_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    Identity,
    DnsName,
    Key,
    Ttl,
    Quota,
}

impl PolicyRefusal {
    /// The stable code.
    pub fn reason(&self) -> &'static str {
        match self.problem {
            Problem::Identity => "ISSUANCE_NOT_ALLOWED",
            Problem::DnsName => "ISSUANCE_DNS_NAME_NOT_ALLOWED",
            Problem::Key => "ISSUANCE_KEY_NOT_ALLOWED",
            Problem::Ttl => "ISSUANCE_TTL_NOT_ALLOWED",
            Problem::Quota => "ISSUANCE_QUOTA_EXCEEDED",
        }
    }

    fn new(problem: Problem, rule: Option<&str>, text: String) -> Self {
        Self { problem, rule: rule.map(str::to_owned), text, retry_after: None }
    }
}

/// Rules and quotas, checked. [`Policy::parse`] makes one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    /// The answer where no rule speaks.
    deny_by_default: bool,
    quotas: Vec<Quota>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    name: String,
    deny: bool,
    ids: Vec<PathPattern>,
    /// Empty: anybody.
    callers: Vec<CallerPattern>,
    /// Empty: any.
    kinds: Vec<String>,
    ttl_min: Option<Duration>,
    ttl_max: Option<Duration>,
    /// None: any.
    dns_names: Option<Vec<DnsPattern>>,
    /// Empty: any.
    key_types: Vec<KeyType>,
}

impl Policy {
    /// How many rules and quotas it has.
    pub fn counts(&self) -> (usize, usize) {
        (self.rules.len(), self.quotas.len())
    }

    /// What the rules say. Quotas are counted elsewhere.
    pub fn judge(&self, ask: &Ask<'_>) -> Verdict {
        match self.rules.iter().find(|rule| rule.speaks_of(ask)) {
            Some(rule) => rule.judge(ask),
            None if self.deny_by_default => {
                let text =
                    format!("no rule of the issuance policy lets {} have {}{}", ask.caller(), ask.id, self.hint(ask));
                Verdict::Refused(PolicyRefusal::new(Problem::Identity, None, text))
            }
            None => Verdict::Allowed { rule: None, ttl: ask.ttl },
        }
    }

    /// The rule that would have been meant: it names the identity, but not this caller or kind.
    fn hint(&self, ask: &Ask<'_>) -> String {
        let near = self.rules.iter().find(|rule| !rule.deny && rule.ids.iter().any(|id| id.matches(ask.id.path())));
        match near {
            Some(rule) if !rule.speaks_to(ask) => {
                format!("; rule `{}` gives it to {}", rule.name, listed(&rule.callers))
            }
            Some(rule) => format!("; rule `{}` gives it as {}", rule.name, listed(&rule.kinds)),
            None => String::new(),
        }
    }
}

impl Rule {
    fn speaks_of(&self, ask: &Ask<'_>) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == ask.kind);
        kind && self.ids.iter().any(|id| id.matches(ask.id.path())) && self.speaks_to(ask)
    }

    fn speaks_to(&self, ask: &Ask<'_>) -> bool {
        self.callers.is_empty()
            || self.callers.iter().any(|pattern| ask.callers.iter().any(|name| pattern.matches(name)))
    }

    fn judge(&self, ask: &Ask<'_>) -> Verdict {
        let name = Some(self.name.as_str());
        let refused = |problem, text| Verdict::Refused(PolicyRefusal::new(problem, name, text));
        if self.deny {
            let text = format!("rule `{}` of the issuance policy denies {} to {}", self.name, ask.id, ask.caller());
            return refused(Problem::Identity, text);
        }
        if let Some(allowed) = &self.dns_names
            && let Some(other) = ask.dns_names.iter().find(|name| !allowed.iter().any(|pattern| pattern.matches(name)))
        {
            let text =
                format!("rule `{}` does not allow the DNS name {other}; it allows {}", self.name, listed(allowed));
            return refused(Problem::DnsName, text);
        }
        if let Some(key) = ask.key.filter(|key| !self.allows_key(*key)) {
            let text = format!(
                "rule `{}` does not allow a key of type {key}; it allows {}",
                self.name,
                listed(&self.key_types)
            );
            return refused(Problem::Key, text);
        }
        let ttl = self.ttl_max.map_or(ask.ttl, |max| ask.ttl.min(max));
        if let Some(min) = self.ttl_min.filter(|min| ttl < *min) {
            let text =
                format!("rule `{}` allows a life of {} s or more, not {} s", self.name, min.as_secs(), ttl.as_secs());
            return refused(Problem::Ttl, text);
        }
        Verdict::Allowed { rule: Some(self.name.clone()), ttl }
    }

    fn allows_key(&self, key: KeyType) -> bool {
        self.key_types.is_empty() || self.key_types.iter().any(|allowed| key.satisfies(*allowed))
    }
}

impl Ask<'_> {
    /// The caller as people know it.
    fn caller(&self) -> &str {
        self.callers.first().map_or("-", String::as_str)
    }
}

fn listed<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".into();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A kind of key. In a policy `RSA-BITS` means "of at least so many bits".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// ECDSA on P-521.
    P521,
    /// Ed25519.
    Ed25519,
    /// RSA with so many bits.
    Rsa(usize),
}

impl KeyType {
    /// Of a key.
    pub fn of(key: &PublicKey) -> Option<Self> {
        match key {
            PublicKey::Ec { curve: Curve::P256, .. } => Some(Self::P256),
            PublicKey::Ec { curve: Curve::P384, .. } => Some(Self::P384),
            PublicKey::Ec { curve: Curve::P521, .. } => Some(Self::P521),
            PublicKey::Ed25519 { .. } => Some(Self::Ed25519),
            PublicKey::Rsa { modulus, .. } => Some(Self::Rsa(modulus.len() * 8)),
            _ => None,
        }
    }

    /// By its name in a policy: `P-256`, `P-384`, `Ed25519`, `RSA-2048`, …
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "Ed25519" => Some(Self::Ed25519),
            _ => {
                let bits = name.strip_prefix("RSA-")?.parse().ok()?;
                (2048..=8192).contains(&bits).then_some(Self::Rsa(bits))
            }
        }
    }

    fn satisfies(self, allowed: Self) -> bool {
        match (self, allowed) {
            (Self::Rsa(bits), Self::Rsa(min)) => bits >= min,
            (own, allowed) => own == allowed,
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::P521 => f.write_str("P-521"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
        }
    }
}

#[cfg(test)]
mod tests;
