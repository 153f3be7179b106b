//! How fast a piece of code can go: its own work against the rhythm of each input, as lines over the iterations.

use super::bursts::{Burst, SAME};
use super::pe::Beat;
use super::profile::Access;
use super::streams::Sender;
use super::words::Rhythm;

/// What the next iterations of a piece of code can do.
#[derive(Clone, Debug)]
pub struct Pace {
    /// How many have one rhythm.
    pub runs: u64,
    /// When the first begins, if it then runs through.
    pub start: f64,
    /// From one to the next.
    pub period: f64,
    /// When the first could begin if it need not wait.
    pub ready: f64,
    /// Length of an iteration that does not wait.
    pub work: f64,
    /// Where it waits.
    pub waits: Waits,
}

/// A place in an iteration where it waits for words: where, from when on it lets the first iteration run through, and how
/// much later every next one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wait {
    /// Where.
    pub at: f64,
    /// From when on.
    pub start: f64,
    /// How much later each time.
    pub period: f64,
    /// Who sends these words, or makes room.
    pub from: Sender,
    /// The end where they arrive, or where there is room.
    pub end: u32,
}

/// The places where an iteration waits; few, so they live on the stack.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    few: [Wait; FEW],
    count: usize,
    more: Vec<Wait>,
}

/// Places kept without asking for memory.
const FEW: usize = 4;

impl Waits {
    fn push(&mut self, wait: Wait) {
        match self.few.get_mut(self.count) {
            Some(place) => *place = wait,
            None => self.more.push(wait),
        }
        self.count += 1;
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Wait> {
        self.few[..self.count.min(FEW)].iter().chain(&self.more)
    }
}

impl Pace {
    /// When something that an undisturbed iteration does `at` cycles after its begin is done in iteration `n`: words that
    /// are needed only after `held` do not hold it up.
    pub fn reaches(&self, at: f64, held: f64, n: u64) -> f64 {
        let begin = match n {
            0 => self.ready,
            _ => self.start + (n - 1) as f64 * self.period + self.work,
        };
        let waits = self.waits.iter().filter(|wait| wait.at <= held + SAME);
        at + waits.map(|wait| wait.start + n as f64 * wait.period).fold(begin, f64::max)
    }

    /// Whether it waits in a place, in its first run, its second or its last.
    pub fn is_held(&self, wait: &Wait) -> bool {
        let behind = |run: u64| {
            let done = self.start + (run - 1) as f64 * self.period + self.work;
            wait.start + run as f64 * wait.period > done + SAME
        };
        wait.start > self.ready + SAME || (self.runs > 1 && (behind(1) || behind(self.runs - 1)))
    }

    /// By how much words of such a sender came before they were needed, at least.
    pub fn slack(&self, from: Sender) -> f64 {
        let last = (self.runs - 1) as f64;
        let ahead = |wait: &Wait| {
            let first = self.start - wait.start;
            first.min(first + last * (self.period - wait.period))
        };
        self.waits.iter().filter(|wait| wait.from == from).map(ahead).fold(f64::INFINITY, f64::min)
    }

    /// How long the first iteration is held up by words of other rows alone; none if it reads none.
    pub fn held(&self) -> Option<f64> {
        let begin = |of_rows: bool| {
            let waits = self.waits.iter().filter(move |wait| (wait.from == Sender::OtherRow) == of_rows);
            waits.map(|wait| wait.start).reduce(f64::max)
        };
        Some((begin(true)? - begin(false).map_or(self.ready, |other| other.max(self.ready))).max(0.0))
    }

    /// The words of an access in iterations `first..first + count`, which have one rhythm.
    fn burst(&self, access: &Access, first: u64, count: u64) -> Burst {
        let start = self.reaches(access.first, access.held.0, first);
        let gap = match access.words {
            1 => 0.0,
            words => (self.reaches(access.last, access.held.1, first) - start) / (words - 1) as f64,
        };
        let period = match count {
            1 => 0.0,
            _ => (self.reaches(access.first, access.held.0, first + count - 1) - start) / (count - 1) as f64,
        };
        match access.words {
            1 => Burst::even(1, start, 0.0, count, period),
            words => Burst::even(count, start, period, words, gap),
        }
    }

    /// The words of an access. The first iteration may be ahead of the rhythm of the others.
    pub fn bursts(&self, access: &Access) -> impl Iterator<Item = Burst> {
        let others = (self.runs > 1).then(|| self.burst(access, 1, self.runs - 1));
        [Some(self.burst(access, 0, 1)), others].into_iter().flatten()
    }
}

/// Iteration i begins at the largest of some lines `start + i * period`: one for the code itself, one per input and per
/// queue. The line on top at i = 0 with the steepest slope rules until a steeper one crosses it.
pub struct Lines {
    pace: Pace,
}

impl Lines {
    /// That of code that takes `work` and is ready at `time`, for up to `runs` iterations.
    pub fn new(time: f64, work: f64, runs: u64) -> Self {
        let waits = Waits::default();
        Lines { pace: Pace { runs, start: time, period: work, ready: time, work, waits } }
    }

    /// The code must also wait, `at` cycles after its begin, for room at an end, which lets it begin at `start`.
    pub fn room(&mut self, at: f64, start: f64, (rhythm, end): (&Rhythm, u32)) {
        self.wait(Wait { at, start, period: rhythm.period, from: Sender::Room, end }, rhythm.reads);
    }

    /// The code must also wait in this place, for so many reads.
    pub fn wait(&mut self, wait: Wait, reads: u64) {
        let pace = &mut self.pace;
        pace.runs = pace.runs.min(reads);
        let line = (wait.start, wait.period.max(pace.work));
        if line.0 > pace.start + 1e-9 || (line.0 > pace.start - 1e-9 && line.1 > pace.period) {
            (pace.start, pace.period) = line;
        }
        pace.waits.push(wait);
    }

    /// Words that nobody has sent yet are trusted to come as they did.
    pub fn trust(&mut self, wait: Wait) {
        self.wait(wait, self.pace.runs);
    }

    /// The line on top, for as long as it is.
    pub fn pace(mut self) -> Pace {
        let Pace { runs, start, period, waits, .. } = &mut self.pace;
        for wait in waits.iter().filter(|wait| wait.period > *period + 1e-9) {
            let meet = ((*start - wait.start) / (wait.period - *period)).floor() as u64 + 1;
            *runs = (*runs).min(meet.max(1));
        }
        self.pace
    }
}

impl Beat {
    /// That of the loop at `head` after its first piece. Of a single iteration it is not yet known when the next one will follow.
    pub fn first(head: usize, pace: Pace) -> Beat {
        let period = if pace.runs == 1 { f64::NAN } else { pace.period };
        Beat { head, pace, period, slopes: Vec::new(), sure: false }
    }

    /// After one more piece, which may have been on credit.
    pub fn goes_on(&mut self, pace: Pace, on_credit: bool) {
        let (alone, runs) = (pace.runs == 1, self.pace.runs as f64);
        let seen = (pace.start - self.pace.start) / runs;
        let even = (seen - self.period).abs() < SAME && (alone || (pace.period - seen).abs() < SAME);
        self.sure = even && !on_credit;
        self.slopes.clear();
        let waits = pace.waits.iter().zip(self.pace.waits.iter());
        self.slopes.extend(waits.map(|(wait, before)| (wait.start - before.start) / runs));
        self.period = if alone { seen } else { pace.period };
        self.pace = pace;
    }

    /// A wait of the last piece, in the next one.
    pub fn later(&self, wait: &Wait, slope: f64) -> Wait {
        Wait { start: wait.start + self.pace.runs as f64 * slope, period: slope, ..*wait }
    }
}
