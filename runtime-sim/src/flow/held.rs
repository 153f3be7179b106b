//! What held a PE up, and when: kept while it runs, read from the end backwards for the critical path.
//!
//! Of a piece of code that ran at a pace only the places are kept where it waited; what lies between two entries is work,
//! told apart by what the PE had spent at each of them. Iterations that were done like a recorded one, and stretches that
//! were done like those of another PE, are kept as such.

use super::bursts::SAME;
use super::pace::{Pace, Wait};
use super::profile::Profile;
use super::streams::Sender;
use std::ops::Range;

/// Busy, issue and activation cycles of a PE.
pub type Spent = [f64; 3];

/// What a PE did, in order of time.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// In order of their beginnings.
    pub entries: Vec<Entry>,
    /// Ops side by side that are running.
    side: Option<Box<Side>>,
}

/// Something that a PE did, or that it waited for.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It waited.
    Waited(Waited),
    /// Code that ran at a pace.
    Paced(Box<Paced>),
    /// Iterations like a recorded one.
    Again(Box<Again>),
    /// A stretch of code, as another PE did it.
    Like(Box<Like>),
    /// Ops side by side.
    Side(Box<Side>),
}

/// A wait.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    /// From when on.
    pub since: f64,
    /// Until when.
    pub release: f64,
    /// What the PE had spent before.
    pub spent: Spent,
    /// For whom.
    pub from: Sender,
    /// Where.
    pub end: u32,
}

/// Runs of a piece of code: number n ends `work` cycles after `start + n * period`.
#[derive(Clone, Debug, Default)]
pub struct Paced {
    /// When the first could begin.
    pub ready: f64,
    /// When the first begins, if it then runs through.
    pub start: f64,
    /// From one to the next.
    pub period: f64,
    /// Length of a run that does not wait.
    pub work: f64,
    /// How many.
    pub runs: u64,
    /// What the PE had spent before.
    pub spent: Spent,
    /// What each run spends.
    pub each: Spent,
    /// Where it waits.
    pub waits: Box<[Wait]>,
}

/// Iterations that were done like the one before them.
#[derive(Clone, Debug)]
pub struct Again {
    /// When the first of them begins.
    pub begin: f64,
    /// Cycles of an iteration.
    pub length: f64,
    /// How many.
    pub runs: u64,
    /// The entries of the iteration before.
    pub record: Range<usize>,
    /// What the PE had spent before.
    pub spent: Spent,
    /// What each of them spends.
    pub each: Spent,
}

/// A stretch of code that was done like another PE did it.
#[derive(Clone, Debug)]
pub struct Like {
    /// That PE.
    pub leader: u32,
    /// Its entries.
    pub entries: Range<usize>,
    /// When it began and when it ended.
    pub time: (f64, f64),
    /// What it had spent by then.
    pub led: (Spent, Spent),
    /// The PE that did like it, and by how much later.
    pub follower: u32,
    pub delay: f64,
    /// Which stretch.
    pub stretch: usize,
    /// What this PE had spent before.
    pub spent: Spent,
}

/// Ops that ran side by side.
#[derive(Clone, Debug)]
pub struct Side {
    /// When they began.
    pub ready: f64,
    /// When the last of them was done.
    pub end: f64,
    /// What the PE had spent before.
    pub spent: Spent,
    /// What it had spent afterwards.
    pub after: Spent,
    /// Each by itself.
    pub ops: Vec<SideOp>,
    /// The one that is looked at.
    running: usize,
}

/// One of the ops side by side.
#[derive(Clone, Debug)]
pub struct SideOp {
    /// The stream that it sends, if it does.
    pub stream: u32,
    /// When it was done.
    pub done: f64,
    /// What it did.
    pub entries: Vec<Entry>,
}

impl Held {
    /// Notes runs of a piece of code at a pace, if they waited or if `all` are kept.
    pub fn paced(&mut self, pace: &Pace, profile: &Profile, spent: Spent, all: bool) {
        if !all && pace.runs == 1 {
            return self.once(pace, profile, spent);
        }
        if !all && !pace.waits.iter().any(|wait| pace.is_held(wait)) {
            return;
        }
        let waits = pace.waits.iter().filter(|wait| pace.is_held(wait)).copied().collect();
        let Pace { runs, start, period, ready, .. } = *pace;
        let (busy, issue, work) = (profile.busy, profile.issue, profile.work);
        let each = [busy, issue, (work - busy - issue).max(0.0)];
        self.push(Entry::Paced(Box::new(Paced { ready, start, period, work, runs, spent, each, waits })));
    }

    /// Notes where a single run waited, place by place.
    fn once(&mut self, pace: &Pace, profile: &Profile, spent: Spent) {
        let mut begin = pace.ready;
        let next = |begin: f64| {
            let later = pace.waits.iter().filter(move |wait| wait.start > begin + SAME);
            later.min_by(|a, b| a.at.total_cmp(&b.at).then(b.start.total_cmp(&a.start)))
        };
        while let Some(wait) = next(begin) {
            let share = wait.at / profile.work.max(SAME);
            let spent = [spent[0] + share * profile.busy, spent[1] + share * profile.issue, spent[2]];
            let (since, release) = (begin + wait.at, wait.start + wait.at);
            self.push(Entry::Waited(Waited { since, release, spent, from: wait.from, end: wait.end }));
            begin = wait.start;
        }
    }

    /// Notes that a PE ready at `ready` waited for a word that arrived at `start`.
    pub fn word(&mut self, end: u32, ready: f64, start: f64, spent: Spent) {
        if start > ready + SAME {
            let from = Sender::Row;
            self.push(Entry::Waited(Waited { since: ready, release: start, spent, from, end }));
        }
    }

    fn push(&mut self, entry: Entry) {
        match &mut self.side {
            Some(side) => side.ops[side.running].entries.push(entry),
            None => self.entries.push(entry),
        }
    }

    /// Ops side by side begin, which send these streams.
    pub fn side_by_side(&mut self, streams: impl Iterator<Item = u32>, ready: f64, spent: Spent) {
        let ops = streams.map(|stream| SideOp { stream, done: ready, entries: Vec::new() }).collect();
        self.side = Some(Box::new(Side { ready, end: ready, spent, after: spent, ops, running: 0 }));
    }

    /// Of ops side by side this one goes on.
    pub fn at_op(&mut self, running: usize) {
        if let Some(side) = &mut self.side {
            side.running = running;
        }
    }

    /// Ops side by side were done at these times.
    pub fn together(&mut self, done: impl Iterator<Item = f64>, after: Spent) {
        if let Some(mut side) = self.side.take() {
            side.ops.iter_mut().zip(done).for_each(|(op, done)| op.done = done);
            side.end = side.ops.iter().map(|op| op.done).fold(side.ready, f64::max);
            side.after = after;
            self.entries.push(Entry::Side(side));
        }
    }
}

impl Entry {
    /// When it began.
    pub fn begin(&self) -> f64 {
        match self {
            Entry::Waited(waited) => waited.since,
            Entry::Paced(paced) => paced.ready,
            Entry::Again(again) => again.begin,
            Entry::Like(like) => like.time.0 + like.delay,
            Entry::Side(side) => side.ready,
        }
    }

    /// When it ended.
    pub fn end(&self) -> f64 {
        match self {
            Entry::Waited(waited) => waited.release,
            Entry::Paced(paced) => paced.start + (paced.runs - 1) as f64 * paced.period + paced.work,
            Entry::Again(again) => again.begin + again.runs as f64 * again.length,
            Entry::Like(like) => like.time.1 + like.delay,
            Entry::Side(side) => side.end,
        }
    }

    /// What the PE had spent before.
    pub fn before(&self) -> Spent {
        match self {
            Entry::Waited(waited) => waited.spent,
            Entry::Paced(paced) => paced.spent,
            Entry::Again(again) => again.spent,
            Entry::Like(like) => like.spent,
            Entry::Side(side) => side.spent,
        }
    }

    /// What it had spent afterwards.
    pub fn after(&self) -> Spent {
        let more = |spent: Spent, runs: u64, each: Spent| [0, 1, 2].map(|k| spent[k] + runs as f64 * each[k]);
        match self {
            Entry::Waited(waited) => waited.spent,
            Entry::Paced(paced) => more(paced.spent, paced.runs, paced.each),
            Entry::Again(again) => more(again.spent, again.runs, again.each),
            Entry::Like(like) => [0, 1, 2].map(|k| like.spent[k] + like.led.1[k] - like.led.0[k]),
            Entry::Side(side) => side.after,
        }
    }
}

impl Paced {
    /// When it could go on for the last time until `until`, for somebody who looks at `time`; and what it had waited for.
    pub fn last_held(&self, time: f64, until: f64) -> Option<(f64, Wait)> {
        let behind = (time - self.start - self.work) / self.period;
        let run = if behind > 0.0 && self.runs > 1 { (behind.ceil() as u64).min(self.runs - 1) } else { 0 };
        let last = |wait: &Wait| {
            let mut run = self.held_in(wait, run)?;
            if self.released(wait, run) > until {
                run = self.held_in(wait, run.checked_sub(1)?)?;
            }
            let release = self.released(wait, run);
            let over =
                |other: &&Wait| other.at <= wait.at && self.line(other, run) > self.line(wait, run) + SAME;
            (release <= until && !self.waits.iter().any(|other| over(&other))).then_some((release, *wait))
        };
        self.waits.iter().filter_map(last).max_by(|a, b| a.0.total_cmp(&b.0))
    }

    fn line(&self, wait: &Wait, run: u64) -> f64 {
        wait.start + run as f64 * wait.period
    }

    fn released(&self, wait: &Wait, run: u64) -> f64 {
        wait.at + self.line(wait, run)
    }

    /// The last run up to `run` in which a wait holds it up.
    fn held_in(&self, wait: &Wait, run: u64) -> Option<u64> {
        // By how much run n is held up, from the second on: a line over n.
        let rise = wait.period - self.period;
        let first = wait.start - self.start + self.period - self.work;
        if run > 0 && first + run as f64 * rise > SAME {
            return Some(run);
        }
        let before = if rise < 0.0 { ((first - SAME) / -rise).ceil() - 1.0 } else { 0.0 };
        match before >= 1.0 {
            true => Some((before as u64).min(run)).filter(|run| *run > 0),
            false => None,
        }
        .or_else(|| (wait.start > self.ready + SAME).then_some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_tells_which_word_it_waited_for_last() {
        let wait =
            |at: f64, start: f64, period: f64, end: u32| Wait { at, start, period, end, ..Wait::default() };
        // Runs of 4 cycles: the first waits for one input until cycle 10; the other lets one begin every 6 cycles.
        let before = |paced: &Paced, time: f64| paced.last_held(time, time - SAME);
        let waits = Box::new([wait(0.0, 10.0, 2.0, 1), wait(2.0, 3.0, 6.0, 2)]);
        let mut paced = Paced { start: 10.0, period: 4.0, work: 4.0, runs: 2, waits, ..Paced::default() };
        assert_eq!(before(&paced, 14.0).map(|(time, wait)| (time, wait.end)), Some((10.0, 1)));
        assert!(before(&paced, 10.0).is_none(), "a word that is sent does not wait for one that comes then");
        assert_eq!(before(&paced, 18.0).map(|(time, wait)| (time, wait.end)), Some((10.0, 1)));
        (paced.start, paced.period, paced.runs) = (20.0, 6.0, 9);
        paced.waits = Box::new([wait(2.0, 20.0, 6.0, 2)]);
        assert_eq!(before(&paced, 24.0 + 6.0 * 5.0).map(|held| held.0), Some(22.0 + 6.0 * 5.0));
        assert_eq!(before(&paced, 21.0 + 6.0 * 5.0).map(|held| held.0), Some(22.0 + 6.0 * 4.0));
    }
}
