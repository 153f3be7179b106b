//! Columns and rows of a grid by what they contribute to counts and lengths: an expression is the sum of a part of the
//! column and one of the row, so it is the same wherever both are of the same kind.

use crate::lower::Linear;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The kinds of all columns, or of all rows.
#[derive(Default)]
pub struct Places {
    /// By column or row; empty if all are of one kind.
    of: Vec<u32>,
    /// How many kinds there are.
    pub kinds: usize,
}

/// The columns and rows of a grid, sorted once for all code whose lengths owe the same to them.
pub struct Grid {
    /// Columns, and rows.
    size: [u32; 2],
    /// By the expressions, of which the part of the column (or row) counts.
    known: [Vec<(Vec<Linear>, Arc<Places>)>; 2],
}

impl Grid {
    /// A grid of so many columns and rows.
    pub fn new(columns: u32, rows: u32) -> Self {
        Grid { size: [columns, rows], known: Default::default() }
    }

    /// Its columns and its rows by their parts of some expressions.
    pub fn kinds(&mut self, expressions: &[Linear]) -> [Arc<Places>; 2] {
        [0, 1].map(|axis: usize| {
            let of_x = axis == 0;
            let mut parts: Vec<Linear> = Vec::new();
            for expression in expressions {
                let (x, y) = expression.uses_place();
                let uses = if of_x { x } else { y };
                if uses && !parts.iter().any(|part| part.same_part(expression, of_x)) {
                    parts.push(expression.clone());
                }
            }
            let same = |known: &[Linear]| {
                known.len() == parts.len() && known.iter().zip(&parts).all(|(a, b)| a.same_part(b, of_x))
            };
            if let Some((_, places)) = self.known[axis].iter().find(|(known, _)| same(known)) {
                return Arc::clone(places);
            }
            let places = Arc::new(Places::of(&parts, of_x, self.size[axis]));
            self.known[axis].push((parts, Arc::clone(&places)));
            places
        })
    }
}

impl Places {
    /// Columns (or rows) from 0 to `size` by their parts of some expressions that depend on them.
    fn of(expressions: &[Linear], of_x: bool, size: u32) -> Self {
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
