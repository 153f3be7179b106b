//! Why the last PE ended as late as it did: from the end backwards, from whoever waited to whoever it waited for.
//!
//! A PE's own work is what lies behind the last word, or the last room, that it waited for. From there the way leads over
//! links to the sender, at the moment at which that word left, or to the reader who made room; and so on until the host
//! sends its first word or a PE begins. The cycles on this way add up to those of the run.

use super::bursts::SAME;
use super::engine::Engine;
use super::held::{Again, Entry, Like, Paced, Side, Spent, Waited};
use super::rows::Rows;
use super::skip::Skip;
use super::streams::Sender;
use super::stretches::Stretches;
use crate::event::{CAUSES, Cause, by_name};
use crate::network::{NONE, Origin, Target};
use std::collections::BTreeMap;
use std::ops::Range;

/// Steps from one actor to another that are followed at most.
const MOST: usize = 1_000_000;

/// The critical path of a run in cycles by cause; they add up to `cycles`.
pub fn path(
    engine: &Engine,
    rows: &Rows,
    stretches: Option<&Stretches>,
    cycles: u64,
) -> BTreeMap<String, u64> {
    let mut walk = Walk { engine, stretches, skips: &rows.skips, cycles: [0.0; CAUSES], line: None };
    walk.run();
    let found: f64 = walk.cycles.iter().sum();
    // What is left is a part of the last cycle, or what could not be followed.
    let left = cycles as f64 - found;
    walk.add(if left < 1.0 { Cause::Egress } else { Cause::WaitData }, left.max(0.0));
    by_name(&whole(&walk.cycles, cycles))
}

/// As [`Paced::last_held`].
fn last_held(paced: &Paced, time: f64, until: f64) -> Option<(f64, Whom)> {
    paced.last_held(time, until).map(|(release, wait)| (release, (wait.from, wait.end)))
}

/// Whole cycles that add up to `all`: the largest remainders are rounded up.
fn whole(parts: &[f64; CAUSES], all: u64) -> [u64; CAUSES] {
    let mut whole = parts.map(|part| part.max(0.0).floor() as u64);
    let mut order: Vec<usize> = (0..CAUSES).collect();
    order.sort_by(|a, b| parts[*b].fract().total_cmp(&parts[*a].fract()));
    let missing = all.saturating_sub(whole.iter().sum());
    for (n, place) in order.into_iter().enumerate() {
        whole[place] += missing / CAUSES as u64 + u64::from((n as u64) < missing % CAUSES as u64);
    }
    whole
}

/// Somebody at some moment: a PE, about to send on a stream or to end, or the host that feeds a stream.
#[derive(Clone, Copy, Debug)]
enum Actor {
    Pe { pe: u32, stream: u32 },
    Host { stream: u32 },
}

/// What was found on the way back through the entries of an actor.
enum Back {
    /// It was held up until then, by a word or by missing room.
    Held(f64, Whom),
    /// It was not held up since it began.
    Begun,
}

/// Who let somebody go on, and the end where that was.
type Whom = (Sender, u32);

/// A part of what somebody did.
#[derive(Clone)]
struct Part<'e> {
    entries: &'e [Entry],
    range: Range<usize>,
    /// When it begins and ends, and what was spent by then.
    time: (f64, f64),
    spent: (Spent, Spent),
}

/// Time in rows of a line that were not timed: it passes like that of the last period that was.
struct InLine {
    /// The first row of that period.
    row: u32,
    /// What was found when the walk came there.
    before: [f64; CAUSES],
    cycles: f64,
}

struct Walk<'e, 'a> {
    engine: &'e Engine<'a>,
    stretches: Option<&'e Stretches>,
    skips: &'e [Skip],
    cycles: [f64; CAUSES],
    line: Option<InLine>,
}

impl<'e> Walk<'e, '_> {
    fn add(&mut self, cause: Cause, cycles: f64) {
        self.cycles[cause as usize] += cycles;
    }

    fn run(&mut self) {
        let Some((mut actor, mut time)) = self.last() else { return };
        let mut taken = true;
        for _ in 0..MOST {
            (actor, time) = self.timed(actor, time);
            match self.back(actor, time, taken) {
                Some((release, (Sender::Room, end))) => {
                    (actor, time) = self.room(end, release);
                    taken = true;
                }
                Some((release, (_, end))) => {
                    (actor, time) = self.word(end, release);
                    taken = false;
                }
                None => break,
            }
        }
        self.leave_line();
    }

    /// Who ends last: a PE, or the sender of the last word for the host.
    fn last(&mut self) -> Option<(Actor, f64)> {
        let engine = self.engine;
        let pes = (0u32..).zip(&engine.pes).filter_map(|(n, pe)| Some((n, pe.as_deref()?.time)));
        let (pe, time) = pes.max_by(|a, b| a.1.total_cmp(&b.1))?;
        let ends = engine.net.host_out.iter().filter(|lane| lane.link != NONE).map(|lane| lane.link);
        let out = ends.map(|end| (end, engine.streams.last_arrival(end))).max_by(|a, b| a.1.total_cmp(&b.1));
        match out.filter(|(_, arrival)| *arrival > time) {
            Some((end, arrival)) => Some(self.word(end, arrival)),
            None => Some((Actor::Pe { pe, stream: NONE }, time)),
        }
    }

    /// From a word that arrived at an end to its sender.
    fn word(&mut self, end: u32, arrival: f64) -> (Actor, f64) {
        let e = self.engine.net.ends[end as usize];
        let lost = self.engine.streams.lost(end, arrival);
        self.add(Cause::Wire, f64::from(e.latency));
        self.add(Cause::Contention, lost);
        let time = arrival - f64::from(e.latency) - lost;
        match self.engine.net.streams[e.stream as usize].origin {
            Origin::Pe(pe) => (Actor::Pe { pe, stream: e.stream }, time),
            Origin::Host(_) | Origin::Switch(..) => (Actor::Host { stream: e.stream }, time),
        }
    }

    /// From room at an end to whoever made it, by taking a word a cycle before.
    fn room(&mut self, end: u32, release: f64) -> (Actor, f64) {
        self.add(Cause::Queue, 1.0);
        match self.engine.net.ends[end as usize].target {
            Target::Pe(pe) => (Actor::Pe { pe, stream: NONE }, release - 1.0),
            // The host takes words as they come.
            Target::Host(_) | Target::Switch(..) => self.word(end, release - 1.0),
        }
    }

    /// The last thing that held an actor up before `time`; none if it was at work, or sending, all the time.
    fn back(&mut self, actor: Actor, time: f64, taken: bool) -> Option<(f64, Whom)> {
        let engine = self.engine;
        let found = match actor {
            Actor::Pe { pe, stream } => {
                let state = engine.pes[pe as usize].as_deref()?;
                let entries = &state.held.entries[..];
                let (range, time_of, spent) =
                    (0..entries.len(), (0.0, state.time.max(time)), ([0.0; 3], state.spent()));
                let until = if taken { time + SAME } else { time - SAME };
                self.part(&Part { entries, range, time: time_of, spent }, time, stream, until)
            }
            Actor::Host { stream } => {
                let entries = engine.fed.get(&stream).map_or(&[][..], |held| &held.entries[..]);
                let found = entries.iter().rev().find_map(|entry| match entry {
                    Entry::Paced(paced) => last_held(paced, time, time + SAME),
                    _ => None,
                });
                self.add(Cause::Ingress, time - found.map_or(0.0, |(release, _)| release));
                return found;
            }
        };
        match found {
            Back::Held(release, whom) => Some((release, whom)),
            Back::Begun => None,
        }
    }

    /// Goes back through a part of what a PE did.
    fn part(&mut self, part: &Part<'e>, mut time: f64, mut stream: u32, until: f64) -> Back {
        let Part { entries, range, .. } = part;
        let mut at = range.start + entries[range.clone()].partition_point(|entry| entry.begin() < time);
        while at > range.start {
            let entry = &entries[at - 1];
            let (end, after) = (entry.end(), entry.after());
            if time > end {
                let next = entries[..range.end].get(at).map(|next| (next.begin(), next.before()));
                let (next, spent) = next.unwrap_or((part.time.1, part.spent.1));
                self.own(time - end, next - end, spent, after);
                (time, stream) = (end, NONE);
            }
            let found = match entry {
                Entry::Waited(waited) => self.waited(waited, time, until),
                Entry::Paced(paced) => self.paced(paced, time, until),
                Entry::Again(again) => self.again(entries, again, time, stream, until),
                Entry::Like(like) => self.like(like, time, stream, until),
                Entry::Side(side) => self.side(side, time, stream, until),
            };
            if let Back::Held(..) = found {
                return found;
            }
            (time, stream) = (time.min(entry.begin()), NONE);
            at -= 1;
        }
        let first = entries[range.clone()].first().map(|entry| (entry.begin(), entry.before()));
        let (first, spent) = first.unwrap_or((part.time.1, part.spent.1));
        self.own(time - part.time.0, first - part.time.0, spent, part.spent.0);
        Back::Begun
    }

    /// Some cycles of an interval of `all`, in which the PE spent the difference of two accounts.
    fn own(&mut self, cycles: f64, all: f64, spent: Spent, before: Spent) {
        let each = [0, 1, 2].map(|k| (spent[k] - before[k]).max(0.0));
        let (sum, cycles) = (each.iter().sum::<f64>(), cycles.max(0.0));
        let share = cycles / all.max(sum).max(SAME);
        for (cause, spent) in [Cause::Busy, Cause::Issue, Cause::TaskActivation].into_iter().zip(each) {
            self.add(cause, spent * share);
        }
        self.add(Cause::WaitData, cycles - sum * share);
    }

    fn paced(&mut self, paced: &Paced, time: f64, until: f64) -> Back {
        let found = last_held(paced, time, until);
        let since = found.map_or(paced.ready, |(release, _)| release);
        let own = (time - since).max(0.0);
        self.own(own, own, paced.each.map(|each| each * own / paced.work.max(SAME)), [0.0; 3]);
        found.map_or(Back::Begun, |(release, whom)| Back::Held(release, whom))
    }

    /// A wait, unless the PE was looked at while it waited: then somebody else was.
    fn waited(&mut self, waited: &Waited, time: f64, until: f64) -> Back {
        let Waited { since, release, from, end, .. } = *waited;
        match release <= until {
            true => Back::Held(release, (from, end)),
            false => {
                self.add(Cause::WaitData, (time - since).max(0.0));
                Back::Begun
            }
        }
    }

    /// Iterations like a recorded one: seen in that one, and then in a whole one before it.
    fn again(&mut self, entries: &'e [Entry], again: &Again, time: f64, stream: u32, until: f64) -> Back {
        let Again { begin, length, runs, spent, each, .. } = *again;
        let run = ((time - begin) / length.max(SAME)).ceil().clamp(1.0, runs as f64);
        let before = [0, 1, 2].map(|k| spent[k] - each[k]);
        let (times, spent) = ((begin - length, begin), (before, spent));
        let part = Part { entries, range: again.record.clone(), time: times, spent };
        let later = |found: Back, by: f64| match found {
            Back::Held(release, whom) => Back::Held(release + by, whom),
            Back::Begun => Back::Begun,
        };
        let found = later(self.part(&part, time - run * length, stream, until - run * length), run * length);
        if matches!(found, Back::Held(..)) || run < 2.0 {
            return found;
        }
        let found = later(self.part(&part, begin, NONE, begin + SAME), (run - 1.0) * length);
        if matches!(found, Back::Begun) {
            let own = (run - 2.0) * length;
            self.own(own, own, each.map(|each| each * (run - 2.0)), [0.0; 3]);
        }
        found
    }

    /// A stretch like that of another PE: seen there, waiting for the counterparts of those that that one waited for.
    fn like(&mut self, like: &'e Like, time: f64, stream: u32, until: f64) -> Back {
        let Some(leader) = self.engine.pes[like.leader as usize].as_deref() else { return Back::Begun };
        let part = Part {
            entries: &leader.held.entries,
            range: like.entries.clone(),
            time: like.time,
            spent: like.led,
        };
        let stream = self.counterpart(like, stream, |piece| &piece.outputs, false);
        match self.part(&part, time - like.delay, stream, until - like.delay) {
            Back::Held(release, (from, end)) => {
                let end = self.counterpart(like, end, |piece| &piece.inputs, true);
                Back::Held(release + like.delay, (from, end))
            }
            Back::Begun => Back::Begun,
        }
    }

    /// The end of a follower that is where an end of its leader is, or the stream of a leader where one of the follower is.
    fn counterpart(
        &self,
        like: &Like,
        of: u32,
        slots: fn(&super::stretches::Piece) -> &Vec<usize>,
        inputs: bool,
    ) -> u32 {
        let (net, follower) = (self.engine.net, like.follower);
        let piece = |pe: u32| self.stretches?.piece(net.class_of[pe as usize], like.stretch);
        let place = |pe: u32, slot: usize| match inputs {
            true => net.input(pe as usize, slot),
            false => net.output(pe as usize, slot),
        };
        let (from, to) = if inputs { (like.leader, follower) } else { (follower, like.leader) };
        let found = piece(from).zip(piece(to)).and_then(|(a, b)| {
            let at = slots(a).iter().position(|slot| place(from, *slot) == of)?;
            Some(place(to, *slots(b).get(at)?))
        });
        found.unwrap_or(if inputs { of } else { NONE })
    }

    /// The op that sends a stream, or the one that was done last.
    fn side(&mut self, side: &'e Side, time: f64, stream: u32, until: f64) -> Back {
        let sends = side.ops.iter().find(|op| stream != NONE && op.stream == stream);
        let last = || side.ops.iter().rev().max_by(|a, b| a.done.total_cmp(&b.done));
        let Some(op) = sends.or_else(last) else { return Back::Begun };
        let mut time = time;
        for entry in op.entries.iter().rev().filter(|entry| entry.begin() <= until) {
            let end = entry.end();
            self.add(Cause::Issue, (time - end).max(0.0));
            time = time.min(end);
            let found = match entry {
                Entry::Waited(waited) => self.waited(waited, time, until),
                Entry::Paced(paced) => self.paced(paced, time, until),
                _ => Back::Begun,
            };
            if let Back::Held(..) = found {
                return found;
            }
            time = time.min(entry.begin());
        }
        self.add(Cause::Issue, (time - side.ready).max(0.0));
        Back::Begun
    }

    /// The actor itself, or, in rows of a line that were not timed, its like in the last period that was.
    fn timed(&mut self, actor: Actor, time: f64) -> (Actor, f64) {
        let Actor::Pe { pe, stream } = actor else { return (actor, time) };
        let width = self.engine.net.width;
        if self.line.as_ref().is_some_and(|line| pe / width < line.row) {
            self.leave_line();
        }
        let Some(skip) = self.skips.iter().find(|skip| skip.foretold().contains(&(pe / width))) else {
            return (actor, time);
        };
        let known = pe - skip.behind() * width;
        let net = self.engine.net;
        let outputs = self.engine.classes[usize::from(net.class_of[pe as usize])].outputs.len();
        let slot = (0..outputs).find(|slot| net.output(pe as usize, *slot) == stream);
        let Some(slot) = slot else { return (actor, time) };
        let like = |pe: u32| net.output(pe as usize, slot);
        let pieces = |stream: u32| self.engine.streams.words(stream).pieces();
        let (own, others) = (pieces(stream), pieces(like(known)));
        // Piece by piece the words are those of the known row, later.
        let at = own.partition_point(|piece| piece.start <= time + SAME).saturating_sub(1);
        let later = own.get(at).zip(others.get(at.min(others.len().saturating_sub(1))));
        let cycles = later.map_or(0.0, |(own, other)| own.start - other.start).clamp(0.0, time);
        let row = skip.ends()[0].start;
        self.line = Some(InLine { row, before: self.cycles, cycles });
        (Actor::Pe { pe: known, stream: like(known) }, time - cycles)
    }

    /// The time in rows of a line that were not timed passes as what was found since.
    fn leave_line(&mut self) {
        let Some(InLine { before, cycles, .. }) = self.line.take() else { return };
        let since: Vec<f64> = self.cycles.iter().zip(before).map(|(now, before)| now - before).collect();
        let all: f64 = since.iter().sum();
        for (sum, part) in self.cycles.iter_mut().zip(since) {
            *sum += if all > 0.0 { cycles * part / all } else { 0.0 };
        }
    }
}
