//! The `kasbah` binary.
fn main() {}
