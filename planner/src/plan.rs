//! What a plan decides, as plain data: degrees, micro-batch, sharding, recomputation.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How data-parallel ranks share the training state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharding {
    /// Every rank holds everything (ZeRO-0, plain data parallelism).
    None,
    /// The optimizer state is split (ZeRO-1, Megatron's distributed optimizer).
    Optimizer,
    /// Weights, gradients and optimizer are split over all ranks (ZeRO-3, FSDP full shard).
    Full,
    /// Split over the ranks of a node, repeated across nodes (FSDP hybrid shard).
    Hybrid,
    /// The optimizer state is split over the ranks of a node, repeated across nodes (InternEvo's ZeRO groups).
    OptimizerInNode,
}

impl Sharding {
    /// Every choice, in the order in which they are tried.
    pub const ALL: [Sharding; 5] =
        [Sharding::None, Sharding::Optimizer, Sharding::Full, Sharding::Hybrid, Sharding::OptimizerInNode];

    /// The word in names, pins and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Sharding::None => "none",
            Sharding::Optimizer => "optimizer",
            Sharding::Full => "full",
            Sharding::Hybrid => "hybrid",
            Sharding::OptimizerInNode => "optimizer-in-node",
        }
    }

    /// Whether weights are gathered for each use.
    pub const fn gathers(self) -> bool {
        matches!(self, Sharding::Full | Sharding::Hybrid)
    }
}

/// What the backward pass computes again instead of keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Nothing; attention scores are never kept, attention being one kernel.
    None,
    /// Norms and pointwise kernels, which are cheap and whose results are large.
    Selective,
    /// Whole layers, from their inputs.
    Full,
}

impl Recompute {
    /// Every choice, in the order in which they are tried.
    pub const ALL: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full];

    /// The word in names, pins and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Recompute::None => "none",
            Recompute::Selective => "selective",
            Recompute::Full => "full",
        }
    }
}

/// A plan for GPUs. Ranks are numbered tensor innermost, then data, then pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GpuPlan {
    /// Tensor-parallel ranks.
    pub tp: u64,
    /// Pipeline stages.
    pub pp: u64,
    /// Data-parallel ranks.
    pub dp: u64,
    /// Sequences of a micro-batch.
    pub micro_batch: u64,
    /// Micro-batches of a step on each data-parallel rank.
    pub accumulation: u64,
    /// How data-parallel ranks share the state.
    pub sharding: Sharding,
    /// What the backward pass computes again.
    pub recompute: Recompute,
}

impl GpuPlan {
    /// The degrees alone, as `tp4pp2dp28`.
    pub fn tag(&self) -> String {
        format!("tp{}pp{}dp{}", self.tp, self.pp, self.dp)
    }

    /// Devices it runs on.
    pub fn world(&self) -> u64 {
        self.tp * self.pp * self.dp
    }
}

impl fmt::Display for GpuPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sharding, recompute) = (self.sharding.name(), self.recompute.name());
        write!(f, "{}-mb{}-shard-{sharding}-recompute-{recompute}", self.tag(), self.micro_batch)
    }
}

/// Where weights stay on wafers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaferMode {
    /// Outside; each layer's weights stream through the wafer for every micro-batch.
    WeightStreaming,
    /// On the wafer; every layer owns a rectangle and samples flow through.
    LayerPipelined,
}

impl WaferMode {
    /// The word in pins and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            WaferMode::WeightStreaming => "weight-streaming",
            WaferMode::LayerPipelined => "layer-pipelined",
        }
    }
}

/// A plan for wafers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WaferPlan {
    /// Wafers, data-parallel.
    pub systems: u64,
    /// Sequences of a micro-batch on one wafer.
    pub micro_batch: u64,
    /// Micro-batches of a step on each wafer.
    pub accumulation: u64,
    /// Where weights stay.
    pub mode: WaferMode,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Layers between kept inputs under full recomputation; 1 otherwise.
    pub checkpoint_every: u64,
    /// Groups of columns with tokens of their own.
    pub replicas: u64,
    /// Whether kept layer inputs leave the wafer and come back, instead of staying in its memory.
    pub outside: bool,
}

impl WaferPlan {
    /// The systems and the split of the batch, as `cs16mb66acc2`.
    pub fn tag(&self) -> String {
        let mode = if self.mode == WaferMode::LayerPipelined { "-pipelined" } else { "" };
        format!("cs{}mb{}acc{}{mode}", self.systems, self.micro_batch, self.accumulation)
    }
}

impl fmt::Display for WaferPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-recompute-{}", self.tag(), self.recompute.name())?;
        if self.checkpoint_every > 1 {
            write!(f, "-every{}", self.checkpoint_every)?;
        }
        if self.outside {
            f.write_str("-outside")?;
        }
        write!(f, "-replicas{}", self.replicas)
    }
}

/// A plan for either kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Degrees {
    /// For GPUs.
    Gpu(GpuPlan),
    /// For wafers.
    Wafer(WaferPlan),
}

impl Degrees {
    /// The short name that several variants share.
    pub fn tag(&self) -> String {
        match self {
            Degrees::Gpu(plan) => plan.tag(),
            Degrees::Wafer(plan) => plan.tag(),
        }
    }

    /// How many decisions differ from those of another plan.
    pub fn distance(&self, other: &Degrees) -> usize {
        let count = |differences: &[bool]| differences.iter().filter(|differs| **differs).count();
        match (self, other) {
            (Degrees::Gpu(a), Degrees::Gpu(b)) => count(&[
                a.tp != b.tp,
                a.pp != b.pp,
                a.dp != b.dp,
                a.micro_batch != b.micro_batch,
                a.sharding != b.sharding,
                a.recompute != b.recompute,
            ]),
            (Degrees::Wafer(a), Degrees::Wafer(b)) => count(&[
                a.systems != b.systems,
                a.micro_batch != b.micro_batch,
                a.accumulation != b.accumulation,
                a.mode != b.mode,
                a.recompute != b.recompute,
                a.checkpoint_every != b.checkpoint_every,
            ]),
            _ => usize::MAX,
        }
    }

    /// Every decision as a key and its value, in the order of the table.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Degrees::Gpu(plan) => vec![
                ("tp", plan.tp.to_string()),
                ("pp", plan.pp.to_string()),
                ("dp", plan.dp.to_string()),
                ("micro-batch", plan.micro_batch.to_string()),
                ("sharding", plan.sharding.name().to_string()),
                ("recompute", plan.recompute.name().to_string()),
            ],
            Degrees::Wafer(plan) => vec![
                ("systems", plan.systems.to_string()),
                ("micro-batch", plan.micro_batch.to_string()),
                ("accumulation", plan.accumulation.to_string()),
                ("mode", plan.mode.name().to_string()),
                ("recompute", plan.recompute.name().to_string()),
                ("checkpoint-every", plan.checkpoint_every.to_string()),
                ("kept", if plan.outside { "outside" } else { "wafer" }.to_string()),
                ("replicas", plan.replicas.to_string()),
            ],
        }
    }
}

impl fmt::Display for Degrees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Degrees::Gpu(plan) => plan.fmt(f),
            Degrees::Wafer(plan) => plan.fmt(f),
        }
    }
}
