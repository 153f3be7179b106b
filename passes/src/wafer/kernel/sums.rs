//! Sums over a line of PEs: they run to the last one, which makes something of them and sends that back over the line at
//! once. Chain, tree or two phases: the way that takes least for so many words over so many PEs.

use super::super::code::{dims, from, op, send, slice, to, words};
use super::super::line::{Axis, InGroup, Place, SumStep};
use super::super::placed::{NormKind, OpKind as Placement, Placed, PlacedOp};
use super::super::site::Site;
use super::super::{WaferSpec, channel::Channel};
use super::{cached, gemv};
use lapidary_hardware::price::wafer::{Links, Reduce, pick_reduce};
use lapidary_runtime_sim::program::{OpKind, Slice, Stmt, Wire};
use std::collections::BTreeSet;

/// A sum that an op makes on every line of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The lines.
    pub axis: Axis,
    /// Words of the fullest of them.
    pub words: u64,
}

impl Sum {
    /// The way that takes least, of those that there are colours for.
    pub fn kind(self, placed: &Placed, spec: &WaferSpec) -> Reduce {
        let pes = self.axis.length(placed);
        let known = Reduce::ALL.into_iter().filter(|kind| *kind != Reduce::Tree || pes <= spec.longest_tree);
        pick_reduce(known, pes.into(), self.words, links(spec))
    }
}

/// The wafer with trees over as long lines only as there are colours for: the longest lines give theirs up first.
pub fn affordable(placed: &Placed, spec: &WaferSpec) -> WaferSpec {
    let mut spec = spec.clone();
    let wanted = |spec: &WaferSpec| -> usize {
        let of_op = |op| super::channels(placed, op, spec);
        placed.ops.iter().flat_map(of_op).collect::<BTreeSet<Channel>>().len()
    };
    let sums: Vec<Sum> = placed.ops.iter().flat_map(|op| of(placed, op)).collect();
    while wanted(&spec) > spec.colours as usize {
        let trees = sums.iter().filter(|sum| sum.kind(placed, &spec) == Reduce::Tree);
        let Some(longest) = trees.map(|sum| sum.axis.length(placed)).max() else { break };
        spec.longest_tree = longest.saturating_sub(1);
    }
    spec
}

/// What the fabric takes.
pub fn links(spec: &WaferSpec) -> Links {
    let ramp = spec.ramp_cycles;
    Links { hop: spec.hop_cycles.saturating_sub(2 * ramp + 1), ramp }
}

/// The sums of an op, in order.
pub fn of(placed: &Placed, op: &PlacedOp) -> Vec<Sum> {
    let row = |per_token: i64| row(placed, per_token);
    match &op.kind {
        Placement::Norm(norm) => vec![row(if norm.kind == NormKind::Layer { 2 } else { 1 })],
        Placement::NormDx(norm) => vec![row(if norm.kind == NormKind::Layer { 4 } else { 2 })],
        Placement::NormDw(norm) => vec![row(if norm.kind == NormKind::Layer { 2 } else { 1 })],
        Placement::Loss(_) => vec![row(1), row(2)],
        Placement::LossDx(_) => vec![row(1), row(1)],
        Placement::Gemv(linear) => gemv::sum(placed, linear).into_iter().collect(),
        Placement::CachedAttention(attention) => cached::sums(placed, attention),
        _ => vec![],
    }
}

/// Sums over rows, so many words for each token.
pub fn row(placed: &Placed, per_token: i64) -> Sum {
    let words = per_token.max(0) as u64 * u64::from(placed.tokens.tiles().largest());
    Sum { axis: Axis::Row, words }
}

/// Channels of the sums of an op.
pub fn channels(placed: &Placed, op: &PlacedOp, spec: &WaferSpec) -> Vec<Channel> {
    let mut channels: Vec<Channel> = of(placed, op)
        .into_iter()
        .flat_map(|sum| sum.axis.channels(placed, sum.kind(placed, spec)))
        .collect();
    channels.sort_unstable();
    channels.dedup();
    channels
}

/// Sums in f32 from the beginning of a buffer on.
pub struct LineSums<'a> {
    /// The PE.
    pub site: &'a Site<'a>,
    /// The lines, and the words of the fullest.
    pub sum: Sum,
    /// The buffer with the own sums, which takes what comes back.
    pub buffer: &'a str,
    /// How two of them become one.
    pub kind: OpKind,
    /// How many on this line.
    pub count: i64,
}

impl LineSums<'_> {
    /// Sums of the line end in its last PE, which goes on with `finish`.
    pub fn collect(&self, finish: Vec<Stmt>) -> Vec<Stmt> {
        let Some(place) = self.sum.axis.place(self.site.placed, self.site.at) else { return vec![] };
        let mut body = match self.sum.kind(self.site.placed, self.site.spec) {
            Reduce::Chain => self.chain(place.at, place.of, SumStep::Next),
            Reduce::Tree => self.tree(place),
            Reduce::TwoPhase => {
                let InGroup { at, of, group, groups } = place.group();
                let mut body = self.chain(at, of, SumStep::Inner);
                if at == 0 {
                    body.extend(self.chain(group, groups, SumStep::Outer));
                }
                body
            }
        };
        if place.at == 0 {
            body.extend(finish);
        }
        body
    }

    /// As [`Self::collect`], and then the first `back` elements of the buffer go to every PE of the line.
    pub fn share(&self, finish: Vec<Stmt>, back: i64) -> Vec<Stmt> {
        let Some(place) = self.sum.axis.place(self.site.placed, self.site.at) else { return vec![] };
        let (channel, count) = (self.site.channel(Channel::Share(self.sum.axis)), || dims([back]));
        let mut body = self.collect(finish);
        body.extend((place.of > 1).then(|| match place.at {
            0 => op(OpKind::Mov, send(channel, Wire::F32), [from(self.own())], count()),
            _ => op(OpKind::Mov, to(self.own()), [words(channel, Wire::F32)], count()),
        }));
        body
    }

    /// One link of a chain.
    fn chain(&self, at: u32, of: u32, step: fn(u8) -> SumStep) -> Vec<Stmt> {
        let (out, come) = (step((at % 2) as u8), step(((at + 1) % 2) as u8));
        match (at == 0, at + 1 == of) {
            (true, true) => vec![],
            (true, false) => vec![self.take(come)],
            (false, true) => vec![self.send(out)],
            (false, false) => {
                let come = words(self.channel(come), Wire::F32);
                let on = send(self.channel(out), Wire::F32);
                vec![op(self.kind, on, [from(self.own()), come], dims([self.count]))]
            }
        }
    }

    fn tree(&self, place: Place) -> Vec<Stmt> {
        let takes = place.takes().map(|round| self.take(SumStep::Round(round as u8)));
        let sends = place.sends().map(|round| self.send(SumStep::Round(round as u8)));
        takes.chain(sends).collect()
    }

    fn take(&self, step: SumStep) -> Stmt {
        let come = words(self.channel(step), Wire::F32);
        op(self.kind, to(self.own()), [from(self.own()), come], dims([self.count]))
    }

    fn send(&self, step: SumStep) -> Stmt {
        op(OpKind::Mov, send(self.channel(step), Wire::F32), [from(self.own())], dims([self.count]))
    }

    fn channel(&self, step: SumStep) -> lapidary_runtime_sim::program::Colour {
        self.site.channel(Channel::Sum(self.sum.axis, step))
    }

    fn own(&self) -> Slice {
        slice(self.buffer, 0)
    }
}
