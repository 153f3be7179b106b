//! How many of its rows a sequence uses.
//!
//! A weight costs a row a number of cycles beside those of its tokens, which speaks for all rows there are. Keys and values
//! pass every row of their sequence at a cost of their own beside those of tokens, which speaks for few. Closed forms decide;
//! fewer rows must hold more, so memory has a say as well.

use super::layout::place_tokens;
use super::place::{Workload, place_head, place_layer};
use super::placed::{Placed, Tokens};
use super::{WaferSpec, analytic, memory_peak};
use lapidary_hardware::Wafer;
use lapidary_models::ModelSpec;
use serde::Serialize;
use std::fmt;

/// Rows of PEs that the layers of a model and its head use for a workload: fewer than there are where that takes fewer cycles.
pub fn rows_in_use(model: &ModelSpec, work: Workload, wafer: &Wafer) -> u32 {
    let spec = WaferSpec::of(wafer, wafer.clock());
    let (Ok(layer), Ok(head)) = (place_layer(model, work, &spec), place_head(model, work)) else {
        return work.height;
    };
    let tokens = layer.tokens;
    if tokens.sequences < work.sequences {
        return work.height;
    }
    let stages = [(model.n_layers, layer), (1, Placed { tokens, ..head })];
    let fits = |tokens: &Tokens| {
        stages
            .iter()
            .all(|(_, placed)| memory_peak(&Placed { tokens: *tokens, ..placed.clone() }, &spec).is_ok())
    };
    let all: Vec<(u64, &Placed)> = stages.iter().map(|(times, placed)| (*times, placed)).collect();
    fewer_rows(&all, wafer).into_iter().find(fits).map_or(work.height, |tokens| tokens.blocks().lines())
}

/// Ways to lay the sequences of some stages, each with how often it runs, over fewer rows than they have that take fewer
/// cycles in closed form, the best one first.
pub fn fewer_rows(stages: &[(u64, &Placed)], wafer: &Wafer) -> Vec<Tokens> {
    let Some((_, Placed { tokens: all, .. })) = stages.first() else { return vec![] };
    let Some(now) = cycles(stages, *all, wafer) else { return vec![] };
    let with_cycles = |tokens: Tokens| Some((cycles(stages, tokens, wafer)?, tokens));
    let mut better: Vec<(u64, Tokens)> =
        fewer(*all).filter_map(with_cycles).filter(|(cycles, _)| *cycles < now).collect();
    better.sort_by_key(|(cycles, tokens)| (*cycles, tokens.rows));
    better.into_iter().map(|(_, tokens)| tokens).collect()
}

/// Rows in use, beside those that sequences could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RowsReport {
    /// Rows in use.
    pub rows: u32,
    /// Rows that sequences could have.
    pub of: u32,
    /// Cycles of a pass in closed form.
    pub cycles: u64,
    /// The same with all of these rows.
    pub with_all: u64,
}

impl fmt::Display for RowsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RowsReport { rows, of, cycles, with_all } = self;
        write!(
            f,
            "{rows} of {of} rows: a pass takes {cycles} cycles in closed form, {with_all} with all rows"
        )
    }
}

/// What is won with fewer rows than sequences could have; none where they have all.
pub fn rows_report(stages: &[(u64, &Placed)], wafer: &Wafer) -> Option<RowsReport> {
    let tokens = stages.first()?.1.tokens;
    let height = u32::try_from(wafer.fabric.usable.height).ok()?;
    let all = place_tokens(height, tokens.sequences, tokens.length, 1);
    let [cycles, with_all] = [tokens, all].map(|tokens| cycles(stages, tokens, wafer));
    let report = RowsReport {
        rows: tokens.blocks().lines(),
        of: all.blocks().lines(),
        cycles: cycles?,
        with_all: with_all?,
    };
    (report.rows < report.of).then_some(report)
}

/// Cycles of stages in closed form with their tokens laid so; none where the wafer lacks the arithmetic.
fn cycles(stages: &[(u64, &Placed)], tokens: Tokens, wafer: &Wafer) -> Option<u64> {
    let of = |(times, placed): &(u64, &Placed)| {
        let ops = analytic::cycles(&Placed { tokens, ..(*placed).clone() }, wafer)?;
        Some(times * ops.iter().map(|op| op.cycles).sum::<u64>())
    };
    stages.iter().map(of).sum()
}

/// Sequences over fewer rows each: as many as rows of some length need, all lengths from the shortest on.
fn fewer(all: Tokens) -> impl Iterator<Item = Tokens> {
    let rows = move |row: u32| all.length.div_ceil(row);
    let lengths = all.tiles().largest() + 1..=all.length;
    let lengths = lengths.filter(move |row| all.length.div_ceil(rows(*row)) == *row);
    lengths.map(move |row| place_tokens(rows(row) * all.sequences, all.sequences, all.length, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_hardware::builtin::machine;
    use lapidary_models::builtin;
    use lapidary_models::dtype::DType;

    fn rows(sequences: u32, length: u32) -> u32 {
        let cs2 = machine("cs2").unwrap();
        let work = Workload { width: 750, height: 994, sequences, length, dtype: DType::Bf16 };
        rows_in_use(&builtin("crystalcoder").unwrap(), work, cs2.wafer().unwrap())
    }

    #[test]
    fn few_sequences_do_not_use_all_rows_and_many_do() {
        let few = rows(1, 2048);
        assert!((200..400).contains(&few), "{few}");
        let four = rows(4, 2048);
        assert_eq!(four % 4, 0);
        assert!(four > few, "{four}");
        assert_eq!(rows(66, 2048), 994, "all that there are");
        assert_eq!(rows(1, 1), 994, "nothing to choose from");
    }

    #[test]
    fn lengths_of_rows_need_the_rows_that_they_get() {
        let all = Tokens { sequences: 2, length: 10, rows: 5 };
        let found: Vec<(u32, u32)> = fewer(all).map(|t| (t.rows, t.tiles().largest())).collect();
        assert_eq!(found, [(4, 3), (3, 4), (2, 5), (1, 10)]);
    }
}
