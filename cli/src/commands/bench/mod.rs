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
use lapidary_runtime_gpu::bench::{self, Effort, Job, Jobs, Outcome};
use lapidary_runtime_gpu::compile::{Compiler, Online, digest};
use std::path::Path;
use std::time::SystemTime;

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

/// Everything.
const ALL: [What; 9] = [
    What::Gemm,
    What::Attention,
    What::Norm,
    What::Swiglu,
    What::Rope,
    What::CrossEntropy,
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
    let goal = Goal { arch: device.about().arch.clone(), processors: device.about().processors.into() };
    let jobs = jobs(args, &models, &goal)?;
    let effort = Effort { samples: args.samples as usize, ..Effort::default() };
    let mut told = |line: &str| {
        if !global.quiet {
            eprintln!("{line}");
        }
    };
    let outcome = bench::run(device.as_mut(), &jobs, &effort, &today(), &mut told)
        .map_err(|error| gpu::failure(&error))?;
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

/// Everything that is asked for, for one architecture.
fn jobs(args: &Args, models: &[ModelSpec], goal: &Goal) -> Result<Jobs, Failure> {
    let asked: Vec<What> = if args.what.is_empty() { ALL.to_vec() } else { args.what.clone() };
    let mut jobs = Jobs { ceiling: cases::large_products(args.ceiling.into(), goal)?, ..Jobs::default() };
    if args.what.is_empty() {
        jobs.checks = models::checks(goal)?;
    }
    for what in asked {
        for spec in models {
            let size = cases::Size { batch: args.batch.into(), seq: args.seq_len };
            let made: Vec<Job> = match what {
                What::Decode => models::decode(spec, args.seq_len, &args.decode_batch, goal)?,
                What::Prefill => models::prefill(spec, size, goal)?,
                What::TrainStep => models::train_step(spec, size, goal)?,
                _ => cases::kernels(what, spec, size, goal)?,
            };
            // Models of the same sizes have the same kernels.
            let known = |job: &Job| {
                jobs.jobs.iter().any(|other| (&other.kernel, &other.shape) == (&job.kernel, &job.shape))
            };
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
        let goal = Goal { arch: arch.clone(), processors };
        let jobs = jobs(args, models, &goal)?;
        let programs = jobs.checks.iter().map(|check| &check.sources);
        let texts = programs.chain(jobs.ceiling.iter().chain(&jobs.jobs).map(|job| &job.sources));
        for texts in texts {
            let sources = bench::sources(texts);
            for (source, code) in sources.iter().zip(online.machine_code(&sources, arch)) {
                let code = code.map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
                artifact.add(format!("{arch}/{}.cubin", digest(source, arch)), code);
            }
        }
        artifact.add_json(&format!("{arch}/jobs.json"), &jobs)?;
    }
    artifact.write(place)
}

/// Today, as `2026-11-22`.
fn today() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    bench::day_of(now.map_or(0, |since| since.as_secs()))
}
