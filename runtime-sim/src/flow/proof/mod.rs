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
//!
//! Nothing but the network and what classes do with their streams matters. So what code does with streams is read once for
//! all code that does the same ([`templates`]), a stretch in which all classes do what they did in one before ends as that
//! one did, and so does a piece of the same actors ([`pieces`]).

mod bridges;
mod columns;
mod lockstep;
mod looks;
mod pieces;
mod rehearse;
mod rounds;
mod shape;
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
use columns::Columns;
use lockstep::Rows;
use looks::{Kinds, Looks};
use pieces::Known;
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
    known_pieces: Known,
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
            known_pieces: Known::nothing(MOST_TURNS),
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
        Some(folded.all_end(&mut self.known_pieces))
    }
}
