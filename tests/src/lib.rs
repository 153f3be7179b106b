//! Shared support of the integration tests: the reference interpreter and the stored checkpoints.

pub mod checkpoint;
pub mod oracle;
