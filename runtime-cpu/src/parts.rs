//! The weights of one rank: those of the whole model, of which it reads its layers and its rows or columns.

use crate::program::{CpuProgram, TrainProgram};
use crate::weights::{Held, TensorView, WeightError, Weights};
use lapidary_models::shard::{Part, part_of, whole_name};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Weights as a rank's program names and shapes them.
struct RankWeights<'w> {
    whole: &'w dyn Weights,
    layers: Vec<u64>,
    parts: &'w BTreeMap<String, Part>,
}

/// Works with the whole model's weights as a program reads them: its part of them where it is one rank's.
pub fn of_rank<T>(program: &CpuProgram, weights: &dyn Weights, work: impl FnOnce(&dyn Weights) -> T) -> T {
    match &program.share {
        Some(share) => {
            let layers = share.first_layer..share.first_layer.saturating_add(program.model.layers);
            work(&RankWeights { whole: weights, layers: layers.collect(), parts: &share.parts })
        }
        None => work(weights),
    }
}

/// The same for a training program.
pub fn of_training_rank<T>(
    program: &TrainProgram,
    weights: &dyn Weights,
    work: impl FnOnce(&dyn Weights) -> T,
) -> T {
    match &program.share {
        Some(share) => {
            work(&RankWeights { whole: weights, layers: share.layers.clone(), parts: &share.parts })
        }
        None => work(weights),
    }
}

impl Weights for RankWeights<'_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let view = self.whole.tensor(&whole_name(name, &self.layers))?;
        let Some(part) = part_of(self.parts, name) else { return Ok(view) };
        let found = view.shape.get(part.axis).copied();
        if found != Some(part.whole) {
            let mut expected = view.shape.clone();
            expected.iter_mut().skip(part.axis).take(1).for_each(|n| *n = part.whole);
            return Err(WeightError::Shape { name: name.into(), found: view.shape, expected });
        }
        let shape = part.shape(&view.shape);
        let size = view.dtype.bytes() as usize;
        // Whole rows lie together: no copy, so they can stay where the file is mapped.
        let bytes = match (part.axis, part.length == part.held, view.bytes) {
            (0, true, Cow::Borrowed(bytes)) => {
                let row = view.shape[1..].iter().product::<u64>() as usize * size;
                Cow::Borrowed(&bytes[part.start as usize * row..][..part.length as usize * row])
            }
            (_, _, bytes) => Cow::Owned(part.cut(&view.shape, size, &bytes, 0)),
        };
        Ok(TensorView { dtype: view.dtype, shape, bytes })
    }

    fn held(&self, bytes: &[u8]) -> Option<Held> {
        self.whole.held(bytes)
    }
}
