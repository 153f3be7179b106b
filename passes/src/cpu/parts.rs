//! Cuts a kernel into parts that the host runs as one step each.
//!
//! Most kernels are one part. The host streams attention only in its usual form, and keeps a product's epilogue with the
//! product; what stands around that becomes a part before or behind. A part can always be a single op, so every kernel
//! can be cut.

use lapidary_models::{Function, Node, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What runs as one step.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Functions of rows: pointwise ops, norms, rotations, lookups, cache stores. Node indices.
    Rows(Vec<usize>),
    /// Linears over one left operand, and a function of the product's rows.
    Linear {
        /// The left operand, factors taken off.
        x: ValueId,
        /// The linears, in order.
        linears: Vec<usize>,
        /// The rest.
        epilogue: Vec<usize>,
    },
    /// `values(softmax(factors and mask(scores)))`.
    Attention(Chain),
    /// One op over scores in memory.
    Scores(usize),
    /// The layers.
    Repeat(usize),
    /// What ranks say to each other.
    Collective(usize),
}

/// The ops of one attention, from the scores to the values.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// `nn.scores`.
    pub scores: usize,
    /// Pointwise ops between scores and softmax, in order.
    pub before: Vec<usize>,
    /// `nn.values`.
    pub values: usize,
}

/// A function's values by maker and users.
pub struct Uses<'f> {
    /// The function.
    pub function: &'f Function,
    makers: BTreeMap<ValueId, usize>,
    users: BTreeMap<ValueId, Vec<usize>>,
}

impl<'f> Uses<'f> {
    /// Finds makers and users.
    pub fn new(function: &'f Function) -> Uses<'f> {
        let makers = function.nodes.iter().enumerate().map(|(n, node)| (node.output, n)).collect();
        let mut users: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (n, node) in function.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|value| users.entry(*value).or_default().push(n));
        }
        Uses { function, makers, users }
    }

    /// A node.
    pub fn node(&self, n: usize) -> &'f Node {
        &self.function.nodes[n]
    }

    /// The node that makes a value; none for arguments.
    pub fn maker(&self, value: ValueId) -> Option<usize> {
        self.makers.get(&value).copied()
    }

    /// Whether anyone outside of `nodes` needs the value.
    pub fn escapes(&self, value: ValueId, nodes: &BTreeSet<usize>) -> bool {
        let users = self.users.get(&value).map_or(&[][..], Vec::as_slice);
        self.function.results.contains(&value) || users.iter().any(|user| !nodes.contains(user))
    }

    /// The only user of a value.
    fn only_user(&self, value: ValueId) -> Option<usize> {
        match self.users.get(&value).map(Vec::as_slice) {
            Some([user]) if !self.function.results.contains(&value) => Some(*user),
            _ => None,
        }
    }

    /// Whether a value has one entry for every key.
    pub fn is_scores(&self, value: ValueId) -> bool {
        self.function.ty(value).shape.len() == 4
    }
}

/// The parts of one kernel, in an order in which they can run.
pub fn parts(uses: &Uses, kernel: &[usize]) -> Vec<Part> {
    let inside: BTreeSet<usize> = kernel.iter().copied().collect();
    let chains: BTreeMap<usize, Chain> =
        kernel.iter().filter_map(|n| chain(uses, &inside, *n).map(|c| (*n, c))).collect();
    let chained: BTreeSet<usize> = chains.values().flat_map(|c| nodes_of(uses, c)).collect();
    let factors: BTreeSet<usize> = kernel.iter().copied().filter(|n| is_factor(uses, &inside, *n)).collect();
    let mut cutter = Cutter { uses, parts: Vec::new() };
    for n in inside.iter().copied().filter(|n| !factors.contains(n)) {
        match chains.get(&n) {
            Some(chain) => cutter.parts.push(Part::Attention(chain.clone())),
            None if chained.contains(&n) => {}
            None => cutter.add(n, &factors),
        }
    }
    cutter.parts
}

/// The attention that ends in `values`, if all of it is in the kernel and nothing of it is needed elsewhere.
pub fn chain(uses: &Uses, inside: &BTreeSet<usize>, values: usize) -> Option<Chain> {
    let Op::Values { .. } = uses.node(values).op else { return None };
    let step =
        |value: ValueId| uses.maker(value).filter(|n| inside.contains(n) && uses.only_user(value).is_some());
    let mut at = step(uses.node(values).inputs[0])?;
    if uses.node(at).op != Op::Softmax {
        return None;
    }
    let mut before = Vec::new();
    loop {
        at = step(uses.node(at).inputs[0])?;
        match uses.node(at).op {
            Op::Scores { .. } => break,
            Op::Scale { .. } | Op::Mask { .. } => before.push(at),
            _ => return None,
        }
    }
    before.reverse();
    let masks = before.iter().filter(|n| matches!(uses.node(**n).op, Op::Mask { .. })).count();
    (masks <= 1).then_some(Chain { scores: at, before, values })
}

fn nodes_of(uses: &Uses, chain: &Chain) -> Vec<usize> {
    let mut nodes = vec![chain.scores, chain.values];
    let mut value = uses.node(chain.values).inputs[0];
    while let Some(n) = uses.maker(value).filter(|n| *n != chain.scores) {
        nodes.push(n);
        value = uses.node(n).inputs[0];
    }
    nodes
}

/// Whether a node is a factor in front of linears of the kernel, and of nothing else: it commutes with them.
fn is_factor(uses: &Uses, inside: &BTreeSet<usize>, n: usize) -> bool {
    let node = uses.node(n);
    let users = uses.users.get(&node.output).map_or(&[][..], Vec::as_slice);
    let linear = |user: &usize| inside.contains(user) && uses.node(*user).op == Op::Linear;
    matches!(node.op, Op::Scale { .. })
        && !users.is_empty()
        && !uses.function.results.contains(&node.output)
        && users.iter().all(linear)
}

/// A linear's left operand without the factors before it, and their product.
pub fn left_operand(uses: &Uses, linear: usize, factors: &BTreeSet<usize>) -> (ValueId, f64) {
    let mut x = uses.node(linear).inputs[0];
    let mut factor = 1.0;
    while let Some(n) = uses.maker(x).filter(|n| factors.contains(n)) {
        if let Op::Scale { by, .. } = uses.node(n).op {
            factor *= by;
        }
        x = uses.node(n).inputs[0];
    }
    (x, factor)
}

struct Cutter<'u, 'f> {
    uses: &'u Uses<'f>,
    parts: Vec<Part>,
}

impl Cutter<'_, '_> {
    fn add(&mut self, n: usize, factors: &BTreeSet<usize>) {
        let node = self.uses.node(n);
        let keyed = |value: &ValueId| self.uses.is_scores(*value);
        match node.op {
            Op::Param { .. } => {}
            Op::Repeat { .. } => self.parts.push(Part::Repeat(n)),
            Op::Sharded(ref op) if op.is_collective() => self.parts.push(Part::Collective(n)),
            Op::Linear => self.linear(n, left_operand(self.uses, n, factors).0),
            _ if keyed(&node.output) || node.inputs.iter().any(keyed) => self.parts.push(Part::Scores(n)),
            _ => self.row(n),
        }
    }

    fn linear(&mut self, n: usize, x: ValueId) {
        if let Some(Part::Linear { x: known, linears, .. }) = self.parts.last_mut()
            && *known == x
        {
            return linears.push(n);
        }
        self.parts.push(Part::Linear { x, linears: vec![n], epilogue: Vec::new() });
    }

    /// A row op joins the part before it, unless it walks over other rows or needs all of a value that the part makes.
    fn row(&mut self, n: usize) {
        let fresh = matches!(self.uses.node(n).op, Op::LastToken);
        match self.parts.last_mut() {
            Some(Part::Rows(nodes)) if !fresh => nodes.push(n),
            Some(Part::Linear { epilogue, .. }) if !fresh => epilogue.push(n),
            _ => self.parts.push(Part::Rows(vec![n])),
        }
    }
}
