//! The report of `lapidary accuracy wafer-...`: rows, errors by group and overall, what was skipped and why, and the gate.

use crate::accuracy::Check;
use serde::Serialize;
use std::collections::BTreeMap;

/// A row's prediction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Name of the row.
    pub id: String,
    /// Rows of one kind.
    pub group: String,
    /// What was measured.
    pub measured: f64,
    /// What is predicted.
    pub predicted: f64,
    /// Unit of both.
    pub unit: String,
    /// Predicted over measured, less one, in percent.
    pub error_pct: f64,
    /// Whether a parameter was fitted on this row.
    pub fitted: bool,
    /// What the prediction rests on: the plan, the level of the simulator, the release.
    pub by: String,
}

/// A row without a prediction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skipped {
    /// Name of the row.
    pub id: String,
    /// The reason.
    pub why: String,
}

/// What became of a row.
pub type Outcome = Result<Prediction, Skipped>;

/// Errors of a group of rows, percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Errors {
    /// Rows.
    pub rows: usize,
    /// Mean absolute error.
    pub mape_pct: f64,
    /// Median absolute error.
    pub median_pct: f64,
    /// 95th percentile of the absolute error.
    pub p95_pct: f64,
    /// Largest absolute error.
    pub max_pct: f64,
}

/// What the gate asks for, in percent; absent where it does not ask.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Of the median.
    pub median: Option<f64>,
    /// Of the 95th percentile.
    pub p95: Option<f64>,
    /// Of every row.
    pub most: Option<f64>,
}

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Document {
    /// The kind of document.
    pub schema: &'static str,
    /// Version of the kind.
    pub version: u32,
    /// Name of the table.
    pub table: &'static str,
    /// Mean absolute error, percent.
    pub mape_pct: f64,
    /// Median absolute error, percent.
    pub median_pct: f64,
    /// 95th percentile of the absolute error, percent.
    pub p95_pct: f64,
    /// Largest absolute error, percent.
    pub max_pct: f64,
    /// Errors on the rows that parameters were fitted on.
    pub on_fitted: Errors,
    /// Errors on all other rows.
    pub on_unseen: Errors,
    /// Errors by group.
    pub groups: BTreeMap<String, Errors>,
    /// Parameters without a printed source, and the rows that they were fitted on.
    pub fitted: Vec<crate::Assumption>,
    /// What the gate demands.
    pub gate: Vec<Check>,
    /// Every prediction.
    pub rows: Vec<Prediction>,
    /// Every row without one.
    pub skipped: Vec<Skipped>,
}

impl Document {
    /// The document of what became of the rows. Where no row has a prediction, the gate fails.
    pub fn new(
        table: &'static str,
        outcomes: Vec<Outcome>,
        limits: Limits,
        fitted: Vec<crate::Assumption>,
    ) -> Document {
        let (mut rows, mut skipped) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(row) => rows.push(row),
                Err(row) => skipped.push(row),
            }
        }
        let all = errors(rows.iter());
        let names = rows.iter().map(|row| row.group.clone());
        let of_group = |name: String| {
            let found = errors(rows.iter().filter(|row| row.group == name));
            (name, found)
        };
        let groups: BTreeMap<String, Errors> = names.map(of_group).collect();
        Document {
            schema: crate::accuracy::score::SCHEMA,
            version: crate::accuracy::document::VERSION,
            table,
            mape_pct: all.mape_pct,
            median_pct: all.median_pct,
            p95_pct: all.p95_pct,
            max_pct: all.max_pct,
            on_fitted: errors(rows.iter().filter(|row| row.fitted)),
            on_unseen: errors(rows.iter().filter(|row| !row.fitted)),
            groups,
            fitted,
            gate: checks(&all, limits),
            rows,
            skipped,
        }
    }

    /// Whether every demand is kept.
    pub fn passed(&self) -> bool {
        self.gate.iter().all(|check| check.ok)
    }
}

fn checks(all: &Errors, limits: Limits) -> Vec<Check> {
    let demand = |name, value: f64, limit: Option<f64>| {
        limit.map(|limit| Check { name, value, limit, ok: value <= limit })
    };
    let rows = all.rows as f64;
    let mut gate = vec![Check { name: "rows with a prediction", value: rows, limit: 1.0, ok: rows >= 1.0 }];
    gate.extend(demand("median, percent", all.median_pct, limits.median));
    gate.extend(demand("95th percentile, percent", all.p95_pct, limits.p95));
    gate.extend(demand("largest error, percent", all.max_pct, limits.most));
    gate
}

impl Prediction {
    /// A prediction beside its measurement.
    pub fn new(id: &str, group: &str, measured: f64, predicted: f64, unit: &str) -> Prediction {
        Prediction {
            id: id.into(),
            group: group.into(),
            measured,
            predicted,
            unit: unit.into(),
            error_pct: (predicted / measured - 1.0) * 100.0,
            fitted: false,
            by: String::new(),
        }
    }
}

/// The errors of a set of predictions.
fn errors<'a>(rows: impl Iterator<Item = &'a Prediction>) -> Errors {
    let mut sizes: Vec<f64> = rows.map(|row| row.error_pct.abs()).collect();
    if sizes.is_empty() {
        return Errors::default();
    }
    sizes.sort_by(f64::total_cmp);
    Errors {
        rows: sizes.len(),
        mape_pct: sizes.iter().sum::<f64>() / sizes.len() as f64,
        median_pct: quantile(&sizes, 0.5),
        p95_pct: quantile(&sizes, 0.95),
        max_pct: sizes[sizes.len() - 1],
    }
}

/// A quantile of sorted values, interpolated.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}
