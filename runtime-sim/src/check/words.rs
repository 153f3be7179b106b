//! Words: what every sender sends, every reader reads, and every task can be started as often as it says.

use super::fault::{CheckError, Fault};
use super::rows::{Rows, SLOTS};
use super::tallies::{Tallies, bodies};
use super::tally::{Body, What, place};
use crate::lower::LoweredClass;
use crate::network::{HostLane, NOBODY, NONE, Network, Origin, Target};
use crate::program::{Colour, Coord, Trigger, WaferProgram};
use std::collections::BTreeSet;
use std::sync::Arc;

/// At most this many faults of words are reported.
const MANY: usize = 32;

/// All faults of word counts. Routes have been traced in some rows; the others are like these, except for the words of
/// the host.
pub fn check(
    program: &WaferProgram,
    net: &Network,
    classes: &[LoweredClass],
    rows: &Rows,
) -> Vec<CheckError> {
    let bodies = bodies(net, classes);
    Words::of(program, net, classes, &bodies).faults(rows)
}

/// Whether a program of which rows in lines have been left out has no fault of word counts; false also where that cannot
/// be told from the rows that are traced.
pub fn hold(program: &WaferProgram, net: &Network, classes: &[LoweredClass], rows: &Rows) -> bool {
    let bodies = bodies(net, classes);
    let words = Words::of(program, net, classes, &bodies);
    rows.lines.iter().all(|line| words.holds_for(*line, &bodies)) && words.faults(rows).is_empty()
}

/// A program with all its counts.
pub struct Words<'a> {
    pub(super) program: &'a WaferProgram,
    pub(super) net: &'a Network,
    pub(super) classes: &'a [LoweredClass],
    pub(super) tallies: Tallies,
    pub(super) errors: Vec<CheckError>,
}

impl<'a> Words<'a> {
    fn of(
        program: &'a WaferProgram,
        net: &'a Network,
        classes: &'a [LoweredClass],
        bodies: &[Arc<Body>],
    ) -> Self {
        let tallies = Tallies::of(net, classes, bodies);
        Words { program, net, classes, tallies, errors: Vec::new() }
    }

    fn faults(mut self, rows: &Rows) -> Vec<CheckError> {
        self.streams();
        self.unsent(rows);
        self.elsewhere(rows);
        self.tasks();
        self.switched();
        self.errors.truncate(MANY);
        self.errors
    }

    pub(super) fn class(&self, pe: u32) -> &'a LoweredClass {
        &self.classes[self.net.class_of[pe as usize] as usize]
    }

    /// The PEs of the traced rows.
    fn traced(&self) -> impl Iterator<Item = u32> + use<'a> {
        let net = self.net;
        net.traced_pes().map(|(pe, _)| pe)
    }

    /// Every fixed stream: sent equals read at each end.
    fn streams(&mut self) {
        for index in 0..self.net.streams.len() as u32 {
            let stream = &self.net.streams[index as usize];
            let Some(sent) = self.sent(stream.origin, stream.colour) else { continue };
            for end in self.net.ends_of(index) {
                let read = match end.target {
                    Target::Pe(pe) => self.read(pe, stream.colour),
                    Target::Host(lane) => Some(host_words(self.program, &self.net.host_out[lane as usize])),
                    Target::Switch(..) => None,
                };
                if read.is_some_and(|read| sent != read) && self.errors.len() < MANY {
                    self.unequal(index, end.target, sent, read.unwrap_or(0));
                }
            }
        }
    }

    /// Words of the host in rows that are not traced: sent equals read, and whoever waits for the host is reached.
    fn elsewhere(&mut self, rows: &Rows) {
        if rows.all_traced() {
            return;
        }
        let (width, height) = (self.net.width, self.net.height);
        let mut arrived = vec![0u32; self.net.class_of.len()];
        let mut known = (NONE, None);
        // By traced row: where a stream was looked at last, and what arrives there.
        let mut seen = vec![(NONE, NONE, None); height as usize];
        for &(index, at) in &self.net.elsewhere {
            let stream = &self.net.streams[index as usize];
            if matches!(stream.origin, Origin::Pe(_)) {
                continue; // It stays in its line.
            }
            if known.0 != index {
                known = (index, self.sent(stream.origin, stream.colour));
            }
            let row = rows.like[at.y as usize];
            let seen = &mut seen[row as usize];
            if (seen.0, seen.1) != (index, at.x) {
                *seen = (index, at.x, self.arrival(row * width + at.x, stream.colour, known.1));
            }
            let Some((slot, wrong)) = seen.2 else { continue };
            arrived[(at.x * height + at.y) as usize] |= 1 << slot;
            if let (Some(read), Some(sent)) = (wrong, known.1)
                && self.errors.len() < MANY
            {
                self.unequal(index, Target::Pe(self.net.index(at) as u32), sent, read);
            }
        }
        let others: Vec<u32> = (0..height).filter(|y| !self.net.traced[*y as usize]).collect();
        let likes: BTreeSet<u32> = others.iter().map(|y| rows.like[*y as usize]).collect();
        let mut awaited = vec![0u32; arrived.len()];
        for pe in likes.into_iter().flat_map(|y| y * width..(y + 1) * width) {
            if self.net.class_of[pe as usize] != NOBODY {
                awaited[pe as usize] = self.awaits_host(pe);
            }
        }
        for (x, y) in (0..width).flat_map(|x| others.iter().map(move |y| (x, *y))) {
            let like = rows.like[y as usize] * width + x;
            let missing = awaited[like as usize] & !arrived[(x * height + y) as usize];
            if missing != 0 {
                let slots = (0..SLOTS).filter(|slot| missing >> slot & 1 == 1);
                slots.for_each(|slot| self.no_sender(like, slot, Coord { x, y }));
            }
        }
    }

    /// Where words arrive at a traced PE, and how many it reads instead of those sent if that is wrong; none if they do not.
    fn arrival(&self, pe: u32, colour: Colour, sent: Option<u64>) -> Option<(usize, Option<u64>)> {
        let slot = self.class(pe).inputs.binary_search(&colour).ok()?;
        let tally = self.tallies.at(pe);
        let wrong = sent.is_some_and(|sent| sent != tally.read[slot]) && !tally.undecided();
        Some((slot, wrong.then_some(tally.read[slot])))
    }

    /// The inputs that a traced PE reads and no PE sends to, as a mask.
    fn awaits_host(&self, pe: u32) -> u32 {
        let read = self.tallies.at(pe).read.iter().enumerate().filter(|(_, words)| **words > 0);
        let slots = read.filter(|(slot, _)| !self.is_fed_by_pe(pe, *slot));
        slots.fold(0, |mask, (slot, _)| mask | 1 << slot)
    }

    /// Whether a traced stream from a PE ends at an input of a PE.
    pub(super) fn is_fed_by_pe(&self, pe: u32, slot: usize) -> bool {
        let end = self.net.input(pe as usize, slot);
        let stream = || &self.net.streams[self.net.ends[end as usize].stream as usize];
        end != NONE && matches!(stream().origin, Origin::Pe(_))
    }

    /// Words that a sender sends, unless that is decided at run time.
    pub(super) fn sent(&self, origin: Origin, colour: Colour) -> Option<u64> {
        match origin {
            Origin::Pe(pe) => {
                let slot = self.class(pe).outputs.binary_search(&colour).ok()?;
                let tally = self.tallies.at(pe);
                (!tally.undecided()).then_some(tally.sent[slot])
            }
            Origin::Host(lane) => Some(host_words(self.program, &self.net.host_in[lane as usize])),
            Origin::Switch(..) => None,
        }
    }

    /// Words that a PE reads, unless that cannot be counted.
    pub(super) fn read(&self, pe: u32, colour: Colour) -> Option<u64> {
        let slot = self.class(pe).inputs.binary_search(&colour);
        let tally = self.tallies.at(pe);
        (!tally.undecided()).then(|| slot.map_or(0, |slot| tally.read[slot]))
    }

    fn unequal(&mut self, stream: u32, target: Target, sent: u64, read: u64) {
        let s = &self.net.streams[stream as usize];
        let (sender, _) = self.name_origin(s.origin);
        let (reader, at) = match target {
            Target::Pe(pe) => (format!("PE {}", self.net.coord(pe)), Some(pe)),
            Target::Host(lane) => (self.lane_name(&self.net.host_out[lane as usize]), None),
            Target::Switch(..) => return,
        };
        let mut error = CheckError::new(Fault::Count { sender, sent, reader, read }).colour(s.colour);
        if let Some(pe) = at {
            error = error.at(self.net.coord(pe)).class(&self.class(pe).name);
        }
        self.errors.push(error);
    }

    fn lane_name(&self, lane: &HostLane) -> String {
        format!("host stream `{}`", self.program.host[lane.parts[0] as usize].name)
    }

    pub(super) fn name_origin(&self, origin: Origin) -> (String, Option<u32>) {
        match origin {
            Origin::Pe(pe) => (format!("PE {}", self.net.coord(pe)), Some(pe)),
            Origin::Switch(s, _) => {
                let pe = self.net.switches[s as usize].pe;
                (format!("the switch of PE {}", self.net.coord(pe)), Some(pe))
            }
            Origin::Host(lane) => (self.lane_name(&self.net.host_in[lane as usize]), None),
        }
    }

    /// Readers without any stream.
    fn unsent(&mut self, rows: &Rows) {
        for pe in self.traced() {
            let (x, y) = (pe % self.net.width, pe / self.net.width);
            let like = rows.like[y as usize] * self.net.width + x;
            for slot in 0..self.class(pe).inputs.len() {
                let without = self.net.input(pe as usize, slot) == NONE;
                if self.tallies.at(pe).read[slot] > 0
                    && without
                    && !(like != pe && self.is_fed_by_pe(like, slot))
                {
                    self.no_sender(pe, slot, self.net.coord(pe));
                }
            }
        }
        for lane in &self.net.host_out {
            let words = host_words(self.program, lane);
            if lane.link == NONE && words > 0 && self.errors.len() < MANY {
                let fault = Fault::NoSender { user: self.lane_name(lane), words };
                self.errors.push(CheckError::new(fault).at(lane.at).colour(lane.colour));
            }
        }
    }

    /// Nobody sends what the PE at `at`, which is like `pe`, reads.
    fn no_sender(&mut self, pe: u32, slot: usize, at: Coord) {
        if self.errors.len() < MANY {
            let (colour, words) = (self.class(pe).inputs[slot], self.tallies.at(pe).read[slot]);
            let class = &self.class(self.net.index(at) as u32).name;
            let error = CheckError::new(Fault::NoSender { user: "the PE".into(), words });
            self.errors.push(error.at(at).class(class).colour(colour));
        }
    }

    /// Tasks are triggered as often as they should run, and packed wires carry pairs.
    fn tasks(&mut self) {
        let mut seen = BTreeSet::new();
        let starts = |class: &LoweredClass| {
            class.tasks.iter().all(|task| matches!(task.trigger, Trigger::Start | Trigger::Data { .. }))
        };
        let untold: Vec<bool> = self.classes.iter().map(|class| !starts(class)).collect();
        for (pe, class) in self.net.traced_pes() {
            if !self.tallies.at(pe).odd && !untold[usize::from(class)] {
                continue;
            }
            let controlled = |t: &crate::lower::LoweredTask| matches!(t.trigger, Trigger::Control { .. });
            if !seen.insert((class, self.tallies.id(pe))) && !self.class(pe).tasks.iter().any(controlled) {
                continue;
            }
            if self.tallies.at(pe).odd {
                let what = "an op has an odd number of elements on a packed wire".into();
                self.fault(pe, Fault::Malformed { what });
            }
            for index in 0..self.class(pe).tasks.len() {
                self.task(pe, index);
            }
        }
    }

    fn task(&mut self, pe: u32, index: usize) {
        let task = &self.class(pe).tasks[index];
        let times = task.times.at(&place(self.net.coord(pe)));
        let triggered = match task.trigger {
            Trigger::Local => Some(self.tallies.at(pe).of(What::Activation(index as u16))),
            Trigger::Control { .. } => self.controls(pe, task.slot).map(|n| n.min(times.max(0) as u64)),
            Trigger::Start | Trigger::Data { .. } => None,
        };
        if let Some(triggered) = triggered.filter(|n| *n != times.max(0) as u64) {
            let class = self.net.class_of[pe as usize] as usize;
            let task = self.program.classes[class].tasks[index].name.clone();
            self.fault(pe, Fault::NeverFires { task, times, triggered });
        }
    }

    fn fault(&mut self, pe: u32, fault: Fault) {
        if self.errors.len() < MANY {
            let error = CheckError::new(fault).at(self.net.coord(pe)).class(&self.class(pe).name);
            self.errors.push(error);
        }
    }

    /// Control words that reach an input, unless a switch decides it.
    fn controls(&self, pe: u32, slot: usize) -> Option<u64> {
        let end = self.net.input(pe as usize, slot);
        if end == NONE {
            return Some(0);
        }
        let stream = &self.net.streams[self.net.ends[end as usize].stream as usize];
        match stream.origin {
            Origin::Pe(sender) => {
                let out = self.class(sender).outputs.binary_search(&stream.colour).ok()?;
                Some(self.tallies.at(sender).of(What::Control(out as u16)))
            }
            Origin::Host(lane) => {
                let parts = &self.net.host_in[lane as usize].parts;
                Some(parts.iter().filter(|&&p| self.program.host[p as usize].then.is_some()).count() as u64)
            }
            Origin::Switch(..) => None,
        }
    }
}

/// Words that pass a host lane.
pub fn host_words(program: &WaferProgram, lane: &HostLane) -> u64 {
    let words = |part: &u32| program.host[*part as usize].words_at(lane.at);
    lane.parts.iter().map(words).fold(0, u64::saturating_add)
}
