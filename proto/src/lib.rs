//! The wire, nothing else.
