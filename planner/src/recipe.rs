//! How wafers store the training state: bytes a parameter.

use crate::assumption::Assumption;

/// Bytes a parameter of the training state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Working copy of the weights.
    pub weights: f64,
    /// Accumulated gradients.
    pub gradients: f64,
    /// Master weights and both moments of AdamW.
    pub optimizer: f64,
}

impl Recipe {
    /// bf16 work with f32 master weights, AdamW, gradients summed in f32.
    pub const MIXED: Recipe = Recipe { weights: 2.0, gradients: 4.0, optimizer: 12.0 };

    /// What a parameter of the training state takes, as assumptions.
    pub fn state_assumptions(&self) -> Vec<Assumption> {
        let zero = "ZeRO (arXiv 1910.02054, section 3.1), mixed-precision Adam";
        let per_parameter = |name, value, source| Assumption::new(name, value, "B/parameter", source);
        vec![
            per_parameter("weight-bytes", self.weights, zero),
            per_parameter("gradient-bytes", self.gradients, "Megatron-LM accumulates in f32"),
            per_parameter("optimizer-bytes", self.optimizer, zero),
        ]
    }
}
