//! The proxy: sidecar, ingress gateway and egress gateway, configured by xDS, with secrets from SDS.
//!
//! Control threads (the caller's runtime) follow discovery and the agent, accept sockets and serve the admin address;
//! worker threads serve traffic, each with everything it needs of its own. See [`run`].

mod admin;
mod config;
mod conn;
mod control;
mod dns;
mod http;
mod io;
mod jwks;
mod listen;
mod obs;
mod process;
mod proxy_protocol;
mod quotas;
mod refusal;
mod relay;
mod rpc;
mod run;
mod serve;
pub mod settings;
mod sniff;
mod tcp;
mod tls;
mod upstream;
mod worker;
mod xds;

pub use refusal::REASONS;
pub use run::{Proxy, RunError, run};
pub use settings::Settings;

#[cfg(test)]
mod tests;
