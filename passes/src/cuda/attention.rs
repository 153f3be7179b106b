//! Attention in one pass: scores, scale, mask, softmax and values, with no tensor of queries by keys in memory.
//!
//! Many queries in bf16 go through tensor cores, block by block; few queries (decoding), and single precision, go query by
//! query, the keys split over enough blocks to fill the machine and joined by a second small kernel.
use super::source::{Signature, c_float, c_type, constants, opening};
use super::spec::{KernelOp, KernelSpec, Mask, TensorType, ValueId};
use super::{CudaError, Generated, GeneratedKernel, Operand, Options};
use lapidary_runtime_gpu::program::{Access, Dtype, RowOrder};
use std::fmt::Write as _;

const BLOCKS: &str = include_str!("device/attention.cuh");
const ROWS: &str = include_str!("device/attention_rows.cuh");
const MERGE: &str = include_str!("device/attention_merge.cuh");

/// Queries up to which keys are streamed past each query instead of through blocks.
const FEW_QUERIES: u64 = 8;

/// Fewest keys worth a block of their own.
const KEYS_PER_PART: u64 = 128;

/// What the region asks for.
struct Attention {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    dtype: Dtype,
    batch: u64,
    queries: u64,
    keys: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    scale: f64,
    mask: Mask,
    cached: bool,
}

/// Lowers an attention region.
pub(crate) fn lower(spec: &KernelSpec, options: &Options) -> Result<Generated, CudaError> {
    let attention = Attention::of(spec)?;
    let blocks = attention.dtype == Dtype::Bf16
        && attention.queries > FEW_QUERIES
        && attention.head_dim % 8 == 0
        && attention.head_dim <= 256
        && attention.scale > 0.0;
    if blocks { by_blocks(spec, &attention) } else { by_rows(spec, &attention, options) }
}

impl Attention {
    fn of(spec: &KernelSpec) -> Result<Attention, CudaError> {
        let chain = Chain::of(spec)?;
        let (q, k, v) = (spec.ty(chain.q), spec.ty(chain.k), spec.ty(chain.v));
        let [batch, queries, width] = q.shape[..] else { return Err(spec.malformed("queries are not of rank 3")) };
        let (heads, kv_heads) = chain.heads;
        let divides = heads > 0 && kv_heads > 0 && width % heads == 0 && heads % kv_heads == 0;
        let head_dim = if divides { width / heads } else { 0 };
        let keys = k.shape.get(1).copied().unwrap_or(0);
        let wanted = [batch, keys, kv_heads * head_dim];
        if !divides || k.shape != wanted || v.shape != wanted || q.dtype != k.dtype || q.dtype != v.dtype {
            let what = format!("{heads} heads over {kv_heads} of q {:?}, k {:?}, v {:?}", q.shape, k.shape, v.shape);
            return Err(spec.malformed(what));
        }
        if keys < chain.mask.offset + queries && chain.mask.causal {
            return Err(spec.malformed(format!("{keys} keys for {queries} queries behind {}", chain.mask.offset)));
        }
        let cached = chain.mask.offset > 0;
        let (dtype, scale, mask) = (q.dtype, chain.scale, chain.mask);
        let (q, k, v) = (chain.q, chain.k, chain.v);
        Ok(Attention { q, k, v, dtype, batch, queries, keys, heads, kv_heads, head_dim, scale, mask, cached })
    }

    /// Numbers that both forms use.
    fn constants(&self, spec: &KernelSpec) -> String {
        let mut text = constants(&[
            ("S", self.queries), ("L", self.keys), ("HEADS", self.heads), ("KV_HEADS", self.kv_heads),
            ("D", self.head_dim), ("Q_PITCH", spec.ty(self.q).pitch()), ("KV_PITCH", spec.ty(self.k).pitch()),
            ("WINDOW", self.mask.window),
        ]);
        for (name, value) in [("CAUSAL", self.mask.causal), ("CACHED", self.cached), ("ALIBI", self.mask.alibi)] {
            let _ = writeln!(text, "constexpr bool {name} = {value};");
        }
        // Powers of two instead of e: the factor is folded into the scores.
        let log2e = std::f64::consts::LOG2_E;
        let _ = writeln!(text, "constexpr float SCORE_SCALE = {};", c_float(self.scale * log2e));
        let _ = writeln!(text, "constexpr float EXPONENT_SCALE = {};", if self.mask.alibi { "1.0f" } else { "SCORE_SCALE" });
        let slopes: Vec<String> = match self.mask.alibi {
            true => slopes(self.heads).into_iter().map(|s| c_float(s * self.mask.alibi_scaling * log2e)).collect(),
            false => vec!["0.0f".into()],
        };
        let lines: Vec<String> = slopes.chunks(8).map(|line| line.join(", ")).collect();
        let _ = writeln!(text, "__device__ const float lp_slope[{}] = {{\n    {}}};", slopes.len(), lines.join(",\n    "));
        text
    }

    fn signature(&self, spec: &KernelSpec) -> Signature {
        let mut signature = Signature::default();
        for (value, name) in [(self.q, "q"), (self.k, "k"), (self.v, "v")] {
            signature.read(Operand::Input(value), spec.ty(value).dtype, name);
        }
        signature
    }

    fn describe(&self) -> String {
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
}

impl Chain {
    fn of(spec: &KernelSpec) -> Result<Chain, CudaError> {
        let none = Mask { causal: false, window: 0, alibi: false, alibi_scaling: 1.0, offset: 0 };
        let mut chain = Chain { q: 0, k: 0, v: 0, heads: (0, 0), scale: 1.0, mask: none };
        let mut stage = 0;
        let mut previous = None;
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
                (KernelOp::Softmax, 1 | 2) if follows => stage = 3,
                (KernelOp::Values { heads, kv_heads }, 3) if follows && (*heads, *kv_heads) == chain.heads => {
                    chain.v = op.operands[1];
                    stage = 4;
                }
                (other, _) => {
                    let what = format!("{} at this place of an attention region", other.word());
                    return Err(spec.unsupported(what, "scores, scale, mask, softmax, values, in this order"));
                }
            }
            previous = Some(id);
        }
        let inputs = [chain.q, chain.k, chain.v].iter().all(|&value| value < spec.inputs.len());
        if stage != 4 || !inputs || spec.outputs.len() != 1 || previous != Some(spec.outputs[0]) {
            return Err(spec.malformed("attention is scores, scale, mask, softmax, values of three inputs with one output"));
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

/// Many queries: blocks of them through the tensor cores.
fn by_blocks(spec: &KernelSpec, attention: &Attention) -> Result<Generated, CudaError> {
    let width = attention.head_dim.next_multiple_of(16);
    let (mt, keys) = if width > 128 { (1, 64) } else { (2, 64) };
    let rows = 4 * 16 * mt;
    let mut signature = attention.signature(spec);
    signature.write(Operand::Output(0), Access::Write, attention.dtype, "out");
    let position = if attention.cached { ["position"].as_slice() } else { &[] };
    position.iter().for_each(|name| signature.read(Operand::Position, Dtype::I32, *name));
    let paragraph = format!(
        "{}: attention of {}. One block of 4 warps per {rows} queries and head; {keys} keys at a time. {}",
        spec.name, attention.describe(), spec.reason
    );
    let mut source = opening(&paragraph);
    source.push_str(&attention.constants(spec));
    source.push_str(&constants(&[("HD", width), ("MT", mt), ("BKV", keys)]));
    source.push_str(BLOCKS);
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS) {}({}) {{\n{}    lp_attention(q, k, v, out, cached);\n}}\n",
        spec.name, signature.parameters(), cached_line_of(attention)
    );
    if attention.heads > 65535 || attention.batch > 65535 {
        return Err(spec.unsupported("more than 65535 heads or sequences", "split the batch"));
    }
    let work = spec.work();
    let kernel = GeneratedKernel {
        name: spec.name.clone(),
        source,
        grid: [attention.queries.div_ceil(rows) as u32, attention.heads as u32, attention.batch as u32],
        block: [128, 1, 1],
        shared_bytes: (rows + 2 * keys) * (width + 8) * 2,
        static_shared_bytes: 0,
        args: signature.args,
        flops: work.flops,
        bytes: work.bytes,
        reason: format!("{} Scores stay in registers.", spec.reason).trim().to_string(),
    };
    Ok(Generated { kernels: vec![kernel], scratch: Vec::new(), output_orders: vec![RowOrder::Natural] })
}

fn cached_line_of(attention: &Attention) -> String {
    let line = if attention.cached { "const int cached = *position;" } else { "constexpr int cached = 0;" };
    format!("    {line}\n")
}

/// How single queries are shared among lanes and blocks.
struct RowPlan {
    /// Elements of one load.
    width: u64,
    /// Loads of a lane per key.
    chunks: u64,
    /// Lanes that hold one key.
    lanes: u64,
    /// Query heads of a block.
    group: u64,
    /// Parts of the keys.
    splits: u64,
}

impl RowPlan {
    fn of(spec: &KernelSpec, attention: &Attention, options: &Options) -> Result<RowPlan, CudaError> {
        let d = attention.head_dim;
        let width = [8, 4, 2, 1].into_iter().find(|w| d % w == 0).unwrap_or(1);
        let chunks = d.div_ceil(width * 32);
        let lanes = d.div_ceil(width * chunks).next_power_of_two().min(32);
        if chunks * width > 16 {
            return Err(spec.unsupported(format!("a head width of {d}"), "head widths are multiples of 8 up to 512, or below 513 / width of a load"));
        }
        let ratio = attention.heads / attention.kv_heads;
        let group = ratio.min(if chunks * width > 8 { 2 } else { 4 });
        let blocks = attention.batch * attention.queries * attention.kv_heads * ratio.div_ceil(group);
        let wanted = (2 * options.processors).div_ceil(blocks.max(1));
        let most = attention.keys.div_ceil(KEYS_PER_PART);
        Ok(RowPlan { width, chunks, lanes, group, splits: wanted.clamp(1, most.max(1)) })
    }
}

/// Few queries or single precision: query by query, with the keys in parts.
fn by_rows(spec: &KernelSpec, attention: &Attention, options: &Options) -> Result<Generated, CudaError> {
    let plan = RowPlan::of(spec, attention, options)?;
    let rows = attention.batch * attention.queries;
    let groups = attention.kv_heads * (attention.heads / attention.kv_heads).div_ceil(plan.group);
    if rows.saturating_mul(plan.splits.max(attention.heads)) >= 1 << 31 || groups > 65535 {
        return Err(spec.unsupported(format!("{rows} queries of {} heads", attention.heads), "split the batch"));
    }
    let part_pitch = (attention.head_dim + 2).next_multiple_of(4);
    let mut shared = format!("typedef {} Element;\n", c_type(attention.dtype));
    shared.push_str(&attention.constants(spec));
    shared.push_str(&constants(&[
        ("W", plan.width), ("CHUNKS", plan.chunks), ("LANES", plan.lanes), ("G", plan.group),
        ("SPLITS", plan.splits), ("PART_PITCH", part_pitch),
    ]));
    let grid = [(rows * plan.splits) as u32, groups as u32, 1];
    let first = rows_kernel(spec, attention, &plan, &shared, grid);
    if plan.splits == 1 {
        let (kernels, scratch) = (vec![first], Vec::new());
        return Ok(Generated { kernels, scratch, output_orders: vec![RowOrder::Natural] });
    }
    let second = merge_kernel(spec, attention, &plan, &shared, rows);
    let parts = TensorType::new(Dtype::F32, &[rows * attention.heads, plan.splits, part_pitch]);
    Ok(Generated { kernels: vec![first, second], scratch: vec![parts], output_orders: vec![RowOrder::Natural] })
}

fn rows_kernel(spec: &KernelSpec, attention: &Attention, plan: &RowPlan, shared: &str, grid: [u32; 3]) -> GeneratedKernel {
    let mut signature = attention.signature(spec);
    let (out, parts) = if plan.splits == 1 {
        signature.write(Operand::Output(0), Access::Write, attention.dtype, "out");
        ("out", "nullptr")
    } else {
        signature.write(Operand::Scratch(0), Access::Write, Dtype::F32, "parts");
        ("nullptr", "parts")
    };
    if attention.cached {
        signature.read(Operand::Position, Dtype::I32, "position");
    }
    let paragraph = format!(
        "{}: attention of {}. One block of 4 warps per query, group of {} heads and part of the keys; {} parts. {}",
        spec.name, attention.describe(), plan.group, plan.splits, spec.reason
    );
    let mut source = opening(&paragraph) + shared + ROWS;
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS) {}({}) {{\n{}    \
         lp_attention_rows(q, k, v, {out}, {parts}, cached);\n}}\n",
        spec.name, signature.parameters(), cached_line_of(attention)
    );
    let work = spec.work();
    GeneratedKernel {
        name: spec.name.clone(),
        source,
        grid,
        block: [128, 1, 1],
        shared_bytes: 0,
        static_shared_bytes: 4 * 4 * plan.group * (2 + plan.lanes * plan.chunks * plan.width),
        args: signature.args,
        flops: work.flops,
        bytes: work.bytes,
        reason: format!("{} Keys in {} parts to fill the machine.", spec.reason, plan.splits).trim().to_string(),
    }
}

fn merge_kernel(spec: &KernelSpec, attention: &Attention, plan: &RowPlan, shared: &str, rows: u64) -> GeneratedKernel {
    let mut signature = Signature::default();
    signature.read(Operand::Scratch(0), Dtype::F32, "parts");
    signature.write(Operand::Output(0), Access::Write, attention.dtype, "out");
    let name = format!("{}_merge", spec.name);
    let paragraph = format!(
        "{name}: joins the {} parts of each query and head that {} leaves, weighting each by its sum and maximum.",
        plan.splits, spec.name
    );
    let mut source = opening(&paragraph) + shared + "constexpr int THREADS = 128;\n" + MERGE;
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS) {name}({}) {{\n    lp_attention_merge(parts, out);\n}}\n",
        signature.parameters()
    );
    let shares = rows * attention.heads * plan.splits;
    GeneratedKernel {
        name,
        source,
        grid: [(rows * attention.heads) as u32, 1, 1],
        block: [128, 1, 1],
        shared_bytes: 0,
        static_shared_bytes: 0,
        args: signature.args,
        flops: shares * 2 * attention.head_dim,
        bytes: shares * (attention.head_dim + 2) * 4 + rows * attention.heads * attention.head_dim * attention.dtype.bytes(),
        reason: "Joins the parts of the keys.".into(),
    }
}
