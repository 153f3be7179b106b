//! What happened on the way down: which pass changed what, what was fused, what was folded.

use crate::cuda::Lowered;
use crate::fusion::{Merge, Refusal};
use crate::shard::ShardReport;
use lapidary_models::autodiff::RecomputeReport;
use std::time::Duration;

/// A run of a pipeline.
#[derive(Clone, Debug, Default)]
pub struct PipelineReport {
    /// Every pass that ran, in order.
    pub passes: Vec<PassReport>,
    /// The module after each pass (and before the first), where snapshots were asked for.
    pub snapshots: Vec<Snapshot>,
    /// What was fused, if a fusion ran.
    pub fusion: Option<FusionReport>,
    /// What was folded, if muP was.
    pub fold: Option<FoldReport>,
    /// The GPU program, if one was made.
    pub gpu: Option<Lowered>,
    /// What a training step computes again, if a policy was applied.
    pub recompute: Option<RecomputeReport>,
    /// What one rank has, if the model was spread.
    pub shard: Option<ShardReport>,
}

/// One pass of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct PassReport {
    /// Name.
    pub name: String,
    /// Whether the module is another one now.
    pub changed: bool,
    /// Wall time by the caller's clock; zero without one.
    pub time: Duration,
    /// What the pass wants to say.
    pub notes: Vec<String>,
}

/// The text of the module at one place of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `import`, or the name of the pass that has just run.
    pub after: String,
    /// The module.
    pub text: String,
}

/// What fusion did to a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FusionReport {
    /// Every kernel, in the order of the module.
    pub regions: Vec<RegionReport>,
    /// Memory traffic of one run of the module without fusion, in bytes; layers count as often as they run.
    pub bytes_before: u64,
    /// Memory traffic of one run of the module with fusion, in bytes.
    pub bytes_after: u64,
    /// Merges by function, in the order they were made.
    pub merges: Vec<(String, Merge)>,
    /// Merges that would save traffic and were refused, by function.
    pub refusals: Vec<(String, Refusal)>,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionReport {
    /// Name; unique within its function.
    pub name: String,
    /// The function it stands in.
    pub function: String,
    /// How often it runs in one run of the module.
    pub times: u64,
    /// What gives it its loop: matmul, attention, row, elementwise or gather.
    pub anchor: &'static str,
    /// Names of the ops inside, in order.
    pub ops: Vec<String>,
    /// Memory traffic of one run of its ops one by one, in bytes.
    pub bytes_before: u64,
    /// Memory traffic of one run, in bytes.
    pub bytes_after: u64,
    /// What is saved, in words.
    pub reason: String,
}

impl RegionReport {
    /// Bytes that one run saves.
    pub const fn saved_bytes(&self) -> u64 {
        self.bytes_before.saturating_sub(self.bytes_after)
    }
}

/// What the muP fold did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FoldReport {
    /// Whether the head shares its matrix with the embedding.
    pub tied: bool,
    /// Factor on every use of a parameter that changed: name and factor.
    pub params: Vec<(String, f64)>,
    /// Norms whose eps changed: name, eps before, eps after.
    pub norms: Vec<(String, f64, f64)>,
    /// Multipliers that are gone: role and factor.
    pub removed: Vec<(String, f64)>,
}
