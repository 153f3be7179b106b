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

/// A plan for GPUs. Ranks are numbered tensor innermost, then context, data and pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GpuPlan {
    /// Tensor-parallel ranks.
    pub tp: u64,
    /// Pipeline stages.
    pub pp: u64,
    /// Data-parallel ranks.
    pub dp: u64,
    /// Ranks that share each sequence (context parallelism).
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub cp: u64,
    /// Data-parallel ranks that share the experts of a layer (expert parallelism).
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ep: u64,
    /// Sequences of a micro-batch.
    pub micro_batch: u64,
    /// Micro-batches of a step on each data-parallel rank.
    pub accumulation: u64,
    /// How data-parallel ranks share the state.
    pub sharding: Sharding,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Layers of each stage that it is about; all of them where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recompute_layers: Option<u64>,
    /// Whether row kernels and what they keep are split over the tensor-parallel ranks.
    pub sequence_parallel: bool,
    /// Chunks of layers a rank holds in an interleaved pipeline; 1 without.
    pub chunks: u64,
    /// Layers of the first stage.
    pub first_layers: u64,
    /// Layers of the last stage; the stages between share the rest.
    pub last_layers: u64,
}

impl GpuPlan {
    /// Degrees with one sequence a micro-batch and everything else left out: the state whole on every rank, nothing
    /// computed again, stages as even as `layers` allow.
    pub fn of_degrees(tp: u64, pp: u64, dp: u64, layers: u64) -> GpuPlan {
        GpuPlan {
            tp,
            pp,
            dp,
            cp: 1,
            ep: 1,
            micro_batch: 1,
            accumulation: 1,
            sharding: Sharding::None,
            recompute: Recompute::None,
            recompute_layers: None,
            sequence_parallel: tp > 1,
            chunks: 1,
            first_layers: layers / pp.max(1),
            last_layers: layers / pp.max(1),
        }
    }

    /// The degrees alone, as `tp4pp2dp28`; with experts as `tp4pp2dp28ep4`.
    pub fn tag(&self) -> String {
        let shared = if self.cp > 1 { format!("cp{}", self.cp) } else { String::new() };
        let experts = if self.ep > 1 { format!("ep{}", self.ep) } else { String::new() };
        format!("tp{}{shared}pp{}dp{}{experts}", self.tp, self.pp, self.dp)
    }

    /// Devices it runs on.
    pub fn world(&self) -> u64 {
        self.tp * self.cp * self.pp * self.dp
    }

    /// The word for what is computed again: of `full`, `partial` where not all layers are.
    pub fn recompute_word(&self) -> &'static str {
        if self.recompute_layers.is_some() { PARTIAL } else { self.recompute.name() }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut list = vec![
            ("tp", self.tp.to_string()),
            ("pp", self.pp.to_string()),
            ("dp", self.dp.to_string()),
            ("cp", self.cp.to_string()),
            ("ep", self.ep.to_string()),
            ("micro-batch", self.micro_batch.to_string()),
            ("sharding", self.sharding.name().to_string()),
            ("recompute", self.recompute_word().to_string()),
        ];
        if let Some(layers) = self.recompute_layers {
            list.push(("recompute-layers", layers.to_string()));
        }
        list.extend([
            ("sequence-parallel", if self.sequence_parallel { "on" } else { "off" }.to_string()),
            ("chunks", self.chunks.to_string()),
            ("first-stage", self.first_layers.to_string()),
            ("last-stage", self.last_layers.to_string()),
        ]);
        list
    }
}

fn one() -> u64 {
    1
}

fn is_one(ranks: &u64) -> bool {
    *ranks == 1
}

/// The word for full recomputation of a part of the layers.
pub const PARTIAL: &str = "partial";

/// What is usual is left out: one chunk a rank, ends of equal length, sequence parallelism beside tensor parallelism.
impl fmt::Display for GpuPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sharding, recompute) = (self.sharding.name(), self.recompute.name());
        write!(f, "{}-mb{}-shard-{sharding}-recompute-{recompute}", self.tag(), self.micro_batch)?;
        if let Some(layers) = self.recompute_layers {
            write!(f, "-of{layers}")?;
        }
        if self.chunks > 1 {
            write!(f, "-chunks{}", self.chunks)?;
        }
        if self.tp > 1 && !self.sequence_parallel {
            f.write_str("-whole-rows")?;
        }
        if self.first_layers != self.last_layers {
            write!(f, "-ends{}+{}", self.first_layers, self.last_layers)?;
        }
        Ok(())
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
                a.cp != b.cp,
                a.ep != b.ep,
                a.micro_batch != b.micro_batch,
                a.sharding != b.sharding,
                (a.recompute, a.recompute_layers) != (b.recompute, b.recompute_layers),
                a.sequence_parallel != b.sequence_parallel && a.tp > 1 && b.tp > 1,
                a.chunks != b.chunks,
                a.pp == b.pp && (a.first_layers, a.last_layers) != (b.first_layers, b.last_layers),
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
            Degrees::Gpu(plan) => plan.settings(),
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
