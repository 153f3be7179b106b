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
mod rehearse;
mod rounds;
mod shorter;
mod skeleton;
#[cfg(test)]
mod tests;

use super::rows::Rows as Chosen;
use super::stretches::{Piece as Code, Stretches};
use crate::fabric::FabricSpec;
use crate::lower::{Instr, LoweredClass};
use crate::network::{NOBODY, NONE, Network};
use bridges::on_cycles;
use columns::Columns;
use lockstep::{Folded, Rows};
use rehearse::Piece;
use skeleton::{Skeleton, Template};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

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
    chosen: &'a Chosen,
    classes: &'a [LoweredClass],
    stretches: &'a Stretches,
    /// Rows whose streams are looked at.
    rows: Vec<u32>,
    /// Classes of traced rows.
    traced: BTreeSet<u16>,
    /// By row: rows of one number have the same classes but for their names.
    kind: Vec<u32>,
    /// By such a number: one class of each shape, from the first row.
    used: Vec<Vec<u16>>,
    /// By the numbers of their segments.
    templates: BTreeMap<Vec<u32>, Option<Rc<Template>>>,
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
        let rows: Vec<u32> = (0..net.height).filter(|y| net.traced[*y as usize] && !foretold(y)).collect();
        let mut proof = Proof {
            spec,
            net,
            chosen,
            classes,
            stretches,
            rows,
            traced: net.traced_pes().map(|(_, class)| class).collect(),
            kind: vec![NONE; net.height as usize],
            used: Vec::new(),
            templates: BTreeMap::new(),
            known: BTreeSet::new(),
            left: MOST_TURNS,
        };
        proof.sort_rows();
        proof
    }

    /// Numbers rows by the shapes of their classes.
    fn sort_rows(&mut self) {
        let shape = |class: u16| self.chosen.shape_of.get(usize::from(class)).copied().unwrap_or(NOBODY);
        let mut by_class: BTreeMap<&[u16], u32> = BTreeMap::new();
        let mut by_shape: BTreeMap<Vec<u16>, u32> = BTreeMap::new();
        for (y, row) in self.net.class_of.chunks(self.net.width.max(1) as usize).enumerate() {
            let skipped = self.chosen.skips.iter().any(|skip| skip.skipped().contains(&(y as u32)));
            if !self.net.traced[y] && !skipped {
                continue;
            }
            self.kind[y] = *by_class.entry(row).or_insert_with(|| {
                let next = by_shape.len() as u32;
                let number = *by_shape.entry(row.iter().map(|class| shape(*class)).collect()).or_insert(next);
                if number == next {
                    let one: BTreeMap<u16, u16> = row
                        .iter()
                        .filter(|class| **class != NOBODY)
                        .map(|class| (shape(*class), *class))
                        .collect();
                    self.used.push(one.into_values().collect());
                }
                number
            });
        }
    }

    /// The skeleton of what a class does in a stretch; none if it has none, or if there is no telling.
    fn template(&mut self, class: u16, stretch: usize) -> Option<Option<Rc<Template>>> {
        let Some(Code { start, stop, .. }) = self.stretches.piece(class, stretch) else { return Some(None) };
        let code = &self.classes[usize::from(class)].tasks.first()?.code;
        let stop = (*stop).min(code.len());
        let parts = code.parts().iter().filter(|(first, _)| (*start..stop).contains(first));
        let parts: Vec<&(usize, _)> = parts.collect();
        let whole = parts.first().is_some_and(|(first, _)| first == start)
            && (stop == code.len() || code.parts().iter().any(|(first, _)| *first == stop));
        let read = || Template::of(code, *start..stop).map(Rc::new);
        let template = match whole {
            true => {
                let key = parts.iter().map(|(_, segment)| segment.number).collect();
                self.templates.entry(key).or_insert_with(read).clone()
            }
            false => read(),
        };
        template.map(Some)
    }

    /// Whether all end a stretch; none if there is no telling.
    fn stretch(&mut self, stretch: usize) -> Option<bool> {
        let templates = self.templates_of(stretch)?;
        if templates.iter().flatten().all(|template| template.is_silent()) {
            return Some(true);
        }
        let net = self.net;
        let period = self.chosen.skips.iter().map(|skip| skip.foretold().len() as u32).min();
        let columns = Columns { net, templates: &templates, period };
        if columns.end(&self.rows).is_some() {
            return Some(true);
        }
        let (look, first) = self.looks(&templates)?;
        let skeleton = |y: u32| {
            let at = |x: u32| {
                let class = net.class_of[(y * net.width + x) as usize];
                templates.get(usize::from(class))?.as_ref().map(|template| template.at(x, y))
            };
            (0..net.width).map(at).collect::<Vec<Option<Skeleton>>>()
        };
        let skeletons = first.into_iter().map(skeleton).collect();
        let host_depth = u64::from(self.spec.queue_hop + self.spec.queue_in).max(1);
        let rows = Rows { net, rows: &self.rows, look, skeletons, period, host_depth };
        let mut folded = rows.classes().into_iter().filter_map(|class| rows.fold(&class));
        folded.next().map(|folded| self.pieces(&folded))
    }

    /// By class: its skeleton in a stretch.
    fn templates_of(&mut self, stretch: usize) -> Option<Vec<Option<Rc<Template>>>> {
        let mut templates = vec![None; self.classes.len()];
        for class in self.traced.clone() {
            templates[usize::from(class)] = self.template(class, stretch)?;
        }
        Some(templates)
    }

    /// By row, what it looks like, with the first row of each look; none if periods of a line do not look the same.
    fn looks(&self, templates: &[Option<Rc<Template>>]) -> Option<(Vec<u32>, Vec<u32>)> {
        let by_row = |used: &Vec<u16>| {
            let mut lengths = Vec::new();
            for template in used.iter().filter_map(|class| templates[usize::from(*class)].as_ref()) {
                for length in &template.by_row {
                    if !lengths.contains(length) {
                        lengths.push(length.clone());
                    }
                }
            }
            lengths
        };
        let lengths: Vec<_> = self.used.iter().map(by_row).collect();
        let key = |y: u32| {
            let kind = self.kind[y as usize];
            let values = lengths[kind as usize].iter().map(|length| length.part(false, i64::from(y)));
            (kind, values.collect::<Vec<i64>>())
        };
        let (mut known, mut first) = (BTreeMap::new(), Vec::new());
        let mut look = vec![NONE; self.net.height as usize];
        for &y in &self.rows {
            look[y as usize] = *known.entry(key(y)).or_insert_with(|| {
                first.push(y);
                first.len() as u32 - 1
            });
        }
        for skip in &self.chosen.skips {
            let period = skip.foretold().len() as u32;
            for y in skip.skipped().start..skip.foretold().end {
                look[y as usize] = *known.get(&key(y))?;
                if look[y as usize] != look[(y - period) as usize] {
                    return None;
                }
            }
        }
        Some((look, first))
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
