//! The reference interpreter: slow, obvious, op by op from the graph.
//!
//! It shares no arithmetic with any back end, not even RoPE's frequencies or ALiBi's slopes, and is itself held
//! against stored tensors of a public implementation. Generic over f32 and f64.

mod adamw;
mod backward;
mod greedy;
mod interpret;
mod ops;
mod ranks;
mod real;
mod tensor;
mod train;

pub use adamw::{Optimizer, global_norm};
pub use greedy::{continuation, largest};
pub use interpret::{Cache, Oracle, Run};
pub use ranks::Ranks;
pub use real::{Operand, Real};
pub use tensor::Tensor;
pub use train::{Batch, Step};

use lapidary_models::mup::Fold;
use std::collections::BTreeMap;

/// Values of every parameter, by canonical name with the layer filled in.
pub type Params<T> = BTreeMap<String, Tensor<T>>;

/// The parameters as a folded graph wants them.
pub fn fold_params<T: Real>(params: &Params<T>, fold: &Fold) -> Params<T> {
    let factor = |name: &str| T::from_f64(fold.scale(&starred(name)));
    params.iter().map(|(name, tensor)| (name.clone(), tensor.map(|x| x * factor(name)))).collect()
}

/// `layers.3.attn.q.weight` as `layers.*.attn.q.weight`.
fn starred(name: &str) -> String {
    match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((_, rest)) => format!("layers.*.{rest}"),
        None => name.to_string(),
    }
}

/// Mean cross entropy of `logits [B, S, V]` at every position but the last against the next id.
pub fn next_token_loss<T: Real>(logits: &Tensor<T>, ids: &[Vec<u32>]) -> f64 {
    let vocab = logits.shape[2];
    let mut losses = Vec::new();
    for (b, sequence) in ids.iter().enumerate() {
        for (s, pair) in sequence.windows(2).enumerate() {
            let start = (b * sequence.len() + s) * vocab;
            let row: Vec<f64> = logits.data[start..start + vocab].iter().map(|x| x.to_f64()).collect();
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
            losses.push(max + sum.ln() - row[pair[1] as usize]);
        }
    }
    losses.iter().sum::<f64>() / losses.len() as f64
}
