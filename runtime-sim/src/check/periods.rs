//! Rows in a line: periods of rows that look the same and hand words of PEs on to the south only. The routes of the first
//! two periods say what those of the others are; how many words pass is compared in every period in which it differs.
//!
//! Let a line have P periods, 0 to P - 1. Row i of each of them has, column by column, classes of one shape: the same code,
//! and the same routes for all colours on which PEs send. No words of PEs pass north over the first row of a period or of
//! what follows the line. Traced are all rows outside of the line, periods 0 and 1 and the last one; streams of the host are
//! traced in all rows. Found from what has been traced, or else all rows are looked at:
//!
//! 1. Words of PEs in periods 0 and 1 go no farther than one period to the south.
//! 2. Words of PEs north of the line go no farther than period 0.
//! 3. Traced rows have no fault, but that readers in the last period may have their senders in the one before.
//!
//! *Routes.* The routers that words enter on their way are decided by the routes of these routers alone. So the stream of a
//! PE of period m is that of the PE in the same place of period 0, moved by m periods, as long as both stay in the line: by
//! 1, for every m up to P - 2. In none of these does a word end where nothing takes it, by 3; those of period P - 1 are
//! traced. By 1 and 2 and since no words go north, who sends to a PE of period m >= 1 is in period m - 1 or m. So it
//! has a sender on a colour if the PE in its place of period 1 has one, which is the same one moved by m - 1 periods: that
//! way lies within periods m - 1 and m. A reader that has no PE for a sender in period 1 is looked at in every row: the host
//! must reach it there. Side exits to the host look the same in all rows of one place (the words, too).
//!
//! *Counts.* What a PE sends, reads and starts is a sum over its code. Code of which all counts and lengths owe the same to
//! all rows of one place adds the same in all periods. What the rest of the code moves in a row, g, must depend on the row
//! only (not on the column, nor on iterations), and it must consist of words alone: no task is started more often, no pair
//! of a packed wire is torn. It is evaluated for every row of the line. Where a stream of period 0 ends at a PE of period j (0
//! or 1), sent(0) = read(j) by 3. So sent(m) = read(m + j) if and only if g of the sender from period 0 to m gains as
//! much as g of the reader from period j to m + j. That is compared for every such stream and every m. What else can be wrong
//! with a PE's counts (tasks started too often or not often enough, torn pairs) owes nothing to g, and is proved in period 0.
//!
//! A row that differs ends the line, for rows of a line look the same. Where anything here does not hold, nothing is said:
//! the checker looks at all rows, and tells the faults that there are.

use super::growth::{Growth, MOST};
use super::tally::Body;
use super::words::Words;
use crate::network::{Line, NOBODY, Target};
use std::ops::Range;
use std::sync::Arc;

/// A line of which few periods are traced.
#[derive(Clone, Copy, Debug)]
pub struct Periods(Line);

impl Periods {
    /// None if there is nothing to be left out.
    pub fn of(line: Line) -> Option<Self> {
        (line.periods > 3).then_some(Periods(line))
    }

    /// Rows that are not traced.
    pub fn left_out(self) -> Range<u32> {
        self.0.row(2)..self.0.row(self.0.periods - 1)
    }

    /// The row that looks the same as row `y` and all of whose senders are traced; itself before period 2 and outside.
    pub fn like(self, y: u32) -> u32 {
        let later = (self.0.row(2)..self.0.span().end).contains(&y);
        if later { self.0.row(1) + (y - self.0.first) % self.0.rows } else { y }
    }
}

impl Words<'_> {
    /// Whether what has been proved of the traced rows of a line holds for those left out. `bodies` are the code of all
    /// segments, by number.
    pub(super) fn holds_for(&self, periods: Periods, bodies: &[Arc<Body>]) -> bool {
        let line = periods.0;
        self.stays_near(&line)
            && Growth::along(&line, self.net, self.classes, bodies).is_some_and(|growth| {
                self.changing_reads_are_fed(&line, &growth) && self.grows_alike(&line, &growth)
            })
    }

    /// Whether words of PEs go no farther than the routes of two periods tell.
    fn stays_near(&self, line: &Line) -> bool {
        let rows = (0..self.net.height).filter(|y| self.net.traced[*y as usize]);
        let mut reach = rows.map(|y| (y, self.net.reach[y as usize]));
        reach.all(|(y, reach)| match y {
            _ if y < line.first => reach < line.row(1),
            _ if y < line.row(1) => reach < line.row(2),
            _ if y < line.row(2) => reach < line.row(3),
            _ => true,
        })
    }

    /// Whether inputs on which not the same is read in all periods are fed by PEs.
    fn changing_reads_are_fed(&self, line: &Line, growth: &Growth) -> bool {
        let changes = |class: u16, y: u32, slot: usize| {
            let later = (y..line.span().end).step_by(line.rows as usize);
            later.map(|y| growth.read(class, y, slot)).any(|read| read != growth.read(class, y, slot))
        };
        self.pes_of(line.period(1)).all(|pe| {
            let (class, y) = (self.net.class_of[pe as usize], pe / self.net.width);
            !growth.is_of(class)
                || (0..self.class(pe).inputs.len())
                    .all(|slot| !changes(class, y, slot) || self.is_fed_by_pe(pe, slot))
        })
    }

    /// Whether, for every stream of period 0, what is sent in all later periods changes as what is read.
    fn grows_alike(&self, line: &Line, growth: &Growth) -> bool {
        self.pes_of(line.period(0)).all(|pe| {
            let (class, y) = (self.net.class_of[pe as usize], pe / self.net.width);
            (0..self.class(pe).outputs.len()).all(|slot| {
                let stream = self.net.output(pe as usize, slot);
                let colour = self.net.streams[stream as usize].colour;
                self.net.ends_of(stream).iter().all(|end| {
                    let (reader, at) = match end.target {
                        Target::Pe(pe) => (Some(pe), pe / self.net.width),
                        Target::Host(_) => (None, y),
                        Target::Switch(..) => return false,
                    };
                    let to = reader.map(|pe| self.net.class_of[pe as usize]);
                    if !growth.is_of(class) && !to.is_some_and(|to| growth.is_of(to)) {
                        return true;
                    }
                    let input = reader.and_then(|pe| self.class(pe).inputs.binary_search(&colour).ok());
                    let sent = |y: u32| growth.sent(class, y, slot);
                    let read = |y: u32| to.zip(input).map_or(0, |(to, input)| growth.read(to, y, input));
                    let later = (at..line.span().end).step_by(line.rows as usize);
                    self.tallies.at(pe).sent[slot] < MOST
                        && later
                            .zip((y..).step_by(line.rows as usize))
                            .all(|(later, from)| sent(from) + read(at) == read(later) + sent(y))
                })
            })
        })
    }

    /// The PEs of traced rows.
    fn pes_of(&self, rows: Range<u32>) -> impl Iterator<Item = u32> {
        let pes = rows.start * self.net.width..rows.end * self.net.width;
        pes.filter(|pe| self.net.class_of[*pe as usize] != NOBODY)
    }
}
