//! What a PE sends, reads and starts in a whole run: the sum of what the code of its class gains.

use super::tally::{Body, Tally, What, place};
use crate::lower::{Env, LoweredClass, LoweredTask};
use crate::program::{Coord, Trigger};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// The code of a class, ready to be counted at any place.
pub struct Sums<'a> {
    class: &'a LoweredClass,
    tasks: Vec<Counted<'a>>,
}

/// The code of a task.
struct Counted<'a> {
    /// Whether its runs differ.
    by_turn: bool,
    /// What all segments together gain at every place alike.
    fixed: Vec<(What, u64)>,
    /// Segments that gain more: what depends on the column only, on the row only, and the rest.
    varying: [Vec<&'a Body>; 3],
    /// What those of the first two gain, by kind of column and by kind of row.
    known: [Vec<OnceLock<Tally>>; 2],
}

impl Counted<'_> {
    /// Adds what `each` runs gain at a place of these kinds of column and row.
    fn add_to(&self, tally: &mut Tally, each: u64, kinds: [usize; 2], env: &mut Env, values: &mut Vec<u64>) {
        self.fixed.iter().for_each(|(what, n)| tally.add(*what, each.saturating_mul(*n)));
        let sum = |bodies: &[&Body], env: &mut Env, values: &mut Vec<u64>| {
            let mut sum = Tally::default();
            bodies.iter().for_each(|body| body.once(env, values, |once| sum.add_all(once, 1)));
            sum
        };
        for axis in [0, 1] {
            if !self.varying[axis].is_empty() {
                let known =
                    self.known[axis][kinds[axis]].get_or_init(|| sum(&self.varying[axis], env, values));
                tally.add_all(known, each);
            }
        }
        for body in &self.varying[2] {
            if !tally.undecided() {
                body.once(env, values, |once| tally.add_all(once, each));
            }
        }
    }
}

impl<'a> Sums<'a> {
    /// Those of a class; `bodies` are those of all segments, by number.
    pub fn of(class: &'a LoweredClass, bodies: &'a [Arc<Body>]) -> Self {
        let task = |t: &LoweredTask| {
            let bodies = || t.code.segments().map(|segment| &*bodies[segment.number as usize]);
            let mut fixed: BTreeMap<What, u64> = BTreeMap::new();
            for (what, n) in bodies().flat_map(|body| &body.fixed) {
                let sum = fixed.entry(*what).or_default();
                *sum = sum.saturating_add(*n);
            }
            let varying = [0, 1, 2].map(|on| bodies().filter(|body| body.depends_on() == Some(on)).collect());
            let (by_turn, fixed) = (bodies().any(|body| body.by_turn), fixed.into_iter().collect());
            Counted { by_turn, fixed, varying, known: Default::default() }
        };
        Sums { class, tasks: class.tasks.iter().map(task).collect() }
    }

    /// Makes room for what is counted once for each of so many kinds of columns and rows.
    pub fn prepare(&mut self, kinds: [usize; 2]) {
        for known in self.tasks.iter_mut().flat_map(|task| task.known.iter_mut().zip(kinds)) {
            known.0.resize_with(known.1, OnceLock::new);
        }
    }

    /// Counts what a PE at a place sends and reads, whose column and row are of these kinds.
    pub fn at(&self, at: Coord, kinds: [usize; 2]) -> Tally {
        let class = self.class;
        let (read, sent) = (vec![0; class.inputs.len()], vec![0; class.outputs.len()]);
        let mut tally = Tally { read, sent, ..Tally::default() };
        let mut values = Vec::new();
        for (task, counted) in class.tasks.iter().zip(&self.tasks) {
            let mut env = place(at);
            let times = task.times.at(&env).max(0) as u64;
            if let Trigger::Data { .. } = task.trigger {
                tally.add(What::Read(task.slot as u16), times);
            }
            let (turns, each) = if counted.by_turn { (times, 1) } else { (times.min(1), times) };
            for turn in 0..turns {
                tally.steps += 1;
                env.turn = turn as i64;
                if tally.undecided() {
                    return tally;
                }
                counted.add_to(&mut tally, each, kinds, &mut env, &mut values);
            }
        }
        tally
    }
}
