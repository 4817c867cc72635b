//! Whether a request's tokens are enough.

use std::sync::Arc;
use std::time::SystemTime;

use identity::jwk::JwkSet;
use identity::jwt::{self, JwtError, JwtExpectations, VerifiedClaims};
use smallvec::SmallVec;

use super::extract::tokens;
use super::{JwtAuthn, JwtFailure, JwtGrant, JwtOverride, JwtProvider, JwtRefusal, Requirement, VerifiedToken};
use crate::request::{Request, TokenClaims};

/// A token and by whose rules it is to be verified.
#[derive(Clone, Copy, Debug)]
pub struct Expect<'a> {
    /// Whose keys and issuer are meant.
    pub provider: &'a JwtProvider,
    /// The audiences of which one is required; none if any will do.
    pub audiences: &'a [Arc<str>],
    /// The token.
    pub token: &'a str,
}

impl Expect<'_> {
    /// Verifies the token by the provider's demands and these keys, at this moment.
    ///
    /// # Errors
    /// What is wrong with the token.
    pub fn verify(&self, keys: &JwkSet, now: SystemTime) -> Result<VerifiedClaims, JwtError> {
        let expectations = JwtExpectations {
            issuer: self.provider.issuer.as_deref().map(str::to_owned),
            audiences: self.audiences.iter().map(|audience| audience.to_string()).collect(),
            now,
            leeway: self.provider.clock_skew,
            expiry_required: self.provider.require_expiration,
        };
        jwt::verify(self.token, keys, &expectations)
    }
}

type Verify<'v> = dyn FnMut(&Expect<'_>) -> Result<TokenClaims, JwtFailure> + 'v;

impl JwtAuthn {
    /// Whether a request's tokens are enough, and what changes about the request.
    pub fn evaluate(
        &self,
        request: &Request<'_>,
        changed: Option<&JwtOverride>,
        dice: u64,
        verify: &mut Verify<'_>,
    ) -> Result<JwtGrant, JwtRefusal> {
        let mut run = Run { authn: self, request, verify, grant: JwtGrant::default() };
        run.remove_spoofed_outputs();
        if self.bypass_cors_preflight && request.is_cors_preflight() {
            return Ok(run.grant);
        }
        if let Some(requirement) = self.requirement(request, changed, dice)? {
            run.check(requirement, &[])?;
        }
        run.describe_tokens();
        Ok(run.grant)
    }

    /// Whether a request has to bring anything at all.
    pub fn concerns(&self, request: &Request<'_>, dice: u64) -> bool {
        matches!(self.requirement(request, None, dice), Ok(Some(_)))
    }

    /// The outcome for claims that nobody verified: for explanations. A missing issuer is taken to be the first
    /// provider's.
    ///
    /// # Errors
    /// When no provider's issuer, audiences and further demands fit the claims.
    pub fn danger_assume(&self, claims: &serde_json::Map<String, serde_json::Value>) -> Result<JwtGrant, JwtRefusal> {
        let mut refusal = JwtRefusal { reason: "JWT_WRONG_ISSUER", provider: None };
        for provider in self.providers.values() {
            let mut own = claims.clone();
            if let Some(issuer) = &provider.issuer {
                own.entry("iss").or_insert_with(|| (**issuer).into());
            }
            own.entry("sub").or_insert_with(|| ASSUMED_SUBJECT.into());
            let refused = |reason| JwtRefusal { reason, provider: Some(provider.name.clone()) };
            let claims = TokenClaims::danger_assume(serde_json::Value::Object(own));
            if provider.issuer.as_deref().is_some_and(|issuer| claims.issuer() != Some(issuer)) {
                continue;
            }
            if !provider.audiences.is_empty() && !has_audience(&claims, &provider.audiences) {
                refusal = refused("JWT_WRONG_AUDIENCE");
                continue;
            }
            if let Err(reason) = provider.accepts(&claims) {
                refusal = refused(reason);
                continue;
            }
            let claims = claims.split_at_blanks(&provider.space_delimited);
            let tokens = vec![VerifiedToken { provider: provider.clone(), claims }];
            return Ok(JwtGrant { tokens, ..JwtGrant::default() });
        }
        Err(refusal)
    }

    fn requirement(
        &self,
        request: &Request<'_>,
        changed: Option<&JwtOverride>,
        dice: u64,
    ) -> Result<Option<&Requirement>, JwtRefusal> {
        if let Some(changed) = changed {
            // A route that names a requirement which does not exist must not thereby need none.
            let unknown = JwtRefusal { reason: "JWT_REQUIREMENT_UNKNOWN", provider: None };
            return self.named.get(&changed.requirement).map(Some).ok_or(unknown);
        }
        let rule = self.rules.iter().find(|(route, _)| route.matches(request, dice));
        Ok(rule.and_then(|(_, requirement)| requirement.as_ref()))
    }
}

fn has_audience(claims: &TokenClaims, wanted: &[Arc<str>]) -> bool {
    let is_wanted = |one: &serde_json::Value| one.as_str().is_some_and(|one| wanted.iter().any(|want| **want == *one));
    match claims.json().get("aud") {
        Some(serde_json::Value::Array(several)) => several.iter().any(is_wanted),
        Some(one) => is_wanted(one),
        None => false,
    }
}

struct Run<'a, 'r, 'v> {
    authn: &'a JwtAuthn,
    request: &'a Request<'r>,
    verify: &'a mut Verify<'v>,
    grant: JwtGrant,
}

type Siblings<'a> = SmallVec<[&'a Arc<JwtProvider>; 4]>;

impl<'a> Run<'a, '_, '_> {
    fn check(&mut self, requirement: &'a Requirement, siblings: &[&'a Arc<JwtProvider>]) -> Result<(), JwtRefusal> {
        match requirement {
            Requirement::Provider(provider, audiences) => {
                self.check_provider(provider, audiences.as_deref().unwrap_or(&provider.audiences))
            }
            Requirement::Any(list) => self.check_any(list),
            Requirement::All(list) => list.iter().try_for_each(|item| self.check(item, &[])),
            Requirement::AllowMissing => self.allow_missing(siblings),
            Requirement::AllowMissingOrFailed => {
                let _ = self.allow_missing(siblings);
                Ok(())
            }
        }
    }

    /// The first that is content decides. If none is, the most telling complaint is reported.
    fn check_any(&mut self, list: &'a [Requirement]) -> Result<(), JwtRefusal> {
        let siblings: Siblings<'a> = list
            .iter()
            .filter_map(|item| match item {
                Requirement::Provider(provider, _) => Some(provider),
                _ => None,
            })
            .collect();
        let mut worst: Option<JwtRefusal> = None;
        for item in list {
            let kept = self.grant.tokens.len();
            let Err(refusal) = self.check(item, &siblings) else { return Ok(()) };
            self.grant.tokens.truncate(kept);
            if worst.as_ref().is_none_or(|worst| refusal.weight() > worst.weight()) {
                worst = Some(refusal);
            }
        }
        Err(worst.unwrap_or(MISSING))
    }

    /// Content if no token is there. A token that is there must verify with one of the providers meant.
    fn allow_missing(&mut self, siblings: &[&'a Arc<JwtProvider>]) -> Result<(), JwtRefusal> {
        let authn = self.authn;
        let meant: Siblings<'a> = match siblings.is_empty() {
            true => authn.providers.values().collect(),
            false => siblings.iter().copied().collect(),
        };
        let mut outcome = Ok(());
        for provider in meant {
            if tokens(provider, self.request).is_empty() || self.has_token_of(provider) {
                continue;
            }
            match self.check_provider(provider, &provider.audiences) {
                Ok(()) => return Ok(()),
                Err(refusal) => outcome = Err(refusal),
            }
        }
        outcome
    }

    fn has_token_of(&self, provider: &Arc<JwtProvider>) -> bool {
        self.grant.tokens.iter().any(|token| Arc::ptr_eq(&token.provider, provider))
    }

    fn check_provider(&mut self, provider: &Arc<JwtProvider>, audiences: &[Arc<str>]) -> Result<(), JwtRefusal> {
        let refuse = |reason| Err(JwtRefusal { reason, provider: Some(provider.name.clone()) });
        let found = tokens(provider, self.request);
        let token = match found.as_slice() {
            [] => return refuse("JWT_MISSING"),
            [token] => *token,
            _ => return refuse("JWT_AMBIGUOUS"),
        };
        if token.len() > TOKEN_BYTES_MAX {
            return refuse("JWT_TOO_LONG");
        }
        let claims = match (self.verify)(&Expect { provider, audiences, token }) {
            Ok(claims) => claims,
            Err(failure) => return refuse(failure.reason),
        };
        if let Err(reason) = provider.accepts(&claims) {
            return refuse(reason);
        }
        if !self.has_token_of(provider) {
            let claims = claims.split_at_blanks(&provider.space_delimited);
            self.grant.tokens.push(VerifiedToken { provider: provider.clone(), claims });
        }
        Ok(())
    }

    /// Whatever a client put where only we may write.
    fn remove_spoofed_outputs(&mut self) {
        let spoofed = self.authn.outputs.iter().filter(|name| self.request.headers.contains_key(*name));
        self.grant.remove_headers.extend(spoofed.cloned());
    }

    fn describe_tokens(&mut self) {
        for token in std::mem::take(&mut self.grant.tokens) {
            let raw = tokens(&token.provider, self.request);
            token.provider.describe(raw.first().copied().unwrap_or_default(), &token.claims, &mut self.grant);
            self.grant.tokens.push(token);
        }
    }
}

impl JwtProvider {
    /// What is asked of claims beyond signature, issuer, audience and times.
    fn accepts(&self, claims: &TokenClaims) -> Result<(), &'static str> {
        if let Some(subjects) = &self.subjects
            && !claims.subject().is_some_and(|subject| subjects.matches(subject.as_bytes()))
        {
            return Err("JWT_SUBJECT_NOT_ALLOWED");
        }
        let expires = claims.seconds("exp");
        if (self.require_expiration || self.lifetime_max.is_some()) && expires.is_none() {
            return Err("JWT_EXPIRATION_MISSING");
        }
        if let (Some(max), Some(expires)) = (self.lifetime_max, expires) {
            let issued = claims.seconds("iat").or_else(|| claims.seconds("nbf"));
            if !issued.is_some_and(|issued| expires - issued <= max.as_secs_f64()) {
                return Err("JWT_LIFETIME_TOO_LONG");
            }
        }
        Ok(())
    }
}

impl JwtRefusal {
    /// How much it tells: a token that failed tells more than one that was somebody else's, and that more than none.
    fn weight(&self) -> u8 {
        match self.reason {
            "JWT_MISSING" => 0,
            reason if reason.contains("ISSUER") => 1,
            _ => 2,
        }
    }
}

/// The subject of assumed claims that name none.
const ASSUMED_SUBJECT: &str = "somebody";
const MISSING: JwtRefusal = JwtRefusal { reason: "JWT_MISSING", provider: None };

/// The longest token.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 * 1024;
