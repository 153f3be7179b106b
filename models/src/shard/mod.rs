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
//!
//! A training step is spread after it is differentiated: the derivative of an all-reduce is none, and that of what all
//! ranks read is a sum over them, which again is formed as late as possible. With [`Way::sequence`] norms and residual
//! sums run on a run of the rows each, and the sums become reduce-scatters with gathers behind the norms (Korthikanti et
//! al., arXiv:2205.05198, section 4.2.2). With [`Way::chunks`] a stage runs several ranges of the layers. The graph of a
//! rank is what it does for one micro-batch, all ranges forwards and then backwards; in which order it does that for
//! several is said by [`mod@schedule`].

mod cut;
mod layout;
mod part;
pub mod schedule;
mod sharding;
mod spread;

pub use part::Part;
pub use sharding::StateSharding;

use crate::graph::{Graph, GraphError, Mode};
use std::collections::{BTreeMap, BTreeSet};
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

/// How a training step is spread, beyond its degrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Ranges of layers that a stage runs.
    pub chunks: u64,
    /// Whether the ranks of a tensor-parallel group share the rows between their parts of weights.
    pub sequence: bool,
}

impl Default for Way {
    fn default() -> Way {
        Way { chunks: 1, sequence: false }
    }
}

/// One rank's part of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// What the rank computes. Its layers count from 0.
    pub graph: Graph,
    /// The layers of the whole model that the rank's layers are, in order.
    pub layers: Vec<u64>,
    /// Parameters that the rank holds in part, by canonical name; the others are whole.
    pub parts: BTreeMap<String, Part>,
    /// Parameters whose gradient is the sum over the tensor-parallel group of what its ranks have.
    pub summed: BTreeSet<String>,
    /// Parameters that are held by two stages, whose gradient is the sum of both.
    pub tied: BTreeSet<String>,
    /// Parameters all of which another rank holds too, and which are that rank's where each must count once.
    pub elsewhere: BTreeSet<String>,
}

impl Shard {
    /// The whole model's name of a parameter of the rank, `layers.0.attn.q.weight` being the rank's first layer.
    pub fn whole_name(&self, name: &str) -> String {
        whole_name(name, &self.layers)
    }

    /// The part of a parameter, by its name with the layer filled in; none where the rank holds all of it.
    pub fn part_of(&self, name: &str) -> Option<Part> {
        part_of(&self.parts, name)
    }
}

/// A name with the layer's number in the whole model, `layers` being those of a rank.
pub fn whole_name(name: &str, layers: &[u64]) -> String {
    match numbered(name) {
        Some((layer, rest)) => {
            let whole = usize::try_from(layer).ok().and_then(|at| layers.get(at)).copied().unwrap_or(layer);
            format!("layers.{whole}.{rest}")
        }
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
/// [`ShardError`] when there are more stages than layers, the place is outside of the degrees, or an op cannot run on
/// parts.
pub fn shard(graph: &Graph, degrees: Degrees, way: Way, place: Place) -> Result<Shard, ShardError> {
    check(graph, degrees, way, place)?;
    let Degrees { tensor, pipeline } = degrees;
    let (stage, layers, tied) = match graph.mode {
        Mode::Train => {
            let cut::Cut { graph, layers, tied } = cut::training(graph, pipeline, way.chunks, place.stage)?;
            (graph, layers, tied)
        }
        _ => {
            let layers = stage_layers(graph.n_layers, pipeline, place.stage);
            (cut::stage(graph, pipeline, place.stage, &layers)?, layers.collect(), BTreeSet::new())
        }
    };
    let spread::Spread { graph, parts, summed, mut elsewhere } =
        spread::spread(&stage, way, tensor, place.tensor)?;
    if place.stage > 0 {
        elsewhere.extend(tied.iter().cloned());
    }
    Ok(Shard { graph, layers, parts, summed, tied, elsewhere })
}

fn check(graph: &Graph, degrees: Degrees, way: Way, place: Place) -> Result<(), ShardError> {
    let refuse = |what: String| Err(ShardError::Degrees { what });
    let Degrees { tensor, pipeline } = degrees;
    if tensor == 0 || pipeline == 0 || way.chunks == 0 {
        let chunks = way.chunks;
        return refuse(format!(
            "tensor = {tensor}, pipeline = {pipeline}, chunks = {chunks}: all must be at least 1"
        ));
    }
    if pipeline > graph.n_layers {
        return refuse(format!("{pipeline} pipeline stages for {} layers", graph.n_layers));
    }
    // A range without layers can only be the first, which embeds.
    if way.chunks > 1 && pipeline.saturating_mul(way.chunks) > graph.n_layers.saturating_add(1) {
        let (chunks, layers) = (way.chunks, graph.n_layers);
        return refuse(format!("{pipeline} pipeline stages of {chunks} ranges each for {layers} layers"));
    }
    if way.chunks > 1 && pipeline == 1 {
        return refuse("one stage runs its layers as one range: chunks are for pipelines".into());
    }
    if graph.mode != Mode::Train && way != Way::default() {
        return refuse("ranges of layers and rows shared between ranks are for training steps".into());
    }
    if place.tensor >= tensor || place.stage >= pipeline {
        let Place { tensor: rank, stage } = place;
        return refuse(format!("rank {rank} of {tensor} in stage {stage} of {pipeline} does not exist"));
    }
    Ok(())
}
