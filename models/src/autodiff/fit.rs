//! Which layers should compute what again when memory is short: the least extra work that fits.
//!
//! Layers are alike, so only the number under each policy matters, and with three policies every pair of numbers is
//! tried. Layers that compute more again come first: they keep their values longest.

use super::recompute::costs;
use super::{Policy, Recompute};
use crate::graph::{Graph, GraphError};

/// The policy of each layer with the least work done again under which all layers together keep at most `budget` bytes;
/// none if even their inputs are more. `training` is a graph as [`super::differentiate`] makes it.
///
/// # Errors
/// As [`super::recompute`].
pub fn fitting(training: &Graph, budget: u64) -> Result<Option<Policy>, GraphError> {
    let layers = training.n_layers;
    let [none, selective, full] = costs(training)?;
    let total = |each: fn(&(u64, u64)) -> u64, counts: [u64; 3]| {
        let parts = [&none, &selective, &full].map(each);
        parts
            .iter()
            .zip(counts)
            .fold(0u64, |sum, (part, count)| sum.saturating_add(part.saturating_mul(count)))
    };
    let mut best: Option<([u64; 3], u64)> = None;
    for again in 0..=layers {
        for partly in 0..=layers - again {
            let counts = [layers - again - partly, partly, again];
            let flops = total(|cost| cost.1, counts);
            let fits = total(|cost| cost.0, counts) <= budget;
            if fits && best.is_none_or(|(_, least)| flops < least) {
                best = Some((counts, flops));
            }
        }
    }
    let named = |[none, selective, full]: [u64; 3]| {
        let run = |policy, count| std::iter::repeat_n(policy, count as usize);
        let parts = run(Recompute::Full, full).chain(run(Recompute::Selective, selective));
        Policy::PerLayer(parts.chain(run(Recompute::None, none)).collect())
    };
    Ok(best.map(|(counts, _)| named(counts)))
}
