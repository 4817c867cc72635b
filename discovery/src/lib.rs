//! Discovery: operators' documents in, xDS out.
//!
//! [`documents`] (Galley) reads and validates what operators write; `compile` and `ads` (Pilot) turn it into xDS resources
//! for each node and serve them. A document that does not hold is refused with file, line and column, and what was accepted
//! before keeps serving. [`analysis`] says what is wrong with a whole set of documents.

mod ads;
pub mod analysis;
mod compile;
pub mod documents;
mod folder;
mod node;
mod reasons;
mod resources;
mod service;
mod settings;
#[cfg(test)]
mod testing;

pub use compile::{
    CLAIMS_KEY, Compiled, Explainer, Idle, Issuer, Jwks, Known, MutualTls, Origin, PolicyText, Port, Proxy,
    authorization_filters,
};
pub use documents::{Finding, Severity, validate};
pub use reasons::REASONS;
pub use service::{RunError, run};
pub use settings::Settings;
