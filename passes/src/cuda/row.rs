//! Kernels without a product: one block per row where statistics are needed, one run of columns per thread where not.
//!
//! A row is held in registers from its first load to its last store, so memory sees each input and each output once.
//! Runs are 16 bytes of bf16 wide; a row whose length is no multiple of that ends in single elements.
use super::dag::{
    Evaluator, Place, cached_line, frequency_tables, sequence, signature, streamed, width_constant,
};
use super::source::{c_float, constants, opening};
use super::spec::{Backward, KernelOp, KernelSpec, NormKind, Pairing, ValueId};
use super::{CudaError, Generated, GeneratedKernel};
use lapidary_runtime_gpu::program::RowOrder;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

const ROW: &str = include_str!("device/row.cuh");

/// Threads of a block that handles elements for themselves.
const ELEMENT_THREADS: u64 = 256;

/// Lowers a row, elementwise or gather region.
pub(crate) fn lower(spec: &KernelSpec) -> Result<Generated, CudaError> {
    let shape = Shape::of(spec)?;
    let statistics = spec.ops.iter().any(|op| {
        matches!(
            op.op,
            KernelOp::Norm { .. }
                | KernelOp::Softmax
                | KernelOp::Backward(Backward::NormDx { .. } | Backward::SoftmaxDx)
        )
    });
    let kernel = if statistics { row_kernel(spec, &shape)? } else { element_kernel(spec, &shape)? };
    let output_orders = vec![RowOrder::Natural; spec.outputs.len()];
    Ok(Generated { kernels: vec![kernel], scratch: Vec::new(), output_orders })
}

/// The loop around the operations.
struct Shape {
    rows: u64,
    cols: u64,
    width: u64,
}

impl Shape {
    fn of(spec: &KernelSpec) -> Result<Shape, CudaError> {
        let cols = spec.ty(spec.outputs[0]).cols();
        if let Some(&other) = spec.outputs.iter().find(|&&id| spec.ty(id).cols() != cols) {
            let what = format!("outputs of {cols} and of {} columns in one pass", spec.ty(other).cols());
            return Err(spec.unsupported(what, "split the region"));
        }
        let rows = spec.outputs.iter().map(|&id| computed_rows(spec, id)).min().unwrap_or(1);
        if rows >= 1 << 31 {
            return Err(spec.unsupported(format!("{rows} rows"), "reduce the batch or the sequence length"));
        }
        let width = spec.ops.iter().fold(8, |width, op| match &op.op {
            KernelOp::Rope(rope) | KernelOp::Backward(Backward::RopeDx(rope))
                if rope.pairing == Pairing::Half =>
            {
                common_power(common_power(width, rope.rot_dims / 2), rope.head_dim)
            }
            _ => width,
        });
        Ok(Shape { rows, cols, width })
    }

    fn runs(&self) -> u64 {
        self.cols.div_ceil(self.width)
    }
}

/// The largest power of two that divides both; `width` is one.
fn common_power(width: u64, value: u64) -> u64 {
    let mut width = width;
    while width > 1 && !value.is_multiple_of(width) {
        width /= 2;
    }
    width
}

/// Rows that a value takes to compute: what is appended to a cache counts, not the cache.
fn computed_rows(spec: &KernelSpec, value: ValueId) -> u64 {
    match spec.op(value) {
        Some(op) if matches!(op.op, KernelOp::KvAppend { .. }) => spec.ty(op.operands[0]).rows(),
        _ => spec.ty(value).rows(),
    }
}

fn evaluator<'a>(spec: &'a KernelSpec, shape: &Shape, declare: bool) -> Evaluator<'a> {
    Evaluator {
        spec,
        pointers: "",
        rows: shape.rows,
        sequence: sequence(spec),
        width: shape.width,
        paired: false,
        done: BTreeSet::new(),
        declare,
    }
}

fn element_kernel(spec: &KernelSpec, shape: &Shape) -> Result<GeneratedKernel, CudaError> {
    let mut evaluator = evaluator(spec, shape, true);
    let place = Place::here("");
    let mut code = String::new();
    for &output in &spec.outputs {
        code.push_str(&evaluator.value(output, &place)?);
    }
    for output in 0..spec.outputs.len() {
        code.push_str(&evaluator.store(output, &place)?);
    }
    let signature = signature(spec, &BTreeSet::new(), &BTreeMap::new())?;
    let runs = shape.rows.saturating_mul(shape.runs());
    let blocks = runs.div_ceil(ELEMENT_THREADS);
    if blocks >= 1 << 31 {
        return Err(
            spec.unsupported(format!("{runs} runs of columns"), "reduce the batch or the sequence length")
        );
    }
    let index = if runs < 1 << 31 { "unsigned" } else { "unsigned long long" };
    let paragraph = format!(
        "{}: {} on {} rows of {}. Each thread computes {} neighbouring columns of one row in f32 registers: it loads every \
         input once, applies the operations in order and stores every output once. {}",
        spec.name,
        spec.op_words().join(", "),
        shape.rows,
        shape.cols,
        shape.width,
        spec.reason
    );
    let mut source = opening(&paragraph);
    source.push_str(&width_constant(shape.width));
    source.push_str(&constants(&[("ROWS", shape.rows), ("COLS", shape.cols), ("RUNS", shape.runs())]));
    source.push_str(&frequency_tables(spec));
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__({ELEMENT_THREADS}) {}({}) {{\n{}    \
         const {index} run = {index}(blockIdx.x) * {ELEMENT_THREADS} + threadIdx.x;\n    \
         const int row = int(run / RUNS), col = int(run % RUNS) * W;\n    if (row >= ROWS) return;\n    \
         {}\n{}}}\n",
        spec.name,
        signature.parameters(),
        cached_line(spec, ""),
        valid_line(shape, shape.runs() * shape.width),
        indent(&code, 1)
    );
    let work = spec.work();
    Ok(GeneratedKernel {
        name: spec.name.clone(),
        source,
        grid: [blocks as u32, 1, 1],
        block: [ELEMENT_THREADS as u32, 1, 1],
        shared_bytes: 0,
        static_shared_bytes: 0,
        args: signature.args,
        flops: work.flops,
        bytes: work.bytes,
        choice: None,
        reason: spec.reason.clone(),
    })
}

/// How many columns of a run exist: all of them, all or none, or some.
fn valid_line(shape: &Shape, covered: u64) -> &'static str {
    match (covered == shape.cols, shape.cols.is_multiple_of(shape.width)) {
        (true, _) => "constexpr int valid = W;",
        (false, true) => "const int valid = col < COLS ? W : 0;",
        (false, false) => "const int valid = COLS - col < W ? COLS - col : W;",
    }
}

/// Threads and runs per thread for a row of `runs` runs: two runs each, to have two loads under way.
pub(crate) fn split_row(runs: u64) -> (u64, u64) {
    let threads = runs.div_ceil(2).next_multiple_of(32).min(1024);
    (threads, runs.div_ceil(threads))
}

fn row_kernel(spec: &KernelSpec, shape: &Shape) -> Result<GeneratedKernel, CudaError> {
    let (threads, per_thread) = split_row(shape.runs());
    if per_thread * shape.width > 64 {
        let most = 64 * 1024;
        return Err(spec.unsupported(
            format!("rows of {} columns with statistics", shape.cols),
            format!("at most {most}"),
        ));
    }
    let mut writer =
        RowWriter { evaluator: evaluator(spec, shape, false), pending: String::new(), code: String::new() };
    writer.region()?;
    let signature = signature(spec, &BTreeSet::new(), &BTreeMap::new())?;
    let body = writer.code.replace("@VALID@", valid_line(shape, threads * per_thread * shape.width));
    let paragraph = format!(
        "{}: {} on {} rows of {}. One block of {threads} threads per row; each thread keeps {per_thread} runs of {} columns \
         in f32 registers from the first load to the last store, and statistics are sums over the block. {}",
        spec.name,
        spec.op_words().join(", "),
        shape.rows,
        shape.cols,
        shape.width,
        spec.reason
    );
    let mut source = opening(&paragraph);
    source.push_str(ROW);
    source.push_str(&width_constant(shape.width));
    source.push_str(&constants(&[("COLS", shape.cols), ("THREADS", threads), ("PER_THREAD", per_thread)]));
    source.push_str(&frequency_tables(spec));
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS) {}({}) {{\n{}    __shared__ float partial[32];\n    \
         const int row = blockIdx.x;\n{}}}\n",
        spec.name,
        signature.parameters(),
        cached_line(spec, ""),
        indent(&body, 1)
    );
    let work = spec.work();
    Ok(GeneratedKernel {
        name: spec.name.clone(),
        source,
        grid: [shape.rows as u32, 1, 1],
        block: [threads as u32, 1, 1],
        shared_bytes: 0,
        static_shared_bytes: 128,
        args: signature.args,
        flops: work.flops,
        bytes: work.bytes,
        choice: None,
        reason: spec.reason.clone(),
    })
}

/// Writes a row kernel's body: runs of element code in one unrolled loop each, and the statistics between them.
struct RowWriter<'a> {
    evaluator: Evaluator<'a>,
    pending: String,
    code: String,
}

impl RowWriter<'_> {
    fn region(&mut self) -> Result<(), CudaError> {
        let spec = self.evaluator.spec;
        let place = Place::here("[c]");
        let mut arrays: Vec<ValueId> = spec.results().collect();
        arrays.extend((0..spec.inputs.len()).filter(|&i| self.is_streamed(i)));
        for value in arrays {
            let _ = writeln!(self.code, "float v{value}[PER_THREAD][W];");
        }
        for id in spec.results() {
            let Some(op) = spec.op(id) else { continue };
            match &op.op {
                KernelOp::Norm { kind, eps } => {
                    self.pending.push_str(&self.evaluator.value(op.operands[0], &place)?);
                    self.flush();
                    self.norm(id, *kind, *eps)?;
                }
                KernelOp::Softmax => {
                    self.pending.push_str(&self.evaluator.value(op.operands[0], &place)?);
                    self.flush();
                    self.softmax(id)?;
                }
                KernelOp::Backward(Backward::NormDx { kind, eps }) => {
                    self.operands(&[op.operands[0], op.operands[2]])?;
                    self.norm_dx(id, *kind, *eps);
                }
                KernelOp::Backward(Backward::SoftmaxDx) => {
                    self.operands(&op.operands)?;
                    self.softmax_dx(id);
                }
                _ => self.pending.push_str(&self.evaluator.value(id, &place)?),
            }
        }
        for output in 0..spec.outputs.len() {
            self.pending.push_str(&self.evaluator.store(output, &place)?);
        }
        self.flush();
        Ok(())
    }

    /// Whether the input is loaded by columns rather than used as a table or a vector.
    fn is_streamed(&self, input: ValueId) -> bool {
        let spec = self.evaluator.spec;
        spec.users(input).iter().any(|&user| {
            spec.op(user).is_some_and(|op| match &op.op {
                KernelOp::Embed | KernelOp::EmbedPart { .. } => false,
                KernelOp::Backward(Backward::NormDx { .. }) => op.operands[1] != input,
                other => streamed(other, &op.operands).contains(&input),
            })
        })
    }

    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.over_runs(&pending);
        }
    }

    fn over_runs(&mut self, body: &str) {
        let _ = write!(
            self.code,
            "LP_UNROLL for (int c = 0; c < PER_THREAD; ++c) {{\n    const int col = (c * THREADS + threadIdx.x) * W;\n    \
             @VALID@\n{}}}\n",
            indent(body, 1)
        );
    }

    fn norm(&mut self, id: ValueId, kind: NormKind, eps: f64) -> Result<(), CudaError> {
        let spec = self.evaluator.spec;
        let operands = spec.op(id).map(|op| op.operands.clone()).unwrap_or_default();
        let (x, eps) = (operands[0], c_float(eps));
        let _ = writeln!(self.code, "float sum{id} = 0.0f;");
        match kind {
            NormKind::Rms => {
                self.over_runs(&format!(
                    "LP_UNROLL for (int e = 0; e < W; ++e) sum{id} += v{x}[c][e] * v{x}[c][e];\n"
                ));
                let _ = writeln!(self.code, "constexpr float mean{id} = 0.0f;");
            }
            NormKind::Layer => {
                self.over_runs(&format!("LP_UNROLL for (int e = 0; e < W; ++e) sum{id} += v{x}[c][e];\n"));
                let _ = writeln!(
                    self.code,
                    "const float mean{id} = lp_block_sum<THREADS>(sum{id}, partial) * (1.0f / COLS);\nsum{id} = 0.0f;"
                );
                self.over_runs(&format!(
                    "LP_UNROLL for (int e = 0; e < W; ++e) {{\n    const float d = e < valid ? v{x}[c][e] - mean{id} : 0.0f;\n    \
                     sum{id} += d * d;\n}}\n"
                ));
            }
        }
        let _ = writeln!(
            self.code,
            "const float scale{id} = rsqrtf(lp_block_sum<THREADS>(sum{id}, partial) * (1.0f / COLS) + {eps});"
        );
        let place = Place::here("[c]");
        let normal = format!("v{id}[c][e] = (v{x}[c][e] - mean{id}) * scale{id} * p[e];");
        self.pending.push_str(&self.evaluator.with_vector(operands[1], &place, &normal));
        if let Some(&bias) = operands.get(2) {
            self.pending.push_str(&self.evaluator.with_vector(
                bias,
                &place,
                &format!("v{id}[c][e] += p[e];"),
            ));
        }
        self.evaluator.provide(id, &place);
        Ok(())
    }

    /// Has the values in their arrays before anything that follows.
    fn operands(&mut self, values: &[ValueId]) -> Result<(), CudaError> {
        for value in values {
            self.pending.push_str(&self.evaluator.value(*value, &Place::here("[c]"))?);
        }
        self.flush();
        Ok(())
    }

    /// `r (g - mean(g) - x̂ mean(g x̂))` with g = dy w and x̂ the normalised row; the middle term where rows are centred.
    fn norm_dx(&mut self, id: ValueId, kind: NormKind, eps: f64) {
        let operands = self.evaluator.spec.op(id).map(|op| op.operands.clone()).unwrap_or_default();
        let (x, weight, dy, eps) = (operands[0], operands[1], operands[2], c_float(eps));
        let _ = writeln!(self.code, "float sum{id} = 0.0f, mean{id} = 0.0f;");
        if kind == NormKind::Layer {
            self.over_runs(&format!("LP_UNROLL for (int e = 0; e < W; ++e) sum{id} += v{x}[c][e];\n"));
            let _ = writeln!(
                self.code,
                "mean{id} = lp_block_sum<THREADS>(sum{id}, partial) * (1.0f / COLS);\nsum{id} = 0.0f;"
            );
        }
        self.over_runs(&format!(
            "LP_UNROLL for (int e = 0; e < W; ++e) {{\n    const float d = e < valid ? v{x}[c][e] - mean{id} : 0.0f;\n    \
             sum{id} += d * d;\n}}\n"
        ));
        let _ = writeln!(
            self.code,
            "const float scale{id} = rsqrtf(lp_block_sum<THREADS>(sum{id}, partial) * (1.0f / COLS) + {eps});\n\
             float all{id} = 0.0f, along{id} = 0.0f;"
        );
        let place = Place::here("[c]");
        let products = format!(
            "{{ const float g = e < valid ? v{dy}[c][e] * p[e] : 0.0f, d = (v{x}[c][e] - mean{id}) * scale{id}; \
             v{id}[c][e] = g; all{id} += g; along{id} += e < valid ? g * d : 0.0f; }}"
        );
        let body = self.evaluator.with_vector(weight, &place, &products);
        self.over_runs(&body);
        let _ = writeln!(
            self.code,
            "along{id} = lp_block_sum<THREADS>(along{id}, partial) * (1.0f / COLS);\n{}",
            match kind {
                NormKind::Layer =>
                    format!("all{id} = lp_block_sum<THREADS>(all{id}, partial) * (1.0f / COLS);"),
                NormKind::Rms => format!("all{id} = 0.0f;"),
            }
        );
        self.pending.push_str(&format!(
            "LP_UNROLL for (int e = 0; e < W; ++e) v{id}[c][e] = scale{id} * (v{id}[c][e] - all{id} - \
             (v{x}[c][e] - mean{id}) * scale{id} * along{id});\n"
        ));
        self.evaluator.provide(id, &place);
    }

    fn softmax_dx(&mut self, id: ValueId) {
        let operands = self.evaluator.spec.op(id).map(|op| op.operands.clone()).unwrap_or_default();
        let (p, dp) = (operands[0], operands[1]);
        let _ = writeln!(self.code, "float sum{id} = 0.0f;");
        self.over_runs(&format!(
            "LP_UNROLL for (int e = 0; e < W; ++e) sum{id} += e < valid ? v{p}[c][e] * v{dp}[c][e] : 0.0f;\n"
        ));
        let _ = writeln!(self.code, "sum{id} = lp_block_sum<THREADS>(sum{id}, partial);");
        self.pending.push_str(&format!(
            "LP_UNROLL for (int e = 0; e < W; ++e) v{id}[c][e] = v{p}[c][e] * (v{dp}[c][e] - sum{id});\n"
        ));
        self.evaluator.provide(id, &Place::here("[c]"));
    }

    fn softmax(&mut self, id: ValueId) -> Result<(), CudaError> {
        let spec = self.evaluator.spec;
        let x = spec.op(id).map_or(0, |op| op.operands[0]);
        let _ = writeln!(self.code, "float max{id} = -LP_INFINITY, sum{id} = 0.0f;");
        self.over_runs(&format!(
            "LP_UNROLL for (int e = 0; e < W; ++e) max{id} = e < valid ? fmaxf(max{id}, v{x}[c][e]) : max{id};\n"
        ));
        let _ = writeln!(self.code, "max{id} = lp_block_max<THREADS>(max{id}, partial);");
        self.over_runs(&format!(
            "LP_UNROLL for (int e = 0; e < W; ++e) {{\n    \
             v{id}[c][e] = e < valid ? lp_exp2((v{x}[c][e] - max{id}) * 1.4426950408889634f) : 0.0f;\n    \
             sum{id} += v{id}[c][e];\n}}\n"
        ));
        let _ = writeln!(
            self.code,
            "const float scale{id} = __fdividef(1.0f, lp_block_sum<THREADS>(sum{id}, partial));"
        );
        self.pending.push_str(&format!("LP_UNROLL for (int e = 0; e < W; ++e) v{id}[c][e] *= scale{id};\n"));
        self.evaluator.provide(id, &Place::here("[c]"));
        Ok(())
    }
}

/// Every line moved in by `levels` of four spaces.
pub(crate) fn indent(text: &str, levels: usize) -> String {
    text.lines().map(|line| format!("{}{line}\n", "    ".repeat(levels))).collect()
}
