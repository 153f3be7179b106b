//! The PEs of a stretch of code, folded: PEs of one column in rows that act in step are one actor.
//!
//! Rows act in step: where one does a step of an op, all do, from north to south (or all from south to north). So a word
//! that one of them sends to another is read in the step in which it is sent, and such streams need not be looked at. A
//! row whose ops take fewer steps leaves out the last ones; where what is sent on a stream is short in the same places as what
//! is read from it, its words are some of those of the actor's stream, and never find less room.

use super::looks::Looks;
use super::pieces::{Folded, Use};
use super::rehearse::Wire;
use super::shorter::runs;
use super::skeleton::{Item, Items, Skeleton};
use super::templates::Interned;
use crate::network::{End, NONE, Network, Origin, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What rows do in a stretch.
pub struct Rows<'a> {
    pub net: &'a Network,
    /// Rows whose streams are looked at; of rows in a line, they stand for those that are left out.
    pub rows: &'a [u32],
    pub looks: &'a Looks,
    /// Rows of a period, if rows are left out: no word may come from further away.
    pub period: Option<u32>,
    /// Words that the queue of the host has room for, at least.
    pub host_depth: u64,
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
    /// By stream of the network: the number of one of the host, or [`NONE`].
    of_host: Vec<u32>,
    /// By port of the PE that is looked at: its stream, if it is noted.
    numbers: Vec<Option<u32>>,
    /// What that PE does.
    uses: Vec<Use>,
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
        let looks = &self.looks.skeletons;
        let mut known: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        let coarse = |row: &Vec<Option<Rc<Skeleton>>>| {
            let bare = |skeleton: &Option<Rc<Skeleton>>| {
                let items = skeleton.as_ref().map(|skeleton| &skeleton.items);
                items.filter(|items| !items.all.is_empty()).map_or(NONE, |items| items.bare)
            };
            let next = known.len() as u32;
            *known.entry(row.iter().map(bare).collect()).or_insert(next)
        };
        [looks.iter().map(coarse).collect(), (0..looks.len() as u32).collect()]
    }

    /// The output of a PE that sends a stream, by port.
    fn output(&self, pe: u32, skeleton: &Skeleton, stream: u32) -> Option<usize> {
        let mut ports = skeleton.ports.iter();
        ports.position(|port| port.out && self.net.output(pe as usize, port.slot) == stream)
    }

    /// The actors that rows of the classes make; none if they do not act in step, or if words are left at the end.
    pub fn fold(&self, class: &[u32], items: &mut Interned) -> Option<Folded> {
        let width = self.net.width as usize;
        let count = class.iter().max().map_or(0, |most| *most as usize + 1) * width;
        let folded = Folded { items: vec![None; count], uses: vec![Vec::new(); count], wires: Vec::new() };
        let mut folding = Folding {
            given: self,
            class,
            width,
            folded,
            sent: vec![Vec::new(); count],
            of_host: vec![NONE; self.net.streams.len()],
            numbers: Vec::new(),
            uses: Vec::new(),
            south: false,
            north: false,
            crosses: false,
            outside: false,
        };
        folding.items(items);
        // Within rows that look the same, the same goes the same ways: of all but the first, only PEs that exchange words with
        // other rows, or have a lane of their own, are looked at.
        let (looks, all) = (self.looks.skeletons.len(), Vec::from_iter(0..self.net.width));
        let mut known: Vec<Option<Vec<u32>>> = vec![None; looks];
        for &y in self.rows {
            let look = self.looks.of_row(y);
            let columns = known[look].take();
            let first = columns.is_none();
            let mut outside = Vec::new();
            for &x in columns.as_ref().unwrap_or(&all) {
                let pe = y * self.net.width + x;
                if let Some(skeleton) = self.looks.skeleton(pe) {
                    folding.outside = false;
                    folding.pe(pe, skeleton, first)?;
                    outside.extend(folding.outside.then_some(x));
                }
            }
            known[look] = columns.or(Some(outside));
        }
        let alike = (0..looks).all(|look| folding.is_long(look));
        let apart = folding.north && folding.south;
        (!apart && (alike || folding.shortens()) && folding.balanced()).then_some(folding.folded)
    }
}

impl Folding<'_> {
    fn actor(&self, pe: u32) -> usize {
        let look = self.given.looks.of_row(pe / self.width as u32);
        self.class[look] as usize * self.width + pe as usize % self.width
    }

    /// What an actor does, if its PEs do anything.
    fn most(&self, actor: usize) -> &[Item] {
        self.folded.items[actor].as_ref().map_or(&[], |items| &items.all)
    }

    /// Every op takes as many steps as the row takes that takes most.
    fn items(&mut self, interned: &mut Interned) {
        for (row, class) in self.given.looks.skeletons.iter().zip(self.class) {
            for (x, skeleton) in row.iter().enumerate() {
                let Some(skeleton) = skeleton else { continue };
                let items = &mut self.folded.items[*class as usize * self.width + x];
                *items = Some(match items {
                    Some(most) => interned.longer(most, &skeleton.items),
                    None => Rc::clone(&skeleton.items),
                });
            }
        }
    }

    /// Notes what a PE does; of a row whose look is known, only what is exchanged with other rows.
    fn pe(&mut self, pe: u32, skeleton: &Skeleton, first: bool) -> Option<()> {
        let (net, actor) = (self.given.net, self.actor(pe));
        self.numbers.clear();
        for port in &skeleton.ports {
            let number = if port.out {
                let number = self.sent(actor, port.first);
                self.ends(pe, net.output(pe as usize, port.slot), number, first)?;
                first.then_some(number)
            } else {
                match self.read(pe, skeleton, port.slot, first)? {
                    Read::Nothing => None,
                    Read::Stream(number) => Some(number),
                }
            };
            self.numbers.push(number);
        }
        self.uses.clear();
        for used in &skeleton.uses {
            if let Some(number) = self.numbers[used.port] {
                self.uses.push((used.item, skeleton.ports[used.port].out, number, used.words));
            }
        }
        self.note(actor)
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
        let (sender, away) = (self.given.looks.skeleton(from)?, (from / net.width).abs_diff(row));
        self.outside |= away > 0;
        if self.given.period.is_some_and(|period| away > period) {
            return None;
        }
        let output = self.given.output(from, sender, end.stream)?;
        if self.actor(from) != self.actor(pe) || from == pe {
            self.crosses |= away > 0;
            let begins = sender.ports[output].first;
            return Some(Read::Stream(self.sent(self.actor(from), begins)));
        }
        (self.south, self.north) = (self.south || from < pe, self.north || from > pe);
        let input = skeleton.port(slot, false)?;
        in_step((sender, output), (skeleton, input)).then_some(Read::Nothing)
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
        let ports = &self.given.looks.skeleton(pe)?.ports;
        let read = |slot: usize| self.given.net.input(pe as usize, slot) == end;
        ports.iter().any(|port| !port.out && read(port.slot)).then_some(())
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
        if self.of_host[stream as usize] != NONE {
            return Some(self.of_host[stream as usize]);
        }
        let net = self.given.net;
        for (end, e) in (net.streams[stream as usize].first_end..).zip(net.ends_of(stream)) {
            if let Target::Pe(to) = e.target {
                self.is_read(to, end)?;
            }
        }
        let number = self.folded.wires.len() as u32;
        self.folded.wires.push(Wire { depth: self.given.host_depth, of_host: true });
        self.of_host[stream as usize] = number;
        Some(number)
    }

    /// Notes what a PE does with the streams of its actor: with each all that others do with it, or nothing.
    fn note(&mut self, actor: usize) -> Option<()> {
        self.uses.sort_unstable_by_key(|used| (used.2, *used));
        let known = &mut self.folded.uses[actor];
        if known.is_empty() {
            known.clone_from(&self.uses);
            return Some(());
        }
        for stream in self.uses.chunk_by(|a, b| a.2 == b.2) {
            let begun = known.partition_point(|used| used.2 < stream[0].2);
            let ended = begun + known[begun..].iter().take_while(|used| used.2 == stream[0].2).count();
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
        let number = |items: &Rc<Items>| items.number;
        let same = |(x, skeleton): (usize, &Option<Rc<Skeleton>>)| {
            let most = self.folded.items[first + x].as_ref().map(number);
            skeleton.as_ref().is_none_or(|skeleton| Some(skeleton.items.number) == most)
        };
        self.given.looks.skeletons[look].iter().enumerate().all(same)
    }

    /// Whether rows whose ops take fewer steps leave out the same words of each stream where it is sent and where it is read;
    /// those of the host are never left out.
    fn shortens(&self) -> bool {
        let net = self.given.net;
        let mut seen = BTreeSet::new();
        let mut looks = self.given.rows.iter().filter(|y| {
            let look = self.given.looks.of_row(**y);
            seen.insert(look) && !self.is_long(look)
        });
        !self.crosses
            && looks.all(|y| {
                let mut pes = y * net.width..(y + 1) * net.width;
                pes.all(|pe| {
                    self.given.looks.skeleton(pe).is_none_or(|skeleton| self.shortens_at(pe, skeleton))
                })
            })
    }

    fn shortens_at(&self, pe: u32, skeleton: &Skeleton) -> bool {
        let net = self.given.net;
        let mut reads = skeleton.ports.iter().enumerate().filter(|(_, port)| !port.out);
        reads.all(|(input, port)| {
            let Some(end) = net.ends.get(net.input(pe as usize, port.slot) as usize) else { return false };
            let most = self.most(self.actor(pe));
            match net.streams[end.stream as usize].origin {
                Origin::Host(_) => skeleton.uses(input).all(|(at, _)| skeleton.items.all[at] == most[at]),
                // Read in the very step in which they are sent.
                Origin::Pe(from) if from / net.width != pe / net.width => true,
                Origin::Pe(from) => {
                    let Some(sender) = self.given.looks.skeleton(from) else { return false };
                    let Some(output) = self.given.output(from, sender, end.stream) else { return false };
                    let sent = runs(sender, self.most(self.actor(from)), output);
                    sent.is_some() && sent == runs(skeleton, most, input)
                }
                Origin::Switch(..) => false,
            }
        })
    }

    /// Whether as many words are read from each stream as are sent, and a queue holds the words of a step.
    fn balanced(&self) -> bool {
        let Folded { items, uses, wires } = &self.folded;
        let mut sent = vec![None; wires.len()];
        let mut read: Vec<(u32, u64)> = Vec::new();
        for (items, uses) in items.iter().zip(uses) {
            let Some(items) = items else { continue };
            for stream in uses.chunk_by(|a, b| a.2 == b.2) {
                let wire = stream[0].2;
                if stream.iter().any(|used| used.3 > wires[wire as usize].depth) {
                    return false;
                }
                let total = |out: bool| {
                    let own = stream.iter().filter(|used| used.1 == out);
                    own.map(|(item, _, _, words)| items.totals[*item].saturating_mul(*words))
                        .reduce(u64::saturating_add)
                };
                if let Some(total) = total(true) {
                    let sent = sent[wire as usize].get_or_insert(0u64);
                    *sent = sent.saturating_add(total);
                }
                read.extend(total(false).map(|total| (wire, total)));
            }
        }
        read.into_iter().all(|(wire, total)| *sent[wire as usize].get_or_insert(total) == total)
    }
}

/// Whether what one PE sends is what another reads, step by step.
fn in_step((sender, output): (&Skeleton, usize), (reader, input): (&Skeleton, usize)) -> bool {
    let steps = |of: &Skeleton, at: usize| match of.items.all[at] {
        Item::Op(steps) => steps,
        _ => 0,
    };
    let sent = sender.uses(output).map(|(at, words)| (at, words, steps(sender, at)));
    sent.eq(reader.uses(input).map(|(at, words)| (at, words, steps(reader, at))))
}
