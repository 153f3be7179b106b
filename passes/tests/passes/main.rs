//! Everything of this crate that needs MLIR, in one binary: linking is what takes time.

mod golden;
mod gpu;
mod interpreter;
mod models;
mod numbers;
mod stages;
