//! Rules of `PeerAuthentication`, `RequestAuthentication` and `AuthorizationPolicy`.

use super::check_selector;
use super::text::{check_cidr, check_header_name, check_port};
use crate::documents::security::{
    Action, AuthorizationPolicy, Condition, JwtRule, Operation, PeerAuthentication, RequestAuthentication, Rule, Source,
};
use crate::documents::shapes::TargetRef;
use crate::documents::{Meta, Review};

pub(super) fn check_peer_authentication(policy: &PeerAuthentication, review: &mut Review<'_>) {
    check_selector(policy.selector.as_ref(), "spec.selector", review);
    let Some(ports) = &policy.port_level_mtls else { return };
    let at = "spec.portLevelMtls";
    if ports.is_empty() {
        review.error(at, "EMPTY", "at least one port is needed");
    }
    if policy.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty()) {
        review.error(at, "FIELD_MISSING", "`portLevelMtls` needs a selector");
    }
    for port in ports.keys() {
        match port.parse::<u32>() {
            Ok(number) => check_port(number, &format!("{at}.{port}"), review),
            Err(_) => review.error(format!("{at}.{port}"), "PORT_INVALID", format!("`{port}` is no port")),
        }
    }
}

pub(super) fn check_request_authentication(policy: &RequestAuthentication, review: &mut Review<'_>) {
    check_selector(policy.selector.as_ref(), "spec.selector", review);
    check_targets(policy.selector.is_some(), policy.target_ref.as_ref(), &policy.target_refs, review);
    for (index, rule) in policy.jwt_rules.iter().enumerate() {
        check_jwt_rule(rule, &format!("spec.jwtRules[{index}]"), review);
    }
}

fn check_targets(has_selector: bool, one: Option<&TargetRef>, many: &[TargetRef], review: &mut Review<'_>) {
    let ways = [has_selector, one.is_some(), !many.is_empty()];
    if ways.iter().filter(|given| **given).count() > 1 {
        review.error("spec", "ONE_OF", "`selector`, `targetRef` and `targetRefs` exclude each other");
    }
    let listed = many.iter().enumerate().map(|(index, target)| (format!("spec.targetRefs[{index}]"), target));
    for (at, target) in one.map(|target| ("spec.targetRef".to_owned(), target)).into_iter().chain(listed) {
        if target.name.is_empty() || target.kind.is_empty() {
            review.error(&at, "FIELD_MISSING", "`kind` and `name` are required");
        }
        if !target.namespace.is_empty() {
            review.error(&at, "VALUE_INVALID", "the target is always in the policy's own namespace");
        }
    }
}

fn check_jwt_rule(rule: &JwtRule, at: &str, review: &mut Review<'_>) {
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        review.error(at, "FIELD_MISSING", "`issuer` is required");
    }
    if !rule.jwks.is_empty() && !rule.jwks_uri.is_empty() {
        review.error(at, "ONE_OF", "`jwks` and `jwksUri` exclude each other");
    }
    if rule.audiences.iter().any(String::is_empty) {
        review.error(format!("{at}.audiences"), "VALUE_INVALID", "an audience must not be empty");
    }
    if !rule.jwks_uri.is_empty() && !rule.jwks_uri.starts_with("https://") && !rule.jwks_uri.starts_with("http://") {
        review.error(format!("{at}.jwksUri"), "VALUE_INVALID", "an http or https URL is needed");
    }
    if !rule.jwks.is_empty() {
        check_jwks(&rule.jwks, &format!("{at}.jwks"), review);
    }
    for (index, header) in rule.from_headers.iter().enumerate() {
        check_header_name(&header.name, &format!("{at}.fromHeaders[{index}].name"), review);
    }
    for (field, names) in [("fromParams", &rule.from_params), ("fromCookies", &rule.from_cookies)] {
        if names.iter().any(String::is_empty) {
            review.error(format!("{at}.{field}"), "VALUE_INVALID", "a name must not be empty");
        }
    }
    if !rule.output_payload_to_header.is_empty() {
        check_header_name(&rule.output_payload_to_header, &format!("{at}.outputPayloadToHeader"), review);
    }
    for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
        let at = format!("{at}.outputClaimToHeaders[{index}]");
        check_header_name(&output.header, &at, review);
        if output.claim.is_empty() {
            review.error(at, "FIELD_MISSING", "`claim` is required");
        }
    }
    if rule.timeout.is_some_and(|timeout| timeout.0.as_millis() == 0) {
        review.error(format!("{at}.timeout"), "OUT_OF_RANGE", "at least 1ms is needed");
    }
}

fn check_jwks(jwks: &str, at: &str, review: &mut Review<'_>) {
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(jwks);
    let keys = parsed.as_ref().ok().and_then(|set| set.get("keys")).and_then(|keys| keys.as_array());
    let Some(keys) = keys else {
        let text = parsed.err().map_or_else(|| "`keys` is missing".to_owned(), |error| error.to_string());
        return review.error(at, "JWKS_INVALID", format!("no key set: {text}"));
    };
    for key in keys {
        if key.get("kty").and_then(|kty| kty.as_str()).is_none() {
            review.error(at, "JWKS_INVALID", "a key has no `kty`");
        }
        if key.get("d").is_some() {
            review.warn(at, "JWKS_PRIVATE_KEY", "the set holds a private key; publish public keys only");
        }
    }
}

pub(super) fn check_authorization_policy(policy: &AuthorizationPolicy, meta: &Meta, review: &mut Review<'_>) {
    check_selector(policy.selector.as_ref(), "spec.selector", review);
    check_targets(policy.selector.is_some(), policy.target_ref.as_ref(), &policy.target_refs, review);
    let provider = policy.provider.as_ref().is_some_and(|provider| !provider.name.is_empty());
    match policy.action {
        Action::Custom if !provider => review.error("spec.provider", "FIELD_MISSING", "CUSTOM needs `provider.name`"),
        Action::Allow | Action::Deny | Action::Audit if policy.provider.is_some() => {
            review.error("spec.provider", "CONFLICT", "`provider` is for CUSTOM only");
        }
        _ => {}
    }
    if matches!(policy.action, Action::Custom | Action::Deny) && policy.rules.is_empty() {
        let text = "without rules this policy never matches; write `rules: [{}]` to match everything";
        review.error("spec.rules", "EMPTY", text);
    }
    if policy.rules.len() > RULES_MAX {
        review.error("spec.rules", "OUT_OF_RANGE", format!("at most {RULES_MAX} rules"));
    }
    let dry_run = meta.annotations.get("istio.io/dry-run");
    if dry_run.is_some_and(|value| !matches!(value.as_str(), "true" | "false")) {
        review.error("metadata.annotations", "VALUE_INVALID", "istio.io/dry-run is `true` or `false`");
    }
    for (index, rule) in policy.rules.iter().enumerate() {
        check_rule(policy.action, rule, &format!("spec.rules[{index}]"), review);
    }
}

fn check_rule(action: Action, rule: &Rule, at: &str, review: &mut Review<'_>) {
    if let Some(from) = &rule.from {
        if from.is_empty() || from.len() > FROM_MAX {
            review.error(format!("{at}.from"), "EMPTY", format!("between 1 and {FROM_MAX} entries are needed"));
        }
        for (index, from) in from.iter().enumerate() {
            let at = format!("{at}.from[{index}]");
            match &from.source {
                Some(source) => check_source(action, source, &format!("{at}.source"), review),
                None => review.error(at, "FIELD_MISSING", "`source` is required"),
            }
        }
    }
    if let Some(to) = &rule.to {
        if to.is_empty() {
            review.error(format!("{at}.to"), "EMPTY", "at least one entry is needed");
        }
        for (index, to) in to.iter().enumerate() {
            let at = format!("{at}.to[{index}]");
            match &to.operation {
                Some(operation) => check_operation(operation, &format!("{at}.operation"), review),
                None => review.error(at, "FIELD_MISSING", "`operation` is required"),
            }
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        check_condition(action, condition, &format!("{at}.when[{index}]"), review);
    }
}

fn check_source(action: Action, source: &Source, at: &str, review: &mut Review<'_>) {
    check_lists(&source.lists(), at, review);
    if action == Action::Custom {
        for (field, values) in source.lists() {
            if !values.is_empty() && !field.to_ascii_lowercase().contains("ipblocks") {
                review.error(
                    format!("{at}.{field}"),
                    "CONFLICT",
                    format!("CUSTOM cannot test `{field}`: it runs before peers and tokens are known"),
                );
            }
        }
    }
    let accounts = [&source.service_accounts, &source.not_service_accounts];
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts.iter().any(|list| !list.is_empty()) && others.iter().any(|list| !list.is_empty()) {
        review.error(at, "CONFLICT", "`serviceAccounts` cannot stand beside `principals` or `namespaces`");
    }
    for (field, list) in [("serviceAccounts", accounts[0]), ("notServiceAccounts", accounts[1])] {
        let at = format!("{at}.{field}");
        if list.len() > ACCOUNTS_MAX {
            review.error(&at, "OUT_OF_RANGE", format!("at most {ACCOUNTS_MAX} entries"));
        }
        for account in list {
            if account.len() > ACCOUNT_LEN_MAX || account.contains('*') || account.split('/').count() > 2 {
                review.error(&at, "VALUE_INVALID", format!("`{account}` is not `namespace/account` or `account`"));
            }
        }
    }
    let networks = [&source.ip_blocks, &source.not_ip_blocks, &source.remote_ip_blocks, &source.not_remote_ip_blocks];
    for network in networks.into_iter().flatten() {
        check_cidr(network, at, review);
    }
}

fn check_operation(operation: &Operation, at: &str, review: &mut Review<'_>) {
    check_lists(&operation.lists(), at, review);
    for (field, ports) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        for port in ports {
            check_port_text(port, &format!("{at}.{field}"), review);
        }
    }
    for (field, paths) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        for path in paths {
            if let Some(fault) = template_fault(path) {
                review.error(format!("{at}.{field}"), "TEMPLATE_INVALID", format!("`{path}`: {fault}"));
            }
        }
    }
}

fn check_lists(lists: &[(&'static str, &[String])], at: &str, review: &mut Review<'_>) {
    if lists.iter().all(|(_, values)| values.is_empty()) {
        review.error(at, "EMPTY", "at least one field is needed");
    }
    for (field, values) in lists {
        if values.iter().any(String::is_empty) {
            review.error(format!("{at}.{field}"), "VALUE_INVALID", "an entry must not be empty");
        }
    }
}

fn check_port_text(port: &str, at: &str, review: &mut Review<'_>) {
    match port.parse::<u32>() {
        Ok(number) => check_port(number, at, review),
        Err(_) => review.error(at, "PORT_INVALID", format!("`{port}` is no port")),
    }
}

/// What is wrong with a path that uses `{*}` or `{**}`.
fn template_fault(path: &str) -> Option<&'static str> {
    if !path.contains(['{', '}']) {
        return None;
    }
    let mut rest_seen = false;
    for segment in path.split('/') {
        match segment {
            "{*}" => {}
            "{**}" if rest_seen => return Some("`{**}` may stand once only"),
            "{**}" => rest_seen = true,
            other if other.contains(['{', '}']) => return Some("`{*}` and `{**}` must be whole segments"),
            other if other.contains('*') => return Some("`*` cannot stand beside `{*}`"),
            _ => {}
        }
    }
    None
}

fn check_condition(action: Action, condition: &Condition, at: &str, review: &mut Review<'_>) {
    let Condition { key, values, not_values } = condition;
    if values.is_empty() && not_values.is_empty() {
        review.error(at, "FIELD_MISSING", "`values` or `notValues` is required");
    }
    let both = values.iter().chain(not_values);
    match key.as_str() {
        "source.ip" | "remote.ip" | "destination.ip" => both.for_each(|value| check_cidr(value, at, review)),
        "destination.port" => both.for_each(|value| check_port_text(value, at, review)),
        "source.namespace" | "source.principal" | "source.serviceAccount" | "source.trustDomain" | "connection.sni" => {
        }
        "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter" => {}
        key if key.starts_with("request.auth.claims[") && brackets(key).is_some() => {}
        key if key.starts_with("request.headers[") && brackets(key).is_some_and(|names| names.len() == 1) => {}
        key if key.starts_with("experimental.envoy.filters.") && brackets(key).is_some() => {
            review.warn(
                format!("{at}.key"),
                "NO_EFFECT",
                "filter metadata is not set by our proxies; the condition sees it as absent",
            );
        }
        key => {
            let near = crate::documents::decode::nearest(key, CONDITION_KEYS);
            let hint = near.map(|near| format!("; is `{near}` meant?")).unwrap_or_default();
            review.error(format!("{at}.key"), "ATTRIBUTE_UNKNOWN", format!("unknown attribute `{key}`{hint}"));
        }
    }
    let late = key.starts_with("request.auth.")
        || matches!(
            key.as_str(),
            "source.namespace" | "source.principal" | "source.serviceAccount" | "source.trustDomain"
        );
    if action == Action::Custom && late {
        review.error(
            format!("{at}.key"),
            "CONFLICT",
            format!("CUSTOM cannot test `{key}`: it runs before peers and tokens are known"),
        );
    }
}

/// The names in `base[a][b]`; `None` when the brackets are broken.
pub(crate) fn brackets(key: &str) -> Option<Vec<&str>> {
    let (_, rest) = key.split_once('[')?;
    let names: Vec<&str> = rest.strip_suffix(']')?.split("][").collect();
    names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']'])).then_some(names)
}

const CONDITION_KEYS: &[&str] = &[
    "request.headers[NAME]",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.principal",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[NAME]",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

const RULES_MAX: usize = 512;
const FROM_MAX: usize = 512;
const ACCOUNTS_MAX: usize = 16;
const ACCOUNT_LEN_MAX: usize = 320;
