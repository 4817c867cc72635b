//! Certificates of gateways: shown by several, missing, broken, ending, or for other hosts.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use identity::pem;
use identity::summary::CertificateSummary;

use super::Context;
use super::hosts::overlap;
use super::message::{Report, list};
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{self, selected};

/// One certificate at several Gateways.
pub(crate) fn duplicates(context: &Context<'_>, report: &mut Report) {
    for gateway in context.set.of(What::Gateway) {
        let selector = gateway.spec().get("selector").labels();
        let others = context.set.of(What::Gateway).filter(|other| !std::ptr::eq(*other, gateway));
        let is_wider = |other: &&Resource| {
            let theirs = other.spec().get("selector");
            selector.iter().all(|(name, value)| theirs.get(name).node().is_some() && theirs.get(name).is(value))
        };
        for other in others.filter(is_wider) {
            let servers = || other.spec().get("servers").items().map(|server| server.get("tls"));
            for tls in gateway.spec().get("servers").items().map(|server| server.get("tls")) {
                if servers().any(|theirs| is_same(tls, theirs)) {
                    let text = format!("{} shows the same certificate", other.full_name());
                    report.tell("IST0138", gateway, gateway.name_view(), text);
                }
            }
        }
    }
}

fn is_same(a: View<'_>, b: View<'_>) -> bool {
    let same = |field: &str| !a.get(field).text().is_empty() && a.get(field).text() == b.get(field).text();
    let has_secret = |tls: View<'_>| !tls.get("credentialName").text().is_empty();
    match (has_secret(a), has_secret(b)) {
        (true, true) => same("credentialName"),
        (false, false) => same("serverCertificate") && same("privateKey"),
        _ => false,
    }
}

/// Secrets of certificates: whether they exist and can be used now. Where a set has no Secret at all, they are kept elsewhere.
pub(crate) fn secrets(context: &Context<'_>, report: &mut Report) {
    if context.set.of(What::Secret).next().is_none() {
        return;
    }
    let workloads = workloads::all(context.set);
    for gateway in context.set.of(What::Gateway) {
        let labels = gateway.spec().get("selector").labels();
        let Some(namespace) = selected(&workloads, None, &labels).next().map(|proxy| proxy.namespace()) else {
            continue;
        };
        for server in gateway.spec().get("servers").items() {
            for name in names(server.get("tls")) {
                judge(context, gateway, server, name, namespace, report);
            }
        }
    }
}

fn names(tls: View<'_>) -> Vec<View<'_>> {
    let one = std::iter::once(tls.get("credentialName")).filter(|name| !name.text().is_empty());
    one.chain(tls.get("credentialNames").items()).collect()
}

fn judge(
    context: &Context<'_>,
    gateway: &Resource,
    server: View<'_>,
    name: View<'_>,
    namespace: &str,
    report: &mut Report,
) {
    let written = name.text();
    let plain = written.strip_prefix("kubernetes://").unwrap_or(written);
    let (namespace, plain) = plain.split_once('/').unwrap_or((namespace, plain));
    let Some(secret) = context.set.find(What::Secret, namespace, plain) else {
        let text = format!("there is no secret {namespace}/{plain}, which has to be beside the gateway's workload");
        return report.tell("IST0101", gateway, name, text);
    };
    match certificate(secret, context.now) {
        Err(fault) => report.tell("IST0161", gateway, name, format!("the secret {namespace}/{plain}: {fault}")),
        Ok(chain) => unfit(&chain, context.now, gateway, server, name, report),
    }
}

/// The chain of a secret, its leaf first, if that can be used now.
fn certificate(secret: &Resource, now: SystemTime) -> Result<Vec<CertificateSummary>, String> {
    let chain = entry(secret, &["tls.crt", "cert"]).ok_or("it has no certificate (tls.crt)")?;
    let key = entry(secret, &["tls.key", "key"]).ok_or("it has no private key (tls.key)")?;
    let ders = pem::decode_certificates(&chain).map_err(|error| format!("its certificate cannot be read: {error}"))?;
    let summaries: Result<Vec<CertificateSummary>, _> = ders.iter().map(CertificateSummary::decode).collect();
    let summaries = summaries.map_err(|error| format!("its certificate cannot be read: {error}"))?;
    let leaf = summaries.first().ok_or("it has no certificate (tls.crt)")?;
    pem::decode_private_key(&key).map_err(|error| format!("its private key cannot be read: {error}"))?;
    match () {
        () if now < leaf.not_before() => Err("its certificate is not yet valid".to_owned()),
        () if now > leaf.not_after() => Err("its certificate has expired".to_owned()),
        () => Ok(summaries),
    }
}

/// A value of a secret, by the first of the names that has one.
fn entry(secret: &Resource, names: &[&str]) -> Option<Vec<u8>> {
    let coded = |name: &&str| {
        let text: String = secret.root().get("data").get(name).text().split_whitespace().collect();
        base64::engine::general_purpose::STANDARD.decode(text).ok()
    };
    let plain = |name: &&str| Some(secret.root().get("stringData").get(name).text().as_bytes().to_vec());
    let values = names.iter().flat_map(|name| [coded(name), plain(name)]);
    values.flatten().find(|value| !value.is_empty())
}

/// A certificate that is valid, but not for long or not for these hosts.
fn unfit(
    chain: &[CertificateSummary],
    now: SystemTime,
    gateway: &Resource,
    server: View<'_>,
    name: View<'_>,
    report: &mut Report,
) {
    let Some(leaf) = chain.first() else { return };
    if chain.windows(2).any(|pair| pair[0].issuer != pair[1].subject) {
        let text = format!(
            "the chain of {} is not in order: each certificate has to be followed by its issuer's",
            name.text()
        );
        report.tell("KSB0112", gateway, name, text);
    }
    let left = leaf.not_after().duration_since(now).unwrap_or_default();
    if left < ENDS_SOON {
        let text = format!("the certificate of {} ends in {} days", name.text(), left.as_secs() / 86_400);
        report.tell("KSB0112", gateway, name, text);
    }
    let hosts = server.get("hosts").texts();
    let plain = |host: &str| host.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let is_covered = |host: &&str| {
        plain(host) == "*" || leaf.dns_names.iter().any(|known| overlap(&known.to_ascii_lowercase(), &plain(host)))
    };
    let other: Vec<&&str> = hosts.iter().filter(|host| !is_covered(host)).collect();
    if !other.is_empty() {
        let text = format!("the certificate of {} is not for {}", name.text(), list(other.into_iter().copied()));
        report.tell("KSB0112", gateway, name, text);
    }
}

/// Certificates that end sooner are told.
const ENDS_SOON: Duration = Duration::from_secs(14 * 86_400);
