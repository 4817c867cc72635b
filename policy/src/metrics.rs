//! The policy service's numbers.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// All metrics of the service. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PolicyMetrics {
    /// Answers of the authorization service.
    pub checks: Family<CheckLabels, Counter>,
    /// Answers of the rate limit service.
    pub rate_limits: Family<RateLimitLabels, Counter>,
    /// Buckets in memory.
    pub buckets: Gauge,
    /// Buckets forgotten before they were full again.
    pub bucket_evictions: Counter,
    /// Access log lines written.
    pub log_lines: Counter,
    /// Access log lines lost.
    pub log_drops: Family<DropLabels, Counter>,
    /// Calls refused because of who called.
    pub refused_calls: Counter,
    /// Generation of the rules in force.
    pub rules_generation: Gauge,
    /// Versions of the rules file that were refused.
    pub rules_refused: Counter,
    /// 1 while the file says something that is not in force.
    pub rules_stale: Gauge,
}

/// Labels of `policy_checks`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CheckLabels {
    /// What was answered.
    pub decision: DecisionLabel,
}

/// What the authorization service answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label values")]
pub enum DecisionLabel {
    /// Let pass.
    allow,
    /// Refused.
    deny,
    /// The question could not be understood.
    invalid,
}

/// Labels of `policy_rate_limits`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RateLimitLabels {
    /// What was answered.
    pub code: CodeLabel,
}

/// What the rate limit service answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label values")]
pub enum CodeLabel {
    /// Within all limits.
    ok,
    /// Over one of them.
    over_limit,
    /// The question could not be understood.
    invalid,
}

/// Labels of `policy_access_log_drops`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabels {
    /// Why.
    pub cause: DropCause,
}

/// Why an access log line was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label values")]
pub enum DropCause {
    /// The queue was full.
    queue_full,
    /// The file could not be written.
    write_failed,
}

impl PolicyMetrics {
    /// Counts an answer of the authorization service.
    pub fn checked(&self, decision: DecisionLabel) {
        self.checks.get_or_create(&CheckLabels { decision }).inc();
    }

    /// Counts an answer of the rate limit service.
    pub fn limited(&self, code: CodeLabel) {
        self.rate_limits.get_or_create(&RateLimitLabels { code }).inc();
    }

    /// Counts lost access log lines.
    pub fn dropped(&self, cause: DropCause, lines: u64) {
        self.log_drops.get_or_create(&DropLabels { cause }).inc_by(lines);
    }

    /// All lost access log lines.
    pub fn drops(&self) -> u64 {
        [DropCause::queue_full, DropCause::write_failed]
            .map(|cause| self.log_drops.get_or_create(&DropLabels { cause }).get())
            .iter()
            .sum()
    }

    /// Shows them at `metrics`.
    pub fn register(&self, metrics: &runtime::metrics::Metrics) {
        metrics.register(|registry| {
            registry.register("policy_checks", "Answers of the authorization service", self.checks.clone());
            registry.register("policy_rate_limits", "Answers of the rate limit service", self.rate_limits.clone());
            registry.register("policy_quota_buckets", "Quota buckets in memory", self.buckets.clone());
            let help = "Quota buckets forgotten before they were full again";
            registry.register("policy_quota_bucket_evictions", help, self.bucket_evictions.clone());
            registry.register("policy_access_log_lines", "Access log lines written", self.log_lines.clone());
            registry.register("policy_access_log_drops", "Access log lines lost", self.log_drops.clone());
            registry.register(
                "policy_refused_calls",
                "Calls refused because of who called",
                self.refused_calls.clone(),
            );
            registry.register(
                "policy_rules_generation",
                "Generation of the rules in force",
                self.rules_generation.clone(),
            );
            registry.register(
                "policy_rules_refused",
                "Versions of the rules file that were refused",
                self.rules_refused.clone(),
            );
            registry.register("policy_rules_stale", "1 while the rules file is not in force", self.rules_stale.clone());
        });
    }
}
