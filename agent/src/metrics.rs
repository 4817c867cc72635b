//! What the agent counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use runtime::metrics::Metrics;

/// The agent's numbers. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    /// SVIDs obtained, of workloads and of the agent itself, by outcome.
    pub(crate) renewals: Family<RenewalLabels, Counter>,
    /// Seconds until the first of the held workload SVIDs expires.
    pub(crate) svid_expiry: Gauge<f64, AtomicU64>,
    /// Seconds until the agent's own SVID expires.
    pub(crate) agent_svid_expiry: Gauge<f64, AtomicU64>,
    /// Workload SVIDs held.
    pub(crate) svids: Gauge,
    /// Entries authorized for this node.
    pub(crate) entries: Gauge,
    /// Syncs with the CA, by outcome.
    pub(crate) syncs: Family<OutcomeLabels, Counter>,
    /// Open streams of workloads.
    pub(crate) streams: Family<ApiLabels, Gauge>,
    /// Processes that could not be attested, by reason.
    pub(crate) attestation_failures: Family<ReasonLabels, Counter>,
    /// Calls refused, by reason.
    pub(crate) refusals: Family<ReasonLabels, Counter>,
    /// Secret updates that an Envoy rejected.
    pub(crate) sds_rejects: Counter,
    /// Files that could not be written, by reason.
    pub(crate) write_failures: Family<ReasonLabels, Counter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RenewalLabels {
    pub(crate) of: Holder,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabels {
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ApiLabels {
    pub(crate) api: Api,
}

/// Reasons are the constants of this crate, so the set is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabels {
    pub(crate) reason: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Holder {
    #[expect(non_camel_case_types, reason = "the label's value")]
    agent,
    #[expect(non_camel_case_types, reason = "the label's value")]
    workload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Outcome {
    #[expect(non_camel_case_types, reason = "the label's value")]
    ok,
    #[expect(non_camel_case_types, reason = "the label's value")]
    failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Api {
    #[expect(non_camel_case_types, reason = "the label's value")]
    workload_api,
    #[expect(non_camel_case_types, reason = "the label's value")]
    sds,
    #[expect(non_camel_case_types, reason = "the label's value")]
    broker,
}

impl Numbers {
    /// Numbers that `metrics` shows.
    pub(crate) fn registered(metrics: &Metrics) -> Self {
        let new = Self::default();
        metrics.register(|registry| {
            registry.register("svid_renewals", "SVIDs obtained or not, by holder", new.renewals.clone());
            registry.register("svid_expiry_seconds", "Until the first workload SVID expires", new.svid_expiry.clone());
            registry.register(
                "agent_svid_expiry_seconds",
                "Until the agent's own SVID expires",
                new.agent_svid_expiry.clone(),
            );
            registry.register("svids_held", "Workload SVIDs held", new.svids.clone());
            registry.register("entries_authorized", "Entries the CA authorized for this node", new.entries.clone());
            registry.register("syncs", "Syncs with the CA", new.syncs.clone());
            registry.register("streams_open", "Open streams of workloads", new.streams.clone());
            registry.register(
                "attestation_failures",
                "Processes that could not be attested",
                new.attestation_failures.clone(),
            );
            registry.register("refusals", "Calls of workloads refused", new.refusals.clone());
            registry.register("sds_rejects", "Secret updates rejected by a proxy", new.sds_rejects.clone());
            registry.register("write_failures", "Files that could not be written", new.write_failures.clone());
        });
        new
    }

    pub(crate) fn renewed(&self, of: Holder, outcome: Outcome) {
        self.renewals.get_or_create(&RenewalLabels { of, outcome }).inc();
    }

    pub(crate) fn synced(&self, outcome: Outcome) {
        self.syncs.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn not_written(&self, reason: &'static str) {
        self.write_failures.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn not_attested(&self, reason: &'static str) {
        self.attestation_failures.get_or_create(&ReasonLabels { reason }).inc();
    }
}
