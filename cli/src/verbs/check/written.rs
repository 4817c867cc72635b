//! What operators wrote, judged: policies that can never match, and the keys of the issuers that they trust.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use discovery::{Issuer, Jwks, Known, Proxy};
use identity::jwk::JwkSet;
use serde_json::Value;

use super::Found;
use super::facts::Facts;
use super::rules::{Judged, moment, named, unknown, well};
use crate::output::span;
use crate::verbs::explain::world::bytes;

pub(super) fn policies(facts: &Facts) -> Judged {
    let Some(documents) = &facts.documents else { return unknown("the documents could not be read") };
    let pages = || facts.parts.iter().filter_map(|part| part.pages.get("/resources"));
    let running = pages().filter_map(|page| documents.proxy_of_node(&bytes(page["node"].as_str()?)?));
    let proxies: Vec<Proxy> = running.chain(documents.proxies()).collect();
    let bundles = facts.parts.iter().filter_map(|part| part.pages.get("/certs")?["bundles"].as_array());
    let domains: BTreeSet<String> =
        bundles.flatten().filter_map(|bundle| Some(bundle["trust_domain"].as_str()?.to_owned())).collect();
    let domains: Vec<String> = domains.into_iter().collect();
    let known = Known { proxies: &proxies, identities: facts.identities.as_deref(), trust_domains: &domains };
    let idle = documents.idle(known);
    let text = |one: &discovery::Idle| {
        let origin = &one.origin;
        format!("{}:{} {}/{}: {}", origin.file.display(), origin.line, origin.namespace, origin.name, one.text)
    };
    let bad: Vec<String> = idle.iter().map(text).collect();
    named(&bad, Found::Warn, format!("nothing is written in vain for {} workloads", proxies_count(&proxies)))
}

fn proxies_count(proxies: &[Proxy]) -> usize {
    let names: BTreeSet<(&str, &str)> = proxies.iter().map(|proxy| (proxy.namespace(), proxy.name())).collect();
    names.len()
}

/// The worst of all issuers; a value for each.
pub(super) fn issuers(facts: &Facts, now: SystemTime) -> Judged {
    let Some(documents) = &facts.documents else { return unknown("the documents could not be read") };
    let judged: Vec<Judged> = documents.all_issuers().iter().map(|issuer| self::issuer(facts, issuer, now)).collect();
    let Some(worst) = judged.iter().map(|(found, _)| *found).max() else {
        return well("no issuer is trusted".to_owned());
    };
    let mut values: Vec<String> = judged.into_iter().map(|(_, value)| value).collect();
    values.dedup();
    (worst, values.join("; "))
}

fn issuer(facts: &Facts, issuer: &Issuer, now: SystemTime) -> Judged {
    let (found, text) = match &issuer.jwks {
        Jwks::Inline(text) => match JwkSet::parse(text.as_bytes()) {
            Ok(keys) if !keys.is_empty() => well(format!("{} keys in the document", keys.len())),
            Ok(_) => (Found::Fail, "no keys in the document".to_owned()),
            Err(error) => (Found::Fail, format!("the keys in the document cannot be used: {error}")),
        },
        Jwks::Uri(uri) => {
            let proxies = facts.parts.iter().filter_map(|part| part.pages.get("/status")?["jwks"].as_array());
            let fetched: Vec<&Value> = proxies.flatten().filter(|one| one["uri"] == uri.as_str()).collect();
            let judged = fetched.iter().map(|one| remote(one, now));
            judged.max_by_key(|(found, _)| *found).unwrap_or_else(|| unknown("no proxy has needed its keys yet"))
        }
    };
    (found, format!("{}: {text}", issuer.issuer))
}

/// How a proxy fares with an issuer's keys.
fn remote(fetched: &Value, now: SystemTime) -> Judged {
    let error = fetched["error"].as_str();
    let Some(keys) = fetched["keys"].as_u64() else {
        return match error {
            Some(error) => (Found::Fail, format!("no keys: {error}")),
            None => unknown("its keys are being fetched"),
        };
    };
    let age = moment(&fetched["fetched_at"]).and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
    let cache = Duration::from_secs(fetched["cache_secs"].as_u64().unwrap_or(0));
    let value = format!("{keys} keys, fetched {} ago", span(Duration::from_secs(age.as_secs())));
    match error {
        Some(error) => (Found::Warn, format!("{value}; the last try failed: {error}")),
        None if age > cache * LATE_FACTOR => (Found::Warn, format!("{value}, which is late")),
        None => well(value),
    }
}

/// Keys this many times older than they should be have missed renewals.
const LATE_FACTOR: u32 = 3;
