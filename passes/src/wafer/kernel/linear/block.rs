//! The outputs that the columns of a head block share by tokens.
//!
//! Every column of the block keeps some tokens of every output and passes the others on. The ring of a token begins in
//! the column after the one that keeps it, so an output has two halves here: the front, tokens whose ring has just begun
//! nearby (passed on) or begins here, and the back, which has come round the whole row: the own tokens (kept) and those
//! of later columns (passed on). A column that waited for the back before it went on would make every output cost the
//! latency of the ring. So the back of an output is done only when the fronts of some more outputs are under way: their
//! sums are held, [`Block::delay`] of them, and their arithmetic covers the latency. How many that takes, and how many
//! the queues of the ring have room for, says [`Ring`].

use super::Kernel;
use crate::wafer::code::{dims, from, op, repeat, slice, strided, to, words};
use crate::wafer::site::HeadSite;
use crate::wafer::tile::Tiles;
use lapidary_hardware::price::wafer::Ring;
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, Var, Wire};

/// The own block of a linear layer at a PE.
pub struct Block<'a> {
    kernel: &'a Kernel<'a>,
    head: HeadSite,
}

impl<'a> Block<'a> {
    /// The block of a PE within a head block.
    pub fn new(kernel: &'a Kernel<'a>, head: HeadSite) -> Self {
        Block { kernel, head }
    }

    /// By how many outputs the back is behind the front.
    pub fn delay(&self) -> i64 {
        let (site, shape) = (self.kernel.site, self.head.shape);
        let tokens = site.placed.tokens.tiles().largest();
        let ring = Ring {
            columns: site.placed.width.into(),
            block: shape.columns.into(),
            dim: shape.dim.into(),
            tokens: tokens.into(),
            link_words: site.spec.link_words,
            neighbour: (site.spec.hop_cycles + 1) as f64,
            output: self.output_cycles(tokens.into()),
        };
        ring.held() as i64
    }

    /// Cycles of one output in the column with the most inputs.
    fn output_cycles(&self, tokens: f64) -> f64 {
        let site = self.kernel.site;
        let weight = site.spec.issue_cycles as f64 + tokens / site.spec.macs_per_cycle(site.placed.dtype);
        f64::from(self.kernel.most_inputs()) * weight + tokens
    }

    /// All outputs of the block: fronts, then backs with the fronts that follow them, then the last backs.
    pub fn outputs(&self) -> Vec<Stmt> {
        let delay = self.delay();
        let mut body = repeat(delay, self.front(1, Affine::from(Var::Loop(0))));
        let segments = &self.kernel.linear.outputs;
        for (number, segment) in segments.iter().enumerate() {
            body.extend(self.segment(&segment.value, delay, number + 1 == segments.len()));
        }
        body
    }

    fn segment(&self, value: &str, delay: i64, last: bool) -> Vec<Stmt> {
        let dim = i64::from(self.head.shape.dim);
        let heads = i64::from(self.kernel.own_features(value)) / dim;
        let rounds = dim / delay;
        let whole_heads = if last { heads - 1 } else { heads };
        let feature = Affine::term(Var::Loop(1), delay).plus(Var::Loop(2), 1);
        let both = self.back_and_front(value, Affine::from(Var::Loop(0)), feature, 2);
        let mut body = repeat(whole_heads, repeat(rounds, repeat(delay, both)));
        if last {
            let feature = Affine::term(Var::Loop(0), delay).plus(Var::Loop(1), 1);
            let both = self.back_and_front(value, (heads - 1).into(), feature, 1);
            body.extend(repeat(rounds - 1, repeat(delay, both)));
            let feature = Affine::constant((rounds - 1) * delay).plus(Var::Loop(0), 1);
            let back = self.back(value, (heads - 1).into(), feature, Affine::from(Var::Loop(0)));
            body.extend(repeat(delay, back));
        }
        body
    }

    /// The back of one output and, in the sums that it leaves free, the front of the output `delay` later.
    fn back_and_front(&self, value: &str, head: Affine, feature: Affine, innermost: u8) -> Vec<Stmt> {
        let slot = Affine::from(Var::Loop(innermost));
        let mut body = self.back(value, head, feature, slot.clone());
        body.extend(self.front(innermost + 1, slot));
        body
    }

    /// First of the sums of a slot.
    fn at(&self, slot: Affine) -> Affine {
        slot * self.kernel.tokens()
    }

    fn tiles(&self) -> Tiles {
        self.head.token_tiles()
    }

    /// Arithmetic; tokens of the columns before the one before are passed on, the ring of its own begins.
    fn front(&self, depth: u8, slot: Affine) -> Vec<Stmt> {
        let k = self.kernel;
        let first = self.at(slot);
        let begun = self.head.column.checked_sub(1).map_or(0, |before| i64::from(self.tiles().size(before)));
        let passed = self.head.first_token() - Affine::constant(begun);
        let then = vec![k.pass(first.clone(), passed.clone()), k.begin(first.clone() + passed, begun)];
        k.output(depth, first, None, then)
    }

    /// The own tokens are kept, those of later columns passed on.
    fn back(&self, value: &str, head: Affine, feature: Affine, slot: Affine) -> Vec<Stmt> {
        let k = self.kernel;
        let (dim, tokens) = (i64::from(self.head.shape.dim), i64::from(self.head.tokens()));
        let (sums, first) = (self.at(slot), self.head.first_token());
        let result = strided(value, head * (tokens * dim) + feature, &[dim]);
        let own = from(slice(&k.sum(), sums.clone() + first.clone()));
        let come = words(k.site.previous_column(), Wire::F32);
        let keep = op(OpKind::Add, to(result), [own, come], dims([tokens]));
        let end = first + Affine::constant(tokens);
        let beyond = |limit: i64| Affine::constant(limit) - end.clone();
        match self.closing() {
            Some(left) => vec![
                keep,
                k.pass(sums.clone() + end.clone(), beyond(left)),
                k.begin(sums + Affine::constant(left), k.tokens() - left),
            ],
            None => vec![keep, k.pass(sums + end.clone(), beyond(k.tokens()))],
        }
    }

    /// At column 0, if one block covers the whole row: the first of the tokens kept by its last column, whose ring
    /// begins here.
    fn closing(&self) -> Option<i64> {
        let shape = self.head.shape;
        let whole = shape.blocks == 1 && shape.columns == self.kernel.site.placed.width;
        (whole && self.head.column == 0).then(|| i64::from(self.tiles().start(shape.columns - 1)))
    }
}
