//! Who may do what: Envoy's RBAC rules for connections and requests.
//!
//! The answer does not depend on the order of policies. Every doubt goes against the caller: a test that cannot be made
//! (an HTTP test on a plain connection) fails where passing would permit and passes where failing would permit, and a
//! value that can be read in two ways must pass in both to be permitted and in one to be denied.

mod compile;
mod rule;
mod why;

use std::sync::Arc;

use http::StatusCode;

use crate::request::{Connection, Metadata, Request};
use rule::{Facts, Rule};

pub use why::Tried;

/// One RBAC filter: rules that are enforced and rules that are only watched.
#[derive(Clone, Debug)]
pub struct RbacFilter {
    rules: Option<Engine>,
    shadow: Option<Engine>,
    shadow_prefix: Box<str>,
    /// The prefix of its metrics.
    pub stat_prefix: Box<str>,
    /// How long a refused connection is kept open before it is closed.
    pub delay_deny: Option<std::time::Duration>,
}

#[derive(Clone, Debug)]
struct Engine {
    action: Action,
    policies: Vec<Policy>,
}

/// What a matching policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Only what matches is permitted.
    Allow,
    /// What matches is denied.
    Deny,
    /// What matches is marked for the log.
    Log,
}

#[derive(Clone, Debug)]
struct Policy {
    name: Arc<str>,
    permissions: Rule,
    principals: Rule,
    reads_claims: bool,
}

/// The outcome of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request or connection may go on.
    pub allowed: bool,
    /// The policy that decided; none if nothing matched.
    pub policy: Option<Arc<str>>,
    /// What a matching policy does here.
    pub action: Action,
    /// Whether a verified token could have changed the outcome, and there was none.
    pub wanted_claims: bool,
}

impl Decision {
    /// The stable code of a refusal.
    pub fn reason(&self) -> &'static str {
        if self.wanted_claims { "JWT_MISSING" } else { "RBAC_DENIED" }
    }

    /// The answer of a refusal: 401 if a token was wanted, otherwise 403.
    pub fn status(&self) -> StatusCode {
        if self.wanted_claims { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN }
    }

    fn allowed_without_rules() -> Self {
        Self { allowed: true, policy: None, action: Action::Allow, wanted_claims: false }
    }
}

impl RbacFilter {
    /// Whether a request may go on.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        self.rules
            .as_ref()
            .map_or_else(Decision::allowed_without_rules, |engine| engine.decide(&Facts::request(request)))
    }

    /// Whether a connection may go on.
    pub fn decide_connection(&self, connection: &Connection) -> Decision {
        let facts = Facts::connection(connection);
        self.rules.as_ref().map_or_else(Decision::allowed_without_rules, |engine| engine.decide(&facts))
    }

    /// What the watched rules would have said about a request.
    pub fn shadow(&self, request: &Request<'_>) -> Option<Decision> {
        self.shadow.as_ref().map(|engine| engine.decide(&Facts::request(request)))
    }

    /// What the watched rules would have said about a connection.
    pub fn shadow_connection(&self, connection: &Connection) -> Option<Decision> {
        self.shadow.as_ref().map(|engine| engine.decide(&Facts::connection(connection)))
    }

    /// Notes what the watched rules said, for filters behind this one that depend on it.
    pub fn note_shadow(&self, decision: &Decision, metadata: &mut Metadata) {
        let prefix = &self.shadow_prefix;
        let result = if decision.allowed { "allowed" } else { "denied" };
        metadata.insert_text(RBAC_FILTER, &format!("{prefix}shadow_engine_result"), &result.into());
        if let Some(policy) = &decision.policy {
            metadata.insert_text(RBAC_FILTER, &format!("{prefix}shadow_effective_policy_id"), policy);
        }
    }

    /// Whether there are rules that are only watched.
    pub fn has_shadow(&self) -> bool {
        self.shadow.is_some()
    }

    /// What a match does, if there are rules.
    pub fn action(&self) -> Option<Action> {
        self.rules.as_ref().map(|engine| engine.action)
    }

    /// The names of all enforced policies, in the order they are tried.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<str>> {
        self.rules.iter().flat_map(|engine| engine.policies.iter().map(|policy| &policy.name))
    }

    /// The names of all enforced policies that match a request, for explanations.
    pub fn matching<'a>(&'a self, request: &'a Request<'_>) -> impl Iterator<Item = &'a Arc<str>> {
        let facts = Facts::request(request);
        let policies = self.rules.iter().flat_map(|engine| &engine.policies);
        policies.filter(move |policy| policy.matches(&facts)).map(|policy| &policy.name)
    }
}

impl Engine {
    fn decide(&self, facts: &Facts<'_>) -> Decision {
        let policy = self.policies.iter().find(|policy| policy.matches(facts));
        let allowed = match self.action {
            Action::Allow => policy.is_some(),
            Action::Deny => policy.is_none(),
            Action::Log => true,
        };
        Decision {
            allowed,
            policy: policy.map(|policy| policy.name.clone()),
            action: self.action,
            wanted_claims: !allowed && !facts.has_claims() && self.wanted_claims(facts),
        }
    }

    /// Whether some verified token could have turned a refusal around: one permitting policy would match with it, or
    /// no denying one would.
    fn wanted_claims(&self, facts: &Facts<'_>) -> bool {
        let assumed = facts.assuming_claims();
        match self.action {
            Action::Allow => self.policies.iter().any(|policy| policy.reads_claims && policy.matches(&assumed)),
            Action::Deny => !self.policies.iter().any(|policy| policy.matches(&assumed)),
            Action::Log => false,
        }
    }
}

impl Policy {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        self.permissions.matches(facts) && self.principals.matches(facts)
    }
}

/// The name under which watched rules note their outcome.
pub const RBAC_FILTER: &str = "envoy.filters.http.rbac";

#[cfg(test)]
mod tests;
