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

mod bundle;
mod check;
mod data;
mod measure;
mod roofline;
mod tunings;

pub use check::{CheckJob, CheckResult, check};
pub use data::{Seeded, seeded};
pub use measure::{Effort, Timing, copy_rate, measure};
pub use roofline::roofline;
pub use tunings::Tunings;

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
    /// Operations of a product's region, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<String>,
    /// The name under which the forms' times are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Other programs that do the same, the job's own among them: the fastest is measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
}

/// A program that does what another does in another form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The form.
    pub form: String,
    /// What runs.
    pub program: GpuProgram,
    /// The texts of its kernels.
    pub sources: Vec<Text>,
}

impl Candidate {
    /// A part under the name of its form.
    pub fn new(form: &str, part: Part) -> Candidate {
        Candidate { form: form.into(), program: part.program.into_inner(), sources: texts(part.sources) }
    }
}

fn texts(sources: Vec<Source>) -> Vec<Text> {
    sources.into_iter().map(|source| Text { name: source.name, text: source.text }).collect()
}

impl Job {
    /// The job with another of its forms.
    fn with(&self, candidate: &Candidate) -> Job {
        let Candidate { program, sources, .. } = candidate.clone();
        Job { program, sources, candidates: Vec::new(), ..self.clone() }
    }

    /// A job whose operations and bytes are those that its program's kernels state.
    pub fn new(kernel: &str, shape: &[(&str, u64)], dtype: &str, part: Part) -> Job {
        let program = part.program.into_inner();
        let (flops, bytes) = work(&program, &program.steps);
        Job {
            kernel: kernel.into(),
            shape: shape.iter().map(|(name, size)| (name.to_string(), *size)).collect(),
            dtype: dtype.into(),
            sources: texts(part.sources),
            program,
            below: BTreeMap::new(),
            given: BTreeMap::new(),
            flops,
            bytes,
            tokens: None,
            ops: None,
            product: None,
            candidates: Vec::new(),
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
    /// Times of all forms of products.
    pub tunings: Tunings,
}

/// The shares of a run's time by whose end checks, ceilings and single kernels are over; whole models have the rest.
const PARTS: [(&str, f64); 4] = [("checks", 0.25), ("ceilings", 0.3), ("kernels", 0.65), ("models", 1.0)];

/// A run of jobs, part by part.
pub struct Run<'r> {
    device: &'r mut dyn Device,
    effort: Effort,
    /// Seconds since the run began; the clock is the caller's.
    clock: &'r mut dyn FnMut() -> f64,
    told: &'r mut dyn FnMut(&str),
    checks: Vec<CheckResult>,
    results: Vec<Measurement>,
    skipped: Vec<Skipped>,
    ceilings: Ceilings,
    tunings: Tunings,
}

impl<'r> Run<'r> {
    /// A run that has done nothing. `told` sees a line about each thing as soon as it is done.
    pub fn new(
        device: &'r mut dyn Device,
        effort: Effort,
        clock: &'r mut dyn FnMut() -> f64,
        told: &'r mut dyn FnMut(&str),
    ) -> Run<'r> {
        let tunings = Tunings::new(&device.about().product, &device.about().driver);
        let ceilings = Ceilings { copy_bytes_per_s: 0.0, product_flops_per_s: 0.0 };
        let (checks, results, skipped) = (Vec::new(), Vec::new(), Vec::new());
        Run { device, effort, clock, told, checks, results, skipped, ceilings, tunings }
    }

    /// Leaves something out, and says so.
    fn skip(&mut self, kernel: &str, why: String) {
        (self.told)(&format!("{kernel}: skipped: {why}"));
        self.skipped.push(Skipped { kernel: kernel.into(), why });
    }

    /// Whether the time of a part is over.
    fn late(&mut self, part: usize) -> Option<String> {
        let (name, share) = PARTS[part];
        let until = self.effort.budget_s? * share;
        ((self.clock)() >= until).then(|| format!("the time of the {name}, until second {until:.0}, is over"))
    }

    /// Holds programs against what they have to leave.
    ///
    /// # Errors
    /// [`DeviceError::Image`] where machine code does not load: nothing else would run either.
    pub fn checks(&mut self, jobs: &[CheckJob]) -> Result<(), DeviceError> {
        for job in jobs {
            if let Some(why) = self.late(0) {
                self.skip(&job.name, why);
                continue;
            }
            match check(self.device, job) {
                Ok(result) => {
                    (self.told)(&result.to_string());
                    self.checks.push(result);
                }
                Err(error @ DeviceError::Image { .. }) => return Err(error),
                Err(error) => self.skip(&job.name, error.to_string()),
            }
        }
        Ok(())
    }

    /// Measures what the device can do: a copy, and the best of some products.
    ///
    /// # Errors
    /// When the device cannot copy, or machine code does not load.
    pub fn ceilings(&mut self, products: &[Job]) -> Result<(), DeviceError> {
        self.ceilings.copy_bytes_per_s = copy_rate(self.device, &self.effort)?;
        (self.told)(&format!("copy {:.1} GB/s", self.ceilings.copy_bytes_per_s / 1e9));
        for job in products {
            if let Some(why) = self.late(1) {
                self.skip("ceiling", why);
                continue;
            }
            match measure(self.device, job, &self.effort) {
                Ok(timing) => {
                    let rate = job.flops as f64 / timing.median_s;
                    self.ceilings.product_flops_per_s = self.ceilings.product_flops_per_s.max(rate);
                }
                Err(error @ DeviceError::Image { .. }) => return Err(error),
                // A library that is not there is no loss of the others.
                Err(error) => self.skip("ceiling", error.to_string()),
            }
        }
        (self.told)(&format!("large product {:.1} TFLOP/s", self.ceilings.product_flops_per_s / 1e12));
        Ok(())
    }

    /// Measures jobs; of those with several forms the fastest.
    ///
    /// # Errors
    /// [`DeviceError::Image`] where machine code does not load.
    pub fn measure(&mut self, jobs: &[Job]) -> Result<(), DeviceError> {
        for job in jobs {
            if let Some(why) = self.late(if job.tokens.is_some() { 3 } else { 2 }) {
                self.skip(&job.kernel, why);
                continue;
            }
            let (form, best) = self.fastest(job);
            match measure(self.device, best.as_ref().unwrap_or(job), &self.effort) {
                Ok(timing) => {
                    let one = Measurement { form, ..measurement(job, &timing, &self.ceilings) };
                    (self.told)(&line(&one));
                    self.results.push(one);
                }
                Err(error @ DeviceError::Image { .. }) => return Err(error),
                Err(error) => self.skip(&job.kernel, error.to_string()),
            }
        }
        Ok(())
    }

    /// The fastest form of a job, by a few runs of each; forms that do not run are passed over.
    fn fastest(&mut self, job: &Job) -> (Option<String>, Option<Job>) {
        let (samples, warm_up) = (self.effort.samples.min(7), self.effort.warm_up.min(2));
        let quick = Effort { samples, warm_up, most_s: 0.2, ..self.effort.clone() };
        let mut best: Option<(f64, &Candidate)> = None;
        for candidate in &job.candidates {
            let Ok(timing) = measure(self.device, &job.with(candidate), &quick) else { continue };
            if let Some(product) = &job.product {
                self.tunings.note(product, &candidate.form, timing.median_s);
            }
            if best.is_none_or(|(least, _)| timing.median_s < least) {
                best = Some((timing.median_s, candidate));
            }
        }
        best.map_or((None, None), |(_, candidate)| (Some(candidate.form.clone()), Some(job.with(candidate))))
    }

    /// What was measured so far of the forms of products.
    pub fn tunings(&self) -> &Tunings {
        &self.tunings
    }

    /// Everything that was found; `date` is the day, as `2026-11-22`.
    pub fn finish(mut self, date: &str) -> Outcome {
        self.results.extend(both_ways(&self.results));
        let device = self.device.about().product.clone();
        let (schema, date, ceilings) = (SCHEMA.to_string(), date.to_string(), Some(self.ceilings));
        let (results, skipped) = (self.results, self.skipped);
        let bench = Bench { schema, version: VERSION, device, date, results, ceilings, skipped };
        Outcome { checks: self.checks, bench, tunings: self.tunings }
    }
}

/// Runs everything.
///
/// # Errors
/// When the device cannot copy or machine code does not load; what one job cannot do is among those skipped.
pub fn run(mut run: Run<'_>, jobs: &Jobs, date: &str) -> Result<Outcome, DeviceError> {
    run.checks(&jobs.checks)?;
    run.ceilings(&jobs.ceiling)?;
    run.measure(&jobs.jobs)?;
    Ok(run.finish(date))
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
        flops: Some(job.flops),
        bytes: Some(job.bytes),
        ops: job.ops.clone(),
        form: None,
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
            flops: one.flops.zip(other.flops).map(|(a, b)| a + b),
            bytes: one.bytes.zip(other.bytes).map(|(a, b)| a + b),
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
            flops: Some(7),
            bytes: None,
            ops: None,
            form: None,
        };
        let both = both_ways(&[one("attention-forward", 1.0, 4.0), one("attention-backward", 3.0, 2.0)]);
        assert_eq!((both[0].kernel.as_str(), both[0].median_s, both[0].achieved), ("attention", 4.0, 2.5));
        assert!(both_ways(&[one("attention-forward", 1.0, 4.0)]).is_empty());
    }
}
