//! What the runs of one source say together that none of them prints.
//!
//! A table may carry a column over from elsewhere, such as the settings of a simulator that was held against the runs;
//! its notes say so. Recomputation is such a column: nobody pays for it who has the memory. So where it is inferred, the
//! runs of a source recompute if any of them would overflow without, and do not if all of them fit.

use super::case::Case;
use super::row::Row;
use crate::plan::Recompute;
use crate::step::{Physics, occupied};
use std::collections::BTreeMap;

/// What the sources of a table say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Campaigns {
    /// Sources whose recomputation is inferred, and whether any of their runs needs it.
    recompute: BTreeMap<String, bool>,
}

impl Campaigns {
    /// Reads the rows of a table together.
    pub fn of(rows: &[Row]) -> Campaigns {
        let mut recompute = BTreeMap::new();
        for row in rows.iter().filter(|row| inferred(row)) {
            let needs = recompute.entry(row.word("source").to_string()).or_insert(false);
            *needs = *needs || overflows(row);
        }
        Campaigns { recompute }
    }

    /// Whether a row's recomputation is inferred and no run of its source needs any.
    pub fn spare(&self, row: &Row) -> bool {
        inferred(row) && self.recompute.get(row.word("source")) == Some(&false)
    }
}

/// Whether the notes say that the column on recomputation is taken from somewhere else than the run.
fn inferred(row: &Row) -> bool {
    let notes = row.word("notes");
    let about = notes.split(';').find(|part| part.contains("recompute"));
    about.is_some_and(|part| {
        ["per repo", "inferred", "assumed", "default"].iter().any(|word| part.contains(word))
    })
}

fn overflows(row: &Row) -> bool {
    let Ok(mut case) = Case::as_printed(row) else { return false };
    case.layout.recompute = Recompute::None;
    let physics = Physics::builtin();
    let held = occupied(&case.job(&physics, case.stack));
    held.total() > case.machine.device.memory().0
}
