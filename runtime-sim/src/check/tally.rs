//! What a piece of code sends, reads and starts: sums of products of counts and lengths, formed once and evaluated for
//! each kind of place.

use super::places::Places;
use super::product::Product;
use crate::lower::{Env, Instr, Linear, LoweredOp, Segment, Sink, Source};
use crate::program::Coord;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// What one PE does to the fabric in a whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Data words read, by input slot; here and below nothing where the list ends.
    pub read: Vec<u64>,
    /// Data words sent, by output slot.
    pub sent: Vec<u64>,
    /// Control words sent, by output slot.
    pub controls: Vec<u64>,
    /// Activations, by task.
    pub activated: Vec<u64>,
    /// An op with an odd number of elements on a packed wire.
    pub odd: bool,
    /// Iterations looked at one by one.
    pub steps: u64,
}

/// A PE whose loops depend on each other in more iterations than this is not counted.
const STEPS: u64 = 1 << 20;

impl Tally {
    /// Whether counting was given up.
    pub fn undecided(&self) -> bool {
        self.steps >= STEPS
    }

    /// One of the counts.
    pub fn of(&self, what: What) -> u64 {
        let (sums, at) = match what {
            What::Read(slot) => (&self.read, slot),
            What::Sent(slot) => (&self.sent, slot),
            What::Control(slot) => (&self.controls, slot),
            What::Activation(task) => (&self.activated, task),
        };
        sums.get(usize::from(at)).map_or(0, |n| *n)
    }

    pub fn add(&mut self, what: What, n: u64) {
        let (sums, at) = match what {
            What::Read(slot) => (&mut self.read, usize::from(slot)),
            What::Sent(slot) => (&mut self.sent, usize::from(slot)),
            What::Control(slot) => (&mut self.controls, usize::from(slot)),
            What::Activation(task) => (&mut self.activated, usize::from(task)),
        };
        if sums.len() <= at {
            sums.resize(at + 1, 0);
        }
        sums[at] = sums[at].saturating_add(n);
    }

    /// Adds `times` another tally.
    pub fn add_all(&mut self, other: &Tally, times: u64) {
        let sums = [
            (&mut self.read, &other.read),
            (&mut self.sent, &other.sent),
            (&mut self.controls, &other.controls),
            (&mut self.activated, &other.activated),
        ];
        for (own, more) in sums {
            own.resize(own.len().max(more.len()), 0);
            own.iter_mut().zip(more).for_each(|(sum, n)| *sum = sum.saturating_add(n.saturating_mul(times)));
        }
        self.odd |= other.odd && times > 0;
        self.steps = self.steps.saturating_add(other.steps);
    }
}

/// One of the counts of a tally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Read(u16),
    Sent(u16),
    Control(u16),
    Activation(u16),
}

/// What expressions see at a place.
pub fn place(at: Coord) -> Env {
    Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() }
}

/// A piece of code in which every length has one value.
#[derive(Default)]
pub struct Body {
    /// Whether a count or length depends on how often the task ran before.
    pub by_turn: bool,
    /// Columns and rows of the grid by what they contribute to its counts and lengths.
    places: [Arc<Places>; 2],
    /// What one run gains, by kind of row and kind of column.
    known: Vec<OnceLock<Box<Tally>>>,
    /// The different counts and lengths.
    lengths: Vec<Linear>,
    /// Per count: how often it gains the product of the first lengths, if none of the second is zero.
    terms: BTreeMap<(What, Product, Product), u64>,
    /// What is gained at every place alike.
    pub fixed: Vec<(What, u64)>,
    /// Ops that move several elements at once.
    packed: Vec<Packed>,
    /// Loops whose iterations differ.
    loops: Vec<Repeat>,
}

/// Most kinds of places of which it is remembered what a piece of code gains there.
const MOST_KINDS: usize = 4096;

/// An op on packed wires: `times` runs of `lengths` times `constant` elements.
struct Packed {
    times: Product,
    lengths: Product,
    constant: u64,
    step: u64,
    moved: Vec<(What, u64)>,
}

/// A loop whose iterations differ, inside of `times` others.
struct Repeat {
    times: Product,
    count: u16,
    depth: usize,
    body: Body,
}

impl Body {
    /// The code of a segment, with columns and rows by what they contribute to its lengths.
    pub fn of(segment: &Segment, places: [Arc<Places>; 2]) -> Self {
        let by_turn = segment.instrs.iter().any(Instr::length_varies_by_turn);
        let mut body = Body { by_turn, places, ..Body::default() };
        body.sequence(&segment.instrs, 0..segment.instrs.len(), Product::default());
        body.fold();
        if body.varies() && !by_turn {
            let kinds = body.places[0].kinds.saturating_mul(body.places[1].kinds);
            body.known.resize_with(if kinds <= MOST_KINDS { kinds } else { 0 }, OnceLock::new);
        }
        body
    }

    /// Tells what one run gains at a place beyond what is the same at all places; counted once for places of one kind.
    pub fn once(&self, env: &mut Env, values: &mut Vec<u64>, tell: impl FnOnce(&Tally)) {
        let [columns, rows] = &self.places;
        let kind = rows.kind(env.y) * columns.kinds + columns.kind(env.x);
        let mut count = || {
            let mut tally = Tally::default();
            self.count(env, 1, values, &mut tally);
            Box::new(tally)
        };
        match self.known.get(kind) {
            Some(known) => tell(known.get_or_init(count)),
            None => tell(&count()),
        }
    }

    /// What it gains beyond that depends on: the column only (0), the row only (1), or more (2); none if there is nothing.
    pub fn depends_on(&self) -> Option<usize> {
        let by = |axis: usize| self.places[axis].kinds > 1;
        self.varies().then_some(match (self.by_turn || by(0), self.by_turn || by(1)) {
            (true, true) => 2,
            (false, true) => 1,
            _ => 0,
        })
    }

    /// Whether it has loops whose iterations are counted one by one.
    pub fn has_steps(&self) -> bool {
        !self.loops.is_empty()
    }

    /// Whether it gains more than what is the same at every place.
    fn varies(&self) -> bool {
        !(self.terms.is_empty() && self.packed.is_empty() && self.loops.is_empty())
    }

    fn sequence(&mut self, code: &[Instr], range: std::ops::Range<usize>, within: Product) {
        let mut pc = range.start;
        while pc < range.end {
            match &code[pc] {
                Instr::Op(op) => self.op(op, within),
                Instr::Par(ops) => ops.iter().for_each(|op| self.op(op, within)),
                Instr::Control { slot, .. } => {
                    self.gain(What::Control(*slot as u16), within, Product::default(), 1)
                }
                Instr::Activate(task) => {
                    self.gain(What::Activation(*task as u16), within, Product::default(), 1)
                }
                Instr::Loop { depth, count, length, varies } => {
                    let count = self.length(count);
                    if *varies {
                        let mut body = Body::default();
                        body.sequence(code, pc + 1..pc + length, Product::default());
                        self.loops.push(Repeat { times: within, count, depth: *depth, body });
                    } else {
                        self.sequence(code, pc + 1..pc + length, within.times(count));
                    }
                    pc += length;
                }
                Instr::Next { .. } | Instr::Serial { .. } | Instr::Phase(_) | Instr::End => {}
            }
            pc += 1;
        }
    }

    /// Multiplies and adds up what is the same at every place.
    fn fold(&mut self) {
        let constant: Vec<Option<u64>> =
            self.lengths.iter().map(|l| l.as_constant().map(|n| n.max(0) as u64)).collect();
        let (mut terms, mut fixed) = (BTreeMap::new(), BTreeMap::new());
        for ((what, lengths, gates), n) in std::mem::take(&mut self.terms) {
            let ((factor, lengths), (open, gates)) = (lengths.fold(&constant), gates.fold(&constant));
            let n = if open > 0 { n.saturating_mul(factor) } else { 0 };
            let sum: &mut u64 = match lengths.count + gates.count {
                0 => fixed.entry(what).or_default(),
                _ => terms.entry((what, lengths, gates)).or_default(),
            };
            *sum = sum.saturating_add(n);
        }
        (self.terms, self.fixed) = (terms, fixed.into_iter().collect());
        self.loops.iter_mut().for_each(|repeat| repeat.body.fold());
    }

    /// The position of a length.
    fn length(&mut self, length: &Linear) -> u16 {
        let known = self.lengths.iter().position(|l| l == length);
        let position = known.unwrap_or(self.lengths.len());
        if known.is_none() {
            self.lengths.push(length.clone());
        }
        position as u16
    }

    fn gain(&mut self, what: What, times: Product, gates: Product, n: u64) {
        let sum = self.terms.entry((what, times, gates)).or_default();
        *sum = sum.saturating_add(n);
    }

    fn op(&mut self, op: &LoweredOp, within: Product) {
        let constant = op.dims.iter().filter_map(Linear::as_constant).map(|n| n.max(0) as u64);
        let constant = constant.fold(1, u64::saturating_mul);
        let varying = op.dims.iter().filter(|d| d.as_constant().is_none());
        let (mut lengths, mut all) = (Product::default(), within);
        for length in varying {
            let at = self.length(length);
            (lengths, all) = (lengths.times(at), all.times(at));
        }
        if constant == 0 {
            return;
        }
        let mut moved = Vec::new();
        for source in &op.src {
            match source {
                Source::In { slot, wire } => moved.push((What::Read(*slot as u16), wire.lanes().into())),
                Source::Scalar { slot, .. } => self.gain(What::Read(*slot as u16), within, lengths, 1),
                _ => {}
            }
        }
        if let Sink::Out { slot, wire, .. } = &op.dst {
            moved.push((What::Sent(*slot as u16), wire.lanes().into()));
        }
        if op.step() > 1 {
            self.packed.push(Packed { times: within, lengths, constant, step: op.step().into(), moved });
        } else {
            moved.into_iter().for_each(|(what, _)| self.gain(what, all, Product::default(), constant));
        }
    }

    /// Adds what `times` runs move; false once it takes too many steps.
    ///
    /// What is the same at every place is counted by who asks.
    fn count(&self, env: &mut Env, times: u64, values: &mut Vec<u64>, tally: &mut Tally) -> bool {
        let first = values.len();
        values.extend(self.lengths.iter().map(|l| l.at(env).max(0) as u64));
        let go_on = self.add_up(env, times, first, values, tally);
        values.truncate(first);
        go_on
    }

    fn add_up(
        &self,
        env: &mut Env,
        times: u64,
        first: usize,
        values: &mut Vec<u64>,
        tally: &mut Tally,
    ) -> bool {
        let own = &values[first..];
        for ((what, lengths, gates), n) in &self.terms {
            if gates.of(own) > 0 {
                tally.add(*what, times.saturating_mul(*n).saturating_mul(lengths.of(own)));
            }
        }
        for packed in &self.packed {
            let runs = packed.times.of(own).saturating_mul(times);
            let elements = packed.lengths.of(own).saturating_mul(packed.constant);
            tally.odd |= runs > 0 && !elements.is_multiple_of(packed.step);
            for (what, lanes) in &packed.moved {
                tally.add(*what, (elements / lanes).saturating_mul(runs));
            }
        }
        for repeat in &self.loops {
            let own = &values[first..];
            let outer = repeat.times.of(own).saturating_mul(times);
            let n = if outer == 0 { 0 } else { own[usize::from(repeat.count)] };
            for i in 0..n {
                tally.steps += 1;
                env.loops[repeat.depth] = i as i64;
                repeat.body.fixed.iter().for_each(|(what, n)| tally.add(*what, outer.saturating_mul(*n)));
                if tally.undecided() || !repeat.body.count(env, outer, values, tally) {
                    return false;
                }
            }
            env.loops[repeat.depth] = 0;
        }
        true
    }
}
