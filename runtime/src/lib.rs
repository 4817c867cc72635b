//! What every process of Kasbah stands on: settings, logs, metrics, readiness, the admin address, listeners, shutdown,
//! and mTLS with an identity that rotates. No product logic.

pub mod admin;
pub mod ask;
pub mod clock;
pub mod fetch;
pub mod http2;
pub mod listen;
pub mod logs;
pub mod metrics;
pub mod mtls;
pub mod node_metadata;
pub mod process;
pub mod readiness;
mod reasons;
pub mod refusal;
pub mod serve;
pub mod settings;
pub mod shutdown;
pub mod tasks;
pub mod workload_api;

pub use reasons::REASONS;
