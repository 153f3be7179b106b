//! Shared support of the integration tests: the stored checkpoints, and the reference interpreter they are held against.

pub mod checkpoint;
pub mod directory;
pub mod noise;
pub mod tokenizers;
pub mod variants;

pub use lapidary_reference as oracle;
