//! Rows in a line: periods of rows that look the same and hand words on in one direction only, to the south.
//!
//! Lengths and counts may grow or shrink from one period to the next, by the same amount everywhere: so do the rows that
//! pass on what the rows above them keep.

use super::alike::Looks;
use super::groups::northward;
use crate::program::WaferProgram;

/// Periods of rows, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// First row of the first period.
    pub first: u32,
    /// Rows of a period.
    pub rows: u32,
    /// Number of periods.
    pub periods: u32,
}

/// Longest period, in parts of the group that words leave to the south only.
const LONGEST: usize = 64;

impl Line {
    /// The first row of period `n`.
    pub fn row(&self, n: u32) -> u32 {
        self.first + n * self.rows
    }

    /// The rows of period `n`.
    pub fn period(&self, n: u32) -> std::ops::Range<u32> {
        self.row(n)..self.row(n + 1)
    }

    /// The longest line in a group of neighbouring rows, if there is one.
    pub fn in_group(program: &WaferProgram, class_of: &[u16], looks: &Looks, group: &[u32]) -> Option<Line> {
        let north = northward(program, class_of);
        let mut parts: Vec<Vec<u32>> = Vec::new();
        for &y in group {
            match parts.last_mut() {
                Some(part) if north[y as usize] => part.push(y),
                _ => parts.push(vec![y]),
            }
        }
        let seen: Vec<Seen> = parts.iter().map(|part| Seen::of(program, looks, part)).collect();
        let found = (1..=LONGEST).filter_map(|period| longest(&seen, period).map(|run| (period, run)));
        let skips =
            |(period, (_, periods)): &(usize, (usize, usize))| period * periods.saturating_sub(FEWEST);
        let (period, (from, periods)) = found.max_by_key(|found| (skips(found), LONGEST - found.0))?;
        let rows: usize = parts[from..from + period].iter().map(Vec::len).sum();
        (periods > FEWEST).then(|| Line { first: parts[from][0], rows: rows as u32, periods: periods as u32 })
    }
}

/// A line of no more periods is not worth the name.
const FEWEST: usize = 5;

/// How a part of a group looks, and its counts as far as they are a matter of the row.
struct Seen {
    looks: Vec<(u32, Vec<i64>)>,
    counts: Vec<i64>,
}

impl Seen {
    fn of(program: &WaferProgram, looks: &Looks, part: &[u32]) -> Self {
        let counts = part.iter().flat_map(|y| looks.counts(*y)).collect();
        Seen { looks: part.iter().map(|y| looks.but_counts(program, *y)).collect(), counts }
    }

    /// By how much the counts of `other` exceed those of this part, if they look the same otherwise.
    fn growth(&self, other: &Seen) -> Option<Vec<i64>> {
        let alike = self.looks == other.looks && self.counts.len() == other.counts.len();
        alike.then(|| other.counts.iter().zip(&self.counts).map(|(b, a)| b - a).collect())
    }
}

/// The longest run of periods of `period` parts: where it begins, and how many there are.
fn longest(seen: &[Seen], period: usize) -> Option<(usize, usize)> {
    let growth: Vec<Option<Vec<i64>>> =
        seen.iter().zip(seen.get(period..)?).map(|(a, b)| a.growth(b)).collect();
    let mut best: Option<(usize, usize)> = None;
    for from in 0..growth.len() {
        let fits = |at: &usize| {
            let grown = &growth[*at];
            grown.is_some() && (*at < from + period || *grown == growth[at - period])
        };
        let run = (from..growth.len()).take_while(fits).count();
        let periods = run / period + 1;
        if run >= period && best.is_none_or(|(_, most)| periods > most) {
            best = Some((from, periods));
        }
        if run == growth.len() - from {
            break;
        }
    }
    best
}
