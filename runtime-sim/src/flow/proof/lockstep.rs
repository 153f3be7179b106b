//! The PEs of a stretch of code, folded: PEs of one column in rows that act in step are one actor.
//!
//! Rows act in step: where one does a step of an op, all do, from north to south (or all from south to north). So a word
//! that one of them sends to another is read in the step in which it is sent, and such streams need not be looked at. A
//! row whose ops take fewer steps leaves out the last ones; where what is sent on a stream is short in the same places as what
//! is read from it, its words are some of those of the actor's stream, and never find less room.

use super::rehearse::{Op, Part, Unit, Wire, append, repeat};
use super::shorter::runs;
use super::skeleton::{Item, Operand, Skeleton, totals};
use crate::network::{End, Network, Origin, Target};
use std::collections::{BTreeMap, BTreeSet};

/// What rows do in a stretch.
pub struct Rows<'a> {
    pub net: &'a Network,
    /// Rows whose streams are looked at; of rows in a line, they stand for those that are left out.
    pub rows: &'a [u32],
    /// By row: what it looks like, or [`NONE`].
    pub look: Vec<u32>,
    /// By look and column.
    pub skeletons: Vec<Vec<Option<Skeleton>>>,
    /// Rows of a period, if rows are left out: no word may come from further away.
    pub period: Option<u32>,
    /// Words that the queue of the host has room for, at least.
    pub host_depth: u64,
}

/// What an actor does at an item: a stream, whether words are sent, and the words of each step.
type Use = (usize, bool, u32, u64);

/// Actors: by class of rows and column.
#[derive(Default)]
pub struct Folded {
    pub items: Vec<Vec<Item>>,
    pub uses: Vec<Vec<Use>>,
    pub wires: Vec<Wire>,
}

/// What arrives at an input.
enum Read {
    /// Nothing that need be looked at: the words of a PE that is the same actor, or of one that has been looked at.
    Nothing,
    /// Words of a stream, by number.
    Stream(u32),
}

/// Folding under way.
struct Folding<'a> {
    given: &'a Rows<'a>,
    /// By look: its class.
    class: &'a [u32],
    width: usize,
    folded: Folded,
    /// By actor: streams that it sends, by the item where it first does.
    sent: Vec<Vec<(usize, u32)>>,
    /// By stream of the network: the number of one of the host.
    of_host: BTreeMap<u32, u32>,
    /// Whether words go to rows of the same actor further south, further north.
    south: bool,
    north: bool,
    /// Whether words go from row to row between actors.
    crosses: bool,
    /// Whether the PE that is looked at exchanges words with other rows, or the host has a lane for its row.
    outside: bool,
}

impl Rows<'_> {
    /// Classes of looks, coarse at first: rows with the same loops, and as many ops; then rows that look the same.
    pub fn classes(&self) -> [Vec<u32>; 2] {
        let mut known: BTreeMap<Vec<Vec<Item>>, u32> = BTreeMap::new();
        let coarse = |row: &Vec<Option<Skeleton>>| {
            let bare = |skeleton: &Option<Skeleton>| {
                let items = skeleton.iter().flat_map(|skeleton| &skeleton.items);
                items.map(|item| if let Item::Op(_) = item { Item::Op(0) } else { *item }).collect()
            };
            let next = known.len() as u32;
            *known.entry(row.iter().map(bare).collect()).or_insert(next)
        };
        let coarse = self.skeletons.iter().map(coarse).collect();
        [coarse, (0..self.skeletons.len() as u32).collect()]
    }

    fn skeleton(&self, pe: u32) -> Option<&Skeleton> {
        let look = self.look[(pe / self.net.width) as usize];
        self.skeletons.get(look as usize)?[(pe % self.net.width) as usize].as_ref()
    }

    /// The output of a PE that sends a stream.
    fn output(&self, pe: u32, skeleton: &Skeleton, stream: u32) -> Option<usize> {
        let own = |o: &Operand| o.out && self.net.output(pe as usize, o.slot) == stream;
        skeleton.operands.iter().find(|(_, operand)| own(operand)).map(|(_, operand)| operand.slot)
    }

    /// The actors that rows of the classes make; none if they do not act in step, or if words are left at the end.
    pub fn fold(&self, class: &[u32]) -> Option<Folded> {
        let width = self.net.width as usize;
        let count = class.iter().max().map_or(0, |most| *most as usize + 1) * width;
        let folded =
            Folded { items: vec![Vec::new(); count], uses: vec![Vec::new(); count], wires: Vec::new() };
        let (sent, of_host) = (vec![Vec::new(); count], BTreeMap::new());
        let mut folding = Folding {
            given: self,
            class,
            width,
            folded,
            sent,
            of_host,
            south: false,
            north: false,
            crosses: false,
            outside: false,
        };
        folding.items();
        // Within rows that look the same, the same goes the same ways: of all but the first, only PEs that exchange words with
        // other rows, or have a lane of their own, are looked at.
        let mut known: Vec<Option<Vec<u32>>> = vec![None; self.skeletons.len()];
        for &y in self.rows {
            let look = self.look[y as usize] as usize;
            let columns = known[look].clone();
            let first = columns.is_none();
            let mut outside = Vec::new();
            for x in columns.unwrap_or_else(|| (0..self.net.width).collect()) {
                let pe = y * self.net.width + x;
                if let Some(skeleton) = self.skeleton(pe) {
                    folding.outside = false;
                    folding.pe(pe, skeleton, first)?;
                    outside.extend(folding.outside.then_some(x));
                }
            }
            known[look].get_or_insert(outside);
        }
        let alike = (0..self.skeletons.len()).all(|look| folding.is_long(look));
        let apart = folding.north && folding.south;
        (!apart && (alike || folding.shortens()) && folding.balanced()).then_some(folding.folded)
    }
}

impl Folding<'_> {
    fn actor(&self, pe: u32) -> usize {
        let look = self.given.look[pe as usize / self.width];
        self.class[look as usize] as usize * self.width + pe as usize % self.width
    }

    /// Every op takes as many steps as the row takes that takes most.
    fn items(&mut self) {
        for (row, class) in self.given.skeletons.iter().zip(self.class) {
            for (x, skeleton) in row.iter().enumerate() {
                let Some(skeleton) = skeleton else { continue };
                let items = &mut self.folded.items[*class as usize * self.width + x];
                if items.is_empty() {
                    items.clone_from(&skeleton.items);
                }
                items.iter_mut().zip(&skeleton.items).for_each(|(most, item)| *most = (*most).max(*item));
            }
        }
    }

    /// Notes what a PE does; of a row whose look is known, only what is exchanged with other rows.
    fn pe(&mut self, pe: u32, skeleton: &Skeleton, first: bool) -> Option<()> {
        let (net, actor) = (self.given.net, self.actor(pe));
        let mut uses: Vec<Use> = Vec::new();
        for (item, operand) in &skeleton.operands {
            if operand.out {
                let begins = skeleton.uses(operand.slot, true).next()?.0;
                let number = self.sent(actor, begins);
                if first {
                    uses.push((*item, true, number, operand.words));
                }
                if *item == begins {
                    self.ends(pe, net.output(pe as usize, operand.slot), number, first)?;
                }
            } else {
                let number = match self.read(pe, skeleton, operand.slot, first)? {
                    Read::Nothing => continue,
                    Read::Stream(number) => number,
                };
                uses.push((*item, false, number, operand.words));
            }
        }
        self.note(actor, uses)
    }

    /// What a PE reads at an input.
    fn read(&mut self, pe: u32, skeleton: &Skeleton, slot: usize, first: bool) -> Option<Read> {
        let (net, row) = (self.given.net, pe / self.given.net.width);
        let end = net.ends.get(net.input(pe as usize, slot) as usize)?;
        let from = match net.streams[end.stream as usize].origin {
            Origin::Host(_) => {
                let row = |end: &End| matches!(end.target, Target::Pe(to) if to / net.width == row);
                self.outside |= net.ends_of(end.stream).iter().all(row);
                return Some(Read::Stream(self.host(end.stream)?));
            }
            Origin::Switch(..) => return None,
            Origin::Pe(from) if !first && from / net.width == row => return Some(Read::Nothing),
            Origin::Pe(from) => from,
        };
        let (sender, away) = (self.given.skeleton(from)?, (from / net.width).abs_diff(row));
        self.outside |= away > 0;
        if self.given.period.is_some_and(|period| away > period) {
            return None;
        }
        let output = self.given.output(from, sender, end.stream)?;
        if self.actor(from) != self.actor(pe) || from == pe {
            self.crosses |= away > 0;
            let begins = sender.uses(output, true).next()?.0;
            return Some(Read::Stream(self.sent(self.actor(from), begins)));
        }
        let uses = |of: &Skeleton, slot, out| {
            of.uses(slot, out).map(|(at, words)| (at, words, of.steps(at))).collect::<Vec<_>>()
        };
        (self.south, self.north) = (self.south || from < pe, self.north || from > pe);
        (uses(sender, output, true) == uses(skeleton, slot, false)).then_some(Read::Nothing)
    }

    /// That all who hear a PE read it, and the least of their room.
    fn ends(&mut self, pe: u32, stream: u32, number: u32, first: bool) -> Option<()> {
        let net = self.given.net;
        for (end, e) in (net.streams.get(stream as usize)?.first_end..).zip(net.ends_of(stream)) {
            match e.target {
                Target::Pe(to) if !first && to / net.width == pe / net.width => {}
                Target::Pe(to) => {
                    self.is_read(to, end)?;
                    self.outside |= to / net.width != pe / net.width;
                    let depth = &mut self.folded.wires[number as usize].depth;
                    *depth = (*depth).min(e.depth.into());
                }
                Target::Host(_) => {}
                Target::Switch(..) => return None,
            }
        }
        Some(())
    }

    fn is_read(&self, pe: u32, end: u32) -> Option<()> {
        let operands = &self.given.skeleton(pe)?.operands;
        let read = |slot: usize| self.given.net.input(pe as usize, slot) == end;
        operands.iter().any(|(_, operand)| !operand.out && read(operand.slot)).then_some(())
    }

    fn sent(&mut self, actor: usize, item: usize) -> u32 {
        if let Some((_, number)) = self.sent[actor].iter().find(|(first, _)| *first == item) {
            return *number;
        }
        let number = self.folded.wires.len() as u32;
        self.folded.wires.push(Wire { depth: u64::MAX, of_host: false });
        self.sent[actor].push((item, number));
        number
    }

    /// The number of a stream of the host, which all who hear it read.
    fn host(&mut self, stream: u32) -> Option<u32> {
        if let Some(number) = self.of_host.get(&stream) {
            return Some(*number);
        }
        let net = self.given.net;
        for (end, e) in (net.streams[stream as usize].first_end..).zip(net.ends_of(stream)) {
            if let Target::Pe(to) = e.target {
                self.is_read(to, end)?;
            }
        }
        let number = self.folded.wires.len() as u32;
        self.folded.wires.push(Wire { depth: self.given.host_depth, of_host: true });
        self.of_host.insert(stream, number);
        Some(number)
    }

    /// Notes what a PE does with the streams of its actor: with each all that others do with it, or nothing.
    fn note(&mut self, actor: usize, mut uses: Vec<Use>) -> Option<()> {
        uses.sort_unstable_by_key(|used| (used.2, *used));
        let known = &mut self.folded.uses[actor];
        for stream in uses.chunk_by(|a, b| a.2 == b.2) {
            let begun = known.partition_point(|used| used.2 < stream[0].2);
            let ended = known.partition_point(|used| used.2 <= stream[0].2);
            match begun == ended {
                true => drop(known.splice(begun..begun, stream.iter().copied())),
                false if known[begun..ended] == *stream => {}
                false => return None,
            }
        }
        Some(())
    }

    /// Whether the ops of a look take as many steps as those of its actors.
    fn is_long(&self, look: usize) -> bool {
        let first = self.class[look] as usize * self.width;
        let same = |(x, skeleton): (usize, &Option<Skeleton>)| {
            skeleton.as_ref().is_none_or(|skeleton| skeleton.items == self.folded.items[first + x])
        };
        self.given.skeletons[look].iter().enumerate().all(same)
    }

    /// Whether rows whose ops take fewer steps leave out the same words of each stream where it is sent and where it is read;
    /// those of the host are never left out.
    fn shortens(&self) -> bool {
        let net = self.given.net;
        let mut seen = BTreeSet::new();
        let mut looks = self.given.rows.iter().filter(|y| {
            let look = self.given.look[**y as usize];
            seen.insert(look) && !self.is_long(look as usize)
        });
        !self.crosses
            && looks.all(|y| {
                let mut pes = y * net.width..(y + 1) * net.width;
                pes.all(|pe| self.given.skeleton(pe).is_none_or(|skeleton| self.shortens_at(pe, skeleton)))
            })
    }

    fn shortens_at(&self, pe: u32, skeleton: &Skeleton) -> bool {
        let net = self.given.net;
        let mut reads = skeleton.operands.iter().filter(|(_, operand)| !operand.out);
        reads.all(|(item, operand)| {
            let Some(end) = net.ends.get(net.input(pe as usize, operand.slot) as usize) else { return false };
            match net.streams[end.stream as usize].origin {
                Origin::Host(_) => skeleton.items[*item] == self.folded.items[self.actor(pe)][*item],
                // Read in the very step in which they are sent.
                Origin::Pe(from) if from / net.width != pe / net.width => true,
                Origin::Pe(from) => {
                    let Some(sender) = self.given.skeleton(from) else { return false };
                    let Some(output) = self.given.output(from, sender, end.stream) else { return false };
                    let sent = runs(sender, &self.folded.items[self.actor(from)], (output, true));
                    sent.is_some()
                        && sent == runs(skeleton, &self.folded.items[self.actor(pe)], (operand.slot, false))
                }
                Origin::Switch(..) => false,
            }
        })
    }

    /// Whether as many words are read from each stream as are sent, and a queue holds the words of a step.
    fn balanced(&self) -> bool {
        let Folded { items, uses, wires } = &self.folded;
        let mut sent = vec![None; wires.len()];
        let mut read: BTreeMap<(u32, usize), u64> = BTreeMap::new();
        for (actor, uses) in uses.iter().enumerate() {
            let totals = totals(&items[actor]);
            for (item, out, wire, words) in uses {
                let total = totals[*item] * words;
                if *words > wires[*wire as usize].depth {
                    return false;
                }
                if *out {
                    *sent[*wire as usize].get_or_insert(0) += total;
                } else {
                    *read.entry((*wire, actor)).or_default() += total;
                }
            }
        }
        read.into_iter().all(|((wire, _), total)| *sent[wire as usize].get_or_insert(total) == total)
    }
}

impl Folded {
    /// What an actor does with some of its streams, by their new number.
    pub fn parts(&self, actor: usize, number: &dyn Fn(u32) -> Option<u32>) -> Vec<Part> {
        let items = &self.items[actor];
        let mut ops: Vec<Option<Op>> = vec![None; items.len()];
        for (item, out, wire, words) in &self.uses[actor] {
            let Item::Op(steps) = items[*item] else { continue };
            if let Some(wire) = number(*wire).filter(|_| steps > 0) {
                let new = Op { steps, reads: Vec::new(), writes: Vec::new() };
                let op = ops[*item].get_or_insert(new);
                if *out { op.writes.push((wire, *words)) } else { op.reads.push((wire, *words)) }
            }
        }
        let mut open: Vec<(u64, Vec<Part>)> = vec![(1, Vec::new())];
        let mut beside = 0;
        let mut side = Vec::new();
        for (at, item) in items.iter().enumerate() {
            match item {
                Item::Loop(times) => open.push((*times, Vec::new())),
                Item::Next => {
                    if let Some((times, body)) = open.pop()
                        && times > 0
                        && let Some((_, outer)) = open.last_mut()
                    {
                        repeat(outer, times, body);
                    }
                }
                Item::Side(count) => beside = *count,
                Item::Op(_) => {
                    side.extend(ops[at].take());
                    beside = beside.saturating_sub(1);
                    if beside == 0
                        && let Some((_, parts)) = open.last_mut()
                    {
                        append(parts, Part { times: 1, unit: Unit::Ops(std::mem::take(&mut side)) });
                    }
                }
            }
        }
        open.pop().map(|(_, parts)| parts).unwrap_or_default()
    }
}
