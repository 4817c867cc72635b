//! Federation: where the bundles of other trust domains come from, and how they are kept up to date.
//!
//! Every relationship is explicit: trust domain, URL and profile are each named by an administrator and none is inferred
//! from another (SPIFFE Federation, section 5). One replica fetches, all learn. A bundle that cannot be fetched, is older
//! than the known one, or is not that of the trust domain changes nothing: the last good one stays.

pub(crate) mod acme;
mod aliases;
mod dial;
pub(crate) mod endpoint;
mod error;
mod fetch;
mod poll;
mod relationship;
mod schedule;
mod settings;
pub(crate) mod view;

pub use acme::AcmeSettings;
pub(crate) use aliases::with_aliases;
pub use error::FetchError;
pub(crate) use fetch::Client;
pub(crate) use poll::{keep_polled, refresh};
pub(crate) use relationship::{EndpointUrl, PollState, Profile, Relationship};
pub(crate) use schedule::Schedule;
pub use settings::{FederationSettings, WebEndpoint};

/// The most relationships of one authority.
pub(crate) const RELATIONSHIPS_MAX: usize = 256;

#[cfg(test)]
mod tests;
