//! Reads a rank's differentiated graph as a software stack runs it: which op becomes which product, contraction or
//! row kernel, and what each moves.

use super::job::AttentionKernel;
use super::roles::{Role, Roles};
use super::stack::{Selective, Stack, Traffic};
use super::work::{Contraction, Linear, PassWork, Side, Work};
use lapidary_models::autodiff::Training;
use lapidary_models::autodiff::work::Phase;
use lapidary_models::op::{Backward, Op};
use lapidary_models::{Function, Graph, Node};
use std::collections::BTreeMap;

/// How a rank runs its graph.
pub(super) struct Reading<'a> {
    pub stack: &'a Stack,
    pub attention: AttentionKernel,
    pub fused_norm: bool,
    pub gated: bool,
    pub width: u64,
    pub roles: Roles,
}

impl Reading<'_> {
    /// The work of a rank by its graphs without recomputation, with selective and with full.
    pub fn work(&self, whole: &Training, core: &Training, full: &Training) -> Work {
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
        let second = every_second_product(layer);
        let but_halved = |node: &Node| {
            !contracts(&node.op) && (node.op != Op::Linear || second.contains(&node.name.as_str()))
        };
        let mut selective = match (flash, self.stack.repeats_whole_layer) {
            (true, _) if self.stack.selective == Selective::EverySecondProduct => {
                self.pass(graph, layer, false, but_halved)
            }
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
                if self.roles.role(node) == Role::IntoCore {
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
        // The kernel of a norm's derivative by its weight sums its bias too.
        if matches!(node.op, Op::Backward(Backward::ColumnSum)) && self.roles.role(node) == Role::Norm {
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
            Op::Bias | Op::Backward(Backward::ColumnSum) if self.roles.role(node) == Role::OntoStream => {
                pass.stream_bytes += bytes;
            }
            _ if of_mlp(node) => pass.inner_bytes += bytes,
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
        let outputs = |wanted: &dyn Fn(&Node) -> bool| -> f64 {
            let wanted = layer.nodes.iter().filter(|node| wanted(node));
            wanted.map(|node| layer.ty(node.output).elements() as f64).sum()
        };
        let residuals = outputs(&|node| node.op == Op::Add);
        let scores = outputs(&|node| node.op == Op::Softmax);
        let heads = outputs(&|node| node.op == Op::Linear && self.roles.role(node) == Role::IntoCore);
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

/// Names of the second, fourth, .. product of a layer.
fn every_second_product(layer: &Function) -> Vec<&str> {
    let products = layer.nodes.iter().filter(|node| node.op == Op::Linear);
    products.skip(1).step_by(2).map(|node| node.name.as_str()).collect()
}

fn linear(function: &Function, node: &Node) -> Option<Linear> {
    let shape = |operand: usize| &function.ty(node.inputs[operand]).shape;
    let (side, outputs, inputs) = match node.op {
        Op::Linear => (Side::Forward, shape(1)[0], shape(1)[1]),
        Op::Backward(Backward::LinearDx) => (Side::Input, shape(1)[0], shape(1)[1]),
        Op::Backward(Backward::LinearDw) => (Side::Weight, *shape(0).last()?, *shape(1).last()?),
        _ => return None,
    };
    Some(Linear { side, inputs: inputs as f64, outputs: outputs as f64, mlp: of_mlp(node) })
}

/// Whether a node is of the MLP: it, its derivatives and what repeats it are called after it.
pub(super) fn of_mlp(node: &Node) -> bool {
    node.name.starts_with("mlp.")
}

/// Whether a forward node belongs to attention's core.
fn attends(layer: &Function, node: &Node) -> bool {
    contracts(&node.op) || layer.ty(node.output).shape.len() == 4
}

/// Whether an op is a batched product of attention.
pub(super) fn contracts(op: &Op) -> bool {
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
