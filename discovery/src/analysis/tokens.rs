//! Tokens of end users: verified and demanded by nobody, demanded and verified by nobody, and from where keys come.

use std::net::IpAddr;

use super::Context;
use super::aim::Aim;
use super::authorization::{action, conditions, for_nobody, in_mesh, sources};
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use super::webhooks::host_of;

/// Istiod without forbidden addresses, where documents say which address it fetches keys from.
pub(crate) fn blocked_addresses(context: &Context<'_>, report: &mut Report) {
    let rules: Vec<String> = context.set.of(What::RequestAuthentication).map(Resource::full_name).collect();
    if rules.is_empty() {
        return;
    }
    let is_istiod = |one: &&Resource| one.labels.get("app").is_some_and(|app| app == "istiod");
    for istiod in context.set.of(What::Deployment).filter(is_istiod) {
        let containers = istiod.spec().path("template.spec.containers");
        let is_set = |one: View<'_>| one.get("name").text() == BLOCKED && !one.get("value").word().is_empty();
        if !containers.items().any(|container| container.get("env").items().any(is_set)) {
            let text = format!("keys are fetched from any address that {} name", list(&rules));
            report.tell("IST0175", istiod, containers, text);
        }
    }
}

/// What is verified against what is demanded.
pub(crate) fn demands(context: &Context<'_>, report: &mut Report) {
    let workloads = in_mesh(context);
    let is_known = workloads.iter().any(|workload| !workload.resource.is_assumed);
    for rule in context.set.of(What::RequestAuthentication) {
        if is_known {
            for_nobody(context, rule, &workloads, report);
        }
        key_sources(rule, report);
        not_demanded(context, rule, report);
    }
    for policy in context.set.of(What::AuthorizationPolicy) {
        not_verified(context, policy, report);
    }
}

/// Rules whose tokens no policy asks for.
fn not_demanded(context: &Context<'_>, rule: &Resource, report: &mut Report) {
    let aim = Aim::of(context.set, rule);
    let mut policies = context.set.of(What::AuthorizationPolicy);
    let is_demanding = |policy: &Resource| {
        let is_met = Aim::of(context.set, policy).may_meet(&aim);
        is_met && (action(policy) == "CUSTOM" || asks(policy).next().is_some())
    };
    if rule.spec().get("jwtRules").items().next().is_some() && !policies.any(is_demanding) {
        report.tell(
            "KSB0108",
            rule,
            rule.spec().get("jwtRules"),
            "no policy demands a token here: requests without one pass",
        );
    }
}

/// Every place of a policy that asks about a token.
fn asks(policy: &Resource) -> impl Iterator<Item = View<'_>> {
    let of_sources = sources(policy)
        .flat_map(|source| [source.get("requestPrincipals"), source.get("notRequestPrincipals")])
        .filter(|list| list.exists());
    let of_conditions = conditions(policy).filter(|condition| condition.get("key").text().starts_with("request.auth."));
    of_sources.chain(of_conditions.map(|condition| condition.get("key")))
}

/// Policies that ask about tokens where none is verified, or of other issuers.
fn not_verified(context: &Context<'_>, policy: &Resource, report: &mut Report) {
    let aim = Aim::of(context.set, policy);
    let rules: Vec<&Resource> = context
        .set
        .of(What::RequestAuthentication)
        .filter(|rule| {
            Aim::of(context.set, rule).may_meet(&aim) && rule.spec().get("jwtRules").items().next().is_some()
        })
        .collect();
    if rules.is_empty() {
        if let Some(place) = asks_for(policy).next() {
            report.tell("KSB0109", policy, place, "it asks for a token, and none is verified here: it never holds");
        }
        return;
    }
    let issuers: Vec<&str> =
        rules.iter().flat_map(|rule| rule.spec().get("jwtRules").items()).map(|one| one.get("issuer").text()).collect();
    for (value, is_principal) in issuers_named(policy) {
        if !issuers.iter().any(|issuer| is_of(value.text(), issuer, is_principal)) {
            let text = format!(
                "`{}` is of no issuer that is trusted here: {}{}",
                value.text(),
                list(&issuers),
                hint(value.text(), &issuers)
            );
            report.tell("KSB0110", policy, value, text);
        }
    }
}

/// Places that only hold with a token.
fn asks_for(policy: &Resource) -> impl Iterator<Item = View<'_>> {
    let of_sources = sources(policy).map(|source| source.get("requestPrincipals")).filter(|list| list.exists());
    let of_conditions = conditions(policy)
        .filter(|one| one.get("key").text().starts_with("request.auth.") && one.get("values").exists())
        .map(|one| one.get("key"));
    of_sources.chain(of_conditions)
}

/// Values that begin with an issuer, and whether a subject follows.
fn issuers_named(policy: &Resource) -> Vec<(View<'_>, bool)> {
    let of_sources = sources(policy).flat_map(|source| source.get("requestPrincipals").items()).map(|one| (one, true));
    let of_conditions = conditions(policy).flat_map(|condition| {
        let key = condition.get("key").text();
        let is_issuer = ["request.auth.claims[iss]", "request.auth.claims[\"iss\"]"].contains(&key);
        let is_principal = key == "request.auth.principal";
        condition.get("values").items().filter(move |_| is_issuer || is_principal).map(move |one| (one, is_principal))
    });
    of_sources.chain(of_conditions).filter(|(value, _)| !value.text().is_empty()).collect()
}

/// Whether a value, which may begin or end with `*`, can be of an issuer.
fn is_of(value: &str, issuer: &str, is_principal: bool) -> bool {
    let wanted = if is_principal { format!("{issuer}/") } else { issuer.to_owned() };
    match value.strip_suffix('*') {
        _ if value.starts_with('*') => true,
        Some(begin) => wanted.starts_with(begin) || (is_principal && begin.starts_with(&wanted)),
        None if is_principal => value.starts_with(&wanted),
        None => value == wanted,
    }
}

/// The most common reason.
fn hint(value: &str, issuers: &[&str]) -> &'static str {
    let bare = |text: &str| text.trim_end_matches('*').trim_end_matches('/').to_ascii_lowercase();
    let differs = |issuer: &&str| bare(value).starts_with(&bare(issuer));
    if issuers.iter().any(differs) { " (a trailing `/` or a capital letter makes the difference)" } else { "" }
}

/// Keys from where anybody could have put them.
fn key_sources(rule: &Resource, report: &mut Report) {
    for one in rule.spec().get("jwtRules").items() {
        let uri = one.get("jwksUri");
        if uri.text().is_empty() {
            continue;
        }
        let host = host_of(uri.text()).unwrap_or_default();
        let why = match () {
            () if !uri.text().starts_with("https://") => "not over TLS",
            () if is_private(host) => "from a private address",
            () => continue,
        };
        report.tell(
            "KSB0111",
            rule,
            uri,
            format!("the keys of {} come {why}: {}", one.get("issuer").text(), uri.text()),
        );
    }
}

fn is_private(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified()
        }
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

const BLOCKED: &str = "BLOCKED_CIDRS_IN_JWKS_URIS";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers_are_compared_letter_by_letter() {
        for (value, is_principal, expected) in [
            ("https://i/*", true, true),
            ("https://i/sub", true, true),
            ("https://j/*", true, false),
            ("*", true, true),
            ("*/sub", true, true),
            ("https*", true, true),
            ("https://i", false, true),
            ("https://i/", false, false),
            ("https://*", false, true),
        ] {
            assert_eq!(is_of(value, "https://i", is_principal), expected, "{value}");
        }
        assert!(!hint("https://i/", &["https://i"]).is_empty());
    }
}
