//! Rules of authorization policies that can never match, and why: what an operator wrote in vain, or believes to protect.
//!
//! Only what is certain is told. What depends on the request, or on facts that are not known, counts as possible.

use super::authz::{self, Target};
use super::explain::{Explainer, Origin, Proxy};
use super::jwt;
use super::model::Named;
use crate::documents::security::{Action, AuthorizationPolicy, Condition, Operation, Rule, Source};

/// What else is known of the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Every proxy.
    pub proxies: &'a [Proxy],
    /// Every SPIFFE ID that somebody can have in the own trust domain; none if that is not known.
    pub identities: Option<&'a [String]>,
    /// Trust domains whose bundles are held, beside the own one.
    pub trust_domains: &'a [String],
}

/// A rule, or a whole policy, that never matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    /// The rule.
    pub origin: Origin,
    /// Why, as a word that stays: `selector`, `trust_domain`, `identity`, `contradiction`, `tcp`, `shadowed`, `claims`.
    pub why: &'static str,
    /// Why, as a sentence.
    pub text: String,
}

/// One policy with the proxies it selects.
struct Case<'a> {
    explainer: &'a Explainer,
    known: Known<'a>,
    policy: &'a Named<AuthorizationPolicy>,
    selected: Vec<&'a Proxy>,
}

impl Explainer {
    /// Rules and policies that can never match.
    #[must_use]
    pub fn idle(&self, known: Known<'_>) -> Vec<Idle> {
        let policies = self.model().authorization_policies.iter();
        policies.flat_map(|policy| self.case(policy, known).idle()).collect()
    }

    fn case<'a>(&'a self, policy: &'a Named<AuthorizationPolicy>, known: Known<'a>) -> Case<'a> {
        let selected = known.proxies.iter().filter(|proxy| self.selects(policy, proxy)).collect();
        Case { explainer: self, known, policy, selected }
    }

    fn selects(&self, policy: &Named<AuthorizationPolicy>, proxy: &Proxy) -> bool {
        let target = Target { namespace: proxy.namespace(), labels: proxy.labels(), port: None };
        authz::is_for(self.model(), policy, target)
    }
}

impl Case<'_> {
    fn idle(&self) -> Vec<Idle> {
        if self.selected.is_empty() {
            return self.tell("", "selector", "it selects no workload".to_owned()).into_iter().collect();
        }
        if let Some(deny) = self.shadow() {
            let text = format!("{deny} denies everything before it");
            return self.tell("", "shadowed", text).into_iter().collect();
        }
        let rules = self.policy.spec.rules.iter().enumerate();
        rules
            .filter_map(|(at, rule)| {
                let (why, text) = self.of_rule(rule)?;
                self.tell(&format!("spec.rules[{at}]"), why, text)
            })
            .collect()
    }

    fn tell(&self, path: &str, why: &'static str, text: String) -> Option<Idle> {
        Some(Idle { origin: self.explainer.policy_origin(self.policy, path)?, why, text })
    }

    /// A DENY policy without conditions before this one, at every workload that this one selects.
    fn shadow(&self) -> Option<String> {
        if self.policy.spec.action != Action::Allow {
            return None;
        }
        let denies_all = |policy: &&Named<AuthorizationPolicy>| {
            policy.spec.action == Action::Deny
                && !authz::is_dry_run(policy)
                && policy.spec.rules.iter().any(is_unconditional)
        };
        let policies = self.explainer.model().authorization_policies.iter().filter(denies_all);
        let mut covering = policies.filter(|deny| self.selected.iter().all(|one| self.explainer.selects(deny, one)));
        covering.next().map(|deny| format!("{}/{}", deny.meta.namespace, deny.meta.name))
    }

    fn of_rule(&self, rule: &Rule) -> Option<(&'static str, String)> {
        contradiction(rule)
            .map(|text| ("contradiction", text))
            .or_else(|| self.nobody(rule))
            .or_else(|| self.without_http(rule).map(|text| ("tcp", text)))
            .or_else(|| self.without_tokens(rule).map(|text| ("claims", text)))
    }

    /// Every source names only peers that cannot be.
    fn nobody(&self, rule: &Rule) -> Option<(&'static str, String)> {
        let sources: Vec<&Source> = rule.from.iter().flatten().filter_map(|from| from.source.as_ref()).collect();
        let principals: Vec<&String> = sources.iter().flat_map(|source| &source.principals).collect();
        if principals.is_empty() || sources.iter().any(|source| source.principals.is_empty()) {
            return None;
        }
        let whys: Option<Vec<(&'static str, String)>> = principals.iter().map(|one| self.unknown(one)).collect();
        whys?.into_iter().next()
    }

    /// Why nobody can have a principal; nothing if somebody may.
    fn unknown(&self, principal: &str) -> Option<(&'static str, String)> {
        let (domain, path) = principal.split_once('/')?;
        if principal.contains('*') {
            return None;
        }
        let own = self.explainer.model().trust_domains();
        let is_own = domain == "cluster.local" || own.iter().any(|one| one == domain);
        if !is_own {
            let is_held = self.known.trust_domains.iter().any(|one| one == domain);
            let text = format!("principal {principal}: the trust domain {domain} is not known here");
            return (!is_held).then_some(("trust_domain", text));
        }
        let identities = self.known.identities?;
        let trust_domain = self.explainer.trust_domain();
        let of_proxies: Vec<String> =
            self.known.proxies.iter().filter_map(|proxy| proxy.spiffe_id(trust_domain)).collect();
        let has = |id: &String| {
            id.strip_prefix("spiffe://").and_then(|id| id.split_once('/')).is_some_and(|(_, own)| own == path)
        };
        let is_known = identities.iter().chain(&of_proxies).any(has);
        let text = format!("principal {principal}: no registration entry gives it");
        (!is_known).then_some(("identity", text))
    }

    /// ALLOW with HTTP fields where only bytes are relayed.
    fn without_http(&self, rule: &Rule) -> Option<String> {
        if self.policy.spec.action != Action::Allow {
            return None;
        }
        let field = http_field(rule)?;
        let wanted = wanted_ports(rule);
        let mut meant = 0;
        for proxy in &self.selected {
            for (number, http) in self.explainer.open_ports(proxy) {
                if wanted.is_empty() || wanted.contains(&number) {
                    if http {
                        return None;
                    }
                    meant += 1;
                }
            }
        }
        (meant > 0).then(|| format!("it asks for {field}, and the ports it is for carry no HTTP"))
    }

    /// Claims where no token is ever verified.
    fn without_tokens(&self, rule: &Rule) -> Option<String> {
        let field = claim_field(rule)?;
        let model = self.explainer.model();
        let verifies = |proxy: &&Proxy| {
            let target = Target { namespace: proxy.namespace(), labels: proxy.labels(), port: None };
            !jwt::rules(model, target).is_empty()
        };
        let any = self.selected.iter().copied().any(|proxy| verifies(&proxy));
        (!any).then(|| format!("it asks for {field}, and no RequestAuthentication verifies tokens there"))
    }
}

fn is_unconditional(rule: &Rule) -> bool {
    let none_from = rule.from.as_ref().is_none_or(Vec::is_empty);
    let none_to = rule.to.as_ref().is_none_or(Vec::is_empty);
    none_from && none_to && rule.when.is_empty()
}

/// A value that is asked for and excluded at once, or two that cannot both be.
fn contradiction(rule: &Rule) -> Option<String> {
    let excluded = |name: &str, values: &[String], not: &[String]| {
        let none_left = !values.is_empty() && values.iter().all(|value| not.contains(value));
        none_left.then(|| format!("every value of {name} is excluded by its opposite"))
    };
    let mut conditions = rule.when.iter();
    if let Some(text) = conditions.find_map(|one| excluded(&one.key, &one.values, &one.not_values)) {
        return Some(text);
    }
    for (at, one) in rule.when.iter().enumerate() {
        if let Some(other) = rule.when[..at].iter().find(|other| excludes(other, one)) {
            let text = format!("{} cannot be {} and {}", one.key, other.values.join(", "), one.values.join(", "));
            return Some(text);
        }
    }
    let mut sources = rule.from.iter().flatten().filter_map(|from| from.source.as_ref()).peekable();
    if sources.peek().is_some() {
        let all: Option<Vec<String>> =
            sources.map(|source| pairs(&source.lists()).find_map(|(name, yes, no)| excluded(name, yes, no))).collect();
        if let Some(text) = all.and_then(|texts| texts.into_iter().next()) {
            return Some(text);
        }
    }
    let operations = rule.to.iter().flatten().filter_map(|to| to.operation.as_ref());
    let all: Option<Vec<String>> =
        operations.map(|one| pairs(&one.lists()).find_map(|(name, yes, no)| excluded(name, yes, no))).collect();
    all.and_then(|texts| texts.into_iter().next())
}

/// Lists come in twos: what is wanted, and what is excluded.
fn pairs<'a>(
    lists: &'a [(&'static str, &'a [String])],
) -> impl Iterator<Item = (&'static str, &'a [String], &'a [String])> {
    lists.chunks_exact(2).map(|two| (two[0].0, two[0].1, two[1].1))
}

/// Two conditions on one thing that has one value, with nothing in common. Patterns may meet, so they are left alone.
fn excludes(one: &Condition, other: &Condition) -> bool {
    let plain = |values: &[String]| !values.is_empty() && values.iter().all(|value| !value.contains(['*', '/']));
    one.key == other.key
        && SINGLE.contains(&one.key.as_str())
        && plain(&one.values)
        && plain(&other.values)
        && !one.values.iter().any(|value| other.values.contains(value))
}

/// The first field of a rule that only HTTP has.
fn http_field(rule: &Rule) -> Option<String> {
    let of_operation = |operation: &Operation| {
        let lists = operation.lists();
        lists
            .iter()
            .find(|(name, values)| !values.is_empty() && !name.to_lowercase().ends_with("ports"))
            .map(|one| one.0)
    };
    let of_source = |source: &Source| {
        let named = |name: &str| name.ends_with("equestPrincipals");
        source.lists().iter().find(|(name, values)| !values.is_empty() && named(name)).map(|one| one.0)
    };
    let operations = rule.to.iter().flatten().filter_map(|to| to.operation.as_ref());
    let sources = rule.from.iter().flatten().filter_map(|from| from.source.as_ref());
    let in_operations: Vec<Option<&str>> = operations.map(of_operation).collect();
    let in_sources: Vec<Option<&str>> = sources.map(of_source).collect();
    // One alternative with HTTP fields drops the whole rule, as Istio has it.
    let field = in_operations.into_iter().chain(in_sources).flatten().next().map(str::to_owned);
    field.or_else(|| rule.when.iter().find(|one| one.key.starts_with("request.")).map(|one| one.key.clone()))
}

fn wanted_ports(rule: &Rule) -> Vec<u16> {
    let of_operations = rule.to.iter().flatten().filter_map(|to| to.operation.as_ref()).flat_map(|one| &one.ports);
    let of_conditions = rule.when.iter().filter(|one| one.key == "destination.port").flat_map(|one| &one.values);
    of_operations.chain(of_conditions).filter_map(|port| port.parse().ok()).collect()
}

/// The first demand for a claim that must be there.
fn claim_field(rule: &Rule) -> Option<String> {
    let sources: Vec<&Source> = rule.from.iter().flatten().filter_map(|from| from.source.as_ref()).collect();
    let all_ask = !sources.is_empty() && sources.iter().all(|source| !source.request_principals.is_empty());
    if all_ask {
        return Some("requestPrincipals".to_owned());
    }
    let asks = |one: &&Condition| one.key.starts_with("request.auth.") && !one.values.is_empty();
    rule.when.iter().find(asks).map(|one| one.key.clone())
}

/// Keys with one value at most.
const SINGLE: &[&str] = &[
    "source.namespace",
    "source.principal",
    "source.trustDomain",
    "source.serviceAccount",
    "destination.port",
    "connection.sni",
    "request.auth.principal",
    "request.auth.presenter",
];

#[cfg(test)]
mod tests;
