//! Configuration and secrets as streams: ADS towards discovery, SDS towards the agent.

pub(crate) mod ads;
pub(crate) mod backoff;
pub(crate) mod sds;
pub(crate) mod store;
pub(crate) mod subscription;
