//! When each piece begins and ends.

use super::order::{Edges, groups};
use super::pieces::{Piece, pieces};
use super::turns::{self, Member};
use crate::flow::{Burst, Engine, Pe, Skip};
use crate::lower::{Env, LoweredClass};
use crate::network::{NONE, Network, Origin};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Words `from..to` of a stream and the piece that sends them.
#[derive(Clone, Copy, Debug)]
struct Part {
    from: u64,
    to: u64,
    node: u32,
    /// When the first and the last leave; not known before the piece is priced.
    first: f64,
    last: f64,
    /// Words of one iteration of the piece, and from the first to the last of them.
    each: u64,
    span: f64,
    /// What it is like, if nobody is priced who sends it.
    told: Option<Told>,
}

/// Words that are foretold: those of two parts, one a period behind the other, go on for so many periods more.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// Streams of the later part and of the earlier one, and their place in both.
    streams: [u32; 2],
    at: u32,
    steps: u32,
    /// Words at its beginning that rows before have kept.
    lost: u64,
}

impl Part {
    /// When word `n` of the stream leaves.
    fn time(&self, n: u64) -> f64 {
        let lost = self.told.map_or(0, |told| told.lost);
        let (n, words) = (n.saturating_sub(self.from) + lost, self.to - self.from + lost);
        let each = self.each.clamp(1, words.max(1));
        let times = words.div_ceil(each);
        let period = (self.last - self.first - self.span) / times.saturating_sub(1).max(1) as f64;
        let gap = self.span / each.saturating_sub(1).max(1) as f64;
        self.first + (n / each) as f64 * period + (n % each) as f64 * gap
    }
}

/// Words `from..to` that a piece reads at an end, after so many cycles of it.
#[derive(Clone, Copy, Debug)]
struct Read {
    end: u32,
    from: u64,
    to: u64,
    first: f64,
    last: f64,
}

/// A piece within its group.
struct Slot {
    node: u32,
    /// Cycles that its PE has worked in the group before it.
    before: f64,
    /// Its own.
    cost: f64,
}

/// All pieces, numbered PE by PE.
struct Solver<'n> {
    net: &'n Network,
    classes: &'n [LoweredClass],
    pieces: Vec<Piece>,
    /// By piece: its PE.
    pe: Vec<u32>,
    reads: Vec<Vec<Read>>,
    /// By stream: who sends its words, in order.
    parts: Vec<Vec<Part>>,
    /// By piece: when it begins and ends.
    span: Vec<(f64, f64)>,
    /// By piece: the group that it is in.
    group: Vec<u32>,
}

/// The sender of words that the host sends.
const HOST: u32 = u32::MAX;

/// Prices all pieces and leaves their times in the PEs and streams of `engine`.
pub fn solve(engine: &mut Engine, skips: &[Skip]) {
    let mut solver = Solver::of(engine);
    skips.iter().for_each(|skip| solver.foretell(skip));
    let edges = solver.edges();
    let groups = groups(&edges);
    for (number, group) in (0u32..).zip(&groups) {
        group.iter().for_each(|node| solver.group[*node as usize] = number);
    }
    for group in &groups {
        solver.price(group);
    }
    solver.store(engine);
}

impl<'n> Solver<'n> {
    fn of(engine: &Engine<'n>) -> Self {
        let net = engine.net;
        let mut solver = Solver {
            net,
            classes: engine.classes,
            pieces: Vec::new(),
            pe: Vec::new(),
            reads: Vec::new(),
            parts: vec![Vec::new(); net.streams.len()],
            span: Vec::new(),
            group: Vec::new(),
        };
        for (stream, parts) in solver.parts.iter_mut().enumerate() {
            if let Origin::Host(_) = net.streams[stream].origin {
                let words = engine.streams.sent(stream as u32);
                let (first, last) = engine.streams.span(stream as u32);
                parts.push(Part {
                    from: 0,
                    to: words,
                    node: HOST,
                    first,
                    last,
                    each: 1,
                    span: 0.0,
                    told: None,
                });
            }
        }
        let mut taken = vec![0u64; net.ends.len()];
        for (pe, class) in net.traced_pes().filter(|(pe, _)| engine.pes[*pe as usize].is_some()) {
            let at = net.coord(pe);
            let env = Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() };
            let activation = f64::from(engine.spec.task_activation);
            for piece in pieces(&engine.classes[usize::from(class)], env, activation) {
                solver.add(pe, piece, &mut taken);
            }
        }
        solver.span = vec![(0.0, 0.0); solver.pieces.len()];
        solver.group = vec![0; solver.pieces.len()];
        solver
    }

    fn add(&mut self, pe: u32, piece: Piece, taken: &mut [u64]) {
        let node = self.pieces.len() as u32;
        let mut reads = Vec::new();
        for access in piece.profile.reads.iter().filter(|access| access.words > 0) {
            let end = self.net.input(pe as usize, access.slot);
            if end != NONE {
                let from = taken[end as usize];
                taken[end as usize] += access.words;
                reads.push(Read {
                    end,
                    from,
                    to: from + access.words,
                    first: access.first,
                    last: access.last,
                });
            }
        }
        for (access, (each, span)) in piece.profile.writes.iter().zip(&piece.bursts) {
            let parts = &mut self.parts[self.net.output(pe as usize, access.slot) as usize];
            let from = parts.last().map_or(0, |part| part.to);
            let (to, first, last) = (from + access.words, access.first, access.last);
            parts.push(Part { from, to, node, first, last, each: *each, span: *span, told: None });
        }
        self.reads.push(reads);
        self.pieces.push(piece);
        self.pe.push(pe);
    }

    /// Adds the parts of streams that are foretold. Rows keep the first words of what they pass on, so where a part runs out
    /// the next one loses what it is short of.
    fn foretell(&mut self, skip: &Skip) {
        for (stream, streams, steps) in skip.told(self.net) {
            let [later, earlier] = streams.map(|stream| &self.parts[stream as usize]);
            let on = |a: u64, b: u64| i128::from(b) + (i128::from(b) - i128::from(a)) * i128::from(steps);
            let (mut parts, mut end) = (Vec::new(), 0);
            for (at, (b, a)) in (0u32..).zip(later.iter().zip(earlier)) {
                let [from, to] = [on(a.from, b.from), on(a.to, b.to)];
                let (Ok(lost), Ok(next)) = (u64::try_from(i128::from(end) - from), u64::try_from(to)) else {
                    continue;
                };
                if next > end {
                    let told = Some(Told { streams, at, steps, lost });
                    parts.push(Part { from: end, to: next, told, ..*b });
                    end = next;
                }
            }
            self.parts[stream as usize] = parts;
        }
    }

    /// The parts that tell one: the later and the earlier.
    fn told_by(&self, told: Told) -> [&Part; 2] {
        told.streams.map(|stream| &self.parts[stream as usize][told.at as usize])
    }

    /// A part with its times, if those who tell them are priced.
    fn known(&self, part: &Part) -> Part {
        let Some(told) = part.told else { return *part };
        let [later, earlier] = self.told_by(told);
        let on = |a: f64, b: f64| b + (b - a) * f64::from(told.steps);
        Part { first: on(earlier.first, later.first), last: on(earlier.last, later.last), ..*part }
    }

    /// The part of a stream with word `n`; the last one if there are not so many.
    fn part(&self, stream: u32, n: u64) -> Option<&Part> {
        let parts = &self.parts[stream as usize];
        parts.get(parts.partition_point(|part| part.to <= n)).or(parts.last())
    }

    /// From each piece to the next of its PE and to those that read its last words.
    fn edges(&self) -> Edges {
        let mut edges = Vec::new();
        for node in 0..self.pieces.len() as u32 {
            if self.before(node).is_some() {
                edges.push((node - 1, node));
            }
            for read in &self.reads[node as usize] {
                let sender = self.part(self.net.ends[read.end as usize].stream, read.to - 1);
                let earlier = sender.and_then(|part| part.told).map(|told| self.told_by(told)[1]);
                let senders = sender.into_iter().chain(earlier).filter(|part| part.node != HOST);
                edges.extend(senders.map(|part| (part.node, node)));
            }
        }
        Edges::new(self.pieces.len(), edges)
    }

    /// The piece of the same PE before this one.
    fn before(&self, node: u32) -> Option<u32> {
        node.checked_sub(1).filter(|before| self.pe[*before as usize] == self.pe[node as usize])
    }

    /// When word `n` comes to an end, if its sender is priced.
    fn arrival(&self, end: u32, n: u64) -> f64 {
        let end = &self.net.ends[end as usize];
        self.part(end.stream, n).map_or(0.0, |part| self.known(part).time(n) + f64::from(end.latency))
    }

    /// Prices the pieces of one group, in the order of their numbers: it begins when all of them can, and each PE's
    /// last words come in time for what they are read for.
    fn price(&mut self, group: &[u32]) {
        let inside = self.group[group[0] as usize];
        let within = |read: &Read| {
            let sender = self.part(self.net.ends[read.end as usize].stream, read.to - 1);
            sender.is_some_and(|part| part.node != HOST && self.group[part.node as usize] == inside)
        };
        let exchange = if group.len() > 1 { self.exchange(group, &within) } else { None };
        let (slots, works) = self.slots(group, exchange.unwrap_or(0.0), &within);
        let (mut start, mut length) = (0.0f64, works.values().copied().fold(0.0, f64::max));
        match exchange {
            Some(longer) => {
                length = length.max(self.turns(&slots, longer, &within).map_or(0.0, turns::length));
            }
            None if group.len() > 1 => length += self.way(group),
            None => {}
        }
        let outside = |slot: &Slot| {
            self.reads[slot.node as usize].iter().filter(|read| !within(read)).copied().collect::<Vec<_>>()
        };
        for slot in &slots {
            if let Some(before) = self.before(slot.node).filter(|b| self.group[*b as usize] != inside) {
                let (began, ended) = self.span[before as usize];
                let beside = self.pieces[slot.node as usize].beside;
                start = start.max(if beside { began } else { ended } - slot.before);
            }
            for read in outside(slot) {
                start = start.max(self.arrival(read.end, read.from) - slot.before - read.first);
            }
        }
        for slot in &slots {
            // A piece that exchanges is longer than its work, by as much before its last words as anywhere.
            let longer = slot.cost - self.pieces[slot.node as usize].profile.work;
            let rest = works[&self.pe[slot.node as usize]] - slot.before - longer;
            for read in outside(slot) {
                length = length.max(self.arrival(read.end, read.to - 1) + rest - read.last - start);
            }
        }
        for Slot { node, before, cost } in slots {
            let end = start + length - (works[&self.pe[node as usize]] - before - cost);
            let beside = self.pieces[node as usize].beside;
            let other = self.before(node).filter(|_| beside).map_or(0.0, |b| self.span[b as usize].1);
            self.span[node as usize] = (start + before, end.max(other));
            self.send(node, start + before, end - self.pieces[node as usize].profile.work);
        }
    }

    /// The pieces of a group with what their PEs have done before, and all that each PE does in it.
    fn slots(
        &self,
        group: &[u32],
        exchange: f64,
        within: &dyn Fn(&Read) -> bool,
    ) -> (Vec<Slot>, BTreeMap<u32, f64>) {
        let mut works = BTreeMap::<u32, f64>::new();
        let slot = |node: &u32| {
            let piece = &self.pieces[*node as usize];
            let inner = self.reads[*node as usize].iter().filter(|read| within(read));
            let times: u64 = inner.map(|read| self.exchanges(*node, read)).sum();
            let cost = piece.profile.work + times as f64 * exchange;
            let work = works.entry(self.pe[*node as usize]).or_default();
            *work += cost;
            Slot { node: *node, before: *work - cost, cost }
        };
        (group.iter().map(slot).collect(), works)
    }

    /// The PEs of a group as they exchange words turn by turn, where that takes so much longer than the words; none if they do
    /// not do so in rings.
    fn turns(&self, slots: &[Slot], longer: f64, within: &dyn Fn(&Read) -> bool) -> Option<Vec<Member>> {
        let mut members = BTreeMap::<u32, Member>::new();
        for slot in slots {
            let (pe, piece) = (self.pe[slot.node as usize], &self.pieces[slot.node as usize]);
            let inner = self.reads[slot.node as usize].iter().filter(|read| within(read));
            let turns = |read: &Read| Some((*read, self.exchanges(slot.node, read))).filter(|(_, n)| *n > 0);
            let mut exchanged = inner.filter_map(turns);
            let member = members.entry(pe).or_default();
            let Some((read, turns)) = exchanged.next() else {
                member.spends(slot.cost);
                continue;
            };
            let end = self.net.ends[read.end as usize];
            let Origin::Pe(before) = self.net.streams[end.stream as usize].origin else { return None };
            let class = &self.classes[usize::from(self.net.class_of[pe as usize])];
            let at = self.net.coord(pe);
            let mut env = Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() };
            let told = piece
                .head
                .and_then(|(task, head)| turns::of_loop(&class.tasks[task].code, head, longer, &mut env));
            // Exchanges with somebody else in the same loop are no turns of this ring.
            let told = told.filter(|(_, runs)| runs.iter().map(|run| run.0).sum::<u64>() == turns);
            let (first, runs) = told.unwrap_or_else(|| (0.0, vec![(turns, slot.cost / turns as f64)]));
            member.spends(first);
            if exchanged.next().is_some() || !member.exchanges(before, runs) {
                return None;
            }
            let words = (read.to - read.from).div_ceil(turns).max(1);
            member.room = member.room.min(u64::from(end.depth) / words);
        }
        turns::in_rings(members)
    }

    /// How often a piece sends and takes side by side what it reads here.
    fn exchanges(&self, node: u32, read: &Read) -> u64 {
        let pe = self.pe[node as usize] as usize;
        let same = |(slot, _): &&(usize, u64)| self.net.input(pe, *slot) == read.end;
        self.pieces[node as usize].exchanges.iter().find(same).map_or(0, |(_, times)| *times)
    }

    /// Cycles by which an exchange is longer than its words, if the pieces of a circle have any: a word leaves a cycle
    /// after its exchange begins, and while the circle turns once, its words take all its ways.
    fn exchange(&self, group: &[u32], within: &dyn Fn(&Read) -> bool) -> Option<f64> {
        let (mut ways, mut count) = (0.0, 0.0);
        for node in group {
            let inner = self.reads[*node as usize].iter().filter(|read| within(read));
            for read in inner.filter(|read| self.exchanges(*node, read) > 0) {
                ways += f64::from(self.net.ends[read.end as usize].latency + 1);
                count += 1.0;
            }
        }
        (count > 0.0).then(|| ways / count)
    }

    /// Times the words of a piece whose first ones leave as if it began at `first`, its last ones as if at `last`.
    fn send(&mut self, node: u32, first: f64, last: f64) {
        let pe = self.pe[node as usize];
        for access in self.pieces[node as usize].profile.writes.iter().filter(|access| access.words > 0) {
            let parts = &mut self.parts[self.net.output(pe as usize, access.slot) as usize];
            let at = parts.partition_point(|part| part.node < node);
            if let Some(part) = parts.get_mut(at) {
                (part.first, part.last) = (first + access.first, last + access.last);
            }
        }
    }

    /// The longest of the shortest ways of a word from the first PE of a circle to the others.
    fn way(&self, group: &[u32]) -> f64 {
        let inside = self.group[group[0] as usize];
        let mut next: BTreeMap<u32, Vec<(u32, u64)>> = BTreeMap::new();
        for node in group {
            for read in &self.reads[*node as usize] {
                let end = &self.net.ends[read.end as usize];
                let sender = self.part(end.stream, read.to - 1).filter(|part| part.node != HOST);
                if let Some(part) = sender.filter(|part| self.group[part.node as usize] == inside) {
                    let hop = (self.pe[*node as usize], u64::from(end.latency) + 1);
                    next.entry(self.pe[part.node as usize]).or_default().push(hop);
                }
            }
        }
        let first = self.pe[group[0] as usize];
        let mut known: BTreeMap<u32, u64> = BTreeMap::new();
        let mut open = BinaryHeap::from([Reverse((0u64, first))]);
        let mut farthest = 0;
        while let Some(Reverse((way, pe))) = open.pop() {
            if known.contains_key(&pe) {
                continue;
            }
            known.insert(pe, way);
            farthest = farthest.max(way);
            open.extend(next.get(&pe).into_iter().flatten().map(|(to, hop)| Reverse((way + hop, *to))));
        }
        farthest as f64
    }

    /// Leaves times and words where the report finds them.
    fn store(&self, engine: &mut Engine) {
        for (node, piece) in self.pieces.iter().enumerate() {
            let Some(pe) = engine.pes[self.pe[node] as usize].as_deref_mut() else { continue };
            let (start, end) = self.span[node];
            piece.phases.iter().for_each(|phase| engine.spans.enter(pe, *phase, start));
            add(pe, piece, end);
        }
        for (stream, parts) in (0u32..).zip(&self.parts) {
            for part in parts.iter().filter(|part| part.node != HOST).map(|part| self.known(part)) {
                let words = part.to - part.from;
                let gap = (part.last - part.first) / words.saturating_sub(1).max(1) as f64;
                engine.streams.write(stream, Burst::even(1, part.first, 0.0, words, gap));
            }
        }
        engine.pes.iter_mut().flatten().for_each(|pe| pe.finished = true);
    }
}

fn add(pe: &mut Pe, piece: &Piece, end: f64) {
    pe.time = pe.time.max(end);
    pe.busy += piece.profile.busy;
    pe.issue += piece.profile.issue;
    pe.activation += piece.activation;
}
