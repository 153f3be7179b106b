//! How fast a piece of code can go: its own work against the rhythm of each input, as lines over the iterations.

use super::actor::Actor;
use super::bursts::{Burst, SAME};
use super::pe::{Beat, Record};
use super::profile::{Access, Profile};
use super::words::Rhythm;
use crate::lower::{LoweredOp, Source};

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
    ready: f64,
    /// Length of an iteration that does not wait.
    work: f64,
    waits: Waits,
}

/// A place in an iteration where it waits for words: where, from when on it lets the first iteration run through, and how
/// much later every next one.
#[derive(Clone, Copy, Debug, Default)]
struct Wait {
    at: f64,
    start: f64,
    period: f64,
    /// Whether the host sends these words.
    of_host: bool,
}

/// The places where an iteration waits; few, so they live on the stack.
#[derive(Clone, Debug, Default)]
struct Waits {
    few: [Wait; FEW],
    count: usize,
    more: Vec<Wait>,
}

/// Places kept without asking for memory.
const FEW: usize = 8;

impl Waits {
    fn push(&mut self, wait: Wait) {
        match self.few.get_mut(self.count) {
            Some(place) => *place = wait,
            None => self.more.push(wait),
        }
        self.count += 1;
    }

    fn iter(&self) -> impl Iterator<Item = &Wait> {
        self.few[..self.count.min(FEW)].iter().chain(&self.more)
    }
}

impl Pace {
    /// When something that an undisturbed iteration does `at` cycles after its begin is done in iteration `n`: words that
    /// are needed only later do not hold it up.
    fn reaches(&self, at: f64, n: u64) -> f64 {
        let begin = match n {
            0 => self.ready,
            _ => self.start + (n - 1) as f64 * self.period + self.work,
        };
        let waits = self.waits.iter().filter(|wait| wait.at <= at + SAME);
        at + waits.map(|wait| wait.start + n as f64 * wait.period).fold(begin, f64::max)
    }

    /// By how much words of the host came before they were needed, at least.
    fn slack(&self) -> f64 {
        let last = (self.runs - 1) as f64;
        let ahead = |wait: &Wait| {
            let first = self.start - wait.start;
            first.min(first + last * (self.period - wait.period))
        };
        self.waits.iter().filter(|wait| wait.of_host).map(ahead).fold(f64::INFINITY, f64::min)
    }

    /// The words of an access in iterations `first..first + count`, which have one rhythm.
    fn burst(&self, access: &Access, first: u64, count: u64) -> Burst {
        let start = self.reaches(access.first, first);
        let gap = match access.words {
            1 => 0.0,
            words => (self.reaches(access.last, first) - start) / (words - 1) as f64,
        };
        let period = match count {
            1 => 0.0,
            _ => (self.reaches(access.first, first + count - 1) - start) / (count - 1) as f64,
        };
        match access.words {
            1 => Burst::even(1, start, 0.0, count, period),
            words => Burst::even(count, start, period, words, gap),
        }
    }

    /// The words of an access. The first iteration may be ahead of the rhythm of the others.
    fn bursts(&self, access: &Access) -> impl Iterator<Item = Burst> {
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

    /// The code must also wait, `at` cycles after its begin, for a rhythm, which lets it begin at `start`.
    pub fn add(&mut self, at: f64, start: f64, rhythm: &Rhythm) {
        self.wait(Wait { at, start, period: rhythm.period, of_host: false }, rhythm.reads);
    }

    fn wait(&mut self, wait: Wait, reads: u64) {
        let pace = &mut self.pace;
        pace.runs = pace.runs.min(reads);
        let line = (wait.start, wait.period.max(pace.work));
        if line.0 > pace.start + 1e-9 || (line.0 > pace.start - 1e-9 && line.1 > pace.period) {
            (pace.start, pace.period) = line;
        }
        pace.waits.push(wait);
    }

    /// Words that nobody has sent yet are trusted to come as they did.
    fn trust(&mut self, wait: Wait) {
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
    /// The beat of the loop at `head` after a piece at `pace`.
    fn after(before: Option<Beat>, head: usize, pace: Pace) -> Beat {
        let alone = pace.runs == 1;
        let Some(before) = before else {
            // Of a single iteration it is not yet known when the next one will follow.
            let period = if alone { f64::NAN } else { pace.period };
            return Beat { head, pace, period, slopes: Vec::new(), sure: false };
        };
        let each = |later: f64, earlier: f64| (later - earlier) / before.pace.runs as f64;
        let seen = each(pace.start, before.pace.start);
        let sure = (seen - before.period).abs() < SAME && (alone || (pace.period - seen).abs() < SAME);
        let waits = pace.waits.iter().zip(before.pace.waits.iter());
        let slopes = waits.map(|(wait, before)| each(wait.start, before.start)).collect();
        Beat { head, period: if alone { seen } else { pace.period }, pace, slopes, sure }
    }

    /// A wait of the last piece, in the next one.
    fn later(&self, wait: &Wait, slope: f64) -> Wait {
        Wait { start: wait.start + self.pace.runs as f64 * slope, period: slope, ..*wait }
    }
}

impl Actor<'_, '_> {
    /// Runs up to `most` times what `profile` describes; returns how often it did.
    pub fn bulk(&mut self, profile: &Profile, most: u64) -> u64 {
        let Some(pace) = self.pace(profile, self.pe.time, most, None) else { return 0 };
        self.go(profile, &pace);
        pace.runs
    }

    /// Runs up to `most` iterations of the loop at `head`, of which `done` are done: as far as words are known, or, where the
    /// last two pieces had one rhythm, as many as are done, reading on credit. Returns how many it did.
    pub fn piece(&mut self, head: usize, profile: &Profile, done: u64, most: u64) -> u64 {
        let at = self.pe.beats.iter().position(|beat| beat.head == head);
        let beat = at.map(|at| self.pe.beats.swap_remove(at));
        let known = self.pace(profile, self.pe.time, most, None);
        let trusted = beat.as_ref().filter(|beat| known.is_none() && beat.sure && self.streams.credit);
        let trusted = trusted.and_then(|beat| self.pace(profile, self.pe.time, most.min(done), Some(beat)));
        let on_credit = known.is_none();
        let Some(pace) = known.or(trusted) else {
            self.pe.beats.extend(beat);
            return 0;
        };
        self.go(profile, &pace);
        let runs = pace.runs;
        let mut beat = Beat::after(beat, head, pace);
        // What is on credit says nothing of what is to come.
        beat.sure &= !on_credit;
        self.pe.beats.push(beat);
        runs
    }

    /// Does iterations at a pace.
    fn go(&mut self, profile: &Profile, pace: &Pace) {
        self.apply(profile, pace);
        let runs = pace.runs as f64;
        self.pe.time = pace.start + (runs - 1.0) * pace.period + profile.work;
        self.pe.busy += runs * profile.busy;
        self.pe.issue += runs * profile.issue;
    }

    /// How often, from when and how fast a piece of code can run that is ready at `time`; none if words are missing that
    /// cannot be trusted to go on in a beat.
    fn pace(&mut self, profile: &Profile, time: f64, most: u64, beat: Option<&Beat>) -> Option<Pace> {
        let mut lines = Lines::new(time, profile.work, most);
        let mut waits = beat.map(|beat| beat.pace.waits.iter().zip(&beat.slopes));
        for access in &profile.reads {
            let places = 1 + usize::from(access.words > 1);
            let before: [Option<(&Wait, &f64)>; 2] = [0, 1].map(|n| match &mut waits {
                Some(waits) if n < places => waits.next(),
                _ => None,
            });
            let end = self.net.input(self.index, access.slot);
            match (self.streams.rhythm(end, access.words), beat) {
                (Some(rhythm), _) => {
                    let of_host = self.streams.is_of_host(end);
                    let mut wait = |at: f64, start: f64| {
                        lines.wait(Wait { at, start, period: rhythm.period, of_host }, rhythm.reads);
                    };
                    wait(access.first, rhythm.first - access.first);
                    if places > 1 {
                        wait(access.last, rhythm.last - access.last);
                    }
                }
                (None, Some(beat)) => {
                    before
                        .into_iter()
                        .flatten()
                        .for_each(|(wait, slope)| lines.trust(beat.later(wait, *slope)));
                }
                (None, None) => return None,
            }
        }
        if self.streams.exact.is_some() {
            for access in &profile.writes {
                let stream = self.net.output(self.index, access.slot);
                if let Some(rhythm) = self.streams.room(stream, access.words) {
                    lines.add(access.first, rhythm.last - access.last, &rhythm);
                }
            }
        }
        Some(lines.pace())
    }

    /// Takes the words read and publishes those written.
    fn apply(&mut self, profile: &Profile, pace: &Pace) {
        self.pe.slack = self.pe.slack.min(pace.slack());
        for access in &profile.reads {
            let end = self.net.input(self.index, access.slot);
            let needed = pace.reaches(access.last, pace.runs - 1);
            self.read(end, access.words * pace.runs, needed);
            if self.streams.exact.is_some() {
                pace.bursts(access).for_each(|burst| self.streams.note_taken(end, burst));
            }
        }
        for access in &profile.writes {
            let stream = self.net.output(self.index, access.slot);
            for burst in pace.bursts(access) {
                self.pe.note_write(stream, &burst);
                self.streams.write(stream, burst);
            }
        }
    }

    /// Does what the iteration `last` did `runs` more times, each its length later, reading on credit.
    pub fn repeat(&mut self, last: &Record, runs: u64) {
        let start = last.start + last.length;
        for (stream, list) in &last.writes {
            let burst = Burst::repeated(runs, start, last.length, list.clone());
            self.pe.note_write(*stream, &burst);
            self.streams.write(*stream, burst);
        }
        self.pe.busy += runs as f64 * (self.pe.busy - last.spent.0);
        self.pe.issue += runs as f64 * (self.pe.issue - last.spent.1);
        self.pe.time += runs as f64 * last.length;
        for (end, words) in &last.reads {
            self.read(*end, words * runs, self.pe.time);
        }
    }

    /// Reads words of which the last is needed at `needed`, on credit where they have not come.
    fn read(&mut self, end: u32, words: u64, needed: f64) {
        self.streams.take(end, words);
        self.pe.note_read(end, words);
        if self.streams.lends(end, needed) && !self.pe.credit.contains(&end) {
            self.pe.credit.push(end);
        }
    }

    /// Runs one op as far as its words are known; false if it must wait.
    pub fn op(&mut self, op: &LoweredOp, k: usize) -> bool {
        let env = self.env();
        let elements = op.elements(&env);
        if elements == 0 {
            self.pe.ops[k].done = true;
            return true;
        }
        if op.streams() && !self.pe.ops[k].begun && !self.scalars(op, k) {
            return false;
        }
        let profile = Profile::step(op, &env);
        let steps = if op.streams() { elements / u64::from(op.price.step) } else { 1 };
        self.advance(&profile, k, steps)
    }

    /// Reads the scalar operands of a streaming op and pays its issue.
    fn scalars(&mut self, op: &LoweredOp, k: usize) -> bool {
        for source in &op.src {
            let Source::Scalar { slot, .. } = source else { continue };
            let end = self.net.input(self.index, *slot);
            let Some(rhythm) = self.streams.rhythm(end, 1) else {
                self.wait(*slot);
                return false;
            };
            self.streams.take(end, 1);
            self.pe.note_read(end, 1);
            if self.streams.is_of_host(end) {
                self.pe.slack = self.pe.slack.min(self.pe.ops[k].ready - rhythm.first);
            }
            self.pe.ops[k].ready = self.pe.ops[k].ready.max(rhythm.first);
            self.streams.note_taken(end, Burst::even(1, self.pe.ops[k].ready, 0.0, 1, 0.0));
        }
        self.pe.ops[k].ready += op.price.issue as f64;
        self.pe.issue += op.price.issue as f64;
        self.pe.ops[k].begun = true;
        true
    }

    /// Advances op `k` of the group to `steps` steps.
    fn advance(&mut self, profile: &Profile, k: usize, steps: u64) -> bool {
        while self.pe.ops[k].steps < steps {
            let left = steps - self.pe.ops[k].steps;
            let Some(pace) = self.pace(profile, self.pe.ops[k].ready, left, None) else {
                self.wait_for_any(profile);
                return false;
            };
            self.apply(profile, &pace);
            let runs = pace.runs as f64;
            let state = &mut self.pe.ops[k];
            state.steps += pace.runs;
            state.ready = pace.start + (runs - 1.0) * pace.period + profile.work;
            self.pe.busy += runs * profile.busy;
            self.pe.issue += runs * profile.issue;
        }
        self.pe.ops[k].done = true;
        true
    }

    /// Waits for the first input that has not enough words.
    pub fn wait_for_any(&mut self, profile: &Profile) {
        for access in &profile.reads {
            let end = self.net.input(self.index, access.slot);
            if self.streams.ahead(end) < access.words {
                return self.wait(access.slot);
            }
        }
    }
}
