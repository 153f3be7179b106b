//! Rows in a line: periods of rows that look the same and hand words on in one direction only, to the south.
//!
//! Lengths and counts may grow or shrink from one period to the next: so do the rows that pass on what the rows above them
//! keep. What takes the same time does so by the same amount everywhere; what is to be proved may do so in any way.

use super::alike::{Likeness, Looks};
use super::groups::northward;
use crate::program::WaferProgram;
use std::cmp::Reverse;
use std::collections::BTreeMap;

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
    /// All its rows.
    pub fn span(&self) -> std::ops::Range<u32> {
        self.first..self.row(self.periods)
    }

    /// The first row of period `n`.
    pub fn row(&self, n: u32) -> u32 {
        self.first + n * self.rows
    }

    /// The rows of period `n`.
    pub fn period(&self, n: u32) -> std::ops::Range<u32> {
        self.row(n)..self.row(n + 1)
    }

    /// The longest line in a group of neighbouring rows, if there is one. Where it may begin in several rows, it begins in
    /// one that few words enter from the row above, but for what grows from row to row; `entering` tells how many.
    pub fn in_group(
        program: &WaferProgram,
        class_of: &[u16],
        (looks, as_to): (&Looks, Likeness),
        group: &[u32],
        entering: &dyn Fn(u32) -> f64,
    ) -> Option<Line> {
        if group.len() <= FEWEST {
            return None;
        }
        let north = northward(program, class_of);
        let mut parts: Vec<Vec<u32>> = Vec::new();
        for &y in group {
            match parts.last_mut() {
                Some(part) if north[y as usize] => part.push(y),
                _ => parts.push(vec![y]),
            }
        }
        let seen: Vec<Seen> = Seen::of(program, &parts, looks, as_to);
        let found = (1..=LONGEST).filter_map(|period| longest(&seen, period).map(|run| (period, run)));
        let skips =
            |(period, (_, periods)): &(usize, (usize, usize))| period * periods.saturating_sub(FEWEST);
        let (period, (_, most)) = found.max_by_key(|found| (skips(found), LONGEST - found.0))?;
        let words = |part: usize| entering(parts[part][0]);
        let (from, periods) = runs(&seen, period)
            .into_iter()
            .filter(|(_, periods)| periods + 1 >= most)
            .map(|(from, periods)| {
                let each = (words(from + period) - words(from)) / period as f64;
                (words(from) - from as f64 * each, from, periods)
            })
            .min_by(|a, b| a.0.total_cmp(&b.0).then(b.2.cmp(&a.2)).then(a.1.cmp(&b.1)))
            .map(|(_, from, periods)| (from, periods))?;
        let rows: usize = parts[from..from + period].iter().map(Vec::len).sum();
        (periods > FEWEST).then(|| Line { first: parts[from][0], rows: rows as u32, periods: periods as u32 })
    }
}

/// A line of no more periods is not worth the name.
const FEWEST: usize = 5;

/// How a part of a group looks, and its counts as far as they are a matter of the row and must grow evenly.
struct Seen {
    /// The same number for parts that look the same but for their counts.
    looks: usize,
    counts: Vec<i64>,
}

impl Seen {
    /// All parts of a group.
    fn of(program: &WaferProgram, parts: &[Vec<u32>], looks: &Looks, as_to: Likeness) -> Vec<Seen> {
        let mut known = BTreeMap::new();
        let mut seen = |part: &Vec<u32>| {
            let next = known.len();
            let look: Vec<_> = part.iter().map(|y| looks.but_counts(program, *y)).collect();
            let evenly = part.iter().filter(|_| as_to == Likeness::Time);
            let counts = evenly.flat_map(|y| looks.counts(*y)).collect();
            Seen { looks: *known.entry(look).or_insert(next), counts }
        };
        parts.iter().map(&mut seen).collect()
    }

    /// By how much the counts of `other` exceed those of this part, if they look the same otherwise.
    fn growth(&self, other: &Seen) -> Option<Vec<i64>> {
        let alike = self.looks == other.looks && self.counts.len() == other.counts.len();
        alike.then(|| other.counts.iter().zip(&self.counts).map(|(b, a)| b - a).collect())
    }
}

/// The longest run of periods of `period` parts: where it begins, and how many there are.
fn longest(seen: &[Seen], period: usize) -> Option<(usize, usize)> {
    let first_of_most = |(from, periods): &(usize, usize)| (*periods, Reverse(*from));
    runs(seen, period).into_iter().max_by_key(first_of_most)
}

/// All runs of periods of `period` parts.
fn runs(seen: &[Seen], period: usize) -> Vec<(usize, usize)> {
    let Some(later) = seen.get(period..) else { return Vec::new() };
    let growth: Vec<Option<Vec<i64>>> = seen.iter().zip(later).map(|(a, b)| a.growth(b)).collect();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    // From the end: how far parts have grown at all, and how far each has as the one a period before.
    let (mut grown, mut evenly) =
        (vec![growth.len(); growth.len() + 1], vec![growth.len(); growth.len() + 1]);
    for at in (0..growth.len()).rev() {
        grown[at] = if growth[at].is_some() { grown[at + 1] } else { at };
        evenly[at] = if at >= period && growth[at] == growth[at - period] { evenly[at + 1] } else { at };
    }
    for from in 0..growth.len() {
        let run = grown[from].min(evenly[(from + period).min(growth.len())]) - from;
        if run >= period {
            runs.push((from, run / period + 1));
        }
    }
    runs
}
