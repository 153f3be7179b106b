//! How a training run stores and moves its numbers: bytes a parameter, element by element of the state.

use crate::assumption::Assumption;

/// Bytes a parameter of the training state and of its traffic, and what is hidden behind what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Working copy of the weights.
    pub weights: f64,
    /// Accumulated gradients.
    pub gradients: f64,
    /// Master weights and both moments of AdamW.
    pub optimizer: f64,
    /// Traffic of a gathered weight.
    pub gather: f64,
    /// Traffic of a gradient that unsharded or optimizer-sharded ranks sum.
    pub reduce: f64,
    /// Traffic of a gradient that fully sharded ranks sum.
    pub reduce_sharded: f64,
    /// Traffic of an optimizer step: state and gradient read, state and weight written.
    pub optimizer_traffic: f64,
    /// Part of data-parallel traffic that can hide behind compute.
    pub overlap: f64,
    /// Bytes an element of the logits: themselves, and their loss in 32 bits.
    pub logits: f64,
    /// Bytes of device memory that the driver, communicators and libraries hold.
    pub context: f64,
    /// Layers whose gathered weights are there at once.
    pub gathered_layers: f64,
}

impl Recipe {
    /// bf16 work with f32 master weights, AdamW, gradients summed in f32.
    pub const MIXED: Recipe = Recipe {
        weights: 2.0,
        gradients: 4.0,
        optimizer: 12.0,
        gather: 2.0,
        reduce: 4.0,
        reduce_sharded: 2.0,
        optimizer_traffic: 34.0,
        overlap: 0.9,
        logits: 6.0,
        context: 1.0 * 1024.0 * 1024.0 * 1024.0,
        gathered_layers: 2.0,
    };

    /// What a parameter of the training state takes, as assumptions.
    pub fn state_assumptions(&self) -> Vec<Assumption> {
        let zero = "ZeRO (arXiv 1910.02054, section 3.1), mixed-precision Adam";
        vec![
            per_parameter("weight-bytes", self.weights, zero),
            per_parameter("gradient-bytes", self.gradients, "Megatron-LM accumulates in f32"),
            per_parameter("optimizer-bytes", self.optimizer, zero),
        ]
    }

    /// What GPUs move and hold beside it, as assumptions.
    pub fn traffic_assumptions(&self) -> Vec<Assumption> {
        let optimizer = "reads state and gradient, writes state and weight, clears the gradient";
        let overlap = "IBM blog on FSDP: about 90 % is hidden; never more than the compute beside it";
        let context = "assumed: driver, NCCL and library workspaces";
        let fragmentation = "the allocator's fragmentation is not counted";
        vec![
            per_parameter("gather-bytes", self.gather, "FSDP with bf16 parameters"),
            per_parameter("reduce-bytes", self.reduce, "Megatron-LM reduces f32 gradients"),
            per_parameter("reduce-bytes-sharded", self.reduce_sharded, "FSDP reduces bf16"),
            per_parameter("optimizer-traffic", self.optimizer_traffic, optimizer),
            Assumption::new("data-parallel-overlap", self.overlap, "ratio", overlap),
            Assumption::new("logits-bytes", self.logits, "B/element", "bf16 logits and an f32 softmax"),
            Assumption::new("context-bytes", self.context, "B", context),
            Assumption::new("fragmentation", 0.0, "ratio", fragmentation),
            Assumption::new("gathered-layers", self.gathered_layers, "count", "FSDP prefetches one layer"),
        ]
    }
}

fn per_parameter(name: &str, value: f64, source: &str) -> Assumption {
    Assumption::new(name, value, "B/parameter", source)
}
