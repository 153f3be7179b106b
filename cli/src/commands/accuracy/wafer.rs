//! `lapidary accuracy wafer-...`: predictions for wafers beside published measurements.

use super::super::print_json;
use super::{failed, refused};
use crate::args::{Accuracy, AccuracyTable, Global};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{input, show};
use lapidary_planner::accuracy::TableError;
use lapidary_planner::wafer::published::{Document, Outcome, Table, inference, training};
use std::collections::BTreeMap;

/// Runs the verb for one of the wafer's tables.
pub fn run(args: &Accuracy, global: &Global) -> Result<(), Failure> {
    let text = input::read(&args.data)?;
    let name = args.data.display().to_string();
    let mut progress = Progress::new(global, 1);
    let found = progress.stage("predicting", || predicted(args.table, &text, &name, global));
    progress.finish();
    let document = found.map_err(|error| refused(&error, &args.data, &text))?;
    match args.json {
        true => print_json(&document)?,
        false => print(&document, args.rows),
    }
    failed(&document.gate)
}

fn predicted(table: AccuracyTable, text: &str, name: &str, global: &Global) -> Result<Document, TableError> {
    Ok(match table {
        AccuracyTable::WaferTraining | AccuracyTable::A100Training => {
            let table = Table::read(text, name, &training::COLUMNS)?;
            let outcomes: Vec<Outcome> = table.rows.iter().map(training::predict).collect();
            Document::new("wafer-training", outcomes, training::LIMITS, training::fitted())
        }
        AccuracyTable::WaferInference => {
            let table = Table::read(text, name, &inference::COLUMNS)?;
            let outcomes: Vec<Outcome> = table.rows.iter().map(inference::predict).collect();
            Document::new("wafer-inference", outcomes, inference::LIMITS, inference::fitted())
        }
        AccuracyTable::WaferMicrobench => super::microbench::document(text, name, global)?,
    })
}

fn print(document: &Document, rows: bool) {
    let percent = |value: f64| format!("{value:.1} %");
    if rows {
        let lines = document.rows.iter().map(|row| {
            let value = |number: f64| format!("{number:.2} {}", row.unit);
            let fitted = if row.fitted { "fitted" } else { "" }.to_string();
            let error = format!("{:+.1} %", row.error_pct);
            vec![row.id.clone(), value(row.measured), value(row.predicted), error, fitted, row.by.clone()]
        });
        let header = ["row", "measured", "predicted", "error", "", "by"];
        println!("{}\n", show::table(&header, &[1, 2, 3], lines));
    }
    let lines = document.groups.iter().map(|(name, errors)| {
        let figures = [errors.mape_pct, errors.median_pct, errors.p95_pct, errors.max_pct];
        let mut line = vec![name.clone(), errors.rows.to_string()];
        line.extend(figures.map(percent));
        line
    });
    println!(
        "{}\n",
        show::table(&["group", "rows", "mean", "median", "95th", "most"], &[1, 2, 3, 4, 5], lines)
    );
    println!(
        "{} rows: mean {:.2} %, median {:.2} %, 95th percentile {:.2} %, most {:.2} %; {} not predicted",
        document.rows.len(),
        document.mape_pct,
        document.median_pct,
        document.p95_pct,
        document.max_pct,
        document.skipped.len(),
    );
    for (what, errors) in [("fitted on", document.on_fitted), ("not fitted on", document.on_unseen)] {
        if document.on_fitted.rows > 0 {
            println!(
                "{} rows {what}: mean {:.2} %, median {:.2} %, 95th percentile {:.2} %, most {:.2} %",
                errors.rows, errors.mape_pct, errors.median_pct, errors.p95_pct, errors.max_pct,
            );
        }
    }
    let lines = document.fitted.iter();
    let lines = lines.map(|a| vec![a.name.clone(), format!("{} {}", a.value, a.unit), a.source.clone()]);
    println!("\n{}", show::table(&["parameter without a printed source", "value", "fitted on"], &[], lines));
    print_skipped(document);
}

/// Reasons with the number of rows each.
fn print_skipped(document: &Document) {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in &document.skipped {
        reasons.entry(&row.why).or_default().push(&row.id);
    }
    for (why, rows) in reasons {
        let more = if rows.len() > 1 { format!(" and {} more", rows.len() - 1) } else { String::new() };
        println!("not predicted: {}{more}: {why}", rows[0]);
    }
}
