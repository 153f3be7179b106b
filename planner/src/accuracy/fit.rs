//! Fits the constants of physics and the pace of each software stack to a table, and says what a group's error is
//! when that group was left out.
//!
//! The measure is the mean over groups of the group's mean absolute error, on scored times. Each constant moves
//! within its range, one after the other, by steps that shrink; the same table gives the same constants.

use super::campaign::Campaigns;
use super::case::Case;
use super::document::LeftOut;
use super::like::{Bars, bars, kind, pace_spread_pct, unknown_pace_pct};
use super::row::{Metric, Row};
use super::score::{interval, scored};
use crate::step::physics::{Constant, table};
use crate::step::{Physics, Stack, estimate};
use std::collections::{BTreeMap, BTreeSet};

/// Constants of physics and paces of stacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Constants {
    /// The constants of physics.
    pub physics: Physics,
    /// The pace of each stack.
    pub paces: BTreeMap<String, f64>,
}

/// Weight of the root mean square beside the mean absolute error.
const SQUARES: f64 = 1.0;
/// Percent of error that a constant must gain to go from its prior to the other end of its range: a constant that the
/// rows say little about stays where measurements outside of training put it.
const RIDGE: f64 = 1.0;
/// Percent of error that a step of a constant must gain: below that rows decide nothing, and constants stay.
const GAIN: f64 = 0.01;
/// First step, as a part of the range, and the factor by which steps shrink.
const STEPS: [f64; 4] = [0.2, 0.08, 0.03, 0.012];

impl Constants {
    /// The constants that come with the program.
    pub fn builtin() -> Constants {
        let paces = Stack::builtin().iter().map(|stack| (stack.name.clone(), stack.constant())).collect();
        Constants { physics: Physics::builtin(), paces }
    }

    /// A stack with its pace among these.
    pub fn stack(&self, stack: &Stack) -> Stack {
        stack.with_constant(self.paces.get(&stack.name).copied().unwrap_or(stack.constant()))
    }
}

/// A measurement that is fitted.
struct Sample {
    group: String,
    case: Case,
    metric: Metric,
    measured: f64,
}

/// The measurements of a table that a fit may use.
pub struct Samples {
    rows: Vec<Sample>,
    /// Constants with a prior: name, its value, width of the range.
    priors: Vec<(String, f64, f64)>,
}

impl Samples {
    /// Scored times of a table.
    pub fn new(rows: &[Row]) -> Samples {
        let campaigns = Campaigns::of(rows);
        let sample = |row: &Row| {
            let mut case = Case::new(row, &campaigns).ok()?;
            case.close(&Physics::builtin());
            let group = row.word("group").to_string();
            Some(Sample { group, case, metric: row.metric, measured: row.measured? })
        };
        let timed = rows.iter().filter(|row| row.metric.timed() && scored(row));
        Samples { rows: timed.filter_map(sample).collect(), priors: priors() }
    }

    /// Names of the groups.
    pub fn groups(&self) -> BTreeSet<&str> {
        self.rows.iter().map(|sample| sample.group.as_str()).collect()
    }

    /// Mean absolute error of each group, and the part of its rows that their intervals cover, percent.
    fn group_errors(
        &self,
        constants: &Constants,
        only: impl Fn(&Sample) -> bool,
        unknown: impl Fn(&Sample) -> f64,
    ) -> BTreeMap<&str, (f64, f64)> {
        let mut sums: BTreeMap<&str, (f64, f64, f64)> = BTreeMap::new();
        for sample in self.rows.iter().filter(|sample| only(sample)) {
            let (error, spread) = sample.outcome(constants, unknown(sample));
            let covered = f64::from(u8::from(error <= spread));
            let sum = sums.entry(&sample.group).or_default();
            *sum = (sum.0 + error, sum.1 + 100.0 * covered, sum.2 + 1.0);
        }
        sums.into_iter().map(|(group, sum)| (group, (sum.0 / sum.2, sum.1 / sum.2))).collect()
    }

    /// Mean over groups of the group's mean absolute error and, so that no row is given up, a part of its root mean
    /// square.
    fn loss(&self, constants: &Constants, without: Option<&str>) -> f64 {
        let mut sums: BTreeMap<&str, (f64, f64, f64)> = BTreeMap::new();
        for sample in self.rows.iter().filter(|sample| Some(sample.group.as_str()) != without) {
            let error = sample.error_pct(constants);
            let sum = sums.entry(&sample.group).or_default();
            *sum = (sum.0 + error, sum.1 + error * error, sum.2 + 1.0);
        }
        // A constant that a single run is fitted by would explain nothing.
        sums.retain(|_, (_, _, count)| *count > 1.0);
        let of = |(sum, squares, count): &(f64, f64, f64)| sum / count + SQUARES * (squares / count).sqrt();
        sums.values().map(of).sum::<f64>() / sums.len().max(1) as f64 + self.surprise(constants)
    }

    /// What leaving the priors costs: [`RIDGE`] for a constant at the other end of its range.
    fn surprise(&self, constants: &Constants) -> f64 {
        let of = |(name, prior, width): &(String, f64, f64)| {
            let value = constants.physics.get(name).unwrap_or(*prior);
            ((value - prior) / width).powi(2)
        };
        RIDGE * self.priors.iter().map(of).sum::<f64>()
    }

    /// The constants of least loss near `start`, the group `without` not looked at. A stack that only this
    /// group runs takes the neutral value of its number.
    pub fn fit(&self, start: &Constants, without: Option<&str>) -> Constants {
        let ranges = table();
        let fitted: Vec<(&str, (f64, f64))> =
            ranges.iter().filter_map(|(name, constant)| Some((name.as_str(), constant.range?))).collect();
        let seen = |name: &str| {
            let used = |sample: &&Sample| sample.case.stack.name == name;
            self.rows
                .iter()
                .filter(|sample| Some(sample.group.as_str()) != without)
                .any(|sample| used(&sample))
        };
        let mut best = start.clone();
        for (name, pace) in &mut best.paces {
            if !seen(name) {
                *pace = neutral(name);
            }
        }
        let paces: Vec<String> = best.paces.keys().filter(|name| seen(name)).cloned().collect();
        let mut least = self.loss(&best, without);
        for step in STEPS {
            for (name, range) in &fitted {
                let set = |constants: &mut Constants, value| {
                    if let Some(place) = constants.physics.get_mut(name) {
                        *place = value;
                    }
                };
                let value = best.physics.get(name).unwrap_or(range.0);
                self.walk(&mut best, &mut least, without, *range, step, value, set);
            }
            for name in &paces {
                let set = |constants: &mut Constants, value| {
                    constants.paces.insert(name.clone(), value);
                };
                let value = best.paces[name];
                let range = Stack::named(name).map_or((value, value), |stack| stack.constant_range().0);
                self.walk(&mut best, &mut least, without, range, step * 0.5, value, set);
            }
        }
        best
    }

    /// Moves one constant both ways while that helps.
    #[allow(clippy::too_many_arguments)]
    fn walk(
        &self,
        best: &mut Constants,
        least: &mut f64,
        without: Option<&str>,
        (low, high): (f64, f64),
        step: f64,
        mut value: f64,
        set: impl Fn(&mut Constants, f64),
    ) {
        for direction in [1.0, -1.0] {
            loop {
                let next = (value + direction * step * (high - low)).clamp(low, high);
                if next == value {
                    break;
                }
                let mut tried = best.clone();
                set(&mut tried, next);
                let loss = self.loss(&tried, without);
                if loss > *least - GAIN {
                    break;
                }
                (*best, *least, value) = (tried, loss, next);
            }
        }
    }

    /// For each group the constants that are fitted without it, from `start`.
    pub fn without_each(&self, start: &Constants) -> BTreeMap<String, Constants> {
        self.groups().into_iter().map(|group| (group.to_string(), self.fit(start, Some(group)))).collect()
    }

    /// For each group its error under `constants`, and under those that were fitted without it.
    pub fn left_out(
        &self,
        constants: &Constants,
        without: &BTreeMap<String, Constants>,
    ) -> BTreeMap<String, LeftOut> {
        let fitted = self.group_errors(constants, |_| true, |sample| unknown_pace_pct(sample.case.stack));
        let of = |(group, without): (&String, &Constants)| {
            // Software that no other group runs is as good as unknown.
            let unknown = |sample: &Sample| match self.elsewhere(&sample.case.stack.name, group) {
                true => unknown_pace_pct(sample.case.stack),
                false => pace_spread_pct(),
            };
            let errors = self.group_errors(without, |sample| sample.group == *group, unknown);
            let (left_out_pct, covered_pct) = errors[group.as_str()];
            (group.clone(), LeftOut { fitted_pct: fitted[group.as_str()].0, left_out_pct, covered_pct })
        };
        without.iter().map(of).collect()
    }

    /// Whether runs of another group than `group` ran a stack.
    fn elsewhere(&self, name: &str, group: &str) -> bool {
        self.rows.iter().any(|other| other.case.stack.name == name && other.group != group)
    }

    /// Error bars by kind of run, every group predicted under the constants that were fitted without it. Its software's
    /// number stays where no other group runs that: what unknown software adds is not in these bars.
    pub fn bars(&self, known: &Constants, without: &BTreeMap<String, Constants>) -> Bars {
        let miss = |sample: &Sample| {
            let (name, mut constants) = (&sample.case.stack.name, without[&sample.group].clone());
            if !self.elsewhere(name, &sample.group) {
                constants.paces.insert(name.clone(), known.paces[name]);
            }
            (kind(&sample.case.layout), sample.group.clone(), sample.error_pct(&constants))
        };
        bars(self.rows.iter().map(miss))
    }
}

/// The value of a stack's number that means nothing special.
fn neutral(name: &str) -> f64 {
    Stack::named(name).map_or(1.0, |stack| stack.constant_range().1)
}

fn priors() -> Vec<(String, f64, f64)> {
    let of = |(name, constant): (String, Constant)| {
        let (low, high) = constant.range?;
        Some((name, constant.prior?.value, high - low))
    };
    table().into_iter().filter_map(of).collect()
}

impl Sample {
    fn error_pct(&self, constants: &Constants) -> f64 {
        self.outcome(constants, 0.0).0
    }

    /// Absolute error, and how far the measurement may be off for the interval to cover it; both percent.
    fn outcome(&self, constants: &Constants, unknown_pace_pct: f64) -> (f64, f64) {
        let stack = constants.stack(self.case.stack);
        let Some(found) = estimate(&self.case.job(&constants.physics, &stack)) else { return (100.0, 0.0) };
        let predicted = match self.metric {
            Metric::LayerForward => found.layer_s.0 * 1e3,
            Metric::LayerBackward => found.layer_s.1 * 1e3,
            _ => found.step_s,
        };
        let error = (predicted / self.measured - 1.0).abs() * 100.0;
        // The interval is around the prediction.
        let spread = interval(found.spread(self.case.machine.gpu()), &self.case, unknown_pace_pct);
        (error, spread * predicted / self.measured * 100.0)
    }
}
