//! Tests of `jwt`.

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::config::route::v3::{RouteMatch as RoutePb, route_match::PathSpecifier};
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use envoy_types::pb::google::protobuf::{Duration as DurationPb, Empty};
use pb::jwt_requirement::RequiresType;
use serde_json::{Value, json};

use super::*;
use crate::request::sample::Sample;

fn provider() -> pb::JwtProvider {
    let keys = DataSource { watched_directory: None, specifier: Some(Specifier::InlineString("{}".into())) };
    pb::JwtProvider {
        jwks_source_specifier: Some(pb::jwt_provider::JwksSourceSpecifier::LocalJwks(keys)),
        payload_in_metadata: "payload".into(),
        forward: true,
        ..Default::default()
    }
}

fn requires(kind: RequiresType) -> pb::JwtRequirement {
    pb::JwtRequirement { requires_type: Some(kind) }
}

fn named(name: &str) -> pb::JwtRequirement {
    requires(RequiresType::ProviderName(name.into()))
}

fn any(requirements: Vec<pb::JwtRequirement>) -> pb::JwtRequirement {
    requires(RequiresType::RequiresAny(pb::JwtRequirementOrList { requirements }))
}

fn all(requirements: Vec<pb::JwtRequirement>) -> pb::JwtRequirement {
    requires(RequiresType::RequiresAll(pb::JwtRequirementAndList { requirements }))
}

fn missing() -> pb::JwtRequirement {
    requires(RequiresType::AllowMissing(Empty {}))
}

fn authn(providers: &[(&str, pb::JwtProvider)], requirement: pb::JwtRequirement) -> JwtAuthn {
    try_authn(providers, requirement).unwrap()
}

fn try_authn(
    providers: &[(&str, pb::JwtProvider)],
    requirement: pb::JwtRequirement,
) -> Result<JwtAuthn, crate::ConfigError> {
    JwtAuthn::compile(&pb::JwtAuthentication {
        providers: providers.iter().map(|(name, provider)| ((*name).to_owned(), provider.clone())).collect(),
        rules: vec![pb::RequirementRule {
            r#match: Some(RoutePb { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..Default::default() }),
            requirement_type: Some(pb::requirement_rule::RequirementType::Requires(requirement)),
        }],
        bypass_cors_preflight: true,
        ..Default::default()
    })
}

/// A verifier for tokens of the form `PROVIDER.CLAIMS.x`, where the claims are JSON.
fn verify(expect: &Expect<'_>) -> Result<TokenClaims, JwtFailure> {
    let (issuer, rest) = expect.token.split_once('.').ok_or(JwtFailure { reason: "JWT_MALFORMED" })?;
    if issuer != &*expect.provider.name {
        return Err(JwtFailure { reason: "JWT_WRONG_ISSUER" });
    }
    let claims = rest.rsplit_once('.').map_or(rest, |(claims, _)| claims);
    serde_json::from_str::<Value>(claims)
        .map(TokenClaims::danger_assume)
        .map_err(|_| JwtFailure { reason: "JWT_BAD_SIGNATURE" })
}

fn evaluate(authn: &JwtAuthn, sample: &Sample) -> Result<JwtGrant, &'static str> {
    authn.evaluate(&sample.request(), None, 0, &mut verify).map_err(|refusal| refusal.reason)
}

fn bearer(token: &str) -> Sample {
    Sample::get("/").header("authorization", &format!("Bearer {token}"))
}

fn outcome(authn: &JwtAuthn, sample: &Sample) -> Result<usize, &'static str> {
    evaluate(authn, sample).map(|grant| grant.tokens.len())
}

#[test]
fn requirements_combine() {
    let two = [("a", provider()), ("b", provider())];
    let required = authn(&two, named("a"));
    let optional = authn(&two, any(vec![named("a"), missing()]));
    let either = authn(&two, any(vec![named("a"), named("b")]));
    let both = authn(&two, all(vec![named("a"), named("b")]));
    let lenient = authn(&two, any(vec![named("a"), requires(RequiresType::AllowMissingOrFailed(Empty {}))]));
    let none = Sample::get("/");
    for (authn, sample, expected) in [
        (&required, bearer("a.{}.x"), Ok(1)),
        (&required, none, Err("JWT_MISSING")),
        (&required, bearer("b.{}.x"), Err("JWT_WRONG_ISSUER")),
        (&optional, Sample::get("/"), Ok(0)),
        (&optional, bearer("a.{}.x"), Ok(1)),
        (&optional, bearer("a.bad.x"), Err("JWT_BAD_SIGNATURE")),
        (&optional, bearer("b.{}.x"), Err("JWT_WRONG_ISSUER")),
        (&either, bearer("b.{}.x"), Ok(1)),
        (&either, bearer("c.{}.x"), Err("JWT_WRONG_ISSUER")),
        (&either, bearer("b.bad.x"), Err("JWT_BAD_SIGNATURE")),
        (&either, Sample::get("/"), Err("JWT_MISSING")),
        (&both, bearer("a.{}.x"), Err("JWT_WRONG_ISSUER")),
        (&lenient, bearer("a.bad.x"), Ok(0)),
        (&lenient, bearer("a.{}.x"), Ok(1)),
    ] {
        assert_eq!(outcome(authn, &sample), expected, "{:?}", sample.headers);
    }
}

#[test]
fn the_tree_of_istio_for_several_issuers_accepts_one_good_token_and_no_bad_one() {
    let two = [("a", provider()), ("b", provider())];
    let each = all(vec![any(vec![named("a"), missing()]), any(vec![named("b"), missing()])]);
    let tree = authn(&two, any(vec![named("a"), named("b"), each]));

    assert_eq!(outcome(&tree, &Sample::get("/")), Ok(0));
    assert_eq!(outcome(&tree, &bearer("a.{}.x")), Ok(1));
    assert_eq!(outcome(&tree, &bearer("b.{}.x")), Ok(1));
    assert_eq!(outcome(&tree, &bearer("b.bad.x")), Err("JWT_BAD_SIGNATURE"));
    assert_eq!(outcome(&tree, &bearer("c.{}.x")), Err("JWT_WRONG_ISSUER"));
}

#[test]
fn allowing_missing_by_itself_still_verifies_what_is_there() {
    let alone = authn(&[("a", provider())], missing());
    assert_eq!(outcome(&alone, &Sample::get("/")), Ok(0));
    assert_eq!(outcome(&alone, &bearer("a.{}.x")), Ok(1));
    assert_eq!(outcome(&alone, &bearer("a.bad.x")), Err("JWT_BAD_SIGNATURE"));
}

#[test]
fn tokens_are_found_only_where_the_provider_says() {
    let elsewhere = pb::JwtProvider {
        from_headers: vec![pb::JwtHeader { name: "x-token".into(), value_prefix: String::new() }],
        from_params: vec!["t".into()],
        from_cookies: vec!["c".into()],
        ..provider()
    };
    let default = authn(&[("a", provider())], named("a"));
    let elsewhere = authn(&[("a", elsewhere)], named("a"));
    let token = "a.{}.x";
    for (authn, sample, expected) in [
        (&default, Sample::get("/").header("authorization", "bearer a.{}.x"), Ok(1)),
        (&default, Sample::get("/").header("authorization", "Basic a.{}.x"), Err("JWT_MISSING")),
        (&default, Sample::get("/").header("authorization", "Bearera.{}.x"), Err("JWT_MISSING")),
        (&default, Sample::get("/").header("authorization", "Bearer "), Err("JWT_MISSING")),
        (&default, Sample::get("/?access_token=a.1.x"), Ok(1)),
        (&elsewhere, bearer(token), Err("JWT_MISSING")),
        (&elsewhere, Sample::get("/").header("x-token", token), Ok(1)),
        (&elsewhere, Sample::get("/?t=a.1.x"), Ok(1)),
        (&elsewhere, Sample::get("/").header("cookie", "x=1; c=a.{}.x"), Ok(1)),
    ] {
        assert_eq!(outcome(authn, &sample), expected, "{} {:?}", sample.path.as_str(), sample.headers);
    }
}

#[test]
fn two_different_tokens_are_ambiguous() {
    let authn = authn(&[("a", provider())], any(vec![named("a"), missing()]));
    let twice = bearer("a.{}.x").header("authorization", "Bearer a.{}.x");
    assert_eq!(outcome(&authn, &twice), Ok(1));
    let different = bearer("a.{}.x").header("authorization", "Bearer a.{}.y");
    assert_eq!(outcome(&authn, &different), Err("JWT_AMBIGUOUS"));
    let joined = bearer("a.{}.x, Bearer a.{}.y");
    assert!(outcome(&authn, &joined).is_err());
    let long = bearer(&"a".repeat(evaluate::TOKEN_BYTES_MAX + 1));
    assert_eq!(outcome(&authn, &long), Err("JWT_TOO_LONG"));
}

#[test]
fn more_than_the_signature_can_be_asked() {
    let strict = pb::JwtProvider {
        require_expiration: true,
        max_lifetime: Some(DurationPb { seconds: 60, nanos: 0 }),
        subjects: Some(envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher {
            match_pattern: Some(envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Prefix(
                "user-".into(),
            )),
            ignore_case: false,
        }),
        ..provider()
    };
    let authn = authn(&[("a", strict)], named("a"));
    for (claims, expected) in [
        (json!({"sub": "user-1", "iat": 100, "exp": 160}), Ok(1)),
        (json!({"sub": "user-1", "iat": 100, "exp": 161}), Err("JWT_LIFETIME_TOO_LONG")),
        (json!({"sub": "user-1", "exp": 161}), Err("JWT_LIFETIME_TOO_LONG")),
        (json!({"sub": "user-1", "iat": 100}), Err("JWT_EXPIRATION_MISSING")),
        (json!({"sub": "root", "iat": 100, "exp": 160}), Err("JWT_SUBJECT_NOT_ALLOWED")),
    ] {
        assert_eq!(outcome(&authn, &bearer(&format!("a.{claims}.x"))), expected, "{claims}");
    }
}

#[test]
fn outputs_replace_what_the_client_sent_in_their_place() {
    let claim = |header_name: &str, claim_name: &str| pb::JwtClaimToHeader {
        header_name: header_name.into(),
        claim_name: claim_name.into(),
        ..Default::default()
    };
    let telling = pb::JwtProvider {
        forward: false,
        forward_payload_header: "x-payload".into(),
        claim_to_headers: vec![
            claim("x-sub", "sub"),
            claim("x-deep", "a.b"),
            claim("x-bad", "bad"),
            claim("x-list", "l"),
        ],
        ..provider()
    };
    let authn = authn(&[("a", telling)], any(vec![named("a"), missing()]));

    let spoofed = Sample::get("/").header("x-sub", "root").header("x-payload", "forged");
    let grant = evaluate(&authn, &spoofed).unwrap();
    assert_eq!(grant.remove_headers, ["x-payload", "x-sub"]);
    assert!(grant.set_headers.is_empty());

    let claims = json!({"sub": "s", "a": {"b": 7}, "bad": "x\r\ny", "l": [1]});
    let grant = evaluate(&authn, &bearer(&format!("a.{claims}.x"))).unwrap();
    let set: Vec<(&str, &str)> =
        grant.set_headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert!(set.contains(&("x-sub", "s")) && set.contains(&("x-deep", "7")) && set.contains(&("x-list", "WzFd")));
    assert!(!set.iter().any(|(name, _)| *name == "x-bad"));
    assert!(grant.remove_headers.contains(&http::header::AUTHORIZATION));
    assert_eq!(grant.remove_params, [Arc::from("access_token")]);

    let mut metadata = Metadata::default();
    grant.note(&mut metadata);
    assert!(metadata.has_claims());
}

#[test]
fn only_real_preflights_pass_without_a_token() {
    let authn = authn(&[("a", provider())], named("a"));
    let preflight = |method: &str| {
        Sample::get("/").method(method).header("origin", "https://x").header("access-control-request-method", "PUT")
    };
    assert_eq!(outcome(&authn, &preflight("OPTIONS")), Ok(0));
    assert_eq!(outcome(&authn, &preflight("POST")), Err("JWT_MISSING"));
    assert_eq!(outcome(&authn, &Sample::get("/").method("OPTIONS").header("origin", "x")), Err("JWT_MISSING"));
}

#[test]
fn configurations_that_would_skip_a_check_are_refused() {
    assert!(try_authn(&[("a", provider())], named("b")).is_err());
    assert!(try_authn(&[("a", provider())], any(vec![])).is_err());
    let extract = RequiresType::ExtractOnlyWithoutValidation(pb::ExtractOnlyWithoutValidation::default());
    assert!(try_authn(&[("a", provider())], requires(extract)).is_err());
    assert!(try_authn(&[("a", pb::JwtProvider { jwks_source_specifier: None, ..provider() })], named("a")).is_err());

    let authn = authn(&[("a", provider())], missing());
    let unknown = JwtOverride { requirement: "nothing".into() };
    let refused = authn.evaluate(&Sample::get("/").request(), Some(&unknown), 0, &mut verify).unwrap_err();
    assert_eq!(refused.reason, "JWT_REQUIREMENT_UNKNOWN");
}

#[test]
fn assumed_claims_fit_a_provider_or_none() {
    let of = |issuer: &str, audiences: &[&str]| pb::JwtProvider {
        issuer: issuer.into(),
        audiences: audiences.iter().map(|&audience| audience.into()).collect(),
        ..provider()
    };
    let authn = authn(&[("a", of("https://a", &[])), ("b", of("https://b", &["shop"]))], missing());
    let assume = |claims: Value| {
        let claims = claims.as_object().unwrap().clone();
        authn
            .danger_assume(&claims)
            .map(|grant| grant.tokens[0].claims.json().clone())
            .map_err(|refused| refused.reason)
    };
    assert_eq!(assume(json!({})), Ok(json!({"iss": "https://a", "sub": "somebody"})));
    assert_eq!(assume(json!({"iss": "https://b", "sub": "s", "aud": ["x", "shop"]})).unwrap()["sub"], "s");
    assert_eq!(assume(json!({"iss": "https://b", "aud": "x"})), Err("JWT_WRONG_AUDIENCE"));
    assert_eq!(assume(json!({"iss": "https://c"})), Err("JWT_WRONG_ISSUER"));
}
