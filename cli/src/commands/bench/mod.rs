//! `lapidary bench`: kernels and whole models measured on a GPU, as the compiler makes them.
//!
//! ```text
//! cases (kernels alone) + models (decode, prefill, training step) --> Jobs --on this GPU--> document lapidary/bench
//!                                                                         --bundle--> a folder for a GPU elsewhere
//! ```

mod cases;
mod compare;
mod models;
mod sketch;
#[cfg(test)]
mod tests;

use super::print_json;
use crate::args::{Bench as Args, Global, Target};
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::{gpu, input, toolchain};
use compare::Comparison;
use lapidary_hardware::calibrate::CalibrationError;
use lapidary_hardware::calibrate::bench::Bench;
use lapidary_models::ModelSpec;
use lapidary_runtime_gpu::bench::{self, Effort, Job, Jobs, Outcome, Run};
use lapidary_runtime_gpu::compile::{Compiler, Online};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Instant, SystemTime};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum What {
    /// Products with what follows them, of every shape of the models' layers.
    Gemm,
    /// Attention forward and backward.
    Attention,
    /// A residual sum and the norm behind it.
    Norm,
    /// The gated activation.
    Swiglu,
    /// Rotation of queries.
    Rope,
    /// The loss and its derivative by the logits.
    CrossEntropy,
    /// One token behind a cache.
    Decode,
    /// A prompt into a cache.
    Prefill,
    /// A whole training step.
    TrainStep,
}

impl What {
    /// Whether it is measured with all of a model.
    fn is_whole(&self) -> bool {
        matches!(self, What::Decode | What::Prefill | What::TrainStep)
    }
}

/// Everything; products, which have the most forms, behind the other kernels.
const ALL: [What; 9] = [
    What::Attention,
    What::Norm,
    What::Swiglu,
    What::Rope,
    What::CrossEntropy,
    What::Gemm,
    What::Decode,
    What::Prefill,
    What::TrainStep,
];

/// What kernels are made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Architecture.
    pub arch: String,
    /// Multiprocessors.
    pub processors: u64,
    /// The fastest forms of products that were measured on this GPU.
    pub measured: BTreeMap<String, String>,
    /// Whether layers' weights are whole numbers.
    pub int8: bool,
}

impl Goal {
    /// An architecture and its multiprocessors; nothing measured, weights as they are.
    pub fn new(arch: &str, processors: u64) -> Goal {
        Goal { arch: arch.into(), processors, measured: BTreeMap::new(), int8: false }
    }

    fn int8(&self) -> Goal {
        Goal { int8: true, ..self.clone() }
    }
}

/// Runs the verb.
///
/// # Errors
/// Exit 3 for models and baselines that are none, 5 for another target, 6 where something is slower than the baseline or a
/// check fails, 7 where there is no GPU.
pub fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    if args.target != Target::A100 {
        let what = format!("bench --target {}: only GPUs are measured", super::compile::name(args.target));
        return Err(Failure::new(Exit::Unsupported, what));
    }
    let models = args.model.iter().map(|name| Ok(input::runnable_model(name)?.spec));
    let models: Vec<ModelSpec> = models.collect::<Result<_, Failure>>()?;
    let baseline = args.baseline.as_deref().map(read).transpose()?;
    if let Some(place) = &args.bundle {
        return bundle(args, global, &models, place);
    }
    let mut device = gpu::open(super::jobs(global))?;
    let about = device.about().clone();
    let mut goal = Goal::new(&about.arch, about.processors.into());
    let effort = Effort { samples: args.samples as usize, ..Effort::default() };
    let mut told = |line: &str| {
        if !global.quiet {
            eprintln!("{line}");
        }
    };
    let began = Instant::now();
    let mut clock = || began.elapsed().as_secs_f64();
    let kernels = jobs(args, &models, &goal, &|what| !what.is_whole())?;
    let mut run = Run::new(device.as_mut(), effort, &mut clock, &mut told);
    let failed = |error| gpu::failure(&error);
    run.checks(&kernels.checks).map_err(failed)?;
    run.ceilings(&kernels.ceiling).map_err(failed)?;
    run.measure(&kernels.jobs).map_err(failed)?;
    // Whole models are made of the forms that were the fastest, in this run or an earlier one.
    let mut tunings = toolchain::tunings(&about.product, &about.driver);
    tunings.merge(run.tunings().clone());
    goal.measured = tunings.fastest();
    run.measure(&jobs(args, &models, &goal, &What::is_whole)?.jobs).map_err(failed)?;
    let outcome = run.finish(&today());
    if !outcome.tunings.median_s.is_empty() {
        toolchain::keep_tunings(&tunings)?;
    }
    tell(args, &outcome, baseline.as_ref())
}

/// Prints what came out, and fails where it fails.
fn tell(args: &Args, outcome: &Outcome, baseline: Option<&Bench>) -> Result<(), Failure> {
    match args.json {
        true => print_json(&outcome.bench)?,
        false => outcome.bench.results.iter().for_each(|one| println!("{}", bench::line(one))),
    }
    if let Some(wrong) = outcome.checks.iter().find(|check| !check.ok) {
        return Err(Failure::new(Exit::GateFailed, wrong.to_string()));
    }
    let Some(baseline) = baseline else { return Ok(()) };
    let comparison = Comparison::new(&outcome.bench, baseline, args.tolerance);
    eprint!("{comparison}");
    match comparison.slower().next() {
        Some(one) => Err(Failure::new(Exit::GateFailed, format!("slower than the baseline: {one}"))),
        None => Ok(()),
    }
}

fn read(file: &Path) -> Result<Bench, Failure> {
    let refused = |error: CalibrationError| Failure::new(Exit::InvalidInput, error.to_string());
    Bench::read(&input::read(file)?, &file.display().to_string()).map_err(refused)
}

/// Everything that is asked for and `wanted`, for one architecture.
fn jobs(
    args: &Args,
    models: &[ModelSpec],
    goal: &Goal,
    wanted: &dyn Fn(&What) -> bool,
) -> Result<Jobs, Failure> {
    let mut asked: Vec<What> = if args.what.is_empty() { ALL.to_vec() } else { args.what.clone() };
    asked.retain(wanted);
    let mut jobs = Jobs { ceiling: cases::large_products(args.ceiling.into(), goal)?, ..Jobs::default() };
    if args.what.is_empty() {
        jobs.checks = models::checks(goal)?;
    }
    for what in asked {
        for spec in models {
            let size = cases::Size { batch: args.batch.into(), seq: args.seq_len };
            let made: Vec<Job> = match what {
                What::Gemm => {
                    let mut made = cases::kernels(what, spec, size, goal)?;
                    made.extend(cases::products_of_decoding(spec, args.seq_len, &args.decode_batch, goal)?);
                    made
                }
                What::Decode => {
                    let mut made = models::decode(spec, args.seq_len, &args.decode_batch, goal)?;
                    made.extend(models::decode(spec, args.seq_len, &args.decode_batch[..1], &goal.int8())?);
                    made
                }
                What::Prefill => models::prefill(spec, size, goal)?,
                What::TrainStep => models::train_step(spec, size, goal)?,
                _ => cases::kernels(what, spec, size, goal)?,
            };
            // Models of the same sizes have the same kernels.
            fn same(job: &Job) -> impl PartialEq + '_ {
                (&job.kernel, &job.shape, &job.dtype, &job.ops)
            }
            let known = |job: &Job| jobs.jobs.iter().any(|other| same(other) == same(job));
            let fresh: Vec<Job> = made.into_iter().filter(|job| !known(job)).collect();
            jobs.jobs.extend(fresh);
        }
    }
    Ok(jobs)
}

/// Everything that a GPU elsewhere needs: the jobs, and the machine code of every kernel.
fn bundle(args: &Args, global: &Global, models: &[ModelSpec], place: &Path) -> Result<(), Failure> {
    let nvrtc = toolchain::nvrtc().map_err(|error| Failure::new(Exit::Missing, error.to_string()))?;
    let online = Online { nvrtc, cache: toolchain::kernel_cache(), jobs: super::jobs(global) };
    let mut artifact = Artifact::default();
    for arch in &args.arch {
        let machine = if arch == "sm_80" { "a100-80gb" } else { "h200" };
        let spec = input::machine(machine)?;
        let processors = spec.gpu().map_or(108, |gpu| gpu.multiprocessor.count);
        let goal = Goal::new(arch, processors);
        let mut jobs = jobs(args, models, &goal, &|_| true)?;
        let (names, sources): (Vec<String>, Vec<_>) = jobs.by_digest(arch).into_iter().unzip();
        for (name, code) in names.iter().zip(online.machine_code(&sources, arch)) {
            let code = code.map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
            artifact.add(format!("{arch}/{name}.cubin"), code);
        }
        // In one line: expected values are many.
        let text = serde_json::to_string(&jobs)
            .map_err(|error| Failure::new(Exit::Internal, format!("jobs: {error}")))?;
        artifact.add(format!("{arch}/jobs.json"), text);
        if !global.quiet {
            eprintln!(
                "{arch}: {} checks, {} jobs, {} kernels",
                jobs.checks.len(),
                jobs.jobs.len(),
                names.len()
            );
        }
    }
    artifact.write(place)
}

/// Today, as `2026-11-22`.
fn today() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    bench::day_of(now.map_or(0, |since| since.as_secs()))
}
