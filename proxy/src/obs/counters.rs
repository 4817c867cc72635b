//! Counters of the whole process that are touched seldom enough for one atomic each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::labels::write_escaped;
use crate::tls::rests::Rests;

/// The `kasbah_*` numbers of a proxy.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    xds: Mutex<BTreeMap<(&'static str, bool), u64>>,
    pub(crate) connections_accepted: AtomicU64,
    pub(crate) connections_active: AtomicI64,
    pub(crate) handshakes: AtomicU64,
    pub(crate) handshakes_failed: AtomicU64,
    pub(crate) upstream_connects: AtomicU64,
    pub(crate) upstream_connects_failed: AtomicU64,
    pub(crate) upstream_retired: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) drained: AtomicU64,
    pub(crate) log_lines_dropped: AtomicU64,
    pub(crate) config_generation: AtomicU64,
    pub(crate) identity_generation: AtomicU64,
    pub(crate) svid_not_after: AtomicI64,
    pub(crate) discovery_connected: AtomicI64,
    /// By kind of resource, discovery's version of what is in force.
    pub(crate) configured: watch::Sender<BTreeMap<&'static str, String>>,
    /// What the open mesh connections rest on.
    pub(crate) rests: Arc<Rests>,
}

impl Counters {
    /// Counts a refusal.
    pub(crate) fn refused(&self, reason: &'static str) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// Counts an answer of ours to a discovery response.
    pub(crate) fn xds_answered(&self, kind: &'static str, accepted: bool) {
        *self.xds.lock().unwrap_or_else(PoisonError::into_inner).entry((kind, accepted)).or_default() += 1;
    }

    /// An answer of discovery is in force.
    pub(crate) fn configured(&self, kind: &'static str, version: &str) {
        self.configured
            .send_if_modified(|versions| versions.insert(kind, version.to_owned()).as_deref() != Some(version));
    }

    /// Writes the families as OpenMetrics text.
    pub(crate) fn render(&self, out: &mut String) {
        let _ = writeln!(out, "# TYPE kasbah_refusals counter");
        for (reason, count) in self.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            out.push_str("kasbah_refusals_total{reason=\"");
            write_escaped(out, reason);
            let _ = writeln!(out, "\"}} {count}");
        }
        let _ = writeln!(out, "# TYPE kasbah_xds_answers counter");
        for ((kind, accepted), count) in self.xds.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let answer = if *accepted { "ack" } else { "nack" };
            let _ = writeln!(out, "kasbah_xds_answers_total{{type=\"{kind}\",answer=\"{answer}\"}} {count}");
        }
        for (name, value) in [
            ("kasbah_connections_accepted", &self.connections_accepted),
            ("kasbah_tls_handshakes", &self.handshakes),
            ("kasbah_tls_handshakes_failed", &self.handshakes_failed),
            ("kasbah_upstream_connects", &self.upstream_connects),
            ("kasbah_upstream_connects_failed", &self.upstream_connects_failed),
            ("kasbah_upstream_connections_retired", &self.upstream_retired),
            ("kasbah_upstream_retries", &self.retries),
            ("kasbah_connections_drained", &self.drained),
            ("kasbah_access_log_lines_dropped", &self.log_lines_dropped),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter\n{name}_total {}", value.load(Ordering::Relaxed));
        }
        for (name, value) in [
            ("kasbah_config_generation", self.config_generation.load(Ordering::Relaxed) as i64),
            ("kasbah_identity_generation", self.identity_generation.load(Ordering::Relaxed) as i64),
            ("kasbah_connections_active", self.connections_active.load(Ordering::Relaxed)),
            ("kasbah_svid_not_after_seconds", self.svid_not_after.load(Ordering::Relaxed)),
            ("kasbah_discovery_connected", self.discovery_connected.load(Ordering::Relaxed)),
        ] {
            let _ = writeln!(out, "# TYPE {name} gauge\n{name} {value}");
        }
        self.rests.render(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason() {
        let counters = Counters::default();
        counters.refused("RBAC_DENIED");
        counters.refused("RBAC_DENIED");
        counters.xds_answered("listener", false);
        let mut out = String::new();
        counters.render(&mut out);
        assert!(out.contains("kasbah_refusals_total{reason=\"RBAC_DENIED\"} 2\n"), "{out}");
        assert!(out.contains("kasbah_xds_answers_total{type=\"listener\",answer=\"nack\"} 1\n"), "{out}");
    }
}
