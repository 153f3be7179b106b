//! Spreads a model over ranks: each gets a graph of its own part, with collectives where parts meet.
//!
//! ```text
//! pipeline  stage s runs a range of the layers; it receives the residual stream and sends it on
//! tensor    heads, hidden features of the MLP and vocabulary are split over the ranks of a group:
//!           q, k, v, gate, up, head   by rows of the weight      no communication, results are parts
//!           attn.out, mlp.down        by columns of the weight   results are summands: all_reduce; a bias on the first rank
//!           embedding                 by rows of the table       results are summands: all_reduce
//! ```
//! The split follows Megatron-LM (Shoeybi et al., arXiv:1909.08053, section 3). A sum over ranks is formed as late as
//! possible, so the two branches of a parallel block meet in one all-reduce.
//!
//! All ranks of a group run the same ops with the same shapes: where a width does not divide, the last ranks hold rows of
//! zeros ([`Part`] says which). Key and value heads fewer than ranks are held by several of them.
//!
//! Which parameter is split how is told by its canonical name; everything else follows from the data, and an op that cannot
//! run on parts is refused.

mod cut;
mod layout;
mod part;
mod spread;

pub use part::Part;

use crate::graph::{Graph, GraphError};
use std::collections::BTreeMap;
use thiserror::Error;

/// Over how many ranks a model is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Degrees {
    /// Ranks of a tensor-parallel group.
    pub tensor: u64,
    /// Stages of the pipeline.
    pub pipeline: u64,
}

/// Which part of a model a rank has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Place in its tensor-parallel group.
    pub tensor: u64,
    /// Stage of the pipeline.
    pub stage: u64,
}

/// One rank's part of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// What the rank computes. Its layers count from 0.
    pub graph: Graph,
    /// The layer of the whole model that is the rank's first.
    pub first_layer: u64,
    /// Parameters that the rank holds in part, by canonical name; the others are whole.
    pub parts: BTreeMap<String, Part>,
}

impl Shard {
    /// The whole model's name of a parameter of the rank, `layers.0.attn.q.weight` being the rank's first layer.
    pub fn whole_name(&self, name: &str) -> String {
        whole_name(name, self.first_layer)
    }

    /// The part of a parameter, by its name with the layer filled in; none where the rank holds all of it.
    pub fn part_of(&self, name: &str) -> Option<Part> {
        part_of(&self.parts, name)
    }
}

/// A name with the layer's number counted from the first layer of the whole model.
pub fn whole_name(name: &str, first_layer: u64) -> String {
    match numbered(name) {
        Some((layer, rest)) => format!("layers.{}.{rest}", first_layer.saturating_add(layer)),
        None => name.to_string(),
    }
}

/// The part of a parameter, by its name with the layer filled in.
pub fn part_of(parts: &BTreeMap<String, Part>, name: &str) -> Option<Part> {
    match numbered(name) {
        Some((_, rest)) => parts.get(&format!("layers.*.{rest}")).copied(),
        None => parts.get(name).copied(),
    }
}

/// `layers.3.attn.q.weight` as 3 and `attn.q.weight`; none for a parameter of no layer.
pub fn numbered(name: &str) -> Option<(u64, &str)> {
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Why a model cannot be spread so.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShardError {
    /// A degree is zero, or the place is outside of the degrees.
    #[error("{what}")]
    Degrees {
        /// The relation that does not hold.
        what: String,
    },
    /// An op stands where its operands are in parts and it cannot work on them.
    #[error("{node}: {what}")]
    Unsupported {
        /// The node.
        node: String,
        /// What is in the way.
        what: String,
    },
    /// A shape rule fails on the parts.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// The layers of a stage: as even as possible, later stages get the odd ones, since the first also embeds.
pub fn stage_layers(layers: u64, pipeline: u64, stage: u64) -> std::ops::Range<u64> {
    let bound = |stage: u64| layers.saturating_mul(stage) / pipeline.max(1);
    bound(stage)..bound(stage + 1)
}

/// The part of a graph that the rank at `place` computes.
///
/// # Errors
/// [`ShardError`] when there are more stages than layers, the place is outside of the degrees, the graph is that of a
/// training step, or an op cannot run on parts.
pub fn shard(graph: &Graph, degrees: Degrees, place: Place) -> Result<Shard, ShardError> {
    check(graph, degrees, place)?;
    let layers = stage_layers(graph.n_layers, degrees.pipeline, place.stage);
    let stage = cut::stage(graph, degrees.pipeline, place.stage, &layers)?;
    let first_layer = layers.start;
    let (graph, parts) = spread::spread(&stage, degrees.tensor, place.tensor)?;
    Ok(Shard { graph, first_layer, parts })
}

fn check(graph: &Graph, degrees: Degrees, place: Place) -> Result<(), ShardError> {
    let refuse = |what: String| Err(ShardError::Degrees { what });
    let Degrees { tensor, pipeline } = degrees;
    if tensor == 0 || pipeline == 0 {
        return refuse(format!("tensor = {tensor}, pipeline = {pipeline}: both must be at least 1"));
    }
    if pipeline > graph.n_layers {
        return refuse(format!("{pipeline} pipeline stages for {} layers", graph.n_layers));
    }
    if place.tensor >= tensor || place.stage >= pipeline {
        let Place { tensor: rank, stage } = place;
        return refuse(format!("rank {rank} of {tensor} in stage {stage} of {pipeline} does not exist"));
    }
    if graph.mode == crate::graph::Mode::Train {
        return refuse("training steps are not spread yet: lower a forward, prefill or decode graph".into());
    }
    Ok(())
}
