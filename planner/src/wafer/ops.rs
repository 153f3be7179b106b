//! The ops of a training step as kernels of a wafer: read off the differentiated graph, each with its phase and with
//! the parameters that enter or gradients that leave for it.
//!
//! Only features are read here; tokens come with the area that an op is placed on. What attention does between scores
//! and result is one kernel, and so are its derivatives: tensors of tokens by tokens exist in no processing element.

use lapidary_hardware::price::wafer::{
    Area, FUNCTION_CYCLES, HeadTile, Rates, attention, attention_backward, column_sum, gather, linear, loss,
    loss_backward, norm, norm_backward, norm_weight, outer_product, passing, pointwise, rope,
};
use lapidary_models::autodiff::work::Phase;
use lapidary_models::autodiff::{Policy, Recompute, training};
use lapidary_models::op::{Backward, Op};
use lapidary_models::spec::{Activation, NormKind};
use lapidary_models::{Dims, Function, Graph, ModelSpec, Node};

/// What runs on the wafer for an op of the graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    /// Weights stream in, forward or transposed.
    Linear {
        /// Features that are summed over.
        inputs: u64,
        /// Features that come out.
        outputs: u64,
    },
    /// Gradients of a weight stream out.
    Outer {
        /// Input features of the weight.
        inputs: u64,
        /// Its output features.
        outputs: u64,
    },
    /// Sums over the features of each token, and their use.
    Norm {
        /// Features.
        features: u64,
        /// LayerNorm.
        means: bool,
        /// Its derivative by the input.
        backward: bool,
    },
    /// The derivative of a norm by its weight: the norm's sums again, and sums over all tokens.
    NormWeight {
        /// Features.
        features: u64,
        /// LayerNorm.
        means: bool,
    },
    /// Sums over all tokens, for each feature.
    ColumnSum {
        /// Features.
        features: u64,
    },
    /// Vector ops on every element.
    Pointwise {
        /// Features.
        features: u64,
        /// How many ops.
        ops: f64,
        /// Cycles of functions per element.
        functions: u32,
    },
    /// A rotation of pairs within heads.
    Rope {
        /// Heads of the value.
        heads: u64,
        /// Pairs that turn.
        pairs: u64,
    },
    /// Scores to result, or back.
    Attention {
        /// The derivatives, and their way to the columns that linear layers read.
        backward: bool,
    },
    /// Rows of a table enter, or their gradients leave, token by token.
    Passing {
        /// Features.
        features: u64,
    },
    /// Cross entropy or its derivative over the vocabulary.
    Loss {
        /// Rows of the head.
        vocabulary: u64,
        /// The derivative.
        backward: bool,
    },
}

/// One op.
#[derive(Clone, Debug, PartialEq)]
pub struct WaferOp {
    /// Its node, such as `attn.q.dw`.
    pub node: String,
    /// Why it runs.
    pub phase: Phase,
    /// How.
    pub kernel: Kernel,
    /// Parameters that stream in for it.
    pub weights: f64,
    /// Gradients that stream out.
    pub gradients: f64,
}

/// The ops of a training step under one policy, and what is alive between them.
#[derive(Clone, Debug)]
pub struct StepOps {
    /// Of one layer, forward and backward.
    pub layer: Vec<WaferOp>,
    /// Of embedding, final norm, head and loss.
    pub ends: Vec<WaferOp>,
    /// Features that one layer keeps for each token, one number a value.
    pub kept: Vec<u64>,
    /// Features alive for each token at every op of the backward pass, what is kept left out.
    pub alive: Vec<Vec<u64>>,
    /// Rows of the head; its logits are there as a whole.
    pub vocabulary: u64,
}

impl StepOps {
    /// The ops of a model for sequences of `seq_len`.
    ///
    /// # Errors
    /// The dimension that a graph refuses, as a sentence.
    pub fn new(spec: &ModelSpec, seq_len: u64, again: Recompute) -> Result<StepOps, String> {
        let dims = Dims { batch: 1, seq: seq_len, cached: 0 };
        let found = training(spec, dims, &Policy::Uniform(again)).map_err(|error| error.to_string())?;
        let graph = &found.graph;
        let (main, layers) = graph.functions.split_last().ok_or("a graph without functions")?;
        let backward = layers.last().ok_or("a graph without layers")?;
        let features = |ty: &lapidary_models::TensorType| ty.shape.last().copied().unwrap_or(1);
        Ok(StepOps {
            layer: layers.iter().flat_map(|function| ops(graph, function)).collect(),
            ends: ops(graph, main),
            kept: graph.slots.iter().map(|slot| features(&slot.ty)).collect(),
            alive: alive(backward),
            vocabulary: spec.vocab_padded_to.unwrap_or(spec.vocab),
        })
    }
}

fn ops(graph: &Graph, function: &Function) -> Vec<WaferOp> {
    let place = |node: &Node| {
        let phase = Phase::of(graph, function, node);
        let kernel = kernel(function, node, phase)?;
        let (weights, gradients) = match kernel {
            Kernel::Linear { inputs, outputs } => (inputs as f64 * outputs as f64, 0.0),
            Kernel::Outer { inputs, outputs } => (0.0, inputs as f64 * outputs as f64),
            Kernel::ColumnSum { features } | Kernel::NormWeight { features, .. } => (0.0, features as f64),
            Kernel::Norm { features, .. } => (features as f64, 0.0),
            _ => (0.0, 0.0),
        };
        Some(WaferOp { node: node.name.clone(), phase, kernel, weights, gradients })
    };
    function.nodes.iter().filter_map(place).collect()
}

/// Whether a value has a cell for every query and key: such a value lives inside attention only.
fn is_scores(function: &Function, node: &Node) -> bool {
    function.ty(node.output).shape.len() == 4
}

/// The kernel of a node; `None` for what takes no time of its own: parameters, slots, calls, and what a kernel of a
/// neighbour does with it.
fn kernel(function: &Function, node: &Node, phase: Phase) -> Option<Kernel> {
    let last = |index: usize| {
        let ty = node.inputs.get(index).map(|id| function.ty(*id));
        ty.and_then(|ty| ty.shape.last().copied()).unwrap_or(1)
    };
    let features = function.ty(node.output).shape.last().copied().unwrap_or(1);
    let map = |ops: f64, functions: u32| Some(Kernel::Pointwise { features, ops, functions });
    if is_scores(function, node) {
        return None;
    }
    match &node.op {
        Op::Linear => Some(Kernel::Linear { inputs: last(0), outputs: features }),
        Op::Bias | Op::Add | Op::Scale { .. } | Op::Mul | Op::Position { .. } => map(1.0, 0),
        Op::Activation(function) => activation(*function).map_or(map(2.0, 0), |(ops, cost)| map(ops, cost)),
        Op::Norm { kind, .. } => {
            Some(Kernel::Norm { features, means: *kind == NormKind::Layer, backward: false })
        }
        Op::Rope { head_dim, rot_dims, .. } => {
            Some(Kernel::Rope { heads: features / (*head_dim).max(1), pairs: rot_dims / 2 })
        }
        Op::Values { .. } => Some(Kernel::Attention { backward: phase == Phase::Backward }),
        Op::Embed => Some(Kernel::Passing { features }),
        Op::Param { .. } | Op::Repeat { .. } | Op::LastToken | Op::KvAppend { .. } => None,
        Op::Scores { .. } | Op::Mask { .. } | Op::Softmax => None,
        Op::Backward(op) => backward_kernel(op, features, last),
        // A wafer holds every feature of a row: nothing is split over ranks.
        Op::Sharded(_) => None,
    }
}

fn backward_kernel(op: &Backward, features: u64, last: impl Fn(usize) -> u64) -> Option<Kernel> {
    let map = |ops: f64, functions: u32| Some(Kernel::Pointwise { features, ops, functions });
    match op {
        Backward::LinearDx => Some(Kernel::Linear { inputs: last(0), outputs: features }),
        Backward::LinearDw => Some(Kernel::Outer { inputs: last(1), outputs: last(0) }),
        Backward::ColumnSum => Some(Kernel::ColumnSum { features }),
        Backward::NormDw { kind, .. } => {
            Some(Kernel::NormWeight { features, means: *kind == NormKind::Layer })
        }
        Backward::ActivationDx(function) => {
            let (ops, cost) = slope(*function);
            map(ops, cost)
        }
        Backward::NormDx { kind, .. } => {
            Some(Kernel::Norm { features, means: *kind == NormKind::Layer, backward: true })
        }
        Backward::RopeDx { head_dim, rot_dims, .. } => {
            Some(Kernel::Rope { heads: features / (*head_dim).max(1), pairs: rot_dims / 2 })
        }
        Backward::CrossEntropy => Some(Kernel::Loss { vocabulary: last(0), backward: false }),
        Backward::CrossEntropyDx => Some(Kernel::Loss { vocabulary: features, backward: true }),
        Backward::EmbedDw { .. } | Backward::PositionDw { .. } => Some(Kernel::Passing { features }),
        // Inside attention's derivatives, or moved by the memory that an op reads.
        Backward::MaskDx { .. }
        | Backward::SoftmaxDx
        | Backward::ValuesDv { .. }
        | Backward::LastTokenDx { .. }
        | Backward::Save { .. }
        | Backward::Saved { .. }
        | Backward::Gradient { .. } => None,
    }
}

/// Vector ops and cycles of functions of an activation, as `passes/src/wafer/kernel/map.rs` writes it; `None` where it is a
/// comparison.
fn activation(function: Activation) -> Option<(f64, u32)> {
    match function {
        Activation::Silu => Some((5.0, FUNCTION_CYCLES.exp + FUNCTION_CYCLES.recip)),
        Activation::Gelu => Some((5.0, FUNCTION_CYCLES.erf)),
        Activation::GeluTanh => Some((7.0, FUNCTION_CYCLES.tanh)),
        Activation::Relu | Activation::Relu2 => None,
    }
}

/// Vector ops and cycles of functions of an activation's derivative and its product with the gradient, as
/// `passes/src/wafer/kernel/map.rs` writes them.
fn slope(function: Activation) -> (f64, u32) {
    match function {
        Activation::Silu => (8.0, FUNCTION_CYCLES.exp + FUNCTION_CYCLES.recip),
        Activation::Gelu => (9.0, FUNCTION_CYCLES.erf + FUNCTION_CYCLES.exp),
        Activation::GeluTanh => (14.0, FUNCTION_CYCLES.tanh),
        Activation::Relu => (6.0, 0),
        Activation::Relu2 => (5.0, 0),
    }
}

/// What is alive at every node of a function, in features of each token; kept values, parameters and what lives inside
/// a kernel left out. A pointwise op writes over an operand that nobody reads behind it.
fn alive(function: &Function) -> Vec<Vec<u64>> {
    let counted = |id: lapidary_models::ValueId| {
        let shape = &function.ty(id).shape;
        let slot = function.nodes.iter().any(|node| node.output == id && is_given(&node.op));
        (shape.len() == 3 && !slot).then(|| shape[2])
    };
    let last_use = |id| function.nodes.iter().rposition(|node| node.inputs.contains(&id));
    let of_value = |id: lapidary_models::ValueId, born: Option<usize>, at: usize| {
        let dies = if function.results.contains(&id) { usize::MAX } else { last_use(id).unwrap_or(0) };
        let over = function.nodes[at].inputs.contains(&id) && dies == at && in_place(&function.nodes[at].op);
        (born.is_none_or(|born| born <= at) && dies >= at && !over).then(|| counted(id)).flatten()
    };
    (0..function.nodes.len())
        .map(|at| {
            let arguments = function.arguments.iter().map(|id| (*id, None));
            let results = function.nodes.iter().enumerate().map(|(born, node)| (node.output, Some(born)));
            arguments.chain(results).filter_map(|(id, born)| of_value(id, born, at)).collect()
        })
        .collect()
}

fn is_given(op: &Op) -> bool {
    matches!(op, Op::Backward(Backward::Saved { .. }) | Op::Param { .. })
}

fn in_place(op: &Op) -> bool {
    matches!(
        op,
        Op::Bias
            | Op::Add
            | Op::Mul
            | Op::Scale { .. }
            | Op::Activation(_)
            | Op::Rope { .. }
            | Op::Norm { .. }
    ) || matches!(
        op,
        Op::Backward(Backward::ActivationDx(_) | Backward::RopeDx { .. } | Backward::NormDx { .. })
    )
}

impl Kernel {
    /// Cycles of the fullest processing element of `area`, whose heads lie as `heads` says.
    pub fn cycles(&self, rates: &Rates, area: &Area, heads: &HeadTile) -> f64 {
        match *self {
            Kernel::Linear { inputs, outputs } => linear(rates, area, area.features(inputs), outputs),
            Kernel::Outer { inputs, outputs } => outer_product(rates, area, area.features(inputs), outputs),
            Kernel::Norm { features, means, backward: false } => norm(rates, area, features, means),
            Kernel::Norm { features, means, backward: true } => norm_backward(rates, area, features, means),
            Kernel::ColumnSum { features } => column_sum(rates, area, area.features(features)),
            Kernel::NormWeight { features, means } => norm_weight(rates, area, features, means),
            Kernel::Pointwise { features, ops, functions } => {
                pointwise(rates, area, features, ops, f64::from(functions))
            }
            Kernel::Rope { heads: all, pairs } => {
                let blocks = (area.columns as f64 / heads.columns).floor().max(1.0);
                let own = (all as f64 / blocks).ceil().min(heads.kv * heads.ways);
                heads.sequences * rope(rates, own, heads.tokens(), pairs as f64)
            }
            Kernel::Attention { backward: false } => attention(rates, heads),
            Kernel::Attention { backward: true } => {
                let gathers = gather(rates, heads, true) + 2.0 * gather(rates, heads, false);
                attention_backward(rates, heads) + gathers
            }
            Kernel::Passing { features } => passing(rates, area, features),
            Kernel::Loss { vocabulary, backward: false } => loss(rates, area, vocabulary),
            Kernel::Loss { vocabulary, backward: true } => loss_backward(rates, area, vocabulary),
        }
    }
}
