//! Towards the endpoints: dialing, pools, sending.

pub(crate) mod cluster;
pub(crate) mod dial;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod live;
pub(crate) mod pool;
pub(crate) mod send;
