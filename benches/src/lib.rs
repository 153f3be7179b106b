//! Shared support of the criterion benches.
