//! Rows in a line: two periods of rows that do the same, one later than the other, say what the next ones do. All but the
//! last period are skipped; the last one is timed again from what it would be sent, and must end as foretold.
//!
//! Times obey a max-plus recurrence, so what a row does is convex in the number of rows above it: if the last period is
//! on the line through two neighbouring ones, all between them are.

use super::bursts::Burst;
use super::engine::Engine;
use super::stretches::Stretches;
use super::words::Words;
use crate::network::{Line, NOBODY, NONE, Network, Target};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

/// Periods of a line that are not timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skip {
    line: Line,
    /// Periods timed at the beginning, two at least.
    known: u32,
}

/// The streams that tell what one of a row that is foretold carries.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// How many periods it comes behind the later one.
    steps: u32,
    later: Known,
    earlier: Known,
}

/// A stream of a period that is timed, from a piece on.
#[derive(Clone, Copy, Debug)]
struct Known {
    pe: u32,
    stream: u32,
    from: usize,
}

impl Skip {
    /// Skips what it can behind the first `known` periods; none if there is nothing to skip.
    pub fn of(line: Line, known: u32) -> Option<Skip> {
        (line.periods >= known + 3).then_some(Skip { line, known })
    }

    /// Rows that are neither timed nor looked at.
    pub fn skipped(&self) -> Range<u32> {
        self.line.row(self.known)..self.line.row(self.line.periods - 2)
    }

    /// Rows whose words are foretold.
    pub fn foretold(&self) -> Range<u32> {
        self.line.period(self.line.periods - 2)
    }

    /// The last period of the beginning, and the last one of all: what is left out lies on a line between them.
    pub fn ends(&self) -> [Range<u32>; 2] {
        [self.line.period(self.known - 1), self.line.period(self.line.periods - 1)]
    }

    /// Periods left out.
    pub fn left_out(&self) -> u32 {
        self.line.periods - self.known - 1
    }

    /// How many rows those that are foretold are behind the last period of the beginning.
    pub fn behind(&self) -> u32 {
        self.line.rows * (self.line.periods - 1 - self.known)
    }

    /// The row of an end that a row left out is nearest to.
    pub fn like(&self, y: u32) -> u32 {
        let (n, inside) = ((y - self.line.first) / self.line.rows, (y - self.line.first) % self.line.rows);
        let near = n - self.known < self.left_out() / 2;
        self.line.row(if near { self.known - 1 } else { self.line.periods - 1 }) + inside
    }

    /// The streams of rows that are foretold, each with what tells it: the same streams of the last two periods of the
    /// beginning, the later one first, and how many periods it comes behind the later one.
    pub(crate) fn told(&self, net: &Network) -> Vec<(u32, [u32; 2], u32)> {
        let period = self.line.rows * net.width;
        let steps = self.line.periods - 1 - self.known;
        let pes = self.foretold().flat_map(|y| y * net.width..(y + 1) * net.width);
        let working = pes.filter(|pe| net.class_of[*pe as usize] != NOBODY);
        let streams = working.flat_map(|pe| {
            let back = [steps, steps + 1].map(|back| pe - back * period);
            let outputs = 0..net.outputs(pe as usize);
            outputs.map(move |slot| {
                let told = back.map(|pe| net.output(pe as usize, slot));
                (net.output(pe as usize, slot), told, steps)
            })
        });
        let all = |(stream, [later, earlier], _): &(u32, [u32; 2], u32)| {
            *stream != NONE && *later != NONE && *earlier != NONE
        };
        streams.filter(all).collect()
    }

    /// Whether a row comes behind those that are foretold.
    pub fn is_behind(&self, y: u32) -> bool {
        y >= self.foretold().end
    }
}

impl Engine<'_> {
    /// Begins new pieces of the streams that tell what rows that are foretold send, as far as others read it: in a stretch, or
    /// in all code. Streams that are listened to go on.
    pub(super) fn listen(
        &mut self,
        skip: &Skip,
        stretch: Option<(&Stretches, usize)>,
        told: &mut BTreeMap<u32, Told>,
    ) {
        let net = self.net;
        let period = skip.line.rows * net.width;
        let steps = skip.line.periods - 1 - skip.known;
        let behind = |target: Target| matches!(target, Target::Pe(to) if skip.is_behind(to / net.width));
        for pe in skip.foretold().flat_map(|y| y * net.width..(y + 1) * net.width) {
            let class = net.class_of[pe as usize];
            if class == NOBODY {
                continue;
            }
            let all: Vec<usize>;
            let slots = match stretch {
                Some((stretches, stretch)) => {
                    stretches.piece(class, stretch).map_or(&[][..], |piece| &piece.outputs)
                }
                None => {
                    all = (0..self.classes[usize::from(class)].outputs.len()).collect();
                    &all
                }
            };
            for &slot in slots {
                let stream = net.output(pe as usize, slot);
                let read = net.ends_of(stream).iter().any(|end| behind(end.target));
                if read && let Entry::Vacant(place) = told.entry(stream) {
                    let mut known = |back: u32| {
                        let (pe, stretch) = (pe - back * period, stretch.map(|_| ()));
                        let stream = net.output(pe as usize, slot);
                        let from = stretch.map_or(0, |()| self.streams.mark(stream).pieces());
                        Known { pe, stream, from }
                    };
                    let (later, earlier) = (known(steps), known(steps + 1));
                    place.insert(Told { steps, later, earlier });
                }
            }
        }
    }

    /// Whether all whose words tell of others have come to the end of a stretch.
    pub(super) fn has_told(
        &self,
        told: &BTreeMap<u32, Told>,
        (stretches, stretch): (&Stretches, usize),
    ) -> bool {
        let ended = |known: &Known| {
            let stop = self.piece(stretches, known.pe, stretch).map(|piece| piece.stop);
            self.pes[known.pe as usize]
                .as_deref()
                .is_some_and(|pe| (pe.finished || Some(pe.pc) == stop) && pe.credit.is_empty())
        };
        told.values().all(|told| ended(&told.later) && ended(&told.earlier))
    }

    /// Writes the words that are foretold since they were listened to; false if there is no telling.
    pub(super) fn tell(&mut self, told: &mut BTreeMap<u32, Told>) -> bool {
        std::mem::take(told).into_iter().all(|(stream, Told { steps, later, earlier })| {
            let pieces = |known: &Known| self.streams.words(known.stream).pieces().get(known.from..);
            let (Some(earlier), Some(later)) = (pieces(&earlier), pieces(&later)) else { return false };
            let Some(words) = foretold(earlier, later, u64::from(steps)) else { return false };
            self.streams.mark(stream);
            words.pieces().iter().for_each(|burst| self.streams.write(stream, burst.clone()));
            true
        })
    }

    /// Whether the last period of a line ended when the first ones said.
    pub(super) fn came_true(&self, skip: &Skip) -> bool {
        let (width, period) = (self.net.width, skip.line.rows * self.net.width);
        let steps = skip.line.periods - skip.known;
        let last = &skip.ends()[1];
        let time = |pe: u32| self.pes[pe as usize].as_deref().map(|pe| pe.time);
        (last.start * width..last.end * width).all(|pe| {
            let known = |back: u32| time(pe - back * period);
            match (time(pe), known(steps), known(steps + 1)) {
                (Some(time), Some(later), Some(earlier)) => {
                    let said = later + (later - earlier) * f64::from(steps);
                    (time - said).abs() <= f64::max(FEW, SHARE * time) + self.strayed
                }
                (None, None, None) => true,
                _ => false,
            }
        })
    }
}

/// What is on time: within so many cycles, or within this share.
const FEW: f64 = 2.0;
const SHARE: f64 = 1e-4;

/// What a stream carries `steps` periods after `later`, which is one after `earlier`. Rows keep the first words of what they
/// pass on, so where a piece runs out the next one loses what it is short of.
fn foretold(earlier: &[Burst], later: &[Burst], steps: u64) -> Option<Words> {
    let (mut words, mut missing) = (Words::default(), 0);
    for (a, b) in earlier.iter().zip(later) {
        let (next, short) = b.ahead_of(a, steps)?;
        missing += short;
        let gone = missing.min(next.total());
        missing -= gone;
        if gone < next.total() {
            words.push(next.without(gone)?);
        }
    }
    (missing == 0 && earlier.len() == later.len()).then_some(words)
}
