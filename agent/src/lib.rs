//! The node agent: joins the mesh once, attests the workloads of its machine, and hands each its SPIFFE identity over the
//! Workload API and Envoy's SDS, always fresh.
//!
//! | module | holds |
//! |---|---|
//! | `node` | the agent's own identity: join, keep, renew |
//! | `trust` | whom it takes for the CA, from the first contact on |
//! | `ca` | what it asks of the CA (SPIRE's server API) |
//! | `sync` | entries, bundles and revocations, as the CA has them |
//! | `rotation` | the workloads' SVIDs, renewed at half-life |
//! | `enforced` | which bundle the node enforces, for the CA |
//! | `state` | what is known, as immutable snapshots |
//! | `cache` | the same, sealed on disk, for a start while the CA is away |
//! | `attest` | from a socket's peer to proven facts |
//! | `launch` | processes that `kasbah run` started, and their names |
//! | `workload_api`, `sds` | handing out |
//! | `broker` | handing out to those who act for others |
//! | [`files`] | handing out as files |
//! | [`client`] | the other side of the sockets, for the command line |

mod admin;
mod attest;
mod broker;
mod ca;
mod cache;
mod caller;
pub mod client;
mod dice;
mod enforced;
mod entry;
mod evidence;
#[cfg(test)]
mod fake;
pub mod files;
mod launch;
mod metrics;
mod node;
mod reasons;
mod revocations;
mod rotation;
mod sds;
mod server;
mod settings;
mod state;
mod store;
mod sync;
mod tally;
mod trust;
mod workload_api;

pub use attest::{AttestError, KubeletSettings, LaunchError};
pub use broker::{Broker, BrokerSettings, ReferenceKind};
pub use ca::CaError;
pub use cache::{CacheError, CacheSettings};
pub use node::JoinError;
pub use reasons::REASONS;
pub use server::{Agent, BuildError, Joined, RunError, join, run};
pub use settings::{Settings, SettingsProblem};
pub use trust::{RootPins, TrustError};
