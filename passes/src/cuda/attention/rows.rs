//! Few queries or single precision: query by query, with the keys in parts.
use super::{Attention, cached_line_of};
use crate::cuda::source::{Signature, c_type, constants, opening};
use crate::cuda::spec::{KernelSpec, TensorType};
use crate::cuda::{CudaError, Generated, GeneratedKernel, Operand, Options};
use lapidary_runtime_gpu::program::{Access, Dtype, RowOrder};
use std::fmt::Write as _;

const ROWS: &str = include_str!("../device/attention_rows.cuh");
const MERGE: &str = include_str!("../device/attention_merge.cuh");

/// Fewest keys worth a block of their own.
const KEYS_PER_PART: u64 = 128;

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
        let width = [8, 4, 2, 1].into_iter().find(|w| d.is_multiple_of(*w)).unwrap_or(1);
        let chunks = d.div_ceil(width * 32);
        let lanes = d.div_ceil(width * chunks).next_power_of_two().min(32);
        if chunks * width > 16 {
            return Err(spec.unsupported(
                format!("a head width of {d}"),
                "head widths are multiples of 8 up to 512, or below 513 / width of a load",
            ));
        }
        let ratio = attention.heads / attention.kv_heads;
        let group = ratio.min(if chunks * width > 8 { 2 } else { 4 });
        let blocks = attention.batch * attention.queries * attention.kv_heads * ratio.div_ceil(group);
        let wanted = (2 * options.processors).div_ceil(blocks.max(1));
        let most = attention.keys.div_ceil(KEYS_PER_PART);
        Ok(RowPlan { width, chunks, lanes, group, splits: wanted.clamp(1, most.max(1)) })
    }
}

/// The kernel that takes single queries, and the one that joins parts of the keys.
pub(super) fn lower(
    spec: &KernelSpec,
    attention: &Attention,
    options: &Options,
) -> Result<Generated, CudaError> {
    let plan = RowPlan::of(spec, attention, options)?;
    let rows = attention.batch * attention.queries;
    let groups = attention.kv_heads * (attention.heads / attention.kv_heads).div_ceil(plan.group);
    if rows.saturating_mul(plan.splits.max(attention.heads)) >= 1 << 31 || groups > 65535 {
        return Err(
            spec.unsupported(format!("{rows} queries of {} heads", attention.heads), "split the batch")
        );
    }
    let part_pitch = (attention.head_dim + 2).next_multiple_of(4);
    let mut shared = format!("typedef {} Element;\n", c_type(attention.dtype));
    shared.push_str(&attention.constants(spec));
    shared.push_str(&constants(&[
        ("W", plan.width),
        ("CHUNKS", plan.chunks),
        ("LANES", plan.lanes),
        ("G", plan.group),
        ("SPLITS", plan.splits),
        ("PART_PITCH", part_pitch),
    ]));
    let grid = [(rows * plan.splits) as u32, groups as u32, 1];
    let first = rows_kernel(spec, attention, &plan, &shared, grid);
    if plan.splits == 1 {
        let (kernels, scratch) = (vec![first], Vec::new());
        return Ok(Generated { kernels, scratch, output_orders: vec![RowOrder::Natural] });
    }
    let second = merge_kernel(spec, attention, &plan, &shared, rows);
    let parts = TensorType::new(Dtype::F32, &[rows * attention.heads, plan.splits, part_pitch]);
    Ok(Generated {
        kernels: vec![first, second],
        scratch: vec![parts],
        output_orders: vec![RowOrder::Natural],
    })
}

fn rows_kernel(
    spec: &KernelSpec,
    attention: &Attention,
    plan: &RowPlan,
    shared: &str,
    grid: [u32; 3],
) -> GeneratedKernel {
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
        spec.name,
        attention.describe(),
        plan.group,
        plan.splits,
        spec.reason
    );
    let mut source = opening(&paragraph) + shared + ROWS;
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS) {}({}) {{\n{}    \
         lp_attention_rows(q, k, v, {out}, {parts}, cached);\n}}\n",
        spec.name,
        signature.parameters(),
        cached_line_of(attention)
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
        choice: None,
        reason: format!("{} Keys in {} parts to fill the machine.", spec.reason, plan.splits)
            .trim()
            .to_string(),
    }
}

fn merge_kernel(
    spec: &KernelSpec,
    attention: &Attention,
    plan: &RowPlan,
    shared: &str,
    rows: u64,
) -> GeneratedKernel {
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
        bytes: shares * (attention.head_dim + 2) * 4
            + rows * attention.heads * attention.head_dim * attention.dtype.bytes(),
        choice: None,
        reason: "Joins the parts of the keys.".into(),
    }
}
