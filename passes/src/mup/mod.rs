//! Where muP's multipliers go when a model only infers: into weights and norms, as far as algebra allows.
//!
//! Plain data in, plain data out; the pass `mup-fold` reads functions from the IR and applies the edits.
//!
//! Let `s` be the factor on the embedding, `a` on the scores, `o` on the logits.
//!
//! - *scores*: `a (q·k) = (a q)·k`; rotation is linear, so `a` goes into the query projection, weight and bias.
//! - *logits*, head with a matrix of its own: `o (x Wᵀ) = x (o W)ᵀ`. Tied head: the matrix is the embedding's as
//!   well, so `o` goes into the final norm, weight and bias.
//! - *embedding*, table of its own: into the table (and the table of positions). Tied: the table must stay, so the
//!   whole residual stream is carried divided by `s`: every branch that joins it is divided by `s` in the linear
//!   that makes it, weight and bias, and every norm that reads it has its eps divided by `s²`, since
//!   `norm(x/s; eps/s²) = norm(x; eps)` for RMSNorm and LayerNorm alike.
//!
//! Where a tied head reads the stream without a norm, neither end can take its factor: both stay ops.
//!
//! Nothing is assumed about names: the rules follow the data, and a structure that they do not cover is refused
//! with the place where they got stuck.

mod carry;
mod stream;

use crate::view::ParamView;
use lapidary_models::op::ScaleRole;
use lapidary_models::{Function, Node, Op, ValueId};
use std::collections::BTreeMap;

/// A node of a module: function and node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// Index of the function.
    pub function: usize,
    /// Index of the node.
    pub node: usize,
}

/// The functions of a module and what their parameters are.
pub struct Program<'p> {
    /// Functions and, for each, what [`Op::Param`] indexes.
    pub functions: Vec<(&'p Function, &'p [ParamView])>,
}

/// What to change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    /// Multipliers that stay ops: a tied table stands at both ends of the stream, with no norm before the head.
    pub kept: Vec<At>,
    /// Factors on parameters, by the node that reads them and its operand.
    pub params: BTreeMap<(At, usize), f64>,
    /// New eps of norms.
    pub norms: BTreeMap<At, f64>,
    /// Scales to remove.
    pub removed: Vec<At>,
    /// Whether the embedding's table is used by others as well.
    pub tied: bool,
}

/// Why a multiplier stays: the place and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The node where the rules end.
    pub at: At,
    /// Why.
    pub why: String,
}

/// Finds a place for every muP multiplier.
///
/// # Errors
/// Every multiplier that has none, with the node where the rules end.
pub fn fold(program: &Program) -> Result<Fold, Vec<Stuck>> {
    let mut fold = Fold::default();
    let mut stuck = Vec::new();
    for (at, by, role) in program.multipliers() {
        if stream::ends_meet(program, at, role) {
            fold.kept.push(at);
            continue;
        }
        match place(program, &mut fold, at, by, role) {
            Ok(()) => fold.removed.push(at),
            Err(why) => stuck.push(why),
        }
    }
    if stuck.is_empty() { Ok(fold) } else { Err(stuck) }
}

fn place(program: &Program, fold: &mut Fold, at: At, by: f64, role: ScaleRole) -> Result<(), Stuck> {
    if role != ScaleRole::MupEmbedding || !program.reads_shared_table(at) {
        return carry::into_operand(program, fold, at, 0, by);
    }
    fold.tied = true;
    stream::divide(program, fold, at, by)
}

impl Program<'_> {
    /// A node.
    pub fn node(&self, at: At) -> &Node {
        &self.functions[at.function].0.nodes[at.node]
    }

    /// The node that makes a value of a function.
    pub fn maker(&self, function: usize, value: ValueId) -> Option<At> {
        let node = self.functions[function].0.nodes.iter().position(|node| node.output == value)?;
        Some(At { function, node })
    }

    /// Every operand of a function that reads a value.
    pub fn readers(&self, function: usize, value: ValueId) -> Vec<(At, usize)> {
        let nodes = self.functions[function].0.nodes.iter().enumerate();
        nodes
            .flat_map(|(node, read)| {
                let operands = read.inputs.iter().enumerate().filter(move |(_, input)| **input == value);
                operands.map(move |(operand, _)| (At { function, node }, operand))
            })
            .collect()
    }

    /// Whether a function returns a value.
    pub fn returns(&self, function: usize, value: ValueId) -> bool {
        self.functions[function].0.results.contains(&value)
    }

    /// The parameter that an operand is, if it is one.
    pub fn param(&self, at: At, operand: usize) -> Option<&ParamView> {
        let value = *self.node(at).inputs.get(operand)?;
        match self.node(self.maker(at.function, value)?).op {
            Op::Param { param } => self.functions[at.function].1.get(param),
            _ => None,
        }
    }

    /// Whether operands other than this one read the parameter, in any function.
    pub fn is_shared(&self, at: At, operand: usize) -> bool {
        let Some(param) = self.param(at, operand) else { return false };
        let same = |other: &(At, usize)| self.param(other.0, other.1).is_some_and(|p| p.name == param.name);
        self.operands().filter(same).count() > 1
    }

    fn operands(&self) -> impl Iterator<Item = (At, usize)> + '_ {
        self.nodes().flat_map(|at| (0..self.node(at).inputs.len()).map(move |operand| (at, operand)))
    }

    fn nodes(&self) -> impl Iterator<Item = At> + '_ {
        let count = |function: usize| self.functions[function].0.nodes.len();
        (0..self.functions.len())
            .flat_map(move |function| (0..count(function)).map(move |node| At { function, node }))
    }

    fn multipliers(&self) -> Vec<(At, f64, ScaleRole)> {
        let mup = |at: At| match self.node(at).op {
            Op::Scale { by, role } if is_mup(role) => Some((at, by, role)),
            _ => None,
        };
        self.nodes().filter_map(mup).collect()
    }

    /// Whether the table behind an embedding's multiplier is read by others.
    fn reads_shared_table(&self, at: At) -> bool {
        let mut value = self.node(at).inputs[0];
        while let Some(maker) = self.maker(at.function, value) {
            match self.node(maker).op {
                Op::Embed => return self.is_shared(maker, 1),
                Op::Position { .. } | Op::Scale { .. } => value = self.node(maker).inputs[0],
                _ => return false,
            }
        }
        false
    }
}

/// Whether a factor is muP's.
pub const fn is_mup(role: ScaleRole) -> bool {
    matches!(role, ScaleRole::MupEmbedding | ScaleRole::MupOutput | ScaleRole::MupAttention)
}

#[cfg(test)]
mod tests;
