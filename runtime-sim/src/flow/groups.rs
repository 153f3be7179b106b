//! PEs that exchange words in a stretch of code form a group; groups that look the same are of one kind. A group like no
//! other whose words go from row to row in one direction is a chain of rows, and its rows are of kinds.

use super::stretches::{Piece, Stretches};
use crate::lower::Env;
use crate::network::{NONE, Network, Origin, Target};
use std::collections::{BTreeMap, BTreeSet};

/// PEs that exchange words, ascending.
pub type Group = Vec<u32>;

/// The groups of a stretch.
#[derive(Debug, Default)]
pub struct Groups {
    /// By what they do: groups of one kind, of which there is more than one, or of which somebody knows.
    pub kinds: Vec<(Vec<i64>, Vec<Group>)>,
    /// Groups like no other whose words never go to a row further north, row by row.
    pub chains: Vec<Vec<Row>>,
    /// PEs that run alone, or in a group like no other, or in one that exchanges words with somebody else.
    pub others: Vec<u32>,
}

/// The PEs of a group in one row.
#[derive(Debug)]
pub struct Row {
    /// They, ascending.
    pub pes: Group,
    /// What makes rows of a chain do the same, if they begin alike and what comes from the rows above is alike.
    pub look: Vec<i64>,
}

/// Fewest rows of a chain.
const CHAIN: usize = 4;

/// Fewest PEs of a row that are worth it.
const WIDE: usize = 8;

/// An input of a PE in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Nobody sends on it in this stretch.
    Nowhere,
    /// An end of a stream of the host.
    Host(u32),
    /// How many rows further north the sender is, its place in the group or its row of a chain, its output in order of first
    /// use, and the way in cycles.
    Inside([i64; 4]),
    /// Of somebody who is not in the group, or in another row: how many rows further north and how many columns further
    /// west, its output, and the way.
    Outside([i64; 4]),
}

/// What a group does, as far as that is known before its stretch begins.
#[derive(Debug, Default)]
struct Look {
    code: Vec<i64>,
    /// Places in the code, of two numbers each, that tell of an input from the host, with its end.
    hosts: Vec<(usize, u32)>,
}

/// Numbers that most PEs add to the look of their group, at most.
const SOME: usize = 8;

/// Nobody sends on an input.
const NOTHING: [i64; 2] = [-1, -1];

impl Look {
    /// What makes two groups do the same; `spent` tells whether all words that the host sends to an end have been read.
    fn with(mut self, spent: &dyn Fn(u32) -> bool) -> Vec<i64> {
        for (at, _) in self.hosts.iter().filter(|(_, end)| spent(*end)) {
            self.code[*at..at + 2].copy_from_slice(&NOTHING);
        }
        self.code
    }
}

/// A group as it is known before its stretch begins.
#[derive(Debug)]
struct Sketch {
    group: Group,
    /// None if it is one PE, or if words of others, or to others, are among what it does.
    look: Option<Look>,
    /// Its rows, if they may be a chain.
    rows: Option<Rows>,
}

/// The rows of a group, from north to south, each with what it does.
type Rows = Vec<(Group, Look)>;

/// The groups of a stretch as they are known before it begins.
#[derive(Debug)]
pub struct Outline(Vec<Sketch>);

/// A network with the groups that some of its PEs are in, one stretch after the other.
pub struct Finder<'a> {
    net: &'a Network,
    stretches: &'a Stretches,
    stretch: usize,
    /// The PEs, ascending.
    pes: &'a [u32],
    /// By PE: one nearer to the PE that stands for its group.
    parent: Vec<u32>,
    /// By PE: its place in its group, or none if it is not looked at.
    place: Vec<u32>,
    /// By PE: where its inputs begin among all senders.
    first: Vec<u32>,
    /// By input of a PE in the stretch: the PE that sends what arrives there, and its output in order of first use.
    senders: Vec<Option<(u32, u32)>>,
    /// Groups of more PEs have no likes.
    most: usize,
}

impl Groups {
    /// Those of an outline; `spent` tells whether all words that the host sends to an end have been read, `known` whether
    /// somebody has done what a group does.
    pub fn of(outline: Outline, spent: &dyn Fn(u32) -> bool, known: &dyn Fn(&[i64]) -> bool) -> Groups {
        let mut kinds: BTreeMap<Vec<i64>, Vec<(Group, Option<Rows>)>> = BTreeMap::new();
        let mut single = Vec::new();
        for Sketch { group, look, rows } in outline.0 {
            match look {
                Some(look) => kinds.entry(look.with(spent)).or_default().push((group, rows)),
                None => single.push((group, rows)),
            }
        }
        let (kinds, alone): (Vec<_>, Vec<_>) =
            kinds.into_iter().partition(|(look, kind)| kind.len() > 1 || known(look));
        let (mut chains, mut others) = (Vec::new(), Vec::new());
        for (group, rows) in alone.into_iter().flat_map(|(_, kind)| kind).chain(single) {
            match rows.and_then(|rows| chain(rows, spent)) {
                Some(chain) => chains.push(chain),
                None => others.extend(group),
            }
        }
        others.sort_unstable();
        let groups =
            |(look, kind): (_, Vec<(Group, _)>)| (look, kind.into_iter().map(|(group, _)| group).collect());
        Groups { kinds: kinds.into_iter().map(groups).collect(), chains, others }
    }
}

/// Rows as a chain; none if most of them are like no other.
fn chain(rows: Rows, spent: &dyn Fn(u32) -> bool) -> Option<Vec<Row>> {
    let chain: Vec<Row> = rows.into_iter().map(|(pes, look)| Row { pes, look: look.with(spent) }).collect();
    let looks: BTreeSet<&[i64]> = chain.iter().map(|row| &row.look[..]).collect();
    (2 * looks.len() <= chain.len()).then_some(chain)
}

impl<'a> Finder<'a> {
    /// For some PEs, given ascending, where groups of more than `most` have no likes.
    pub fn new(net: &'a Network, stretches: &'a Stretches, pes: &'a [u32], most: usize) -> Self {
        let none = || vec![NONE; net.class_of.len()];
        let (parent, place, first) = (none(), none(), none());
        Finder { net, stretches, stretch: 0, pes, parent, place, first, senders: Vec::new(), most }
    }

    /// The groups of a stretch.
    pub fn outline(&mut self, stretch: usize) -> Outline {
        self.stretch = stretch;
        self.senders.clear();
        for &pe in self.pes {
            (self.parent[pe as usize], self.place[pe as usize]) = (pe, 0);
            self.first[pe as usize] = self.senders.len() as u32;
            let stretches = self.stretches;
            let piece = stretches.piece(self.net.class_of[pe as usize], stretch);
            for slot in piece.map_or(&[][..], |piece| &piece.inputs) {
                self.senders.push(self.sender(pe, *slot));
            }
        }
        self.pes.iter().for_each(|pe| self.join_neighbours(*pe));
        let mut groups: Vec<Group> = Vec::new();
        // A group is known by its first PE, at whose place its number stands until all groups are known.
        for &pe in self.pes {
            let root = self.root(pe);
            if root == pe {
                self.place[pe as usize] = groups.len() as u32;
                groups.push(Vec::new());
            }
            groups[self.place[root as usize] as usize].push(pe);
        }
        for group in &groups {
            (0..).zip(group).for_each(|(place, pe)| self.place[*pe as usize] = place);
        }
        let alike = |group: &Group| group.len() > 1 && group.len() <= self.most;
        let looks: Vec<Option<Look>> =
            groups.iter().map(|group| if alike(group) { self.look(group, false) } else { None }).collect();
        // Groups of one size are likely to be of one kind.
        let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
        groups.iter().for_each(|group| *sizes.entry(group.len()).or_default() += 1);
        let mut rows = |group: &Group| if sizes[&group.len()] == 1 { self.rows(group) } else { None };
        let sketch = |(group, look): (Group, _)| Sketch { rows: rows(&group), group, look };
        Outline(groups.into_iter().zip(looks).map(sketch).collect())
    }

    fn piece(&self, pe: u32) -> Option<&Piece> {
        self.stretches.piece(self.net.class_of[pe as usize], self.stretch)
    }

    fn root(&mut self, mut pe: u32) -> u32 {
        while self.parent[pe as usize] != pe {
            let next = self.parent[self.parent[pe as usize] as usize];
            self.parent[pe as usize] = next;
            pe = next;
        }
        pe
    }

    fn join(&mut self, a: u32, b: u32) {
        if self.place[a as usize] != NONE && self.place[b as usize] != NONE {
            let (a, b) = (self.root(a), self.root(b));
            self.parent[a.max(b) as usize] = a.min(b);
        }
    }

    fn join_neighbours(&mut self, pe: u32) {
        let net = self.net;
        let Some(piece) = self.stretches.piece(net.class_of[pe as usize], self.stretch) else { return };
        for &slot in &piece.outputs {
            for end in net.ends_of(net.output(pe as usize, slot)) {
                if let Target::Pe(to) = end.target {
                    self.join(pe, to);
                }
            }
        }
        for input in 0..piece.inputs.len() {
            if let Some((from, _)) = self.known(pe, input) {
                self.join(pe, from);
            }
        }
    }

    /// The sender of what arrives at an input, given in order of first use.
    fn known(&self, pe: u32, input: usize) -> Option<(u32, u32)> {
        self.senders[self.first[pe as usize] as usize + input]
    }

    /// What makes two groups do the same; none if words of others, or to others, are among what it does.
    fn look(&self, group: &[u32], in_chain: bool) -> Option<Look> {
        let (mut look, mut hosts) = (Vec::with_capacity(SOME * group.len()), Vec::new());
        for &pe in group {
            let piece = self.piece(pe)?;
            let at = self.net.coord(pe);
            let env = Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() };
            look.push(i64::from(piece.number));
            look.extend(piece.placed.iter().map(|length| length.at(&env)));
            for &slot in &piece.outputs {
                let ends = self.net.ends_of(self.net.output(pe as usize, slot));
                let outside =
                    |target: Target| matches!(target, Target::Pe(to) if self.place[to as usize] == NONE);
                if ends.iter().any(|end| outside(end.target)) {
                    return None;
                }
            }
            for (input, &slot) in piece.inputs.iter().enumerate() {
                match self.link(pe, (input, slot), in_chain) {
                    Link::Nowhere => look.extend(NOTHING),
                    Link::Host(end) => {
                        hosts.push((look.len(), end));
                        look.extend([-2, i64::from(self.net.ends[end as usize].stream)]);
                    }
                    Link::Inside(link) => look.extend(link),
                    Link::Outside(link) if in_chain => {
                        look.push(-3);
                        look.extend(link);
                    }
                    Link::Outside(_) => return None,
                }
            }
        }
        Some(Look { code: look, hosts })
    }

    /// The rows of a group that may be a chain; none if they are few, or if words go north.
    fn rows(&mut self, group: &[u32]) -> Option<Rows> {
        let rows: Vec<&[u32]> = group.chunk_by(|a, b| a / self.net.width == b / self.net.width).collect();
        if rows.len() < CHAIN || group.len() < WIDE * rows.len() {
            return None;
        }
        for row in &rows {
            (0..).zip(*row).for_each(|(place, pe)| self.place[*pe as usize] = place);
        }
        if !group.iter().all(|pe| self.is_forward(*pe)) {
            return None;
        }
        rows.iter().map(|row| Some((row.to_vec(), self.look(row, true)?))).collect()
    }

    /// Whether nothing that a PE reads comes from a row further south.
    fn is_forward(&self, pe: u32) -> bool {
        let Some(piece) = self.piece(pe) else { return true };
        let row = |pe: u32| pe / self.net.width;
        let forward = |input| self.known(pe, input).is_none_or(|(from, _)| row(from) <= row(pe));
        (0..piece.inputs.len()).all(forward)
    }

    /// The PE that sends what arrives at an input in this stretch, and its output in order of first use.
    fn sender(&self, pe: u32, slot: usize) -> Option<(u32, u32)> {
        let end = self.net.ends.get(self.net.input(pe as usize, slot) as usize)?;
        let Origin::Pe(from) = self.net.streams[end.stream as usize].origin else { return None };
        let sent = |slot: &usize| self.net.output(from as usize, *slot) == end.stream;
        let rank = self.piece(from)?.outputs.iter().position(sent)?;
        Some((from, rank as u32))
    }

    fn link(&self, pe: u32, (input, slot): (usize, usize), in_chain: bool) -> Link {
        let (width, index) = (self.net.width, self.net.input(pe as usize, slot));
        let Some(end) = self.net.ends.get(index as usize) else { return Link::Nowhere };
        if let Origin::Host(_) = self.net.streams[end.stream as usize].origin {
            return Link::Host(index);
        }
        let Some((from, rank)) = self.known(pe, input) else { return Link::Nowhere };
        let away = |of: fn(u32, u32) -> u32| i64::from(of(pe, width)) - i64::from(of(from, width));
        let (rows, columns) = (away(|pe, width| pe / width), away(|pe, width| pe % width));
        let (place, rank, way) = (self.place[from as usize], i64::from(rank), i64::from(end.latency));
        if place == NONE || (in_chain && rows != 0) {
            return Link::Outside([rows, columns, rank, way]);
        }
        Link::Inside([rows, place.into(), rank, way])
    }
}
