//! Rewrites of the IR and the emission of programs: a pass is a file.

pub mod cuda;
pub mod wafer;
