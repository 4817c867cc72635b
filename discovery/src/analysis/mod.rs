//! Analysis: what is wrong with a whole set of documents, though each of them is accepted alone.
//!
//! Istio's analyzers with Istio's codes (`IST…`), as far as they concern a mesh like ours, and our own about identities
//! (`KSB…`). Documents are looked at loosely, also those that validation refuses and kinds that discovery does not take, so
//! that one mistake hides no other. Pure but for reading files: the time is an argument.

mod aim;
mod annotations;
mod assumed;
mod authorization;
mod codes;
mod conditions;
mod deployments;
mod destination_rules;
mod envoy_filters;
mod gateway_api;
mod gateway_certificates;
mod gateways;
mod hosts;
mod identities;
mod injection;
mod mesh_networks;
mod message;
mod mutual_tls;
mod protection;
mod resource;
mod routes;
mod schema;
mod selectors;
mod service_entries;
mod services;
mod set;
mod suppress;
mod telemetry;
mod tokens;
mod view;
mod virtual_services;
mod webhooks;
mod workloads;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use codes::{Code, all as codes};
pub use message::{Level, Message};
pub use suppress::{Suppression, SuppressionError};

use crate::documents::Finding;
use message::Report;
use set::Set;

/// How to analyse.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// The time by which certificates are judged.
    pub now: SystemTime,
    /// A file with the mesh configuration alone, beside the documents.
    pub mesh: Option<&'a Path>,
    /// Names of the analyzers to run; all when empty.
    pub analyzers: &'a [String],
}

/// What an analysis found.
#[derive(Clone, Debug, Default)]
pub struct Analysis {
    /// What the analyzers say, by file and line; what documents suppress by annotation is left out.
    pub messages: Vec<Message>,
    /// Documents that could not be read, with their places; all others were analysed.
    pub unreadable: Vec<Finding>,
    /// How many documents were read.
    pub documents: usize,
    /// Messages that were too many to be kept.
    pub left_out: usize,
}

/// One analyzer.
#[derive(Clone, Copy)]
pub struct Analyzer {
    /// Its name; Istio's where there is one.
    pub name: &'static str,
    /// The codes it can tell.
    pub codes: &'static [&'static str],
    run: fn(&Context<'_>, &mut Report),
}

/// What analyzers look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) set: &'a Set,
    pub(crate) now: SystemTime,
}

/// Analyses the documents below `paths`, files and folders, as one set.
#[must_use]
pub fn analyze(paths: &[PathBuf], options: &Options<'_>) -> Analysis {
    examine(Set::read(paths, options.mesh), options)
}

fn examine(mut set: Set, options: &Options<'_>) -> Analysis {
    let documents = set.all().len();
    let unreadable = std::mem::take(&mut set.unreadable);
    assumed::add(&mut set);
    let context = Context { set: &set, now: options.now };
    let mut report = Report::default();
    let is_wanted = |analyzer: &&Analyzer| {
        options.analyzers.is_empty() || options.analyzers.iter().any(|name| name == analyzer.name)
    };
    for analyzer in ANALYZERS.iter().filter(is_wanted) {
        report.analyzer = analyzer.name;
        // Whatever the documents are, the others have their say.
        if catch_unwind(AssertUnwindSafe(|| (analyzer.run)(&context, &mut report))).is_err() {
            report.failed();
        }
    }
    let left_out = report.left_out;
    Analysis { messages: report.into_messages(), unreadable, documents, left_out }
}

const fn analyzer(name: &'static str, codes: &'static [&'static str], run: fn(&Context<'_>, &mut Report)) -> Analyzer {
    Analyzer { name, codes, run }
}

/// Every analyzer, in the order in which they run.
pub const ANALYZERS: &[Analyzer] = &[
    analyzer("schema.ValidationAnalyzer", &["IST0106", "IST0133"], schema::validate),
    analyzer("virtualservice.UnreachableRuleAnalyzer", &["IST0130", "IST0131"], routes::unreachable),
    analyzer("annotations.K8sAnalyzer", &["IST0107", "IST0108", "IST0125", "IST0135"], annotations::kubernetes),
    analyzer("maturity.AlphaAnalyzer", &["IST0136"], annotations::alpha),
    analyzer("authn.BlockedCIDRsAnalyzer", &["IST0175"], tokens::blocked_addresses),
    analyzer("authz.AuthorizationPoliciesAnalyzer", &["IST0101", "IST0127"], authorization::workloads),
    analyzer("conditions.ConditionAnalyzer", &["IST0171"], conditions::negative),
    analyzer("deployment.ServiceAssociationAnalyzer", &["IST0116", "IST0137"], deployments::services),
    analyzer("deployment.ApplicationUIDAnalyzer", &["IST0144"], deployments::user),
    analyzer("deprecation.FieldAnalyzer", &["IST0002"], schema::deprecated),
    analyzer("destinationrule.CaCertificateAnalyzer", &["IST0128", "IST0129"], destination_rules::authorities),
    analyzer("destinationrule.PodNotSelectedAnalyzer", &["IST0173", "IST0174"], destination_rules::subsets),
    analyzer(
        "envoyfilter.EnvoyPatchAnalyzer",
        &["IST0151", "IST0152", "IST0153", "IST0154", "IST0155"],
        envoy_filters::patches,
    ),
    analyzer("externalcontrolplane.ExternalControlPlaneAnalyzer", &["IST0163", "IST0164"], webhooks::control_plane),
    analyzer("gateway.CertificateAnalyzer", &["IST0138"], gateway_certificates::duplicates),
    analyzer("gateway.ConflictingGatewayAnalyzer", &["IST0145"], gateways::conflicts),
    analyzer("gateway.IngressGatewayPortAnalyzer", &["IST0101", "IST0162"], gateways::ports),
    analyzer("gateway.SecretAnalyzer", &["IST0101", "IST0161", "KSB0112"], gateway_certificates::secrets),
    analyzer("injection.Analyzer", &["IST0102", "IST0103", "IST0123", "IST0148"], injection::namespaces),
    analyzer("injection.ImageAnalyzer", &["IST0158"], injection::images),
    analyzer("injection.ImageAutoAnalyzer", &["IST0146", "IST0147"], injection::automatic),
    analyzer("k8sgateway.CRDVersionAnalyzer", &["IST0176"], gateway_api::versions),
    analyzer("k8sgateway.SelectorAnalyzer", &["IST0166"], selectors::of_gateways),
    analyzer("multicluster.MeshNetworksAnalyzer", &["IST0126"], mesh_networks::registries),
    analyzer("service.PortNameAnalyzer", &["IST0118", "IST0150"], services::port_names),
    analyzer("serviceentry.ConflictingServiceEntryProtocolAnalyzer", &["IST0177"], service_entries::protocols),
    analyzer("serviceentry.ProtocolAddressesAnalyzer", &["IST0134"], service_entries::addresses),
    analyzer("sidecar.SelectorAnalyzer", &["IST0101", "IST0110", "IST0111", "IST0167"], selectors::sidecars),
    analyzer("telemetry.DefaultSelectorAnalyzer", &["IST0160"], selectors::default_telemetries),
    analyzer("telemetry.LightstepAnalyzer", &["IST0002"], telemetry::lightstep),
    analyzer("telemetry.ProviderAnalyzer", &["IST0157"], telemetry::providers),
    analyzer("telemetry.SelectorAnalyzer", &["IST0101", "IST0159"], selectors::telemetries),
    analyzer("virtualservice.ConflictingMeshGatewayHostsAnalyzer", &["IST0109"], virtual_services::conflicts),
    analyzer(
        "virtualservice.DestinationHostAnalyzer",
        &["IST0101", "IST0112", "IST0140"],
        virtual_services::destinations,
    ),
    analyzer("virtualservice.DestinationRuleAnalyzer", &["IST0101"], virtual_services::subsets),
    analyzer("virtualservice.GatewayAnalyzer", &["IST0101", "IST0132", "IST0165"], virtual_services::gateways),
    analyzer("virtualservice.JWTClaimRouteAnalyzer", &["IST0149"], virtual_services::claims),
    analyzer("webhook.Analyzer", &["IST0139"], webhooks::injectors),
    analyzer("kasbah.MutualTlsAnalyzer", &["IST0127", "KSB0101", "KSB0102", "KSB0103"], mutual_tls::modes),
    analyzer("kasbah.PrincipalAnalyzer", &["KSB0104", "KSB0105", "KSB0106", "KSB0107"], identities::principals),
    analyzer("kasbah.TokenAnalyzer", &["IST0127", "KSB0108", "KSB0109", "KSB0110", "KSB0111"], tokens::demands),
    analyzer(
        "kasbah.ProtectionAnalyzer",
        &["IST0101", "KSB0113", "KSB0114", "KSB0115", "KSB0116", "KSB0117", "KSB0118", "KSB0119"],
        protection::gaps,
    ),
];

#[cfg(test)]
pub(crate) mod tests;
