//! Sums over all rows, column by column: derivatives by biases and by the weights of norms.
use super::{Made, input, natural, takers};
use crate::cuda::row::split_row;
use crate::cuda::source::{Signature, c_float, c_type, constants, opening};
use crate::cuda::spec::{Backward, KernelOp, KernelSpec, NormKind, TensorType};
use crate::cuda::{CudaError, Generated, Operand};
use lapidary_runtime_gpu::program::{Access, Dtype};
use std::fmt::Write as _;

const ROW: &str = include_str!("../device/row.cuh");
const COLUMNS: &str = include_str!("../device/columns.cuh");
const JOIN: &str = include_str!("../device/columns_join.cuh");

/// Columns of a run.
const WIDTH: u64 = 8;
/// Blocks that share the rows: two for each processor of an A100, and shares of 64 rows at least.
const MOST_BLOCKS: u64 = 216;

/// Two kernels: shares of blocks, then their sum.
pub(super) fn lower(spec: &KernelSpec) -> Result<Generated, CudaError> {
    let (takers, op) = (takers(spec)?, &spec.ops[0].op);
    let dy = input(spec, spec.ops[0].operands.len() - 1)?;
    let norm = match op {
        KernelOp::Backward(Backward::NormDw { kind, eps }) => Some((*kind, *eps, input(spec, 0)?)),
        _ => None,
    };
    let ty = spec.ty(dy);
    let (rows, cols) = (ty.rows(), ty.cols());
    // Statistics need the whole row in one block; a plain sum does not.
    let (threads, per_thread) = match norm {
        Some(_) => split_row(cols.div_ceil(WIDTH)),
        None => (cols.div_ceil(WIDTH).next_multiple_of(32).min(256), 1),
    };
    if per_thread > 2 || rows >= 1 << 31 {
        return Err(
            spec.unsupported(format!("a sum over {rows} normalised rows of {cols}"), "at most 16384 columns")
        );
    }
    let blocks = rows.div_ceil(64).clamp(1, MOST_BLOCKS);
    let scratch = TensorType::new(Dtype::F32, &[blocks, cols]);
    let why = "Rows are shared among blocks and their sums joined in order: no atomic additions.";
    let paragraph =
        format!("{}: {} of {rows} rows. {why} {}", spec.name, spec.op_words().join(", "), spec.reason);

    let mut signature = Signature::default();
    if let Some((_, _, x)) = norm {
        signature.read(Operand::Input(x), ty.dtype, "x");
    }
    signature.read(Operand::Input(dy), ty.dtype, "dy");
    signature.write(Operand::Scratch(0), Access::Write, Dtype::F32, "parts");
    let mut source = opening(&paragraph);
    source.push_str(&constants(&[
        ("ROWS", rows),
        ("COLS", cols),
        ("PITCH", ty.pitch()),
        ("PART_PITCH", scratch.pitch()),
        ("BLOCKS", blocks),
        ("THREADS", threads),
        ("PER_THREAD", per_thread),
        ("W", WIDTH),
    ]));
    let centre = matches!(norm, Some((NormKind::Layer, ..)));
    let eps = norm.map_or(0.0, |(_, eps, _)| eps);
    let _ = write!(
        source,
        "constexpr bool CENTRE = {centre}, SCALED = {};\nconstexpr float EPS = {};\ntypedef {} Element;\n{ROW}{COLUMNS}\n\
         extern \"C\" __global__ void __launch_bounds__(THREADS, THREADS <= 256 ? 2 : 1) {}({}) {{\n    lp_columns({}, dy, parts);\n}}\n",
        norm.is_some(),
        c_float(eps),
        c_type(ty.dtype),
        spec.name,
        signature.parameters(),
        if norm.is_some() { "x" } else { "dy" },
    );
    let shares = Made {
        name: spec.name.clone(),
        source,
        grid: [blocks, cols.div_ceil(threads * per_thread * WIDTH), 1],
        threads,
        shared: [0, 128],
        args: signature.args,
    };
    let join = join(spec, &scratch, (blocks, cols), takers, &paragraph);
    let kernels = vec![shares.finish(spec, true, why)?, join.finish(spec, false, why)?];
    Ok(natural(spec, kernels, vec![scratch]))
}

/// Adds up the shares, into every gradient that takes them.
fn join(
    spec: &KernelSpec,
    scratch: &TensorType,
    (blocks, cols): (u64, u64),
    takers: usize,
    paragraph: &str,
) -> Made {
    let out = spec.ty(spec.outputs[0]).dtype;
    let access = if takers > 0 { Access::Update } else { Access::Write };
    let mut signature = Signature::default();
    signature.read(Operand::Scratch(0), Dtype::F32, "parts");
    let mut body = String::new();
    for i in 0..takers.max(1) {
        signature.write(Operand::Output(i), access, out, format!("out{i}"));
        let _ = writeln!(body, "    lp_columns_join(parts, out{i});");
    }
    let name = format!("{}_join", spec.name);
    let mut source = opening(paragraph);
    source.push_str(&constants(&[
        ("COLS", cols),
        ("PART_PITCH", scratch.pitch()),
        ("BLOCKS", blocks),
        ("THREADS", 128),
    ]));
    let _ = write!(
        source,
        "constexpr bool ADDS = {};\ntypedef {} Out;\n{JOIN}\nextern \"C\" __global__ void __launch_bounds__(THREADS) \
         {name}({}) {{\n{body}}}\n",
        takers > 0,
        c_type(out),
        signature.parameters(),
    );
    Made {
        name,
        source,
        grid: [cols.div_ceil(128), 1, 1],
        threads: 128,
        shared: [0, 0],
        args: signature.args,
    }
}
