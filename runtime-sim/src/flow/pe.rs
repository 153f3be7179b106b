//! A PE of a flow run: its clock, where it is in its code, and what it remembers of the last iterations.

use super::bursts::{Burst, close};
use super::held::{Again, Entry, Held, Spent};
use super::pace::Pace;
use super::profile::Profile;
use crate::lower::MAX_DEPTH;
use std::rc::Rc;

/// State of a PE. What is looked at in every stretch comes first, side by side.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct Pe {
    /// Local time.
    pub time: f64,
    /// Cycles that moved or computed elements.
    pub busy: f64,
    /// Cycles that started ops.
    pub issue: f64,
    /// Cycles that started tasks.
    pub activation: f64,
    /// Next instruction.
    pub pc: usize,
    /// The task that runs.
    pub running: Option<usize>,
    /// The phase it is in.
    pub phase: Option<u16>,
    /// Everything is done.
    pub finished: bool,
    /// It does without the words of a whole iteration.
    pub hurried: bool,
    /// Progress of the running group of ops.
    pub ops: Vec<OpState>,
    /// The running iterations of the loops that run step by step, outermost first.
    pub records: Vec<Record>,
    /// Ends that were read on credit.
    pub credit: Vec<u32>,
    /// The loop that goes on as soon as words are there.
    pub looping: Option<Looping>,
    /// Where it stops for now.
    pub stop: usize,
    /// Earlier runs of the task.
    pub turn: u64,
    /// The end whose words it waits for.
    pub waits_for: u32,
    /// By how much words of the host came before they were needed, at least.
    pub slack: f64,
    /// The same of words of PEs in other rows.
    pub ahead: f64,
    /// How long the first of those held it up.
    pub held_first: Option<f64>,
    /// Loop counters.
    pub loops: [i64; MAX_DEPTH],
    /// Per task: runs done, activations pending.
    pub runs: Vec<(u64, u64)>,
    /// Phases entered, with the time: in this stretch, or in the whole run if that is kept.
    pub phases: Vec<(u16, f64)>,
    /// What an iteration does undisturbed, by head of the loops that run.
    pub profiles: Vec<(usize, Rc<Profile>)>,
    /// The rhythm of loops that run in bulk, by head.
    pub beats: Vec<Beat>,
    /// What held it up, and when.
    pub held: Held,
}

impl Pe {
    /// Notes words written, in all iterations that run.
    pub fn note_write(&mut self, stream: u32, burst: &Burst) {
        self.records.iter_mut().for_each(|record| record.write(stream, burst));
    }

    /// Busy, issue and activation cycles so far.
    pub fn spent(&self) -> Spent {
        [self.busy, self.issue, self.activation]
    }

    /// Notes that iterations from `begin` on are like a recorded one, before their cycles are counted.
    pub fn like_record(&mut self, last: &Record, begin: f64, runs: u64) {
        let record = last.held..self.held.entries.len();
        let spent = self.spent();
        let each = [spent[0] - last.spent.0, spent[1] - last.spent.1, 0.0];
        let again = Again { begin, length: last.length, runs, record, spent, each };
        self.held.entries.push(Entry::Again(Box::new(again)));
    }

    /// Notes words read, in all iterations that run.
    pub fn note_read(&mut self, end: u32, words: u64) {
        self.records.iter_mut().for_each(|record| record.read(end, words));
    }
}

/// A loop between two of its iterations.
#[derive(Clone, Debug)]
pub struct Looping {
    /// Head of the loop.
    pub head: usize,
    /// The iteration that ran last, if it ran step by step.
    pub last: Option<Box<Record>>,
}

/// The rhythm of a loop that runs in bulk, a piece at a time as its words come.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Head of the loop.
    pub head: usize,
    /// The last piece.
    pub pace: Pace,
    /// From one iteration to the next.
    pub period: f64,
    /// By wait of the piece: how much later its words come from one iteration to the next, whether or not they are waited
    /// for; empty while that is not known.
    pub slopes: Vec<f64>,
    /// Whether the piece before went on in this piece without a break.
    pub sure: bool,
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

/// What one iteration of a loop did.
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
    /// What had held it up by then, as a number of entries.
    pub held: usize,
    /// Streams written, with what was written in order, timed from `start`.
    pub writes: Vec<(u32, Vec<Burst>)>,
    /// Ends read and how many words.
    pub reads: Vec<(u32, u64)>,
    /// How long it took; set at its end.
    pub length: f64,
    /// Whether it did more than is worth remembering.
    pub is_long: bool,
    /// The iteration before.
    pub before: Option<Box<Record>>,
}

/// Most bursts of a stream that one iteration is remembered with.
const MOST: usize = 96;

impl Record {
    fn write(&mut self, stream: u32, burst: &Burst) {
        if self.is_long {
            return;
        }
        let burst = Burst { start: burst.start - self.start, ..burst.clone() };
        match self.writes.iter_mut().find(|w| w.0 == stream) {
            Some((_, list)) => {
                if !list.last_mut().is_some_and(|last| last.takes(&burst)) {
                    self.is_long = list.len() == MOST;
                    list.push(burst);
                }
            }
            None => self.writes.push((stream, vec![burst])),
        }
    }

    fn read(&mut self, end: u32, words: u64) {
        match self.reads.iter_mut().find(|r| r.0 == end) {
            Some(read) => read.1 += words,
            None => self.reads.push((end, words)),
        }
    }

    /// Whether this iteration follows the one before and did the same at the same times.
    pub fn repeats(&self) -> bool {
        let Some(before) = &self.before else { return false };
        let alike =
            |a: &[Burst], b: &[Burst]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.is_like(b));
        !self.is_long
            && self.iteration == before.iteration + 1
            && close(self.length, before.length)
            && self.reads == before.reads
            && self.writes.len() == before.writes.len()
            && self.writes.iter().zip(&before.writes).all(|((s, a), (t, b))| s == t && alike(a, b))
    }
}
