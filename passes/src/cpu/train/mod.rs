//! Emission of training programs: kernels of a training graph become steps of a [`TrainProgram`].
//!
//! What inference keeps in caches and packs for reading once, training keeps in slots and changes after every step, so
//! this is an emitter of its own. A gradient never exists on its own: the op that makes it adds into its buffer. A value
//! that is kept is written where it is kept. Attention whose softmax is computed again runs without a matrix of scores.

mod held;
mod rows;
mod scope;

use crate::attention_backward::Core;
use crate::cpu::parts::{Chain, chain};
use crate::cpu::{HostFunction, HostParam, LowerError, sizes};
use lapidary_models::autodiff::Training;
use lapidary_models::graph::Slot;
use lapidary_models::op::{Backward, Sharded};
use lapidary_models::{ModelSpec, Node, Op, ValueId};
use lapidary_runtime_cpu::program::train::{
    Heads, Kept, KeyOp, Lookup, Meeting, SCHEMA, TrainBuffer, TrainParameter, TrainProgram, TrainRotation,
    TrainStep, VERSION,
};
use lapidary_runtime_cpu::program::{
    BufferId, Mask, ParameterId, RowFn, RowOp, Sizes, StateSharding, Target, TrainShare,
};
use scope::Scope;
use std::collections::BTreeSet;

/// A training graph whose ops are grouped into kernels.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainModule {
    /// The model.
    pub model: Sizes,
    /// What layers keep.
    pub slots: Vec<Slot>,
    /// The functions in the graph's order, main last.
    pub functions: Vec<HostFunction>,
    /// Which part of the model it is; none for the whole of it. Its segments are found when steps are.
    pub share: Option<TrainShare>,
}

impl TrainModule {
    /// The module of a training graph without fusion.
    pub fn unfused(spec: &ModelSpec, training: &Training) -> TrainModule {
        let graph = &training.graph;
        let params = || graph.params.iter().map(|p| HostParam { name: p.name.clone(), scale: 1.0 }).collect();
        TrainModule {
            model: sizes(spec),
            slots: graph.slots.clone(),
            functions: graph.functions.iter().map(|f| HostFunction::unfused(f, params())).collect(),
            share: None,
        }
    }
}

/// The training program of a module; it still has to be checked.
///
/// # Errors
/// [`LowerError::Unsupported`] at an op that the host does not train.
pub fn lower_train(module: &TrainModule) -> Result<TrainProgram, LowerError> {
    Emitter { module, parameters: Vec::new(), rotations: Vec::new(), buffers: Vec::new() }.emit()
}

type Lowered<T> = Result<T, LowerError>;

fn unsupported<T>(node: &Node, what: impl Into<String>) -> Lowered<T> {
    Err(LowerError::Unsupported { node: node.name.clone(), what: what.into() })
}

/// A program while it is emitted.
struct Emitter<'m> {
    module: &'m TrainModule,
    parameters: Vec<TrainParameter>,
    rotations: Vec<TrainRotation>,
    buffers: Vec<TrainBuffer>,
}

impl<'m> Emitter<'m> {
    fn emit(mut self) -> Lowered<TrainProgram> {
        for slot in &self.module.slots {
            let (width, scores) = width_of(&slot.ty.shape);
            let kept = Some(Kept { first: slot.first, times: slot.times });
            let run = self.is_run(&slot.ty.shape);
            self.buffers.push(TrainBuffer { name: slot.name.clone(), width, scores, run, kept });
        }
        let Some(main) = self.module.functions.last() else {
            return Err(LowerError::Unsupported {
                node: self.module.model.name.clone(),
                what: "has no functions".into(),
            });
        };
        let mut scope = Scope::new(main);
        let mut body = self.steps(&mut scope)?;
        let share = self.module.share.clone().map(|share| {
            if share.sharding == StateSharding::Full && share.replicas > 1 {
                body = held::gathered(std::mem::take(&mut body));
            }
            TrainShare { segments: held::segments(&body), ..share }
        });
        Ok(TrainProgram {
            schema: SCHEMA.into(),
            version: VERSION,
            model: self.module.model.clone(),
            share,
            parameters: self.parameters,
            rotations: self.rotations,
            buffers: self.buffers,
            body,
        })
    }

    fn buffer(&mut self, name: &str, shape: &[u64]) -> BufferId {
        let (width, scores) = width_of(shape);
        let run = self.is_run(shape);
        self.buffers.push(TrainBuffer { name: name.into(), width, scores, run, kept: None });
        self.buffers.len() - 1
    }

    /// Whether a value of this shape has a rank's run of the rows: fewer than the tokens that main gets.
    fn is_run(&self, shape: &[u64]) -> bool {
        let main = self.module.functions.last().map(|main| &main.function);
        let ids = main.and_then(|main| main.arguments.first().map(|id| main.ty(*id)));
        match (shape, ids) {
            ([1, rows, _], Some(ids)) => self.module.share.is_some() && *rows != ids.elements(),
            _ => false,
        }
    }

    /// Where the result of a node goes: its slot, if it is kept.
    fn result(&mut self, scope: &mut Scope, node: &Node) -> BufferId {
        let id = match scope.slot_of(node.output) {
            Some(slot) => slot,
            None => {
                let shape = &scope.uses.function.ty(node.output).shape;
                self.buffer(&node.name, shape)
            }
        };
        scope.held.insert(node.output, id);
        id
    }

    fn steps(&mut self, scope: &mut Scope<'m>) -> Lowered<Vec<TrainStep>> {
        let mut steps = Vec::new();
        let saved = scope.uses.function.nodes.iter().filter_map(|node| match node.op {
            Op::Backward(Backward::Saved { slot }) => Some((node.output, slot)),
            _ => None,
        });
        let saved: Vec<(ValueId, BufferId)> = saved.collect();
        scope.held.extend(saved);
        for kernel in &scope.host.kernels {
            self.kernel(scope, kernel, &mut steps)?;
        }
        Ok(steps)
    }

    /// Cuts a kernel into steps: attention as a whole, products with what follows them, rows.
    fn kernel(&mut self, scope: &mut Scope<'m>, kernel: &[usize], steps: &mut Vec<TrainStep>) -> Lowered<()> {
        let inside: BTreeSet<usize> = kernel.iter().copied().collect();
        if let Some(core) = scope.cores.iter().find(|core| core.nodes == inside).cloned() {
            steps.push(self.attention_backward(scope, &core)?);
            return Ok(());
        }
        let chains: Vec<Chain> = inside.iter().filter_map(|n| chain(&scope.uses, &inside, *n)).collect();
        let mut rest: Vec<usize> = inside.iter().copied().collect();
        for chain in &chains {
            let whole = scope.chained(chain);
            rest.retain(|n| !whole.contains(n) || *n == chain.values);
        }
        // Products first, where they wait for nothing in the kernel: what follows them follows them all.
        let waits = |n: usize| {
            let mut operands = scope.uses.node(n).inputs.iter().filter_map(|value| scope.uses.maker(*value));
            operands.any(|maker| {
                inside.contains(&maker) && !matches!(scope.uses.node(maker).op, Op::Param { .. })
            })
        };
        rest.sort_by_key(|n| !scope.is_product(*n) || waits(*n));
        let mut at = 0;
        while let Some(n) = rest.get(at).copied() {
            if let Some(chain) = chains.iter().find(|chain| chain.values == n) {
                steps.push(self.attention(scope, chain)?);
                at += 1;
                continue;
            }
            let linears = rest[at..].iter().take_while(|n| scope.is_product(**n)).count();
            let rows = rest[at + linears..].iter().take_while(|n| scope.is_row(**n)).count();
            if linears + rows > 0 {
                let (products, behind) = rest[at..at + linears + rows].split_at(linears);
                steps.push(self.rows(scope, products, behind)?);
                at += linears + rows;
                continue;
            }
            steps.extend(self.single(scope, n)?);
            at += 1;
        }
        Ok(())
    }

    /// An op that is a step of its own, or none.
    fn single(&mut self, scope: &mut Scope<'m>, n: usize) -> Lowered<Vec<TrainStep>> {
        let node = scope.uses.node(n);
        let name = node.name.clone();
        let one = |step: TrainStep| Ok(vec![step]);
        match node.op {
            Op::Param { .. } | Op::Backward(Backward::Saved { .. } | Backward::CrossEntropy) => {
                Ok(Vec::new())
            }
            Op::Backward(Backward::Save { slot }) => Ok(self.save(scope, node, slot)?.into_iter().collect()),
            Op::Backward(Backward::Gradient { .. }) => match scope.adds_itself(node) {
                true => Ok(Vec::new()),
                false => unsupported(node, "a gradient that no product, sum or scatter makes"),
            },
            Op::Repeat { .. } => self.repeat(scope, node),
            Op::Backward(
                Backward::LinearDw
                | Backward::ColumnSum
                | Backward::NormDw { .. }
                | Backward::EmbedDw { .. }
                | Backward::PositionDw { .. },
            )
            | Op::Sharded(Sharded::EmbedPartDw { .. }) => self.gradients(scope, node),
            Op::Sharded(ref op) => one(self.meet(scope, node, op)?),
            Op::Backward(Backward::CrossEntropyDx) => {
                let logits = scope.buffer_of(node, node.inputs[0])?;
                one(TrainStep::Loss { name, logits, gradient: self.result(scope, node) })
            }
            Op::Scores { heads, kv_heads } => {
                let operands =
                    [scope.buffer_of(node, node.inputs[0])?, scope.buffer_of(node, node.inputs[1])?];
                let heads = Heads { heads, kv_heads };
                one(TrainStep::Scores { name, operands, out: self.result(scope, node), heads })
            }
            Op::Values { heads, kv_heads } => {
                let operands =
                    [scope.buffer_of(node, node.inputs[0])?, scope.buffer_of(node, node.inputs[1])?];
                let heads = Heads { heads, kv_heads };
                one(TrainStep::Values { name, operands, out: self.result(scope, node), heads })
            }
            Op::Backward(Backward::ValuesDv { heads, kv_heads }) => {
                let operands =
                    [scope.buffer_of(node, node.inputs[0])?, scope.buffer_of(node, node.inputs[1])?];
                let heads = Heads { heads, kv_heads };
                one(TrainStep::ValuesBackward { name, operands, out: self.result(scope, node), heads })
            }
            _ => one(self.keys(scope, node)?),
        }
    }

    /// What ranks say to each other. What is sent stays where it is.
    fn meet(&mut self, scope: &mut Scope, node: &Node, op: &Sharded) -> Lowered<TrainStep> {
        let op = match *op {
            Sharded::AllReduce => Meeting::AllReduce,
            Sharded::AllGather { .. } => Meeting::AllGather,
            Sharded::ReduceScatter { .. } => Meeting::ReduceScatter,
            Sharded::GatherRows { .. } => Meeting::GatherRows,
            Sharded::TakeRows { .. } => Meeting::TakeRows,
            Sharded::Take { first, length, .. } => Meeting::Take { first, length },
            Sharded::Send { stage, lane } => Meeting::Send { stage, lane },
            Sharded::Receive { stage, lane } => Meeting::Receive { stage, lane },
            Sharded::EmbedPart { .. } | Sharded::EmbedPartDw { .. } => {
                return unsupported(node, "is no meeting of ranks");
            }
        };
        let x = node.inputs.first().map(|x| scope.buffer_of(node, *x)).transpose()?;
        let out = match (op, x) {
            (Meeting::Send { .. }, Some(x)) => {
                scope.held.insert(node.output, x);
                x
            }
            _ => self.result(scope, node),
        };
        Ok(TrainStep::Meet { name: node.name.clone(), op, x, out })
    }

    fn keys(&mut self, scope: &mut Scope, node: &Node) -> Lowered<TrainStep> {
        let op = match node.op {
            Op::Scale { by, .. } => KeyOp::Scale { by },
            Op::Mask { causal, window, alibi, heads, .. } => {
                KeyOp::Mask(Mask { causal, window, alibi, heads })
            }
            Op::Backward(Backward::MaskDx { causal, window, .. }) => {
                KeyOp::MaskDx(Mask { causal, window, ..Mask::OPEN })
            }
            Op::Softmax => KeyOp::Softmax,
            Op::Backward(Backward::SoftmaxDx) => {
                KeyOp::SoftmaxDx { other: scope.buffer_of(node, node.inputs[1])? }
            }
            _ => return unsupported(node, format!("{} has no step on the host", node.op.name())),
        };
        let x = scope.buffer_of(node, node.inputs[0])?;
        let out = self.result(scope, node);
        Ok(TrainStep::Keys { name: node.name.clone(), x, out, heads: self.buffers[out].width, op })
    }

    /// A result lies in its slot already; an argument is copied there.
    fn save(&mut self, scope: &mut Scope, node: &Node, slot: BufferId) -> Lowered<Option<TrainStep>> {
        let from = scope.buffer_of(node, node.inputs[0])?;
        if from == slot {
            return Ok(None);
        }
        scope.held.insert(node.inputs[0], slot);
        Ok(Some(self.copy(&node.name, from, slot)))
    }

    fn copy(&self, name: &str, from: BufferId, to: BufferId) -> TrainStep {
        let mut function = RowFn::default();
        let value = function.push(self.buffers[from].width, RowOp::Buffer { buffer: from });
        function.send(value, Target::Buffer(to));
        TrainStep::Rows { name: name.into(), function }
    }

    /// The layers. What goes in is copied, since the loop overwrites it and others may read it.
    fn repeat(&mut self, scope: &mut Scope<'m>, node: &Node) -> Lowered<Vec<TrainStep>> {
        let Op::Repeat { function, first, times, reverse } = node.op else { return Ok(Vec::new()) };
        let given = scope.buffer_of(node, node.inputs[0])?;
        let carried = self.result(scope, node);
        let mut inner = Scope::new(&self.module.functions[function]);
        let [argument] = inner.uses.function.arguments[..] else {
            return unsupported(node, "a layer function takes one activation");
        };
        inner.held.insert(argument, carried);
        let body = self.steps(&mut inner)?;
        let result = inner.uses.function.results.first().and_then(|id| inner.held.get(id)).copied();
        let Some(yielded) = result else {
            return unsupported(node, "the layer function returns no activation");
        };
        let copy = self.copy(&format!("{}.start", node.name), given, carried);
        let layers = Kept { first, times };
        let name = node.name.clone();
        Ok(vec![copy, TrainStep::Repeat { name, layers, reverse, carried, yielded, body }])
    }

    fn parameter(&mut self, scope: &Scope, node: &Node, at: usize) -> Lowered<ParameterId> {
        let maker = node.inputs.get(at).and_then(|id| scope.uses.maker(*id)).map(|n| &scope.uses.node(n).op);
        match maker {
            Some(Op::Param { param }) => {
                let shape = scope.uses.function.ty(node.inputs[at]).shape.clone();
                Ok(self.intern(&scope.host.params[*param].name, shape))
            }
            _ => unsupported(node, format!("operand {at} is no parameter")),
        }
    }

    fn intern(&mut self, name: &str, shape: Vec<u64>) -> ParameterId {
        self.parameters.iter().position(|known| known.name == name).unwrap_or_else(|| {
            let per_layer = name.contains('*');
            self.parameters.push(TrainParameter { name: name.into(), per_layer, shape });
            self.parameters.len() - 1
        })
    }

    /// A product, sum or scatter that adds into the gradients behind it, once for each: biases of a parallel block share
    /// theirs.
    fn gradients(&mut self, scope: &Scope, node: &Node) -> Lowered<Vec<TrainStep>> {
        let params = scope.gradients_of(node.output);
        if params.is_empty() {
            return unsupported(node, "its result is needed for more than gradients");
        }
        params.into_iter().map(|param| self.gradient(scope, node, param)).collect()
    }

    fn gradient(&mut self, scope: &Scope, node: &Node, param: usize) -> Lowered<TrainStep> {
        let shape = scope.uses.function.ty(node.output).shape.clone();
        let parameter = self.intern(&scope.host.params[param].name, shape);
        let name = node.name.clone();
        let buffer = |at: usize| scope.buffer_of(node, node.inputs[at]);
        let width = scope.width(node.output);
        Ok(match node.op {
            Op::Backward(Backward::LinearDw) => {
                TrainStep::WeightGradient { name, dy: buffer(0)?, x: buffer(1)?, parameter }
            }
            Op::Backward(Backward::EmbedDw { .. }) => {
                TrainStep::TableGradient { name, dy: buffer(1)?, parameter, by: Lookup::Token, part: None }
            }
            Op::Sharded(Sharded::EmbedPartDw { first, .. }) => {
                let (dy, by, part) = (buffer(1)?, Lookup::Token, Some(first));
                TrainStep::TableGradient { name, dy, parameter, by, part }
            }
            Op::Backward(Backward::PositionDw { .. }) => {
                TrainStep::TableGradient { name, dy: buffer(0)?, parameter, by: Lookup::Position, part: None }
            }
            Op::Backward(Backward::NormDw { kind, eps }) => {
                // The normalised row times dy: a norm whose weight is dy.
                let mut function = RowFn::default();
                let x = function.push(width, RowOp::Buffer { buffer: buffer(0)? });
                let weight = function.push(width, RowOp::Buffer { buffer: buffer(1)? });
                let value = function.push(width, RowOp::Norm { x, weight, bias: None, kind, eps });
                function.send(value, Target::Buffer(0));
                TrainStep::ColumnGradient { name, function, parameter }
            }
            _ => {
                let mut function = RowFn::default();
                let value = function.push(width, RowOp::Buffer { buffer: buffer(0)? });
                function.send(value, Target::Buffer(0));
                TrainStep::ColumnGradient { name, function, parameter }
            }
        })
    }

    fn attention(&mut self, scope: &mut Scope, chain: &Chain) -> Lowered<TrainStep> {
        let (scores, values) = (scope.uses.node(chain.scores), scope.uses.node(chain.values));
        let Op::Scores { heads, kv_heads } = scores.op else {
            return unsupported(scores, "is not the start of an attention");
        };
        let buffer = |node: &Node, at: usize| scope.buffer_of(node, node.inputs[at]);
        let operands = [buffer(scores, 0)?, buffer(scores, 1)?, buffer(values, 1)?];
        let (scale, mask) = scope.factor_and_mask(&chain.before);
        let (name, out) = (values.name.clone(), self.result(scope, values));
        Ok(TrainStep::Attention { name, operands, out, heads: Heads { heads, kv_heads }, scale, mask })
    }

    fn attention_backward(&mut self, scope: &mut Scope, core: &Core) -> Lowered<TrainStep> {
        let first = scope.uses.node(core.results[0]);
        let mut operands = [0; 4];
        for (buffer, value) in operands.iter_mut().zip(core.operands) {
            *buffer = scope.buffer_of(first, value)?;
        }
        let (scale, mask) = scope.factor_and_mask(&core.before);
        let out = core.results.map(|n| self.result(scope, scope.uses.node(n)));
        let (heads, kv_heads) = core.heads;
        let name = "attn.backward".to_string();
        Ok(TrainStep::AttentionBackward {
            name,
            operands,
            out,
            heads: Heads { heads, kv_heads },
            scale,
            mask,
        })
    }
}

/// Values of a token, or heads where there is one value for each query and key.
fn width_of(shape: &[u64]) -> (u64, bool) {
    match shape {
        [_, heads, _, _] => (*heads, true),
        _ => (shape.last().copied().unwrap_or(1), false),
    }
}
