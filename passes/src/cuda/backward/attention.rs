//! The backward pass of attention without a matrix of scores in memory.
//!
//! Where the forward pass kept the log of each query's sum, one kernel makes all three derivatives in five products (Dao,
//! FlashAttention-2, arXiv 2307.08691, algorithm 2), its sums over keys in one order. Else, and for heads wider than 128, one
//! kernel for dq finds the sums, and one makes dk and dv.
use super::{Made, natural};
use crate::cuda::attention::Attention;
use crate::cuda::source::{Signature, c_float, c_type, constants, opening};
use crate::cuda::spec::{Backward, KernelOp, KernelSpec, Mask, TensorType, ValueId};
use crate::cuda::{CudaError, Generated, GeneratedKernel, Operand};
use lapidary_runtime_gpu::program::{Access, Dtype};
use std::fmt::Write as _;

const ROW: &str = include_str!("../device/row.cuh");
pub(super) const SHARED: &str = concat!(
    include_str!("../device/attention_stage.cuh"),
    include_str!("../device/attention_derivatives.cuh")
);
const BLOCKS: &str = include_str!("../device/attention_backward.cuh");
const ROWS: &str = include_str!("../device/attention_backward_rows.cuh");

/// Queries or keys of a block.
const BLOCK: u64 = 64;

/// What the forward pass left: its result and the log of each query's sum.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub y: ValueId,
    pub log_sums: ValueId,
}

/// The region's operands, and which of its outputs is which.
pub(crate) struct Core {
    pub attention: Attention,
    pub dy: ValueId,
    pub(super) kept: Option<Kept>,
    pub(super) dq: usize,
    pub(super) dk: usize,
    pub(super) dv: usize,
}

/// Lowers a region `attention.backward`.
pub(super) fn lower(spec: &KernelSpec) -> Result<Generated, CudaError> {
    let core = Core::of(spec)?;
    let attention = &core.attention;
    if attention.heads > 65535 || attention.batch > 65535 || attention.cached {
        return Err(spec.unsupported("more than 65535 heads or sequences, or a cache", "split the batch"));
    }
    if let Some(kept) = core.kept {
        return core.joint(spec, kept);
    }
    let blocks = attention.dtype == Dtype::Bf16 && attention.head_dim % 8 == 0 && attention.head_dim <= 256;
    if !blocks && attention.head_dim > 1024 {
        return Err(spec.unsupported(format!("heads of {}", attention.head_dim), "heads of at most 1024"));
    }
    let scratch = TensorType::new(Dtype::F32, &[attention.batch * attention.heads * attention.queries, 4]);
    let kernels = vec![core.queries(spec, blocks)?, core.keys(spec, blocks)?];
    Ok(natural(spec, kernels, vec![scratch]))
}

impl Core {
    /// Whether one kernel makes all derivatives, given what the forward pass can keep.
    pub fn takes_sums(&self) -> bool {
        self.attention.many() && self.attention.head_dim <= 128 && !self.attention.cached
    }

    /// Reads the region.
    pub fn of(spec: &KernelSpec) -> Result<Core, CudaError> {
        let wrong = || spec.malformed("not the backward pass of an attention");
        let find = |wanted: &dyn Fn(&KernelOp) -> bool| {
            spec.results().find(|id| spec.op(*id).is_some_and(|op| wanted(&op.op)))
        };
        let again = KernelOp::Backward(Backward::SoftmaxOf);
        let softmax = find(&|op| *op == KernelOp::Softmax || *op == again).ok_or_else(wrong)?;
        let softmax_dx = find(&|op| *op == KernelOp::Backward(Backward::SoftmaxDx)).ok_or_else(wrong)?;
        let operands = |id: ValueId| spec.op(id).map_or(&[][..], |op| &op.operands);
        let (mut at, mut scale) = (operands(softmax)[0], 1.0);
        let mut mask =
            Mask { causal: false, window: 0, alibi: false, alibi_scaling: 1.0, heads: None, offset: 0 };
        let heads = loop {
            match spec.op(at).map(|op| &op.op) {
                Some(KernelOp::Scale { by }) if !mask.alibi || *by == 1.0 || at < softmax => scale *= by,
                Some(KernelOp::Mask(found)) if scale == 1.0 || !found.alibi => mask = found.clone(),
                Some(KernelOp::Scores { heads, kv_heads }) => break (*heads, *kv_heads),
                _ => return Err(wrong()),
            }
            at = operands(at)[0];
        };
        let (q, k) = (operands(at)[0], operands(at)[1]);
        let dp = operands(softmax_dx)[1];
        let (dy, v) = (operands(dp)[0], operands(dp)[1]);
        let position = |wanted: &dyn Fn(ValueId) -> bool| {
            spec.outputs.iter().position(|&id| wanted(id)).ok_or_else(wrong)
        };
        let is_dv = |id: ValueId| {
            matches!(spec.op(id).map(|op| &op.op), Some(KernelOp::Backward(Backward::ValuesDv { .. })))
        };
        let dq = position(&|id| matches!(spec.op(id).map(|op| &op.op), Some(KernelOp::Values { .. })))?;
        let dv = position(&|id| is_dv(id) && operands(id)[0] == softmax)?;
        let dk = position(&|id| is_dv(id) && operands(id)[0] != softmax)?;
        let kept = match (operands(softmax).get(1), operands(softmax_dx).get(2)) {
            (None, None) => None,
            (Some(&log_sums), Some(&products)) => {
                let [by, y] = operands(products)[..] else { return Err(wrong()) };
                let held = by == dy && [y, log_sums].iter().all(|&value| value < spec.inputs.len());
                held.then_some(Kept { y, log_sums }).ok_or_else(wrong).map(Some)?
            }
            _ => return Err(wrong()),
        };
        let inputs = [q, k, v, dy].iter().all(|&value| value < spec.inputs.len());
        let ([batch, queries, width], [_, keys, _]) = (&spec.ty(q).shape[..], &spec.ty(k).shape[..]) else {
            return Err(wrong());
        };
        if !inputs || spec.outputs.len() != 3 || heads.0 == 0 || heads.1 == 0 || width % heads.0 != 0 {
            return Err(wrong());
        }
        let attention = Attention {
            q,
            k,
            v,
            dtype: spec.ty(q).dtype,
            batch: *batch,
            queries: *queries,
            keys: *keys,
            heads: heads.0,
            kv_heads: heads.1,
            head_dim: width / heads.0,
            scale,
            cached: mask.offset > 0,
            mask,
            log_sums: false,
        };
        let core = Core { attention, dy, kept, dq, dk, dv };
        match core.kept.is_some() && !core.takes_sums() {
            true => Err(wrong()),
            false => Ok(core),
        }
    }

    /// Columns of a head in shared memory: two parts of a wide one are each a multiple of what a matrix instruction takes.
    pub(super) fn width(&self) -> u64 {
        let parts = if self.attention.head_dim > 128 { 2 } else { 1 };
        self.attention.head_dim.next_multiple_of(16 * parts)
    }

    fn source(&self, spec: &KernelSpec, blocks: bool, [keys, queries, parts]: [u64; 3]) -> String {
        let attention = &self.attention;
        let mut source = opening(&format!(
            "{}: derivatives of attention of {}. {}",
            spec.name,
            attention.describe(),
            spec.reason
        ));
        source.push_str(&attention.constants(spec));
        let _ = writeln!(source, "constexpr float SCALE = {};", c_float(attention.scale));
        let _ = writeln!(source, "typedef {} Element;", c_type(attention.dtype));
        if !blocks {
            return source + ROW + ROWS;
        }
        let width = self.width();
        let sizes = [("HD", width), ("WARPS", BLOCK / 16), ("BKV", keys), ("BQ", queries), ("PARTS", parts)];
        source.push_str(&constants(&sizes));
        source + SHARED + "\n" + BLOCKS
    }

    fn signature(&self, spec: &KernelSpec, outputs: &[(usize, &str)]) -> Signature {
        let attention = &self.attention;
        let mut signature = Signature::default();
        for (value, name) in [(attention.q, "q"), (attention.k, "k"), (attention.v, "v"), (self.dy, "dy")] {
            signature.read(Operand::Input(value), spec.ty(value).dtype, name);
        }
        for (output, name) in outputs {
            signature.write(Operand::Output(*output), Access::Write, attention.dtype, *name);
        }
        signature
    }

    fn queries(&self, spec: &KernelSpec, blocks: bool) -> Result<GeneratedKernel, CudaError> {
        let attention = &self.attention;
        let keys = if attention.head_dim > 128 { 32 } else { 64 };
        let mut signature = self.signature(spec, &[(self.dq, "dq")]);
        signature.write(Operand::Scratch(0), Access::Write, Dtype::F32, "statistics");
        let source = format!(
            "{}\nextern \"C\" __global__ void __launch_bounds__(THREADS) {}({}) {{\n    lp_queries(q, k, v, dy, dq, statistics);\n}}\n",
            self.source(spec, blocks, [keys, 32, 1]),
            spec.name,
            signature.parameters()
        );
        let pitch = self.width() + 8;
        let grid = match blocks {
            true => [attention.queries.div_ceil(BLOCK), attention.heads, attention.batch],
            false => [attention.batch * attention.queries, attention.heads, 1],
        };
        let shared = if blocks { [2 * pitch * (2 * BLOCK + 2 * keys), 0] } else { [0, 640] };
        let made = Made { name: spec.name.clone(), source, grid, threads: 128, shared, args: signature.args };
        made.finish(
            spec,
            true,
            "dq and each query's statistics; scores are made twice and stay in registers.",
        )
    }

    fn keys(&self, spec: &KernelSpec, blocks: bool) -> Result<GeneratedKernel, CudaError> {
        let attention = &self.attention;
        let (queries, parts) = (32, if attention.head_dim > 128 { 2 } else { 1 });
        let mut signature = self.signature(spec, &[(self.dk, "dk"), (self.dv, "dv")]);
        signature.read(Operand::Scratch(0), Dtype::F32, "statistics");
        let name = format!("{}_keys", spec.name);
        let source = format!(
            "{}\nextern \"C\" __global__ void __launch_bounds__(THREADS) {name}({}) {{\n    lp_keys(q, k, v, dy, dk, dv, statistics);\n}}\n",
            self.source(spec, blocks, [64, queries, parts]),
            signature.parameters()
        );
        let pitch = self.width() + 8;
        let grid = match blocks {
            true => [attention.keys.div_ceil(BLOCK), attention.kv_heads, attention.batch * parts],
            false => [attention.batch * attention.keys, attention.kv_heads, 1],
        };
        let shared = if blocks { [2 * pitch * (2 * BLOCK + 2 * queries), 16 * queries] } else { [0, 1024] };
        let made = Made { name, source, grid, threads: 128, shared, args: signature.args };
        made.finish(
            spec,
            false,
            "dk and dv from the queries' statistics; heads that share keys add up in order.",
        )
    }
}
