//! The model of one tensor-parallel rank, and the operations of a step.
//!
//! A rank of Megatron's scheme (arXiv 1909.08053) is the same model with fewer heads, a narrower MLP and a part of
//! the vocabulary, so its graph is built from such a spec.

use crate::kernels::kernels;
use lapidary_models::autodiff::{self, Policy, training};
use lapidary_models::{Dims, Function, ModelSpec};

/// The spec of one rank among `tp`.
///
/// # Errors
/// The first size that does not divide, as a sentence.
pub fn rank_spec(spec: &ModelSpec, tp: u64) -> Result<ModelSpec, String> {
    let mut rank = spec.clone();
    rank.n_heads = share("heads", spec.n_heads, tp)?;
    rank.n_kv_heads = key_heads(spec.n_kv_heads, tp)?;
    rank.d_ff = share("MLP features", spec.d_ff, tp)?;
    if !rank.n_heads.is_multiple_of(rank.n_kv_heads) {
        return Err(format!("{} heads a rank do not share {} key heads", rank.n_heads, rank.n_kv_heads));
    }
    rank.vocab = spec.vocab_padded_to.unwrap_or(spec.vocab).div_ceil(tp);
    rank.vocab_padded_to = None;
    Ok(rank)
}

fn share(what: &str, whole: u64, tp: u64) -> Result<u64, String> {
    if whole.is_multiple_of(tp) {
        Ok(whole / tp)
    } else {
        Err(format!("{whole} {what} do not divide by tp {tp}"))
    }
}

/// Key heads are split, or repeated where there are fewer than ranks.
fn key_heads(heads: u64, tp: u64) -> Result<u64, String> {
    if tp.is_multiple_of(heads) { Ok(1) } else { share("key heads", heads, tp) }
}

/// Operations of training on one sequence: every contraction of the differentiated graph but what is computed
/// again; hidden keys are not counted, and of experts those that a token goes to. `None` where no graph can be built.
pub fn sequence_flops(spec: &ModelSpec, seq_len: u64) -> Option<(f64, u64)> {
    let dims = Dims { batch: 1, seq: seq_len, cached: 0 };
    let graph = training(&spec.dense(), dims, &Policy::Uniform(autodiff::Recompute::None)).ok()?.graph;
    let flops =
        |function: &Function| kernels(&graph, function).iter().map(|kernel| kernel.flops).sum::<f64>();
    let layers: f64 = graph.functions[..2].iter().map(flops).sum();
    let dense = layers * graph.n_layers as f64 + flops(graph.main());
    Some((dense + expert_flops(spec) * seq_len as f64, spec.parameters()))
}

/// Operations of a token's experts and routers beyond those of one MLP, forward and backward.
fn expert_flops(spec: &ModelSpec) -> f64 {
    spec.experts.map_or(0.0, |experts| {
        let layers = (spec.n_layers / experts.every) as f64;
        let weights = (experts.top_k - 1) * spec.mlp_parameters() + experts.count * spec.d_model;
        6.0 * layers * weights as f64
    })
}
