//! Runs a module in f64, op by op, with parameters that depend on their names alone: what rewrites must not change.

use lapidary_ir::{Block, Module, Op as IrOp, Value};
use lapidary_models::Op;
use lapidary_models::op::Cache;
use lapidary_models::spec::{Activation, NormKind, Pairing, RopeScaling};
use lapidary_passes::view::read_op;

type Tensor = Vec<f64>;

/// What `@main` returns for token ids that count upwards.
pub fn run(module: &Module<'_>) -> Vec<Tensor> {
    let main = module.lookup("main").unwrap();
    let block = main.region_block(0).unwrap();
    let ids = block.arguments()[0];
    let vocab = module
        .op()
        .walk()
        .iter()
        .find(|op| op.is("nn.embed"))
        .map_or(1, |op| op.operand(1).unwrap().shape()[0]);
    let tokens = (0..elements(ids)).map(|i| ((i * 7 + 3) as u64 % vocab) as f64).collect();
    Run { module, layer: 0 }.block(block, vec![tokens])
}

fn elements(value: Value<'_>) -> usize {
    value.shape().iter().product::<u64>() as usize
}

/// A value in [-1, 1] that depends on its name and its place.
fn noise(name: &str, layer: usize, place: usize) -> f64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let bytes = name.bytes().chain(layer.to_le_bytes()).chain(place.to_le_bytes());
    bytes.for_each(|byte| state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    state ^= state >> 29;
    state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

struct Run<'m, 'c> {
    module: &'m Module<'c>,
    layer: usize,
}

impl<'c> Run<'_, 'c> {
    fn block(&mut self, block: Block<'c>, arguments: Vec<Tensor>) -> Vec<Tensor> {
        let tensors = block.arguments().into_iter().filter(|value| !value.shape().is_empty());
        let mut known: Vec<(Value<'c>, Tensor)> = tensors.zip(arguments).collect();
        for op in block.ops() {
            let operands: Vec<Tensor> = op
                .operands()
                .into_iter()
                .filter_map(|value| {
                    known.iter().find(|(found, _)| *found == value).map(|(_, tensor)| tensor.clone())
                })
                .collect();
            match op.name() {
                "func.return" | "nn.yield" => return operands,
                "nn.fused" => {
                    let results = self.block(op.region_block(0).unwrap(), operands);
                    known.extend(op.results().into_iter().zip(results));
                }
                "nn.repeat" => {
                    let result = self.repeat(op, operands);
                    known.push((op.result(0).unwrap(), result));
                }
                "nn.param" => known.push((op.result(0).unwrap(), self.param(op))),
                _ => known.push((op.result(0).unwrap(), self.op(op, &operands))),
            }
        }
        Vec::new()
    }

    fn repeat(&mut self, op: IrOp<'c>, mut carried: Vec<Tensor>) -> Tensor {
        let body = self.module.lookup(op.symbol("body").unwrap()).unwrap().region_block(0).unwrap();
        for layer in 0..op.i64("times").unwrap() as usize {
            self.layer = layer;
            carried = self.block(body, carried);
        }
        carried.remove(0)
    }

    fn param(&self, op: IrOp<'c>) -> Tensor {
        let (name, scale, value) =
            (op.text("name").unwrap(), op.f64("scale").unwrap_or(1.0), op.result(0).unwrap());
        let layer = if op.operand_count() > 0 { self.layer } else { 0 };
        // Small enough that eps matters, wide enough that no softmax saturates.
        let spread = if value.shape().len() > 1 { 1.0 / (value.width() as f64).sqrt() } else { 0.3 };
        let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let small = if name.starts_with("embed") { 0.05 } else { 1.0 };
        (0..elements(value)).map(|i| scale * (centre + small * spread * noise(name, layer, i))).collect()
    }

    fn op(&self, op: IrOp<'c>, operands: &[Tensor]) -> Tensor {
        let kind = read_op(op).unwrap();
        let result = op.result(0).unwrap();
        let (shape, width) = (result.shape(), result.width() as usize);
        let x = &operands[0];
        let pointwise = |f: &dyn Fn(f64) -> f64| x.iter().map(|v| f(*v)).collect::<Tensor>();
        let both = |f: &dyn Fn(f64, f64) -> f64| {
            x.iter().enumerate().map(|(i, a)| f(*a, operands[1][i % operands[1].len()])).collect::<Tensor>()
        };
        match kind {
            Op::Embed => {
                x.iter().flat_map(|id| operands[1][*id as usize * width..][..width].to_vec()).collect()
            }
            Op::Position { offset } => {
                let row = |i: usize| offset as usize + i / width % shape[1] as usize;
                x.iter().enumerate().map(|(i, v)| v + operands[1][row(i) * width + i % width]).collect()
            }
            Op::Linear => linear(x, &operands[1], op.operand(0).unwrap().width() as usize),
            Op::Add | Op::Bias => both(&|a, b| a + b),
            Op::Mul => both(&|a, b| a * b),
            Op::Scale { by, .. } => pointwise(&|v| v * by),
            Op::Activation(function) => pointwise(&|v| activation(function, v)),
            Op::Norm { kind, eps } => {
                x.chunks(width).flat_map(|row| norm(row, kind, eps, &operands[1..])).collect()
            }
            Op::Softmax => x.chunks(width).flat_map(softmax).collect(),
            Op::LastToken => {
                let seq = op.operand(0).unwrap().shape()[1] as usize;
                x.chunks(seq * width).flat_map(|tokens| tokens[(seq - 1) * width..].to_vec()).collect()
            }
            Op::Rope { .. } => rope(x, &kind, shape[1] as usize, width),
            Op::KvAppend { cache, cached } => self.append(x, cache, cached as usize, &shape),
            Op::Scores { heads, kv_heads } => scores(op, operands, heads as usize, kv_heads as usize),
            Op::Values { heads, kv_heads } => values(op, operands, heads as usize, kv_heads as usize),
            Op::Mask { .. } => mask(x, &kind, &shape),
            _ => unreachable!("{} stands in no forward module", kind.name()),
        }
    }

    fn append(&self, x: &Tensor, cache: Cache, cached: usize, shape: &[u64]) -> Tensor {
        let (keys, width) = (shape[1] as usize, shape[2] as usize);
        let new = keys - cached;
        let old = |b: usize, i: usize| 0.3 * noise(cache.name(), self.layer, b * keys * width + i);
        let row = |b: usize| {
            (0..cached * width).map(move |i| old(b, i)).chain(x[b * new * width..][..new * width].to_vec())
        };
        (0..shape[0] as usize).flat_map(row).collect()
    }
}

fn linear(x: &[f64], w: &[f64], k: usize) -> Tensor {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    x.chunks(k).flat_map(|row| w.chunks(k).map(move |out| dot(row, out))).collect()
}

fn activation(function: Activation, x: f64) -> f64 {
    match function {
        Activation::Silu => x / (1.0 + (-x).exp()),
        // The tanh form stands in for both: rewrites do not look inside.
        Activation::Gelu | Activation::GeluTanh => {
            0.5 * x * (1.0 + (0.797_884_56 * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
    }
}

fn norm(row: &[f64], kind: NormKind, eps: f64, affine: &[Tensor]) -> Tensor {
    let n = row.len() as f64;
    let mean = if kind == NormKind::Layer { row.iter().sum::<f64>() / n } else { 0.0 };
    let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let bias = |i: usize| affine.get(1).map_or(0.0, |bias| bias[i]);
    row.iter()
        .enumerate()
        .map(|(i, v)| (v - mean) / (variance + eps).sqrt() * affine[0][i] + bias(i))
        .collect()
}

fn softmax(row: &[f64]) -> Tensor {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Tensor = row.iter().map(|v| (v - most).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|v| v / sum).collect()
}

fn rope(x: &[f64], op: &Op, seq: usize, width: usize) -> Tensor {
    let Op::Rope { head_dim, rot_dims, pairing, theta, scaling, offset } = op else { unreachable!() };
    let (head_dim, rot) = (*head_dim as usize, *rot_dims as usize);
    let mut out = x.to_vec();
    for (start, row) in (0..x.len()).step_by(head_dim).map(|start| (start, start / width)) {
        let position = (*offset as usize + row % seq) as f64;
        for pair in 0..rot / 2 {
            let (i, j) = match pairing {
                Pairing::Half => (start + pair, start + pair + rot / 2),
                Pairing::Interleaved => (start + 2 * pair, start + 2 * pair + 1),
            };
            let stretch = if *scaling == RopeScaling::None { 1.0 } else { 0.5 };
            let (sin, cos) = (position * stretch * theta.powf(-2.0 * pair as f64 / rot as f64)).sin_cos();
            (out[i], out[j]) = (x[i] * cos - x[j] * sin, x[j] * cos + x[i] * sin);
        }
    }
    out
}

fn scores(op: IrOp<'_>, operands: &[Tensor], heads: usize, kv_heads: usize) -> Tensor {
    let shape: Vec<usize> = op.result(0).unwrap().shape().iter().map(|d| *d as usize).collect();
    let [batch, _, queries, keys] = shape[..] else { unreachable!() };
    let d = op.operand(0).unwrap().width() as usize / heads;
    let at = |b: usize, h: usize, s: usize, l: usize| -> f64 {
        let q = &operands[0][((b * queries + s) * heads + h) * d..][..d];
        let k = &operands[1][((b * keys + l) * kv_heads + h / (heads / kv_heads)) * d..][..d];
        q.iter().zip(k).map(|(q, k)| q * k).sum()
    };
    let mut out = Vec::new();
    for (b, h, s) in
        (0..batch * heads * queries).map(|i| (i / queries / heads, i / queries % heads, i % queries))
    {
        out.extend((0..keys).map(|l| at(b, h, s, l)));
    }
    out
}

fn values(op: IrOp<'_>, operands: &[Tensor], heads: usize, kv_heads: usize) -> Tensor {
    let shape: Vec<usize> = op.operand(0).unwrap().shape().iter().map(|d| *d as usize).collect();
    let [batch, _, queries, keys] = shape[..] else { unreachable!() };
    let d = op.operand(1).unwrap().width() as usize / kv_heads;
    let mut out = Vec::new();
    for (b, s, h) in
        (0..batch * queries * heads).map(|i| (i / heads / queries, i / heads % queries, i % heads))
    {
        let p = &operands[0][((b * heads + h) * queries + s) * keys..][..keys];
        let v =
            |l: usize, i: usize| operands[1][((b * keys + l) * kv_heads + h / (heads / kv_heads)) * d + i];
        out.extend((0..d).map(|i| p.iter().enumerate().map(|(l, p)| p * v(l, i)).sum::<f64>()));
    }
    out
}

fn mask(x: &[f64], op: &Op, shape: &[u64]) -> Tensor {
    let Op::Mask { causal, window, alibi, offset, .. } = op else { unreachable!() };
    let (heads, queries, keys) = (shape[1], shape[2], shape[3]);
    let at = |(i, v): (usize, &f64)| {
        let i = i as u64;
        let (l, position, h) = (i % keys, offset + i / keys % queries, i / keys / queries % heads);
        let hidden = (*causal && l > position) || (*window > 0 && l + window <= position);
        let slope = alibi.map_or(0.0, |scaling| scaling * 2f64.powf(-8.0 * (h + 1) as f64 / heads as f64));
        if hidden { f64::NEG_INFINITY } else { v + slope * (l as f64 - position as f64) }
    };
    x.iter().enumerate().map(at).collect()
}
