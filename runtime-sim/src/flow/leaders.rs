//! Rows do the same until their PEs talk to other rows: up to there one row is timed for all that are alike, and the
//! others go on from its state, later by how much farther away from the host they are.
//!
//! What a row does before is a matter of the words of its own PEs and of the host only. If the host's words come later
//! by one delay everywhere in a row, and no PE does anything before its first word, all times are later by that delay.

use super::engine::Engine;
use super::pe::{Pe, counterpart};
use crate::lower::{Instr, Linear, LoweredClass, LoweredOp, Sink, Source};
use crate::network::{NOBODY, NONE, Network, Origin, Target};
use std::collections::BTreeMap;

/// Rows that follow other rows.
#[derive(Debug, Default)]
pub struct Leaders {
    /// By row that leads: the rows that follow it, each with its delay.
    pub followers: BTreeMap<u32, Vec<(u32, f64)>>,
    /// By row that leads: where each of its PEs must stop, by column.
    stops: BTreeMap<u32, Vec<usize>>,
}

/// What makes the beginning of two rows the same, column by column.
type Beginning = Vec<(u32, usize, Vec<Link>)>;

/// Where an input's words come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Nowhere,
    Host,
    OtherRow,
    /// Column and output of the sender, and the way in cycles.
    Row(u32, u32, u32),
}

impl Leaders {
    /// Finds the rows of a network that begin alike.
    pub fn of(net: &Network, classes: &[LoweredClass]) -> Self {
        let mut prefixes = Prefixes { classes, distinct: Vec::new(), known: BTreeMap::new() };
        let mut leaders = Leaders::default();
        let mut first: BTreeMap<Beginning, u32> = BTreeMap::new();
        for y in (0..net.height).filter(|y| net.traced[*y as usize]) {
            let Some(beginning) = beginning(net, &mut prefixes, y) else { continue };
            let stops = beginning.iter().map(|b| b.1).collect();
            let leader = *first.entry(beginning).or_insert(y);
            if leader == y {
                leaders.stops.insert(y, stops);
            } else if let Some(delay) = delay(net, leader, y) {
                leaders.followers.entry(leader).or_default().push((y, delay));
            }
        }
        leaders.stops.retain(|y, _| leaders.followers.contains_key(y));
        leaders
    }

    /// Where a PE must stop.
    pub fn stop(&self, net: &Network, pe: u32) -> usize {
        let at = net.coord(pe);
        self.stops.get(&at.y).map_or(usize::MAX, |stops| stops[at.x as usize])
    }

    /// Whether a PE is in a row that follows another.
    pub fn follows(&self, y: u32) -> bool {
        self.followers.values().flatten().any(|(row, _)| *row == y)
    }
}

/// The beginning of a row; none if one of its PEs has more than one task that starts by itself.
fn beginning(net: &Network, prefixes: &mut Prefixes, y: u32) -> Option<Beginning> {
    let columns = (0..net.width).map(|x| {
        let pe = y * net.width + x;
        let class = net.class_of[pe as usize];
        if class == NOBODY {
            return Some((NONE, 0, Vec::new()));
        }
        let (inputs, outputs) =
            (net.inputs[usize::from(class)], prefixes.classes[usize::from(class)].outputs.len());
        let links: Vec<Link> = (0..inputs).map(|slot| link(net, pe, slot)).collect();
        let foreign = |link: &Link| matches!(link, Link::OtherRow);
        let foreign_in = links.iter().map(foreign).collect();
        let foreign_out = (0..outputs).map(|slot| leaves_row(net, pe, slot)).collect();
        let (prefix, stop) = prefixes.of(class, foreign_in, foreign_out)?;
        Some((prefix, stop, links))
    });
    columns.collect()
}

fn link(net: &Network, pe: u32, slot: u32) -> Link {
    let end = net.input(pe as usize, slot as usize);
    if end == NONE {
        return Link::Nowhere;
    }
    let end = &net.ends[end as usize];
    match net.streams[end.stream as usize].origin {
        Origin::Host(_) => Link::Host,
        Origin::Pe(sender) if sender / net.width == pe / net.width => {
            let class = net.class_of[sender as usize];
            let first = net.first_slot[sender as usize] + net.inputs[usize::from(class)];
            let outputs = (0..).take_while(|n| net.slots[(first + n) as usize] != end.stream).count();
            Link::Row(sender % net.width, outputs as u32, end.latency)
        }
        Origin::Pe(_) | Origin::Switch(..) => Link::OtherRow,
    }
}

/// Whether words of an output arrive in another row.
fn leaves_row(net: &Network, pe: u32, slot: usize) -> bool {
    let ends = net.ends_of(net.output(pe as usize, slot));
    ends.iter().any(|e| !matches!(e.target, Target::Pe(to) if to / net.width == pe / net.width))
}

/// By how much later the host's words come in row `y` than in row `leader`, if that is the same everywhere.
fn delay(net: &Network, leader: u32, y: u32) -> Option<f64> {
    let mut delay = None;
    for x in 0..net.width {
        let (a, b) = (leader * net.width + x, y * net.width + x);
        let class = net.class_of[a as usize];
        for slot in 0..if class == NOBODY { 0 } else { net.inputs[usize::from(class)] } {
            if link(net, a, slot) == Link::Host {
                let end = |pe: u32| net.ends[net.input(pe as usize, slot as usize) as usize];
                let (a, b) = (end(a), end(b));
                let own = f64::from(b.latency) - f64::from(a.latency);
                if a.stream != b.stream || own < 0.0 || *delay.get_or_insert(own) != own {
                    return None;
                }
            }
        }
    }
    Some(delay.unwrap_or(0.0))
}

/// A class and which of its inputs and outputs cross rows.
type ClassAt = (u16, Vec<bool>, Vec<bool>);

/// The code of classes up to where rows talk, numbered.
struct Prefixes<'a> {
    classes: &'a [LoweredClass],
    distinct: Vec<(u16, usize)>,
    /// Number and length by class and by inputs and outputs that cross rows.
    known: BTreeMap<ClassAt, Option<(u32, usize)>>,
}

impl Prefixes<'_> {
    fn of(&mut self, class: u16, foreign_in: Vec<bool>, foreign_out: Vec<bool>) -> Option<(u32, usize)> {
        let key = (class, foreign_in, foreign_out);
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let code = |class: u16| match &self.classes[usize::from(class)].tasks[..] {
            [task] if task.trigger == crate::program::Trigger::Start => Some(&task.code),
            _ => None,
        };
        let found = code(class).map(|own| {
            let stop =
                own.iter().position(|i| crosses(i, &key.1, &key.2)).map_or(own.len() - 1, |at| top(own, at));
            let same = |(other, end): &(u16, usize)| {
                *end == stop && code(*other).is_some_and(|c| c[..stop] == own[..stop])
            };
            let number = self.distinct.iter().position(same).unwrap_or(self.distinct.len());
            (number, stop)
        });
        if let Some((number, stop)) = found
            && number == self.distinct.len()
        {
            self.distinct.push((class, stop));
        }
        let found = found.map(|(number, stop)| (number as u32, stop));
        self.known.insert(key, found);
        found
    }
}

/// The outermost instruction around the one at `at`.
fn top(code: &[Instr], at: usize) -> usize {
    let around = |(head, instr): (usize, &Instr)| match instr {
        Instr::Loop { end, .. } if (head..=*end).contains(&at) => Some(head),
        _ => None,
    };
    code[..=at].iter().enumerate().find_map(around).unwrap_or(at)
}

/// Whether an instruction uses words of other rows, or may differ from row to row.
fn crosses(instr: &Instr, foreign_in: &[bool], foreign_out: &[bool]) -> bool {
    let by_row = |l: &Linear| l.uses_place().1;
    let op = |op: &LoweredOp| {
        let reads = op.src.iter().any(|s| match s {
            Source::In { slot, .. } | Source::Scalar { slot, .. } => foreign_in[*slot],
            _ => false,
        });
        let sends = matches!(&op.dst, Sink::Out { slot, .. } if foreign_out[*slot]);
        reads || sends || op.dims.iter().any(by_row)
    };
    match instr {
        Instr::Op(o) => op(o),
        Instr::Par(ops) => ops.iter().any(op),
        Instr::Loop { count, .. } | Instr::Serial { times: count, .. } => by_row(count),
        Instr::Control { .. } | Instr::Activate(_) => true,
        Instr::Next { .. } | Instr::Phase(_) | Instr::End => false,
    }
}

impl Engine<'_> {
    /// Lets all rows go on: those that follow take over the state of their leaders, if these waited for their words.
    pub(super) fn spread(&mut self, leaders: &Leaders) {
        let net = self.net;
        let row =
            |y: u32| (y * net.width..(y + 1) * net.width).filter(|pe| net.class_of[*pe as usize] != NOBODY);
        for (leader, followers) in &leaders.followers {
            let early = row(*leader).any(|pe| self.pes[pe as usize].as_ref().is_some_and(|pe| pe.early));
            for (y, delay) in followers.iter().filter(|(_, delay)| *delay == 0.0 || !early) {
                row(*leader).zip(row(*y)).for_each(|(from, to)| self.take_over(from, to, *delay));
            }
        }
        for (pe, state) in self.pes.iter_mut().enumerate() {
            if let Some(state) = state {
                state.stop = usize::MAX;
                self.queue.push_back(pe as u32);
            }
        }
    }

    /// PE `to` goes on where PE `from` is, `delay` later.
    fn take_over(&mut self, from: u32, to: u32, delay: f64) {
        let net = self.net;
        let class = |pe: u32| &self.classes[usize::from(net.class_of[pe as usize])];
        let inputs: Vec<(u32, u32)> = (0..class(from).inputs.len())
            .map(|slot| (net.input(from as usize, slot), net.input(to as usize, slot)))
            .collect();
        // What only one of them has is not used before they part.
        let common = class(from).outputs.len().min(class(to).outputs.len());
        let outputs: Vec<(u32, u32)> = (0..common)
            .map(|slot| (net.output(from as usize, slot), net.output(to as usize, slot)))
            .collect();
        inputs.iter().filter(|(a, _)| *a != NONE).for_each(|(a, b)| self.streams.copy_cursor(*a, *b, delay));
        outputs.iter().for_each(|(a, b)| self.streams.copy_words(*a, *b, delay));
        if let Some(state) = &self.pes[from as usize] {
            let mut pe: Box<Pe> = state.clone();
            if pe.bound {
                pe.time += delay;
            }
            pe.phases.iter_mut().filter(|p| p.1 > 0.0).for_each(|p| p.1 += delay);
            pe.ops.iter_mut().for_each(|op| op.ready += delay);
            let last = pe.looping.as_mut().and_then(|looping| looping.last.as_deref_mut());
            let records = pe.records.iter_mut().chain(last);
            records.for_each(|record| record.passed_on(delay, &inputs, &outputs));
            pe.credit.iter_mut().for_each(|end| *end = counterpart(&inputs, *end));
            pe.beats.clear();
            self.pes[to as usize] = Some(pe);
        }
    }
}
