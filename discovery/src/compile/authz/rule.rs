//! One rule: who may do what, as permissions and principals of one RBAC policy.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher};
use pb::permission::Rule as Test;
use pb::principal::Identifier;

use super::super::canonical::pack;
use super::super::model::Named;
use super::super::pb as short;
use super::{Context, condition, principal};
use crate::documents::rules::parse_cidr;
use crate::documents::security::{Action, AuthorizationPolicy, Operation, Rule};

/// What a part of a rule became on this kind of connection.
pub(super) enum Part<T> {
    /// Tests that all must hold.
    All(Vec<T>),
    /// It needs facts that a TCP connection does not have.
    NotHere,
}

/// Adds every rule of `policy` under Istio's name for it.
pub(super) fn policies(
    prefix: &str,
    policy: &Named<AuthorizationPolicy>,
    context: Context<'_>,
    to: &mut BTreeMap<String, pb::Policy>,
) {
    let name =
        |index: usize| format!("{prefix}ns[{}]-policy[{}]-rule[{index}]", policy.meta.namespace, policy.meta.name);
    if policy.spec.rules.is_empty() {
        // A policy without rules never matches; as ALLOW it thereby denies everything.
        to.insert(name(0), never());
    }
    for (index, rule) in policy.spec.rules.iter().enumerate() {
        if let Some(compiled) = compile(rule, context) {
            to.insert(name(index), compiled);
        }
    }
}

fn never() -> pb::Policy {
    let permission = pb::Permission { rule: Some(Test::NotRule(Box::new(permission(Test::Any(true))))) };
    let principal = principal::not(principal::id(Identifier::Any(true)));
    pb::Policy { permissions: vec![permission], principals: vec![principal], ..Default::default() }
}

/// `None` when the rule cannot hold on this kind of connection.
fn compile(rule: &Rule, context: Context<'_>) -> Option<pb::Policy> {
    let mut conditions = (Vec::new(), Vec::new());
    for condition in &rule.when {
        condition::add(condition, context, &mut conditions)?;
    }
    let (of_request, of_source) = conditions;
    let mut principals = Vec::new();
    for from in rule.from.iter().flatten() {
        let Some(source) = &from.source else { continue };
        let mut ids = whole(principal::source(source, context), context)?;
        ids.extend(of_source.clone());
        principals.push(principal::all(ids));
    }
    if rule.from.as_ref().is_none_or(Vec::is_empty) {
        principals.push(principal::all(of_source));
    }
    let mut permissions = Vec::new();
    for to in rule.to.iter().flatten() {
        let Some(operation) = &to.operation else { continue };
        let mut tests = whole(self::operation(operation, context), context)?;
        tests.extend(of_request.clone());
        permissions.push(all(tests));
    }
    if rule.to.as_ref().is_none_or(Vec::is_empty) {
        permissions.push(all(of_request));
    }
    Some(pb::Policy { permissions, principals, ..Default::default() })
}

/// On a TCP connection an ALLOW rule with HTTP fields is dropped; DENY and AUDIT keep what can be tested.
fn whole<T>(parts: Vec<Part<T>>, context: Context<'_>) -> Option<Vec<T>> {
    let mut tests = Vec::new();
    for part in parts {
        match part {
            Part::All(more) => tests.extend(more),
            Part::NotHere if keeps_going(context) => {}
            Part::NotHere => return None,
        }
    }
    Some(tests)
}

/// Whether a rule goes on without the fields that a TCP connection cannot answer.
pub(super) fn keeps_going(context: Context<'_>) -> bool {
    matches!(context.action, Action::Deny | Action::Audit)
}

/// Values, values that must not be, their test, and whether only HTTP can answer it.
type List<'a> = (&'a [String], &'a [String], &'a dyn Fn(&str) -> Test, bool);

fn operation(operation: &Operation, context: Context<'_>) -> Vec<Part<pb::Permission>> {
    let deny = context.action == Action::Deny;
    let lists: [List<'_>; 4] = [
        (&operation.hosts, &operation.not_hosts, &|value| host(value, deny), true),
        (&operation.methods, &operation.not_methods, &|value| header(":method", value), true),
        (&operation.paths, &operation.not_paths, &path, true),
        (&operation.ports, &operation.not_ports, &|value| port(value, context.port), false),
    ];
    lists
        .into_iter()
        .map(|(values, not_values, test, http_only)| {
            if values.is_empty() && not_values.is_empty() {
                return Part::All(Vec::new());
            }
            if http_only && !context.http {
                return Part::NotHere;
            }
            Part::All(listed(values, not_values, |value| test(value)))
        })
        .collect()
}

/// One of the values, and none of the others.
pub(super) fn listed(values: &[String], not_values: &[String], test: impl Fn(&str) -> Test) -> Vec<pb::Permission> {
    let any = |values: &[String]| {
        let rules = values.iter().map(|value| permission(test(value))).collect();
        permission(Test::OrRules(pb::permission::Set { rules }))
    };
    let mut tests = Vec::new();
    if !values.is_empty() {
        tests.push(any(values));
    }
    if !not_values.is_empty() {
        tests.push(permission(Test::NotRule(Box::new(any(not_values)))));
    }
    tests
}

pub(super) fn permission(test: Test) -> pb::Permission {
    pb::Permission { rule: Some(test) }
}

fn all(mut rules: Vec<pb::Permission>) -> pb::Permission {
    if rules.is_empty() {
        rules.push(permission(Test::Any(true)));
    }
    permission(Test::AndRules(pb::permission::Set { rules }))
}

/// Exact, `prefix*`, `*suffix`; `None` for `*`, which means that the value is there.
pub(super) fn text(value: &str) -> Option<StringMatcher> {
    match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", _, _) => None,
        (_, Some(rest), _) => Some(short::suffix(rest)),
        (_, _, Some(rest)) => Some(short::prefix(rest)),
        _ => Some(short::exact(value)),
    }
}

/// As [`text`], where presence has to be a test of the value.
pub(super) fn text_or_any(value: &str) -> StringMatcher {
    text(value).unwrap_or_else(|| short::pattern(".+"))
}

fn header(name: &str, value: &str) -> Test {
    Test::Header(short::header(name, text(value)))
}

/// Hosts compare without case. A refused host stays refused with a port behind it.
fn host(value: &str, deny: bool) -> Test {
    let is_plain = !value.ends_with('*') && value.rsplit_once(':').is_none();
    let matcher = match text(value) {
        Some(_) if deny && is_plain => {
            let (open, name) = value.strip_prefix('*').map_or(("", value), |rest| (".*", rest));
            Some(short::pattern(&format!("(?i){open}{}(:[0-9]+)?", regex::escape(name))))
        }
        Some(matcher) => Some(StringMatcher { ignore_case: true, ..matcher }),
        None => None,
    };
    Test::Header(short::header(":authority", matcher))
}

fn path(value: &str) -> Test {
    if value.contains(['{', '}']) {
        let path_template = value.replace("{**}", "**").replace("{*}", "*");
        return Test::UriTemplate(TypedExtensionConfig {
            name: "uri-template".to_owned(),
            typed_config: Some(pack(&UriTemplateMatchConfig { path_template })),
        });
    }
    Test::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(text_or_any(value))) })
}

pub(super) fn port(value: &str, known: Option<u16>) -> Test {
    let wanted: u32 = value.parse().unwrap_or_default();
    match known {
        None => Test::DestinationPort(wanted),
        Some(known) if u32::from(known) == wanted => Test::Any(true),
        Some(_) => Test::NotRule(Box::new(permission(Test::Any(true)))),
    }
}

pub(super) fn destination_ip(value: &str) -> Test {
    match parse_cidr(value) {
        Some(network) => Test::DestinationIp(short::cidr(network)),
        None => Test::NotRule(Box::new(permission(Test::Any(true)))),
    }
}
