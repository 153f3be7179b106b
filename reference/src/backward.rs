//! One small function per op of a backward pass, written as its formula reads.

use super::ops::{self, Mask, Rotation};
use super::{Real, Tensor};
use lapidary_models::spec::{Activation, NormKind};

/// A sum that starts at zero.
fn sum<T: Real>(values: impl Iterator<Item = T>) -> T {
    let mut total = T::from_f64(0.0);
    values.for_each(|x| total += x);
    total
}

fn zeros<T: Real>(shape: Vec<usize>) -> Tensor<T> {
    Tensor::build(shape, |_| T::from_f64(0.0))
}

/// `dy w`.
pub fn linear_dx<T: Real>(dy: &Tensor<T>, w: &Tensor<T>) -> Tensor<T> {
    let width = w.width();
    dy.map_rows(width, |row| {
        (0..width).map(|k| sum(row.iter().enumerate().map(|(n, dy)| *dy * w.data[n * width + k]))).collect()
    })
}

/// `dyᵀ x`.
pub fn linear_dw<T: Real>(dy: &Tensor<T>, x: &Tensor<T>) -> Tensor<T> {
    let (n, k) = (dy.width(), x.width());
    let mut dw = zeros(vec![n, k]);
    for (dy, x) in dy.rows().zip(x.rows()) {
        for (i, dy) in dy.iter().enumerate() {
            for (j, x) in x.iter().enumerate() {
                dw.data[i * k + j] += *dy * *x;
            }
        }
    }
    dw
}

/// The sum of all rows.
pub fn column_sum<T: Real>(dy: &Tensor<T>) -> Tensor<T> {
    let width = dy.width();
    Tensor::build(vec![width], |i| sum(dy.rows().map(|row| row[i])))
}

/// `f'(x)`.
pub fn slope<T: Real>(f: Activation, x: T) -> T {
    let c = T::from_f64;
    let above = |slope: T| if x > c(0.0) { slope } else { c(0.0) };
    match f {
        Activation::Silu => {
            let gate = c(1.0) / (c(1.0) + (-x).exp());
            gate * (c(1.0) + x * (c(1.0) - gate))
        }
        Activation::Gelu => {
            let below = c(0.5) * (c(1.0) + (x * c(0.5f64.sqrt())).erf());
            let density = (-(x * x) / c(2.0)).exp() / c((2.0 * std::f64::consts::PI).sqrt());
            below + x * density
        }
        Activation::GeluTanh => {
            let root = c((2.0 / std::f64::consts::PI).sqrt());
            let t = (root * (x + c(0.044715) * x * x * x)).tanh();
            let inner = root * (c(1.0) + c(3.0 * 0.044715) * x * x);
            c(0.5) * (c(1.0) + t) + c(0.5) * x * (c(1.0) - t * t) * inner
        }
        Activation::Relu => above(c(1.0)),
        Activation::Relu2 => above(c(2.0) * x),
    }
}

/// The row before weight and bias, and one over its deviation.
fn normalised<T: Real>(kind: NormKind, eps: f64, row: &[T]) -> (Vec<T>, T) {
    let count = T::from_f64(row.len() as f64);
    let center = match kind {
        NormKind::Rms => T::from_f64(0.0),
        NormKind::Layer => sum(row.iter().copied()) / count,
    };
    let spread = sum(row.iter().map(|x| (*x - center) * (*x - center))) / count;
    let scale = T::from_f64(1.0) / (spread + T::from_f64(eps)).sqrt();
    (row.iter().map(|x| (*x - center) * scale).collect(), scale)
}

/// With x̂ the normalised row, r one over its deviation and g = w dy: `r (g - mean(g) - x̂ mean(g x̂))`, for RMSNorm
/// without `mean(g)`.
pub fn norm_dx<T: Real>(
    kind: NormKind,
    eps: f64,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    dy: &Tensor<T>,
) -> Tensor<T> {
    let count = T::from_f64(x.width() as f64);
    let mut data = Vec::new();
    for (x, dy) in x.rows().zip(dy.rows()) {
        let (hat, scale) = normalised(kind, eps, x);
        let g: Vec<T> = dy.iter().zip(&weight.data).map(|(dy, w)| *dy * *w).collect();
        let along = sum(g.iter().zip(&hat).map(|(g, x)| *g * *x)) / count;
        let center = match kind {
            NormKind::Rms => T::from_f64(0.0),
            NormKind::Layer => sum(g.iter().copied()) / count,
        };
        data.extend(g.iter().zip(&hat).map(|(g, x)| scale * (*g - center - *x * along)));
    }
    Tensor::new(x.shape.clone(), data)
}

/// The sum over rows of x̂ dy.
pub fn norm_dw<T: Real>(kind: NormKind, eps: f64, x: &Tensor<T>, dy: &Tensor<T>) -> Tensor<T> {
    let mut dw = zeros(vec![x.width()]);
    for (x, dy) in x.rows().zip(dy.rows()) {
        let (hat, _) = normalised(kind, eps, x);
        hat.iter().zip(dy).enumerate().for_each(|(i, (x, dy))| dw.data[i] += *x * *dy);
    }
    dw
}

/// Rotates back: a rotation's transpose is its inverse.
pub fn rope_dx<T: Real>(dy: &Tensor<T>, rotation: Rotation) -> Tensor<T> {
    ops::turn(dy, rotation, -1.0)
}

/// Zero where the mask hides.
pub fn mask_dx<T: Real>(ds: &Tensor<T>, mask: Mask) -> Tensor<T> {
    let seen = ops::mask(&zeros::<T>(ds.shape.clone()), mask);
    ops::zip(ds, &seen, |ds, seen| if seen.to_f64() == f64::NEG_INFINITY { T::from_f64(0.0) } else { ds })
}

/// `p (dp - Σ p dp)` along the last axis.
pub fn softmax_dx<T: Real>(p: &Tensor<T>, dp: &Tensor<T>) -> Tensor<T> {
    let mut data = Vec::new();
    for (p, dp) in p.rows().zip(dp.rows()) {
        let mean = sum(p.iter().zip(dp).map(|(p, dp)| *p * *dp));
        data.extend(p.iter().zip(dp).map(|(p, dp)| *p * (*dp - mean)));
    }
    Tensor::new(p.shape.clone(), data)
}

/// `[B, L, K·d]`: for each key-value head, `pᵀ y` of the heads that share it.
pub fn values_dv<T: Real>(p: &Tensor<T>, y: &Tensor<T>, heads: usize, kv_heads: usize) -> Tensor<T> {
    let (batch, seq, keys, d) = (p.shape[0], p.shape[2], p.shape[3], y.shape[2] / heads);
    let group = heads / kv_heads;
    Tensor::build(vec![batch, keys, kv_heads * d], |i| {
        let (b, l, shared, column) =
            (i / (keys * kv_heads * d), i / (kv_heads * d) % keys, i / d % kv_heads, i % d);
        sum((shared * group..(shared + 1) * group).flat_map(|h| {
            (0..seq).map(move |s| {
                let weight = p.data[((b * heads + h) * seq + s) * keys + l];
                weight * y.data[(b * seq + s) * heads * d + h * d + column]
            })
        }))
    })
}

/// Each row of dy added to the row of its id.
pub fn embed_dw<T: Real>(ids: &[Vec<u32>], dy: &Tensor<T>, rows: usize) -> Tensor<T> {
    let width = dy.width();
    let mut dw = zeros(vec![rows, width]);
    for (id, dy) in ids.iter().flatten().zip(dy.rows()) {
        dy.iter().enumerate().for_each(|(i, dy)| dw.data[*id as usize * width + i] += *dy);
    }
    dw
}

/// The sum over the batch, at row `offset + s`.
pub fn position_dw<T: Real>(dy: &Tensor<T>, offset: usize, rows: usize) -> Tensor<T> {
    let (seq, width) = (dy.shape[1], dy.width());
    let mut dw = zeros(vec![rows, width]);
    for (row, dy) in dy.rows().enumerate() {
        let start = (offset + row % seq) * width;
        dy.iter().enumerate().for_each(|(i, dy)| dw.data[start + i] += *dy);
    }
    dw
}

/// Zero but for the last position.
pub fn last_token_dx<T: Real>(dy: &Tensor<T>, seq: usize) -> Tensor<T> {
    let (batch, width) = (dy.shape[0], dy.width());
    let mut dx = zeros(vec![batch, seq, width]);
    for (b, dy) in dy.rows().enumerate() {
        dx.data[((b + 1) * seq - 1) * width..][..width].copy_from_slice(dy);
    }
    dx
}

/// Mean over the labelled positions of `log Σ exp(logits) - logits[label]`.
pub fn cross_entropy<T: Real>(logits: &Tensor<T>, labels: &[Vec<i32>]) -> Tensor<T> {
    let losses: Vec<T> = labelled(logits, labels).map(|(row, label)| loss(row, label)).collect();
    let mean = sum(losses.iter().copied()) / T::from_f64(losses.len() as f64);
    Tensor::new(vec![1], vec![mean])
}

fn labelled<'a, T: Real>(
    logits: &'a Tensor<T>,
    labels: &'a [Vec<i32>],
) -> impl Iterator<Item = (&'a [T], usize)> {
    let all = logits.rows().zip(labels.iter().flatten());
    all.filter_map(|(row, label)| usize::try_from(*label).ok().map(|label| (row, label)))
}

fn loss<T: Real>(row: &[T], label: usize) -> T {
    let max = row.iter().copied().fold(row[0], |a, b| if b > a { b } else { a });
    max + sum(row.iter().map(|x| (*x - max).exp())).ln() - row[label]
}

/// `(softmax(logits) - 1 at the label) / labelled positions`; zero without a label.
pub fn cross_entropy_dx<T: Real>(logits: &Tensor<T>, labels: &[Vec<i32>]) -> Tensor<T> {
    let count = T::from_f64(labelled(logits, labels).count() as f64);
    let p = ops::softmax(logits);
    let mut data = Vec::new();
    for (p, label) in p.rows().zip(labels.iter().flatten()) {
        match usize::try_from(*label) {
            Err(_) => data.extend(p.iter().map(|_| T::from_f64(0.0))),
            Ok(label) => data.extend(p.iter().enumerate().map(|(i, p)| {
                let hit = T::from_f64(if i == label { 1.0 } else { 0.0 });
                (*p - hit) / count
            })),
        }
    }
    Tensor::new(logits.shape.clone(), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against differences of the functions themselves.
    #[test]
    fn slopes_are_those_of_the_activations() {
        use Activation::{Gelu, GeluTanh, Relu, Relu2, Silu};
        for f in [Silu, Gelu, GeluTanh, Relu, Relu2] {
            for x in [-3.0, -0.7, 0.4, 2.5f64] {
                let h = 1e-6;
                let difference = (ops::activation(f, x + h) - ops::activation(f, x - h)) / (2.0 * h);
                assert!((slope(f, x) - difference).abs() < 1e-8, "{f:?} at {x}");
            }
        }
    }

    #[test]
    fn a_position_without_a_label_does_not_count() {
        let logits = Tensor::new(vec![1, 2, 2], vec![0.0f64, 0.0, 5.0, -1.0]);
        assert_eq!(cross_entropy(&logits, &[vec![1, -1]]).data, [2f64.ln()]);
        assert_eq!(cross_entropy_dx(&logits, &[vec![1, -1]]).data, [0.5, -0.5, 0.0, 0.0]);
    }
}
