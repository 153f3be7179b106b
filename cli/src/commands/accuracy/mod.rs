//! `lapidary accuracy`: the models' predictions beside published measurements.

mod microbench;
mod sdk;
mod wafer;

use super::print_json;
use crate::args::{Accuracy, AccuracyTable, Global};
use crate::failure::{Exit, Failure, Fault};
use crate::progress::Progress;
use crate::{input, show};
use lapidary_planner::accuracy::{Check, Constants, Document, LeftOut, Samples, TableError, read, score};
use lapidary_planner::step::Physics;
use std::collections::BTreeMap;
use std::path::Path;

/// Faults of a table that are shown.
const SHOWN: usize = 20;

/// Runs the verb. A gate that fails is exit 6; the report is printed all the same.
pub fn run(args: &Accuracy, global: &Global) -> Result<(), Failure> {
    match args.table {
        AccuracyTable::A100Training => a100(args, global),
        _ => wafer::run(args, global),
    }
}

fn a100(args: &Accuracy, global: &Global) -> Result<(), Failure> {
    let text = input::read(&args.data)?;
    let name = args.data.display().to_string();
    let rows = read(&text, &name).map_err(|error| refused(&error, &args.data, &text))?;
    let mut progress = Progress::new(global, 1);
    let report = progress.stage("predicting", || score(&rows, &Physics::builtin(), |stack| stack.clone()));
    let mut document = Document::new("a100-training", report);
    if args.leave_one_out {
        let samples = Samples::new(&rows);
        let constants = Constants::builtin();
        let without = progress.stage("fitting without each group", || samples.without_each(&constants));
        document.left_out = samples.left_out(&constants, &without);
    }
    progress.finish();
    match args.json {
        true => print_json(&document)?,
        false => print(&document, args.rows),
    }
    failed(&document.gate)
}

fn refused(error: &TableError, path: &Path, text: &str) -> Failure {
    let offset = |line: usize, column: usize| {
        let start: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
        let rest = text[start..].chars().take(column - 1).map(char::len_utf8).sum::<usize>();
        (start + rest).min(text.len().saturating_sub(1))
    };
    let fault = |fault: &lapidary_planner::accuracy::Fault| Fault {
        message: format!(
            "{}:{}:{}: {}{}",
            path.display(),
            fault.line,
            fault.column,
            if fault.name.is_empty() { String::new() } else { format!("{}: ", fault.name) },
            fault.message
        ),
        source: None,
        span: Some((offset(fault.line, fault.column), 1)),
        help: (!fault.hint.is_empty()).then(|| fault.hint.clone()),
    };
    let mut faults: Vec<Fault> = error.faults.iter().take(SHOWN).map(fault).collect();
    if error.faults.len() > SHOWN {
        faults.push(Fault::new(format!("and {} more faults", error.faults.len() - SHOWN)));
    }
    Failure { exit: Exit::InvalidInput, faults }
}

fn failed(gate: &[Check]) -> Result<(), Failure> {
    let missed: Vec<String> = gate
        .iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{} is {:.2}, the limit {}", check.name, check.value, check.limit))
        .collect();
    match missed.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Exit::GateFailed, format!("the gate failed: {}", missed.join("; ")))),
    }
}

fn print(document: &Document, rows: bool) {
    if rows {
        print_rows(document);
    }
    let percent = |value: f64| format!("{value:.1} %");
    let lines = document.groups.iter().map(|(name, errors)| {
        let figures = [errors.mape_pct, errors.bias_pct, errors.median_pct, errors.p95_pct, errors.max_pct];
        let mut line = vec![name.clone(), errors.rows.to_string()];
        line.extend(figures.map(percent));
        line.push(percent(errors.covered_pct));
        line
    });
    let header = ["group", "rows", "mean", "bias", "median", "95th", "most", "covered"];
    println!("{}\n", show::table(&header, &[1, 2, 3, 4, 5, 6, 7], lines));
    println!(
        "times: mean over groups {:.2} %; over rows {:.2} %, median {:.2} %, 95th percentile {:.2} %, most {:.2} %; intervals cover {:.1} %",
        document.mean_of_groups_pct,
        document.mape_pct,
        document.median_pct,
        document.p95_pct,
        document.max_pct,
        document.covered_pct,
    );
    let (memory, fits) = (&document.memory, &document.fits);
    println!("memory: {} rows, mean {:.2} %, most {:.1} %", memory.rows, memory.mape_pct, memory.max_pct);
    println!(
        "fits: {} rows and {} runs that ran, {} wrong \"fits\", {} wrong \"does not fit\" ({:.1} %)",
        fits.rows, fits.ran, fits.wrong_fits, fits.wrong_does_not_fit, fits.wrong_does_not_fit_pct
    );
    if !document.left_out.is_empty() {
        print_left_out(document);
    }
    print_skipped(document);
}

fn print_left_out(document: &Document) {
    let percent = |value: f64| format!("{value:.1} %");
    let lines = document.left_out.iter();
    let lines = lines.map(|(name, both)| {
        let figures = [both.fitted_pct, both.left_out_pct, both.covered_pct].map(percent);
        std::iter::once(name.clone()).chain(figures).collect()
    });
    println!("\n{}", show::table(&["group", "fitted", "left out", "covered"], &[1, 2, 3], lines));
    let count = document.left_out.len() as f64;
    let mean = |pick: fn(&LeftOut) -> f64| document.left_out.values().map(pick).sum::<f64>() / count;
    println!(
        "mean over groups that were left out of the fit: {:.2} %, covered {:.1} %\n",
        mean(|both| both.left_out_pct),
        mean(|both| both.covered_pct)
    );
}

fn print_rows(document: &Document) {
    let lines = document.rows.iter().map(|row| {
        let value = |number: f64| format!("{number:.4} {}", row.unit);
        let interval = format!("{:.4} .. {:.4}", row.low, row.high);
        let error = format!("{:+.1} %", row.error_pct);
        let (id, quality) = (row.id.clone(), row.quality.clone());
        vec![id, quality, value(row.measured), value(row.predicted), interval, error, row.assumed.join("; ")]
    });
    let header = ["row", "quality", "measured", "predicted", "interval", "error", "filled in"];
    println!("{}\n", show::table(&header, &[2, 3, 4, 5], lines));
}

/// Reasons with the number of rows each, unscored rows apart.
fn print_skipped(document: &Document) {
    let mut reasons: BTreeMap<(bool, &str), Vec<&str>> = BTreeMap::new();
    for row in &document.skipped {
        reasons.entry((!row.scored, row.why.as_str())).or_default().push(&row.id);
    }
    for ((unscored, why), rows) in reasons {
        let kind = if unscored { " of quality C" } else { "" };
        println!("{} rows{kind} not predicted ({} ..): {why}", rows.len(), rows[0]);
    }
}
