//! The proxy in one process: configuration from protos, real sockets, identities from an authority made for the test.

mod adversary;
mod discovery;
mod drain;
pub(crate) mod harness;
mod http;
mod mesh;
mod pair;
mod policy;
mod protos;
mod revocation;
mod roots;
mod tcp;
