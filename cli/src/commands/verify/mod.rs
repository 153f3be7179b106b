//! `lapidary verify`: a model on a device against stored tensors of a reference implementation.

mod bisect;
mod check;
mod compiled;
mod cuda;
mod device;
mod directory;
mod gradients;
mod interpreted;
mod report;
mod settings;
mod simulated;
mod spread;
mod spread_step;
#[cfg(test)]
mod tests;
mod turns;
mod views;

use super::print_json;
use crate::args::{Device, Global, Precision, Verify};
use crate::failure::{Exit, Failure};
use crate::gpu::{self, Gpu};
use crate::host::{self, Switches};
use crate::memory;
use crate::progress::Progress;
use crate::ranks::{self, Job};
use crate::wafer::Simulator;
use crate::weights::{self, Opened};
use bisect::{Bisection, Suspects};
use check::{Checks, Tolerances, check};
use compiled::Compiled;
use cuda::OnGpu;
use directory::Directory;
use gradients::{GradientChecks, Making};
use interpreted::Interpreted;
use lapidary_models::autodiff::Recompute;
use lapidary_models::{DType, Dims, Graph, Mode};
use lapidary_passes::{Fusion, Mup};
use lapidary_runtime_cpu::program::WeightType;
use lapidary_runtime_cpu::{Engine, LoadOptions};
use lapidary_runtime_mpi::Degrees;
use report::{Report, Run};
use settings::{Setting, every};
use simulated::Simulated;
use spread::Spread;
use std::time::Duration;

/// Runs the verb.
///
/// # Errors
/// Exit 3 for a directory that is not of the form, 5 and 7 for devices that cannot be verified, 6 when something differs.
pub fn run(args: &Verify, global: &Global) -> Result<(), Failure> {
    runnable(args)?;
    if let (Some(degrees), Device::Cuda) = (args.plan, args.device) {
        return on_gpus(args, global, degrees);
    }
    if let Some(degrees) = args.plan {
        return ranks::among(degrees, Duration::from_secs(args.patience), |job| spread(args, global, job));
    }
    let switches = Switches { mup: args.mup.into(), fusion: args.fuse.clone() };
    let directory = Directory::open(&args.dir)?;
    let settings = match args.all_switches {
        true => every(args.device, &directory.spec),
        false => {
            let (precision, grid, mode) = (precision(args)?, args.grid, args.mode);
            vec![Setting { switches, engine: Engine::Compiled, precision, grid, mode }]
        }
    };
    fits(args, &directory, &settings[0])?;
    let report = weights::with(&directory.folder, &directory.spec, |weights| {
        let mut progress = Progress::new(global, settings.len() as u64);
        let verifier = Verifier { args, directory: &directory, weights, jobs: super::jobs(global) };
        let (runs, left_out) = verifier.runs(&settings, &mut progress)?;
        progress.finish();
        let gradients = if args.grads { verifier.gradients()? } else { Vec::new() };
        let (device, bisection) = (args.device.name(), None);
        let mut report = Report { directory: &directory, device, runs, left_out, gradients, bisection };
        if args.bisect {
            let told = report.runs.iter().position(|run| !run.checks.ok).unwrap_or(0);
            report.bisection = Some(verifier.bisect(&settings[told], &report.runs[told])?);
        }
        Ok(report)
    })?;
    match args.json {
        true => print_json(&report.document())?,
        false => report.print(),
    }
    if report.ok() { Ok(()) } else { Err(mismatch(&report)) }
}

/// How far numbers of a precision may be off.
fn tolerances(directory: &Directory, precision: Precision) -> Result<Tolerances, Failure> {
    match precision {
        Precision::F64 | Precision::F32 => Ok(Tolerances::of(directory)),
        Precision::F16 => Tolerances::rounded(directory, 11),
        Precision::Bf16 => Tolerances::rounded(directory, 8),
    }
}

/// The same in one process of a job that the model is spread over. All processes see the result; the first one tells it.
fn spread(args: &Verify, global: &Global, job: Job<'_>) -> Result<(), Failure> {
    let speaks = job.speaks();
    let directory = Directory::open(&args.dir)?;
    ranks::fits(job.degrees, &directory.spec)?;
    let switches = Switches { mup: args.mup.into(), fusion: args.fuse.clone() };
    let precision = precision(args)?;
    let (dtype, allowed) = match precision {
        Precision::Bf16 => (WeightType::Bf16, Tolerances::rounded(&directory, 8)?),
        _ => (WeightType::F32, Tolerances::of(&directory)),
    };
    let report = weights::with(&directory.folder, &directory.spec, |weights| {
        let Degrees { tensor, pipeline, data } = job.degrees;
        let told = vec![
            ("mup", switches.mup_word().to_string()),
            ("fuse", switches.fusion_word().to_string()),
            ("plan", format!("tp{tensor}pp{pipeline}dp{data}")),
            ("precision", precision.name().to_string()),
        ];
        let options = LoadOptions { jobs: super::jobs(global), ..LoadOptions::default() };
        let (world, degrees, place) = (job.world, job.degrees, job.place);
        let device = Spread::load(&directory.spec, &switches, dtype, weights, job, options)?;
        let runs = vec![Run { switches: told, allowed, checks: check(&directory, &device, allowed)? }];
        let gradients = match (args.grads, world.ranks(lapidary_runtime_mpi::Grid { degrees })) {
            (true, Some(ranks)) => {
                let job = Job { world, ranks, degrees, place };
                vec![spread_step::check(&directory, weights, args, options, job)?]
            }
            _ => Vec::new(),
        };
        let device = args.device.name();
        Ok(Report { directory: &directory, device, runs, left_out: Vec::new(), gradients, bisection: None })
    })?;
    if speaks {
        match args.json {
            true => print_json(&report.document())?,
            false => report.print(),
        }
    }
    if report.ok() { Ok(()) } else { Err(mismatch(&report)) }
}

/// The same on the GPU of one rank of a job: every rank compares what it has, and the first one tells it.
fn on_gpus(args: &Verify, global: &Global, degrees: Degrees) -> Result<(), Failure> {
    let directory = Directory::open(&args.dir)?;
    ranks::fits(degrees, &directory.spec)?;
    let (precision, jobs) = (precision(args)?, super::jobs(global));
    let switches = Switches { mup: args.mup.into(), fusion: args.fuse.clone() };
    let patience = Duration::from_secs(args.patience);
    let terms = gpu::ranks::Terms { degrees, what: &directory.spec.name, patience, jobs };
    gpu::ranks::among(&terms, |device| {
        spread_on(device, &directory, (&switches, precision)).and_then(|(report, speaks)| {
            match (speaks, args.json) {
                (true, true) => print_json(&report.document())?,
                (true, false) => report.print(),
                (false, _) => {}
            }
            if report.ok() { Ok(()) } else { Err(mismatch(&report)) }
        })
    })
}

/// What one rank finds on its device, and whether it speaks for the job.
fn spread_on<'d>(
    device: Box<dyn lapidary_runtime_gpu::device::Device>,
    directory: &'d Directory,
    (switches, precision): (&Switches, Precision),
) -> Result<(Report<'d>, bool), Failure> {
    let (dtype, allowed) = match precision {
        Precision::Bf16 => (DType::Bf16, Tolerances::rounded(directory, 8)?),
        _ => (DType::F32, Tolerances::of(directory)),
    };
    let standing = device.standing();
    let plan = standing.map_or_else(|| "tp1pp1dp1".to_string(), |standing| standing.plan());
    let told = vec![
        ("mup", switches.mup_word().to_string()),
        ("fuse", switches.fusion_word().to_string()),
        ("plan", plan),
        ("precision", precision.name().to_string()),
    ];
    let checks = weights::with(&directory.folder, &directory.spec, |weights| {
        let module = host::lower(&directory.spec, switches, WeightType::F32)?.module;
        let gpu = Gpu::new(device, &directory.spec, switches.clone(), dtype, weights).measured();
        check(directory, &OnGpu { module, gpu }, allowed)
    })?;
    let (runs, device) = (vec![Run { switches: told, allowed, checks }], Device::Cuda.name());
    let (left_out, gradients) = (Vec::new(), Vec::new());
    let report = Report { directory, device, runs, left_out, gradients, bisection: None };
    Ok((report, standing.is_none_or(|standing| standing.first())))
}

/// The number type of a run; the host's is that of its program.
fn precision(args: &Verify) -> Result<Precision, Failure> {
    let wrong = |precision: Precision| {
        let what = format!("--precision {} is none of --device {}", precision.name(), args.device.name());
        Err(Failure::new(Exit::Usage, what)
            .help("cpu, cuda: f32, bf16; reference: f64, f32; wafer-sim: f32, f16, bf16"))
    };
    match (args.device, args.precision) {
        (Device::WaferSim, None) => Ok(Precision::F32),
        (Device::WaferSim, Some(precision)) if precision != Precision::F64 => Ok(precision),
        (Device::Reference, Some(precision @ (Precision::F64 | Precision::F32))) => Ok(precision),
        (Device::Cpu | Device::Cuda, None) => Ok(Precision::F32),
        (Device::Cpu | Device::Cuda, Some(precision @ (Precision::F32 | Precision::Bf16))) => Ok(precision),
        (Device::Reference, None) => Ok(Precision::F64),
        (_, Some(precision)) => wrong(precision),
    }
}

/// Whether the device's copy of the weights and what a run needs fit into memory, before anything is read; a simulated
/// wafer checks its own. All weights count on the host too: they are f32 here unless asked otherwise, and muP's factors
/// are multiplied in, so files rarely have them as they run.
fn fits(args: &Verify, directory: &Directory, setting: &Setting) -> Result<(), Failure> {
    if args.device == Device::Cpu {
        let packed = if setting.precision == Precision::Bf16 { WeightType::Bf16 } else { WeightType::F32 };
        let lowered = host::lower(&directory.spec, &setting.switches, packed)?;
        return directory.needs().check(&lowered.program, lowered.program.weight_bytes());
    }
    if args.device != Device::Reference {
        return Ok(());
    }
    let size = if setting.precision == Precision::F64 { 8 } else { 4 };
    let dims = Dims { batch: 1, seq: 1, cached: 0 };
    let graph = Graph::build(&directory.spec, Mode::Forward, dims)
        .map_err(|error| Failure::new(Exit::InvalidInput, error.to_string()))?;
    let what = format!("the reference of {}", directory.spec.name);
    let classes = [("weights", graph.parameters().saturating_mul(size))];
    memory::check(&what, &classes, "verify on the host (--device cpu), or a smaller model")
}

/// Refuses what a device cannot be asked for.
fn runnable(args: &Verify) -> Result<(), Failure> {
    if args.plan.is_some() && !matches!(args.device, Device::Cpu | Device::Cuda) {
        let what = format!(
            "--plan spreads a model over processes of the host or over GPUs, not --device {}",
            args.device.name()
        );
        return Err(Failure::new(Exit::Unsupported, what));
    }
    let name = args.device.name();
    let refused = |what: &str| Err(Failure::new(Exit::Unsupported, format!("--device {name}: {what}")));
    match (args.grads, args.bisect) {
        _ if matches!(args.device, Device::Cpu | Device::Reference) => Ok(()),
        (true, _) if args.device == Device::Cuda => {
            refused("training steps are compiled, not verified; use --device cpu with --grads")
        }
        (_, true) if args.device == Device::Cuda => {
            refused("a kernel's inner values stay in registers; use --device cpu with --bisect")
        }
        (true, _) => refused("backward passes are placed and priced, not run; use --device cpu with --grads"),
        (_, true) => refused("a step's inner values stay in the PEs; use --device cpu with --bisect"),
        _ => Ok(()),
    }
}

fn mismatch(report: &Report<'_>) -> Failure {
    let told = report.told();
    let gradient = report.gradients.iter().find_map(GradientChecks::first_difference);
    let what = match told.checks.first_difference() {
        None if gradient.is_some() => {
            format!("the gradient of {} differs", gradient.map_or("", |gradient| gradient.name.as_str()))
        }
        None if told.checks.ok => "optimizer steps differ".to_string(),
        Some(tensor) => format!("{}, made by {} ({}), differs", tensor.name, tensor.node, tensor.op),
        None => "loss or continuations differ".to_string(),
    };
    let failure = Failure::new(Exit::GateFailed, format!("{}: {what}", report.directory.folder.display()));
    match report.bisection {
        Some(_) => failure,
        None if report.device == Device::WaferSim.name() => failure,
        None => failure.help("--bisect finds the first op that differs"),
    }
}

struct Verifier<'a> {
    args: &'a Verify,
    directory: &'a Directory,
    weights: &'a Opened<'a>,
    jobs: usize,
}

impl Verifier<'_> {
    fn checks(&self, setting: &Setting, allowed: Tolerances) -> Result<Checks, Failure> {
        if self.args.device == Device::Cpu {
            let device = self.compile(&setting.switches, setting)?;
            return check(self.directory, &device, allowed);
        }
        let lowered = host::lower(&self.directory.spec, &setting.switches, WeightType::F32)?;
        if self.args.device == Device::WaferSim {
            let (spec, switches, params) =
                (&self.directory.spec, setting.switches.clone(), self.weights.params()?);
            let dtype = match setting.precision {
                Precision::F64 | Precision::F32 => DType::F32,
                Precision::F16 => DType::F16,
                Precision::Bf16 => DType::Bf16,
            };
            let simulator = Simulator::new(spec, switches, dtype, (setting.grid, setting.mode), params)?;
            let device = Simulated { module: lowered.module, simulator };
            return check(self.directory, &device, allowed);
        }
        if self.args.device == Device::Cuda {
            let dtype = if setting.precision == Precision::Bf16 { DType::Bf16 } else { DType::F32 };
            let (spec, switches) = (&self.directory.spec, setting.switches.clone());
            let gpu = Gpu::new(gpu::open(self.jobs)?, spec, switches, dtype, self.weights).measured();
            return check(self.directory, &OnGpu { module: lowered.module, gpu }, allowed);
        }
        match setting.precision {
            Precision::F32 => {
                let device = Interpreted::<f32>::new(lowered.module, &self.weights.params()?);
                check(self.directory, &device, allowed)
            }
            _ => {
                let device = Interpreted::<f64>::new(lowered.module, &self.weights.params()?);
                check(self.directory, &device, allowed)
            }
        }
    }

    fn compile(&self, switches: &Switches, setting: &Setting) -> Result<Compiled, Failure> {
        let weights = if setting.precision == Precision::Bf16 { WeightType::Bf16 } else { WeightType::F32 };
        let lowered = host::lower(&self.directory.spec, switches, weights)?;
        Compiled::load(lowered, self.weights, &self.directory.needs(), setting.engine, self.jobs)
    }

    fn bisect(&self, setting: &Setting, run: &Run) -> Result<Bisection, Failure> {
        let device = match self.args.device {
            Device::Cpu => Some(self.compile(&setting.switches, setting)?),
            _ => None,
        };
        let suspects = Suspects {
            directory: self.directory,
            params: &self.weights.params()?,
            switches: &setting.switches,
            device: device.as_ref(),
            compile: &|switches| self.compile(switches, setting),
            allowed: run.allowed,
        };
        suspects.bisect(&run.checks)
    }

    /// Gradients and optimizer steps; under every policy and with and without fusion where every switch is asked for.
    fn gradients(&self) -> Result<Vec<GradientChecks>, Failure> {
        let fusions = match (self.args.all_switches, self.args.device) {
            (true, Device::Cpu) => vec![Fusion::On, Fusion::Off],
            (true, _) => vec![Fusion::Off],
            (false, _) => vec![self.args.fuse.clone()],
        };
        let policies =
            if self.args.all_switches { Recompute::ALL.to_vec() } else { vec![self.args.recompute.into()] };
        let mut checks = Vec::new();
        for (fusion, recompute) in
            fusions.into_iter().flat_map(|f| policies.iter().map(move |p| (f.clone(), *p)))
        {
            let switches = Switches { mup: Mup::Keep, fusion };
            let making = Making { device: self.args.device, switches: &switches, recompute, jobs: self.jobs };
            checks.push(gradients::check(self.directory, self.weights, &making)?);
        }
        Ok(checks)
    }

    /// The switches of a run, as far as the device knows them.
    fn told(&self, setting: &Setting) -> Vec<(&'static str, String)> {
        let mup = ("mup", setting.switches.mup_word().to_string());
        match self.args.device {
            Device::Cpu => vec![
                mup,
                ("fuse", setting.switches.fusion_word().to_string()),
                ("precision", setting.precision.name().to_string()),
                (
                    "engine",
                    if setting.engine == Engine::Compiled { "compiled" } else { "interpreted" }.into(),
                ),
            ],
            Device::WaferSim => vec![
                mup,
                ("fuse", setting.switches.fusion_word().to_string()),
                ("mode", setting.mode.name().to_string()),
                ("grid", setting.grid.to_string()),
                ("precision", setting.precision.name().to_string()),
            ],
            Device::Cuda => vec![
                mup,
                ("fuse", setting.switches.fusion_word().to_string()),
                ("precision", setting.precision.name().to_string()),
            ],
            Device::Reference => vec![mup, ("precision", setting.precision.name().to_string())],
        }
    }
}
