//! What a piece of code does to time and to its streams when nothing makes it wait.

use crate::lower::{Code, Env, Instr, LoweredOp, Sink, Source};
use smallvec::SmallVec;

/// A stream as one piece of code uses it: words from `first` to `last`, as times after the piece begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    /// Input or output slot.
    pub slot: usize,
    /// Words read or written.
    pub words: u64,
    /// When the first is needed, or leaves.
    pub first: f64,
    /// When the last is needed, or leaves.
    pub last: f64,
    /// Until when a wait for words holds up the first and the last: ops side by side wait for their own words only.
    pub held: (f64, f64),
}

impl Access {
    /// An access that every wait before it holds up.
    pub fn new(slot: usize, words: u64, first: f64, last: f64) -> Access {
        Access { slot, words, first, last, held: (first, last) }
    }

    /// This, `by` cycles later.
    fn later(&self, by: f64) -> Access {
        let held = (self.held.0 + by, self.held.1 + by);
        Access { first: self.first + by, last: self.last + by, held, ..*self }
    }
}

/// Before an op begins, and after the last word that an op before it reads.
const BEFORE: f64 = -0.25;

/// The streams that a piece of code reads, or writes; few, so they need no memory of their own.
pub type Accesses = SmallVec<[Access; 2]>;

/// The undisturbed run of a piece of code.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Its length in cycles.
    pub work: f64,
    /// Of these, cycles that move or compute elements.
    pub busy: f64,
    /// Of these, cycles to start ops.
    pub issue: f64,
    /// Streams read.
    pub reads: Accesses,
    /// Streams written.
    pub writes: Accesses,
}

impl Profile {
    /// That of one step of a streaming op, or of a whole op on memory.
    pub fn step(op: &LoweredOp, env: &Env) -> Profile {
        let mut profile = Profile::default();
        profile.op(op, env, true);
        profile
    }

    /// That of one iteration of `code[range]`.
    pub fn of(code: &Code, range: std::ops::Range<usize>, env: &mut Env) -> Profile {
        let mut profile = Profile::default();
        profile.sequence(code, range, env);
        profile
    }

    fn sequence(&mut self, code: &Code, range: std::ops::Range<usize>, env: &mut Env) {
        let mut pc = range.start;
        while pc < range.end {
            match &code[pc] {
                Instr::Op(op) => self.op(op, env, false),
                Instr::Par(ops) => self.side_by_side(ops, env),
                Instr::Serial { cycles, times, .. } => {
                    let cycles = (cycles * times.at(env).max(0) as u64) as f64;
                    self.work += cycles;
                    self.issue += cycles;
                }
                Instr::Loop { depth, count, length, varies } => {
                    let n = count.at(env).max(0) as u64;
                    self.repeat(code, pc + 1..pc + length, env, *depth, n, *varies);
                    pc += length;
                }
                _ => {}
            }
            pc += 1;
        }
    }

    fn repeat(
        &mut self,
        code: &Code,
        body: std::ops::Range<usize>,
        env: &mut Env,
        depth: usize,
        n: u64,
        varies: bool,
    ) {
        env.loops[depth] = 0;
        if varies {
            for i in 0..n {
                env.loops[depth] = i as i64;
                self.sequence(code, body.clone(), env);
            }
        } else if n > 0 {
            let once = Profile::of(code, body, env);
            self.append(&once.times(n));
        }
        env.loops[depth] = 0;
    }

    /// `n` runs one after the other.
    pub fn times(mut self, n: u64) -> Profile {
        let later = (n - 1) as f64 * self.work;
        for access in self.reads.iter_mut().chain(&mut self.writes) {
            access.words *= n;
            access.last += later;
            access.held.1 += later;
        }
        let factor = n as f64;
        Profile { work: self.work * factor, busy: self.busy * factor, issue: self.issue * factor, ..self }
    }

    /// `other` after this.
    pub fn append(&mut self, other: &Profile) {
        let begin = self.work;
        other.reads.iter().for_each(|a| merge(&mut self.reads, a, begin));
        other.writes.iter().for_each(|a| merge(&mut self.writes, a, begin));
        self.work += other.work;
        self.busy += other.busy;
        self.issue += other.issue;
    }

    fn op(&mut self, op: &LoweredOp, env: &Env, one_step: bool) {
        let elements = op.elements(env);
        if elements == 0 {
            return;
        }
        let issue = if one_step && op.streams() { 0.0 } else { op.price.issue as f64 };
        for source in &op.src {
            if let Source::Scalar { slot, .. } = source
                && !(one_step && op.streams())
            {
                merge(&mut self.reads, &Access::new(*slot, 1, 0.0, 0.0), self.work);
            }
        }
        let begin = self.work + issue;
        let length = match op.streams() {
            true => self.stream(op, if one_step { 1 } else { elements / u64::from(op.price.step) }, begin),
            false => op.memory_cycles(env) as f64,
        };
        self.work = begin + length;
        self.busy += length;
        self.issue += issue;
    }

    /// Reads and writes of a streaming op of `steps` steps.
    fn stream(&mut self, op: &LoweredOp, steps: u64, begin: f64) -> f64 {
        let cost = op.price.step_cycles as f64;
        let later = (steps.max(1) - 1) as f64 * cost;
        for source in &op.src {
            if let Source::In { slot, wire } = source {
                let words = steps * u64::from(op.price.step / wire.lanes());
                merge(&mut self.reads, &Access::new(*slot, words, 0.0, later), begin);
            }
        }
        if let Sink::Out { slot, wire, .. } = &op.dst {
            let words = u64::from(op.price.step / wire.lanes());
            let first = cost - (words - 1) as f64;
            merge(&mut self.writes, &Access::new(*slot, steps * words, first, later + cost), begin);
        }
        steps as f64 * cost
    }

    fn side_by_side(&mut self, ops: &[LoweredOp], env: &Env) {
        let begin = self.work;
        let mut longest = Profile::default();
        for op in ops {
            let mut alone = Profile::default();
            alone.op(op, env, false);
            if alone.reads.is_empty() {
                alone.writes.iter_mut().for_each(|access| access.held = (BEFORE, BEFORE));
            }
            alone.reads.iter().for_each(|a| merge(&mut self.reads, a, begin));
            alone.writes.iter().for_each(|a| merge(&mut self.writes, a, begin));
            if alone.work > longest.work {
                longest = alone;
            }
        }
        self.work += longest.work;
        self.busy += longest.busy;
        self.issue += longest.issue;
    }
}

/// Adds an access that begins `begin` later to those of the same slot.
fn merge(list: &mut Accesses, access: &Access, begin: f64) {
    let next = access.later(begin);
    match list.iter_mut().find(|a| a.slot == access.slot) {
        Some(a) => {
            a.words += next.words;
            if next.first < a.first {
                (a.first, a.held.0) = (next.first, next.held.0);
            }
            if next.last > a.last {
                (a.last, a.held.1) = (next.last, next.held.1);
            }
        }
        None => list.push(next),
    }
}
