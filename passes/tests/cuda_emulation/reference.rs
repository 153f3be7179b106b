//! The obvious meaning of a region, in f64, one operation at a time.
use lapidary_passes::cuda::spec::*;

/// A dense tensor in canonical layout.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Tensor {
    pub fn zeros(ty: &TensorType) -> Tensor {
        let shape: Vec<usize> = ty.shape.iter().map(|&d| d as usize).collect();
        let n = shape.iter().product();
        Tensor { shape, data: vec![0.0; n] }
    }

    pub fn cols(&self) -> usize {
        *self.shape.last().unwrap_or(&1)
    }

    fn map(&self, f: impl Fn(usize, f64) -> f64) -> Tensor {
        let data = self.data.iter().enumerate().map(|(i, &x)| f(i, x)).collect();
        Tensor { shape: self.shape.clone(), data }
    }
}

/// Values of all inputs and results, given the inputs and what the caches held before.
pub fn evaluate(spec: &KernelSpec, inputs: &[Tensor], caches: &[(String, Tensor)]) -> Vec<Tensor> {
    let mut values = inputs.to_vec();
    for op in &spec.ops {
        let x = |i: usize| &values[op.operands[i]];
        let result = match &op.op {
            KernelOp::Embed => embed(x(0), x(1), &op.ty),
            KernelOp::EmbedPart { first } => {
                let (d, rows, first) = (x(1).cols(), x(1).shape[0] as f64, *first as f64);
                Tensor::zeros(&op.ty).map(|i, _| {
                    let id = x(0).data[i / d] - first;
                    if (0.0..rows).contains(&id) { x(1).data[id as usize * d + i % d] } else { 0.0 }
                })
            }
            KernelOp::Position { offset } => {
                let (s, d, table) = (x(0).shape[1], x(0).cols(), x(1));
                x(0).map(|i, v| v + table.data[(*offset as usize + (i / d) % s) * d + i % d])
            }
            KernelOp::Linear => linear(x(0), x(1), &op.ty),
            KernelOp::Bias => x(0).map(|i, v| v + x(1).data[i % x(1).data.len()]),
            KernelOp::Add => x(0).map(|i, v| v + x(1).data[i]),
            KernelOp::Mul => x(0).map(|i, v| v * x(1).data[i]),
            KernelOp::Scale { by } => x(0).map(|_, v| v * by),
            KernelOp::Activation(f) => x(0).map(|_, v| activation(*f, v)),
            KernelOp::Norm { kind, eps } => {
                norm(*kind, *eps, x(0), x(1), op.operands.get(2).map(|&b| &values[b]))
            }
            KernelOp::Rope(rope) => rotate(rope, x(0)),
            KernelOp::KvAppend { cache, cached } => {
                let past = &caches.iter().find(|(name, _)| name == cache).expect("a cache").1;
                append(past, x(0), *cached as usize)
            }
            KernelOp::Scores { heads, kv_heads } => {
                scores(x(0), x(1), *heads as usize, *kv_heads as usize, &op.ty)
            }
            KernelOp::Mask(mask) => apply_mask(mask, x(0)),
            KernelOp::Softmax => softmax(x(0)),
            KernelOp::Values { heads, kv_heads } => {
                weigh(x(0), x(1), *heads as usize, *kv_heads as usize, &op.ty)
            }
            KernelOp::LastToken => {
                let (s, d) = (x(0).shape[1], x(0).cols());
                let mut y = Tensor::zeros(&op.ty);
                for i in 0..y.data.len() {
                    y.data[i] = x(0).data[(i / d * s + s - 1) * d + i % d];
                }
                y
            }
            KernelOp::Backward(kind) => {
                backward(kind, &(0..op.operands.len()).map(x).collect::<Vec<_>>(), &op.ty)
            }
        };
        values.push(result);
    }
    values
}

fn embed(ids: &Tensor, table: &Tensor, ty: &TensorType) -> Tensor {
    let d = table.cols();
    Tensor::zeros(ty).map(|i, _| table.data[ids.data[i / d] as usize * d + i % d])
}

fn linear(x: &Tensor, w: &Tensor, ty: &TensorType) -> Tensor {
    let (k, n) = (x.cols(), w.shape[0]);
    Tensor::zeros(ty).map(|i, _| (0..k).map(|c| x.data[i / n * k + c] * w.data[i % n * k + c]).sum())
}

fn activation(f: ActivationFn, x: f64) -> f64 {
    match f {
        ActivationFn::Silu => x / (1.0 + (-x).exp()),
        ActivationFn::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        ActivationFn::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        ActivationFn::Relu => x.max(0.0),
        ActivationFn::Relu2 => x.max(0.0).powi(2),
    }
}

/// The error function by its series; enough terms for |x| < 6.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.5 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn norm(kind: NormKind, eps: f64, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Tensor {
    let d = x.cols();
    let mut y = x.clone();
    for row in y.data.chunks_mut(d) {
        let mean = if kind == NormKind::Layer { row.iter().sum::<f64>() / d as f64 } else { 0.0 };
        let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / d as f64;
        for (i, v) in row.iter_mut().enumerate() {
            *v = (*v - mean) / (var + eps).sqrt() * w.data[i] + b.map_or(0.0, |b| b.data[i]);
        }
    }
    y
}

fn rotate(rope: &Rope, x: &Tensor) -> Tensor {
    let (s, d, rot) = (x.shape[1], x.cols(), rope.rot_dims as usize);
    let (head, half) = (rope.head_dim as usize, rot / 2);
    x.map(|i, v| {
        let (position, at) = (rope.offset as usize + (i / d) % s, i % d % head);
        if at >= rot {
            return v;
        }
        let (pair, first, partner) = match rope.pairing {
            Pairing::Half => (at % half, at < half, if at < half { i + half } else { i - half }),
            Pairing::Interleaved => (at / 2, at % 2 == 0, i ^ 1),
        };
        let mut frequency = rope.theta.powf(-2.0 * pair as f64 / rot as f64);
        if let RopeScaling::Linear { factor } = rope.scaling {
            frequency /= factor;
        }
        if let RopeScaling::Llama3 { factor, low_freq, high_freq, original } = rope.scaling {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength > original / low_freq {
                frequency /= factor;
            } else if wavelength > original / high_freq {
                let smooth = (original / wavelength - low_freq) / (high_freq - low_freq);
                frequency = (1.0 - smooth) * frequency / factor + smooth * frequency;
            }
        }
        let angle = position as f64 * frequency;
        let other = x.data[partner];
        v * angle.cos() + if first { -other } else { other } * angle.sin()
    })
}

fn append(past: &Tensor, x: &Tensor, cached: usize) -> Tensor {
    let (s, l, d) = (x.shape[1], past.shape[1], x.cols());
    let mut whole = past.clone();
    for b in 0..x.shape[0] {
        for row in 0..s {
            let (to, from) = ((b * l + cached + row) * d, (b * s + row) * d);
            whole.data[to..to + d].copy_from_slice(&x.data[from..from + d]);
        }
    }
    whole
}

fn scores(q: &Tensor, k: &Tensor, heads: usize, kv_heads: usize, ty: &TensorType) -> Tensor {
    let (s, l, d) = (q.shape[1], k.shape[1], q.cols() / heads);
    Tensor::zeros(ty).map(|i, _| {
        let (b, h, row, key) = (i / l / s / heads, i / l / s % heads, i / l % s, i % l);
        let kv = h / (heads / kv_heads);
        let from_q = (b * s + row) * heads * d + h * d;
        let from_k = (b * l + key) * kv_heads * d + kv * d;
        (0..d).map(|c| q.data[from_q + c] * k.data[from_k + c]).sum()
    })
}

/// ALiBi's slope of a head: the geometric series for a power of two of heads, else the series of the next lower power
/// followed by every other member of the next higher one.
fn slope(head: usize, heads: usize) -> f64 {
    let power = 1usize << heads.ilog2();
    if head < power {
        return 2f64.powf(-8.0 * (head + 1) as f64 / power as f64);
    }
    2f64.powf(-4.0 * (2 * (head - power) + 1) as f64 / power as f64)
}

fn apply_mask(mask: &Mask, x: &Tensor) -> Tensor {
    let (h, s, l) = (x.shape[1], x.shape[2], x.shape[3]);
    x.map(|i, v| {
        let (head, query, key) = (i / l / s % h, (mask.offset as usize + i / l % s) as i64, (i % l) as i64);
        let hidden = (mask.causal && key > query) || (mask.window > 0 && query - key >= mask.window as i64);
        let bias = if mask.alibi { slope(head, h) * mask.alibi_scaling * (key - query) as f64 } else { 0.0 };
        if hidden { f64::NEG_INFINITY } else { v + bias }
    })
}

fn softmax(x: &Tensor) -> Tensor {
    let mut y = x.clone();
    let n = x.cols();
    for row in y.data.chunks_mut(n) {
        let most = row.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|v| *v = (*v - most).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    }
    y
}

fn weigh(p: &Tensor, v: &Tensor, heads: usize, kv_heads: usize, ty: &TensorType) -> Tensor {
    let (s, l) = (p.shape[2], p.shape[3]);
    let d = ty.cols() as usize / heads;
    Tensor::zeros(ty).map(|i, _| {
        let (b, row, h, c) = (i / (heads * d) / s, i / (heads * d) % s, i / d % heads, i % d);
        let kv = h / (heads / kv_heads);
        (0..l)
            .map(|key| {
                let weight = p.data[((b * heads + h) * s + row) * l + key];
                if weight == 0.0 { 0.0 } else { weight * v.data[(b * l + key) * kv_heads * d + kv * d + c] }
            })
            .sum()
    })
}

/// Operations of a backward pass. A gradient's own old value is added where the result is compared.
fn backward(op: &Backward, x: &[&Tensor], ty: &TensorType) -> Tensor {
    let mut y = Tensor::zeros(ty);
    match op {
        Backward::CrossEntropy => {
            let counted = x[1].data.iter().filter(|label| **label >= 0.0).count().max(1) as f64;
            for (row, label) in
                x[0].data.chunks(x[0].cols()).zip(&x[1].data).filter(|(_, label)| **label >= 0.0)
            {
                let sum: f64 = row.iter().map(|v| v.exp()).sum();
                y.data[0] += (sum.ln() - row[*label as usize]) / counted;
            }
        }
        Backward::CrossEntropyDx => {
            let counted = x[1].data.iter().filter(|label| **label >= 0.0).count().max(1) as f64;
            let v = x[0].cols();
            for (r, label) in x[1].data.iter().enumerate().filter(|(_, label)| **label >= 0.0) {
                let row = &x[0].data[r * v..][..v];
                let sum: f64 = row.iter().map(|v| v.exp()).sum();
                for (c, (dx, logit)) in y.data[r * v..][..v].iter_mut().zip(row).enumerate() {
                    let hit = if c == *label as usize { 1.0 } else { 0.0 };
                    *dx = (logit.exp() / sum - hit) / counted;
                }
            }
        }
        Backward::LinearDx => {
            let (n, k) = (x[0].cols(), x[1].cols());
            y = y.map(|i, _| (0..n).map(|o| x[0].data[i / k * n + o] * x[1].data[o * k + i % k]).sum());
        }
        Backward::LinearDw => {
            let (n, k, rows) = (x[0].cols(), x[1].cols(), x[0].data.len() / x[0].cols());
            y = y.map(|i, _| (0..rows).map(|r| x[0].data[r * n + i / k] * x[1].data[r * k + i % k]).sum());
        }
        Backward::ColumnSum => {
            let n = x[0].cols();
            x[0].data.iter().enumerate().for_each(|(i, v)| y.data[i % n] += v);
        }
        Backward::ActivationDx(f) => {
            let h = 1e-5;
            y = x[0].map(|i, v| (activation(*f, v + h) - activation(*f, v - h)) / (2.0 * h) * x[1].data[i]);
        }
        Backward::NormDx { kind, eps } => {
            // The derivative of Σ dy norm(x) by each element, from the definition of the norm.
            let d = x[0].cols();
            for r in 0..x[0].data.len() / d {
                let (row, dy) = (&x[0].data[r * d..][..d], &x[2].data[r * d..][..d]);
                let (mean, scale) = statistics(*kind, *eps, row);
                let g: Vec<f64> = (0..d).map(|c| dy[c] * x[1].data[c]).collect();
                let hat: Vec<f64> = row.iter().map(|v| (v - mean) * scale).collect();
                let along = g.iter().zip(&hat).map(|(g, h)| g * h).sum::<f64>() / d as f64;
                let all = if *kind == NormKind::Layer { g.iter().sum::<f64>() / d as f64 } else { 0.0 };
                (0..d).for_each(|c| y.data[r * d + c] = scale * (g[c] - all - hat[c] * along));
            }
        }
        Backward::NormDw { kind, eps } => {
            let d = x[0].cols();
            for (row, dy) in x[0].data.chunks(d).zip(x[1].data.chunks(d)) {
                let (mean, scale) = statistics(*kind, *eps, row);
                (0..d).for_each(|c| y.data[c] += (row[c] - mean) * scale * dy[c]);
            }
        }
        Backward::RopeDx(rope) => {
            // A rotation is orthogonal: turning by the negative frequencies turns back.
            let forward = |v: &Tensor| rotate(rope, v);
            for i in 0..x[0].data.len() {
                let mut unit = Tensor::zeros(ty);
                unit.data[i] = 1.0;
                y.data[i] = forward(&unit).data.iter().zip(&x[0].data).map(|(u, dy)| u * dy).sum();
            }
        }
        Backward::MaskDx(mask) => {
            let hidden = apply_mask(
                &Mask { alibi: false, ..mask.clone() },
                &Tensor { data: vec![0.0; x[0].data.len()], ..x[0].clone() },
            );
            y = x[0].map(|i, v| if hidden.data[i].is_finite() { v } else { 0.0 });
        }
        Backward::SoftmaxDx => {
            let l = x[0].cols();
            for r in 0..x[0].data.len() / l {
                let sum: f64 = match x.get(2) {
                    Some(sums) => sums.data[r],
                    None => (0..l).map(|c| x[0].data[r * l + c] * x[1].data[r * l + c]).sum(),
                };
                (0..l).for_each(|c| y.data[r * l + c] = x[0].data[r * l + c] * (x[1].data[r * l + c] - sum));
            }
        }
        Backward::LogSum => {
            let rows = x[0].data.chunks(x[0].cols());
            y.data = rows.map(|row| row.iter().map(|v| v.exp()).sum::<f64>().log2()).collect();
        }
        Backward::SoftmaxOf => {
            let l = x[0].cols();
            y = x[0].map(|i, v| v.exp() / x[1].data[i / l].exp2());
        }
        Backward::RowProducts { heads } => {
            let (h, s, d) = (*heads as usize, x[0].shape[1], x[0].cols());
            for (i, a) in x[0].data.iter().enumerate() {
                let (row, head) = (i / d, i % d / (d / h));
                y.data[(row / s * h + head) * s + row % s] += a * x[1].data[i];
            }
        }
        Backward::ValuesDv { heads, kv_heads } => {
            let (h, l, s) = (*heads as usize, x[0].shape[3], x[0].shape[2]);
            let (ratio, d) = (h / *kv_heads as usize, x[1].cols() / h);
            for (i, p) in x[0].data.iter().enumerate() {
                let (b, head, query, key) = (i / (h * s * l), i / (s * l) % h, i / l % s, i % l);
                for c in 0..d {
                    let to = (b * l + key) * (h / ratio * d) + head / ratio * d + c;
                    y.data[to] += p * x[1].data[(b * s + query) * h * d + head * d + c];
                }
            }
        }
        Backward::EmbedDw { first } => {
            let (d, rows) = (x[1].cols(), ty.shape[0] as f64);
            for (i, v) in x[1].data.iter().enumerate() {
                let row = x[0].data[i / d] - *first as f64;
                if (0.0..rows).contains(&row) {
                    y.data[row as usize * d + i % d] += v;
                }
            }
        }
        Backward::PositionDw { offset } => {
            let (s, d) = (x[0].shape[1], x[0].cols());
            let at = |i: usize| (*offset as usize + i / d % s) * d + i % d;
            x[0].data.iter().enumerate().for_each(|(i, v)| y.data[at(i)] += v);
        }
        Backward::Gradient { .. } => y = x[0].clone(),
    }
    y
}

/// Mean (zero where rows are not centred) and inverse deviation of a row.
fn statistics(kind: NormKind, eps: f64, row: &[f64]) -> (f64, f64) {
    let d = row.len() as f64;
    let mean = if kind == NormKind::Layer { row.iter().sum::<f64>() / d } else { 0.0 };
    (mean, 1.0 / (row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / d + eps).sqrt())
}
