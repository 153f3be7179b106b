//! Shared support of the integration tests: the stored checkpoints, the reference interpreter they are held against, and a
//! GPU that is none.

pub mod checkpoint;
pub mod directory;
pub mod emulation;
pub mod noise;
pub mod tokenizers;
pub mod variants;

pub use lapidary_reference as oracle;
