//! Which rows are looked at PE by PE, and which of them each other row is like.

use crate::lower::LoweredClass;
use crate::network::{Alike, Likeness};
use crate::program::WaferProgram;

/// Rows by what has to be proved of them.
pub struct Rows {
    /// Per row: whether its PEs are looked at.
    pub traced: Vec<bool>,
    /// Per row: the traced row that looks the same, itself if it is traced.
    pub like: Vec<u32>,
}

/// Inputs of a class that fit the mask of arrivals.
pub const SLOTS: usize = 32;

impl Rows {
    /// One group of rows for each kind; all rows where words pass switches, which decide at run time.
    pub fn choose(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass]) -> Self {
        let switches = program.classes.iter().flat_map(|c| c.routes.values()).any(|r| r.positions.len() > 1);
        if switches || classes.iter().any(|c| c.inputs.len() > SLOTS) {
            return Rows::all(program);
        }
        let alike = Alike::of(program, class_of, classes, Likeness::Proof);
        let mut rows = Rows { traced: vec![false; program.height as usize], ..Rows::all(program) };
        for groups in &alike.kinds {
            for group in groups {
                for (y, like) in group.iter().zip(&groups[0]) {
                    rows.like[*y as usize] = *like;
                    rows.traced[*like as usize] = true;
                }
            }
        }
        rows
    }

    /// Whether every row is looked at.
    pub fn all_traced(&self) -> bool {
        self.traced.iter().all(|traced| *traced)
    }

    /// Every row for itself.
    pub fn all(program: &WaferProgram) -> Self {
        Rows { traced: vec![true; program.height as usize], like: (0..program.height).collect() }
    }
}
