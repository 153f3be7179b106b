//! AdamW with global-norm clipping, value by value.

use super::{Params, Real, Tensor, starred};
use lapidary_models::optimizer::{AdamW, CLIP_EPS, ParamUpdate};
use std::collections::BTreeMap;

/// The state of an optimizer.
pub struct Optimizer<T> {
    settings: AdamW,
    updates: Vec<ParamUpdate>,
    steps: i32,
    means: BTreeMap<String, Vec<T>>,
    squares: BTreeMap<String, Vec<T>>,
}

/// The norm of all gradients together.
pub fn global_norm<T: Real>(gradients: &Params<T>) -> f64 {
    let squares = gradients.values().flat_map(|tensor| &tensor.data).map(|g| g.to_f64() * g.to_f64());
    squares.sum::<f64>().sqrt()
}

impl<T: Real> Optimizer<T> {
    /// An optimizer that has not stepped yet; `updates` of [`AdamW::updates`].
    pub fn new(settings: AdamW, updates: Vec<ParamUpdate>) -> Optimizer<T> {
        Optimizer { settings, updates, steps: 0, means: BTreeMap::new(), squares: BTreeMap::new() }
    }

    /// Changes every parameter; returns the norm of the gradients before clipping.
    pub fn step(&mut self, params: &mut Params<T>, gradients: &Params<T>) -> f64 {
        self.steps += 1;
        let norm = global_norm(gradients);
        let clip = self.settings.clip.map_or(1.0, |limit| (limit / (norm + CLIP_EPS)).min(1.0));
        for (name, gradient) in gradients {
            let tensor = params.get_mut(name).unwrap_or_else(|| panic!("no parameter {name}"));
            self.update(name, tensor, gradient, clip);
        }
        norm
    }

    fn update(&mut self, name: &str, tensor: &mut Tensor<T>, gradient: &Tensor<T>, clip: f64) {
        let wildcard = starred(name);
        let update = self.updates.iter().find(|update| update.name == wildcard);
        let ParamUpdate { lr, weight_decay, .. } = update.unwrap_or_else(|| panic!("no rule for {name}"));
        let AdamW { beta1, beta2, eps, .. } = self.settings;
        let zeros = || vec![T::from_f64(0.0); gradient.data.len()];
        let means = self.means.entry(name.to_string()).or_insert_with(zeros);
        let squares = self.squares.entry(name.to_string()).or_insert_with(zeros);
        let c = T::from_f64;
        for (i, w) in tensor.data.iter_mut().enumerate() {
            let g = gradient.data[i] * c(clip);
            means[i] = c(beta1) * means[i] + c(1.0 - beta1) * g;
            squares[i] = c(beta2) * squares[i] + c(1.0 - beta2) * g * g;
            let mean = means[i] / c(1.0 - beta1.powi(self.steps));
            let square = squares[i] / c(1.0 - beta2.powi(self.steps));
            *w = *w - c(lr * weight_decay) * *w - c(*lr) * mean / (square.sqrt() + c(eps));
        }
    }
}
