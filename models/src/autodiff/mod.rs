//! Reverse-mode differentiation of a graph: from a forward pass to a training graph.
//!
//! ```text
//! forward                          training
//!   layer(x) -> y                    layer(x) -> y            keeps what its backward function reads (`save`)
//!   main(ids) -> logits              layer_backward(dy) -> dx reads it (`saved`), adds to gradients (`gradient`)
//!                                    main(ids, labels) -> loss
//!                                      embed .. repeat layer .. head, loss; loss.dx, head.dx .. repeat layer_backward
//! ```
//!
//! [`differentiate`] keeps every value that a backward op reads: the policy without recomputation. [`recompute`] is a
//! pass over the training graph that keeps less and computes the rest again, [`fitting`] chooses where; [`training`] does both for a
//! specification, and [`work`] lists what every op of the result costs. Each rule stands in `rules.rs`; a repeat becomes
//! a repeat of its body's backward function, last layer first, with one slot a layer for each kept value.
//!
//! Gradients add up in f32 buffers that start at zero: a tied table gets the sum of both uses, micro-batches the sum of
//! theirs. The graph ends there; what an optimizer does with them is said in [`crate::optimizer`].

mod differentiate;
mod draft;
mod fit;
pub mod labels;
mod recompute;
mod rules;
mod tape;
pub mod work;

pub use differentiate::differentiate;
pub use fit::fitting;
pub use recompute::{Policy, Recompute, RecomputeReport, SegmentReport, recompute};

use crate::graph::{Dims, Graph, GraphError, Mode};
use crate::spec::ModelSpec;

/// A training graph and what its recomputation saves and costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Functions of the layers, each with its backward function, then `main(ids, labels) -> loss`.
    pub graph: Graph,
    /// What is kept, what is computed again, and why.
    pub recompute: RecomputeReport,
}

/// The training graph of `spec` with its dimensions bound (`dims.cached` is 0).
///
/// # Errors
/// [`GraphError`] as of [`Graph::build`], and when a policy by layer does not name every layer.
pub fn training(spec: &ModelSpec, dims: Dims, policy: &Policy) -> Result<Training, GraphError> {
    let forward = Graph::build(spec, Mode::Forward, dims)?;
    let (graph, recompute) = recompute(&differentiate(&forward)?, policy)?;
    Ok(Training { graph, recompute })
}
