//! How fast a piece of code can go: its own work against the rhythm of each input, as lines over the iterations.

use super::actor::Actor;
use super::bursts::{Burst, Part, Pattern};
use super::pe::Record;
use super::profile::Profile;
use crate::lower::{LoweredOp, Source};

/// What the next iterations of a piece of code can do.
struct Pace {
    /// How many have one rhythm.
    runs: u64,
    /// When the first begins.
    start: f64,
    /// From one to the next.
    period: f64,
}

impl Actor<'_, '_> {
    /// Runs up to `most` times what `profile` describes; returns how often it did.
    pub fn bulk(&mut self, profile: &Profile, most: u64) -> u64 {
        let Some(pace) = self.pace(profile, self.pe.time, most) else { return 0 };
        self.pe.begin_at(self.pe.time, pace.start);
        self.apply(profile, &pace);
        let runs = pace.runs as f64;
        self.pe.time = pace.start + (runs - 1.0) * pace.period + profile.work;
        self.pe.busy += runs * profile.busy;
        self.pe.issue += runs * profile.issue;
        pace.runs
    }

    /// How often, from when and how fast a piece of code can run that is ready at `time`; none if words are missing.
    ///
    /// Iteration i begins at the largest of some lines `start + i * period`: one for the code itself, one per input.
    /// The line on top at i = 0 with the steepest slope rules until a steeper one crosses it.
    fn pace(&mut self, profile: &Profile, time: f64, most: u64) -> Option<Pace> {
        let mut runs = most;
        let (mut start, mut period) = (time, profile.work);
        let mut steeper: [(f64, f64); 8] = [(0.0, 0.0); 8];
        let mut lines = 0;
        for access in &profile.reads {
            let rhythm = self.streams.rhythm(self.net.input(self.index, access.slot), access.words)?;
            runs = runs.min(rhythm.reads);
            let line = (
                (rhythm.first - access.first).max(rhythm.last - access.last),
                rhythm.period.max(profile.work),
            );
            if line.0 > start + 1e-9 || (line.0 > start - 1e-9 && line.1 > period) {
                (start, period) = line;
            }
            steeper[lines.min(7)] = line;
            lines += 1;
        }
        for (other, slope) in steeper.iter().take(lines).filter(|l| l.1 > period + 1e-9) {
            let meet = ((start - other) / (slope - period)).floor() as u64 + 1;
            runs = runs.min(meet.max(1));
        }
        Some(Pace { runs, start, period })
    }

    /// Takes the words read and publishes those written.
    fn apply(&mut self, profile: &Profile, pace: &Pace) {
        for access in &profile.reads {
            let end = self.net.input(self.index, access.slot);
            self.streams.take(end, access.words * pace.runs);
            if let Some(record) = &mut self.pe.record {
                record.read(end, access.words * pace.runs);
            }
        }
        for access in &profile.writes {
            let stream = self.net.output(self.index, access.slot);
            let gap =
                if access.words > 1 { (access.last - access.first) / (access.words - 1) as f64 } else { 0.0 };
            let start = pace.start + access.first;
            if let Some(record) = &mut self.pe.record {
                let last = pace.start + (pace.runs - 1) as f64 * pace.period + access.last;
                record.write(stream, access.words * pace.runs, start, last);
            }
            let burst = match access.words {
                1 => Burst::even(1, start, 0.0, pace.runs, pace.period),
                words => Burst::even(pace.runs, start, pace.period, words, gap),
            };
            self.streams.write(stream, burst);
        }
    }

    /// Publishes what `last` wrote `runs` more times, each its length later.
    pub fn repeat(&mut self, last: &Record, runs: u64) {
        let mut streams: Vec<u32> = last.writes.iter().map(|w| w.0).collect();
        streams.sort_unstable();
        streams.dedup();
        for stream in streams {
            let parts: Vec<Part> = last.writes.iter().filter(|w| w.0 == stream).map(|w| w.1).collect();
            let start = last.start + last.length;
            let burst = match parts[..] {
                [Part { words, at, gap }] => Burst::even(runs, start + at, last.length, words, gap),
                _ => Burst { count: runs, start, period: last.length, pattern: Pattern::Parts(parts.into()) },
            };
            self.streams.write(stream, burst);
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
            if let Some(record) = &mut self.pe.record {
                record.read(end, 1);
            }
            self.pe.begin_at(self.pe.ops[k].ready, rhythm.first);
            self.pe.ops[k].ready = self.pe.ops[k].ready.max(rhythm.first);
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
            let Some(pace) = self.pace(profile, self.pe.ops[k].ready, left) else {
                self.wait_for_any(profile);
                return false;
            };
            self.pe.begin_at(self.pe.ops[k].ready, pace.start);
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
    fn wait_for_any(&mut self, profile: &Profile) {
        for access in &profile.reads {
            let end = self.net.input(self.index, access.slot);
            if self.streams.ahead(end) < access.words {
                return self.wait(access.slot);
            }
        }
    }
}
