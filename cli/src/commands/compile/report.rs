//! What a compilation found, as the document `report.json`: no times and no paths, so equal inputs give equal
//! bytes.

use super::{Job, name};
use crate::failure::Failure;
use indexmap::IndexMap;
use lapidary_models::Work;
use lapidary_models::autodiff::RecomputeReport;
use lapidary_models::mup::{ParamRule, parameter_table};
use lapidary_passes::fusion::Refusal;
use lapidary_passes::report::{FusionReport, PipelineReport};
use lapidary_planner::wafer::training::TrainingAnswer;
use serde::Serialize;

/// The document.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: &'static str,
    version: u32,
    /// Name of the model.
    pub model: String,
    /// Learned values.
    pub parameters: u64,
    /// Target as on the command line.
    pub target: &'static str,
    /// Name of the machine.
    pub machine: String,
    /// forward, prefill, decode or train.
    pub mode: &'static str,
    /// Sequences.
    pub batch: u64,
    /// New tokens of each.
    pub seq_len: u64,
    /// Tokens of each in the cache.
    pub cached: u64,
    /// Arithmetic and traffic of the ops one by one.
    pub work: Work,
    /// Passes that ran.
    pub passes: Vec<Pass>,
    /// What was fused, if a fusion ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fusion: Option<Fusion>,
    /// What a training step computes again, what that spares and costs, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<RecomputeReport>,
    /// Memory of a device by class.
    pub memory_bytes: IndexMap<String, u64>,
    /// What a device has; absent for the host.
    pub memory_capacity_bytes: Option<u64>,
    /// Why the program cannot be used; absent when it fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub does_not_fit: Option<String>,
    /// The smallest change that fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smallest_change: Option<String>,
    /// Where measured forms of kernels come from; absent where nothing was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunings: Option<Measured>,
    /// What was left out, and how to get it.
    pub warnings: Vec<String>,
    /// Kernels with their resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<serde_json::Value>,
    /// Placement on the wafer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<serde_json::Value>,
    /// What training on wafers takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingAnswer>,
    /// muP's rule for every parameter, in training.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mup_table: Vec<ParamRule>,
}

/// Measurements that chose the forms of kernels.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Product name of the GPU, as its driver says it.
    pub device: String,
    /// Version of the driver's interface.
    pub driver: String,
    /// Kernels whose form they chose.
    pub kernels: usize,
}

/// One pass.
#[derive(Debug, Serialize)]
pub struct Pass {
    name: String,
    changed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// What was fused.
#[derive(Debug, Serialize)]
pub struct Fusion {
    /// Traffic of one run without fusion.
    pub bytes_before: u64,
    /// Traffic of one run with fusion.
    pub bytes_after: u64,
    /// Every kernel.
    pub regions: Vec<Region>,
    /// Fusions that would save traffic and are not legal.
    pub refused: Vec<String>,
}

/// One fused region.
#[derive(Debug, Serialize)]
pub struct Region {
    /// Name within its function.
    pub name: String,
    /// The function.
    pub function: String,
    /// How often it runs.
    pub times: u64,
    /// What gives it its loop.
    pub anchor: &'static str,
    /// Ops inside.
    pub ops: Vec<String>,
    /// Traffic of one run of its ops one by one.
    pub bytes_before: u64,
    /// Traffic of one run.
    pub bytes_after: u64,
    /// Why.
    pub reason: String,
}

impl Report {
    /// What is known before the passes run.
    pub fn new(job: &Job<'_>) -> Report {
        let dims = job.graph.dims;
        let mup_table = if job.args.train { parameter_table(&job.spec) } else { Vec::new() };
        Report {
            schema: "lapidary/report",
            version: 1,
            model: job.spec.name.clone(),
            parameters: job.graph.parameters(),
            target: name(job.args.target),
            machine: job.machine.as_ref().map_or("host", |machine| &machine.name).to_string(),
            // On wafers the step is placed from a graph of its own.
            mode: if job.args.train { "train" } else { job.graph.mode.name() },
            batch: dims.batch,
            seq_len: dims.seq,
            cached: dims.cached,
            work: job.graph.work(),
            passes: Vec::new(),
            fusion: None,
            recompute: None,
            memory_bytes: IndexMap::new(),
            memory_capacity_bytes: job.machine.as_ref().map(|machine| machine.device.memory().0 as u64),
            does_not_fit: None,
            smallest_change: None,
            tunings: None,
            warnings: Vec::new(),
            kernels: None,
            placement: None,
            training: None,
            mup_table,
        }
    }

    /// Says why the program cannot be used, and the smallest change that fits.
    pub fn over(&mut self, failure: &Failure) {
        let told = failure.faults.iter().map(|fault| fault.message.as_str()).collect::<Vec<_>>();
        self.does_not_fit = Some(told.join("; "));
        self.smallest_change = failure.faults.iter().find_map(|fault| fault.help.clone());
    }

    /// Adds what the passes did.
    pub fn passes(&mut self, passes: &PipelineReport) {
        self.passes = passes
            .passes
            .iter()
            .map(|pass| Pass { name: pass.name.clone(), changed: pass.changed, notes: pass.notes.clone() })
            .collect();
        self.fusion = passes.fusion.as_ref().map(fusion);
        self.recompute.clone_from(&passes.recompute);
    }
}

fn fusion(report: &FusionReport) -> Fusion {
    let regions = report.regions.iter().map(|region| Region {
        name: region.name.clone(),
        function: region.function.clone(),
        times: region.times,
        anchor: region.anchor,
        ops: region.ops.clone(),
        bytes_before: region.bytes_before,
        bytes_after: region.bytes_after,
        reason: region.reason.clone(),
    });
    Fusion {
        bytes_before: report.bytes_before,
        bytes_after: report.bytes_after,
        regions: regions.collect(),
        refused: report.refusals.iter().map(refused).collect(),
    }
}

fn refused((function, refusal): &(String, Refusal)) -> String {
    let [first, second] = refusal.sides.each_ref().map(|side| side.join(" "));
    format!(
        "{function}: [{first}] with [{second}] would save {} bytes: {}",
        refusal.saved_bytes, refusal.reason
    )
}
