//! The report of `lapidary accuracy a100-training`: rows, errors by group and overall, and the gate.

use super::score::{Errors, Prediction, Report, SCHEMA, Skipped, errors};
use serde::Serialize;
use std::collections::BTreeMap;

/// Version of the document.
pub const VERSION: u32 = 1;

/// What the gate asks for.
mod gate {
    /// Mean over groups of the group's mean absolute error, percent.
    pub const GROUPS: f64 = 5.0;
    /// 95th percentile of the absolute error of times, percent.
    pub const P95: f64 = 15.0;
    /// Mean absolute error of memory, percent.
    pub const MEMORY: f64 = 7.0;
    /// Runs that fit and are said not to, percent of those that fit.
    pub const WRONG_DOES_NOT_FIT: f64 = 5.0;
}

/// Verdicts about runs that fit or do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Fits {
    /// Rows that say whether a run fits.
    pub rows: usize,
    /// Times of steps, each of a run that fitted.
    pub ran: usize,
    /// Runs that ran out of memory, and are said to fit.
    pub wrong_fits: usize,
    /// Runs that fit, and are said not to.
    pub wrong_does_not_fit: usize,
    /// Those in percent of the runs that fit.
    pub wrong_does_not_fit_pct: f64,
}

/// One demand of the gate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What is demanded.
    pub name: &'static str,
    /// What was found.
    pub value: f64,
    /// What is allowed: at most this, and for coverage at least.
    pub limit: f64,
    /// Whether it is kept.
    pub ok: bool,
}

/// A group's error where it was left out of the fit, beside its error with it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    /// Mean absolute error of the fit on all groups, percent.
    pub fitted_pct: f64,
    /// Mean absolute error of the fit on all other groups, percent.
    pub left_out_pct: f64,
    /// Part of its rows that their intervals cover then, percent.
    pub covered_pct: f64,
}

/// The document. The figures at its head are of scored times.
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
    /// Mean over groups of their mean absolute errors, percent.
    pub mean_of_groups_pct: f64,
    /// Times whose interval covers the measurement, percent.
    pub covered_pct: f64,
    /// Scored rows with a prediction, percent.
    pub coverage_pct: f64,
    /// Errors of scored times by group.
    pub groups: BTreeMap<String, Errors>,
    /// Errors of scored memory.
    pub memory: Errors,
    /// Verdicts about what fits.
    pub fits: Fits,
    /// What the gate demands.
    pub gate: Vec<Check>,
    /// By group, where it was asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, LeftOut>,
    /// Every prediction.
    pub rows: Vec<Prediction>,
    /// Every row without one.
    pub skipped: Vec<Skipped>,
}

impl Document {
    /// The document of a report.
    pub fn new(table: &'static str, report: Report) -> Document {
        let scored = || report.rows.iter().filter(|row| row.scored);
        let timed = || scored().filter(|row| matches!(row.unit, "s" | "ms"));
        let all = errors(timed());
        let mut by_group: BTreeMap<String, Vec<&Prediction>> = BTreeMap::new();
        timed().for_each(|row| by_group.entry(row.group.clone()).or_default().push(row));
        let groups: BTreeMap<String, Errors> =
            by_group.into_iter().map(|(name, rows)| (name, errors(rows.into_iter()))).collect();
        let mean = groups.values().map(|errors| errors.mape_pct).sum::<f64>() / groups.len().max(1) as f64;
        let lost = report.skipped.iter().filter(|row| row.scored).count();
        let found = scored().count();
        let mut document = Document {
            schema: SCHEMA,
            version: VERSION,
            table,
            mape_pct: all.mape_pct,
            median_pct: all.median_pct,
            p95_pct: all.p95_pct,
            max_pct: all.max_pct,
            mean_of_groups_pct: mean,
            covered_pct: all.covered_pct,
            coverage_pct: 100.0 * found as f64 / (found + lost).max(1) as f64,
            memory: errors(scored().filter(|row| matches!(row.unit, "GB" | "GiB" | "%"))),
            fits: fits(scored().filter(|row| row.said_to_fit.is_some())),
            groups,
            gate: Vec::new(),
            left_out: BTreeMap::new(),
            rows: report.rows,
            skipped: report.skipped,
        };
        document.gate = document.checks();
        document
    }

    /// Whether every demand is kept.
    pub fn passed(&self) -> bool {
        self.gate.iter().all(|check| check.ok)
    }

    fn checks(&self) -> Vec<Check> {
        let most = |name, value: f64, limit: f64| Check { name, value, limit, ok: value <= limit };
        let covered = self.coverage_pct;
        vec![
            most("mean over groups, percent", self.mean_of_groups_pct, gate::GROUPS),
            most("95th percentile, percent", self.p95_pct, gate::P95),
            Check { name: "coverage, percent", value: covered, limit: 100.0, ok: covered >= 100.0 },
            most("memory, percent", self.memory.mape_pct, gate::MEMORY),
            most("wrong fits", self.fits.wrong_fits as f64, 0.0),
            most("wrong does not fit, percent", self.fits.wrong_does_not_fit_pct, gate::WRONG_DOES_NOT_FIT),
        ]
    }
}

fn fits<'a>(rows: impl Iterator<Item = &'a Prediction>) -> Fits {
    let mut found = Fits::default();
    let mut fitting = 0;
    for row in rows {
        let printed = row.unit == "fits";
        let (said, fits) = (row.said_to_fit == Some(true), !printed || row.measured > 0.5);
        found.rows += usize::from(printed);
        found.ran += usize::from(!printed);
        fitting += usize::from(fits);
        found.wrong_fits += usize::from(said && !fits);
        found.wrong_does_not_fit += usize::from(!said && fits);
    }
    found.wrong_does_not_fit_pct = 100.0 * found.wrong_does_not_fit as f64 / fitting.max(1) as f64;
    found
}
