//! The node agent: joins the mesh once, attests the workloads of its machine, and hands each its SPIFFE identity over the
//! Workload API and Envoy's SDS, always fresh.
//!
//! | module | holds |
//! |---|---|
//! | `node` | the agent's own identity: join, keep, renew |
//! | `ca` | what it asks of the CA (SPIRE's server API) |
//! | `sync` | entries, bundles and revocations, as the CA has them |
//! | `rotation` | the workloads' SVIDs, renewed at half-life |
//! | `enforced` | which bundle the node enforces, for the CA |
//! | `state` | what is known, as immutable snapshots |
//! | `attest` | from a socket's peer to proven facts |
//! | `launch` | processes that `kasbah run` started, and their names |
//! | `workload_api`, `sds` | handing out |
//! | [`client`] | the other side of the sockets, for the command line |

mod admin;
mod attest;
mod ca;
mod caller;
pub mod client;
mod dice;
mod enforced;
mod entry;
mod evidence;
#[cfg(test)]
mod fake;
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
mod workload_api;

pub use attest::{AttestError, LaunchError};
pub use ca::CaError;
pub use node::JoinError;
pub use reasons::REASONS;
pub use server::{Agent, BuildError, RunError, run};
pub use settings::{Settings, SettingsProblem};
