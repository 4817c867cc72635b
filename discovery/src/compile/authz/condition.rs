//! `when` conditions: attributes of the request, of the connection and of verified tokens.

use envoy_types::pb::envoy::config::rbac::v3 as pb;
use pb::permission::Rule as Test;
use pb::principal::Identifier;

use super::super::pb as short;
use super::rule::{destination_ip, keeps_going, listed, permission, port, text, text_or_any};
use super::{Context, principal};
use crate::documents::rules::brackets;
use crate::documents::security::Condition;

/// Adds the condition's tests to those of the request or of the source. `None` when the rule cannot hold here.
pub(super) fn add(
    condition: &Condition,
    context: Context<'_>,
    to: &mut (Vec<pb::Permission>, Vec<pb::Principal>),
) -> Option<()> {
    let Condition { key, values, not_values } = condition;
    let (requests, sources) = to;
    if is_http_only(key) && !context.http {
        return keeps_going(context).then_some(());
    }
    let mut by_source = |test: &dyn Fn(&str) -> pb::Principal| {
        sources.extend(principal::listed(values, not_values, test));
    };
    match key.as_str() {
        "source.ip" => by_source(&principal::direct_ip),
        "remote.ip" => by_source(&principal::remote_ip),
        "source.namespace" => by_source(&principal::namespace),
        "source.trustDomain" => by_source(&principal::trust_domain),
        "source.serviceAccount" => by_source(&|value| principal::service_account(value, context.namespace)),
        "source.principal" => {
            let domains = context.trust_domains;
            let (values, not_values) =
                (principal::with_aliases(values, domains), principal::with_aliases(not_values, domains));
            sources.extend(principal::listed(&values, &not_values, principal::peer));
        }
        "request.auth.principal" => by_source(&principal::request_principal),
        "request.auth.audiences" => claims(&["aud"], condition, sources),
        "request.auth.presenter" => claims(&["azp"], condition, sources),
        "destination.ip" => requests.extend(listed(values, not_values, destination_ip)),
        "destination.port" => requests.extend(listed(values, not_values, |value| port(value, context.port))),
        "connection.sni" => {
            requests.extend(listed(values, not_values, |value| Test::RequestedServerName(text_or_any(value))));
        }
        key => by_name(key, condition, requests, sources)?,
    }
    Some(())
}

fn is_http_only(key: &str) -> bool {
    key.starts_with("request.")
}

/// Keys that carry names in brackets.
fn by_name(
    key: &str,
    condition: &Condition,
    requests: &mut Vec<pb::Permission>,
    sources: &mut Vec<pb::Principal>,
) -> Option<()> {
    let names = brackets(key)?;
    if key.starts_with("request.auth.claims[") {
        claims(&names, condition, sources);
        return Some(());
    }
    if key.starts_with("request.headers[") {
        let name = names.first()?;
        let test = |value: &str| principal::id(Identifier::Header(short::header(name, text(value))));
        sources.extend(principal::listed(&condition.values, &condition.not_values, test));
        return Some(());
    }
    let filter = key.split('[').next()?.strip_prefix("experimental.")?;
    for (values, wanted) in [(&condition.values, true), (&condition.not_values, false)] {
        if !values.is_empty() {
            let test = metadata_test(filter, &names, values);
            requests.push(if wanted { test } else { permission(Test::NotRule(Box::new(test))) });
        }
    }
    Some(())
}

#[allow(deprecated, reason = "the plain metadata field is what stock Envoy of all supported versions reads")]
fn metadata_test(filter: &str, names: &[&str], values: &[String]) -> pb::Permission {
    let value = principal::any_text(values);
    permission(Test::Metadata(principal::filter_metadata(filter, names.iter().copied(), value)))
}

fn claims(path: &[&str], condition: &Condition, sources: &mut Vec<pb::Principal>) {
    if !condition.values.is_empty() {
        sources.push(principal::claim(path, &condition.values));
    }
    if !condition.not_values.is_empty() {
        sources.push(principal::not(principal::claim(path, &condition.not_values)));
    }
}
