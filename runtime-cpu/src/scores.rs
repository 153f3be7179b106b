//! Attention without fusion: scores stay in memory, as `[row][heads][keys]`, one step at a time.
//!
//! Slow and plain; it is what `--fusion off` runs and what the fused form is compared with.

use crate::attention::Span;
use crate::cache::KeyValues;
use crate::program::{KeyOp, Mask};

/// Scores of every new token: for each of `heads` heads `keys` values, of which the row's sequence uses the first ones.
pub struct ScoreRows<'a> {
    /// The new tokens.
    pub spans: &'a [Span],
    /// Query heads.
    pub heads: usize,
    /// Values per head.
    pub keys: usize,
}

impl ScoreRows<'_> {
    /// Every row with its span and position.
    fn rows(&self) -> impl Iterator<Item = (usize, Span, usize)> + '_ {
        self.spans.iter().flat_map(|s| (0..s.tokens).map(move |t| (s.first_row + t, *s, s.cached + t)))
    }

    /// `q kᵀ` for every head.
    pub fn scores(&self, cache: &KeyValues, layer: usize, q: &[f32], pitch: usize, out: &mut [f32]) {
        let d = cache.head_dim;
        for (row, span, _) in self.rows() {
            for head in 0..self.heads {
                let keys = cache.head(layer, span.sequence, head * cache.heads / self.heads);
                let q = &q[row * pitch + head * d..][..d];
                for position in 0..span.cached + span.tokens {
                    let dot = q.iter().enumerate().map(|(i, q)| q * cache.value(keys, position, i)).sum();
                    out[(row * self.heads + head) * self.keys + position] = dot;
                }
            }
        }
    }

    /// A pointwise op or a softmax.
    pub fn apply(&self, op: &KeyOp, slopes: &[f32], x: &[f32], out: &mut [f32]) {
        for (row, span, position) in self.rows() {
            for head in 0..self.heads {
                let at = (row * self.heads + head) * self.keys;
                let used = span.cached + span.tokens;
                let (x, out) = (&x[at..at + used], &mut out[at..at + used]);
                match op {
                    KeyOp::Scale { by } => out.iter_mut().zip(x).for_each(|(o, x)| *o = x * *by as f32),
                    KeyOp::Mask(mask) => masked(mask, slopes.get(head).copied(), position, x, out),
                    KeyOp::Softmax => softmax(x, out),
                }
            }
        }
    }

    /// `p v` for every head.
    pub fn values(&self, cache: &KeyValues, layer: usize, p: &[f32], out: &mut [f32], pitch: usize) {
        let d = cache.head_dim;
        for (row, span, _) in self.rows() {
            for head in 0..self.heads {
                let values = cache.head(layer, span.sequence, head * cache.heads / self.heads);
                let p = &p[(row * self.heads + head) * self.keys..][..span.cached + span.tokens];
                for i in 0..d {
                    let sum = p.iter().enumerate().map(|(at, p)| p * cache.value(values, at, i)).sum();
                    out[row * pitch + head * d + i] = sum;
                }
            }
        }
    }
}

fn masked(mask: &Mask, slope: Option<f32>, position: usize, x: &[f32], out: &mut [f32]) {
    let seen = mask.visible(position, x.len());
    for (at, (o, x)) in out.iter_mut().zip(x).enumerate() {
        let bias = slope.map_or(0.0, |slope| slope * (at as f32 - position as f32));
        *o = if seen.contains(&at) { x + bias } else { f32::NEG_INFINITY };
    }
}

fn softmax(x: &[f32], out: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    out.iter_mut().zip(x).for_each(|(o, x)| *o = (x - max).exp());
    let sum: f32 = out.iter().sum();
    out.iter_mut().for_each(|o| *o /= sum);
}
