//! Many queries on Hopper: blocks of them through the copy engine and products of warpgroups.
use super::Attention;
use crate::cuda::source::{Machine, Signature, WarpgroupProduct, constants, opening_for};
use crate::cuda::spec::KernelSpec;
use crate::cuda::{CudaError, Generated, GeneratedKernel, Operand};
use lapidary_runtime_gpu::program::{Access, Boxes, Dtype, FormChoice, Parts, RowOrder};
use std::fmt::Write as _;

const TEXT: &str =
    concat!(include_str!("../device/attention_step.cuh"), include_str!("../device/attention_90.cuh"));

/// Queries of a block: 64 for each of two warpgroups.
const ROWS: u64 = 128;
/// Blocks of keys and of values on their way.
const STAGES: u64 = 2;

/// The kernel; a third warpgroup of its blocks starts the copies.
pub(super) fn lower(
    spec: &KernelSpec,
    attention: &Attention,
    choice: FormChoice,
) -> Result<Generated, CudaError> {
    if attention.heads > 65535 || attention.batch > 65535 {
        return Err(spec.unsupported("more than 65535 heads or sequences", "split the batch"));
    }
    let width = attention.head_dim.next_multiple_of(16);
    // Sums and scores stay in 240 registers.
    let keys = if width > 128 { 64 } else { 128 };
    let products =
        [WarpgroupProduct { columns: keys, held: false }, WarpgroupProduct { columns: width, held: true }];
    let signature = signature(spec, attention, keys);
    let paragraph = format!(
        "{}: attention of {}. One block of two multiplying warpgroups per {ROWS} queries and head; {keys} keys at a time. {}",
        spec.name,
        attention.describe(),
        spec.reason
    );
    let mut source = opening_for(Machine::Hopper(&products), &paragraph);
    source.push_str(&attention.constants(spec));
    source.push_str(&constants(&[("HD", width), ("BKV", keys), ("STAGES", STAGES)]));
    let _ = writeln!(source, "constexpr bool LOG_SUMS = {};", attention.log_sums);
    source.push_str(TEXT);
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS, 1) {}({}) {{\n    lp_attention_90(q, k, v, out, {});\n}}\n",
        spec.name,
        signature.parameters(),
        if attention.log_sums { "log_sums" } else { "nullptr" }
    );
    let work = spec.work();
    let row_bytes = width.div_ceil(64) * 128;
    let kernel = GeneratedKernel {
        name: spec.name.clone(),
        source,
        grid: [attention.queries.div_ceil(ROWS) as u32, attention.heads as u32, attention.batch as u32],
        block: [384, 1, 1],
        // Blocks, then a barrier for the queries and four for each stage.
        shared_bytes: row_bytes * (ROWS + 2 * STAGES * keys) + (8 * (1 + 4 * STAGES)).next_multiple_of(16),
        static_shared_bytes: 0,
        args: signature.args,
        flops: work.flops,
        bytes: work.bytes,
        choice: Some(choice),
        reason: format!("{} For Hopper's copy engine and warpgroup products.", spec.reason)
            .trim()
            .to_string(),
    };
    Ok(Generated {
        kernels: vec![kernel],
        scratch: Vec::new(),
        output_orders: vec![RowOrder::Natural; spec.outputs.len()],
    })
}

/// Queries, keys and values as a matrix for each head of each sequence.
fn signature(spec: &KernelSpec, attention: &Attention, keys: u64) -> Signature {
    let mut signature = Signature::default();
    let sides = [
        (attention.q, "q", attention.queries, attention.heads, ROWS),
        (attention.k, "k", attention.keys, attention.kv_heads, keys),
        (attention.v, "v", attention.keys, attention.kv_heads, keys),
    ];
    for (value, name, rows, heads, box_rows) in sides {
        let boxes = Boxes {
            rows,
            cols: attention.head_dim,
            pitch_bytes: spec.ty(value).pitch() * 2,
            box_rows: box_rows as u32,
            parts: Some(Parts { heads, sequences: attention.batch }),
        };
        signature.boxes(Operand::Input(value), boxes, name);
    }
    signature.write(Operand::Output(0), Access::Write, attention.dtype, "out");
    if attention.log_sums {
        signature.write(Operand::Output(1), Access::Write, Dtype::F32, "log_sums");
    }
    signature
}
