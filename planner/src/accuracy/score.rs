//! Errors of predictions: by row, by group, overall, and the report.

use super::campaign::Campaigns;
use super::case::{Case, Skip};
use super::like::{kind, unknown_pace_pct};
use super::row::{Metric, Row};
use crate::step::{Physics, Stack, estimate, memory, occupied};
use serde::Serialize;
use std::collections::BTreeMap;

/// The kind of document.
pub const SCHEMA: &str = "lapidary/accuracy";

/// A row's prediction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Name of the row.
    pub id: String,
    /// Its group.
    pub group: String,
    /// A, B or C.
    pub quality: String,
    /// Software stack that it was priced with.
    pub stack: String,
    /// Kind of layout ([`super::like::kind`]).
    pub kind: &'static str,
    /// What was measured.
    pub measured: f64,
    /// What is predicted.
    pub predicted: f64,
    /// The prediction's interval.
    pub low: f64,
    /// The prediction's interval.
    pub high: f64,
    /// Unit of the four.
    pub unit: &'static str,
    /// Predicted over measured, less one, in percent.
    pub error_pct: f64,
    /// Whether the row counts: quality A or B.
    pub scored: bool,
    /// What was filled in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
    /// Memory of the fullest device with what the driver and the allocator take, GiB.
    pub held_gib: f64,
    /// Whether the run is said to fit, for runs that did or did not: step times were taken of runs that did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub said_to_fit: Option<bool>,
    /// Terms of a step, seconds.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub terms_s: BTreeMap<&'static str, f64>,
}

/// A row without a prediction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skipped {
    /// Name of the row.
    pub id: String,
    /// Its group.
    pub group: String,
    /// Whether the row would count.
    pub scored: bool,
    /// The reason.
    pub why: String,
}

/// Errors of a set of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Errors {
    /// Rows.
    pub rows: usize,
    /// Mean absolute error, percent.
    pub mape_pct: f64,
    /// Mean signed error, percent.
    pub bias_pct: f64,
    /// Median absolute error, percent.
    pub median_pct: f64,
    /// 95th percentile of the absolute error, percent.
    pub p95_pct: f64,
    /// Largest absolute error, percent.
    pub max_pct: f64,
    /// Part of the rows whose interval covers the measurement, percent.
    pub covered_pct: f64,
}

/// The errors of a set of predictions.
pub fn errors<'a>(rows: impl Iterator<Item = &'a Prediction>) -> Errors {
    let rows: Vec<&Prediction> = rows.collect();
    let mut sizes: Vec<f64> = rows.iter().map(|row| row.error_pct.abs()).collect();
    if sizes.is_empty() {
        return Errors::default();
    }
    sizes.sort_by(f64::total_cmp);
    let count = sizes.len();
    let covered = rows.iter().filter(|row| (row.low..=row.high).contains(&row.measured)).count();
    Errors {
        rows: count,
        mape_pct: sizes.iter().sum::<f64>() / count as f64,
        bias_pct: rows.iter().map(|row| row.error_pct).sum::<f64>() / count as f64,
        median_pct: quantile(&sizes, 0.5),
        p95_pct: quantile(&sizes, 0.95),
        max_pct: sizes[count - 1],
        covered_pct: 100.0 * covered as f64 / count as f64,
    }
}

/// A quantile of sorted values, interpolated.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// The predictions of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Rows with a prediction.
    pub rows: Vec<Prediction>,
    /// Rows without.
    pub skipped: Vec<Skipped>,
}

/// Predicts every row.
pub fn score(rows: &[Row], physics: &Physics, stack_of: impl Fn(&'static Stack) -> Stack) -> Report {
    let mut report = Report { rows: Vec::new(), skipped: Vec::new() };
    let campaigns = Campaigns::of(rows);
    for row in rows {
        match predict(row, &campaigns, physics, &stack_of) {
            Ok(prediction) => report.rows.push(prediction),
            Err(Skip(why)) => report.skipped.push(Skipped {
                id: row.id().to_string(),
                group: row.word("group").to_string(),
                scored: scored(row),
                why,
            }),
        }
    }
    report
}

/// Whether a row counts.
pub fn scored(row: &Row) -> bool {
    row.word("quality") != "C"
}

const GIB: f64 = 1073741824.0;
/// Half of the interval of a memory prediction, as a part of it.
const MEMORY_SPREAD: f64 = 0.16;
/// What each filled-in field adds to the interval.
const FILLED_IN: f64 = 0.02;

/// Half of the interval around a time, as a part of it: what its terms may be off by, and what its software may.
pub(super) fn interval(spread: f64, case: &Case, unknown_pace_pct: f64) -> f64 {
    spread.hypot(unknown_pace_pct / 100.0) + FILLED_IN * case.assumed.len() as f64
}

fn machine_bytes(case: &Case) -> f64 {
    case.machine.device.memory().0
}

fn predict(
    row: &Row,
    campaigns: &Campaigns,
    physics: &Physics,
    stack_of: &impl Fn(&'static Stack) -> Stack,
) -> Result<Prediction, Skip> {
    let measured = row.measured.ok_or_else(|| Skip("step_s_equiv is not given".into()))?;
    let mut case = Case::new(row, campaigns)?;
    case.close(physics);
    let stack = stack_of(case.stack);
    let job = case.job(physics, &stack);
    let found = estimate(&job).ok_or_else(|| Skip("the machine has no GPU".into()))?;
    let held = occupied(&job);
    let fits = held.total() * memory::ROOM <= machine_bytes(&case);
    let predicted = match row.metric {
        Metric::Step => found.step_s,
        Metric::LayerForward => found.layer_s.0 * 1e3,
        Metric::LayerBackward => found.layer_s.1 * 1e3,
        Metric::Memory if row.word("notes").contains("nvidia-smi") => held.total() / 1e9,
        Metric::Memory => held.allocated() / GIB,
        Metric::StateMemory => memory::layer_state(&job) / GIB,
        Metric::ActivationMemory => memory::kept_in_flight(&job) / GIB,
        Metric::ActivationShare => {
            100.0 * memory::kept_in_flight(&job) / memory::kept_by_tensor_parallelism_alone(&job)
        }
        Metric::Fits => f64::from(u8::from(fits)),
    };
    let spread = match row.metric {
        Metric::Fits => 0.0,
        metric if metric.timed() => {
            interval(found.spread(case.machine.gpu()), &case, unknown_pace_pct(case.stack))
        }
        _ => MEMORY_SPREAD,
    };
    Ok(Prediction {
        id: row.id().to_string(),
        group: row.word("group").to_string(),
        quality: row.word("quality").to_string(),
        stack: stack.name.clone(),
        kind: kind(&case.layout),
        measured,
        predicted,
        low: predicted * (1.0 - spread),
        high: predicted * (1.0 + spread),
        unit: row.metric.unit(),
        error_pct: match row.metric {
            Metric::Fits => (predicted - measured) * 100.0,
            _ => (predicted / measured - 1.0) * 100.0,
        },
        scored: scored(row),
        assumed: case.assumed.clone(),
        held_gib: held.total() / GIB,
        said_to_fit: matches!(row.metric, Metric::Step | Metric::Fits).then_some(fits),
        terms_s: found.terms_s.iter().map(|(name, seconds)| (*name, *seconds)).collect(),
    })
}
