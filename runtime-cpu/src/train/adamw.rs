//! AdamW over all weights: the rule of [`lapidary_models::optimizer`].

use super::memory::Weight;
use lapidary_models::optimizer::{AdamW, CLIP_EPS};
use rayon::prelude::*;

/// Elements of a gradient whose squares are added by one thread, so that the sum does not depend on how many there are.
const SHARE: usize = 1 << 14;

/// The sum of the squares of the gradients of those weights that count here.
pub fn squares(weights: &[Weight], counts: &dyn Fn(&Weight) -> bool) -> f64 {
    let squares = |chunk: &[f32]| chunk.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
    let of = |weight: &Weight| -> f64 {
        let parts: Vec<f64> = weight.reduced().par_chunks(SHARE).map(squares).collect();
        parts.iter().sum()
    };
    weights.iter().filter(|weight| counts(weight)).map(of).sum()
}

/// Factors of one step for one weight.
#[derive(Clone, Copy)]
struct Factors {
    clip: f32,
    keep: f32,
    rate: f32,
    beta1: f32,
    beta2: f32,
    /// One over the second correction.
    correction: f32,
    eps: f32,
}

/// One step, the `t`th from 1, on every weight; `rates` are learning rate and decay of each parameter, `norm` that of all
/// gradients together.
pub fn update(settings: &AdamW, t: i32, rates: &[(f64, f64)], norm: f64, weights: &mut [Weight]) {
    let clip = settings.clip.map_or(1.0, |limit| (limit / (norm + CLIP_EPS)).min(1.0));
    for weight in weights {
        let (lr, decay) = rates[weight.parameter];
        let factors = Factors {
            clip: clip as f32,
            keep: (1.0 - lr * decay) as f32,
            rate: (lr / (1.0 - settings.beta1.powi(t))) as f32,
            beta1: settings.beta1 as f32,
            beta2: settings.beta2 as f32,
            correction: (1.0 / (1.0 - settings.beta2.powi(t))) as f32,
            eps: settings.eps as f32,
        };
        step(weight, factors);
    }
}

fn step(weight: &mut Weight, f: Factors) {
    let own = weight.own.clone();
    weight.mean.resize(own.len(), 0.0);
    weight.square.resize(own.len(), 0.0);
    let Weight { values, gradient, scattered, held, mean, square, .. } = weight;
    let gradient = if scattered.is_empty() { &gradient[own.clone()] } else { &scattered[..own.len()] };
    let values = if held.is_empty() { &mut values[own] } else { &mut held[..own.len()] };
    let moments = mean.par_chunks_mut(SHARE).zip(square.par_chunks_mut(SHARE));
    let values = values.par_chunks_mut(SHARE).zip(gradient.par_chunks(SHARE));
    values.zip(moments).for_each(|((values, gradient), (mean, square))| {
        for (((w, g), m), v) in values.iter_mut().zip(gradient).zip(mean).zip(square) {
            let g = g * f.clip;
            *m = f.beta1 * *m + (1.0 - f.beta1) * g;
            *v = f.beta2 * *v + (1.0 - f.beta2) * g * g;
            *w = *w * f.keep - f.rate * *m / ((*v * f.correction).sqrt() + f.eps);
        }
    });
}
