//! `oidc_jwt`: a token of any OIDC issuer (a cloud, a build system), verified with the issuer's keys from a file. The
//! payload is `{"token":"…"}`. An issuer speaks for many; only tokens with the required claims are nodes of ours.

use std::collections::BTreeMap;

use identity::jwt::{self, JwtExpectations, VerifiedClaims};
use serde::Deserialize;
use serde_json::Value as Json;

use super::path::{PathTemplate, Value};
use super::settings::AttestorProblem;
use super::{AttestError, Attested, OidcIssuer, OidcJwt, World, selectors};
use crate::jwks_file::JwksFile;
use crate::random::sha256_hex;

/// The attestor with the keys of its issuers.
#[derive(Debug)]
pub(super) struct Attestor {
    issuers: BTreeMap<String, Issuer>,
}

#[derive(Debug)]
struct Issuer {
    settings: OidcIssuer,
    keys: JwksFile,
    template: PathTemplate,
}

/// The token is a secret, so this has no `Debug`.
#[derive(Deserialize)]
struct Payload {
    token: String,
}

impl Attestor {
    pub(super) fn build(settings: &OidcJwt) -> Result<Self, AttestorProblem> {
        let build = |(name, settings): (&String, &OidcIssuer)| {
            let (keys, template) = (JwksFile::new(&settings.jwks_file), template(name, settings)?);
            Ok((name.clone(), Issuer { settings: settings.clone(), keys, template }))
        };
        Ok(Self { issuers: settings.issuers.iter().map(build).collect::<Result<_, _>>()? })
    }

    pub(super) fn attest(&self, payload: &[u8], world: &World<'_>) -> Result<Attested, AttestError> {
        let Payload { token } =
            serde_json::from_slice(payload).map_err(|_| AttestError::Malformed("is not JSON of its kind"))?;
        // The issuer named by the token only chooses the keys; it is proven by their signature, and checked again.
        let named = jwt::danger_unverified_issuer(&token);
        let issuer = named.and_then(|named| self.issuers.iter().find(|(_, known)| known.settings.issuer == named));
        let (name, issuer) = issuer.ok_or(AttestError::IssuerUnknown)?;
        let expect = JwtExpectations::at(world.now)
            .with_issuer(&issuer.settings.issuer)
            .with_audiences(issuer.settings.audiences.clone());
        let claims = issuer.keys.verify(&token, &expect).map_err(|why| AttestError::of(&issuer.keys, why))?;
        issuer.check_claims(&claims)?;
        let prefix = format!("{NAME}/{name}");
        let id = issuer.template.fill(world.trust_domain, &prefix, |field| value_of(&claims, field))?;
        let texts: Vec<(String, Vec<String>)> = issuer.facts(name, &claims);
        let facts =
            texts.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, Some(value.as_str()))));
        let selectors = selectors(NAME, facts);
        Ok(Attested { id, kind: NAME, selectors, can_reattest: issuer.settings.can_reattest, token: None })
    }
}

impl Issuer {
    fn check_claims(&self, claims: &VerifiedClaims) -> Result<(), AttestError> {
        for (claim, values) in &self.settings.required_claims {
            let told = claims.claims().get(claim).map(texts).unwrap_or_default();
            if !told.iter().any(|told| values.contains(told)) {
                return Err(AttestError::ClaimRefused { claim: claim.clone() });
            }
        }
        Ok(())
    }

    fn facts(&self, name: &str, claims: &VerifiedClaims) -> Vec<(String, Vec<String>)> {
        let mapped = self.settings.selectors.iter().map(|(claim, selector)| {
            (format!("{name}:{selector}"), claims.claims().get(claim).map(texts).unwrap_or_default())
        });
        let subject = claims.subject().map(str::to_owned).into_iter().collect();
        [("issuer".into(), vec![name.to_owned()]), (format!("{name}:sub"), subject)].into_iter().chain(mapped).collect()
    }
}

/// The values of a claim that can be compared: texts, numbers, truths, and lists of them.
fn texts(claim: &Json) -> Vec<String> {
    match claim {
        Json::String(text) => vec![text.clone()],
        Json::Number(_) | Json::Bool(_) => vec![claim.to_string()],
        Json::Array(items) => {
            items.iter().take(CLAIM_VALUES_MAX).filter(|item| !item.is_array()).flat_map(texts).collect()
        }
        Json::Null | Json::Object(_) => Vec::new(),
    }
}

fn value_of(claims: &VerifiedClaims, field: &str) -> Option<Value> {
    if field == SUBJECT_HASH {
        return Some(Value::Part(sha256_hex(claims.subject()?.as_bytes())));
    }
    // A list has no single value that could be a name.
    match claims.claims().get(field.strip_prefix(CLAIMS)?)? {
        claim @ (Json::String(_) | Json::Number(_)) => texts(claim).pop().map(Value::Part),
        _ => None,
    }
}

pub(super) fn template(name: &str, settings: &OidcIssuer) -> Result<PathTemplate, AttestorProblem> {
    let text = settings.agent_path_template.as_deref().unwrap_or("{{ .SubjectHash }}");
    PathTemplate::parse(text, &[SUBJECT_HASH, CLAIMS])
        .map_err(|problem| AttestorProblem::new(format!("oidc_jwt.issuers.{name}.agent_path_template"), problem))
}

pub(super) const NAME: &str = "oidc_jwt";
const SUBJECT_HASH: &str = "SubjectHash";
const CLAIMS: &str = "Claims.";
/// The most values of one claim that are read.
const CLAIM_VALUES_MAX: usize = 100;
