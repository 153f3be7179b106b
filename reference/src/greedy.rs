//! The likeliest continuation of a prompt: prefill, then one token at a time through the cache.

use crate::{Cache, Oracle, Params, Real};
use lapidary_models::graph::GraphError;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};

/// `count` ids after a prompt of at least one id.
///
/// # Errors
/// When prompt and continuation need more positions than the model has.
pub fn continuation<T: Real>(
    spec: &ModelSpec,
    params: &Params<T>,
    prompt: &[u32],
    count: usize,
) -> Result<Vec<u32>, GraphError> {
    let mut cache = Cache::new();
    let mut ids = prompt.to_vec();
    let mut cached = 0;
    for _ in 0..count {
        let new = ids[cached..].to_vec();
        let mode = if cached == 0 { Mode::Prefill } else { Mode::Decode };
        let graph =
            Graph::build(spec, mode, Dims { batch: 1, seq: new.len() as u64, cached: cached as u64 })?;
        let logits = Oracle { graph: &graph, params }.run(&[new], &mut cache).logits;
        cached = ids.len();
        ids.push(largest(&logits.data[..spec.vocab as usize]));
    }
    Ok(ids.split_off(prompt.len()))
}

/// Index of the largest value, the lowest among equals.
pub fn largest<T: Real>(values: &[T]) -> u32 {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best as u32
}
