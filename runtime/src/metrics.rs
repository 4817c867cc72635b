//! The numbers of one process, in OpenMetrics text.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// Writes metric families as OpenMetrics text, without `# EOF`.
pub type Source = Arc<dyn Fn(&mut String) + Send + Sync>;

/// The registry of a process. Clones share it.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Shared>>);

struct Shared {
    registry: Registry,
    sources: Vec<Source>,
}

impl Metrics {
    /// A registry with the process's own numbers (memory, CPU time, open files, start).
    pub fn new() -> Self {
        let sources: Vec<Source> = vec![Arc::new(crate::process::write_metrics)];
        Self(Arc::new(Mutex::new(Shared { registry: Registry::default(), sources })))
    }

    /// Registers metrics.
    pub fn register<T>(&self, with: impl FnOnce(&mut Registry) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).registry)
    }

    /// Adds families that their owner renders itself, for counters kept outside the registry.
    pub fn add_source(&self, source: Source) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).sources.push(source);
    }

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(4096);
        let shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String cannot fail.
        let _ = text::encode_registry(&mut out, &shared.registry);
        let sources = shared.sources.clone();
        drop(shared);
        for source in sources {
            source(&mut out);
        }
        let _ = out.write_str("# EOF\n");
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// What `/metrics` says its body is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn registered_and_rendered_families_come_before_one_eof() {
        let metrics = Metrics::new();
        let renewals = Counter::<u64>::default();
        metrics.register(|registry| registry.register("svid_renewals", "Renewals", renewals.clone()));
        metrics.add_source(Arc::new(|out| out.push_str("# TYPE own gauge\nown 1\n")));
        renewals.inc();
        let text = metrics.encode();
        assert!(text.contains("svid_renewals_total 1\n"), "{text}");
        assert!(text.contains("\nown 1\n"), "{text}");
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    }
}
