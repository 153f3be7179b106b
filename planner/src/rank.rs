//! What one tensor-parallel rank computes for one micro-batch: its graph, kernels and parameters.
//!
//! A rank of Megatron's scheme (arXiv 1909.08053) is the same model with fewer heads, a narrower MLP and a part of
//! the vocabulary, so its graph is built from such a spec.

use crate::backward::{Kept, Launch, backward, forward, kept, loss};
use crate::kernels::{Anchor, Kernel, border, kernels};
use lapidary_models::op::Op;
use lapidary_models::{Dims, Graph, Mode, ModelSpec, Param};

/// Work, parameters and kept values of one rank.
#[derive(Clone, Debug)]
pub struct RankWork {
    /// Tensor-parallel ranks.
    pub tp: u64,
    /// Launches of one layer's forward pass.
    pub layer_forward: Vec<Launch>,
    /// Launches of one layer's backward pass.
    pub layer_backward: Vec<Launch>,
    /// Launches that selective recomputation repeats in one layer.
    pub layer_selective: Vec<Launch>,
    /// Launches of the embedding, forward and backward.
    pub embedding: Vec<Launch>,
    /// Launches from the final norm to the loss, forward and backward.
    pub head: Vec<Launch>,
    /// Parameters of one layer on this rank.
    pub layer_parameters: f64,
    /// Parameters of the embedding on this rank.
    pub embedding_parameters: f64,
    /// Parameters of final norm and head on this rank, with its own copy of a tied table.
    pub head_parameters: f64,
    /// Whether head and embedding are one tensor.
    pub tied: bool,
    /// What one layer keeps.
    pub kept: Kept,
    /// Elements of the logits on this rank.
    pub logits: f64,
    /// Bytes of the residual stream of one micro-batch.
    pub residual_bytes: f64,
}

impl RankWork {
    /// The work of a rank among `tp` for `micro_batch` sequences.
    ///
    /// # Errors
    /// What does not divide, or the dimension that a graph refuses, as a sentence.
    pub fn new(spec: &ModelSpec, tp: u64, micro_batch: u64, seq_len: u64) -> Result<RankWork, String> {
        let rank = rank_spec(spec, tp)?;
        let dims = Dims { batch: micro_batch, seq: seq_len, cached: 0 };
        let graph = Graph::build(&rank, Mode::Forward, dims).map_err(|error| error.to_string())?;
        let layer = kernels(&graph, graph.layer());
        let ends = kernels(&graph, graph.main());
        let (embedding, head): (Vec<&Kernel>, Vec<&Kernel>) =
            ends.iter().partition(|kernel| !after_layers(&graph, kernel));
        let main = graph.main();
        let logits = main.results.iter().map(|value| main.ty(*value)).map(|ty| (ty.elements(), ty.bytes()));
        let (logits, logits_bytes) =
            logits.fold((0.0, 0.0), |sum, l| (sum.0 + l.0 as f64, sum.1 + l.1 as f64));
        let mut head: Vec<Launch> = head.into_iter().flat_map(both).collect();
        head.push(loss(logits_bytes));
        let kept = kept(&graph, graph.layer(), &layer);
        let table = elements(&graph.params, |param| param.name == "embed.weight");
        let tied = spec.head.tied;
        let after = elements(&graph.params, |param| !param.per_layer && !before_layers(param));
        Ok(RankWork {
            tp,
            layer_forward: layer.iter().map(|kernel| narrowed(forward(kernel), tp)).collect(),
            layer_backward: layer.iter().flat_map(backward).map(|launch| narrowed(launch, tp)).collect(),
            layer_selective: selective(&graph, &layer).into_iter().map(|l| narrowed(l, tp)).collect(),
            embedding: embedding.into_iter().flat_map(both).map(|launch| narrowed(launch, tp)).collect(),
            head: head.into_iter().collect(),
            layer_parameters: elements(&graph.params, |param| param.per_layer),
            embedding_parameters: elements(&graph.params, before_layers),
            head_parameters: after + if tied { table } else { 0.0 },
            tied,
            residual_bytes: kept.input,
            kept,
            logits,
        })
    }
}

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

fn before_layers(param: &Param) -> bool {
    matches!(param.name.as_str(), "embed.weight" | "position.weight")
}

fn elements(params: &[Param], wanted: impl Fn(&Param) -> bool) -> f64 {
    params.iter().filter(|param| wanted(param)).map(|param| param.ty.elements() as f64).sum()
}

fn both(kernel: &Kernel) -> Vec<Launch> {
    let mut launches = vec![forward(kernel)];
    launches.extend(backward(kernel));
    launches
}

fn after_layers(graph: &Graph, kernel: &Kernel) -> bool {
    let nodes = &graph.main().nodes;
    let layers = nodes.iter().position(|node| matches!(node.op, Op::Repeat { .. })).unwrap_or(nodes.len());
    kernel.nodes[0] > layers
}

/// Sequence parallelism (arXiv 2205.05198, section 4.2): row kernels see a part of the tokens.
fn narrowed(launch: Launch, tp: u64) -> Launch {
    match launch.anchor {
        Anchor::Row => Launch { bytes: launch.bytes / tp as f64, ..launch },
        _ => launch,
    }
}

/// Norms, and the pointwise ends of matmuls as kernels of their own.
fn selective(graph: &Graph, layer: &[Kernel]) -> Vec<Launch> {
    let function = graph.layer();
    let rows = layer.iter().filter(|kernel| kernel.anchor == Anchor::Row).map(forward);
    let curved = layer.iter().map(|kernel| {
        let curved = |index: &&usize| matches!(function.nodes[**index].op, Op::Activation(_) | Op::Mul);
        let nodes: Vec<usize> = kernel.nodes.iter().filter(curved).copied().collect();
        let (entering, leaving) = border(function, &nodes);
        entering.iter().chain(&leaving).map(|value| function.ty(*value).bytes() as f64).sum::<f64>()
    });
    let curved = curved.filter(|bytes| *bytes > 0.0);
    let curved = curved.map(|bytes| Launch { anchor: Anchor::Pointwise, flops: 0.0, bytes });
    rows.chain(curved).collect()
}
