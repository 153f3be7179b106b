//! Many queries: blocks of them through the tensor cores.
use super::{Attention, cached_line_of};
use crate::cuda::source::{constants, opening};
use crate::cuda::spec::KernelSpec;
use crate::cuda::{CudaError, Generated, GeneratedKernel, Operand};
use lapidary_runtime_gpu::program::{Access, Dtype, FormChoice, RowOrder};
use std::fmt::Write as _;

const BLOCKS: &str = concat!(
    include_str!("../device/attention_stage.cuh"),
    include_str!("../device/attention_step.cuh"),
    include_str!("../device/attention.cuh")
);

/// The kernel that takes blocks of queries.
pub(super) fn lower(
    spec: &KernelSpec,
    attention: &Attention,
    choice: FormChoice,
) -> Result<Generated, CudaError> {
    let width = attention.head_dim.next_multiple_of(16);
    let (mt, keys) = if width > 128 { (1, 64) } else { (2, 64) };
    let rows = 4 * 16 * mt;
    let mut signature = attention.signature(spec);
    signature.write(Operand::Output(0), Access::Write, attention.dtype, "out");
    if attention.log_sums {
        signature.write(Operand::Output(1), Access::Write, Dtype::F32, "log_sums");
    }
    let position = if attention.cached { ["position"].as_slice() } else { &[] };
    position.iter().for_each(|name| signature.read(Operand::Position, Dtype::I32, *name));
    let paragraph = format!(
        "{}: attention of {}. One block of 4 warps per {rows} queries and head; {keys} keys at a time. {}",
        spec.name,
        attention.describe(),
        spec.reason
    );
    let mut source = opening(&paragraph);
    source.push_str(&attention.constants(spec));
    source.push_str(&constants(&[("HD", width), ("WARPS", 4), ("MT", mt), ("BKV", keys)]));
    let _ = writeln!(source, "constexpr bool LOG_SUMS = {};", attention.log_sums);
    source.push_str(BLOCKS);
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS) {}({}) {{\n{}    lp_attention(q, k, v, out, {}, cached);\n}}\n",
        spec.name,
        signature.parameters(),
        cached_line_of(attention),
        if attention.log_sums { "log_sums" } else { "nullptr" }
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
        choice: Some(choice),
        reason: format!("{} Scores stay in registers.", spec.reason).trim().to_string(),
    };
    Ok(Generated {
        kernels: vec![kernel],
        scratch: Vec::new(),
        output_orders: vec![RowOrder::Natural; spec.outputs.len()],
    })
}
