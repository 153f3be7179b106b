//! How parameters are split, and what a group's ranks hold of a value.

use super::ShardError;
use super::part::{Part, Split, heads};
use crate::graph::{Graph, TensorType};
use crate::op::{HeadRun, Op};

/// What is split over the ranks of a tensor-parallel group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// Query heads.
    Heads,
    /// Key-value heads.
    KvHeads,
    /// Hidden features of the MLP.
    Hidden,
    /// The vocabulary.
    Vocab,
}

/// What a rank holds of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// All of it, as all ranks do.
    Whole,
    /// A part of one axis: the last one of an activation, the heads of scores.
    Split(Axis),
    /// A summand: the value is the sum over the ranks.
    Partial,
    /// A run of its rows, `[1, rows, ..]`, zeros behind the last.
    Rows,
}

/// How a parameter is split: the axis of the model, and which axis of the parameter it is.
fn rule(name: &str) -> Option<(Axis, usize)> {
    let name = name.strip_prefix("layers.*.").unwrap_or(name);
    let rules: [(&str, Axis, usize); 13] = [
        ("attn.q.weight", Axis::Heads, 0),
        ("attn.q.bias", Axis::Heads, 0),
        ("attn.k.weight", Axis::KvHeads, 0),
        ("attn.k.bias", Axis::KvHeads, 0),
        ("attn.v.weight", Axis::KvHeads, 0),
        ("attn.v.bias", Axis::KvHeads, 0),
        ("attn.out.weight", Axis::Heads, 1),
        ("mlp.gate.weight", Axis::Hidden, 0),
        ("mlp.up.weight", Axis::Hidden, 0),
        ("mlp.down.weight", Axis::Hidden, 1),
        ("embed.weight", Axis::Vocab, 0),
        ("head.weight", Axis::Vocab, 0),
        ("head.bias", Axis::Vocab, 0),
    ];
    let hidden = ["mlp.gate.bias", "mlp.up.bias"].contains(&name).then_some((Axis::Hidden, 0));
    rules.into_iter().find(|(known, ..)| *known == name).map(|(_, axis, at)| (axis, at)).or(hidden)
}

/// The splits of a model for one rank of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Splits {
    ranks: u64,
    q: Split,
    kv: Split,
}

impl Splits {
    /// Finds heads in the layer function.
    pub fn new(graph: &Graph, ranks: u64, rank: u64) -> Result<Splits, ShardError> {
        let scores = graph.functions.iter().flat_map(|f| &f.nodes).find_map(|node| match node.op {
            Op::Scores { heads, kv_heads } => Some((heads, kv_heads)),
            _ => None,
        });
        let Some((all, kv_heads)) = scores else {
            let what = "there is no attention whose heads could be split".into();
            return Err(ShardError::Unsupported { node: graph.name.clone(), what });
        };
        let (q, kv) = heads(all, kv_heads, ranks, rank);
        Ok(Splits { ranks, q, kv })
    }

    /// Which query heads the rank has.
    pub fn head_run(&self) -> HeadRun {
        HeadRun { first: self.q.start, of: self.q.whole }
    }

    /// How many query heads and key-value heads the rank has.
    pub fn heads(&self) -> (u64, u64) {
        (self.q.held, self.kv.held)
    }

    /// Whether several ranks hold the same key-value heads, each with query heads of its own.
    pub fn shares_keys(self) -> bool {
        self.ranks > self.kv.whole
    }

    /// Whether a rank is the first of those that hold its key-value heads.
    pub fn first_of_its_keys(self, rank: u64) -> bool {
        !self.shares_keys() || rank.is_multiple_of((self.ranks / self.kv.whole.max(1)).max(1))
    }

    /// The first word of a rank's part of a vocabulary.
    pub fn vocabulary(&self, words: u64, rank: u64) -> u64 {
        self.split(Axis::Vocab, words, rank).start
    }

    /// The rank's split of an axis that has `length` elements in all.
    fn split(&self, axis: Axis, length: u64, rank: u64) -> Split {
        match axis {
            Axis::Heads => self.q.times(length / self.q.whole.max(1)),
            Axis::KvHeads => self.kv.times(length / self.kv.whole.max(1)),
            Axis::Hidden | Axis::Vocab => Split::even(length, self.ranks, rank),
        }
    }

    /// A parameter's layout and, where it is split, the rank's part of it. What is added to summands is held by the first
    /// rank; the others hold zeros.
    pub fn param(&self, name: &str, ty: &TensorType, rank: u64) -> (Layout, Option<Part>) {
        if ["layers.*.attn.out.bias", "layers.*.mlp.down.bias"].contains(&name) {
            let whole = ty.shape[0];
            let length = if rank == 0 { whole } else { 0 };
            return (Layout::Partial, Some(Part { axis: 0, start: 0, length, held: whole, whole }));
        }
        match rule(name) {
            Some((axis, at)) if at < ty.shape.len() => {
                let part = self.split(axis, ty.shape[at], rank).part(at);
                (Layout::Split(axis), Some(part))
            }
            _ => (Layout::Whole, None),
        }
    }
}
