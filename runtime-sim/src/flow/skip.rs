//! Rows in a line: two periods of rows that do the same, one later than the other, say what the next ones do. All but the
//! last period are skipped; the last one is timed again from what it would be sent, and must end as foretold.
//!
//! Times obey a max-plus recurrence, so what a row does is convex in the number of rows above it: if the last period is
//! on the line through two neighbouring ones, all between them are.

use super::engine::Engine;
use super::words::Words;
use crate::network::{Line, NOBODY, Target};
use std::ops::Range;

/// Periods of a line that are not timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skip {
    line: Line,
    /// Periods timed at the beginning, two at least.
    known: u32,
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

    /// Whether a row comes behind those that are foretold.
    pub fn is_behind(&self, y: u32) -> bool {
        y >= self.foretold().end
    }
}

impl Engine<'_> {
    /// Writes the words of rows that are foretold, as far as others read them; false if there is no telling.
    pub(super) fn foretell(&mut self, skip: &Skip) -> bool {
        let net = self.net;
        let period = skip.line.rows * net.width;
        let steps = skip.line.periods - 1 - skip.known;
        for y in skip.foretold() {
            for pe in (y * net.width..(y + 1) * net.width).filter(|pe| net.class_of[*pe as usize] != NOBODY) {
                let class = usize::from(net.class_of[pe as usize]);
                for slot in 0..self.classes[class].outputs.len() {
                    let stream = net.output(pe as usize, slot);
                    let behind =
                        |target: Target| matches!(target, Target::Pe(to) if skip.is_behind(to / net.width));
                    if !net.ends_of(stream).iter().any(|end| behind(end.target)) {
                        continue;
                    }
                    let known = |back: u32| net.output((pe - back * period) as usize, slot);
                    let (later, earlier) =
                        (self.streams.words(known(steps)), self.streams.words(known(steps + 1)));
                    let Some(words) = foretold(earlier, later, u64::from(steps)) else { return false };
                    self.streams.fill(stream, words);
                }
            }
        }
        true
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
fn foretold(earlier: &Words, later: &Words, steps: u64) -> Option<Words> {
    let (mut words, mut missing) = (Words::default(), 0);
    let pairs = earlier.pieces().iter().zip(later.pieces());
    for (a, b) in pairs {
        let (next, short) = b.ahead_of(a, steps)?;
        missing += short;
        let gone = missing.min(next.total());
        missing -= gone;
        if gone < next.total() {
            words.push(next.without(gone)?);
        }
    }
    (missing == 0 && earlier.pieces().len() == later.pieces().len()).then_some(words)
}
