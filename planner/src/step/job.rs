//! What is trained, how it is spread, and by which software.

use super::physics::Physics;
use super::shape::Shape;
use super::stack::Stack;
use super::work::{Work, vocabulary_rows};
use crate::plan::{Recompute, Sharding};
use crate::request::Batch;
use lapidary_hardware::HardwareSpec;
use serde::{Deserialize, Serialize};

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionKernel {
    /// Products, mask, 32-bit softmax and dropout as kernels of their own.
    Unfused,
    /// Products, and one kernel for scale, mask and softmax (Megatron-LM).
    FusedSoftmax,
    /// FlashAttention in Triton.
    #[serde(rename = "flash-1-triton")]
    Flash1Triton,
    /// FlashAttention 1.
    #[serde(rename = "flash-1")]
    Flash1,
    /// FlashAttention 2.
    #[serde(rename = "flash-2")]
    Flash2,
}

impl AttentionKernel {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            AttentionKernel::Unfused => "unfused",
            AttentionKernel::FusedSoftmax => "fused-softmax",
            AttentionKernel::Flash1Triton => "flash-1-triton",
            AttentionKernel::Flash1 => "flash-1",
            AttentionKernel::Flash2 => "flash-2",
        }
    }

    /// Whether the scores stay on the chip.
    pub const fn flash(self) -> bool {
        matches!(self, AttentionKernel::Flash1Triton | AttentionKernel::Flash1 | AttentionKernel::Flash2)
    }
}

/// Order of forward and backward passes in a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// One forward, one backward (PipeDream-flush).
    OneForwardOneBackward,
    /// Backward of weights fills the bubbles, memory of 1F1B (arXiv 2401.10241, ZB-H1 and its automatic kin).
    ZeroBubble1,
    /// The same with twice the memory, which closes the bubble (ZB-H2 and its automatic kin).
    ZeroBubble2,
}

/// How many layers are computed again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Again {
    /// This part of every stage.
    Share(f64),
    /// This many layers of every stage, or all it has.
    Layers(u64),
}

impl Again {
    /// Layers among `layers`.
    pub fn of(self, layers: f64) -> f64 {
        match self {
            Again::Share(share) => share * layers,
            Again::Layers(count) => (count as f64).min(layers),
        }
    }
}

/// Degrees and choices of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    /// Tensor-parallel ranks.
    pub tensor: u64,
    /// Pipeline stages.
    pub pipeline: u64,
    /// Chunks of layers a rank holds; 1 without interleaving.
    pub chunks: u64,
    /// Data-parallel ranks.
    pub data: u64,
    /// Ranks that share each sequence, passing keys and values round (context parallelism).
    pub context: u64,
    /// Data-parallel ranks that share the experts of a layer (expert parallelism).
    pub expert: u64,
    /// Sequences of a micro-batch.
    pub micro_batch: u64,
    /// Micro-batches of a step on each rank; may be broken where a published batch does not divide.
    pub accumulation: f64,
    /// How data-parallel ranks share the state.
    pub sharding: Sharding,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Layers that the recomputation is about.
    pub again: Again,
    /// Layers of the first stage and of the last, the others sharing the rest as evenly as they can; the rule of
    /// [`Job::stage_layers`] where absent.
    pub ends: Option<(u64, u64)>,
    /// Whether row kernels are split over the tensor-parallel ranks.
    pub sequence_parallel: bool,
    /// Order of passes.
    pub schedule: Schedule,
}

/// Everything a price depends on.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Sizes of the model.
    pub shape: Shape,
    /// What one rank does for one sequence.
    pub work: &'a Work,
    /// Work of a step.
    pub batch: Batch,
    /// How it is spread.
    pub layout: Layout,
    /// How attention is computed.
    pub attention: AttentionKernel,
    /// Whether norms are one kernel each, whatever the stack says.
    pub fused_norm: bool,
    /// Whether the optimizer state lives on the host.
    pub offload: bool,
    /// Whether numbers are fp16, whose gradients some stacks sum as they are.
    pub half: bool,
    /// Software.
    pub stack: &'a Stack,
    /// Machine, cut to the devices of the layout.
    pub machine: &'a HardwareSpec,
    /// Constants.
    pub physics: &'a Physics,
}

impl Job<'_> {
    /// Sequences of a micro-batch for each rank that shares them.
    pub fn sequences(&self) -> f64 {
        self.layout.micro_batch as f64 / self.layout.context as f64
    }

    /// Tokens of a micro-batch on one rank.
    pub fn tokens(&self) -> f64 {
        self.sequences() * self.batch.seq_len as f64
    }

    /// Tensor-parallel ranks as a number.
    pub fn tp(&self) -> f64 {
        self.layout.tensor as f64
    }

    /// Ranks that row kernels are split over.
    pub fn row_split(&self) -> f64 {
        if self.layout.sequence_parallel { self.tp() } else { 1.0 }
    }

    /// Parameters of the experts of a layer on one rank, in the mean over the layers.
    pub fn expert_parameters(&self) -> f64 {
        self.shape.expert_matrices() / (self.tp() * self.layout.expert as f64)
    }

    /// Bytes of a gradient that data-parallel ranks sum.
    pub fn gradient_bytes(&self) -> f64 {
        if self.half { self.stack.gradient_bytes_fp16 } else { self.stack.gradient_bytes }
    }

    /// Rows of the vocabulary on one rank, padded as the stack does.
    pub fn vocab_rows(&self) -> f64 {
        vocabulary_rows(self.shape.vocab as u64, self.layout.tensor, self.stack) as f64
    }

    /// Layers of a stage. Where the layout does not say, layers that do not divide are counted with embedding and head
    /// as one layer each where that divides (BLOOM and the zero-bubble runs did so); otherwise the first stages take
    /// one more.
    pub fn stage_layers(&self, stage: u64) -> f64 {
        let (layers, stages) = (self.shape.layers, self.layout.pipeline);
        if let Some(ends) = self.layout.ends {
            return split_layers(layers, stages, ends, stage) as f64;
        }
        if layers.is_multiple_of(stages) {
            return (layers / stages) as f64;
        }
        if (layers + 2).is_multiple_of(stages) {
            let inside = (layers + 2) / stages;
            let end = (stage == 0) as u64 + (stage + 1 == stages) as u64;
            return (inside - end) as f64;
        }
        (layers / stages + (stage < layers % stages) as u64) as f64
    }
}

impl Job<'_> {
    /// The first stage behind `index` that is not like it.
    pub fn alike_until(&self, index: u64) -> u64 {
        let last = self.layout.pipeline - 1;
        if index == 0 || index == last {
            return index + 1;
        }
        match self.layout.ends {
            Some(ends) => {
                let inner = self.shape.layers.saturating_sub(ends.0 + ends.1);
                let longer = 1 + inner % (self.layout.pipeline - 2);
                if index < longer { longer } else { last }
            }
            None if self.shape.layers.is_multiple_of(self.layout.pipeline) => last,
            None => index + 1,
        }
    }
}

/// Layers of a stage where the first and the last have `ends`: the ones between share the rest, earlier ones taking one
/// more where it does not divide.
pub fn split_layers(layers: u64, stages: u64, ends: (u64, u64), stage: u64) -> u64 {
    if stages == 1 {
        return layers;
    }
    if stage == 0 || stage + 1 == stages {
        return if stage == 0 { ends.0 } else { ends.1 };
    }
    let (inner, between) = (layers.saturating_sub(ends.0 + ends.1), stages - 2);
    inner / between + u64::from(stage - 1 < inner % between)
}
