//! TLS on both sides, from the proxy's own identity or from files.

pub(crate) mod own;
