//! What an optimizer step does with the gradients: AdamW with multipliers for each parameter.
//!
//! With g the gradient after clipping, t the step from 1, and η, λ the parameter's own rate and decay:
//!
//! ```text
//! n = sqrt(Σ all parameters g²)          g = g · min(1, clip / (n + 1e-6))
//! m = β₁ m + (1 - β₁) g                  v = β₂ v + (1 - β₂) g²
//! w = w - η λ w - η (m / (1 - β₁ᵗ)) / (sqrt(v / (1 - β₂ᵗ)) + ε)
//! ```
//!
//! This is AdamW of Loshchilov and Hutter (arXiv 1711.05101) with the clipping of `torch.nn.utils.clip_grad_norm_`. Rates
//! and decays come from [`crate::mup::parameter_table`].

use crate::graph::Graph;
use crate::mup::{ParamRule, parameter_table};
use crate::spec::ModelSpec;
use crate::work::Work;
use serde::{Deserialize, Serialize};

/// Added to the norm before the limit is divided by it.
pub const CLIP_EPS: f64 = 1e-6;

/// Which parameters decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Matrices and tables, not biases and norms.
    #[default]
    Matrices,
    /// Every parameter, as LLM360's Amber was trained.
    All,
}

/// The settings of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Learning rate before a parameter's multiplier.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Weight decay, multiplied by the parameter's learning rate.
    pub weight_decay: f64,
    /// Limit on the norm of all gradients together.
    pub clip: Option<f64>,
    /// Which parameters decay.
    pub decay: Decay,
}

/// What AdamW does with one parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamUpdate {
    /// Canonical name; `*` stands for the layer.
    pub name: String,
    /// Its learning rate.
    pub lr: f64,
    /// Its weight decay, still to be multiplied by its learning rate.
    pub weight_decay: f64,
}

impl AdamW {
    /// Rate and decay of every parameter of a model, in the order of its graph.
    pub fn updates(&self, spec: &ModelSpec) -> Vec<ParamUpdate> {
        parameter_table(spec).into_iter().map(|rule| self.update(rule)).collect()
    }

    fn update(&self, rule: ParamRule) -> ParamUpdate {
        let share = match self.decay {
            Decay::All => 1.0,
            Decay::Matrices => rule.wd_mult,
        };
        ParamUpdate { lr: self.lr * rule.lr_mult, weight_decay: self.weight_decay * share, name: rule.name }
    }
}

/// Work of a step over all parameters of a graph, unfused: the norm reads every gradient; the update reads gradient,
/// weight and two moments and writes the last three, all in f32.
pub fn step_work(graph: &Graph) -> Work {
    let n = graph.parameters();
    // Square and sum for the norm (2); clip, two moments (6), two corrections, root, sum, quotient, decay, step (9).
    Work {
        matmul_flops: 0,
        vector_flops: n.saturating_mul(17),
        bytes_read: n.saturating_mul(5 * 4),
        bytes_written: n.saturating_mul(3 * 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::builtin;

    /// CrystalCoder: hidden matrices at 1/16 of the rate; biases and norms do not decay. Amber: one rate, all decay.
    #[test]
    fn rates_and_decays_are_the_published_ones() {
        let settings = AdamW {
            lr: 0.012,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-9,
            weight_decay: 0.1,
            clip: Some(1.0),
            decay: Decay::Matrices,
        };
        let of = |updates: &[ParamUpdate], name: &str| {
            let update = updates.iter().find(|update| update.name == name).unwrap();
            (update.lr, update.weight_decay)
        };
        let crystal = settings.updates(&builtin("crystalcoder").unwrap());
        assert_eq!(of(&crystal, "layers.*.mlp.down.weight"), (0.012 / 16.0, 0.1));
        assert_eq!(of(&crystal, "layers.*.mlp.down.bias"), (0.012, 0.0));
        assert_eq!(of(&crystal, "embed.weight"), (0.012, 0.1));
        let amber = AdamW { decay: Decay::All, ..settings }.updates(&builtin("amber").unwrap());
        assert!(amber.iter().all(|update| (update.lr, update.weight_decay) == (0.012, 0.1)));
    }
}
