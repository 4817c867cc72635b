//! Where a request goes and whether it may: the decision engine that is built from xDS resources.
//!
//! Everything here is pure. There is no socket, no clock and no randomness: times and dice are arguments, so that the
//! same engine runs in the proxy, in `kasbah explain` and in fuzzers, and always answers alike.
//!
//! ```text
//!  xDS Listener ──► listener::Listener ──pick──► FilterChain ─┬─► tls::DownstreamTls
//!                                                             ├─► rbac (connection)
//!                                                             └─► hcm::HttpConnectionManager
//!  bytes ─► request::{Host, CanonicalPath} ─► jwt ─► rbac ─► filters ─► route::RouteTable ─pick─► Selection
//!  xDS Cluster, ClusterLoadAssignment ─► cluster, endpoint ─► balance ─► retry, outlier
//! ```
//!
//! What always holds: policy and routes see only canonical hosts and paths, and exactly those are forwarded; a resource
//! compiles whole or is refused with the field that is wrong; matching works in time linear in its input.

#![allow(deprecated, reason = "older control planes still fill fields that Envoy has deprecated")]

pub mod access_log;
pub mod balance;
pub mod cluster;
pub mod config;
pub mod endpoint;
pub mod explain;
pub mod filters;
pub mod format;
pub mod hcm;
pub mod jwt;
pub mod listener;
pub mod matcher;
pub mod outlier;
pub mod rbac;
mod reason;
pub mod request;
pub mod retry;
pub mod route;
pub mod tcp;
pub mod tls;

pub use config::ConfigError;
pub use reason::REASONS;
