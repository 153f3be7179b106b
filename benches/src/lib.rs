//! Shared support of the benches.

pub mod measure;
