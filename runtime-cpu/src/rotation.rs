//! Cosines and sines of rotary embeddings, by position.

use crate::program::Rotation;
use crate::rows::{Turn, pitch};
use lapidary_models::spec::Pairing;

/// The table of one rotation: a row per position, first the factor of each rotating dimension itself, then that of its
/// partner. With them `y[i] = x[i] c[i] + x[partner(i)] s[i]` for both pairings.
pub struct RotationTable {
    data: Vec<f32>,
    width: usize,
}

/// How a rotation acts on a row.
pub fn turn(rotation: &Rotation) -> Turn {
    Turn {
        head_dim: rotation.head_dim as usize,
        rot_dims: rotation.rope.rot_dims as usize,
        interleaved: rotation.rope.pairing == Pairing::Interleaved,
    }
}

impl RotationTable {
    /// The table for positions below `positions`. Angles are products of f32, as published code has them.
    pub fn new(rotation: &Rotation, positions: usize) -> RotationTable {
        RotationTable::directed(rotation, positions, false)
    }

    /// The same, or the table that turns back.
    pub fn directed(rotation: &Rotation, positions: usize, back: bool) -> RotationTable {
        let turn = turn(rotation);
        let width = pitch(2 * turn.rot_dims as u64);
        let frequencies = rotation.rope.inverse_frequencies();
        let mut data = vec![0.0; width * positions];
        for (position, row) in data.chunks_mut(width).enumerate() {
            for at in 0..turn.rot_dims {
                let first = at.min(turn.partner(at));
                let pair = if turn.interleaved { first / 2 } else { first };
                let (sin, cos) = f64::from(position as f32 * frequencies[pair]).sin_cos();
                let sin = if back { -sin } else { sin };
                row[at] = cos as f32;
                row[turn.rot_dims + at] = if at == first { -sin as f32 } else { sin as f32 };
            }
        }
        RotationTable { data, width }
    }

    /// Elements of a row, as row functions read it.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The row of a position.
    pub fn row(&self, position: usize) -> &[f32] {
        &self.data[position * self.width..][..self.width]
    }
}
