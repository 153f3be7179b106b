//! Columns and rows of a grid by what they contribute to counts and lengths: an expression is the sum of a part of the
//! column and one of the row, so it is the same wherever both are of the same kind.

use crate::lower::Linear;
use std::collections::BTreeMap;

/// The kinds of all columns, or of all rows.
#[derive(Default)]
pub struct Places {
    /// By column or row; empty if all are of one kind.
    of: Vec<u32>,
    /// How many kinds there are.
    pub kinds: usize,
}

impl Places {
    /// Columns (or rows) from 0 to `size` by their parts of some expressions.
    pub fn of(expressions: &[Linear], of_x: bool, size: u32) -> Self {
        let uses = |length: &&Linear| if of_x { length.uses_place().0 } else { length.uses_place().1 };
        let expressions: Vec<&Linear> = expressions.iter().filter(uses).collect();
        if expressions.is_empty() {
            return Places { of: Vec::new(), kinds: 1 };
        }
        let mut known: BTreeMap<Vec<i64>, u32> = BTreeMap::new();
        let mut kind = |at: u32| {
            let next = known.len() as u32;
            let parts = expressions.iter().map(|length| length.part(of_x, i64::from(at))).collect();
            *known.entry(parts).or_insert(next)
        };
        let of = (0..size).map(&mut kind).collect();
        Places { of, kinds: known.len() }
    }

    /// The kind of a column (or row), from 0.
    pub fn kind(&self, at: i64) -> usize {
        self.of.get(at as usize).map_or(0, |kind| *kind as usize)
    }
}
