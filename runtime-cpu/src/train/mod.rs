//! Training on the host: programs of a whole step, forward and backward, and their execution.
//!
//! ```text
//! TrainProgram -- check --> Checked<TrainProgram> -- Trainer::load(weights) --> Trainer -- accumulate(batch) --> loss, gradients
//!                                                                                 -- update(AdamW) --> norm
//! ```
//! Weights, gradients and moments are f32 in canonical layout. Products go through the panel kernels of inference, row
//! functions and their derivatives through the same compiler. The same program, batch and weights give the same bits,
//! whatever the number of threads: every sum has one order.
//!
//! The program of one rank of a spread model runs among [`crate::Peers`]: `accumulate_among` takes the micro-batches of a
//! step in the order of the program's schedule, `update_among` sums gradients over the ranks and changes what the rank has
//! of the weights.

mod adamw;
mod among;
mod attention;
mod keys;
mod meet;
mod memory;
mod pass;
mod product;
mod trainer;

pub use among::{GradientPart, Micro};
pub use trainer::{TrainError, Trainer};
