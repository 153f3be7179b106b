//! Writes products: the epilogue from the region's operations, and the loop that fits the size.
use super::dag::{Evaluator, Place, cached_line, frequency_tables, signature};
use super::matmul::{Product, SMALL, Segment};
use super::row::indent;
use super::source::{Signature, c_type, constants, opening};
use super::spec::KernelSpec;
use super::{CudaError, GeneratedKernel, Operand, Options};
use lapidary_runtime_gpu::program::Dtype;
use std::collections::BTreeSet;
use std::fmt::Write as _;

const GEMM: &str = include_str!("device/gemm.cuh");
const GEMV: &str = include_str!("device/gemv.cuh");
const GEMM_F32: &str = include_str!("device/gemm_f32.cuh");

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// Tensor cores on tiles.
    Tiles(Tile),
    /// Weights streamed past a few rows; the number is rows of weights per warp.
    Stream(u64),
    /// Single precision on tiles.
    Single,
}

/// Size of a block's part and how its warps share it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tile {
    bm: u64,
    bn: u64,
    bk: u64,
    stages: u64,
    warps_m: u64,
    warps_n: u64,
    /// Blocks that fit on a multiprocessor (by shared memory and registers).
    resident: u64,
    /// Speed relative to the largest tile. Assumed from the ratio of work to copies, not measured.
    rate: f64,
}

/// From large to small. Shared memory: 144, 64, 72, 64 and 72 KiB.
const TILES: [Tile; 5] = [
    Tile { bm: 128, bn: 256, bk: 64, stages: 3, warps_m: 2, warps_n: 4, resident: 1, rate: 1.0 },
    Tile { bm: 128, bn: 128, bk: 32, stages: 4, warps_m: 2, warps_n: 2, resident: 2, rate: 0.9 },
    Tile { bm: 64, bn: 128, bk: 64, stages: 3, warps_m: 2, warps_n: 2, resident: 2, rate: 0.7 },
    Tile { bm: 64, bn: 64, bk: 64, stages: 4, warps_m: 2, warps_n: 2, resident: 2, rate: 0.55 },
    Tile { bm: 16, bn: 128, bk: 64, stages: 4, warps_m: 1, warps_n: 4, resident: 2, rate: 0.25 },
];

impl Tile {
    fn shared_bytes(&self) -> u64 {
        let slab = self.warps_m * self.warps_n * 16 * (self.bn / self.warps_n + 8) * 4;
        (self.stages * (self.bm + self.bn) * self.bk * 2).max(slab)
    }

    fn blocks(&self, product: &Product) -> u64 {
        product.m.div_ceil(self.bm) * product.n.div_ceil(self.bn)
    }

    /// Time in units of the largest tile's multiply-adds: full waves of resident blocks.
    fn time(&self, product: &Product, processors: u64) -> f64 {
        let waves = self.blocks(product).div_ceil(processors * self.resident);
        (waves * self.resident * self.bm * self.bn) as f64 / self.rate
    }
}

/// The form for a product's size: streams for few rows, single precision for f32, else the tile with the least estimated time.
pub(crate) fn form_of(product: &Product, options: &Options) -> Form {
    if product.m <= SMALL {
        return Form::Stream(if product.n >= 8192 { 4 } else { 2 });
    }
    if product.dtype == Dtype::F32 {
        return Form::Single;
    }
    if let Some(tile) = options.tile.and_then(|index| TILES.get(index)) {
        return Form::Tiles(*tile);
    }
    let times = TILES.iter().map(|tile| (tile, tile.time(product, options.processors.max(1))));
    let best = times.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(&TILES[0], |(tile, _)| tile);
    Form::Tiles(*best)
}

/// Writes the kernel.
pub(crate) fn emit(spec: &KernelSpec, product: &Product, form: Form) -> Result<GeneratedKernel, CudaError> {
    let run = 8 * product.segments.iter().map(|segment| segment.linears.len() as u64).max().unwrap_or(1);
    let signature = product_signature(spec, product)?;
    let mut source = opening(&paragraph(spec, product, form));
    source.push_str(&constants(&[
        ("M", product.m),
        ("N", product.n),
        ("K", product.k),
        ("LDA", product.lda),
        ("LDW", product.k.next_multiple_of(product.dtype.vector())),
        ("P", run),
    ]));
    let _ = writeln!(source, "typedef {} Element;", c_type(product.dtype));
    source.push_str(&frequency_tables(spec));
    source.push_str(&signature.structure());
    source.push_str(&epilogue(spec, product, run)?);
    let (text, function, blocks, threads, shared) = body(product, form);
    source.push_str(&text);
    let offset =
        if product.first_element > 0 { format!(" + {}", product.first_element) } else { String::new() };
    // Told how many blocks will share a processor, the assembler does not spill to fit more of them.
    let bounds = match form {
        Form::Tiles(tile) => format!("{threads}, {}", tile.resident),
        Form::Stream(_) | Form::Single => format!("{threads}, 2"),
    };
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__({bounds}) {}({}) {{\n{}    {function}(x{offset}, weights, args);\n}}\n",
        spec.name,
        signature.parameters(),
        signature.bundle()
    );
    if blocks >= 1 << 31 {
        return Err(spec.unsupported(format!("{blocks} blocks"), "reduce the batch or the width"));
    }
    let work = spec.work();
    let static_shared_bytes = match form {
        Form::Tiles(_) => 0,
        Form::Stream(rows) => product.m * 8 * rows * 4,
        Form::Single => 4 * (2 * 16 * 68 + 64 * 68),
    };
    Ok(GeneratedKernel {
        name: spec.name.clone(),
        source,
        grid: [blocks as u32, 1, 1],
        block: [threads as u32, 1, 1],
        shared_bytes: shared,
        static_shared_bytes,
        args: signature.args,
        flops: work.flops,
        bytes: work.bytes,
        reason: format!("{} {}", spec.reason, why(product, form)).trim().to_string(),
    })
}

/// Left side and weights first, then what the epilogue reads and writes.
fn product_signature(spec: &KernelSpec, product: &Product) -> Result<Signature, CudaError> {
    let weights = product.segments.iter().flat_map(|segment| &segment.linears);
    let mut bound: BTreeSet<usize> =
        weights.filter_map(|&linear| Some(spec.op(linear)?.operands[1])).collect();
    let elsewhere = spec
        .users(product.x)
        .iter()
        .any(|&user| spec.op(user).is_some_and(|op| !matches!(op.op.word(), "linear" | "last_token")));
    if !elsewhere {
        bound.insert(product.x);
    }
    let mut all = Signature::default();
    all.read(Operand::Input(product.x), product.dtype, "x");
    all.read(Operand::Param(product.packing(spec)?, product.dtype), product.dtype, "weights");
    let rest = signature(spec, &bound, &product.vector_orders)?;
    all.args.extend(rest.args);
    all.names.extend(rest.names);
    all.types.extend(rest.types);
    Ok(all)
}

fn body(product: &Product, form: Form) -> (String, &'static str, u64, u64, u64) {
    match form {
        Form::Tiles(tile) => {
            let sizes = constants(&[
                ("BM", tile.bm),
                ("BN", tile.bn),
                ("BK", tile.bk),
                ("STAGES", tile.stages),
                ("WARPS_M", tile.warps_m),
                ("WARPS_N", tile.warps_n),
            ]);
            let threads = 32 * tile.warps_m * tile.warps_n;
            (sizes + GEMM, "lp_gemm", tile.blocks(product), threads, tile.shared_bytes())
        }
        Form::Stream(rows) => {
            // About eight loads of 16 bytes are under way per thread.
            let ahead = if product.m <= 2 { 8 / rows } else { 1 };
            let text = constants(&[("ROWS_PER_WARP", rows), ("AHEAD", ahead)]) + GEMV;
            (text, "lp_gemv", product.n.div_ceil(8 * rows), 256, 0)
        }
        Form::Single => {
            (GEMM_F32.to_string(), "lp_gemm_f32", product.m.div_ceil(64) * product.n.div_ceil(64), 256, 0)
        }
    }
}

fn why(product: &Product, form: Form) -> String {
    match form {
        Form::Tiles(tile) => format!(
            "Generated because its epilogue is more than a bias and a residual; {} x {} tiles of depth {}, {} stages.",
            tile.bm, tile.bn, tile.bk, tile.stages
        ),
        Form::Stream(_) => {
            format!("Generated because {} rows are few: the weights are streamed once.", product.m)
        }
        Form::Single => "Generated in single precision without tensor cores.".into(),
    }
}

fn paragraph(spec: &KernelSpec, product: &Product, form: Form) -> String {
    let segments: Vec<String> = product.segments.iter().map(|segment| describe(spec, segment)).collect();
    let Product { m, n, k, .. } = product;
    format!(
        "{}: [{m}, {k}] x [{n}, {k}]^T in f32 sums, then {} on the accumulators. Packed weight rows: {}. {} {}",
        spec.name,
        spec.op_words().join(", "),
        segments.join("; "),
        why(product, form),
        spec.reason
    )
}

fn describe(spec: &KernelSpec, segment: &Segment) -> String {
    let pairs = if segment.linears.len() == 2 { ", two linears alternating" } else { "" };
    let order = if segment.order.is_natural() { "" } else { ", rotary pairs as neighbours within each head" };
    let outputs: Vec<String> = segment
        .outputs
        .iter()
        .map(|&o| spec.ty(spec.outputs[o]).shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x "))
        .collect();
    format!("{}..{} for the outputs {}{pairs}{order}", segment.first, segment.end(), outputs.join(" and "))
}

/// The function that turns a run of accumulators into outputs.
fn epilogue(spec: &KernelSpec, product: &Product, run: u64) -> Result<String, CudaError> {
    let mut code = String::new();
    for segment in &product.segments {
        let text = segment_code(spec, product, segment, run)?;
        let _ =
            write!(code, "    if (at < {}) {{\n{}        return;\n    }}\n", segment.end(), indent(&text, 2));
    }
    Ok(format!(
        "\n// What follows the product, on P neighbouring packed columns of one row.\n\
         LP_DEVICE void lp_epilogue(const Args& args, int row, int at, const float (&sum)[P]) {{\n{}{code}}}\n\n",
        cached_line(spec, "args.")
    ))
}

fn segment_code(
    spec: &KernelSpec,
    product: &Product,
    segment: &Segment,
    run: u64,
) -> Result<String, CudaError> {
    let ways = segment.linears.len() as u64;
    let width = run / ways;
    let mut evaluator = Evaluator {
        spec,
        pointers: "args.",
        rows: product.m,
        sequence: product.sequence,
        width,
        paired: true,
        done: BTreeSet::new(),
        declare: true,
    };
    let place = Place::here("");
    let column = if ways == 1 {
        format!("at - {}", segment.first)
    } else {
        format!("(at - {}) / {ways}", segment.first)
    };
    let mut code = format!("const int col = {column};\n");
    if segment.cols.is_multiple_of(width) {
        let padded = segment.first + segment.cols * ways != segment.end();
        let guard = if padded { format!("if (col >= {}) return;\n", segment.cols) } else { String::new() };
        let _ = writeln!(code, "{guard}constexpr int valid = {width};");
    } else {
        let cols = segment.cols;
        let _ = writeln!(code, "const int valid = {cols} - col < {width} ? {cols} - col : {width};");
    }
    for (i, &linear) in segment.linears.iter().enumerate() {
        let name = evaluator.name(linear, &place);
        let from = if ways == 1 { "e".to_string() } else { format!("{ways} * e + {i}") };
        let _ = writeln!(
            code,
            "float {name}[{width}];\nLP_UNROLL for (int e = 0; e < {width}; ++e) {name}[e] = sum[{from}];"
        );
        evaluator.provide(linear, &place);
    }
    for &output in &segment.outputs {
        code.push_str(&evaluator.value(spec.outputs[output], &place)?);
    }
    for &output in &segment.outputs {
        code.push_str(&evaluator.store(output, &place)?);
    }
    Ok(code)
}
