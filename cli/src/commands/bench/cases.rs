//! Kernels alone, at a model's sizes: the regions of its layers as the compiler cuts them, and row operations by themselves.

use super::sketch::{Sketch, alone};
use super::{Goal, What, models};
use crate::failure::Failure;
use crate::gpu::refused;
use lapidary_models::{Mode, ModelSpec};
use lapidary_passes::cuda::spec::{
    ActivationFn, Anchor, Backward, KernelOp, KernelSpec, Mask, NormKind, Pairing, Rope, RopeScaling,
};
use lapidary_passes::cuda::{ModuleSpec, Node, Options, forms};
use lapidary_runtime_gpu::bench::{Candidate, Job};
use lapidary_runtime_gpu::generate::Part;

/// Sequences and their length.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Sequences.
    pub batch: u64,
    /// Tokens of each; the model's own when absent.
    pub seq: Option<u64>,
}

impl Size {
    /// Tokens of a sequence of a model.
    pub fn tokens(&self, spec: &ModelSpec) -> u64 {
        self.seq.unwrap_or(spec.max_seq).clamp(1, spec.max_seq)
    }
}

/// Square products of that size in every form but the smallest tiles and those for few rows: the best of them is the ceiling.
pub fn large_products(size: u64, goal: &Goal) -> Result<Vec<Job>, Failure> {
    let mut sketch = Sketch::new("large_product", Anchor::Matmul);
    let x = sketch.input(&[1, size, size]);
    let w = sketch.param("w", &[size, size]);
    let y = sketch.op(KernelOp::Linear, &[x, w], &[1, size, size]);
    let region = sketch.finish(&[y]);
    let shape = [("m", size), ("n", size), ("k", size)];
    let jobs = every_form(&region, goal)?;
    let small =
        |form: &str| form.starts_with("deep-") || ["64x64", "16x128"].iter().any(|tile| form.ends_with(tile));
    let large = jobs.into_iter().filter(|(form, _)| !small(form));
    Ok(large.map(|(_, part)| Job::new("gemm", &shape, "bf16", part)).collect())
}

/// A region of products in every form that can compute it, with the form's name.
fn every_form(region: &KernelSpec, goal: &Goal) -> Result<Vec<(String, Part)>, Failure> {
    let options = Options { hopper: goal.arch == "sm_90a", int8: goal.int8, ..Options::default() };
    let names = forms(region, &options).map_err(|error| refused(&error))?;
    let made = names.into_iter().map(|form| {
        let options = Options { form: Some(form.clone()), ..Options::default() };
        Ok((form, alone(region.clone(), goal, options)?))
    });
    made.collect()
}

/// The kernels of one kind.
pub fn kernels(what: What, spec: &ModelSpec, size: Size, goal: &Goal) -> Result<Vec<Job>, Failure> {
    let (batch, seq) = (size.batch, size.tokens(spec));
    let rows = batch * seq;
    let job = |kernel: &str, shape: &[(&str, u64)], region: KernelSpec| -> Result<Job, Failure> {
        Ok(Job::new(kernel, shape, "bf16", alone(region, goal, Options::default())?))
    };
    match what {
        What::Gemm => products(spec, size, goal),
        What::Norm => {
            let shape = [("rows", rows), ("cols", spec.d_model)];
            Ok(vec![job("norm", &shape, norm([batch, seq, spec.d_model]))?])
        }
        What::Swiglu => {
            let shape = [("rows", rows), ("cols", spec.d_ff)];
            Ok(vec![job("swiglu", &shape, swiglu([batch, seq, spec.d_ff]))?])
        }
        What::Rope => {
            let width = spec.n_heads * spec.head_dim;
            let shape = [("rows", rows), ("cols", width)];
            Ok(vec![job("rope", &shape, rope([batch, seq, width], spec.head_dim))?])
        }
        What::CrossEntropy => {
            let shape = [("rows", rows), ("cols", spec.vocab)];
            let logits = [batch, seq, spec.vocab];
            let mut jobs = vec![
                job("cross-entropy", &shape, loss(logits, Backward::CrossEntropy, &[1]))?,
                job("cross-entropy-backward", &shape, loss(logits, Backward::CrossEntropyDx, &logits))?,
            ];
            for job in &mut jobs {
                job.below.insert("in1".into(), spec.vocab);
            }
            Ok(jobs)
        }
        What::Attention => {
            let sizes = [batch, seq, spec.head_dim, spec.n_heads, spec.n_kv_heads];
            let shape = [
                ("batch", batch),
                ("seq", seq),
                ("heads", spec.n_heads),
                ("kv_heads", spec.n_kv_heads),
                ("head_dim", spec.head_dim),
            ];
            let forward = attention(sizes);
            Ok(vec![
                with_forms(job("attention-forward", &shape, forward.clone())?, &forward, goal)?,
                job("attention-backward", &shape, attention_backward(sizes))?,
            ])
        }
        What::Decode | What::Prefill | What::TrainStep => Ok(Vec::new()),
    }
}

/// A job in every form that its region can have.
fn with_forms(job: Job, region: &KernelSpec, goal: &Goal) -> Result<Job, Failure> {
    let product = job.program.kernels.iter().find_map(|k| Some(k.choice.as_ref()?.product.clone()));
    let each = every_form(region, goal)?.into_iter();
    Ok(Job { product, candidates: each.map(|(form, part)| Candidate::new(&form, part)).collect(), ..job })
}

/// The products of a training step by weights, backward alone: those of the forward pass are a prompt's.
pub fn products_of_training(module: &ModuleSpec, goal: &Goal) -> Result<Vec<Job>, Failure> {
    let backward = |region: &KernelSpec| {
        let by_weights = |kind: &Backward| matches!(kind, Backward::LinearDx | Backward::LinearDw);
        region.ops.iter().any(|op| matches!(&op.op, KernelOp::Backward(kind) if by_weights(kind)))
    };
    products_of(regions(module).into_iter().filter(backward), goal)
}

/// Every product of a model with what the compiler puts behind it, as the layers of a prompt have it.
fn products(spec: &ModelSpec, size: Size, goal: &Goal) -> Result<Vec<Job>, Failure> {
    products_of(regions(&models::module(spec, Mode::Forward, size, goal)?), goal)
}

/// The products of one token for each of some sequences.
pub fn products_of_decoding(
    spec: &ModelSpec,
    seq: Option<u64>,
    batches: &[u32],
    goal: &Goal,
) -> Result<Vec<Job>, Failure> {
    let each = batches
        .iter()
        .map(|batch| products_of(regions(&models::decode_module(spec, seq, u64::from(*batch), goal)?), goal));
    Ok(each.collect::<Result<Vec<_>, Failure>>()?.concat())
}

/// Every product among some regions, in every form.
fn products_of(regions: impl IntoIterator<Item = KernelSpec>, goal: &Goal) -> Result<Vec<Job>, Failure> {
    let mut jobs = Vec::new();
    for region in regions.into_iter().filter(|region| region.anchor == Anchor::Matmul) {
        let Some([m, n, k]) = sizes(&region) else { continue };
        let mut job = Job::new(
            "gemm",
            &[("m", m), ("n", n), ("k", k)],
            if goal.int8 { "int8" } else { "bf16" },
            alone(region.clone(), goal, Options::default())?,
        );
        job.ops = Some(region.op_words().join(", "));
        jobs.push(with_forms(job, &region, goal)?);
    }
    Ok(jobs)
}

/// Rows, columns and depth of a region's products by weights; columns of several are counted together.
fn sizes(region: &KernelSpec) -> Option<[u64; 3]> {
    let each = region.ops.iter().filter_map(|op| {
        let of = |i: usize| region.ty(op.operands[i]);
        match op.op {
            KernelOp::Linear => Some([op.ty.rows(), op.ty.cols(), of(0).cols()]),
            KernelOp::Backward(Backward::LinearDx) => Some([op.ty.rows(), op.ty.cols(), of(0).cols()]),
            KernelOp::Backward(Backward::LinearDw) => Some([op.ty.rows(), op.ty.cols(), of(0).rows()]),
            _ => None,
        }
    });
    each.reduce(|[m, n, k], [_, more, _]| [m, n + more, k])
}

/// Every region of a module, repeats' bodies once.
fn regions(module: &ModuleSpec) -> Vec<KernelSpec> {
    fn walk(nodes: &[Node], out: &mut Vec<KernelSpec>) {
        for node in nodes {
            match node {
                Node::Kernel { spec, .. } => out.push(spec.clone()),
                Node::Repeat { body, .. } => walk(body, out),
                Node::Talk { .. } => {}
            }
        }
    }
    let mut out = Vec::new();
    walk(&module.body, &mut out);
    out
}

/// `s = x + r; y = norm(s)`: both leave.
fn norm(shape: [u64; 3]) -> KernelSpec {
    let mut sketch = Sketch::new("norm", Anchor::Row);
    let (x, r) = (sketch.input(&shape), sketch.input(&shape));
    let w = sketch.param("norm.weight", &shape[2..]);
    let sum = sketch.op(KernelOp::Add, &[x, r], &shape);
    let y = sketch.op(KernelOp::Norm { kind: NormKind::Rms, eps: 1e-5 }, &[sum, w], &shape);
    sketch.finish(&[sum, y])
}

/// `y = silu(gate) * up`.
fn swiglu(shape: [u64; 3]) -> KernelSpec {
    let mut sketch = Sketch::new("swiglu", Anchor::Elementwise);
    let (gate, up) = (sketch.input(&shape), sketch.input(&shape));
    let gate = sketch.op(KernelOp::Activation(ActivationFn::Silu), &[gate], &shape);
    let y = sketch.op(KernelOp::Mul, &[gate, up], &shape);
    sketch.finish(&[y])
}

/// Every pair of every head rotated.
fn rope(shape: [u64; 3], head_dim: u64) -> KernelSpec {
    let mut sketch = Sketch::new("rope", Anchor::Elementwise);
    let x = sketch.input(&shape);
    let rope = Rope {
        head_dim,
        rot_dims: head_dim / 2 * 2,
        pairing: Pairing::Half,
        theta: 1e4,
        offset: 0,
        scaling: RopeScaling::None,
    };
    let y = sketch.op(KernelOp::Rope(rope), &[x], &shape);
    sketch.finish(&[y])
}

fn loss(logits: [u64; 3], op: Backward, result: &[u64]) -> KernelSpec {
    let name = if op == Backward::CrossEntropy { "loss" } else { "loss_dx" };
    let mut sketch = Sketch::new(name, Anchor::Row);
    let x = sketch.input(&logits);
    let labels = sketch.labels(&logits[..2]);
    let y = sketch.op(KernelOp::Backward(op), &[x, labels], result);
    sketch.finish(&[y])
}

const CAUSAL: Mask =
    Mask { causal: true, window: 0, alibi: false, alibi_scaling: 1.0, heads: None, offset: 0 };

/// Causal attention; sizes are batch, sequence, head width, heads, key-value heads.
fn attention([b, s, d, heads, kv_heads]: [u64; 5]) -> KernelSpec {
    let (q, k, p) = ([b, s, heads * d], [b, s, kv_heads * d], [b, heads, s, s]);
    let mut sketch = Sketch::new("attention", Anchor::Attention);
    let (q_in, k_in, v_in) = (sketch.input(&q), sketch.input(&k), sketch.input(&k));
    let scores = sketch.op(KernelOp::Scores { heads, kv_heads }, &[q_in, k_in], &p);
    let scaled = sketch.op(KernelOp::Scale { by: (d as f64).sqrt().recip() }, &[scores], &p);
    let masked = sketch.op(KernelOp::Mask(CAUSAL), &[scaled], &p);
    let weights = sketch.op(KernelOp::Softmax, &[masked], &p);
    let y = sketch.op(KernelOp::Values { heads, kv_heads }, &[weights, v_in], &q);
    sketch.finish(&[y])
}

/// Its derivatives by queries, keys and values, scores computed again.
fn attention_backward([b, s, d, heads, kv_heads]: [u64; 5]) -> KernelSpec {
    let (q, k, p) = ([b, s, heads * d], [b, s, kv_heads * d], [b, heads, s, s]);
    let mut sketch = Sketch::new("attention_backward", Anchor::Attention);
    let (q_in, dy) = (sketch.input(&q), sketch.input(&q));
    let (k_in, v_in) = (sketch.input(&k), sketch.input(&k));
    let by = (d as f64).sqrt().recip();
    let scores = sketch.op(KernelOp::Scores { heads, kv_heads }, &[q_in, k_in], &p);
    let scaled = sketch.op(KernelOp::Scale { by }, &[scores], &p);
    let masked = sketch.op(KernelOp::Mask(CAUSAL), &[scaled], &p);
    let weights = sketch.op(KernelOp::Softmax, &[masked], &p);
    let dp = sketch.op(KernelOp::Scores { heads, kv_heads }, &[dy, v_in], &p);
    let back = KernelOp::Backward;
    let dv = sketch.op(back(Backward::ValuesDv { heads, kv_heads }), &[weights, dy], &k);
    let ds = sketch.op(back(Backward::SoftmaxDx), &[weights, dp], &p);
    let hidden = sketch.op(back(Backward::MaskDx(CAUSAL)), &[ds], &p);
    let last = sketch.op(KernelOp::Scale { by }, &[hidden], &p);
    let dq = sketch.op(KernelOp::Values { heads, kv_heads }, &[last, k_in], &q);
    let dk = sketch.op(back(Backward::ValuesDv { heads, kv_heads }), &[last, q_in], &k);
    sketch.finish(&[dv, dq, dk])
}
