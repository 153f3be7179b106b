//! Derivatives by tables: rows of dy go to the row of their id, or of their position.
use super::{Made, adds, input, natural};
use crate::cuda::row::split_row;
use crate::cuda::source::{Signature, c_type, constants, opening};
use crate::cuda::spec::{Backward, KernelOp, KernelSpec};
use crate::cuda::{CudaError, Generated, Operand};
use lapidary_runtime_gpu::program::{Access, Dtype};
use std::fmt::Write as _;

const SCATTER: &str = include_str!("../device/scatter.cuh");
const POSITIONS: &str = include_str!("../device/positions.cuh");

/// Columns of a run.
const WIDTH: u64 = 4;

/// A block for each row of the table.
pub(super) fn embed(spec: &KernelSpec, first: u64) -> Result<Generated, CudaError> {
    let (adds, ids, dy) = (adds(spec)?, input(spec, 0)?, input(spec, 1)?);
    let (from, to) = (spec.ty(dy), spec.ty(spec.outputs[0]));
    let (threads, per_thread) = split_row(from.cols().div_ceil(WIDTH));
    if per_thread > 4 || from.rows() >= 1 << 31 {
        return Err(spec.unsupported(format!("a table of {} columns", from.cols()), "at most 16384"));
    }
    let why = "Each row of the table has a block that reads all ids in order: one order of every sum, no atomic additions.";
    let mut signature = Signature::default();
    signature.read(Operand::Input(ids), Dtype::I32, "ids");
    signature.read(Operand::Input(dy), from.dtype, "dy");
    let access = if adds { Access::Update } else { Access::Write };
    signature.write(Operand::Output(0), access, to.dtype, "out");
    let mut source = opening(&format!("{}: {} tokens. {why} {}", spec.name, from.rows(), spec.reason));
    source.push_str(&constants(&[
        ("TOKENS", from.rows()),
        ("FIRST", first),
        ("COLS", from.cols()),
        ("PITCH", from.pitch()),
        ("OUT_PITCH", to.pitch()),
        ("THREADS", threads),
        ("PER_THREAD", per_thread),
        ("W", WIDTH),
    ]));
    let _ = write!(
        source,
        "constexpr bool ADDS = {adds};\ntypedef {} Element;\ntypedef {} Out;\n{SCATTER}\nextern \"C\" __global__ void \
         __launch_bounds__(THREADS) {}({}) {{\n    lp_scatter(ids, dy, out);\n}}\n",
        c_type(from.dtype),
        c_type(to.dtype),
        spec.name,
        signature.parameters(),
    );
    let grid = [to.rows(), 1, 1];
    let made = Made {
        name: spec.name.clone(),
        source,
        grid,
        threads,
        shared: [0, 4 * threads],
        args: signature.args,
    };
    Ok(natural(spec, vec![made.finish(spec, true, why)?], Vec::new()))
}

/// A thread for each run of columns of the table.
pub(super) fn positions(spec: &KernelSpec) -> Result<Generated, CudaError> {
    let (adds, dy) = (adds(spec)?, input(spec, 0)?);
    let KernelOp::Backward(Backward::PositionDw { offset }) = spec.ops[0].op else {
        return Err(spec.malformed("no sum over positions"));
    };
    let (from, to) = (spec.ty(dy), spec.ty(spec.outputs[0]));
    let mut signature = Signature::default();
    signature.read(Operand::Input(dy), from.dtype, "dy");
    let access = if adds { Access::Update } else { Access::Write };
    signature.write(Operand::Output(0), access, to.dtype, "out");
    let mut source =
        opening(&format!("{}: sums over {} sequences. {}", spec.name, from.shape[0], spec.reason));
    source.push_str(&constants(&[
        ("BATCH", from.shape[0]),
        ("SEQ", from.shape[1]),
        ("OFFSET", offset),
        ("ROWS", to.rows()),
        ("COLS", to.cols()),
        ("PITCH", from.pitch()),
        ("OUT_PITCH", to.pitch()),
        ("THREADS", 256),
        ("W", WIDTH),
    ]));
    let _ = write!(
        source,
        "constexpr bool ADDS = {adds};\ntypedef {} Element;\ntypedef {} Out;\n{POSITIONS}\nextern \"C\" __global__ void \
         __launch_bounds__(THREADS) {}({}) {{\n    lp_positions(dy, out);\n}}\n",
        c_type(from.dtype),
        c_type(to.dtype),
        spec.name,
        signature.parameters(),
    );
    let grid = [(to.rows() * to.cols().div_ceil(WIDTH)).div_ceil(256), 1, 1];
    let made =
        Made { name: spec.name.clone(), source, grid, threads: 256, shared: [0, 0], args: signature.args };
    Ok(natural(spec, vec![made.finish(spec, true, "")?], Vec::new()))
}
