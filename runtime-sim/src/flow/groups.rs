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
    /// Groups of one kind, of which there is more than one.
    pub kinds: Vec<Vec<Group>>,
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
    Inside(i64, u32, u32, u32),
    /// Of somebody who is not in the group: how many rows further north, its output, and the way.
    Outside(i64, i64, i64),
}

/// A network with the groups that its PEs are in.
struct Finder<'a> {
    net: &'a Network,
    stretches: &'a Stretches,
    stretch: usize,
    /// By PE: one nearer to the PE that stands for its group.
    parent: Vec<u32>,
    /// By PE: its place in its group, or none if it is not looked at.
    place: Vec<u32>,
}

impl Groups {
    /// Those of some PEs, given ascending; `spent` tells whether all words that the host sends to an end have been read.
    pub fn of(
        net: &Network,
        stretches: &Stretches,
        stretch: usize,
        pes: &[u32],
        spent: &dyn Fn(u32) -> bool,
    ) -> Groups {
        let parent = (0..net.class_of.len() as u32).collect();
        let mut finder = Finder { net, stretches, stretch, parent, place: vec![NONE; net.class_of.len()] };
        pes.iter().for_each(|pe| finder.place[*pe as usize] = 0);
        pes.iter().for_each(|pe| finder.join_neighbours(*pe));
        let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
        for &pe in pes {
            let group = groups.entry(finder.root(pe)).or_default();
            finder.place[pe as usize] = group.len() as u32;
            group.push(pe);
        }
        let mut kinds: BTreeMap<Vec<i64>, Vec<Group>> = BTreeMap::new();
        let (mut others, mut single) = (Vec::new(), Vec::new());
        for group in groups.into_values() {
            match finder.look(&group, spent, false).filter(|_| group.len() > 1) {
                Some(look) => kinds.entry(look).or_default().push(group),
                None => single.push(group),
            }
        }
        let (kinds, alone): (Vec<_>, Vec<_>) = kinds.into_values().partition(|kind| kind.len() > 1);
        let mut chains = Vec::new();
        for group in alone.into_iter().flatten().chain(single) {
            match finder.chain(&group, spent) {
                Some(chain) => chains.push(chain),
                None => others.extend(group),
            }
        }
        others.sort_unstable();
        Groups { kinds, chains, others }
    }
}

impl Finder<'_> {
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
        for &slot in &piece.inputs {
            if let Some((from, _)) = self.sender(pe, slot) {
                self.join(pe, from);
            }
        }
    }

    /// What makes two groups do the same; none if words of others, or to others, are among what it does.
    fn look(&self, group: &[u32], spent: &dyn Fn(u32) -> bool, in_chain: bool) -> Option<Vec<i64>> {
        let mut look = Vec::new();
        for &pe in group {
            let piece = self.piece(pe)?;
            let at = self.net.coord(pe);
            let env = Env { x: i64::from(at.x), y: i64::from(at.y), ..Env::default() };
            look.push(i64::from(piece.code));
            look.extend(piece.placed.iter().map(|length| length.at(&env)));
            for &slot in &piece.outputs {
                let ends = self.net.ends_of(self.net.output(pe as usize, slot));
                let outside =
                    |target: Target| matches!(target, Target::Pe(to) if self.place[to as usize] == NONE);
                if ends.iter().any(|end| outside(end.target)) {
                    return None;
                }
            }
            for &slot in &piece.inputs {
                match self.link(pe, slot) {
                    Link::Nowhere => look.push(-1),
                    Link::Host(end) if spent(end) => look.push(-1),
                    Link::Host(end) => look.extend([-2, i64::from(self.net.ends[end as usize].stream)]),
                    Link::Inside(rows, place, rank, way) => {
                        look.extend([rows, place.into(), rank.into(), way.into()]);
                    }
                    Link::Outside(rows, rank, way) if in_chain => look.extend([-3, rows, rank, way]),
                    Link::Outside(..) => return None,
                }
            }
        }
        Some(look)
    }

    /// A group as a chain of rows; none if it has few rows, if most of them are like no other, or if words go north.
    fn chain(&mut self, group: &[u32], spent: &dyn Fn(u32) -> bool) -> Option<Vec<Row>> {
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
        let look = |row: &&[u32]| Some(Row { pes: row.to_vec(), look: self.look(row, spent, true)? });
        let chain: Vec<Row> = rows.iter().map(look).collect::<Option<_>>()?;
        let looks: BTreeSet<&[i64]> = chain.iter().map(|row| &row.look[..]).collect();
        (2 * looks.len() <= chain.len()).then_some(chain)
    }

    /// Whether nothing that a PE reads comes from a row further south.
    fn is_forward(&self, pe: u32) -> bool {
        let Some(piece) = self.piece(pe) else { return true };
        let row = |pe: u32| pe / self.net.width;
        piece.inputs.iter().all(|slot| self.sender(pe, *slot).is_none_or(|(from, _)| row(from) <= row(pe)))
    }

    /// The PE that sends what arrives at an input in this stretch, and its output in order of first use.
    fn sender(&self, pe: u32, slot: usize) -> Option<(u32, u32)> {
        let end = self.net.ends.get(self.net.input(pe as usize, slot) as usize)?;
        let Origin::Pe(from) = self.net.streams[end.stream as usize].origin else { return None };
        let sent = |slot: &usize| self.net.output(from as usize, *slot) == end.stream;
        let rank = self.piece(from)?.outputs.iter().position(sent)?;
        Some((from, rank as u32))
    }

    fn link(&self, pe: u32, slot: usize) -> Link {
        let index = self.net.input(pe as usize, slot);
        let Some(end) = self.net.ends.get(index as usize) else { return Link::Nowhere };
        if let Origin::Host(_) = self.net.streams[end.stream as usize].origin {
            return Link::Host(index);
        }
        let rows = |from: u32| i64::from(pe / self.net.width) - i64::from(from / self.net.width);
        match self.sender(pe, slot) {
            Some((from, rank)) if self.place[from as usize] != NONE => {
                Link::Inside(rows(from), self.place[from as usize], rank, end.latency)
            }
            Some((from, rank)) => Link::Outside(rows(from), rank.into(), end.latency.into()),
            None => Link::Nowhere,
        }
    }
}
