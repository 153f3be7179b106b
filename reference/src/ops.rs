//! One small function per op, written as its formula reads.

use super::{Operand, Real, Tensor};
use lapidary_models::spec::{Activation, NormKind, Pairing, RopeScaling};

/// Row lookup.
pub fn embed<T: Real>(ids: &[Vec<u32>], table: &Tensor<T>) -> Tensor<T> {
    let width = table.width();
    let row = |id: u32| table.data[id as usize * width..][..width].iter().copied();
    let data = ids.iter().flatten().flat_map(|id| row(*id)).collect();
    Tensor::new(vec![ids.len(), ids[0].len(), width], data)
}

/// Adds row `offset + s` of the table.
pub fn position<T: Real>(x: &Tensor<T>, table: &Tensor<T>, offset: usize) -> Tensor<T> {
    let (seq, width) = (x.shape[1], x.width());
    Tensor::build(x.shape.clone(), |i| {
        let (s, d) = (i / width % seq, i % width);
        x.data[i] + table.data[(offset + s) * width + d]
    })
}

/// `x wᵀ`.
pub fn linear<T: Real>(x: &Tensor<T>, w: &Tensor<T>) -> Tensor<T> {
    let (x, w) = (x.map(|x| x.operand(Operand::Row)), w.map(|w| w.operand(Operand::Weight)));
    x.map_rows(w.shape[0], |row| w.rows().map(|weights| dot(row, weights)).collect())
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sum = T::from_f64(0.0);
    for (x, y) in a.iter().zip(b) {
        sum += *x * *y;
    }
    sum
}

/// Adds the bias to every row.
pub fn bias<T: Real>(x: &Tensor<T>, b: &Tensor<T>) -> Tensor<T> {
    x.map_rows(x.width(), |row| row.iter().zip(&b.data).map(|(x, b)| *x + *b).collect())
}

/// Value by value.
pub fn zip<T: Real>(a: &Tensor<T>, b: &Tensor<T>, join: impl Fn(T, T) -> T) -> Tensor<T> {
    assert_eq!(a.shape, b.shape);
    Tensor::build(a.shape.clone(), |i| join(a.data[i], b.data[i]))
}

/// The non-linearities.
pub fn activation<T: Real>(f: Activation, x: T) -> T {
    let c = T::from_f64;
    match f {
        Activation::Silu => x / (c(1.0) + (-x).exp()),
        Activation::Gelu => c(0.5) * x * (c(1.0) + (x * c(0.5f64.sqrt())).erf()),
        Activation::GeluTanh => {
            let inner = c((2.0 / std::f64::consts::PI).sqrt()) * (x + c(0.044715) * x * x * x);
            c(0.5) * x * (c(1.0) + inner.tanh())
        }
        Activation::Relu => {
            if x > c(0.0) {
                x
            } else {
                c(0.0)
            }
        }
        Activation::Relu2 => {
            if x > c(0.0) {
                x * x
            } else {
                c(0.0)
            }
        }
    }
}

/// RMSNorm or LayerNorm over the last axis.
pub fn norm<T: Real>(
    kind: NormKind,
    eps: f64,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    bias: Option<&Tensor<T>>,
) -> Tensor<T> {
    x.map_rows(x.width(), |row| {
        let center = match kind {
            NormKind::Rms => T::from_f64(0.0),
            NormKind::Layer => mean(row.iter().copied()),
        };
        let spread = mean(row.iter().map(|x| (*x - center) * (*x - center)));
        let scale = T::from_f64(1.0) / (spread + T::from_f64(eps)).sqrt();
        let shift = |i: usize| bias.map_or(T::from_f64(0.0), |bias| bias.data[i]);
        row.iter().enumerate().map(|(i, x)| (*x - center) * scale * weight.data[i] + shift(i)).collect()
    })
}

fn mean<T: Real>(values: impl ExactSizeIterator<Item = T>) -> T {
    let count = values.len() as f64;
    let mut sum = T::from_f64(0.0);
    values.for_each(|x| sum += x);
    sum / T::from_f64(count)
}

/// The rotation of one op.
#[derive(Clone, Copy)]
pub struct Rotation {
    /// Width of a head.
    pub head_dim: usize,
    /// Leading dimensions that rotate.
    pub rot_dims: usize,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
    /// Position of the first token.
    pub offset: usize,
}

/// Rotates pairs of the leading dimensions of every head by position times frequency.
pub fn rope<T: Real>(x: &Tensor<T>, r: Rotation) -> Tensor<T> {
    turn(x, r, 1.0)
}

/// Rotates forwards (`direction` 1) or back (-1).
pub fn turn<T: Real>(x: &Tensor<T>, r: Rotation, direction: f64) -> Tensor<T> {
    let (seq, width) = (x.shape[1], x.width());
    let half = r.rot_dims / 2;
    let mut y = x.clone();
    for start in (0..x.data.len()).step_by(r.head_dim) {
        let position = (r.offset + start / width % seq) as f64;
        for pair in 0..half {
            let (a, b) = match r.pairing {
                Pairing::Half => (start + pair, start + pair + half),
                Pairing::Interleaved => (start + 2 * pair, start + 2 * pair + 1),
            };
            let angle = T::from_f64(direction * position * f64::from(frequency(pair, r)));
            y.data[a] = x.data[a] * angle.cos() - x.data[b] * angle.sin();
            y.data[b] = x.data[b] * angle.cos() + x.data[a] * angle.sin();
        }
    }
    y
}

/// `theta^(-2 pair / rot_dims)` in f32, scaled; Llama 3.1's ramp as its reference code defines it.
fn frequency(pair: usize, r: Rotation) -> f32 {
    let plain = 1.0 / (r.theta as f32).powf(2.0 * pair as f32 / r.rot_dims as f32);
    match r.scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain / factor as f32,
        RopeScaling::Llama3 { factor, low_freq, high_freq, original_max } => {
            let turns = original_max as f32 * plain / (2.0 * std::f32::consts::PI);
            let ramp = ((turns - low_freq as f32) / (high_freq - low_freq) as f32).clamp(0.0, 1.0);
            ramp * plain + (1.0 - ramp) * plain / factor as f32
        }
    }
}

/// Old rows, then new ones, along axis 1.
pub fn append<T: Real>(old: Option<&Tensor<T>>, new: &Tensor<T>) -> Tensor<T> {
    let Some(old) = old else { return new.clone() };
    let per_batch = |t: &Tensor<T>| t.shape[1] * t.shape[2];
    let (batch, old_size, new_size) = (new.shape[0], per_batch(old), per_batch(new));
    let mut data = Vec::new();
    for b in 0..batch {
        data.extend_from_slice(&old.data[b * old_size..(b + 1) * old_size]);
        data.extend_from_slice(&new.data[b * new_size..(b + 1) * new_size]);
    }
    Tensor::new(vec![batch, old.shape[1] + new.shape[1], new.shape[2]], data)
}

/// `[B, H, S, L]` dot products of each query head with the key head it shares.
pub fn scores<T: Real>(q: &Tensor<T>, k: &Tensor<T>, heads: usize, kv_heads: usize) -> Tensor<T> {
    let (batch, seq, keys, d) = (q.shape[0], q.shape[1], k.shape[1], q.shape[2] / heads);
    let (q, k) = (q.map(|q| q.operand(Operand::Query)), k.map(|k| k.operand(Operand::Key)));
    Tensor::build(vec![batch, heads, seq, keys], |i| {
        let (b, h, s, l) = (i / (heads * seq * keys), i / (seq * keys) % heads, i / keys % seq, i % keys);
        let shared = h / (heads / kv_heads);
        let query = &q.data[(b * seq + s) * heads * d + h * d..][..d];
        let key = &k.data[(b * keys + l) * kv_heads * d + shared * d..][..d];
        dot(query, key)
    })
}

/// What the mask op says.
#[derive(Clone, Copy)]
pub struct Mask {
    /// Whether later keys are hidden.
    pub causal: bool,
    /// Keys that far back are hidden; 0 for none.
    pub window: usize,
    /// Factor on ALiBi's distances.
    pub alibi: Option<f64>,
    /// The first of the model's heads that these are, and how many it has; all of them where nothing is said.
    pub heads: Option<(usize, usize)>,
    /// Position of the first query.
    pub offset: usize,
}

/// Minus infinity at hidden keys, ALiBi's slope times the distance elsewhere.
pub fn mask<T: Real>(scores: &Tensor<T>, m: Mask) -> Tensor<T> {
    let (heads, seq, keys) = (scores.shape[1], scores.shape[2], scores.shape[3]);
    let (first, all) = m.heads.unwrap_or((0, heads));
    Tensor::build(scores.shape.clone(), |i| {
        let (head, query, key) = (i / (seq * keys) % heads, m.offset + i / keys % seq, i % keys);
        let later = m.causal && key > query;
        let too_far = m.window > 0 && query >= key + m.window;
        if later || too_far {
            return T::from_f64(f64::NEG_INFINITY);
        }
        let distance = query as f64 - key as f64;
        let penalty =
            m.alibi.map_or(0.0, |factor| slope((first + head).min(all - 1), all) * factor * distance);
        scores.data[i] - T::from_f64(penalty)
    })
}

/// ALiBi's slopes: powers of 2^(-8/n) for n heads, n a power of two; the remaining heads take every
/// second slope of twice as many heads.
fn slope(head: usize, heads: usize) -> f64 {
    let power = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    match head.checked_sub(power) {
        None => (-8.0 * (head + 1) as f64 / power as f64).exp2(),
        Some(rest) => (-8.0 * (2 * rest + 1) as f64 / (2 * power) as f64).exp2(),
    }
}

/// Exponentials over their sum, along the last axis.
pub fn softmax<T: Real>(x: &Tensor<T>) -> Tensor<T> {
    x.map_rows(x.width(), |row| {
        let max = row.iter().copied().fold(row[0], |a, b| if b > a { b } else { a });
        let powers: Vec<T> = row.iter().map(|x| (*x - max).exp()).collect();
        let mut sum = T::from_f64(0.0);
        powers.iter().for_each(|p| sum += *p);
        powers.iter().map(|p| *p / sum).collect()
    })
}

/// `[B, S, H·d]`: each head's average of the values it shares.
pub fn values<T: Real>(p: &Tensor<T>, v: &Tensor<T>, heads: usize, kv_heads: usize) -> Tensor<T> {
    let (batch, seq, keys, d) = (p.shape[0], p.shape[2], p.shape[3], v.shape[2] / kv_heads);
    let (p, v) = (p.map(|p| p.operand(Operand::Share)), v.map(|v| v.operand(Operand::Value)));
    Tensor::build(vec![batch, seq, heads * d], |i| {
        let (b, s, h, column) = (i / (seq * heads * d), i / (heads * d) % seq, i / d % heads, i % d);
        let shared = h / (heads / kv_heads);
        let mut sum = T::from_f64(0.0);
        for l in 0..keys {
            let weight = p.data[((b * heads + h) * seq + s) * keys + l];
            sum += weight * v.data[(b * keys + l) * kv_heads * d + shared * d + column];
        }
        sum
    })
}

/// The last position of every sequence.
pub fn last_token<T: Real>(x: &Tensor<T>) -> Tensor<T> {
    let (seq, width) = (x.shape[1], x.width());
    let last = x.rows().skip(seq - 1).step_by(seq);
    Tensor::new(vec![x.shape[0], 1, width], last.flatten().copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slopes that the ALiBi paper prints for 8 heads, and its rule for 12: those of 8, then every second of 16.
    #[test]
    fn alibi_slopes_are_the_published_ones() {
        let slopes = |heads: usize| -> Vec<f64> { (0..heads).map(|head| slope(head, heads)).collect() };
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        let twelve = slopes(12);
        assert_eq!(twelve[..8], slopes(8)[..]);
        assert_eq!(twelve[8..], [slopes(16)[0], slopes(16)[2], slopes(16)[4], slopes(16)[6]]);
    }

    #[test]
    fn a_mask_hides_the_future_and_what_is_out_of_the_window() {
        let scores = Tensor::build(vec![1, 1, 2, 5], |_| 0.0f64);
        let mask = mask(&scores, Mask { causal: true, window: 3, alibi: None, heads: None, offset: 2 });
        let seen: Vec<u8> = mask.data.iter().map(|x| u8::from(*x == 0.0)).collect();
        // Queries stand at positions 2 and 3; each sees itself and the two before.
        assert_eq!(seen, [1, 1, 1, 0, 0, 0, 1, 1, 1, 0]);
    }

    #[test]
    fn alibi_takes_slope_times_distance() {
        let scores = Tensor::build(vec![1, 8, 1, 4], |_| 1.0f64);
        let mask = mask(&scores, Mask { causal: true, window: 0, alibi: Some(2.0), heads: None, offset: 3 });
        assert_eq!(mask.data[..4], [1.0 - 3.0, 1.0 - 2.0, 1.0 - 1.0, 1.0]);
    }

    #[test]
    fn the_pairings_rotate_their_own_dimensions() {
        let x = Tensor::new(vec![1, 2, 6], (0..12).map(f64::from).collect());
        let rotation = |pairing| Rotation {
            head_dim: 6,
            rot_dims: 4,
            pairing,
            theta: 1.0,
            scaling: RopeScaling::None,
            offset: 0,
        };
        let (sin, cos) = 1f64.sin_cos();
        let half = rope(&x, rotation(Pairing::Half));
        assert_eq!(half.data[..6], x.data[..6], "position 0 does not turn");
        assert_eq!(half.data[6], 6.0 * cos - 8.0 * sin);
        assert_eq!(half.data[10..], x.data[10..], "dimensions past rot_dims do not turn");
        let interleaved = rope(&x, rotation(Pairing::Interleaved));
        assert_eq!(interleaved.data[7], 7.0 * cos + 6.0 * sin);
    }

    /// Values of GELU and its tanh form at 1, to 12 digits: 0.841344746069, 0.841191990608.
    #[test]
    fn activations_have_their_known_values() {
        assert!((activation(Activation::Gelu, 1.0f64) - 0.841_344_746_069).abs() < 1e-12);
        assert!((activation(Activation::GeluTanh, 1.0f64) - 0.841_191_990_608).abs() < 1e-12);
        assert_eq!(activation(Activation::Relu2, -3.0f64), 0.0);
        assert_eq!(activation(Activation::Relu2, 3.0f64), 9.0);
        assert_eq!(activation(Activation::Silu, 0.0f64), 0.0);
    }
}
