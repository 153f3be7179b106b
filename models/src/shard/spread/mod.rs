//! Rewrites a stage for one rank of its tensor-parallel group: every op on what the rank holds of its operands.

mod backward;
mod forward;
mod held;

use super::layout::{Axis, Layout, Splits};
use super::part::Part;
use super::{ShardError, Way};
use crate::graph::{Dims, Function, Graph, GraphError, Node, Param, Slot, TensorType, Value, ValueId};
use crate::op::{Op, Sharded};
use std::collections::{BTreeMap, BTreeSet};

/// What a rank has of a stage.
pub(super) struct Spread {
    /// What it computes.
    pub graph: Graph,
    /// Parameters that it holds in part.
    pub parts: BTreeMap<String, Part>,
    /// Parameters whose gradient here is a summand: the gradient is the sum over the group.
    pub summed: BTreeSet<String>,
    /// Parameters that an earlier rank of the group holds as well, all of what this rank holds of them.
    pub elsewhere: BTreeSet<String>,
}

/// The part of one rank of a group.
pub(super) fn spread(graph: &Graph, way: Way, ranks: u64, rank: u64) -> Result<Spread, ShardError> {
    let splits = if ranks > 1 { Some(Splits::new(graph, ranks, rank)?) } else { None };
    let rows = (way.sequence && ranks > 1).then(|| Rows::of(graph.dims, ranks, rank));
    let mut context = Context {
        graph,
        splits,
        rows,
        rank,
        params: Vec::new(),
        parts: BTreeMap::new(),
        summed: BTreeSet::new(),
        slots: graph.slots.clone(),
        kept: vec![None; graph.slots.len()],
    };
    let functions: Vec<Function> =
        graph.functions.iter().map(|f| Rank::new(&mut context, f).function()).collect::<Result<_, _>>()?;
    let elsewhere = context.elsewhere();
    let Context { params, parts, mut summed, slots, .. } = context;
    summed.retain(|name| params.iter().any(|param| param.name == *name));
    Ok(Spread { graph: Graph { functions, params, slots, ..graph.clone() }, parts, summed, elsewhere })
}

/// A rank's run of the rows of an activation.
#[derive(Clone, Copy, Debug)]
struct Rows {
    dims: Dims,
    ranks: u64,
    first: u64,
    held: u64,
}

impl Rows {
    fn of(dims: Dims, ranks: u64, rank: u64) -> Rows {
        let all = dims.tokens();
        let held = all.div_ceil(ranks);
        Rows { dims, ranks, first: held.saturating_mul(rank).min(all), held }
    }
}

struct Context<'g> {
    graph: &'g Graph,
    /// None for a group of one rank: nothing is split.
    splits: Option<Splits>,
    /// What the rank has of the rows between its parts of weights; none where it has all of them.
    rows: Option<Rows>,
    rank: u64,
    /// Those that this rank has, as it has them.
    params: Vec<Param>,
    parts: BTreeMap<String, Part>,
    summed: BTreeSet<String>,
    slots: Vec<Slot>,
    /// What the rank keeps of a slot's value.
    kept: Vec<Option<Layout>>,
}

impl Context<'_> {
    /// The rank's parameter of a parameter of the whole model, and how it is split.
    fn param(&mut self, param: usize) -> (usize, Layout) {
        let whole = &self.graph.params[param];
        let mut ty = whole.ty.clone();
        let (layout, part) = match &self.splits {
            Some(splits) => splits.param(&whole.name, &ty, self.rank),
            None => (Layout::Whole, None),
        };
        if let Some(part) = part {
            ty.shape[part.axis] = part.held;
            self.parts.insert(whole.name.clone(), part);
        }
        let known = self.params.iter().position(|p| p.name == whole.name);
        let place = known.unwrap_or_else(|| {
            self.params.push(Param { ty, ..whole.clone() });
            self.params.len() - 1
        });
        let shared = layout == Layout::Split(Axis::KvHeads) && self.splits.is_some_and(Splits::shares_keys);
        if shared && self.graph.mode == crate::graph::Mode::Train {
            self.summed.insert(whole.name.clone());
        }
        (place, layout)
    }

    /// What all ranks hold is the first one's; a key-value head is that of the first of those who share it.
    fn elsewhere(&self) -> BTreeSet<String> {
        let Some(splits) = &self.splits else { return BTreeSet::new() };
        let again = |param: &&Param| match splits.param(&param.name, &param.ty, self.rank).0 {
            Layout::Whole => self.rank > 0,
            Layout::Split(Axis::KvHeads) => splits.shares_keys() && !splits.first_of_its_keys(self.rank),
            _ => false,
        };
        self.params.iter().filter(again).map(|param| param.name.clone()).collect()
    }
}

/// What the rank holds of a value of the whole function.
#[derive(Clone, Debug)]
enum Held {
    /// A value of the rank's function.
    Value(ValueId, Layout),
    /// A value of all rows, or of the rank's rows, plus a summand: the sum over ranks is still to be formed. The name is
    /// that of the addition.
    Sum { base: (ValueId, Layout), partial: ValueId, name: String },
}

/// One function while it is rewritten.
struct Rank<'a, 'g> {
    context: &'a mut Context<'g>,
    whole: &'g Function,
    made: Function,
    held: BTreeMap<ValueId, Held>,
    /// All rows and columns of values of which the rank also holds a part.
    gathered: BTreeMap<ValueId, ValueId>,
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
        Rank { context, whole, made, held: BTreeMap::new(), gathered: BTreeMap::new() }
    }

    fn function(mut self) -> Result<Function, ShardError> {
        for argument in &self.whole.arguments {
            let ty = self.whole.ty(*argument).clone();
            let (ty, layout) = match self.context.rows {
                Some(rows) if self.whole.per_layer => (part_of_rows(&ty, rows), Layout::Rows),
                _ => (ty, Layout::Whole),
            };
            let id = self.value(ty);
            self.made.arguments.push(id);
            self.held.insert(*argument, Held::Value(id, layout));
        }
        for node in &self.whole.nodes {
            let held = self.node(node)?;
            self.held.insert(node.output, held);
        }
        for result in &self.whole.results {
            let id = match self.whole.per_layer {
                true => self.stream(*result)?,
                false => self.result(*result)?,
            };
            self.made.results.push(id);
        }
        Ok(self.made)
    }

    /// What main returns: whole values; of a stage that hands on what it makes, what it hands on.
    fn result(&mut self, id: ValueId) -> Result<ValueId, ShardError> {
        match self.held(id) {
            Held::Value(value, _) if self.context.graph.mode == crate::graph::Mode::Train => Ok(value),
            _ => self.needs_whole(id),
        }
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

    /// Adds a node whose type follows from its operands. A taken name gets a number.
    fn push(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, ShardError> {
        let operands: Vec<&TensorType> = inputs.iter().map(|id| self.made.ty(*id)).collect();
        let ty = op.result(&operands).map_err(|what| GraphError::Shape { node: name.into(), what })?;
        Ok(self.declared(name, op, inputs, ty))
    }

    fn declared(&mut self, name: &str, op: Op, inputs: &[ValueId], ty: TensorType) -> ValueId {
        let output = self.value(ty);
        let taken = |name: &str| self.made.nodes.iter().any(|node| node.name == name);
        let free = match matches!(op, Op::Param { .. }) || !taken(name) {
            true => name.to_string(),
            false => (2..).map(|n: u64| format!("{name}.{n}")).find(|name| !taken(name)).unwrap_or_default(),
        };
        self.made.nodes.push(Node { name: free, op, inputs: inputs.to_vec(), output });
        output
    }

    fn node(&mut self, node: &Node) -> Made {
        match &node.op {
            Op::Param { param } => Ok(self.param(node, *param)),
            Op::Embed => self.embed(node),
            Op::Linear => self.linear(node),
            Op::Add => self.add(node),
            Op::Bias | Op::Scale { .. } | Op::LastToken => self.linear_map(node),
            Op::Scores { .. } | Op::Values { .. } => self.attention(node),
            Op::Mask { alibi: Some(_), .. } => self.slopes(node),
            Op::Mul
            | Op::Activation(_)
            | Op::Rope { .. }
            | Op::KvAppend { .. }
            | Op::Mask { .. }
            | Op::Softmax => self.pointwise(node),
            Op::Sharded(Sharded::Receive { .. }) => Ok(self.receive(node)),
            Op::Norm { .. } => self.on_rows(node),
            Op::Repeat { .. } | Op::Sharded(Sharded::Send { .. }) => self.on_stream(node),
            Op::Position { .. } | Op::Sharded(_) => self.on_wholes(node),
            Op::Backward(op) => self.backward(node, op),
        }
    }
}

/// What a rank has of a value of all rows.
fn part_of_rows(ty: &TensorType, rows: Rows) -> TensorType {
    TensorType::new(ty.dtype, [1, rows.held, ty.shape.last().copied().unwrap_or(1)])
}

fn mismatch(node: &Node, a: Layout, b: Layout) -> ShardError {
    let what = format!("its operands are {a:?} and {b:?}, which do not go together");
    ShardError::Unsupported { node: node.name.clone(), what }
}
