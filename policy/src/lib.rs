//! The policy service: what a proxy asks while it decides about a request, and where its access log goes.
//!
//! Three standard services on one mTLS address, so that stock Envoy can ask as well as our proxy: external authorization
//! ([`rules`], the first match decides), rate limits ([`buckets`], in memory) and access logs ([`sink`]). It is on the
//! path of a request only where a policy asks for it, and a bad rules file never takes a good one out of force.

mod access_log;
mod authorize;
pub mod buckets;
mod caller;
pub mod facts;
pub mod metrics;
mod rate_limit;
mod reasons;
pub mod record;
pub mod rules;
pub mod rules_file;
mod service;
mod settings;
pub mod sink;

pub use reasons::REASONS;
pub use service::{Policy, RunError, run};
pub use settings::Settings;

#[cfg(test)]
mod tests;
