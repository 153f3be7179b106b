//! A proof that a program comes to its end with the queues that there are, for programs too large to be looked at PE by
//! PE.
//!
//! Where each PE uses its streams in an order of its own, whether all come to their end is no matter of who goes first: it
//! is enough that one way of taking turns leads to the end. Of all ways, these are looked at:
//!
//! - Stretch by stretch: all end one before any begins the next. Within a stretch as many words are read from each stream as
//!   are sent, so none is left between two.
//! - Rows act in step, where they can: the PEs of a column become one actor ([`lockstep`]). Rows that look like those
//!   that are looked at act with them, and so do those that rows in a line leave out, as long as all periods are the same.
//!
//! What is left are actors and streams. If nobody could go on, each would wait for the next on a stream, in a circle: for a word from
//! its sender, or for room at a reader. Nobody waits on a stream on which somebody waits for him, but a sender who lacks
//! room at one reader while another has read all: the circle may leave that sender out. So it crosses no edge between an actor and a stream in both
//! directions, and an edge that is a bridge of the graph of actors and streams is in no circle. Without the bridges the
//! graph falls into pieces, and a circle would be within one. A piece alone, with its actors doing all that is not on its
//! streams whenever they like, is run to its end without time ([`rehearse`]): then no circle is possible in it,
//! whoever goes first. Chains and trees of PEs, and the host's words, are bridges all; rings, and sums that come back, are pieces.

mod bridges;
mod columns;
mod lockstep;
mod looks;
mod rehearse;
mod rounds;
mod shorter;
mod skeleton;
mod templates;
#[cfg(test)]
mod tests;

use super::rows::Rows as Chosen;
use super::skip::Skip;
use super::stretches::{Piece as Code, Stretches};
use crate::fabric::FabricSpec;
use crate::lower::{Instr, LoweredClass};
use crate::network::{NONE, Network};
use bridges::on_cycles;
use columns::Columns;
use lockstep::{Folded, Rows};
use looks::{Kinds, Looks};
use rehearse::Piece;
use skeleton::Template;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use templates::Templates;

/// Most turns of actors of all pieces.
const MOST_TURNS: u64 = 4_000_000;

/// The stretches of which it is not proven that all PEs come to their end, each as its phase if it has one, where `net`
/// has the streams of the rows that were chosen.
pub fn unproven(
    spec: &FabricSpec,
    net: &Network,
    chosen: &Chosen,
    classes: &[LoweredClass],
    stretches: &Stretches,
) -> Vec<Option<usize>> {
    let mut proof = Proof::new(spec, net, chosen, classes, stretches);
    let unproven = (0..stretches.count).filter(|stretch| proof.stretch(*stretch) != Some(true));
    let phase = |stretch: usize| {
        let begins = |class: usize| {
            let piece = stretches.piece(class as u16, stretch)?;
            match classes[class].tasks.first()?.code.within(piece.start..piece.start + 1).first()? {
                Instr::Phase(phase) => Some(*phase),
                _ => None,
            }
        };
        (0..classes.len()).find_map(begins)
    };
    unproven.map(phase).collect()
}

struct Proof<'a> {
    spec: &'a FabricSpec,
    net: &'a Network,
    classes: &'a [LoweredClass],
    stretches: &'a Stretches,
    /// Rows whose streams are looked at, and those whose words are foretold.
    rows: Vec<u32>,
    foretold: Vec<u32>,
    /// Rows of lines that are left out or foretold, with the rows of a period.
    lines: Vec<(Range<u32>, u32)>,
    kinds: Kinds,
    /// Classes of traced rows.
    traced: BTreeSet<u16>,
    /// By stream: whether its words arrive in rows that are left out.
    elsewhere: Vec<bool>,
    templates: Templates,
    /// By the numbers of their segments: templates that are known.
    known_code: BTreeMap<Vec<u32>, Option<u32>>,
    /// By templates of all classes: whether all end a stretch.
    known_stretches: BTreeMap<Vec<u32>, Option<bool>>,
    /// Pieces that come to their end.
    known: BTreeSet<Vec<u64>>,
    left: u64,
}

impl<'a> Proof<'a> {
    fn new(
        spec: &'a FabricSpec,
        net: &'a Network,
        chosen: &'a Chosen,
        classes: &'a [LoweredClass],
        stretches: &'a Stretches,
    ) -> Self {
        let foretold = |y: &u32| chosen.skips.iter().any(|skip| skip.foretold().contains(y));
        let traced = (0..net.height).filter(|y| net.traced[*y as usize]);
        let (foretold, rows) = traced.partition(foretold);
        let line = |skip: &Skip| (skip.skipped().start..skip.foretold().end, skip.foretold().len() as u32);
        let mut elsewhere = vec![false; net.streams.len()];
        net.elsewhere.iter().for_each(|(stream, _)| elsewhere[*stream as usize] = true);
        Proof {
            spec,
            net,
            classes,
            stretches,
            rows,
            foretold,
            lines: chosen.skips.iter().map(line).collect(),
            kinds: Kinds::of(net, chosen),
            traced: net.traced_pes().map(|(_, class)| class).collect(),
            elsewhere,
            templates: Templates::default(),
            known_code: BTreeMap::new(),
            known_stretches: BTreeMap::new(),
            known: BTreeSet::new(),
            left: MOST_TURNS,
        }
    }

    /// The template of what a class does in a stretch, [`NONE`] if it does nothing; none if there is no telling.
    fn template(&mut self, class: u16, stretch: usize) -> Option<u32> {
        let Some(Code { start, stop, .. }) = self.stretches.piece(class, stretch) else { return Some(NONE) };
        let code = &self.classes[usize::from(class)].tasks.first()?.code;
        let stop = (*stop).min(code.len());
        let parts = code.parts();
        let first = parts.partition_point(|(first, _)| first < start);
        let behind = parts.partition_point(|(first, _)| *first < stop);
        let begins = |part: usize| parts.get(part).map_or(code.len(), |(first, _)| *first);
        let templates = &mut self.templates;
        let mut read = || Template::of(code, *start..stop).map(|template| templates.number(template));
        match (begins(first), begins(behind)) == (*start, stop) {
            true => {
                let key = parts[first..behind].iter().map(|(_, segment)| segment.like).collect();
                *self.known_code.entry(key).or_insert_with(read)
            }
            false => read(),
        }
    }

    /// Whether all end a stretch, as they do one in which all do the same; none if there is no telling.
    fn stretch(&mut self, stretch: usize) -> Option<bool> {
        let mut templates = vec![NONE; self.classes.len()];
        for class in self.traced.clone() {
            templates[usize::from(class)] = self.template(class, stretch)?;
        }
        if let Some(known) = self.known_stretches.get(&templates) {
            return *known;
        }
        let ends = self.all_end(&templates);
        self.known_stretches.insert(templates, ends);
        ends
    }

    /// Whether all come to their end who do what templates say, by class; none if there is no telling.
    fn all_end(&mut self, templates: &[u32]) -> Option<bool> {
        let net = self.net;
        let mut used = templates.iter().filter_map(|number| self.templates.get(*number));
        if used.all(Template::is_silent) {
            return Some(true);
        }
        let rows = self.rows.iter().chain(&self.foretold).copied();
        let looks = Looks::of(net, &self.kinds, rows, &self.lines, (templates, &mut self.templates));
        let period = self.lines.iter().map(|(_, period)| *period).min();
        let (elsewhere, templates) = (&self.elsewhere[..], (templates, &self.templates));
        let columns = Columns { net, looks: &looks, templates, period, elsewhere };
        if columns.end(&self.rows).is_some() {
            return Some(true);
        }
        if !looks.are_steady {
            return None;
        }
        let host_depth = u64::from(self.spec.queue_hop + self.spec.queue_in).max(1);
        let rows = Rows { net, rows: &self.rows, looks: &looks, period, host_depth };
        let items = &mut self.templates.items;
        let folded = rows.classes().into_iter().find_map(|class| rows.fold(&class, items))?;
        Some(self.pieces(&folded))
    }

    /// Whether all pieces of a graph of actors and streams come to their end.
    fn pieces(&mut self, folded: &Folded) -> bool {
        let actors = folded.uses.len() as u32;
        let mut edges: Vec<(u32, u32)> = Vec::new();
        for (actor, uses) in (0..actors).zip(&folded.uses) {
            let same = |a: &(usize, bool, u32, u64), b: &(usize, bool, u32, u64)| (a.2, a.1) == (b.2, b.1);
            let mut uses = uses.clone();
            uses.sort_unstable_by_key(|used| (used.2, used.1));
            edges.extend(uses.chunk_by(same).map(|used| (actor, actors + used[0].2)));
        }
        let nodes = folded.uses.len() + folded.wires.len();
        let cyclic = on_cycles(nodes, &edges);
        edges = edges.into_iter().zip(cyclic).filter(|(_, cyclic)| *cyclic).map(|(edge, _)| edge).collect();
        edges.sort_unstable();
        edges.dedup();
        let kept: BTreeSet<(u32, u32)> = edges.iter().copied().collect();
        let mut pieces: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let mut parent: Vec<u32> = (0..nodes as u32).collect();
        for (a, b) in &edges {
            let (a, b) = (root(&mut parent, *a), root(&mut parent, *b));
            parent[a.max(b) as usize] = a.min(b);
        }
        let mut members: Vec<u32> = edges.iter().map(|(actor, _)| *actor).collect();
        members.dedup();
        for actor in members {
            pieces.entry(root(&mut parent, actor)).or_default().push(actor);
        }
        pieces
            .values()
            .all(|members| self.piece(folded, members, &|actor, wire| kept.contains(&(actor, actors + wire))))
    }

    /// Whether some actors come to their end, with the streams that are theirs.
    fn piece(&mut self, folded: &Folded, members: &[u32], kept: &dyn Fn(u32, u32) -> bool) -> bool {
        let mut number: BTreeMap<u32, u32> = BTreeMap::new();
        let mut piece = Piece::default();
        for &actor in members {
            for (_, _, wire, _) in folded.uses[actor as usize].iter().filter(|used| kept(actor, used.2)) {
                number.entry(*wire).or_insert_with(|| {
                    piece.wires.push(folded.wires[*wire as usize]);
                    piece.wires.len() as u32 - 1
                });
            }
        }
        for &actor in members {
            let own = |wire: u32| number.get(&wire).copied().filter(|_| kept(actor, wire));
            piece.actors.push(folded.parts(actor as usize, &own));
        }
        let look = piece.look();
        if self.known.contains(&look) {
            return true;
        }
        let ends = piece.ends(&mut self.left);
        if ends {
            self.known.insert(look);
        }
        ends
    }
}

fn root(parent: &mut [u32], mut node: u32) -> u32 {
    while parent[node as usize] != node {
        parent[node as usize] = parent[parent[node as usize] as usize];
        node = parent[node as usize];
    }
    node
}
