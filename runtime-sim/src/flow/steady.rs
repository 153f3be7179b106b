//! A PE that runs a piece of code at a pace: as often as its words have one rhythm, on credit where two pieces had, and step
//! by step in an op.

use super::actor::Actor;
use super::bursts::Burst;
use super::pace::{Lines, Pace, Wait};
use super::pe::{Beat, Record};
use super::profile::Profile;
use super::streams::Sender;
use crate::lower::{LoweredOp, Source};

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
        let known = self.pace(profile, self.pe.time, most, None);
        let on_credit = known.is_none();
        let Some(pace) = known.or_else(|| self.trusted(head, profile, most.min(done))) else { return 0 };
        self.go(profile, &pace);
        let runs = pace.runs;
        if self.streams.credit {
            match self.pe.beats.iter_mut().find(|beat| beat.head == head) {
                // What is on credit says nothing of what is to come.
                Some(beat) => beat.goes_on(pace, on_credit),
                None => self.pe.beats.push(Beat::first(head, pace)),
            }
        }
        runs
    }

    /// The pace of up to `most` iterations that read on credit; none if that may not be.
    fn trusted(&mut self, head: usize, profile: &Profile, most: u64) -> Option<Pace> {
        let at = self.pe.beats.iter().position(|beat| beat.head == head && beat.sure)?;
        let beat = self.pe.beats.swap_remove(at);
        let pace = self.pace(profile, self.pe.time, most, Some(&beat));
        self.pe.beats.push(beat);
        pace
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
                    let from = self.streams.sender(end);
                    let mut wait = |at: f64, start: f64| {
                        lines.wait(Wait { at, start, period: rhythm.period, from, end }, rhythm.reads);
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
                if let Some((rhythm, end)) = self.streams.room(stream, access.words).ok()? {
                    lines.room(access.first, rhythm.last - access.last, (&rhythm, end));
                }
            }
        }
        Some(lines.pace())
    }

    /// Takes the words read and publishes those written.
    fn apply(&mut self, profile: &Profile, pace: &Pace) {
        self.pe.slack = self.pe.slack.min(pace.slack(Sender::Host));
        self.pe.ahead = self.pe.ahead.min(pace.slack(Sender::OtherRow));
        self.pe.held_first = self.pe.held_first.or_else(|| pace.held());
        if self.streams.explains {
            let spent = self.pe.spent();
            self.pe.held.paced(pace, profile, spent, self.streams.exact.is_some());
        }
        for access in &profile.reads {
            let end = self.net.input(self.index, access.slot);
            let needed = pace.reaches(access.last, access.held.1, pace.runs - 1);
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
        if self.streams.explains {
            self.pe.like_record(last, start, runs);
        }
        for (stream, list) in &last.writes {
            let burst = Burst::repeated(runs, start, last.length, list.clone());
            self.pe.note_write(*stream, &burst);
            self.streams.write(*stream, burst);
        }
        for (end, words) in &last.reads {
            if self.streams.sender(*end) == Sender::OtherRow {
                let early = self.streams.earliness(*end, *words, runs, (start, last.length));
                self.pe.ahead = self.pe.ahead.min(early);
                self.pe.held_first = self.pe.held_first.or(Some(0.0));
            }
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
            let early = self.pe.ops[k].ready - rhythm.first;
            match self.streams.sender(end) {
                Sender::Host => self.pe.slack = self.pe.slack.min(early),
                Sender::OtherRow => {
                    self.pe.ahead = self.pe.ahead.min(early);
                    self.pe.held_first = self.pe.held_first.or(Some((-early).max(0.0)));
                }
                Sender::Row | Sender::Room => {}
            }
            if self.streams.explains {
                let spent = self.pe.spent();
                self.pe.held.word(end, self.pe.ops[k].ready, rhythm.first, spent);
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
