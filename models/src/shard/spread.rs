//! Rewrites a stage for one rank of its tensor-parallel group: every op on what the rank holds of its operands.

use super::ShardError;
use super::layout::{Axis, Layout, Splits};
use super::part::Part;
use crate::graph::{Function, Graph, GraphError, Node, Param, TensorType, Value, ValueId};
use crate::op::{Op, Sharded};
use std::collections::BTreeMap;

/// The graph of one rank, and the parts of its parameters.
pub(super) fn spread(
    graph: &Graph,
    ranks: u64,
    rank: u64,
) -> Result<(Graph, BTreeMap<String, Part>), ShardError> {
    let splits = if ranks > 1 { Some(Splits::new(graph, ranks, rank)?) } else { None };
    let mut context = Context { graph, splits, rank, params: Vec::new(), parts: BTreeMap::new() };
    let functions: Vec<Function> =
        graph.functions.iter().map(|f| Rank::new(&mut context, f).function()).collect::<Result<_, _>>()?;
    let Context { params, parts, .. } = context;
    Ok((Graph { functions, params, ..graph.clone() }, parts))
}

struct Context<'g> {
    graph: &'g Graph,
    /// None for a group of one rank: nothing is split.
    splits: Option<Splits>,
    rank: u64,
    /// Those that this rank has, as it has them.
    params: Vec<Param>,
    parts: BTreeMap<String, Part>,
}

/// What the rank holds of a value of the whole function.
#[derive(Clone, Debug)]
enum Held {
    /// A value of the rank's function.
    Value(ValueId, Layout),
    /// A whole value plus a summand: the sum over ranks is still to be formed. The name is that of the addition.
    Sum { whole: ValueId, partial: ValueId, name: String },
}

/// One function while it is rewritten.
struct Rank<'a, 'g> {
    context: &'a mut Context<'g>,
    whole: &'g Function,
    made: Function,
    held: BTreeMap<ValueId, Held>,
}

type Made = Result<Held, ShardError>;

impl<'a, 'g> Rank<'a, 'g> {
    fn new(context: &'a mut Context<'g>, whole: &'g Function) -> Rank<'a, 'g> {
        let made = Function {
            name: whole.name.clone(),
            per_layer: whole.per_layer,
            arguments: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            results: Vec::new(),
        };
        Rank { context, whole, made, held: BTreeMap::new() }
    }

    fn function(mut self) -> Result<Function, ShardError> {
        for argument in &self.whole.arguments {
            let id = self.value(self.whole.ty(*argument).clone());
            self.made.arguments.push(id);
            self.held.insert(*argument, Held::Value(id, Layout::Whole));
        }
        for node in &self.whole.nodes {
            let held = self.node(node)?;
            self.held.insert(node.output, held);
        }
        for result in &self.whole.results {
            let id = match self.held(*result) {
                Held::Value(id, Layout::Split(Axis::Vocab)) => {
                    let width = self.whole.ty(*result).last().unwrap_or(0);
                    let name = format!("{}.all_gather", self.maker(*result));
                    self.push(&name, Sharded::AllGather { width }.into(), &[id])?
                }
                _ => self.needs_whole(*result)?,
            };
            self.made.results.push(id);
        }
        Ok(self.made)
    }

    /// Name of the node that makes a value.
    fn maker(&self, value: ValueId) -> String {
        let node = self.whole.nodes.iter().find(|node| node.output == value);
        node.map_or_else(|| self.whole.name.clone(), |node| node.name.clone())
    }

    fn value(&mut self, ty: TensorType) -> ValueId {
        self.made.values.push(Value { ty });
        ValueId(self.made.values.len() - 1)
    }

    fn held(&self, id: ValueId) -> Held {
        self.held[&id].clone()
    }

    /// Adds a node whose type follows from its operands.
    fn push(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, ShardError> {
        let operands: Vec<&TensorType> = inputs.iter().map(|id| self.made.ty(*id)).collect();
        let ty = op.result(&operands).map_err(|what| GraphError::Shape { node: name.into(), what })?;
        Ok(self.declared(name, op, inputs, ty))
    }

    fn declared(&mut self, name: &str, op: Op, inputs: &[ValueId], ty: TensorType) -> ValueId {
        let output = self.value(ty);
        self.made.nodes.push(Node { name: name.into(), op, inputs: inputs.to_vec(), output });
        output
    }

    /// The whole of a value, summed over the ranks where they hold summands.
    fn needs_whole(&mut self, id: ValueId) -> Result<ValueId, ShardError> {
        let name = self.maker(id);
        let found = match self.held(id) {
            Held::Value(value, Layout::Whole) => return Ok(value),
            Held::Value(value, Layout::Partial) => self.sum(&name, value)?,
            Held::Sum { whole, partial, name } => {
                let sum = self.sum(&name, partial)?;
                self.push(&name, Op::Add, &[whole, sum])?
            }
            Held::Value(_, Layout::Split(axis)) => {
                let what = format!("its result is split by {axis:?} where all of it is needed");
                return Err(ShardError::Unsupported { node: name, what });
            }
        };
        self.held.insert(id, Held::Value(found, Layout::Whole));
        Ok(found)
    }

    fn sum(&mut self, name: &str, partial: ValueId) -> Result<ValueId, ShardError> {
        self.push(&format!("{name}.all_reduce"), Sharded::AllReduce.into(), &[partial])
    }

    /// What an op works on that takes a value in parts as it is; summands are summed.
    fn as_is(&mut self, id: ValueId) -> Result<(ValueId, Layout), ShardError> {
        match self.held(id) {
            Held::Value(value, layout @ (Layout::Whole | Layout::Split(_))) => Ok((value, layout)),
            _ => Ok((self.needs_whole(id)?, Layout::Whole)),
        }
    }

    fn node(&mut self, node: &Node) -> Made {
        match &node.op {
            Op::Param { param } => Ok(self.param(node, *param)),
            Op::Embed => self.embed(node),
            Op::Linear => self.linear(node),
            Op::Add => self.add(node),
            Op::Bias | Op::Scale { .. } | Op::LastToken => self.linear_map(node),
            Op::Scores { .. } | Op::Values { .. } => self.attention(node),
            Op::Mask { alibi: Some(_), .. } if self.context.splits.is_some() => {
                let what = "ALiBi's slopes count the heads of the whole model: not with tensor parallelism";
                Err(ShardError::Unsupported { node: node.name.clone(), what: what.into() })
            }
            Op::Mul
            | Op::Activation(_)
            | Op::Rope { .. }
            | Op::KvAppend { .. }
            | Op::Mask { .. }
            | Op::Softmax => self.pointwise(node),
            Op::Sharded(Sharded::Receive { .. }) => {
                let ty = self.whole.ty(node.output).clone();
                Ok(Held::Value(self.declared(&node.name, node.op.clone(), &[], ty), Layout::Whole))
            }
            Op::Position { .. } | Op::Norm { .. } | Op::Repeat { .. } | Op::Sharded(_) => {
                self.on_wholes(node)
            }
            Op::Backward(_) => {
                let what = "training steps are not spread yet".into();
                Err(ShardError::Unsupported { node: node.name.clone(), what })
            }
        }
    }

    fn param(&mut self, node: &Node, param: usize) -> Held {
        let whole = &self.context.graph.params[param];
        let mut ty = whole.ty.clone();
        let (layout, part) = match &self.context.splits {
            Some(splits) => splits.param(&whole.name, &ty, self.context.rank),
            None => (Layout::Whole, None),
        };
        if let Some(part) = part {
            ty.shape[part.axis] = part.held;
            self.context.parts.insert(whole.name.clone(), part);
        }
        let known = self.context.params.iter().position(|p| p.name == whole.name);
        let param = known.unwrap_or_else(|| {
            self.context.params.push(Param { ty: ty.clone(), ..whole.clone() });
            self.context.params.len() - 1
        });
        Held::Value(self.declared(&node.name, Op::Param { param }, &[], ty), layout)
    }

    /// A lookup in the rank's rows of the table gives a summand.
    fn embed(&mut self, node: &Node) -> Made {
        let (ids, (table, layout)) = (self.needs_whole(node.inputs[0])?, self.as_is(node.inputs[1])?);
        let first = match (layout, self.param_part(node, 1)) {
            (Layout::Split(Axis::Vocab), Some(part)) => part.start,
            _ => return Ok(Held::Value(self.push(&node.name, Op::Embed, &[ids, table])?, Layout::Whole)),
        };
        let found = self.push(&node.name, Sharded::EmbedPart { first }.into(), &[ids, table])?;
        Ok(Held::Value(found, Layout::Partial))
    }

    /// The part of the parameter that an operand of a node is.
    fn param_part(&self, node: &Node, operand: usize) -> Option<Part> {
        let maker = self.whole.nodes.iter().find(|maker| maker.output == node.inputs[operand])?;
        let Op::Param { param } = maker.op else { return None };
        self.context.parts.get(&self.context.graph.params[param].name).copied()
    }

    /// Rows of the weight split: the result is split. Columns split, as the operand is: the result is a summand.
    fn linear(&mut self, node: &Node) -> Made {
        let ((x, x_layout), (w, w_layout)) = (self.as_is(node.inputs[0])?, self.as_is(node.inputs[1])?);
        let axis = self.param_part(node, 1).map(|part| part.axis);
        let layout = match (x_layout, w_layout, axis) {
            (Layout::Whole, Layout::Whole, _) => Layout::Whole,
            (Layout::Whole, Layout::Split(by), Some(0)) => Layout::Split(by),
            (Layout::Split(a), Layout::Split(b), Some(1)) if a == b => Layout::Partial,
            _ => return Err(mismatch(node, x_layout, w_layout)),
        };
        Ok(Held::Value(self.push(&node.name, Op::Linear, &[x, w])?, layout))
    }

    /// A sum of summands is a summand; a whole value joins when the sum over ranks is formed.
    fn add(&mut self, node: &Node) -> Made {
        let name = node.name.clone();
        match [self.held(node.inputs[0]), self.held(node.inputs[1])] {
            [Held::Value(a, Layout::Partial), Held::Value(b, Layout::Partial)] => {
                Ok(Held::Value(self.push(&name, Op::Add, &[a, b])?, Layout::Partial))
            }
            [Held::Value(whole, Layout::Whole), Held::Value(partial, Layout::Partial)]
            | [Held::Value(partial, Layout::Partial), Held::Value(whole, Layout::Whole)] => {
                Ok(Held::Sum { whole, partial, name })
            }
            [Held::Sum { whole, partial, name: first }, Held::Value(more, Layout::Partial)]
            | [Held::Value(more, Layout::Partial), Held::Sum { whole, partial, name: first }] => {
                let partial = self.push(&first, Op::Add, &[partial, more])?;
                Ok(Held::Sum { whole, partial, name })
            }
            _ => self.pointwise(node),
        }
    }

    /// What commutes with a sum over ranks, when all operands are summands.
    fn linear_map(&mut self, node: &Node) -> Made {
        let summand = |id: &ValueId| match self.held(*id) {
            Held::Value(x, Layout::Partial) => Some(x),
            _ => None,
        };
        match node.inputs.iter().map(summand).collect::<Option<Vec<_>>>() {
            Some(inputs) => {
                Ok(Held::Value(self.push(&node.name, node.op.clone(), &inputs)?, Layout::Partial))
            }
            None => self.pointwise(node),
        }
    }

    /// Operands in the same layout, which is the result's.
    fn pointwise(&mut self, node: &Node) -> Made {
        let operands: Vec<(ValueId, Layout)> =
            node.inputs.iter().map(|id| self.as_is(*id)).collect::<Result<_, _>>()?;
        let (inputs, layouts): (Vec<ValueId>, Vec<Layout>) = operands.into_iter().unzip();
        if let Some(other) = layouts.iter().find(|layout| **layout != layouts[0]) {
            return Err(mismatch(node, layouts[0], *other));
        }
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &inputs)?, layouts[0]))
    }

    fn on_wholes(&mut self, node: &Node) -> Made {
        let inputs: Vec<ValueId> =
            node.inputs.iter().map(|id| self.needs_whole(*id)).collect::<Result<_, _>>()?;
        Ok(Held::Value(self.push(&node.name, node.op.clone(), &inputs)?, Layout::Whole))
    }

    /// Products of heads: query heads with the key-value heads that the rank holds next to them.
    fn attention(&mut self, node: &Node) -> Made {
        let ((a, left), (b, right)) = (self.as_is(node.inputs[0])?, self.as_is(node.inputs[1])?);
        let (layout, op) = match (left, right, &self.context.splits) {
            (Layout::Whole, Layout::Whole, _) => (Layout::Whole, node.op.clone()),
            (Layout::Split(Axis::Heads), Layout::Split(Axis::KvHeads), Some(splits)) => {
                let (heads, kv_heads) = splits.heads();
                let op = match node.op {
                    Op::Scores { .. } => Op::Scores { heads, kv_heads },
                    _ => Op::Values { heads, kv_heads },
                };
                (Layout::Split(Axis::Heads), op)
            }
            _ => return Err(mismatch(node, left, right)),
        };
        Ok(Held::Value(self.push(&node.name, op, &[a, b])?, layout))
    }
}

fn mismatch(node: &Node, a: Layout, b: Layout) -> ShardError {
    let what = format!("its operands are {a:?} and {b:?}, which do not go together");
    ShardError::Unsupported { node: node.name.clone(), what }
}
