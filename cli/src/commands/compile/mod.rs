//! `lapidary compile`: model in, artifact out; the stages in order, each with its clock.

mod cpu;
mod emit;
mod front;
mod gpu;
mod mode;
mod ranks;
mod report;
mod summary;
mod training;
mod wafer;

use crate::args::{Compile, Global, RecomputeSwitch, Switch, Target};
use crate::artifact::Artifact;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::progress::Progress;
use crate::toolchain;
use emit::Emit;
use lapidary_hardware::HardwareSpec;
use lapidary_models::autodiff::{Recompute, differentiate};
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use lapidary_passes::wafer::StepChoice;
use lapidary_passes::{Goal, Mup};
use lapidary_runtime_gpu::bench::Tunings;
use mode::Modes;
use ranks::Spread;
use report::Report;
use std::path::Path;

/// Everything that is decided before the first pass runs.
pub struct Job<'a> {
    args: &'a Compile,
    spec: ModelSpec,
    /// None for the host.
    machine: Option<HardwareSpec>,
    graph: Graph,
    goal: Goal,
    mup: Mup,
    emit: Emit,
    jobs: usize,
    modes: Modes,
    /// Over how many GPUs the program is spread; none for one.
    spread: Option<Spread>,
    /// What is placed where a wafer keeps the weights; none elsewhere.
    resident: Option<Graph>,
    /// The training step that wafers run; none where nothing is trained on wafers.
    step: Option<StepChoice>,
    /// What was measured of forms of kernels on GPUs of the machine's kind; none elsewhere.
    tunings: Option<Tunings>,
}

impl Job<'_> {
    /// The graph that is compiled: that of the training step, where there is one, or of one sequence where weights stay.
    fn imported(&self) -> &Graph {
        let step = self.step.as_ref().map(|step| &step.graph);
        step.or(self.resident.as_ref()).unwrap_or(&self.graph)
    }
}

/// What a target adds to the artifact, or why the program cannot be used on the machine.
pub struct Emitted {
    /// Too large for the machine: what is over, by how much, and the smallest change that fits.
    over: Option<Failure>,
}

/// Runs the verb.
///
/// # Errors
/// Exit 3 for inputs, 4 when the program does not fit (the report is still written), 5 for what is not
/// supported, 7 when PTX or cubin was asked for and NVRTC is missing.
pub fn run(args: &Compile, global: &Global) -> Result<(), Failure> {
    let mut job = job(args, global)?;
    let mut progress = Progress::new(global, 8);
    let mut artifact = Artifact::default();
    let mut report = Report::new(&job);
    report.training = progress.stage("planning the training", || training::plan(&job))?;
    let planned = report.training.as_ref();
    match progress.stage("fitting the training step", || wafer::step(&job, planned))? {
        Some(Ok(step)) => job.step = Some(step),
        Some(Err(over)) => return unfit(args, &mut report, progress, over),
        None => {}
    }
    let job = job;
    let stopped = match &job.spread {
        Some(spread) => ranks::run(&job, spread, &mut artifact, &mut report, &mut progress)?,
        None => front::run(&job, &mut progress, |module, passes, progress| {
            let emitted = match args.target {
                Target::Cg1Sim => wafer::emit(&job, module, &mut artifact, &mut report, progress)?,
                Target::Cpu => cpu::emit(&job, module, &mut artifact, &mut report, progress)?,
                Target::A100 => gpu::emit(&job, (module, passes), &mut artifact, &mut report, progress)?,
            };
            Ok(emitted)
        })?,
    };
    let front::Outcome { passes, emitted } = stopped;
    report.passes(&passes);
    front::dump(&job, &passes, &mut artifact)?;
    let Some(emitted) = emitted else {
        progress.finish();
        return front::print_stopped(&passes);
    };
    if let Some(failure) = emitted.over {
        return unfit(args, &mut report, progress, failure);
    }
    artifact.add_json("report.json", &report)?;
    progress.stage("writing the artifact", || artifact.write(&args.output))?;
    let times = progress.finish();
    summary::print(&job, &report, &passes, &times)
}

/// Writes the report of a program that cannot be used, and fails with the reason.
fn unfit(args: &Compile, report: &mut Report, progress: Progress, over: Failure) -> Result<(), Failure> {
    report.over(&over);
    let mut only_report = Artifact::default();
    only_report.add_json("report.json", report)?;
    only_report.write(&args.output)?;
    progress.finish();
    Err(over)
}

fn job<'a>(args: &'a Compile, global: &Global) -> Result<Job<'a>, Failure> {
    let emit = Emit::parse(&args.emit, args.target)?;
    let spec = input::runnable_model(&args.model)?.spec;
    let machine = machine(args)?;
    let goal = goal(args.target, machine.as_ref())?;
    let spread = match &args.plan {
        Some(plan) => front::spread(args, plan, &spec)?,
        None => None,
    };
    let modes = Modes::of(args)?;
    let graph = graph(args, modes, &spec)?;
    let seq = args.seq_len.unwrap_or(spec.max_seq);
    let resident = modes
        .placed(&spec, seq)
        .map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", args.model)))?;
    let mup = match (args.mup, args.train) {
        (Some(Switch::On), true) => {
            return Err(Failure::new(
                Exit::Usage,
                "--mup on folds muP into the weights, which training cannot use",
            )
            .help("leave --mup away with --train"));
        }
        (Some(Switch::Off), _) | (None, true) => Mup::Keep,
        _ => Mup::Fold,
    };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = global.jobs.map_or_else(cores, usize::from);
    let tunings = tunings(args, machine.as_ref())?;
    Ok(Job {
        args,
        spec,
        machine,
        graph,
        goal,
        mup,
        emit,
        jobs,
        modes,
        spread,
        resident,
        step: None,
        tunings,
    })
}

/// What was measured: in the file that is named, else on this machine.
fn tunings(args: &Compile, machine: Option<&HardwareSpec>) -> Result<Option<Tunings>, Failure> {
    let gpu = machine.filter(|machine| machine.gpu().is_some());
    match (args.tunings.as_deref(), gpu) {
        (None, None) | (Some("off"), _) => Ok(None),
        (Some(_), None) => Err(Failure::new(
            Exit::Usage,
            format!("--tunings: target {} has no forms that are measured", name(args.target)),
        )),
        (None, Some(machine)) => Ok(toolchain::tunings_of(machine.device.product())),
        (Some(file), Some(_)) => {
            let refused = |why| Failure::new(Exit::InvalidInput, format!("{file}: {why}"));
            Tunings::read(&input::read(Path::new(file))?).map(Some).map_err(refused)
        }
    }
}

/// The machine that was named or the target's own; the host is none.
fn machine(args: &Compile) -> Result<Option<HardwareSpec>, Failure> {
    let own = match args.target {
        Target::A100 => "a100-80gb",
        Target::Cg1Sim => "cg1",
        Target::Cpu => return Ok(None),
    };
    input::machine(args.machine.as_deref().unwrap_or(own)).map(Some)
}

fn goal(target: Target, machine: Option<&HardwareSpec>) -> Result<Goal, Failure> {
    let wrong = |what: &str| {
        let found = machine.map_or("the host", |machine| machine.name.as_str());
        Err(Failure::new(
            Exit::InvalidInput,
            format!("target {} needs {what}, and {found} has none", name(target)),
        )
        .help("see `lapidary machines list`"))
    };
    match target {
        Target::A100 if machine.and_then(HardwareSpec::gpu).is_none() => wrong("GPUs"),
        Target::A100 => Ok(Goal::Gpu),
        Target::Cg1Sim if machine.and_then(HardwareSpec::wafer).is_none() => wrong("wafers"),
        Target::Cg1Sim => Ok(Goal::Wafer),
        Target::Cpu => Ok(Goal::Cpu),
    }
}

/// What a training step on GPUs and hosts computes again.
fn policy(args: &Compile) -> Recompute {
    args.recompute.unwrap_or(RecomputeSwitch::Selective).into()
}

/// The target as the command line names it.
pub fn name(target: Target) -> &'static str {
    match target {
        Target::A100 => "a100",
        Target::Cg1Sim => "cg1-sim",
        Target::Cpu => "cpu",
    }
}

fn graph(args: &Compile, modes: Modes, spec: &ModelSpec) -> Result<Graph, Failure> {
    let seq = args.seq_len.unwrap_or(spec.max_seq);
    let usual = if args.target == Target::Cg1Sim { Mode::Forward } else { Mode::Prefill };
    let mode = if args.train { Mode::Forward } else { modes.graph.unwrap_or(usual) };
    // A host program takes any number of tokens; its graph has at least two, as `cpu::host_graph` says why.
    let (mode, seq) = match (args.target, mode) {
        (Target::Cpu, Mode::Prefill | Mode::Decode) => (Mode::Prefill, seq.max(2.min(spec.max_seq))),
        _ => (mode, seq),
    };
    let dims = match mode {
        Mode::Decode => Dims { batch: args.batch, seq: 1, cached: seq.saturating_sub(1) },
        _ => Dims { batch: args.batch, seq, cached: 0 },
    };
    let forward = Graph::build(spec, mode, dims);
    let graph = match trains(args) {
        true => forward.and_then(|forward| differentiate(&forward)),
        false => forward,
    };
    graph.map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", args.model)))
}

/// Whether the graph of a whole training step is compiled; on wafers [`wafer::step`] chooses it.
fn trains(args: &Compile) -> bool {
    args.train && args.target != Target::Cg1Sim
}
