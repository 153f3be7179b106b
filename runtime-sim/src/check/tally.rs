//! What a PE sends, reads and starts in a whole run: its code as sums of products of counts and lengths, formed once
//! for a class and evaluated for each kind of place.

use crate::lower::{Env, Instr, Linear, LoweredClass, LoweredOp, LoweredTask, MAX_DEPTH, Sink, Source};
use crate::program::{Coord, Trigger};
use std::collections::BTreeMap;

/// What one PE does to the fabric in a whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Data words read, by input slot.
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
    steps: u64,
}

/// A PE whose loops depend on each other in more iterations than this is not counted.
const STEPS: u64 = 1 << 20;

impl Tally {
    /// Whether counting was given up.
    pub fn undecided(&self) -> bool {
        self.steps >= STEPS
    }

    fn add(&mut self, what: What, n: u64) {
        let sum = match what {
            What::Read(slot) => &mut self.read[usize::from(slot)],
            What::Sent(slot) => &mut self.sent[usize::from(slot)],
            What::Control(slot) => &mut self.controls[usize::from(slot)],
            What::Activation(task) => &mut self.activated[usize::from(task)],
        };
        *sum = sum.saturating_add(n);
    }
}

/// One of the counts of a tally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Read(u16),
    Sent(u16),
    Control(u16),
    Activation(u16),
}

/// The code of a class, ready to be counted at any place.
pub struct Sums<'a> {
    class: &'a LoweredClass,
    tasks: Vec<(bool, Body)>,
}

impl<'a> Sums<'a> {
    /// Those of a class.
    pub fn of(class: &'a LoweredClass) -> Self {
        let task = |t: &LoweredTask| {
            let mut body = Body::default();
            body.sequence(&t.code, 0..t.code.len(), Product::default());
            body.fold();
            (t.code.iter().any(Instr::length_varies_by_turn), body)
        };
        Sums { class, tasks: class.tasks.iter().map(task).collect() }
    }

    /// Counts what a PE at a place sends and reads.
    pub fn at(&self, at: Coord) -> Tally {
        let class = self.class;
        let mut tally = Tally {
            read: vec![0; class.inputs.len()],
            sent: vec![0; class.outputs.len()],
            controls: vec![0; class.outputs.len()],
            activated: vec![0; class.tasks.len()],
            ..Tally::default()
        };
        let mut values = Vec::new();
        for (task, (by_turn, body)) in class.tasks.iter().zip(&self.tasks) {
            let mut env = place(at);
            let times = task.times.at(&env).max(0) as u64;
            if let Trigger::Data { .. } = task.trigger {
                tally.add(What::Read(task.slot as u16), times);
            }
            let (turns, each) = if *by_turn { (times, 1) } else { (times.min(1), times) };
            for turn in 0..turns {
                tally.steps += 1;
                env.turn = turn as i64;
                if tally.undecided() || !body.count(&mut env, each, &mut values, &mut tally) {
                    return tally;
                }
            }
        }
        tally
    }
}

/// What expressions see at a place.
pub fn place(at: Coord) -> Env {
    Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() }
}

/// Positions in [`Body::lengths`]: those of the loops around an op and of its own lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Product {
    factors: [u16; MAX_DEPTH + 4],
    count: u8,
}

impl Product {
    /// This with one more factor, in ascending order.
    fn times(mut self, factor: u16) -> Self {
        let count = usize::from(self.count).min(self.factors.len() - 1);
        self.factors[count] = factor;
        self.factors[..=count].sort_unstable();
        self.count = count as u8 + 1;
        self
    }

    fn factors(&self) -> &[u16] {
        &self.factors[..usize::from(self.count)]
    }

    /// The product of its constants, and what is left without them.
    fn fold(&self, constant: &[Option<u64>]) -> (u64, Product) {
        self.factors().iter().fold((1, Product::default()), |(known, rest), at| {
            match constant[usize::from(*at)] {
                Some(n) => (known.saturating_mul(n), rest),
                None => (known, rest.times(*at)),
            }
        })
    }

    fn of(&self, values: &[u64]) -> u64 {
        self.factors().iter().fold(1, |product, at| product.saturating_mul(values[usize::from(*at)]))
    }
}

/// A piece of code in which every length has one value.
#[derive(Default)]
struct Body {
    /// The different counts and lengths.
    lengths: Vec<Linear>,
    /// Per count: how often it gains the product of the first lengths, if none of the second is zero.
    terms: BTreeMap<(What, Product, Product), u64>,
    /// What is gained at every place alike.
    fixed: Vec<(What, u64)>,
    /// Ops that move several elements at once.
    packed: Vec<Packed>,
    /// Loops whose iterations differ.
    loops: Vec<Repeat>,
}

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
                Instr::Loop { depth, count, end, varies } => {
                    let count = self.length(count);
                    if *varies {
                        let mut body = Body::default();
                        body.sequence(code, pc + 1..*end, Product::default());
                        self.loops.push(Repeat { times: within, count, depth: *depth, body });
                    } else {
                        self.sequence(code, pc + 1..*end, within.times(count));
                    }
                    pc = *end;
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
        self.fixed.iter().for_each(|(what, n)| tally.add(*what, times.saturating_mul(*n)));
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
                if tally.undecided() || !repeat.body.count(env, outer, values, tally) {
                    return false;
                }
            }
            env.loops[repeat.depth] = 0;
        }
        true
    }
}
