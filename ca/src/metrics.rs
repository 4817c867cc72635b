//! The authority's numbers: our own families, and those of Istio's CA under their old names.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use runtime::metrics::Metrics;

/// What was issued or refused. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    issuance: Family<IssuanceLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    address_limited: Family<LimitLabels, Counter>,
    /// SVIDs on record, of all times.
    recorded: Arc<AtomicU64>,
    csr: Arc<CsrCounts>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IssuanceLabels {
    kind: &'static str,
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    rpc: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

/// Istio's families; dashboards ask for exactly these names.
#[derive(Debug, Default)]
pub(crate) struct CsrCounts {
    pub(crate) requests: AtomicU64,
    pub(crate) authentication_failures: AtomicU64,
    pub(crate) parsing_errors: AtomicU64,
    pub(crate) id_extraction_errors: AtomicU64,
    pub(crate) signing_errors: AtomicU64,
    pub(crate) successes: AtomicU64,
}

/// What is read when the numbers are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauges {
    /// End of the root, Unix seconds.
    pub(crate) root_expires_at: i64,
    /// End of the shortest-lived certificate of the signing chain.
    pub(crate) chain_expires_at: i64,
    /// End of the server's own SVID.
    pub(crate) server_svid_expires_at: i64,
    pub(crate) entries: usize,
    pub(crate) agents: usize,
    pub(crate) bundle_sequence: u64,
    /// Whether the database takes writes.
    pub(crate) store_up: bool,
    /// Writes that wait.
    pub(crate) store_waiting: usize,
    /// Whether this replica does what only one should do.
    pub(crate) leads: bool,
    /// Whether the clock is believed.
    pub(crate) clock_sound: bool,
    /// Whether an operator should renew the intermediate, because its root is not here: 0, 1 (due) or 2 (overdue).
    pub(crate) renewal_due: u8,
    /// Whether every keeper of keys elsewhere is there.
    pub(crate) keys_up: bool,
    /// End of the certificate of the bundle endpoint of the web; 0 without one.
    pub(crate) web_certificate_expires_at: i64,
    /// Attempts in a row that brought no new one.
    pub(crate) acme_failures: u32,
    /// How often it jumped.
    pub(crate) clock_jumps: u64,
    pub(crate) now: i64,
}

impl Counts {
    /// Registers everything; `gauges` is asked at each reading.
    pub(crate) fn register(&self, metrics: &Metrics, gauges: impl Fn() -> Gauges + Send + Sync + 'static) {
        metrics.register(|registry| {
            registry.register("issuance", "SVIDs issued or refused", self.issuance.clone());
            registry.register("ca_requests", "Requests answered, by rpc and reason", self.requests.clone());
            let help = "Requests of callers without a certificate refused because of their address, by limit";
            registry.register("ca_address_limited", help, self.address_limited.clone());
        });
        let csr = self.csr.clone();
        metrics.add_source(Arc::new(move |out| {
            csr.write(out);
            gauges().write(out);
        }));
    }

    pub(crate) fn issued(&self, kind: &'static str, count: u64) {
        let labels = IssuanceLabels { kind, result: "ok", reason: "" };
        self.issuance.get_or_create(&labels).inc_by(count);
        self.recorded.fetch_add(count, Ordering::Relaxed);
    }

    /// How many SVIDs were on record when the process began.
    pub(crate) fn start_at(&self, recorded: u64) {
        self.recorded.store(recorded, Ordering::Relaxed);
    }

    /// How many SVIDs were ever recorded (those still on record at the start, and since).
    pub(crate) fn recorded(&self) -> u64 {
        self.recorded.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self, kind: &'static str, reason: &'static str) {
        self.issuance.get_or_create(&IssuanceLabels { kind, result: "refused", reason }).inc();
    }

    /// `reason` is empty for a request that was answered.
    pub(crate) fn request(&self, rpc: &'static str, reason: &'static str) {
        self.requests.get_or_create(&RequestLabels { rpc, reason }).inc();
    }

    /// An address had used up this limit.
    pub(crate) fn address_limited(&self, limit: &'static str) {
        self.address_limited.get_or_create(&LimitLabels { limit }).inc();
    }

    pub(crate) fn csr(&self) -> &CsrCounts {
        &self.csr
    }
}

impl CsrCounts {
    pub(crate) fn count(number: &AtomicU64) {
        number.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String) {
        let families = [
            ("citadel_server_csr_count", &self.requests),
            ("citadel_server_authentication_failure_count", &self.authentication_failures),
            ("citadel_server_csr_parsing_err_count", &self.parsing_errors),
            ("citadel_server_id_extraction_err_count", &self.id_extraction_errors),
            ("citadel_server_csr_sign_err_count", &self.signing_errors),
            ("citadel_server_success_cert_issuance_count", &self.successes),
        ];
        for (name, number) in families {
            // OpenMetrics wants counters to end in _total; these names are older.
            let _ = writeln!(out, "# TYPE {name} unknown\n{name} {}", number.load(Ordering::Relaxed));
        }
    }
}

impl Gauges {
    fn write(&self, out: &mut String) {
        let families: [(&str, i64); 17] = [
            ("citadel_server_root_cert_expiry_timestamp", self.root_expires_at),
            ("citadel_server_root_cert_expiry_seconds", self.root_expires_at - self.now),
            ("citadel_server_cert_chain_expiry_timestamp", self.chain_expires_at),
            ("citadel_server_cert_chain_expiry_seconds", self.chain_expires_at - self.now),
            ("ca_server_svid_expiry_timestamp", self.server_svid_expires_at),
            ("ca_entries", i64::try_from(self.entries).unwrap_or(i64::MAX)),
            ("ca_agents", i64::try_from(self.agents).unwrap_or(i64::MAX)),
            ("ca_bundle_sequence", i64::try_from(self.bundle_sequence).unwrap_or(i64::MAX)),
            ("ca_store_up", i64::from(self.store_up)),
            ("ca_store_waiting", i64::try_from(self.store_waiting).unwrap_or(i64::MAX)),
            ("ca_leads", i64::from(self.leads)),
            ("ca_clock_sound", i64::from(self.clock_sound)),
            ("ca_keys_up", i64::from(self.keys_up)),
            ("ca_intermediate_renewal_due", i64::from(self.renewal_due)),
            ("ca_web_certificate_expiry_timestamp", self.web_certificate_expires_at),
            ("ca_acme_failures", i64::from(self.acme_failures)),
            ("ca_clock_jumps", i64::try_from(self.clock_jumps).unwrap_or(i64::MAX)),
        ];
        for (name, value) in families {
            let _ = writeln!(out, "# TYPE {name} gauge\n{name} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_there_under_its_name() {
        let (counts, metrics) = (Counts::default(), Metrics::new());
        counts.register(&metrics, || Gauges { root_expires_at: 100, now: 40, ..Gauges::default() });
        counts.issued("x509", 2);
        counts.refused("csr", "CSR_BAD_SIGNATURE");
        CsrCounts::count(&counts.csr().successes);
        let text = metrics.encode();
        for line in [
            "issuance_total{kind=\"x509\",result=\"ok\",reason=\"\"} 2",
            "issuance_total{kind=\"csr\",result=\"refused\",reason=\"CSR_BAD_SIGNATURE\"} 1",
            "citadel_server_success_cert_issuance_count 1",
            "citadel_server_root_cert_expiry_seconds 60",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
