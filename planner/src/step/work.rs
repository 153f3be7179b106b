//! What one tensor-parallel rank does for one sequence, read off its differentiated graph and a software stack:
//! products with the shapes of both derivatives, attention's contractions, bytes of row kernels, kept values.
//!
//! Everything is of one sequence; a micro-batch of `m` does `m` times the bytes and contractions, and its products
//! have `m` times the rows. Row kernels move what the op reads and writes unless the stack says otherwise
//! ([`Stack::bytes`]): fused ops move nothing of their own, single ops in 32 bits more.

use super::job::AttentionKernel;
use super::rates::Product;
use super::stack::{Stack, Traffic};
use crate::rank::rank_spec;
use lapidary_models::autodiff::work::Phase;
use lapidary_models::autodiff::{Policy, Recompute, Training, training};
use lapidary_models::graph::Slot;
use lapidary_models::op::{Backward, Op};
use lapidary_models::{Dims, Function, Graph, ModelSpec, Node};
use std::collections::BTreeMap;

/// Which product of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// `x wᵀ`.
    Forward,
    /// `dy w`.
    Input,
    /// `dyᵀ x`.
    Weight,
}

/// A product of a linear layer on this rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Which one.
    pub side: Side,
    /// Width that it reads.
    pub inputs: f64,
    /// Width that it writes.
    pub outputs: f64,
}

impl Linear {
    /// Its shape over `tokens` rows.
    pub fn product(&self, tokens: f64) -> Product {
        let (inputs, outputs) = (self.inputs, self.outputs);
        match self.side {
            Side::Forward => Product { m: tokens, n: outputs, k: inputs },
            Side::Input => Product { m: tokens, n: inputs, k: outputs },
            Side::Weight => Product { m: outputs, n: inputs, k: tokens },
        }
    }
}

/// A batched product of attention, of one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contraction {
    /// Operations, hidden keys counted.
    pub flops: f64,
    /// Bytes of operands and result.
    pub bytes: f64,
    /// Whether it contracts over a head's width; over the keys otherwise.
    pub over_head: bool,
}

/// The work of a pass over one layer, or over what stands outside the layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PassWork {
    /// Products of linear layers.
    pub linears: Vec<Linear>,
    /// Contractions of attention's core.
    pub core: Vec<Contraction>,
    /// Bytes of row kernels over attention's scores.
    pub score_bytes: f64,
    /// Bytes of row kernels over the residual stream, which sequence parallelism splits.
    pub stream_bytes: f64,
    /// Bytes of row kernels over what tensor parallelism splits.
    pub split_bytes: f64,
}

/// Bytes that a layer keeps of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kept {
    /// Of the residual stream.
    pub stream: f64,
    /// Of what tensor parallelism splits.
    pub split: f64,
}

impl std::ops::Add for Kept {
    type Output = Kept;

    fn add(self, other: Kept) -> Kept {
        Kept { stream: self.stream + other.stream, split: self.split + other.split }
    }
}

/// The work of a rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// One layer, forward.
    pub forward: PassWork,
    /// One layer, backward; where attention is one kernel, with the scores that it computes again.
    pub backward: PassWork,
    /// What selective recomputation runs again: attention's core, or norms and pointwise ops where that is one kernel.
    pub selective: PassWork,
    /// What full recomputation runs again.
    pub full: PassWork,
    /// What a layer keeps without recomputation, with selective and with full.
    pub kept: [Kept; 3],
    /// Embedding, forward and backward.
    pub embedding: (PassWork, PassWork),
    /// Final norm, head and loss, forward and backward.
    pub head: (PassWork, PassWork),
}

/// Rows of the vocabulary on one rank, padded as a stack does.
pub fn vocabulary_rows(whole: u64, tensor: u64, stack: &Stack) -> u64 {
    match tensor == 1 && !stack.pads_whole_vocab {
        true => whole,
        false => whole.next_multiple_of(128 * tensor) / tensor,
    }
}

/// Names of row kernels in stack files.
pub const KEYS: [&str; 28] = [
    "norm",
    "norm-dx",
    "norm-dw",
    "add",
    "add-sum",
    "bias",
    "column-sum",
    "gate",
    "gate-dx",
    "activation",
    "activation-dx",
    "mul",
    "mul-dx",
    "rope",
    "rope-dx",
    "multiplier",
    "scale",
    "scale-dx",
    "mask",
    "mask-dx",
    "softmax",
    "softmax-dx",
    "embed",
    "embed-dw",
    "position",
    "position-dw",
    "cross-entropy",
    "cross-entropy-dx",
];

/// How a rank runs its graph.
struct Reading<'a> {
    stack: &'a Stack,
    attention: AttentionKernel,
    fused_norm: bool,
    gated: bool,
    width: u64,
}

impl Work {
    /// The work of a rank among `tensor` ranks that train `spec` at `seq_len` tokens.
    ///
    /// # Errors
    /// What does not divide, or the dimension that a graph refuses, as a sentence.
    pub fn new(
        spec: &ModelSpec,
        tensor: u64,
        seq_len: u64,
        stack: &Stack,
        attention: AttentionKernel,
        fused_norm: bool,
    ) -> Result<Work, String> {
        let mut rank = rank_spec(spec, tensor)?;
        rank.vocab = vocabulary_rows(spec.vocab_padded_to.unwrap_or(spec.vocab), tensor, stack);
        let dims = Dims { batch: 1, seq: seq_len, cached: 0 };
        let of = |policy| training(&rank, dims, &Policy::Uniform(policy)).map_err(|error| error.to_string());
        let (core, full) = (of(Recompute::Selective)?, of(Recompute::Full)?);
        let reading = Reading { stack, attention, fused_norm, gated: spec.mlp.gated, width: rank.d_model };
        let whole = of(Recompute::None)?;
        Ok(reading.work(&whole, &core, &full))
    }
}

impl Reading<'_> {
    fn work(&self, whole: &Training, core: &Training, full: &Training) -> Work {
        let graph = &core.graph;
        let (layer, backward) = (graph.layer(), &graph.functions[1]);
        let again = |node: &Node| Phase::of(graph, backward, node) == Phase::Recompute;
        let names: Vec<&str> =
            full.recompute.segments.iter().flat_map(|s| s.nodes.iter().map(String::as_str)).collect();
        let repeated = |node: &Node| self.stack.repeats_whole_layer || names.contains(&node.name.as_str());
        let cheap = |node: &Node| matches!(node.op, Op::Norm { .. } | Op::Activation(_) | Op::Mul);
        let flash = self.attention.flash();
        let mut forward = self.pass(graph, layer, false, |_| true);
        let mut back =
            self.pass(graph, backward, true, |node| !again(node) || (flash && contracts(&node.op)));
        let mut full_pass = self.pass(graph, layer, false, repeated);
        let inside = |node: &Node| attends(layer, node);
        let mut selective = match (flash, self.stack.repeats_whole_layer) {
            (true, _) => self.pass(graph, layer, false, cheap),
            (false, true) => self.pass(graph, layer, false, inside),
            (false, false) => self.pass(graph, backward, false, again),
        };
        self.extras(graph, [&mut forward, &mut full_pass], &mut back, &mut selective);
        Work {
            kept: self.kept(whole, core, full),
            forward,
            backward: back,
            selective,
            full: full_pass,
            embedding: self.embedding(graph),
            head: self.head(graph),
        }
    }

    /// The ops of a function that `wanted` names.
    fn pass(
        &self,
        graph: &Graph,
        function: &Function,
        backward: bool,
        wanted: impl Fn(&Node) -> bool,
    ) -> PassWork {
        let mut pass = PassWork::default();
        let mut merged: BTreeMap<(Side, bool), Linear> = BTreeMap::new();
        let mut sums = 0usize;
        for node in function.nodes.iter().filter(|node| wanted(node)) {
            if let Some(linear) = linear(function, node) {
                // Queries, keys and values are one product, and so are their derivatives.
                if shared(&node.name) {
                    let known =
                        merged.entry((linear.side, true)).or_insert(Linear { outputs: 0.0, ..linear });
                    sums += usize::from(linear.side == Side::Input && known.outputs > 0.0);
                    known.outputs += linear.outputs;
                } else {
                    pass.linears.push(linear);
                }
            } else if contracts(&node.op) {
                pass.core.push(contraction(graph, function, node));
            } else if node.op == Op::Add && backward && sums > 0 {
                sums -= 1;
            } else {
                self.row(graph, function, node, backward, &mut pass);
            }
        }
        pass.linears.extend(merged.into_values());
        pass
    }

    /// Adds the bytes of a row kernel.
    fn row(&self, graph: &Graph, function: &Function, node: &Node, backward: bool, pass: &mut PassWork) {
        let of_scores = function.ty(node.output).shape.len() == 4;
        let Some(key) = self.key(&node.op, backward, of_scores) else { return };
        let of_norm = matches!(node.op, Op::Backward(Backward::ColumnSum)) && node.name.contains("norm");
        if of_norm {
            return;
        }
        let elements = match node.op {
            Op::Backward(Backward::ColumnSum)
            | Op::Backward(Backward::CrossEntropy)
            | Op::Backward(Backward::PositionDw { .. }) => function.ty(node.inputs[0]).elements(),
            Op::Backward(Backward::NormDw { .. }) => function.ty(node.inputs[0]).elements(),
            _ => function.ty(node.output).elements(),
        } as f64;
        let own = function.node_work(node, graph).bytes() as f64;
        let bytes = self.bytes(key).map_or(own, |each| each * elements);
        match node.op {
            _ if of_scores => pass.score_bytes += bytes,
            Op::Norm { .. }
            | Op::Backward(Backward::NormDx { .. })
            | Op::Backward(Backward::NormDw { .. })
            | Op::Add => pass.stream_bytes += bytes,
            Op::Bias | Op::Backward(Backward::ColumnSum)
                if node.name.starts_with("attn.out") || node.name.starts_with("mlp.down") =>
            {
                pass.stream_bytes += bytes;
            }
            _ => pass.split_bytes += bytes,
        }
    }

    /// What the stack says of an op, by its name in stack files.
    fn bytes(&self, key: &str) -> Option<f64> {
        let unfused = self.attention == AttentionKernel::Unfused;
        let of_norm = self.stack.bytes_unfused_norm.get(key).filter(|_| !self.fused_norm);
        let of_attention = self.stack.bytes_unfused_attention.get(key).filter(|_| unfused);
        of_norm.or(of_attention).or_else(|| self.stack.bytes.get(key)).copied()
    }

    /// The name of a row kernel in stack files; `None` for ops without traffic of their own. Sums of gradients over
    /// micro-batches are priced with the optimizer ([`Stack::accumulate_traffic`]).
    fn key(&self, op: &Op, backward: bool, of_scores: bool) -> Option<&'static str> {
        Some(match (op, backward) {
            (Op::Norm { .. }, _) => "norm",
            (Op::Backward(Backward::NormDx { .. }), _) => "norm-dx",
            (Op::Backward(Backward::NormDw { .. }), _) => "norm-dw",
            (Op::Add, false) => "add",
            (Op::Add, true) => "add-sum",
            (Op::Bias, _) => "bias",
            (Op::Backward(Backward::ColumnSum), _) => "column-sum",
            (Op::Activation(_), _) if self.gated => "gate",
            (Op::Backward(Backward::ActivationDx(_)), _) if self.gated => "gate-dx",
            (Op::Activation(_), _) => "activation",
            (Op::Backward(Backward::ActivationDx(_)), _) => "activation-dx",
            (Op::Mul, false) => "mul",
            (Op::Mul, true) => "mul-dx",
            (Op::Rope { .. }, _) => "rope",
            (Op::Backward(Backward::RopeDx { .. }), _) => "rope-dx",
            (Op::Scale { .. }, _) if !of_scores => "multiplier",
            (Op::Scale { .. }, false) => "scale",
            (Op::Scale { .. }, true) => "scale-dx",
            (Op::Mask { .. }, _) => "mask",
            (Op::Backward(Backward::MaskDx { .. }), _) => "mask-dx",
            (Op::Softmax, _) => "softmax",
            (Op::Backward(Backward::SoftmaxDx), _) => "softmax-dx",
            (Op::Embed, _) => "embed",
            (Op::Backward(Backward::EmbedDw { .. }), _) => "embed-dw",
            (Op::Position { .. }, _) => "position",
            (Op::Backward(Backward::PositionDw { .. }), _) => "position-dw",
            (Op::Backward(Backward::CrossEntropy), _) => "cross-entropy",
            (Op::Backward(Backward::CrossEntropyDx), _) => "cross-entropy-dx",
            _ => return None,
        })
    }

    /// Dropout and copies, which a framework runs and the graph has not.
    fn extras(
        &self,
        graph: &Graph,
        forward: [&mut PassWork; 2],
        backward: &mut PassWork,
        again: &mut PassWork,
    ) {
        let (stack, layer) = (self.stack, graph.layer());
        let outputs = |wanted: fn(&Node) -> bool| -> f64 {
            let wanted = layer.nodes.iter().filter(|node| wanted(node));
            wanted.map(|node| layer.ty(node.output).elements() as f64).sum()
        };
        let residuals = outputs(|node| node.op == Op::Add);
        let scores = outputs(|node| node.op == Op::Softmax);
        let heads = outputs(|node| shared(&node.name) && node.op == Op::Linear);
        let sum = |pick: fn(&Traffic) -> f64| {
            (
                pick(&stack.dropout.residual) * residuals,
                pick(&stack.dropout.scores) * scores,
                pick(&stack.layout) * heads,
            )
        };
        let (stream, dropped, copied) = sum(|traffic| traffic.forward);
        for pass in forward {
            pass.stream_bytes += stream;
            pass.score_bytes += dropped;
            pass.split_bytes += copied;
        }
        if !again.core.is_empty() {
            again.score_bytes += dropped;
        }
        let (stream, dropped, copied) = sum(|traffic| traffic.backward);
        backward.stream_bytes += stream;
        backward.score_bytes += dropped;
        backward.split_bytes += copied;
    }

    /// What a layer keeps by policy: the slots of the differentiated graphs, and what frameworks keep beside them.
    fn kept(&self, whole: &Training, core: &Training, full: &Training) -> [Kept; 3] {
        let memory = &self.stack.memory;
        let layer = whole.graph.layer();
        let elements = |wanted: fn(&Node) -> bool| -> f64 {
            let wanted = layer.nodes.iter().filter(|node| wanted(node));
            wanted.map(|node| layer.ty(node.output).elements() as f64).sum()
        };
        let (stream, scores) = (elements(|node| node.op == Op::Add), elements(|node| node.op == Op::Softmax));
        let norms = elements(|node| matches!(node.op, Op::Norm { .. }));
        let unfused = if self.fused_norm { 0.0 } else { memory.unfused_norm };
        // Masks of dropout take a byte each. Scores go through dropout even where it drops nothing: what it writes (2) and
        // its mask (1) are kept beside the softmax (torch's native_dropout writes both at p = 0).
        let beside = Kept { stream: memory.dropout * stream + unfused * norms, split: 0.0 };
        let own = match self.attention {
            AttentionKernel::Unfused => 6.0 * scores,
            _ => 3.0 * scores,
        };
        // Maximum and sum of each row of scores; FlashAttention 1 works on packed copies of queries and output.
        let length = layer
            .nodes
            .iter()
            .find(|node| node.op == Op::Softmax)
            .map_or(1, |node| layer.ty(node.output).shape[3]);
        let attended = elements(|node| matches!(node.op, Op::Values { .. }));
        let packed = if self.attention == AttentionKernel::Flash1 { 4.0 * attended } else { 0.0 };
        let statistics = Kept { stream: 0.0, split: 4.0 * scores / length as f64 + packed };
        let of =
            |training: &Training, wanted: &dyn Fn(&Slot) -> bool| slots(layer, &training.graph.slots, wanted);
        let cheap = |slot: &Slot| {
            let made = layer.nodes.iter().find(|node| node.name == slot.name);
            made.is_some_and(|node| matches!(node.op, Op::Norm { .. } | Op::Activation(_) | Op::Mul))
        };
        let full = of(full, &|_| true);
        match self.attention.flash() {
            true => [
                of(core, &|_| true) + beside + statistics,
                of(core, &|slot| !cheap(slot))
                    + Kept { stream: memory.dropout * stream, split: 0.0 }
                    + statistics,
                full,
            ],
            false => [
                of(whole, &|_| true) + beside + Kept { stream: 0.0, split: own },
                of(core, &|_| true) + beside,
                full,
            ],
        }
    }

    fn embedding(&self, graph: &Graph) -> (PassWork, PassWork) {
        let main = graph.main();
        let forward =
            self.pass(graph, main, false, |node| matches!(node.op, Op::Embed | Op::Position { .. }));
        let mut backward = self.pass(graph, main, true, |node| {
            matches!(
                node.op,
                Op::Backward(Backward::EmbedDw { .. }) | Op::Backward(Backward::PositionDw { .. })
            )
        });
        let mut forward = forward;
        let elements = graph.dims.tokens() as f64 * self.width as f64;
        forward.split_bytes += self.stack.dropout.residual.forward * elements;
        backward.split_bytes += self.stack.dropout.residual.backward * elements;
        (forward, backward)
    }

    fn head(&self, graph: &Graph) -> (PassWork, PassWork) {
        let main = graph.main();
        let ends = |node: &Node| {
            !matches!(
                node.op,
                Op::Embed
                    | Op::Position { .. }
                    | Op::Backward(Backward::EmbedDw { .. })
                    | Op::Backward(Backward::PositionDw { .. })
            )
        };
        let loss = main
            .nodes
            .iter()
            .position(|node| node.op == Op::Backward(Backward::CrossEntropy))
            .unwrap_or(main.nodes.len());
        let place = |wanted: &Node| main.nodes.iter().position(|node| node.name == wanted.name).unwrap_or(0);
        let forward = self.pass(graph, main, false, |node| ends(node) && place(node) <= loss);
        let backward = self.pass(graph, main, true, |node| ends(node) && place(node) > loss);
        (forward, backward)
    }
}

/// Whether a linear layer reads the same value as the two beside it.
fn shared(name: &str) -> bool {
    ["attn.q", "attn.k", "attn.v"]
        .iter()
        .any(|stem| name.strip_prefix(stem).is_some_and(|rest| ["", ".dx", ".dw", ".again"].contains(&rest)))
}

fn linear(function: &Function, node: &Node) -> Option<Linear> {
    let shape = |operand: usize| &function.ty(node.inputs[operand]).shape;
    let (side, outputs, inputs) = match node.op {
        Op::Linear => (Side::Forward, shape(1)[0], shape(1)[1]),
        Op::Backward(Backward::LinearDx) => (Side::Input, shape(1)[0], shape(1)[1]),
        Op::Backward(Backward::LinearDw) => (Side::Weight, *shape(0).last()?, *shape(1).last()?),
        _ => return None,
    };
    Some(Linear { side, inputs: inputs as f64, outputs: outputs as f64 })
}

/// Whether a forward node belongs to attention's core.
fn attends(layer: &Function, node: &Node) -> bool {
    contracts(&node.op) || layer.ty(node.output).shape.len() == 4
}

fn contracts(op: &Op) -> bool {
    matches!(op, Op::Scores { .. } | Op::Values { .. } | Op::Backward(Backward::ValuesDv { .. }))
}

fn contraction(graph: &Graph, function: &Function, node: &Node) -> Contraction {
    let work = function.node_work(node, graph);
    Contraction {
        flops: work.matmul_flops as f64,
        bytes: work.bytes() as f64,
        over_head: matches!(node.op, Op::Scores { .. }),
    }
}

/// Bytes of slots, by whether sequence parallelism or tensor parallelism splits them.
fn slots(layer: &Function, slots: &[Slot], wanted: &dyn Fn(&Slot) -> bool) -> Kept {
    let mut kept = Kept::default();
    for slot in slots.iter().filter(|slot| wanted(slot)) {
        let bytes = slot.ty.bytes() as f64;
        match layer.nodes.iter().find(|node| node.name == slot.name).map(|node| &node.op) {
            None | Some(Op::Add | Op::Norm { .. }) => kept.stream += bytes,
            Some(_) => kept.split += bytes,
        }
    }
    kept
}
