//! Models compiled for the host: through the passes, as `compile --target cpu` does it.

use crate::failure::{Exit, Failure};
use lapidary_ir::import::import;
use lapidary_ir::{IrContext, Module};
use lapidary_models::shard::{Degrees, Place, Way};
use lapidary_models::{Graph, ModelSpec};
use lapidary_passes::cpu::{self, HostModule, Options};
use lapidary_passes::lower_to_cpu::{
    Together, emit_cpu, emit_cpu_part, emit_cpu_training, emit_cpu_training_part, read_host,
};
use lapidary_passes::pipeline::{pipeline, rank_pipeline};
use lapidary_passes::shard::shard_text;
use lapidary_passes::{Fusion, Goal, Mup, PassError, Pipeline, PipelineError, RunError, Watch};
use lapidary_runtime_cpu::program::{Checked, CpuProgram, TrainProgram, WeightType};
use std::fmt;

/// What the compiler may do or leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Whether muP's multipliers go into the weights.
    pub mup: Mup,
    /// Which ops become one kernel.
    pub fusion: Fusion,
}

impl Switches {
    /// The word for muP on the command line.
    pub fn mup_word(&self) -> &'static str {
        if self.mup == Mup::Fold { "fold" } else { "keep" }
    }

    /// The word for fusion on the command line.
    pub fn fusion_word(&self) -> &str {
        match &self.fusion {
            Fusion::On => "all",
            Fusion::Off => "off",
            Fusion::Options(options) => options.strip_prefix("only=").unwrap_or(options),
        }
    }
}

impl fmt::Display for Switches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--mup {} --fuse {}", self.mup_word(), self.fusion_word())
    }
}

/// A model as the passes left it, and its program.
pub struct Lowered {
    /// The functions, with the kernels that fusion chose.
    pub module: HostModule,
    /// What the host runs.
    pub program: Checked<CpuProgram>,
}

/// Compiles a model for the host.
///
/// # Errors
/// Exit 2 for fusion options that are none, 5 for what has no form on the host, 1 where a pass is at fault.
pub fn lower(spec: &ModelSpec, switches: &Switches, weights: WeightType) -> Result<Lowered, Failure> {
    let pipeline = passes(switches)?;
    with_module(spec, |module| {
        lapidary_passes::run(module, &pipeline, Watch::default()).map_err(run_failure)?;
        let plain = read_host(module, spec).map_err(refused)?;
        let program = emit_cpu(module, spec, &Options::all(weights)).map_err(refused)?;
        let program = program.check().map_err(|faults| {
            Failure::new(Exit::Internal, format!("the program does not pass its check: {faults}"))
        })?;
        Ok(Lowered { module: plain, program })
    })
}

/// Compiles one rank's part of a model for the host.
///
/// # Errors
/// As [`lower`]; exit 5 for a model that cannot be spread so.
pub fn lower_part(
    spec: &ModelSpec,
    switches: &Switches,
    weights: WeightType,
    degrees: Degrees,
    place: Place,
) -> Result<Lowered, Failure> {
    let shard = shard_text(degrees, Way::default(), place);
    let pipeline = rank_pipeline(Goal::Cpu, switches.mup, &switches.fusion, &shard)
        .map_err(|error| fuse_option(switches, &error))?;
    with_module(spec, |module| {
        let report = lapidary_passes::run(module, &pipeline, Watch::default()).map_err(run_failure)?;
        let part = report.shard.ok_or_else(|| Failure::new(Exit::Internal, "no part was made"))?;
        let plain = read_host(module, spec).map_err(refused)?;
        let program = emit_cpu_part(module, spec, &Options::all(weights), &part).map_err(refused)?;
        let program = program.check().map_err(|faults| {
            Failure::new(Exit::Internal, format!("the program does not pass its check: {faults}"))
        })?;
        Ok(Lowered { module: plain, program })
    })
}

/// Compiles a training graph of a model for the host; muP's multipliers stay ops.
///
/// # Errors
/// As [`lower`].
pub fn lower_training(
    spec: &ModelSpec,
    graph: &Graph,
    fusion: &Fusion,
) -> Result<Checked<TrainProgram>, Failure> {
    let pipeline = passes(&Switches { mup: Mup::Keep, fusion: fusion.clone() })?;
    let cx = IrContext::new();
    let mut module = imported(&cx, graph)?;
    lapidary_passes::run(&mut module, &pipeline, Watch::default()).map_err(run_failure)?;
    emit_cpu_training(&module, spec).map_err(refused)
}

/// Where a rank stands in a training step, and how it works with the others.
#[derive(Clone, Copy, Debug)]
pub struct RankStep {
    /// Ranks of a replica.
    pub degrees: Degrees,
    /// How they share layers and rows.
    pub way: Way,
    /// Which of them.
    pub place: Place,
    /// Replicas and micro-batches.
    pub together: Together,
}

/// Compiles one rank's part of a training graph for the host; muP's multipliers stay ops.
///
/// # Errors
/// As [`lower`]; exit 5 for a model that cannot be spread so, or a number of micro-batches that has no schedule.
pub fn lower_training_part(
    spec: &ModelSpec,
    graph: &Graph,
    fusion: &Fusion,
    rank: &RankStep,
) -> Result<Checked<TrainProgram>, Failure> {
    let switches = Switches { mup: Mup::Keep, fusion: fusion.clone() };
    let shard = shard_text(rank.degrees, rank.way, rank.place);
    let pipeline = rank_pipeline(Goal::Cpu, Mup::Keep, fusion, &shard)
        .map_err(|error| fuse_option(&switches, &error))?;
    let cx = IrContext::new();
    let mut module = imported(&cx, graph)?;
    let report = lapidary_passes::run(&mut module, &pipeline, Watch::default()).map_err(run_failure)?;
    let part = report.shard.ok_or_else(|| Failure::new(Exit::Internal, "no part was made"))?;
    emit_cpu_training_part(&module, spec, &part, rank.together).map_err(refused)
}

/// A graph as a module.
///
/// # Errors
/// Exit 1 when the graph has no module: a fault of the import.
pub fn imported<'c>(cx: &'c IrContext, graph: &Graph) -> Result<Module<'c>, Failure> {
    import(cx, graph)
        .map_err(|error| Failure::diagnosed(true, "import", error.diagnostics(), &error.to_string()))
}

/// The module after the import and after every pass, with the pass's name.
///
/// # Errors
/// As [`lower`].
pub fn stages(spec: &ModelSpec, switches: &Switches) -> Result<Vec<(String, HostModule)>, Failure> {
    let names: Vec<String> = passes(switches)?.steps.iter().map(|step| step.text.clone()).collect();
    with_module(spec, |module| {
        let mut stages = vec![("import".to_string(), read_host(module, spec).map_err(refused)?)];
        for name in names {
            let one = Pipeline::parse(&name).map_err(|e| Failure::new(Exit::Internal, e.to_string()))?;
            lapidary_passes::run(module, &one, Watch::default()).map_err(run_failure)?;
            stages.push((name, read_host(module, spec).map_err(refused)?));
        }
        Ok(stages)
    })
}

fn passes(switches: &Switches) -> Result<Pipeline, Failure> {
    pipeline(Goal::Cpu, switches.mup, &switches.fusion).map_err(|error| fuse_option(switches, &error))
}

fn fuse_option(switches: &Switches, error: &PipelineError) -> Failure {
    Failure::new(Exit::Usage, format!("--fuse {}: {}", switches.fusion_word(), error.why))
}

fn with_module<T>(
    spec: &ModelSpec,
    work: impl FnOnce(&mut Module<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let graph = cpu::host_graph(spec)
        .map_err(|error| Failure::new(Exit::InvalidInput, format!("{}: {error}", spec.name)))?;
    let cx = IrContext::new();
    let mut module = imported(&cx, &graph)?;
    work(&mut module)
}

/// What a pass says when it cannot go on.
pub fn run_failure(error: RunError) -> Failure {
    let internal = matches!(error, RunError::Pass { internal: true, .. });
    Failure::diagnosed(internal, "passes", &error.diagnostics(), &error.to_string())
}

fn refused(error: PassError) -> Failure {
    Failure::diagnosed(false, "host", &error.diagnostics(), &error.to_string())
}
