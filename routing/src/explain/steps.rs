//! The steps of an explanation.

use crate::rbac::{Action, Decision, Tried};

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What kind of decision.
    pub kind: StepKind,
    /// The name of what decided: a listener, filter chain, provider, policy, route, cluster; may be empty.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
    /// Why, in words.
    pub text: String,
}

/// What kind of decision a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Where the connection was accepted.
    Listener,
    /// Plain text, TLS or mTLS, and the proven peer.
    Tls,
    /// The request's form.
    Request,
    /// Tokens of end users.
    Jwt,
    /// One rule of an authorization policy, or all of an action together.
    Policy,
    /// A service that authorizes.
    Service,
    /// A quota.
    RateLimit,
    /// Faults on purpose.
    Fault,
    /// An answer to a browser's question about other origins.
    Cors,
    /// The virtual host and the route.
    Route,
    /// The cluster.
    Cluster,
    /// The endpoint.
    Endpoint,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Passes,
    /// It was looked at and does not apply.
    NoMatch,
    /// A policy matches, and thereby allows.
    Allows,
    /// A policy matches and would have refused, or been logged; it is only watched.
    Watched,
    /// It ends here.
    Refuses,
    /// What it says is only known when it is asked.
    Unknown,
}

impl StepKind {
    /// The kind's name in results.
    pub fn word(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Tls => "tls",
            Self::Request => "request",
            Self::Jwt => "jwt",
            Self::Policy => "policy",
            Self::Service => "ext_authz",
            Self::RateLimit => "rate_limit",
            Self::Fault => "fault",
            Self::Cors => "cors",
            Self::Route => "route",
            Self::Cluster => "cluster",
            Self::Endpoint => "endpoint",
        }
    }
}

impl Outcome {
    /// The outcome's name in results.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passes => "pass",
            Self::NoMatch => "no match",
            Self::Allows => "allow",
            Self::Watched => "watched",
            Self::Refuses => "deny",
            Self::Unknown => "unknown",
        }
    }
}

/// Collects steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) list: Vec<Step>,
}

impl Steps {
    pub(super) fn add(&mut self, kind: StepKind, name: &str, outcome: Outcome, text: String) {
        self.list.push(Step { kind, name: name.to_owned(), outcome, text });
    }

    pub(super) fn passes(&mut self, kind: StepKind, name: &str, text: String) {
        self.add(kind, name, Outcome::Passes, text);
    }

    pub(super) fn refuses(&mut self, kind: StepKind, name: &str, text: String) {
        self.add(kind, name, Outcome::Refuses, text);
    }

    /// Every rule of one action: those that do not match, and the one that decides.
    pub(super) fn policies(&mut self, action: Option<Action>, tried: &[Tried], decision: &Decision) {
        let Some(action) = action else { return };
        for one in tried {
            let decides = decision.policy.as_ref() == Some(&one.policy);
            let outcome = match action {
                Action::Allow if decides => Outcome::Allows,
                Action::Deny if decides => Outcome::Refuses,
                Action::Log if one.matched => Outcome::Watched,
                _ if one.matched => Outcome::Passes,
                _ => Outcome::NoMatch,
            };
            self.add(StepKind::Policy, &one.policy, outcome, one.why.clone());
        }
        if action == Action::Allow && !decision.allowed {
            let text = match decision.wanted_claims {
                true => "no ALLOW rule matches; one would with the right token, and there is none",
                false => "no ALLOW rule matches",
            };
            self.refuses(StepKind::Policy, "", text.to_owned());
        }
    }

    /// Rules that are only watched.
    pub(super) fn watched(&mut self, tried: &[Tried]) {
        for one in tried {
            let outcome = if one.matched { Outcome::Watched } else { Outcome::NoMatch };
            self.add(StepKind::Policy, &one.policy, outcome, format!("only watched: {}", one.why));
        }
    }
}
