//! Sources: peers by SPIFFE ID, addresses, and request principals of verified tokens.

use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, OrMatcher, StringMatcher, ValueMatcher, list_matcher, metadata_matcher, value_matcher,
};
use pb::principal::{Authenticated, Identifier};

use super::super::pb as short;
use super::Context;
use super::rule::{Part, text_or_any};
use crate::documents::rules::parse_cidr;
use crate::documents::security::Source;

pub(super) fn id(identifier: Identifier) -> pb::Principal {
    pb::Principal { identifier: Some(identifier) }
}

pub(super) fn not(principal: pb::Principal) -> pb::Principal {
    id(Identifier::NotId(Box::new(principal)))
}

pub(super) fn all(mut ids: Vec<pb::Principal>) -> pb::Principal {
    if ids.is_empty() {
        ids.push(id(Identifier::Any(true)));
    }
    id(Identifier::AndIds(pb::principal::Set { ids }))
}

fn any(ids: Vec<pb::Principal>) -> pb::Principal {
    id(Identifier::OrIds(pb::principal::Set { ids }))
}

/// Values, values that must not be, their test, and whether only HTTP can answer it.
type List<'a> = (&'a [String], &'a [String], &'a dyn Fn(&str) -> pb::Principal, bool);

pub(super) fn source(source: &Source, context: Context<'_>) -> Vec<Part<pb::Principal>> {
    let domains = context.trust_domains;
    let namespace = context.namespace;
    let lists: [List<'_>; 6] = [
        (&source.service_accounts, &source.not_service_accounts, &|value| service_account(value, namespace), false),
        (&source.request_principals, &source.not_request_principals, &request_principal, true),
        (&source.namespaces, &source.not_namespaces, &self::namespace, false),
        (&source.trust_domains, &source.not_trust_domains, &trust_domain, false),
        (&source.remote_ip_blocks, &source.not_remote_ip_blocks, &remote_ip, false),
        (&source.ip_blocks, &source.not_ip_blocks, &direct_ip, false),
    ];
    let peers =
        listed(&with_aliases(&source.principals, domains), &with_aliases(&source.not_principals, domains), peer);
    let mut parts = vec![Part::All(peers)];
    for (values, not_values, test, http_only) in lists {
        parts.push(match () {
            () if values.is_empty() && not_values.is_empty() => Part::All(Vec::new()),
            () if http_only && !context.http => Part::NotHere,
            () => Part::All(listed(values, not_values, test)),
        });
    }
    parts
}

/// One of the values, and none of the others.
pub(super) fn listed(
    values: &[String],
    not_values: &[String],
    test: impl Fn(&str) -> pb::Principal,
) -> Vec<pb::Principal> {
    let mut ids = Vec::new();
    if !values.is_empty() {
        ids.push(any(values.iter().map(|value| test(value)).collect()));
    }
    if !not_values.is_empty() {
        ids.push(not(any(not_values.iter().map(|value| test(value)).collect())));
    }
    ids
}

fn authenticated(matcher: StringMatcher) -> pb::Principal {
    id(Identifier::Authenticated(Authenticated { principal_name: Some(matcher) }))
}

/// A peer as policies write it: the SPIFFE ID without its scheme.
pub(super) fn peer(value: &str) -> pb::Principal {
    authenticated(match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", _, _) => short::pattern(".+"),
        (_, Some(rest), _) => short::pattern(&format!("spiffe://.*{}", regex::escape(rest))),
        (_, _, Some(rest)) => short::prefix(&format!("spiffe://{rest}")),
        _ => short::exact(&format!("spiffe://{value}")),
    })
}

/// A value with `*` as a regular expression within one larger expression.
fn inner(value: &str, open: &str) -> String {
    match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", _, _) => open.to_owned(),
        (_, Some(rest), _) => format!("{open}{}", regex::escape(rest)),
        (_, _, Some(rest)) => format!("{}{open}", regex::escape(rest)),
        _ => regex::escape(value),
    }
}

pub(super) fn namespace(value: &str) -> pb::Principal {
    authenticated(short::pattern(&format!(".*/ns/{}/.*", inner(value, ".*"))))
}

pub(super) fn trust_domain(value: &str) -> pb::Principal {
    authenticated(short::pattern(&format!("spiffe://{}/.*", inner(value, "[^/]*"))))
}

/// `namespace/account`, or an account of the policy's own namespace.
pub(super) fn service_account(value: &str, own: &str) -> pb::Principal {
    let (namespace, account) = value.split_once('/').unwrap_or((own, value));
    let (namespace, account) = (regex::escape(namespace), regex::escape(account));
    authenticated(short::pattern(&format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?")))
}

pub(super) fn direct_ip(value: &str) -> pb::Principal {
    ip(value, Identifier::DirectRemoteIp)
}

pub(super) fn remote_ip(value: &str) -> pb::Principal {
    ip(value, Identifier::RemoteIp)
}

fn ip(value: &str, of: fn(envoy_types::pb::envoy::config::core::v3::CidrRange) -> Identifier) -> pb::Principal {
    match parse_cidr(value) {
        Some(network) => id(of(short::cidr(network))),
        None => not(id(Identifier::Any(true))),
    }
}

/// `ISSUER/SUBJECT` of a verified token, with `*` on either side.
pub(super) fn request_principal(value: &str) -> pb::Principal {
    let present = || short::pattern(".+");
    // The slashes of `https://` belong to the issuer.
    let cut = value.rfind('/').filter(|cut| !value[..*cut].ends_with(":/") && !value[..*cut].ends_with(':'));
    let (issuer, subject) = match (value, cut) {
        ("*", _) => (present(), present()),
        (_, Some(cut)) => (text_or_any(&value[..cut]), text_or_any(&value[cut + 1..])),
        (_, None) => match (value.strip_prefix('*'), value.strip_suffix('*')) {
            (Some(rest), _) => (present(), short::suffix(rest)),
            (_, Some(rest)) => (short::prefix(rest), present()),
            (None, None) => (short::exact(value), short::exact("")),
        },
    };
    let of = |claim: &str, test| id(metadata(&[claim], text_value(test)));
    all(vec![of("iss", issuer), of("sub", subject)])
}

/// A claim that is one of the values or, as a list, holds one of them.
pub(super) fn claim(path: &[&str], values: &[String]) -> pb::Principal {
    let list = ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(any_text(values)))) };
    let list = value(value_matcher::MatchPattern::ListMatch(Box::new(list)));
    let both = OrMatcher { value_matchers: vec![list, any_text(values)] };
    id(metadata(path, value(value_matcher::MatchPattern::OrMatch(both))))
}

/// One of the values; Envoy takes no alternative of one.
pub(super) fn any_text(values: &[String]) -> ValueMatcher {
    match values {
        [one] => text_value(text_or_any(one)),
        several => {
            let value_matchers = several.iter().map(|value| text_value(text_or_any(value))).collect();
            value(value_matcher::MatchPattern::OrMatch(OrMatcher { value_matchers }))
        }
    }
}

fn value(pattern: value_matcher::MatchPattern) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(pattern) }
}

pub(super) fn text_value(matcher: StringMatcher) -> ValueMatcher {
    value(value_matcher::MatchPattern::StringMatch(matcher))
}

/// A test of a claim that the JWT filter left in the request's metadata.
#[allow(deprecated, reason = "the plain metadata field is what stock Envoy of all supported versions reads")]
fn metadata(path: &[&str], value: ValueMatcher) -> Identifier {
    let steps = std::iter::once(super::super::CLAIMS_KEY).chain(path.iter().copied());
    Identifier::Metadata(filter_metadata(JWT_FILTER, steps, value))
}

pub(super) fn filter_metadata<'a>(
    filter: &str,
    path: impl IntoIterator<Item = &'a str>,
    value: ValueMatcher,
) -> MetadataMatcher {
    let segment = |key: &str| metadata_matcher::PathSegment {
        segment: Some(metadata_matcher::path_segment::Segment::Key(key.to_owned())),
    };
    MetadataMatcher {
        filter: filter.to_owned(),
        path: path.into_iter().map(segment).collect(),
        value: Some(value),
        invert: false,
    }
}

/// Principals of the local trust domain, for the domain and each of its aliases; `cluster.local` always means the local
/// domain, so that policies survive a renaming.
pub(super) fn with_aliases(principals: &[String], domains: &[String]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for principal in principals {
        for name in aliases_of(principal, domains) {
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }
    all
}

fn aliases_of(principal: &str, domains: &[String]) -> Vec<String> {
    let unchanged = vec![principal.to_owned()];
    let Some((domain, path)) = principal.split_once('/') else { return unchanged };
    let is_whole = principal.split('/').count() == SPIFFE_PARTS;
    let suffix = domain.strip_prefix('*');
    let covers = |other: &str| match suffix {
        Some(suffix) => other.ends_with(suffix),
        None => other == domain,
    };
    let prefix_covers = |other: &str| domain.strip_suffix('*').is_some_and(|prefix| other.starts_with(prefix));
    let is_local = domain == "cluster.local" || domains.iter().any(|other| covers(other) || prefix_covers(other));
    if !is_whole || domain == "*" || !is_local {
        return unchanged;
    }
    let of = |other: &String| {
        if suffix.is_some() && covers(other) { principal.to_owned() } else { format!("{other}/{path}") }
    };
    domains.iter().map(of).collect()
}

/// `TD/ns/NS/sa/SA`
const SPIFFE_PARTS: usize = 5;
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
