//! Whole models as modules of fused regions, the way the fusion pass cuts them.
use crate::region::Region;
use lapidary_passes::cuda::spec::*;
use lapidary_passes::cuda::{ModuleSpec, Node, ValueSpec};
use lapidary_runtime_gpu::program::Dtype::{self, I32};

/// The sizes and kinds that decide a model's kernels.
#[derive(Debug, Clone)]
pub struct Model {
    pub name: &'static str,
    pub vocab: u64,
    pub d: u64,
    pub layers: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub ff: u64,
    pub norm: NormKind,
    pub bias: bool,
    /// Gated with silu, or plain with this function.
    pub plain: Option<ActivationFn>,
    pub rope: Option<(Pairing, u64)>,
    pub alibi: bool,
    pub learned: bool,
    pub parallel: bool,
    pub window: u64,
    pub tied: bool,
}

/// Batch, new tokens, tokens already cached.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub batch: u64,
    pub new: u64,
    pub cached: u64,
}

struct Builder<'a> {
    model: &'a Model,
    run: Run,
    dtype: Dtype,
    values: Vec<ValueSpec>,
}

impl Builder<'_> {
    fn value(&mut self, name: &str, cols: u64) -> usize {
        self.shaped(name, self.dtype, &[self.run.batch, self.run.new, cols])
    }

    fn shaped(&mut self, name: &str, dtype: Dtype, shape: &[u64]) -> usize {
        self.values.push(ValueSpec { name: name.into(), ty: TensorType::new(dtype, shape) });
        self.values.len() - 1
    }

    fn region(&self, name: &str, anchor: Anchor) -> Region {
        Region::new(&format!("{}_{name}", self.model.name), anchor, self.dtype)
    }

    fn act(&self) -> [u64; 3] {
        [self.run.batch, self.run.new, self.model.d]
    }

    fn norm(&mut self, name: &str, param: &str, x: usize, last: bool) -> (Node, usize) {
        let (d, shape) = (self.model.d, self.act());
        let mut r = self.region(name, Anchor::Row);
        let (input, w) = (r.input(&shape), r.param(&format!("{param}.weight"), &[d]));
        let bias = (self.model.norm == NormKind::Layer).then(|| r.param(&format!("{param}.bias"), &[d]));
        let mut v = input;
        if last {
            v = r.op(KernelOp::LastToken, &[v]);
        }
        let operands: Vec<usize> = [v, w].into_iter().chain(bias).collect();
        v = r.op(KernelOp::Norm { kind: self.model.norm, eps: 1e-5 }, &operands);
        if last {
            v = r.op(KernelOp::Scale { by: 0.14 }, &[v]);
        }
        let shape = if last { vec![self.run.batch, 1, d] } else { shape.to_vec() };
        let result = self.shaped(name, self.dtype, &shape);
        (Node::Kernel { spec: r.finish(&[v]), args: vec![x], results: vec![result] }, result)
    }

    fn embed(&mut self, ids: usize) -> (Node, usize) {
        let m = self.model;
        let mut r = self.region("embed", Anchor::Gather);
        let (i, table) = (r.ids(&[self.run.batch, self.run.new]), r.param("embed.weight", &[m.vocab, m.d]));
        let places = m.learned.then(|| r.param("position.weight", &[self.run.cached + self.run.new, m.d]));
        let mut x = r.op(KernelOp::Embed, &[i, table]);
        if let Some(places) = places {
            x = r.op(KernelOp::Position { offset: self.run.cached }, &[x, places]);
        }
        let result = self.value("embedded", m.d);
        (Node::Kernel { spec: r.finish(&[x]), args: vec![ids], results: vec![result] }, result)
    }

    fn qkv(&mut self, x: usize) -> (Node, [usize; 3]) {
        let m = self.model;
        let widths = [m.heads * m.head_dim, m.kv_heads * m.head_dim, m.kv_heads * m.head_dim];
        let mut r = self.region("qkv", Anchor::Matmul);
        let input = r.input(&self.act());
        let names = ["q", "k", "v"].map(|n| format!("layers.*.attn.{n}"));
        let weights: Vec<_> =
            (0..3).map(|i| r.param(&format!("{}.weight", names[i]), &[widths[i], m.d])).collect();
        let biases: Vec<_> = match m.bias {
            true => (0..3).map(|i| r.param(&format!("{}.bias", names[i]), &[widths[i]])).collect(),
            false => Vec::new(),
        };
        let mut out = Vec::new();
        for i in 0..3 {
            let mut y = r.op(KernelOp::Linear, &[input, weights[i]]);
            if let Some(&bias) = biases.get(i) {
                y = r.op(KernelOp::Bias, &[y, bias]);
            }
            if let (Some((pairing, rot_dims)), true) = (m.rope, i < 2) {
                let (head_dim, offset) = (m.head_dim, self.run.cached);
                let rope =
                    Rope { head_dim, rot_dims, pairing, theta: 1e4, offset, scaling: RopeScaling::None };
                y = r.op(KernelOp::Rope(rope), &[y]);
            }
            if i > 0 {
                let cache = ["", "k", "v"][i].to_string();
                y = r.op(KernelOp::KvAppend { cache, cached: self.run.cached }, &[y]);
            }
            out.push(y);
        }
        let keys = [self.run.batch, self.run.cached + self.run.new, widths[1]];
        let results = [
            self.value("q", widths[0]),
            self.shaped("k", self.dtype, &keys),
            self.shaped("v", self.dtype, &keys),
        ];
        (Node::Kernel { spec: r.finish(&out), args: vec![x], results: results.to_vec() }, results)
    }

    fn attention(&mut self, qkv: [usize; 3]) -> (Node, usize) {
        let m = self.model;
        let mut r = self.region("attention", Anchor::Attention);
        let inputs: Vec<usize> =
            qkv.iter().map(|&value| r.input(&self.values[value].ty.shape.clone())).collect();
        let x = r.op(KernelOp::Scores { heads: m.heads, kv_heads: m.kv_heads }, &inputs[..2]);
        let x = r.op(KernelOp::Scale { by: 1.0 / (m.head_dim as f64).sqrt() }, &[x]);
        let (window, alibi, offset) = (m.window, m.alibi, self.run.cached);
        let x = r.op(
            KernelOp::Mask(Mask { causal: true, window, alibi, alibi_scaling: 1.0, heads: None, offset }),
            &[x],
        );
        let x = r.op(KernelOp::Softmax, &[x]);
        let x = r.op(KernelOp::Values { heads: m.heads, kv_heads: m.kv_heads }, &[x, inputs[2]]);
        let result = self.value("attended", m.heads * m.head_dim);
        (Node::Kernel { spec: r.finish(&[x]), args: qkv.to_vec(), results: vec![result] }, result)
    }

    /// A product with its bias and the residuals that follow it.
    fn project(&mut self, name: &str, param: &str, x: usize, residuals: &[usize]) -> (Node, usize) {
        let m = self.model;
        let mut r = self.region(name, Anchor::Matmul);
        let shape = self.values[x].ty.shape.clone();
        let input = r.input(&shape);
        let added: Vec<usize> = residuals.iter().map(|_| r.input(&self.act())).collect();
        let w = r.param(&format!("{param}.weight"), &[m.d, shape[2]]);
        let bias = m.bias.then(|| r.param(&format!("{param}.bias"), &[m.d]));
        let mut y = r.op(KernelOp::Linear, &[input, w]);
        if let Some(bias) = bias {
            y = r.op(KernelOp::Bias, &[y, bias]);
        }
        for residual in added {
            y = r.op(KernelOp::Add, &[residual, y]);
        }
        let result = self.value(name, m.d);
        let args = [&[x], residuals].concat();
        (Node::Kernel { spec: r.finish(&[y]), args, results: vec![result] }, result)
    }

    fn widen(&mut self, x: usize) -> (Node, usize) {
        let m = self.model;
        let mut r = self.region("mlp", Anchor::Matmul);
        let input = r.input(&self.act());
        let names: &[&str] = if m.plain.is_some() { &["up"] } else { &["gate", "up"] };
        let weights: Vec<_> =
            names.iter().map(|n| r.param(&format!("layers.*.mlp.{n}.weight"), &[m.ff, m.d])).collect();
        let biases: Vec<_> = match m.bias {
            true => names.iter().map(|n| r.param(&format!("layers.*.mlp.{n}.bias"), &[m.ff])).collect(),
            false => Vec::new(),
        };
        let mut halves: Vec<usize> = weights.iter().map(|&w| r.op(KernelOp::Linear, &[input, w])).collect();
        for (half, &bias) in halves.iter_mut().zip(&biases) {
            *half = r.op(KernelOp::Bias, &[*half, bias]);
        }
        let y = match m.plain {
            Some(f) => r.op(KernelOp::Activation(f), &[halves[0]]),
            None => {
                let gate = r.op(KernelOp::Activation(ActivationFn::Silu), &[halves[0]]);
                r.op(KernelOp::Mul, &[gate, halves[1]])
            }
        };
        let result = self.value("widened", m.ff);
        (Node::Kernel { spec: r.finish(&[y]), args: vec![x], results: vec![result] }, result)
    }

    fn layer(&mut self, x: usize) -> (Vec<Node>, usize) {
        let (norm, h) = self.norm("attn_norm", "layers.*.attn_norm", x, false);
        let (qkv, values) = self.qkv(h);
        let (attention, attended) = self.attention(values);
        let parallel = self.model.parallel;
        let out_residuals: &[usize] = if parallel { &[] } else { &[x] };
        let (out, projected) = self.project("attn_out", "layers.*.attn.out", attended, out_residuals);
        let from = if parallel { x } else { projected };
        let (norm2, h2) = self.norm("mlp_norm", "layers.*.mlp_norm", from, false);
        let (mlp, wide) = self.widen(h2);
        let residuals: &[usize] = if parallel { &[projected, x] } else { &[projected] };
        let (down, y) = self.project("mlp_down", "layers.*.mlp.down", wide, residuals);
        (vec![norm, qkv, attention, out, norm2, mlp, down], y)
    }

    fn head(&mut self, x: usize) -> (Node, usize) {
        let m = self.model;
        let mut r = self.region("head", Anchor::Matmul);
        let input = r.input(&[self.run.batch, 1, m.d]);
        let w = r.param(if m.tied { "embed.weight" } else { "head.weight" }, &[m.vocab, m.d]);
        let y = r.op(KernelOp::Linear, &[input, w]);
        let result = self.shaped("logits", self.dtype, &[self.run.batch, 1, m.vocab]);
        (Node::Kernel { spec: r.finish(&[y]), args: vec![x], results: vec![result] }, result)
    }
}

impl Model {
    /// Forward pass to the logits of the last token.
    pub fn module(&self, run: Run, dtype: Dtype) -> ModuleSpec {
        let mut b = Builder { model: self, run, dtype, values: Vec::new() };
        let ids = b.shaped("ids", I32, &[run.batch, run.new]);
        let (embed, embedded) = b.embed(ids);
        let param = b.value("x", self.d);
        let (body, yielded) = b.layer(param);
        let result = b.value("hidden", self.d);
        let repeat = Node::Repeat {
            times: self.layers,
            first: 0,
            reverse: false,
            input: embedded,
            param,
            body,
            yielded,
            result,
        };
        let (norm, last) = b.norm("final_norm", "final_norm", result, true);
        let (head, logits) = b.head(last);
        let (name, arch) = (self.name.to_string(), "sm_80".to_string());
        let body = vec![embed, repeat, norm, head];
        ModuleSpec {
            name,
            arch,
            values: b.values,
            inputs: vec![ids],
            outputs: vec![logits],
            body,
            training: None,
            share: None,
        }
    }

    /// A small model of the Llama kind, to be changed field by field.
    pub fn tiny() -> Model {
        Model {
            name: "tiny",
            vocab: 61,
            d: 48,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ff: 86,
            norm: NormKind::Rms,
            bias: false,
            plain: None,
            rope: Some((Pairing::Half, 16)),
            alibi: false,
            learned: false,
            parallel: false,
            window: 0,
            tied: false,
        }
    }
}
