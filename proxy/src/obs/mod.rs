//! What the proxy tells about its work: Istio's metrics, refusal counters, access log lines.

pub(crate) mod cells;
pub(crate) mod counters;
pub(crate) mod labels;
pub(crate) mod log;
pub(crate) mod shard;
