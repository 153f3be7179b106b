//! What one tensor-parallel rank computes for one micro-batch: its differentiated graph, kernels and parameters.
//!
//! A rank of Megatron's scheme (arXiv 1909.08053) is the same model with fewer heads, a narrower MLP and a part of
//! the vocabulary, so its graph is built from such a spec. Attention is one kernel that keeps no scores, so the graph
//! without recomputation is the one that computes attention's core again inside its backward kernel.

use crate::kernels::{Anchor, Kernel, border, kernels};
use crate::plan::Recompute;
use crate::step::work::Kept;
use lapidary_models::autodiff::work::Phase;
use lapidary_models::autodiff::{self, Policy, Training, training};
use lapidary_models::graph::Slot;
use lapidary_models::op::{Backward, Op};
use lapidary_models::{Dims, Function, Graph, ModelSpec, Node, Param};

/// One launch: what it computes and moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// What it is built around.
    pub anchor: Anchor,
    /// Operations of its contractions.
    pub flops: f64,
    /// Bytes it moves.
    pub bytes: f64,
}

/// Work, parameters and kept values of one rank.
#[derive(Clone, Debug)]
pub struct RankWork {
    /// Tensor-parallel ranks.
    pub tp: u64,
    /// Launches of one layer's forward pass.
    pub layer_forward: Vec<Launch>,
    /// Launches of one layer's backward pass.
    pub layer_backward: Vec<Launch>,
    /// Launches that selective recomputation repeats in one layer: norms and pointwise kernels.
    pub layer_selective: Vec<Launch>,
    /// Launches that full recomputation repeats in one layer: what the backward pass reads.
    pub layer_full: Vec<Launch>,
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
    /// Bytes that one layer keeps without recomputation, with selective and with full.
    pub kept: [Kept; 3],
    /// Bytes of the largest value that a layer keeps.
    pub largest: f64,
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
        let of = |policy| training(&rank, dims, &Policy::Uniform(policy)).map_err(|error| error.to_string());
        let (core, full) = (of(autodiff::Recompute::Selective)?, of(autodiff::Recompute::Full)?);
        Ok(read(&core, &full, tp, spec.head.tied))
    }

    /// Launches that a recomputation repeats in one layer.
    pub fn again(&self, recompute: Recompute) -> &[Launch] {
        match recompute {
            Recompute::None => &[],
            Recompute::Selective => &self.layer_selective,
            Recompute::Full => &self.layer_full,
        }
    }

    /// Bytes that one layer keeps.
    pub fn kept(&self, recompute: Recompute) -> Kept {
        match recompute {
            Recompute::None => self.kept[0],
            Recompute::Selective => self.kept[1],
            Recompute::Full => self.kept[2],
        }
    }
}

/// The work of a rank at any micro-batch: all of it grows in proportion to the sequences but for weights, so two
/// graphs tell the rest.
#[derive(Clone, Debug)]
pub struct RankWorks {
    one: RankWork,
    two: RankWork,
}

impl RankWorks {
    /// Reads the graphs of one and of two sequences.
    ///
    /// # Errors
    /// As [`RankWork::new`].
    pub fn new(spec: &ModelSpec, tp: u64, seq_len: u64) -> Result<RankWorks, String> {
        let of = |micro_batch| RankWork::new(spec, tp, micro_batch, seq_len);
        Ok(RankWorks { one: of(1)?, two: of(2)? })
    }

    /// The work for `micro_batch` sequences.
    pub fn at(&self, micro_batch: u64) -> RankWork {
        let more = micro_batch as f64 - 1.0;
        let number = |of: fn(&RankWork) -> f64| of(&self.one) + more * (of(&self.two) - of(&self.one));
        let launches = |of: fn(&RankWork) -> &Vec<Launch>| -> Vec<Launch> {
            let pairs = of(&self.one).iter().zip(of(&self.two));
            let grown = |one: f64, two: f64| one + more * (two - one);
            pairs
                .map(|(one, two)| Launch {
                    anchor: one.anchor,
                    flops: grown(one.flops, two.flops),
                    bytes: grown(one.bytes, two.bytes),
                })
                .collect()
        };
        let kept = |policy: usize| {
            let (one, two) = (self.one.kept[policy], self.two.kept[policy]);
            Kept {
                stream: one.stream + more * (two.stream - one.stream),
                split: one.split + more * (two.split - one.split),
            }
        };
        RankWork {
            layer_forward: launches(|work| &work.layer_forward),
            layer_backward: launches(|work| &work.layer_backward),
            layer_selective: launches(|work| &work.layer_selective),
            layer_full: launches(|work| &work.layer_full),
            embedding: launches(|work| &work.embedding),
            head: launches(|work| &work.head),
            kept: [kept(0), kept(1), kept(2)],
            largest: number(|work| work.largest),
            logits: number(|work| work.logits),
            residual_bytes: number(|work| work.residual_bytes),
            ..self.one
        }
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

/// Operations of training on one sequence: every contraction of the differentiated graph but what is computed
/// again; hidden keys are not counted. `None` where no graph can be built.
pub fn sequence_flops(spec: &ModelSpec, seq_len: u64) -> Option<(f64, u64)> {
    let dims = Dims { batch: 1, seq: seq_len, cached: 0 };
    let graph = training(spec, dims, &Policy::Uniform(autodiff::Recompute::None)).ok()?.graph;
    let flops =
        |function: &Function| kernels(&graph, function).iter().map(|kernel| kernel.flops).sum::<f64>();
    let layers: f64 = graph.functions[..2].iter().map(flops).sum();
    Some((layers * graph.n_layers as f64 + flops(graph.main()), graph.parameters()))
}

fn read(core: &Training, full: &Training, tp: u64, tied: bool) -> RankWork {
    let graph = &core.graph;
    let (layer, main) = (graph.layer(), graph.main());
    let forward = kernels(graph, layer);
    let (embedding, head): (Vec<Kernel>, Vec<Kernel>) =
        kernels(graph, main).into_iter().partition(|kernel| of_embedding(&main.nodes[kernel.nodes[0]]));
    let launches = |kernels: &[Kernel]| kernels.iter().map(|kernel| narrowed(launch(kernel), tp)).collect();
    let table = elements(&graph.params, |param| param.name == "embed.weight");
    let after = elements(&graph.params, |param| !param.per_layer && !before_layers(param));
    let slots = &graph.slots;
    let logits = main
        .nodes
        .iter()
        .find(|node| node.op == Op::Backward(Backward::CrossEntropy))
        .map(|node| node.inputs[0]);
    RankWork {
        tp,
        layer_backward: launches(&kernels(graph, &graph.functions[1])),
        layer_selective: selective(layer, &forward).into_iter().map(|launch| narrowed(launch, tp)).collect(),
        layer_full: launches(&repeated(full, layer, &forward)),
        layer_forward: launches(&forward),
        embedding: launches(&embedding),
        head: head.iter().map(launch).collect(),
        layer_parameters: elements(&graph.params, |param| param.per_layer),
        embedding_parameters: elements(&graph.params, before_layers),
        head_parameters: after + if tied { table } else { 0.0 },
        tied,
        kept: [
            kept(graph, slots, |_| true),
            kept(graph, slots, |slot| !cheap(layer, slot)),
            kept(graph, &full.graph.slots, |_| true),
        ],
        largest: slots.iter().map(|slot| slot.ty.bytes() as f64).fold(0.0, f64::max),
        logits: logits.map_or(0.0, |value| main.ty(value).elements() as f64),
        residual_bytes: layer.arguments.iter().map(|value| layer.ty(*value).bytes() as f64).sum(),
    }
}

fn launch(kernel: &Kernel) -> Launch {
    Launch { anchor: kernel.anchor, flops: kernel.flops, bytes: kernel.bytes }
}

fn of_embedding(node: &Node) -> bool {
    let gradient = |name: &str| {
        node.name.starts_with(name) && matches!(node.op, Op::Backward(Backward::Gradient { .. }))
    };
    matches!(
        node.op,
        Op::Embed
            | Op::Position { .. }
            | Op::Backward(Backward::EmbedDw { .. })
            | Op::Backward(Backward::PositionDw { .. })
    ) || gradient("embed.")
        || gradient("position.")
}

/// Bytes of slots, and of the row statistics that attention keeps in place of its scores: maximum and sum as one
/// 32-bit number.
fn kept(graph: &Graph, slots: &[Slot], wanted: impl Fn(&Slot) -> bool) -> Kept {
    let layer = graph.layer();
    let mut kept = Kept::default();
    for slot in slots.iter().filter(|slot| wanted(slot)) {
        let bytes = slot.ty.bytes() as f64;
        match layer.nodes.iter().find(|node| node.name == slot.name).map(|node| &node.op) {
            None | Some(Op::Add | Op::Norm { .. }) => kept.stream += bytes,
            Some(_) => kept.split += bytes,
        }
    }
    let attends = slots.len() > 1;
    let heads = layer.nodes.iter().find_map(|node| match node.op {
        Op::Scores { heads, .. } if attends => Some(heads),
        _ => None,
    });
    kept.split += heads.map_or(0.0, |heads| graph.dims.tokens() as f64 * heads as f64 * 4.0);
    kept
}

/// Whether a kept value is the result of a norm or of a non-linear pointwise op.
fn cheap(layer: &Function, slot: &Slot) -> bool {
    let made = layer.nodes.iter().find(|node| node.name == slot.name);
    made.is_some_and(|node| matches!(node.op, Op::Norm { .. } | Op::Activation(_) | Op::Mul))
}

/// The forward kernels that full recomputation runs again.
fn repeated(full: &Training, layer: &Function, forward: &[Kernel]) -> Vec<Kernel> {
    let graph = &full.graph;
    let again = |node: &Node| {
        let backward = &graph.functions[1];
        backward
            .nodes
            .iter()
            .any(|other| other.name == node.name && Phase::of(graph, backward, other) == Phase::Recompute)
    };
    let runs = |kernel: &&Kernel| kernel.nodes.iter().any(|index| again(&layer.nodes[*index]));
    forward.iter().filter(runs).cloned().collect()
}

/// Sequence parallelism (arXiv 2205.05198, section 4.2): row kernels see a part of the tokens.
fn narrowed(launch: Launch, tp: u64) -> Launch {
    match launch.anchor {
        Anchor::Row => Launch { bytes: launch.bytes / tp as f64, ..launch },
        _ => launch,
    }
}

/// Norms, and the pointwise ends of matmuls as kernels of their own.
fn selective(function: &Function, layer: &[Kernel]) -> Vec<Launch> {
    let rows = layer.iter().filter(|kernel| kernel.anchor == Anchor::Row).map(launch);
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
