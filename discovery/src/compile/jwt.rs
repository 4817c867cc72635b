//! `RequestAuthentication` to the JWT filter.
//!
//! All rules that select the workload are added up. A request without a token goes on without claims; one with a token
//! that does not verify is refused.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3::{RouteMatch, route_match::PathSpecifier};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::google::protobuf::Empty;
use pb::jwt_requirement::RequiresType;

use super::authz::{Target, concerns, is_of};
use super::canonical::pack;
use super::hcm::http_filter;
use super::model::{Model, Named};
use super::names::outbound_cluster;
use super::pb as short;
use crate::documents::mesh::selects;
use crate::documents::security::{JwtRule, RequestAuthentication};

/// A rule with its document and its place there.
pub(super) struct OwnRule<'a> {
    pub(super) policy: &'a Named<RequestAuthentication>,
    pub(super) index: usize,
    pub(super) rule: &'a JwtRule,
}

/// The rules that select a workload, in the order of their providers' names ([`provider_name`]).
pub(super) fn rules<'a>(model: &'a Model, target: Target<'_>) -> Vec<OwnRule<'a>> {
    let of = |policy: &'a Named<RequestAuthentication>| {
        let rules = policy.spec.jwt_rules.iter().enumerate();
        rules.map(move |(index, rule)| OwnRule { policy, index, rule })
    };
    let mut rules: Vec<OwnRule<'a>> =
        model.request_authentications.iter().filter(|policy| is_for(model, policy, target)).flat_map(of).collect();
    rules.sort_by(|a, b| a.rule.issuer.cmp(&b.rule.issuer));
    rules
}

/// Whether a policy selects a workload.
pub(super) fn is_for(model: &Model, policy: &Named<RequestAuthentication>, target: Target<'_>) -> bool {
    let spec = &policy.spec;
    is_of(model, &policy.meta.namespace, target.namespace)
        && concerns(spec.target_ref.as_ref(), &spec.target_refs, target.labels)
            .unwrap_or_else(|| selects(spec.selector.as_ref(), target.labels))
}

/// The provider of the rule at this place.
pub(super) fn provider_name(index: usize) -> String {
    format!("origins-{index}")
}

/// `None` when no rule selects the workload.
pub(super) fn filter(model: &Model, target: Target<'_>) -> Option<HttpFilter> {
    let rules = rules(model, target);
    if rules.is_empty() {
        return None;
    }
    let names: Vec<String> = (0..rules.len()).map(provider_name).collect();
    let providers = names.iter().cloned().zip(rules.iter().map(|own| provider(own.rule))).collect();
    let everything = RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() };
    let rule = pb::RequirementRule {
        r#match: Some(everything),
        requirement_type: Some(pb::requirement_rule::RequirementType::Requires(requirement(&names))),
    };
    let authentication =
        pb::JwtAuthentication { providers, rules: vec![rule], bypass_cors_preflight: true, ..Default::default() };
    Some(http_filter("envoy.filters.http.jwt_authn", pack(&authentication)))
}

/// One rule: its token or none. Several: any that verifies, or in every place a good token or none.
fn requirement(names: &[String]) -> pb::JwtRequirement {
    let of = |name: &String| requires(RequiresType::ProviderName(name.clone()));
    let or_missing = |name: &String| any(vec![of(name), requires(RequiresType::AllowMissing(Empty {}))]);
    match names {
        [one] => or_missing(one),
        several => {
            let each = pb::JwtRequirementAndList { requirements: several.iter().map(or_missing).collect() };
            let mut ways: Vec<pb::JwtRequirement> = several.iter().map(of).collect();
            ways.push(requires(RequiresType::RequiresAll(each)));
            any(ways)
        }
    }
}

fn any(requirements: Vec<pb::JwtRequirement>) -> pb::JwtRequirement {
    requires(RequiresType::RequiresAny(pb::JwtRequirementOrList { requirements }))
}

fn requires(kind: RequiresType) -> pb::JwtRequirement {
    pb::JwtRequirement { requires_type: Some(kind) }
}

fn provider(rule: &JwtRule) -> pb::JwtProvider {
    let claims = ["scope", "permission"].into_iter().map(str::to_owned);
    let claims = claims.chain(rule.space_delimited_claims.iter().cloned()).collect();
    let outputs = rule.output_claim_to_headers.iter().map(|output| pb::JwtClaimToHeader {
        header_name: output.header.clone(),
        claim_name: output.claim.clone(),
        ..Default::default()
    });
    pb::JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        forward: rule.forward_original_token,
        from_headers: headers(rule),
        from_params: params(rule),
        from_cookies: rule.from_cookies.clone(),
        forward_payload_header: rule.output_payload_to_header.clone(),
        // Where authorization looks for claims.
        payload_in_metadata: super::CLAIMS_KEY.to_owned(),
        normalize_payload_in_metadata: Some(pb::jwt_provider::NormalizePayload { space_delimited_claims: claims }),
        claim_to_headers: outputs.collect(),
        jwks_source_specifier: Some(keys(rule)),
        ..Default::default()
    }
}

/// The default places hold only when the rule names none at all.
fn has_places(rule: &JwtRule) -> bool {
    !(rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty())
}

fn headers(rule: &JwtRule) -> Vec<pb::JwtHeader> {
    if !has_places(rule) {
        return vec![pb::JwtHeader { name: "Authorization".to_owned(), value_prefix: "Bearer ".to_owned() }];
    }
    let header = |header: &crate::documents::security::JwtHeader| pb::JwtHeader {
        name: header.name.clone(),
        value_prefix: header.prefix.clone(),
    };
    rule.from_headers.iter().map(header).collect()
}

fn params(rule: &JwtRule) -> Vec<String> {
    if has_places(rule) { rule.from_params.clone() } else { vec!["access_token".to_owned()] }
}

fn keys(rule: &JwtRule) -> pb::jwt_provider::JwksSourceSpecifier {
    use pb::jwt_provider::JwksSourceSpecifier as Keys;
    let remote = remote_cluster(&rule.jwks_uri).filter(|_| rule.jwks.is_empty());
    match remote {
        Some(cluster) => {
            let uri = core::HttpUri {
                uri: rule.jwks_uri.clone(),
                timeout: Some(short::duration(rule.timeout.map_or(FETCH_TIMEOUT, |span| span.0))),
                http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(cluster)),
            };
            Keys::RemoteJwks(pb::RemoteJwks {
                http_uri: Some(uri),
                cache_duration: Some(short::duration(KEYS_CACHED)),
                ..Default::default()
            })
        }
        // Without keys no token verifies: refused, never let through.
        None => Keys::LocalJwks(short::text_source(if rule.jwks.is_empty() { NO_KEYS } else { &rule.jwks })),
    }
}

/// The cluster of the service that the URL names; it must be in the mesh's registry.
fn remote_cluster(uri: &str) -> Option<String> {
    let (scheme, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().filter(|authority| !authority.is_empty())?;
    let default = if scheme == "https" { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, default),
    };
    Some(outbound_cluster(port, "", host))
}

const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const KEYS_CACHED: Duration = Duration::from_secs(300);
/// A key whose private half was thrown away: Envoy takes no empty set, and nobody can sign for this one.
const NO_KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"none","x":"qp0i3hGPJfic6Rtg5ykxQyl-Q4y98Ra1gzJeKxMwOfE","y":"gfRjCCupfAQTsdtjOhQ6lvCRWR9kJ_XCvsat1N4dgGQ"}]}"#;
