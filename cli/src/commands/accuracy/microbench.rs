//! `lapidary accuracy wafer-microbench`: kernels in the SDK's simulator, and collectives by programs of our own in ours.

use super::super::jobs;
use super::sdk;
use crate::args::Global;
use lapidary_planner::accuracy::{Check, TableError};
use lapidary_planner::wafer::published::{Document, Limits, Outcome, Prediction, Skipped, Table, TableRow};
use lapidary_runtime_sim::collectives::{Collective, word_hops};
use lapidary_runtime_sim::program::WaferProgram;
use lapidary_runtime_sim::{FabricSpec, Report, check, event, flow};
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Columns of the published cost model of collectives, evaluated.
const COLLECTIVES: [&str; 4] = ["P", "B_wavelets", "algorithm", "predicted_cycles"];

/// What the gate asks of every collective, in percent or in cycles: the model's means over the parts of a vector are no whole
/// numbers, and small collectives take few cycles.
const PERCENT: f64 = 2.0;

/// See [`PERCENT`].
const SLACK: f64 = 2.0;

/// Words times links beyond which a collective over a square is timed at level flow: its vectors alone take gigabytes.
const EVENT_WORD_HOPS: u64 = 150_000_000;

/// The document of either kind of table, told apart by its columns.
pub fn document(text: &str, name: &str, global: &Global) -> Result<Document, TableError> {
    let table = Table::read(text, name, &[])?;
    if !table.has("algorithm") {
        let table = Table::read(text, name, &sdk::COLUMNS)?;
        let predictor = sdk::Predictor::new();
        let outcomes = side_by_side(&table.rows, jobs(global), |row| predictor.predict(row));
        return Ok(Document::new("wafer-microbench", outcomes, sdk::LIMITS, predictor.fitted));
    }
    let table = Table::read(text, name, &COLLECTIVES)?;
    let outcomes = side_by_side(&table.rows, jobs(global), predict);
    let mut document = Document::new("wafer-microbench", outcomes, Limits::default(), Vec::new());
    let far =
        |row: &&Prediction| row.error_pct.abs() > PERCENT && (row.predicted - row.measured).abs() > SLACK;
    let missed = document.rows.iter().filter(far).count() as f64;
    let name = "rows off by more than 2 % and 2 cycles";
    document.gate.push(Check { name, value: missed, limit: 0.0, ok: missed == 0.0 });
    Ok(document)
}

/// Simulates the rows on some threads; what they find does not depend on how many.
fn side_by_side(
    rows: &[TableRow],
    threads: usize,
    predict: impl Fn(&TableRow) -> Outcome + Sync,
) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(row) = rows.get(index) else { return found };
            found.push((index, predict(row)));
        }
    };
    let mut all: Vec<(usize, Outcome)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, rows.len().max(1))).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(found) => found,
            Err(panic) => resume_unwind(panic),
        };
        workers.into_iter().flat_map(join).collect()
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, outcome)| outcome).collect()
}

fn predict(row: &TableRow) -> Outcome {
    let words = ["P", "B_wavelets", "algorithm"].map(|column| row.word(column));
    let id = format!("{}_P{}_B{}", words[2], words[0], words[1]);
    let skipped = |why: String| Skipped { id: id.clone(), why };
    let size =
        |column: &str| row.count(column).and_then(|size| u32::try_from(size).map_err(|_| too_large(column)));
    let (pes, vector) = (size("P").map_err(&skipped)?, size("B_wavelets").map_err(&skipped)?);
    let measured = row.measured("predicted_cycles").map_err(&skipped)?;
    let (report, level) = simulated(words[2], pes, vector, row).map_err(&skipped)?;
    let prediction = Prediction::new(&id, words[2], measured, report.cycles as f64, "cycles");
    Ok(Prediction { by: format!("level {level}"), ..prediction })
}

fn too_large(column: &str) -> String {
    format!("{column} is more than a program holds")
}

/// The collective at level event; where that would move too many words, at level flow.
fn simulated(name: &str, pes: u32, words: u32, row: &TableRow) -> Result<(Report, &'static str), String> {
    let known = || Collective::names().collect::<Vec<_>>().join(", ");
    let collective = Collective::named(name)
        .ok_or_else(|| format!("no collective is called `{name}`; there are {}", known()))?;
    let wse2 = FabricSpec::wse2();
    let ramp = match row.word("TR") {
        "" => wse2.ramp_cycles,
        _ => row.count("TR").map(|ramp| ramp.min(64) as u32)?,
    };
    // The model is one of any row; a row of the wafer has up to 994 elements.
    let fabric = FabricSpec { ramp_cycles: ramp, max_width: wse2.max_height, ..wse2 };
    if u64::from(words) * 4 > u64::from(fabric.sram_bytes) {
        return Err(format!("{words} words do not fit the memory of an element"));
    }
    if pes > fabric.max_width {
        return Err(format!("{pes} elements are more than a row of the wafer has"));
    }
    if collective == Collective::RingAllReduce && !words.is_multiple_of(pes) {
        return Err(format!(
            "the published model counts {:.4} words in each of {pes} parts, and words are whole",
            f64::from(words) / f64::from(pes)
        ));
    }
    let square = matches!(collective, Collective::Broadcast2d | Collective::XyReduce);
    let large = square && word_hops(collective, pes, words) > EVENT_WORD_HOPS;
    let program: WaferProgram =
        collective.program(pes, words).ok_or_else(|| format!("{name} is not defined for {pes} elements"))?;
    let checked = check(&program, &fabric)
        .map_err(|errors| errors.first().map_or(String::new(), ToString::to_string))?;
    if large {
        return flow::time(&checked).map(|report| (report, "flow")).map_err(|error| error.to_string());
    }
    let run = event::simulate(&checked, BTreeMap::new()).map_err(|error| error.to_string())?;
    Ok((run.report, "event"))
}
