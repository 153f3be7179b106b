//! Groups of PEs that look the same and begin a stretch of code alike, but for a delay, do the same in it: one is timed,
//! and the others follow it.
//!
//! Times are largest sums of delays, so what a group does changes by no more than what its beginning changes by. Where the
//! PEs of a group begin within a few cycles of those of another one, shifted, it follows too; by how much it may be off is
//! counted. Words of the host do not shift: a group follows where they had come in time and still do, or where their delay
//! is that of the group within the same few cycles.

use super::bursts::SAME;
use super::engine::Engine;
use super::groups::Group;
use super::held::{Entry, Like};
use super::pe::Pe;
use super::streams::Mark;
use super::stretches::{Piece, Stretches};
use crate::network::{NONE, Origin};
/// Groups that are tried as leaders of a group.
pub(super) const LEADERS: usize = 8;

/// A group that is timed, and those that follow it by a delay each.
#[derive(Default)]
pub(super) struct Led {
    pub leader: Group,
    pub followers: Vec<(Group, f64)>,
    /// What the leader was before.
    pub before: Vec<Before>,
    /// Where it read words of the host, once it has come to the end; none if somebody else sent it words.
    pub hosts: Option<Vec<HostRead>>,
}

/// An input on which a group that was timed read words of the host.
pub(super) struct HostRead {
    /// Which PE of the group, and which input of its piece.
    place: usize,
    input: usize,
    /// Cycles from the edge to it.
    way: f64,
    /// By how much words of the host came before that PE needed them, at least.
    slack: f64,
}

/// A PE at the beginning of a stretch.
pub(super) struct Before {
    pub time: f64,
    /// Busy, issue and activation cycles.
    spent: [f64; 3],
    phases: usize,
    /// What had held it up by then, as a number of entries.
    held: usize,
    /// Words read, by input of its piece.
    taken: Vec<u64>,
    /// What was sent, by output.
    sent: Vec<Mark>,
}

impl Engine<'_> {
    /// By how much a PE of a group begins sooner than the delay of the group says, at most.
    pub(super) fn behind(&self, led: &Led, group: &Group, delay: f64) -> f64 {
        let sooner =
            group.iter().zip(&led.before).map(|(pe, before)| before.time + delay - self.pe(*pe).time);
        sooner.fold(0.0, f64::max)
    }

    /// Lets PEs run up to the end of a stretch.
    pub(super) fn admit(&mut self, stretches: &Stretches, stretch: usize, pes: &[u32]) {
        for &pe in pes {
            let stop = self.piece(stretches, pe, stretch).map_or(usize::MAX, |piece| piece.stop);
            let keeps = self.spans.keeps;
            let state = self.pe_mut(pe);
            state.stop = stop;
            if !keeps {
                state.phases.clear();
            }
        }
        self.queue.extend(pes);
    }

    /// Lets a group run of which it matters how far it depends on the words of others.
    pub(super) fn lead(&mut self, stretches: &Stretches, stretch: usize, group: &Group) {
        for &pe in group {
            let state = self.pe_mut(pe);
            (state.slack, state.ahead, state.held_first) = (f64::INFINITY, f64::INFINITY, None);
        }
        self.admit(stretches, stretch, group);
    }

    pub(super) fn pe(&self, pe: u32) -> &Pe {
        match &self.pes[pe as usize] {
            Some(pe) => pe,
            None => unreachable!("only PEs that are timed are in a group"),
        }
    }

    pub(super) fn pe_mut(&mut self, pe: u32) -> &mut Pe {
        match &mut self.pes[pe as usize] {
            Some(pe) => pe,
            None => unreachable!("only PEs that are timed are in a group"),
        }
    }

    pub(super) fn piece<'s>(&self, stretches: &'s Stretches, pe: u32, stretch: usize) -> Option<&'s Piece> {
        stretches.piece(self.net.class_of[pe as usize], stretch)
    }

    /// Whether all PEs are at the beginning of a stretch, and none has words waiting from others of the group.
    pub(super) fn has_begun(&self, stretches: &Stretches, stretch: usize, group: &Group) -> bool {
        group.iter().all(|&pe| {
            let Some(piece) = self.piece(stretches, pe, stretch) else { return false };
            let state = self.pe(pe);
            let here = (stretch == 0 && state.running.is_none()) || state.pc == piece.start;
            !state.finished && here && self.is_quiet(stretches, stretch, pe, piece)
        })
    }

    /// Whether all PEs are at the end of a stretch.
    pub(super) fn has_ended(&self, stretches: &Stretches, stretch: usize, group: &Group) -> bool {
        group.iter().all(|&pe| {
            let Some(piece) = self.piece(stretches, pe, stretch) else { return false };
            let state = self.pe(pe);
            (state.finished || state.pc == piece.stop) && self.is_quiet(stretches, stretch, pe, piece)
        })
    }

    /// Whether nothing is under way: no op, no loop, no credit, no words that other PEs have sent for this stretch.
    fn is_quiet(&self, stretches: &Stretches, stretch: usize, pe: u32, piece: &Piece) -> bool {
        let state = self.pe(pe);
        let still = state.ops.is_empty() && state.looping.is_none() && state.records.is_empty();
        let mut ends = piece.inputs.iter().map(|slot| self.net.input(pe as usize, *slot));
        still
            && state.credit.is_empty()
            && ends.all(|end| self.streams.ahead(end) == 0 || !self.is_fed(stretches, stretch, end))
    }

    /// Whether a PE sends to an end in a stretch.
    pub(super) fn is_fed(&self, stretches: &Stretches, stretch: usize, end: u32) -> bool {
        let Some(end) = self.net.ends.get(end as usize) else { return false };
        let Origin::Pe(from) = self.net.streams[end.stream as usize].origin else { return false };
        let sends = |piece: &Piece| {
            piece.outputs.iter().any(|slot| self.net.output(from as usize, *slot) == end.stream)
        };
        self.pes[from as usize].is_some() && self.piece(stretches, from, stretch).is_some_and(sends)
    }

    pub(super) fn before(&mut self, stretches: &Stretches, stretch: usize, pe: u32) -> Before {
        let (net, piece) = (self.net, self.piece(stretches, pe, stretch));
        let slots = |of: fn(&Piece) -> &Vec<usize>| piece.map_or(&[][..], |piece| of(piece));
        let taken = slots(|piece| &piece.inputs).iter();
        let taken = taken.map(|slot| self.streams.taken(net.input(pe as usize, *slot))).collect();
        let sent = slots(|piece| &piece.outputs).iter();
        let sent = sent.map(|slot| self.streams.mark(net.output(pe as usize, *slot))).collect();
        let keeps = self.spans.keeps;
        let state = self.pe_mut(pe);
        if !keeps {
            state.phases.clear();
        }
        let spent = [state.busy, state.issue, state.activation];
        Before {
            time: state.time,
            spent,
            phases: state.phases.len(),
            held: state.held.entries.len(),
            taken,
            sent,
        }
    }

    /// By how much a group that follows may be off; none if words of the host may make it do something else.
    pub(super) fn off_by(
        &self,
        stretches: &Stretches,
        stretch: usize,
        led: &Led,
        hosts: &[HostRead],
        (group, delay): &(Group, f64),
        most: f64,
    ) -> Option<f64> {
        let off = self.behind(led, group, *delay);
        Some(off.max(self.host_apart(stretches, stretch, hosts, (group, *delay), most)?))
    }

    /// Where a group that was timed read words of the host; none if it read words of somebody outside.
    pub(super) fn host_reads(
        &self,
        stretches: &Stretches,
        stretch: usize,
        led: &Led,
    ) -> Option<Vec<HostRead>> {
        let mut reads = Vec::new();
        for (place, (&pe, before)) in led.leader.iter().zip(&led.before).enumerate() {
            let piece = self.piece(stretches, pe, stretch)?;
            for (input, (slot, taken)) in piece.inputs.iter().zip(&before.taken).enumerate() {
                let end = self.net.input(pe as usize, *slot);
                if self.streams.taken(end) == *taken || self.is_fed(stretches, stretch, end) {
                    continue;
                }
                if !self.streams.is_of_host(end) {
                    return None;
                }
                let way = f64::from(self.net.ends[end as usize].latency);
                reads.push(HostRead { place, input, way, slack: self.pe(pe).slack });
            }
        }
        Some(reads)
    }

    /// By how much a group may be off because words of the host come otherwise than to the group that it follows.
    pub(super) fn host_apart(
        &self,
        stretches: &Stretches,
        stretch: usize,
        hosts: &[HostRead],
        (group, delay): (&Group, f64),
        most: f64,
    ) -> Option<f64> {
        let mut off: f64 = 0.0;
        for host in hosts {
            let pe = group[host.place];
            let slot = self.piece(stretches, pe, stretch)?.inputs[host.input];
            let way = f64::from(self.net.ends[self.net.input(pe as usize, slot) as usize].latency);
            let sooner = delay - (way - host.way);
            match host.slack > SAME && host.slack + sooner >= 0.0 {
                true => {}
                false if sooner.abs() <= most => off = off.max(sooner.abs()),
                false => return None,
            }
        }
        Some(off)
    }

    /// A group does what its leader did, `delay` later.
    pub(super) fn take_over(
        &mut self,
        stretches: &Stretches,
        stretch: usize,
        led: &Led,
        (group, delay): &(Group, f64),
    ) {
        let (net, delay) = (self.net, *delay);
        let mut reads = Vec::with_capacity(2 * group.len());
        for ((&a, &b), before) in led.leader.iter().zip(group).zip(&led.before) {
            let (Some(own), Some(other)) =
                (self.piece(stretches, a, stretch), self.piece(stretches, b, stretch))
            else {
                continue;
            };
            for ((from, to), sent) in own.outputs.iter().zip(&other.outputs).zip(&before.sent) {
                let (from, to) = (net.output(a as usize, *from), net.output(b as usize, *to));
                self.streams.send_like((from, sent), to, before.time + delay, delay);
            }
            for ((from, to), taken) in own.inputs.iter().zip(&other.inputs).zip(&before.taken) {
                let (from, to) = (net.input(a as usize, *from), net.input(b as usize, *to));
                if from != NONE {
                    reads.push((to, self.streams.taken(from) - taken));
                }
            }
            let Ok([Some(leader), Some(state)]) = self.pes.get_disjoint_mut([a as usize, b as usize]) else {
                continue;
            };
            if self.streams.explains {
                let like = Like {
                    leader: a,
                    entries: before.held..leader.held.entries.len(),
                    time: (before.time, leader.time),
                    led: (before.spent, leader.spent()),
                    follower: b,
                    delay,
                    stretch,
                    spent: state.spent(),
                };
                state.held.entries.push(Entry::Like(Box::new(like)));
            }
            state.time = leader.time + delay;
            state.busy += leader.busy - before.spent[0];
            state.issue += leader.issue - before.spent[1];
            state.activation += leader.activation - before.spent[2];
            for (phase, time) in &leader.phases[before.phases..] {
                self.spans.enter_behind(state, *phase, time + delay);
            }
            // The only task counts when it ends.
            if leader.running.is_none() {
                state.runs.clone_from(&leader.runs);
            }
            (state.running, state.finished, state.pc) = (leader.running, leader.finished, other.stop);
        }
        reads.into_iter().for_each(|(end, words)| self.streams.take(end, words));
    }
}

/// Least and most by which PEs of `group` are later than their counterparts.
pub(super) fn apart(pes: &[Option<Box<Pe>>], leader: &Group, group: &Group) -> (f64, f64) {
    let time = |pe: u32| pes[pe as usize].as_ref().map_or(0.0, |pe| pe.time);
    let later = leader.iter().zip(group).map(|(a, b)| time(*b) - time(*a));
    later.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), t| (least.min(t), most.max(t)))
}

/// Least and most by which PEs of a group begin later than their counterparts did.
pub(super) fn since(pes: &[Option<Box<Pe>>], before: &[Before], group: &Group) -> (f64, f64) {
    let time = |pe: u32| pes[pe as usize].as_ref().map_or(0.0, |pe| pe.time);
    let later = before.iter().zip(group).map(|(a, b)| time(*b) - a.time);
    later.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), t| (least.min(t), most.max(t)))
}
