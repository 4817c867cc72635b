//! Placeholder until the goldens below are written.
