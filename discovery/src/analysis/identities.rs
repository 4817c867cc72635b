//! Identities that policies name: how they are written, whether anybody has them, and whether they are proven at all.

use std::collections::BTreeSet;

use super::Context;
use super::aim::Aim;
use super::authorization::{action, conditions, in_mesh, sources};
use super::message::Report;
use super::mutual_tls::Modes;
use super::resource::{Resource, What};
use super::view::View;
use super::workloads::{Workload, is_selected};

/// All of it.
pub(crate) fn principals(context: &Context<'_>, report: &mut Report) {
    let workloads = in_mesh(context);
    let known = Known::of(context, &workloads);
    let modes = Modes::of(context);
    for policy in context.set.of(What::AuthorizationPolicy) {
        for principal in named(policy) {
            judge(policy, principal, &known, report);
        }
        unproven(context, policy, &workloads, &modes, report);
    }
}

/// Every principal that a policy names.
fn named(policy: &Resource) -> Vec<View<'_>> {
    let by_source = sources(policy).flat_map(|source| lists(source, &["principals", "notPrincipals"]));
    let keyed = conditions(policy).filter(|condition| condition.get("key").text() == "source.principal");
    by_source.chain(keyed.flat_map(|condition| lists(condition, &["values", "notValues"]))).collect()
}

fn lists<'a>(view: View<'a>, names: &'a [&'a str]) -> impl Iterator<Item = View<'a>> {
    names.iter().flat_map(move |name| view.get(name).items())
}

/// Who there is.
struct Known<'a> {
    trust_domains: Vec<&'a str>,
    /// Namespace and service account.
    accounts: BTreeSet<(&'a str, String)>,
}

impl<'a> Known<'a> {
    fn of(context: &Context<'a>, workloads: &[Workload<'a>]) -> Self {
        let mut trust_domains = vec![OWN];
        if let Some(mesh) = context.set.mesh() {
            trust_domains.push(mesh.root().get("trustDomain").text());
            trust_domains.extend(mesh.root().get("trustDomainAliases").texts());
            let authorities = mesh.root().get("caCertificates").items();
            trust_domains.extend(authorities.flat_map(|one| one.get("trustDomains").texts()));
        }
        let real =
            workloads.iter().filter(|workload| !workload.resource.is_assumed && !workload.service_account.is_empty());
        let mut accounts: BTreeSet<(&str, String)> =
            real.map(|workload| (workload.namespace(), workload.service_account.clone())).collect();
        accounts.extend(context.set.of(What::ServiceAccount).map(|one| (one.namespace.as_str(), one.name.clone())));
        Self { trust_domains, accounts }
    }

    /// Whether nobody runs as the account, in a namespace whose workloads are known.
    fn is_nobody(&self, namespace: &str, account: &str) -> bool {
        let is_installed = ISTIOS_ACCOUNTS.contains(&account);
        let is_told = self.accounts.iter().any(|(known, _)| *known == namespace);
        is_told && !is_installed && !self.accounts.iter().any(|(at, known)| *at == namespace && known == account)
    }
}

fn judge(policy: &Resource, principal: View<'_>, known: &Known<'_>, report: &mut Report) {
    let text = principal.text();
    if text.starts_with("spiffe://") {
        return report.tell(
            "KSB0105",
            policy,
            principal,
            format!("`{text}` is written with its scheme and never matches"),
        );
    }
    let Some((domain, path)) = text.split_once('/').filter(|_| !text.contains('*')) else { return };
    if !known.trust_domains.contains(&domain) {
        let text = format!("`{text}` is of the trust domain {domain}, which is not known here");
        return report.tell("KSB0106", policy, principal, text);
    }
    let parts: Vec<&str> = path.split('/').collect();
    if let ["ns", namespace, "sa", account] = parts.as_slice()
        && known.is_nobody(namespace, account)
    {
        let text = format!("no workload of {namespace} runs as the service account {account} of `{text}`");
        report.tell("KSB0107", policy, principal, text);
    }
}

/// Policies on who the peer is, where peers need not say who they are.
fn unproven(
    context: &Context<'_>,
    policy: &Resource,
    workloads: &[Workload<'_>],
    modes: &Modes<'_>,
    report: &mut Report,
) {
    let Some(field) = asked(policy) else { return };
    let aim = Aim::of(context.set, policy);
    let mut meant = aim.workloads(workloads).filter(|workload| !is_gateway(context, workload));
    let Some((workload, mode)) = meant.find_map(|workload| {
        Some(modes.at(workload, None)).filter(|mode| *mode != "STRICT").map(|mode| (workload, mode))
    }) else {
        return;
    };
    let name = workload.resource.full_name();
    let so = match (mode, action(policy)) {
        ("DISABLE", _) => "nobody proves who they are",
        (_, "DENY") => "plain text escapes it",
        _ => "plain text has no identity",
    };
    report.tell("KSB0104", policy, field, format!("it asks who the peer is, and {name} is {mode}: {so}"));
}

/// The first field that asks for the peer's identity.
fn asked(policy: &Resource) -> Option<View<'_>> {
    let by_source = sources(policy).flat_map(|source| ASKING.iter().map(move |name| source.get(name)));
    let by_key = conditions(policy).map(|condition| condition.get("key"));
    let by_key = by_key.filter(|key| ["source.principal", "source.namespace"].contains(&key.text()));
    by_source.chain(by_key).find(|field| field.exists())
}

/// Ports of gateways have TLS settings of their own.
fn is_gateway(context: &Context<'_>, workload: &Workload<'_>) -> bool {
    context.set.of(What::Gateway).any(|gateway| is_selected(gateway.spec().get("selector"), &workload.labels))
}

/// What policies may call the mesh's own trust domain, whatever its name.
const OWN: &str = "cluster.local";
const ISTIOS_ACCOUNTS: &[&str] =
    &["istio-egressgateway-service-account", "istio-ingressgateway", "istio-ingressgateway-service-account", "istiod"];
const ASKING: &[&str] = &[
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
];
