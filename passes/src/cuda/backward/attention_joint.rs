//! All derivatives of attention in one walk, from what the forward pass kept; a small kernel before it finds Σ dy y.
use super::attention::{Core, Kept, SHARED};
use super::{Made, natural};
use crate::cuda::source::{Signature, c_float, constants, opening};
use crate::cuda::spec::{KernelSpec, TensorType};
use crate::cuda::{CudaError, Generated, GeneratedKernel, Operand};
use lapidary_runtime_gpu::program::{Access, Dtype};
use std::fmt::Write as _;

const JOINT: &str = include_str!("../device/attention_joint.cuh");

/// Queries at a time.
const QUERIES: u64 = 64;

/// Warps of a block, 16 keys each.
const WARPS: u64 = 8;

impl Core {
    /// All derivatives from what was kept: Σ dy y of each query, then one walk over queries by blocks of keys.
    pub(super) fn joint(&self, spec: &KernelSpec, kept: Kept) -> Result<Generated, CudaError> {
        let attention = &self.attention;
        let turns = attention.batch * attention.heads * attention.queries.div_ceil(QUERIES);
        let scratch = vec![
            attention.sums(),
            TensorType::new(Dtype::F32, &[turns, QUERIES * attention.head_dim.next_multiple_of(64)]),
            TensorType::new(Dtype::I32, &[turns + 1]),
        ];
        let kernels = vec![self.row_products(spec, kept)?, self.derivatives(spec, kept)?];
        Ok(natural(spec, kernels, scratch))
    }

    fn joint_source(&self, spec: &KernelSpec) -> String {
        let attention = &self.attention;
        let what = format!("derivatives of attention of {}. {}", attention.describe(), spec.reason);
        let mut source = opening(&format!("{}: {what}", spec.name));
        source.push_str(&attention.constants(spec));
        let _ = writeln!(source, "constexpr float SCALE = {};", c_float(attention.scale));
        let sizes = [("HD", self.width()), ("WARPS", WARPS), ("BQ", QUERIES), ("BATCH", attention.batch)];
        source.push_str(&constants(&sizes));
        source + SHARED + "\n" + JOINT
    }

    fn row_products(&self, spec: &KernelSpec, kept: Kept) -> Result<GeneratedKernel, CudaError> {
        let attention = &self.attention;
        let mut signature = Signature::default();
        for (value, name) in [(self.dy, "dy"), (kept.y, "y")] {
            signature.read(Operand::Input(value), spec.ty(value).dtype, name);
        }
        signature.write(Operand::Scratch(0), Access::Write, Dtype::F32, "products");
        signature.write(Operand::Scratch(2), Access::Write, Dtype::I32, "turns");
        let name = format!("{}_products", spec.name);
        let source = format!(
            "{}\nextern \"C\" __global__ void __launch_bounds__(THREADS) {name}({}) {{\n    lp_row_products(dy, y, products, turns);\n}}\n",
            self.joint_source(spec),
            signature.parameters()
        );
        let lanes = (attention.head_dim / 8).next_power_of_two();
        let threads = attention.batch * attention.queries * attention.heads * lanes;
        let grid = [threads.div_ceil(WARPS * 32), 1, 1];
        let made = Made { name, source, grid, threads: WARPS * 32, shared: [0, 0], args: signature.args };
        made.finish(spec, false, "What the derivative of softmax takes off each query's row.")
    }

    fn derivatives(&self, spec: &KernelSpec, kept: Kept) -> Result<GeneratedKernel, CudaError> {
        let attention = &self.attention;
        let mut signature = Signature::default();
        for (value, name) in [(attention.q, "q"), (attention.k, "k"), (attention.v, "v"), (self.dy, "dy")] {
            signature.read(Operand::Input(value), spec.ty(value).dtype, name);
        }
        signature.read(Operand::Input(kept.log_sums), Dtype::F32, "log_sums");
        signature.read(Operand::Scratch(0), Dtype::F32, "products");
        for (output, name) in [(self.dq, "dq"), (self.dk, "dk"), (self.dv, "dv")] {
            signature.write(Operand::Output(output), Access::Write, attention.dtype, name);
        }
        signature.write(Operand::Scratch(1), Access::Write, Dtype::F32, "sums");
        signature.write(Operand::Scratch(2), Access::Update, Dtype::I32, "turns");
        let call = "lp_derivatives(q, k, v, dy, log_sums, products, dq, dk, dv, sums, turns);";
        let source = format!(
            "{}\nextern \"C\" __global__ void __launch_bounds__(THREADS) {}({}) {{\n    {call}\n}}\n",
            self.joint_source(spec),
            spec.name,
            signature.parameters()
        );
        let pitch = self.width() + 8;
        let keys = WARPS * 16;
        let scores = (keys * (QUERIES + 8)).max(QUERIES * pitch);
        let shared = [2 * (2 * pitch * keys + 4 * pitch * QUERIES + scores), 16 * QUERIES + 4];
        let grid = [attention.keys.div_ceil(keys) * attention.kv_heads * attention.batch, 1, 1];
        let (name, threads) = (spec.name.clone(), WARPS * 32);
        let made = Made { name, source, grid, threads, shared, args: signature.args };
        made.finish(spec, true, "Five products, none of them twice; blocks add to dq in turn.")
    }
}
