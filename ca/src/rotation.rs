//! Replacing an authority without anybody noticing: prepare, let every node acknowledge, activate, taint, revoke.
//!
//! [`machine`] decides and has neither clock nor database; `authorities/steps.rs` reads the state, asks the machine and
//! writes its answer in one transaction, so that a server that dies between two steps goes on where it was. [`schedule`]
//! says what is due by itself. [`contacts`] knows what nodes said lately, and with it [`report`] names who holds a
//! rotation up, and why.

pub(crate) mod contacts;
pub(crate) mod machine;
pub(crate) mod receipt;
pub(crate) mod report;
pub(crate) mod schedule;
#[cfg(test)]
mod simulation;
