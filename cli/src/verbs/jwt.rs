//! `kasbah jwt`: tokens shown, verified with every reason, and made by an administrator.
//!
//! A token is a secret for as long as it lives: it stands in no message of these verbs, only `mint` prints the one it made.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use identity::jwk::{JwkError, JwkSet};
use identity::jwt::{self, JwtError, JwtExpectations, TOKEN_BYTES_MAX};
use identity::strict_json;
use proto::spire::api::server::svid::v1::MintJwtsvidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{ca, time_text, wait};
use crate::args::{CaArg, DecodeArgs, JwtCommand, JwtVerifyArgs, MintArgs};
use crate::exit::{Exit, Failure, chain};
use crate::{bundle_message, ca_client, output, reasons};

pub(crate) fn run(command: &JwtCommand) -> Result<(), Failure> {
    match command {
        JwtCommand::Decode(args) => decode(args),
        JwtCommand::Verify(args) if args.lines => super::filters::jwt::verify(),
        JwtCommand::Verify(args) => verify(args),
        JwtCommand::Mint(args) => mint(args),
    }
}

fn decode(args: &DecodeArgs) -> Result<(), Failure> {
    let token = read_token(&args.token)?;
    let (header, claims) = jwt::danger_unverified(&token).map_err(|error| {
        Failure::refused(Exit::Data, error.reason(), chain(&error))
            .remedy("give one JWT: three parts in base64url with dots between them")
    })?;
    let shown = Shown::of(header, claims, SystemTime::now());
    output::print(args.output.output, &shown, || shown.text())
}

/// A token as it presents itself.
#[derive(Debug, Serialize)]
struct Shown {
    verified: bool,
    header: Map<String, Value>,
    claims: Map<String, Value>,
    /// Dates among the claims, RFC 3339.
    times: Map<String, Value>,
    /// Zero when it has ended, absent without `exp`.
    life_left: Option<String>,
    expired: Option<bool>,
}

impl Shown {
    fn of(header: Map<String, Value>, claims: Map<String, Value>, now: SystemTime) -> Self {
        let now = runtime::clock::unix_secs(now);
        let dates = DATES.iter().filter_map(|name| Some((*name, seconds(claims.get(*name)?)?)));
        let times = dates.map(|(name, secs)| (name.to_owned(), Value::from(moment(secs)))).collect();
        let end = claims.get("exp").and_then(seconds);
        let left = end.map(|end| u64::try_from(end).unwrap_or(0).saturating_sub(now));
        let life_left = left.map(|left| output::span(Duration::from_secs(left)));
        Self { verified: false, header, claims, times, life_left, expired: left.map(|left| left == 0) }
    }

    fn text(&self) -> String {
        let mut lines = vec!["header".to_owned()];
        lines.extend(self.header.iter().map(|(name, value)| format!("  {:<10} {}", shown(name), value_text(value))));
        lines.push("claims".to_owned());
        for (name, value) in &self.claims {
            let time = self.times.get(name).and_then(Value::as_str).map(|time| format!("  {time}"));
            lines.push(format!("  {:<10} {}{}", shown(name), value_text(value), time.unwrap_or_default()));
        }
        let left = match (&self.life_left, self.expired) {
            (Some(_), Some(true)) => "none: it has expired".to_owned(),
            (Some(left), _) => left.clone(),
            (None, _) => "it says no end".to_owned(),
        };
        lines.push(format!("life left    {left}"));
        lines.push("not verified: anybody can write such a token; see `kasbah jwt verify`".to_owned());
        lines.join("\n")
    }
}

fn seconds(value: &Value) -> Option<i64> {
    let rounded = |secs: f64| (secs.abs() < DATE_SECS_MAX).then_some(secs as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(rounded))
}

/// Also what lies beyond the calendar is shown.
fn moment(secs: i64) -> String {
    jiff::Timestamp::from_second(secs).map_or_else(|_| secs.to_string(), |time| time.to_string())
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        other => shown(&other.to_string()),
    }
}

/// A text of a stranger's, without what steers a terminal.
fn shown(text: &str) -> String {
    let steers = |c: &char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if steers(&c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }).collect()
}

fn verify(args: &JwtVerifyArgs) -> Result<(), Failure> {
    let token = read_token(args.token.as_deref().unwrap_or("-"))?;
    let (keys, source) = match &args.keys {
        Some(file) => (keys_of(file)?, file.display().to_string()),
        None => (wait(keys_of_ca(&args.ca))?, "the JWT authorities of the CA".to_owned()),
    };
    let judged = judge(&token, &keys, args.issuer.as_deref(), &args.audience, SystemTime::now());
    let claims = jwt::danger_unverified(&token).map(|(_, claims)| claims).unwrap_or_default();
    let document = document(&judged, &claims, &source);
    output::print(args.output.output, &document, || text(&judged, &claims, &source))?;
    if judged.iter().all(|one| one.found.is_ok()) { Ok(()) } else { Err(Failure::quiet()) }
}

/// One thing that was judged.
#[derive(Debug)]
struct Judged {
    what: &'static str,
    found: Result<(), JwtError>,
}

/// Every reason against a token. Nothing of it is believed, or judged, before its signature.
fn judge(token: &str, keys: &JwkSet, issuer: Option<&str>, audiences: &[String], now: SystemTime) -> Vec<Judged> {
    let any_time = JwtExpectations { leeway: Duration::MAX, expiry_required: false, ..JwtExpectations::at(now) };
    let check = |what, expect: &JwtExpectations| Judged { what, found: jwt::verify(token, keys, expect).map(drop) };
    let signature = check("signature", &any_time);
    if signature.found.is_err() {
        return vec![signature];
    }
    let mut judged = vec![signature, check("times", &JwtExpectations::at(now))];
    if let Some(issuer) = issuer {
        judged.push(check("issuer", &any_time.clone().with_issuer(issuer)));
    }
    if !audiences.is_empty() {
        judged.push(check("audience", &any_time.with_audiences(audiences)));
    }
    judged
}

fn document(judged: &[Judged], claims: &Map<String, Value>, source: &str) -> Value {
    let reasons: Vec<Value> =
        judged.iter().filter_map(|one| Some((one, one.found.as_ref().err()?))).map(reason).collect();
    let verdict = reasons.first().map_or_else(|| json!("ok"), |reason| reason["code"].clone());
    let believed = judged.first().is_some_and(|one| one.found.is_ok());
    let claim = |name: &str| claims.get(name).filter(|_| believed);
    json!({
        "holds": reasons.is_empty(),
        "verdict": verdict,
        "reasons": reasons,
        "checked": judged.iter().map(|one| one.what).collect::<Vec<_>>(),
        "keys": source,
        "subject": claim("sub"),
        "issuer": claim("iss"),
        "audiences": claim("aud"),
        "expires_at": claim("exp").and_then(seconds).map(moment),
    })
}

fn reason((one, error): (&Judged, &JwtError)) -> Value {
    let doc = reasons::find(error.reason());
    json!({"check": one.what, "code": error.reason(), "text": chain(error), "remedy": doc.map(|doc| doc.remedy)})
}

fn text(judged: &[Judged], claims: &Map<String, Value>, source: &str) -> String {
    let mut lines = vec![format!("keys       {source}")];
    for one in judged {
        match &one.found {
            Ok(()) => lines.push(format!("ok    {:<10}", one.what).trim_end().to_owned()),
            Err(error) => {
                lines.push(format!("FAIL  {:<10} {} ({})", one.what, chain(error), error.reason()));
                let doc = reasons::find(error.reason());
                lines.extend(doc.map(|doc| format!("                 -> {}", doc.remedy)));
            }
        }
    }
    let holds = judged.iter().all(|one| one.found.is_ok());
    let subject = claims.get("sub").map_or_else(|| "nobody in particular".to_owned(), value_text);
    lines.push(if holds { format!("it holds, for {subject}") } else { "it does not hold".to_owned() });
    lines.join("\n")
}

fn keys_of(file: &Path) -> Result<JwkSet, Failure> {
    let bad = |why: String| {
        Failure::new(Exit::Data, format!("{}: {why}", file.display()))
            .remedy("give a JWKS or a SPIFFE bundle: a JSON object with a list `keys`")
    };
    let text = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
    let set = strict_json::parse_object(&text).ok_or_else(|| bad("it is not one JSON object".to_owned()))?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or_else(|| bad("it has no list `keys`".to_owned()))?;
    let refused = |error: JwkError| {
        Failure::refused(Exit::Data, error.reason(), format!("{}: {}", file.display(), chain(&error)))
    };
    JwkSet::from_given(keys).map_err(refused)
}

async fn keys_of_ca(arg: &CaArg) -> Result<JwkSet, Failure> {
    let bundle = bundle_message::from_wire(&ca(arg).await?.bundle().await?)?;
    let keys = bundle.jwt_jwks();
    let keys = keys.get("keys").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    JwkSet::from_given(keys).map_err(|error| Failure::new(Exit::Data, format!("the CA's keys: {}", chain(&error))))
}

fn mint(args: &MintArgs) -> Result<(), Failure> {
    let id = super::spiffe_id(&args.spiffe_id)?;
    let ttl = args.ttl.map_or(0, |ttl| i32::try_from(ttl.as_secs().max(1)).unwrap_or(i32::MAX));
    let request = MintJwtsvidRequest { id: Some(ca_client::to_id_message(&id)), audience: args.audience.clone(), ttl };
    let svid = wait(async {
        let channel = ca(&args.ca).await?.channel();
        let answer = SvidClient::new(channel).mint_jwtsvid(request).await?.into_inner();
        answer.svid.ok_or_else(|| Failure::failed("the CA answered without a token"))
    })?;
    let document = json!({
        "spiffe_id": ca_client::id_text(svid.id.as_ref()),
        "audiences": args.audience,
        "issued_at": time_text(svid.issued_at),
        "expires_at": time_text(svid.expires_at),
        "token": svid.token,
    });
    output::print(args.output.output, &document, || svid.token.clone())
}

/// The token given, or that of stdin.
fn read_token(given: &str) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut text = String::new();
    let limit = u64::try_from(TOKEN_BYTES_MAX + LINE_END_BYTES_MAX).unwrap_or(u64::MAX);
    std::io::stdin().lock().take(limit).read_to_string(&mut text).map_err(|_| {
        Failure::new(Exit::Data, "stdin is no text").remedy("give one JWT, such as `kasbah demo token` prints it")
    })?;
    Ok(text.trim().to_owned())
}

/// Claims that are dates (RFC 7519, 4.1; OpenID Connect Core 1.0, section 2).
const DATES: &[&str] = &["exp", "nbf", "iat", "auth_time"];
/// Beyond it a date is shown as it is written.
const DATE_SECS_MAX: f64 = 1e15;
/// Read beyond the longest token, so that one too long is seen to be.
const LINE_END_BYTES_MAX: usize = 16;

#[cfg(test)]
mod tests;
