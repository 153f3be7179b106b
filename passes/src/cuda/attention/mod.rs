//! Attention in one pass: scores, scale, mask, softmax and values, with no tensor of queries by keys in memory.
//!
//! Many queries in bf16 go through tensor cores, block by block, on Hopper in one of two forms; few queries (decoding), and single precision, go query by
//! query, the keys split over enough blocks to fill the machine and joined by a second small kernel.
use super::source::{Signature, c_float, constants};
use super::spec::{Backward, KernelOp, KernelSpec, Mask, TensorType, ValueId};
use super::{CudaError, Generated, Operand, Options};
use forms::Form;
use lapidary_runtime_gpu::program::Dtype;
use std::fmt::Write as _;

mod blocks;
mod forms;
mod hopper;
mod rows;

/// Queries up to which keys are streamed past each query instead of through blocks.
const FEW_QUERIES: u64 = 8;

/// What the region asks for.
pub(crate) struct Attention {
    pub q: ValueId,
    pub k: ValueId,
    pub v: ValueId,
    pub dtype: Dtype,
    pub batch: u64,
    pub queries: u64,
    pub keys: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub scale: f64,
    pub mask: Mask,
    pub cached: bool,
    /// Whether the log of each query's sum leaves too, for a backward pass.
    pub log_sums: bool,
}

/// Lowers an attention region.
pub(crate) fn lower(spec: &KernelSpec, options: &Options) -> Result<Generated, CudaError> {
    let attention = Attention::of(spec)?;
    if !attention.many() {
        let few = || spec.unsupported("sums of few queries", "find them again");
        return if attention.log_sums { Err(few()) } else { rows::lower(spec, &attention, options) };
    }
    match attention.choose(options) {
        (Form::Blocks, choice) => blocks::lower(spec, &attention, choice),
        (Form::Hopper, choice) => hopper::lower(spec, &attention, choice),
    }
}

/// The names of all forms that can compute an attention region; none where it goes query by query.
pub(crate) fn form_names(spec: &KernelSpec, options: &Options) -> Result<Vec<String>, CudaError> {
    let forms = Attention::of(spec)?.forms(options);
    Ok(forms.into_iter().map(|(name, _)| name).collect())
}

impl Attention {
    /// Reads the region.
    pub fn of(spec: &KernelSpec) -> Result<Attention, CudaError> {
        let chain = Chain::of(spec)?;
        let (q, k, v) = (spec.ty(chain.q), spec.ty(chain.k), spec.ty(chain.v));
        let [batch, queries, width] = q.shape[..] else {
            return Err(spec.malformed("queries are not of rank 3"));
        };
        let (heads, kv_heads) = chain.heads;
        let divides = heads > 0 && kv_heads > 0 && width % heads == 0 && heads % kv_heads == 0;
        let head_dim = if divides { width / heads } else { 0 };
        let keys = k.shape.get(1).copied().unwrap_or(0);
        let wanted = [batch, keys, kv_heads * head_dim];
        if !divides || k.shape != wanted || v.shape != wanted || q.dtype != k.dtype || q.dtype != v.dtype {
            let what =
                format!("{heads} heads over {kv_heads} of q {:?}, k {:?}, v {:?}", q.shape, k.shape, v.shape);
            return Err(spec.malformed(what));
        }
        if keys < chain.mask.offset + queries && chain.mask.causal {
            return Err(
                spec.malformed(format!("{keys} keys for {queries} queries behind {}", chain.mask.offset))
            );
        }
        let cached = chain.mask.offset > 0;
        let (dtype, scale, mask, log_sums) = (q.dtype, chain.scale, chain.mask, chain.log_sums);
        let (q, k, v) = (chain.q, chain.k, chain.v);
        Ok(Attention {
            q,
            k,
            v,
            dtype,
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            head_dim,
            scale,
            mask,
            cached,
            log_sums,
        })
    }

    /// One number for each head and query.
    pub fn sums(&self) -> TensorType {
        TensorType::new(Dtype::F32, &[self.batch, self.heads, self.queries])
    }

    /// Numbers that both forms use.
    pub fn constants(&self, spec: &KernelSpec) -> String {
        let mut text = constants(&[
            ("S", self.queries),
            ("L", self.keys),
            ("HEADS", self.heads),
            ("KV_HEADS", self.kv_heads),
            ("D", self.head_dim),
            ("Q_PITCH", spec.ty(self.q).pitch()),
            ("KV_PITCH", spec.ty(self.k).pitch()),
            ("WINDOW", self.mask.window),
            ("SUMS_PITCH", self.sums().pitch()),
        ]);
        for (name, value) in
            [("CAUSAL", self.mask.causal), ("CACHED", self.cached), ("ALIBI", self.mask.alibi)]
        {
            let _ = writeln!(text, "constexpr bool {name} = {value};");
        }
        // Powers of two instead of e: the factor is folded into the scores.
        let log2e = std::f64::consts::LOG2_E;
        let _ = writeln!(text, "constexpr float SCORE_SCALE = {};", c_float(self.scale * log2e));
        let _ = writeln!(
            text,
            "constexpr float EXPONENT_SCALE = {};",
            if self.mask.alibi { "1.0f" } else { "SCORE_SCALE" }
        );
        let slopes: Vec<String> = match self.mask.alibi {
            true => self
                .mask
                .slopes(self.heads)
                .into_iter()
                .map(|s| c_float(s * self.mask.alibi_scaling * log2e))
                .collect(),
            false => vec!["0.0f".into()],
        };
        let lines: Vec<String> = slopes.chunks(8).map(|line| line.join(", ")).collect();
        let _ = writeln!(
            text,
            "__device__ const float lp_slope[{}] = {{\n    {}}};",
            slopes.len(),
            lines.join(",\n    ")
        );
        text
    }

    fn signature(&self, spec: &KernelSpec) -> Signature {
        let mut signature = Signature::default();
        for (value, name) in [(self.q, "q"), (self.k, "k"), (self.v, "v")] {
            signature.read(Operand::Input(value), spec.ty(value).dtype, name);
        }
        signature
    }

    pub fn describe(&self) -> String {
        let mut words = format!(
            "{} queries of {} heads over {} keys of {} heads, head width {}",
            self.queries, self.heads, self.keys, self.kv_heads, self.head_dim
        );
        for (holds, word) in [
            (self.mask.causal, ", causal".to_string()),
            (self.mask.window > 0, format!(", window {}", self.mask.window)),
            (self.mask.alibi, ", ALiBi".to_string()),
            (self.cached, ", behind a cache whose length is read at run time".to_string()),
        ] {
            if holds {
                words.push_str(&word);
            }
        }
        words
    }
}

/// The operations of the region, in the only order they can have.
struct Chain {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    heads: (u64, u64),
    scale: f64,
    mask: Mask,
    log_sums: bool,
}

impl Chain {
    fn of(spec: &KernelSpec) -> Result<Chain, CudaError> {
        let none =
            Mask { causal: false, window: 0, alibi: false, alibi_scaling: 1.0, heads: None, offset: 0 };
        let mut chain = Chain { q: 0, k: 0, v: 0, heads: (0, 0), scale: 1.0, mask: none, log_sums: false };
        let (mut stage, mut previous, mut scores, mut outputs) = (0, None, 0, Vec::new());
        for id in spec.results() {
            let Some(op) = spec.op(id) else { continue };
            let follows = previous.is_none_or(|p| op.operands[0] == p);
            match (&op.op, stage) {
                (KernelOp::Scores { heads, kv_heads }, 0) => {
                    (chain.q, chain.k, chain.heads) = (op.operands[0], op.operands[1], (*heads, *kv_heads));
                    stage = 1;
                }
                (KernelOp::Scale { by }, 1) if follows => chain.scale *= by,
                (KernelOp::Scale { by }, 2) if follows && !chain.mask.alibi && *by > 0.0 => chain.scale *= by,
                (KernelOp::Mask(mask), 1) if follows => {
                    chain.mask = mask.clone();
                    stage = 2;
                }
                (KernelOp::Softmax, 1 | 2) if follows => (scores, stage) = (op.operands[0], 3),
                (KernelOp::Values { heads, kv_heads }, 3)
                    if follows && (*heads, *kv_heads) == chain.heads =>
                {
                    chain.v = op.operands[1];
                    (outputs, stage) = (vec![id], 4);
                }
                (KernelOp::Backward(Backward::LogSum), 4) if !chain.log_sums && op.operands[0] == scores => {
                    outputs.push(id);
                    chain.log_sums = true;
                }
                (other, _) => {
                    let what = format!("{} at this place of an attention region", other.word());
                    return Err(spec.unsupported(what, "scores, scale, mask, softmax, values, in this order"));
                }
            }
            previous = Some(id);
        }
        let inputs = [chain.q, chain.k, chain.v].iter().all(|&value| value < spec.inputs.len());
        if stage != 4 || !inputs || spec.outputs != outputs {
            return Err(spec.malformed(
                "attention is scores, scale, mask, softmax, values of three inputs with one output, and the log of sums",
            ));
        }
        Ok(chain)
    }
}

/// ALiBi's slopes: 2^(-8 i / n) for n heads, n a power of two; else those of the next lower power, then every other one
/// of the next higher power (Press et al., 2022).
pub(crate) fn slopes(heads: u64) -> Vec<f64> {
    let power = 1u64 << heads.max(1).ilog2();
    let series = |n: u64, i: u64| 2f64.powf(-8.0 * i as f64 / n as f64);
    let mut slopes: Vec<f64> = (1..=power).map(|i| series(power, i)).collect();
    slopes.extend((0..heads - power).map(|i| series(2 * power, 2 * i + 1)));
    slopes
}

fn cached_line_of(attention: &Attention) -> String {
    let line = if attention.cached { "const int cached = *position;" } else { "constexpr int cached = 0;" };
    format!("    {line}\n")
}
