//! Training on the host: programs of a whole step, forward and backward, and their execution.
//!
//! ```text
//! TrainProgram -- check --> Checked<TrainProgram> -- Trainer::load(weights) --> Trainer -- accumulate(batch) --> loss, gradients
//!                                                                                 -- update(AdamW) --> norm
//! ```
//! Weights, gradients and moments are f32 in canonical layout. Products go through the panel kernels of inference, row
//! functions and their derivatives through the same compiler. The same program, batch and weights give the same bits,
//! whatever the number of threads: every sum has one order.

mod adamw;
mod attention;
mod keys;
mod memory;
mod pass;
mod product;
mod trainer;

pub use trainer::{TrainError, Trainer};
