//! A model with every dimension bound: functions of nodes over typed values.
//!
//! `main` runs once; the layer function is repeated by an [`Op::Repeat`] node, once per layer, so a graph has
//! the size of one layer whatever the depth.

use crate::dtype::DType;
use crate::op::Op;
use crate::work::Work;
use std::fmt;
use thiserror::Error;

mod check;

/// Shape and element type of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Length of every axis, outermost first.
    pub shape: Vec<u64>,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, shape: impl Into<Vec<u64>>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }

    /// Number of elements; exact, since graph construction refuses tensors beyond [`TensorType::MAX_BYTES`].
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, d| n.saturating_mul(*d))
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.bytes())
    }

    /// Largest tensor a graph may hold: 2^50 bytes, above any memory named in `hardware/`.
    pub const MAX_BYTES: u64 = 1 << 50;

    /// Length of the last axis.
    ///
    /// # Errors
    /// When the tensor has no axes.
    pub fn last(&self) -> Result<u64, String> {
        self.shape.last().copied().ok_or_else(|| "a scalar has no last axis".to_string())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor<")?;
        for d in &self.shape {
            write!(f, "{d}x")?;
        }
        write!(f, "{}>", self.dtype)
    }
}

/// What a graph computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Logits of every position, no cache: training and scoring.
    Forward,
    /// Fills the cache from a prompt; logits of the last position.
    Prefill,
    /// One or more new tokens against a filled cache; logits of the last position.
    Decode,
    /// The loss of a batch and the gradient of every parameter; made by [`crate::autodiff::differentiate`].
    Train,
}

impl Mode {
    /// The name in reports and in the IR.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Forward => "forward",
            Mode::Prefill => "prefill",
            Mode::Decode => "decode",
            Mode::Train => "train",
        }
    }
}

/// The dimensions that a model file leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Sequences.
    pub batch: u64,
    /// New tokens of each sequence.
    pub seq: u64,
    /// Tokens of each sequence that are in the cache already.
    pub cached: u64,
}

impl Dims {
    /// Keys that a query may see: cached and new.
    pub const fn keys(&self) -> u64 {
        self.cached.saturating_add(self.seq)
    }

    /// New tokens in all.
    pub const fn tokens(&self) -> u64 {
        self.batch.saturating_mul(self.seq)
    }
}

/// A learned tensor. Per-layer parameters are declared once; `*` stands for the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Canonical name, such as `layers.*.attn.q.weight`.
    pub name: String,
    /// Shape, linears as `[out, in]`, and the compute type.
    pub ty: TensorType,
    /// Whether there is one for each layer.
    pub per_layer: bool,
}

/// A value that the forward pass of each layer keeps for the backward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The node of the layer whose result it is, or `input` for what the layer reads; with a number where layers
    /// differ in what they keep.
    pub name: String,
    /// Shape and element type of one layer's value.
    pub ty: TensorType,
    /// The first layer that keeps it.
    pub first: u64,
    /// How many layers keep it.
    pub times: u64,
}

/// Index of a value in its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub usize);

/// An argument or the result of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Shape and element type.
    pub ty: TensorType,
}

/// One operation applied to values.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it stands in the model, such as `attn.q`; unique in its function.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Result.
    pub output: ValueId,
}

/// A straight line of nodes, in execution order.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// `main` or `layer`.
    pub name: String,
    /// Whether it takes a layer index before its arguments.
    pub per_layer: bool,
    /// Arguments.
    pub arguments: Vec<ValueId>,
    /// Every value, by id.
    pub values: Vec<Value>,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// What it returns.
    pub results: Vec<ValueId>,
}

impl Function {
    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.values[id.0].ty
    }

    /// Operand types of a node.
    pub fn operand_types(&self, node: &Node) -> Vec<&TensorType> {
        node.inputs.iter().map(|id| self.ty(*id)).collect()
    }

    /// Work of one node; a repeat counts its body once for every layer.
    pub fn node_work(&self, node: &Node, graph: &Graph) -> Work {
        match node.op {
            Op::Repeat { function, times, .. } => graph.functions[function].work(graph) * times,
            _ => node.op.work(&self.operand_types(node), self.ty(node.output)),
        }
    }

    /// Work of one call.
    pub fn work(&self, graph: &Graph) -> Work {
        self.nodes.iter().map(|node| self.node_work(node, graph)).sum()
    }
}

/// A model with every dimension bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// What it computes.
    pub mode: Mode,
    /// The bound dimensions.
    pub dims: Dims,
    /// How often the layer function runs.
    pub n_layers: u64,
    /// Learned tensors in the order of first use.
    pub params: Vec<Param>,
    /// What the layers of a training graph keep for their backward pass; empty otherwise.
    pub slots: Vec<Slot>,
    /// The layer function (of a training graph: those of the layers, each with its backward function), then `main`.
    pub functions: Vec<Function>,
}

impl Graph {
    /// The function that runs once.
    pub fn main(&self) -> &Function {
        self.functions.last().expect("a graph is built with a main function")
    }

    /// The function that runs once per layer; the first of several.
    pub fn layer(&self) -> &Function {
        self.functions.first().expect("a graph is built with a layer function")
    }

    /// Work of the whole graph.
    pub fn work(&self) -> Work {
        self.main().work(self)
    }

    /// Number of learned values.
    pub fn parameters(&self) -> u64 {
        let count = |p: &Param| p.ty.elements().saturating_mul(if p.per_layer { self.n_layers } else { 1 });
        self.params.iter().map(count).fold(0, u64::saturating_add)
    }
}

/// Why a spec and its dimensions give no graph.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GraphError {
    /// An op's shape rule does not hold.
    #[error("{node}: {what}")]
    Shape {
        /// The node.
        node: String,
        /// The relation that does not hold.
        what: String,
    },
    /// Nodes, slots or parameters contradict each other.
    #[error("{node}: {what}")]
    Structure {
        /// The node, slot or parameter, behind its function.
        node: String,
        /// The contradiction.
        what: String,
    },
    /// A dimension is zero or past what the model was built for.
    #[error("{dim} = {value}: {what}")]
    Dimension {
        /// Name of the dimension.
        dim: &'static str,
        /// Its value.
        value: u64,
        /// What would be allowed.
        what: String,
    },
    /// An op whose derivative nobody needs stands where one is asked for.
    #[error("{node}: {op} has no derivative: {why}")]
    NoDerivative {
        /// The node.
        node: String,
        /// Name of its op.
        op: &'static str,
        /// What would have to be there instead.
        why: &'static str,
    },
    /// A part of a model that no op computes yet.
    #[error("{model}: no graph is built of {what} yet")]
    Unsupported {
        /// The model.
        model: String,
        /// The part.
        what: &'static str,
    },
    /// A tensor is larger than any machine.
    #[error("{node}: {ty} is larger than {} TiB", TensorType::MAX_BYTES >> 40)]
    TooLarge {
        /// The node or parameter.
        node: String,
        /// Its type.
        ty: TensorType,
    },
}
