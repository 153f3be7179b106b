//! A PE of a flow run: its clock, where it is in its code, and what it remembers of the last iterations.

use super::bursts::{Part, SAME};
use crate::lower::MAX_DEPTH;

/// State of a PE.
#[derive(Clone, Debug, Default)]
pub struct Pe {
    /// Local time.
    pub time: f64,
    /// Cycles that moved or computed elements.
    pub busy: f64,
    /// Cycles that started ops.
    pub issue: f64,
    /// Cycles that started tasks.
    pub activation: f64,
    /// Phases entered, with the time.
    pub phases: Vec<(u16, f64)>,
    /// Everything is done.
    pub finished: bool,
    /// The task that runs.
    pub running: Option<usize>,
    /// Next instruction.
    pub pc: usize,
    /// Earlier runs of the task.
    pub turn: u64,
    /// Loop counters.
    pub loops: [i64; MAX_DEPTH],
    /// Progress of the running group of ops.
    pub ops: Vec<OpState>,
    /// Per task: runs done, activations pending.
    pub runs: Vec<(u64, u64)>,
    /// The end whose words it waits for.
    pub waits_for: u32,
    /// The running iteration of the innermost loop that runs step by step.
    pub record: Option<Box<Record>>,
    /// The iteration before.
    pub previous: Option<Box<Record>>,
    /// Ends that were read on credit.
    pub credit: Vec<u32>,
    /// Where it stops for now.
    pub stop: usize,
    /// Some word made it wait.
    pub bound: bool,
    /// It did something before any word made it wait.
    pub early: bool,
}

impl Pe {
    /// Notes that work ready at `ready` begins at `start`.
    pub fn begin_at(&mut self, ready: f64, start: f64) {
        self.bound |= start > ready;
        self.early |= !self.bound;
    }
}

/// Progress of an op.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpState {
    /// Steps done.
    pub steps: u64,
    /// When the next can begin.
    pub ready: f64,
    /// Scalars have been read and issue has been paid.
    pub begun: bool,
    /// It is complete.
    pub done: bool,
}

/// What one iteration did.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Head of the loop.
    pub head: usize,
    /// Number of the iteration.
    pub iteration: i64,
    /// When it began.
    pub start: f64,
    /// Busy and issue cycles of the PE at that time.
    pub spent: (f64, f64),
    /// Streams written, in order, timed from `start`.
    pub writes: Vec<(u32, Part)>,
    /// Ends read and how many words.
    pub reads: Vec<(u32, u64)>,
    /// How long it took; set at its end.
    pub length: f64,
}

impl Record {
    /// Notes words written.
    pub fn write(&mut self, stream: u32, words: u64, first: f64, last: f64) {
        let gap = if words > 1 { (last - first) / (words - 1) as f64 } else { 0.0 };
        self.writes.push((stream, Part { words, at: first - self.start, gap }));
    }

    /// Notes words read.
    pub fn read(&mut self, end: u32, words: u64) {
        match self.reads.iter_mut().find(|r| r.0 == end) {
            Some(read) => read.1 += words,
            None => self.reads.push((end, words)),
        }
    }

    /// Whether this iteration follows `before` and did the same at the same times.
    pub fn repeats(&self, before: &Record) -> bool {
        let close = |a: f64, b: f64| (a - b).abs() < SAME;
        let follows = self.head == before.head && self.iteration == before.iteration + 1;
        let written = self.writes.len() == before.writes.len()
            && self.writes.iter().zip(&before.writes).all(|((s, a), (t, b))| {
                s == t && a.words == b.words && close(a.at, b.at) && close(a.gap, b.gap)
            });
        follows && close(self.length, before.length) && written && self.reads == before.reads
    }
}
