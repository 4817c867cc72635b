//! End-to-end tests; see `mesh/`.
