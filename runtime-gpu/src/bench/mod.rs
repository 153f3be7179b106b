//! Kernels and programs measured on a device against what the device can do, and held against expected values.
//!
//! ```text
//! Job: a program, what its inputs are --check--> how far its output is from what is expected
//!                                     --measure--> median and spread of its time, caches cold, random data
//! ceilings: a copy within the device, the best of some large products --> share of the time that they allow
//! ```
//! A list of jobs is plain data: it can be made on one machine and run on another, with machine code made beforehand.
use crate::compile::Source;
use crate::device::{Device, DeviceError};
use crate::generate::Part;
use crate::program::{GpuProgram, Step};
use lapidary_hardware::calibrate::bench::{Bench, Ceilings, Measurement, SCHEMA, Skipped, Unit, VERSION};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod check;
mod data;
mod measure;

pub use check::{CheckJob, CheckResult, check};
pub use data::{Seeded, seeded};
pub use measure::{Effort, Timing, copy_rate, measure};

/// A kernel's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Name and entry point.
    pub name: String,
    /// CUDA C++.
    pub text: String,
}

/// Something to be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What it is: `gemm`, `attention-forward`, `norm`, `decode`, ...
    pub kernel: String,
    /// Its sizes by name.
    pub shape: BTreeMap<String, u64>,
    /// Element type.
    pub dtype: String,
    /// What runs.
    pub program: GpuProgram,
    /// The texts of its kernels.
    pub sources: Vec<Text>,
    /// Inputs of whole numbers (tokens, labels): random values below these.
    pub below: BTreeMap<String, u64>,
    /// Inputs whose values are given.
    pub given: BTreeMap<String, Vec<f64>>,
    /// Floating-point operations of a run.
    pub flops: u64,
    /// Bytes that a run must move.
    pub bytes: u64,
    /// Tokens that a run makes or takes, for whole models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

impl Job {
    /// A job whose operations and bytes are those that its program's kernels state.
    pub fn new(kernel: &str, shape: &[(&str, u64)], dtype: &str, part: Part) -> Job {
        let program = part.program.into_inner();
        let (flops, bytes) = work(&program, &program.steps);
        Job {
            kernel: kernel.into(),
            shape: shape.iter().map(|(name, size)| (name.to_string(), *size)).collect(),
            dtype: dtype.into(),
            sources: part.sources.into_iter().map(|s| Text { name: s.name, text: s.text }).collect(),
            program,
            below: BTreeMap::new(),
            given: BTreeMap::new(),
            flops,
            bytes,
            tokens: None,
        }
    }
}

/// The texts as a compiler takes them.
pub fn sources(texts: &[Text]) -> Vec<Source> {
    texts.iter().map(|text| Source { name: text.name.clone(), text: text.text.clone() }).collect()
}

/// Operations and bytes of steps, repeats counted out.
fn work(program: &GpuProgram, steps: &[Step]) -> (u64, u64) {
    steps.iter().fold((0, 0), |(flops, bytes), step| {
        let (more_flops, more_bytes) = match step {
            Step::Repeat { times, body, .. } => {
                let (flops, bytes) = work(program, body);
                (flops * times, bytes * times)
            }
            _ => {
                let kernel = step.kernel().and_then(|name| program.kernel(name));
                kernel.map_or((0, 0), |kernel| (kernel.flops, kernel.bytes))
            }
        };
        (flops + more_flops, bytes + more_bytes)
    })
}

/// What is to be run: checks first, then the products that are the ceiling, then everything else.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Jobs {
    /// Programs whose output is known.
    pub checks: Vec<CheckJob>,
    /// Large products, of which the best is the ceiling.
    pub ceiling: Vec<Job>,
    /// What is measured against the ceilings.
    pub jobs: Vec<Job>,
}

/// What a run of jobs gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Of every check.
    pub checks: Vec<CheckResult>,
    /// Every measurement.
    pub bench: Bench,
}

/// Runs everything. `told` sees a line about each thing as soon as it is done; `date` is the day, as `2026-11-22`.
///
/// # Errors
/// When the device cannot copy; what one job cannot do is among those skipped.
pub fn run(
    device: &mut dyn Device,
    jobs: &Jobs,
    effort: &Effort,
    date: &str,
    told: &mut dyn FnMut(&str),
) -> Result<Outcome, DeviceError> {
    let mut skipped = Vec::new();
    let mut checks = Vec::new();
    for job in &jobs.checks {
        match check(device, job) {
            Ok(result) => {
                told(&result.to_string());
                checks.push(result);
            }
            Err(error) => skipped.push(Skipped { kernel: job.name.clone(), why: error.to_string() }),
        }
    }
    let copy = copy_rate(device, effort)?;
    told(&format!("copy {:.1} GB/s", copy / 1e9));
    let mut results = Vec::new();
    let mut product = 0f64;
    for job in &jobs.ceiling {
        match measure(device, job, effort) {
            Ok(timing) => product = product.max(job.flops as f64 / timing.median_s),
            Err(error) => skipped.push(Skipped { kernel: job.kernel.clone(), why: error.to_string() }),
        }
    }
    told(&format!("large product {:.1} TFLOP/s", product / 1e12));
    let ceilings = Ceilings { copy_bytes_per_s: copy, product_flops_per_s: product };
    for job in &jobs.jobs {
        match measure(device, job, effort) {
            Ok(timing) => {
                let one = measurement(job, &timing, &ceilings);
                told(&line(&one));
                results.push(one);
            }
            Err(error) => {
                told(&format!("{}: skipped: {error}", job.kernel));
                skipped.push(Skipped { kernel: job.kernel.clone(), why: error.to_string() });
            }
        }
    }
    results.extend(both_ways(&results));
    let device = device.about().product.clone();
    let (schema, date) = (SCHEMA.to_string(), date.to_string());
    let bench = Bench { schema, version: VERSION, device, date, results, ceilings: Some(ceilings), skipped };
    Ok(Outcome { checks, bench })
}

/// The rate that a job is limited by, and the share of the least time that the ceilings allow.
fn measurement(job: &Job, timing: &Timing, ceilings: &Ceilings) -> Measurement {
    let limit = |work: u64, rate: f64| if rate > 0.0 { work as f64 / rate } else { 0.0 };
    let (products, copies) =
        (limit(job.flops, ceilings.product_flops_per_s), limit(job.bytes, ceilings.copy_bytes_per_s));
    let (work, unit) = if products > copies { (job.flops, Unit::Flops) } else { (job.bytes, Unit::Bytes) };
    Measurement {
        kernel: job.kernel.clone(),
        shape: job.shape.clone(),
        dtype: job.dtype.clone(),
        median_s: timing.median_s,
        spread_pct: timing.spread_pct,
        achieved: work as f64 / timing.median_s,
        unit,
        share_pct: Some(100.0 * products.max(copies) / timing.median_s),
        tokens_per_s: job.tokens.map(|tokens| tokens as f64 / timing.median_s),
    }
}

/// Attention forward and backward together, where both were measured at the same sizes.
fn both_ways(results: &[Measurement]) -> Vec<Measurement> {
    let forward = results.iter().filter(|one| one.kernel == "attention-forward");
    let pair = |one: &Measurement| {
        let alike = |other: &&Measurement| {
            other.kernel == "attention-backward" && other.shape == one.shape && other.dtype == one.dtype
        };
        let other = results.iter().find(alike).filter(|other| other.unit == one.unit)?;
        let median_s = one.median_s + other.median_s;
        let together = |a: f64, b: f64| (a * one.median_s + b * other.median_s) / median_s;
        Some(Measurement {
            kernel: "attention".into(),
            median_s,
            spread_pct: one.spread_pct.max(other.spread_pct),
            achieved: together(one.achieved, other.achieved),
            share_pct: one.share_pct.zip(other.share_pct).map(|(a, b)| together(a, b)),
            ..one.clone()
        })
    };
    forward.filter_map(pair).collect()
}

/// A measurement in a line.
pub fn line(one: &Measurement) -> String {
    let sizes: Vec<String> = one.shape.iter().map(|(name, size)| format!("{name} {size}")).collect();
    let (rate, unit) = match one.unit {
        Unit::Flops => (one.achieved / 1e12, "TFLOP/s"),
        Unit::Bytes => (one.achieved / 1e9, "GB/s"),
    };
    let mut line = format!(
        "{} {} ({}): {:.3} ms +- {:.1} %, {rate:.1} {unit}",
        one.kernel,
        one.dtype,
        sizes.join(", "),
        one.median_s * 1e3,
        one.spread_pct
    );
    if let Some(share) = one.share_pct {
        line += &format!(", {share:.1} % of the ceiling");
    }
    if let Some(tokens) = one.tokens_per_s {
        line += &format!(", {tokens:.1} tokens/s");
    }
    line
}

/// The day of a number of seconds since 1970, as `2026-11-22` (Gregorian calendar; H. Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`).
pub fn day_of(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        let told: Vec<String> = [0, 951_782_400, 1_795_305_600, 4_102_444_800].map(day_of).to_vec();
        assert_eq!(told, ["1970-01-01", "2000-02-29", "2026-11-22", "2100-01-01"]);
    }

    #[test]
    fn attention_both_ways_takes_both_times() {
        let one = |kernel: &str, median_s, achieved| Measurement {
            kernel: kernel.into(),
            shape: BTreeMap::from([("seq".to_string(), 2048)]),
            dtype: "bf16".into(),
            median_s,
            spread_pct: 1.0,
            achieved,
            unit: Unit::Flops,
            share_pct: Some(50.0),
            tokens_per_s: None,
        };
        let both = both_ways(&[one("attention-forward", 1.0, 4.0), one("attention-backward", 3.0, 2.0)]);
        assert_eq!((both[0].kernel.as_str(), both[0].median_s, both[0].achieved), ("attention", 4.0, 2.5));
        assert!(both_ways(&[one("attention-forward", 1.0, 4.0)]).is_empty());
    }
}
