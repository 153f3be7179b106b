//! Writes products: the epilogue from the region's operations, and the loop that fits the size.
use super::dag::{Evaluator, Place, cached_line, frequency_tables, signature};
use super::matmul::{Product, Segment};
use super::matmul_forms::Form;
use super::row::indent;
use super::source::{Machine, Signature, WarpgroupProduct, c_type, constants, opening_for};
use super::spec::KernelSpec;
use super::{CudaError, GeneratedKernel, Operand};
use lapidary_runtime_gpu::program::{Dtype, FormChoice, PackForm};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const TILES: &str = include_str!("device/tiles.cuh");
const LEAVE: &str = include_str!("device/leave.cuh");
const GEMM: &str = include_str!("device/gemm.cuh");
const GEMM_HOPPER: &str = include_str!("device/gemm_90.cuh");
const GEMV: &str = include_str!("device/gemv.cuh");
const GEMM_F32: &str = include_str!("device/gemm_f32.cuh");

/// Writes the kernel.
pub(crate) fn emit(
    spec: &KernelSpec,
    product: &Product,
    form: Form,
    choice: FormChoice,
    processors: u64,
) -> Result<GeneratedKernel, CudaError> {
    let run = 8 * product.segments.iter().map(|segment| segment.linears.len() as u64).max().unwrap_or(1);
    let signature = product_signature(spec, product, form)?;
    let products = match form {
        Form::Hopper(tile) => vec![WarpgroupProduct { columns: tile.bn, held: false }],
        _ => Vec::new(),
    };
    let machine = if products.is_empty() { Machine::Ampere } else { Machine::Hopper(&products) };
    let mut source = opening_for(machine, &paragraph(spec, product, form));
    source.push_str(&constants(&[
        ("M", product.m),
        ("N", product.n),
        ("K", product.k),
        ("LDA", product.lda),
        ("LDW", product.weight_pitch()),
        ("P", run),
    ]));
    let (element, weight) = (c_type(product.dtype), c_type(product.weight_dtype()));
    let _ = writeln!(source, "typedef {element} Element;\ntypedef {weight} Weight;");
    source.push_str(&frequency_tables(spec));
    source.push_str(&signature.structure());
    source.push_str(&epilogue(spec, product, run)?);
    let Body { text, function, blocks, threads, shared } = body(product, form, processors);
    source.push_str(&text);
    let offset =
        if product.first_element > 0 { format!(" + {}", product.first_element) } else { String::new() };
    // Told how many blocks will share a processor, the assembler does not spill to fit more of them.
    let bounds = match form {
        Form::Tiles(tile) => format!("{threads}, {}", tile.resident),
        Form::Hopper(_) => format!("{threads}, 1"),
        Form::Stream(_) | Form::Single | Form::Library => format!("{threads}, 2"),
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
        Form::Tiles(_) | Form::Hopper(_) | Form::Library => 0,
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
        bytes: work.bytes - product.bytes_saved(),
        choice: Some(choice),
        reason: format!("{} {}", spec.reason, why(product, form)).trim().to_string(),
    })
}

/// Left side and weights first, then what the epilogue reads and writes.
fn product_signature(spec: &KernelSpec, product: &Product, form: Form) -> Result<Signature, CudaError> {
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
    let weight = |form| Ok::<_, CudaError>(product.packing(spec)?.with(form));
    let mut all = Signature::default();
    if let Form::Hopper(tile) = form {
        let (left, right) = ([product.m, product.k], [product.n, product.k]);
        all.boxes(Operand::Input(product.x), tile.boxes(false, left, product.lda, tile.bm), "x");
        let param = Operand::Param(weight(PackForm::Values)?, product.dtype);
        all.boxes(param, tile.boxes(false, right, product.weight_pitch(), tile.bn), "weights");
    } else {
        all.read(Operand::Input(product.x), product.dtype, "x");
        let form = if product.int8 { PackForm::Int8 } else { PackForm::Values };
        let dtype = product.weight_dtype();
        all.read(Operand::Param(weight(form)?, dtype), dtype, "weights");
        if product.int8 {
            all.read(Operand::Param(weight(PackForm::Int8Scales)?, Dtype::F32), Dtype::F32, "scales");
        }
    }
    all.append(signature(spec, &bound, &product.vector_orders)?);
    Ok(all)
}

/// The loop of a form and how it is launched.
struct Body {
    text: String,
    function: &'static str,
    blocks: u64,
    threads: u64,
    /// Dynamic shared memory in bytes.
    shared: u64,
}

fn body(product: &Product, form: Form, processors: u64) -> Body {
    match form {
        Form::Tiles(tile) => {
            let sizes = constants(&[
                ("BM", tile.bm),
                ("BN", tile.bn),
                ("BK", tile.bk),
                ("STAGES", tile.stages),
                ("WARPS_M", tile.warps_m),
                ("WARPS_N", tile.warps_n),
                ("WARPS_K", tile.warps_k),
            ]);
            Body {
                text: [&sizes, TILES, LEAVE, GEMM].concat(),
                function: "lp_gemm",
                blocks: tile.blocks(product),
                threads: tile.threads(),
                shared: tile.shared_bytes(product.weight_dtype().bytes()),
            }
        }
        Form::Hopper(tile) => Body {
            text: [&tile.constants([false; 2]), TILES, LEAVE, GEMM_HOPPER].concat(),
            function: "lp_gemm_90",
            blocks: tile.blocks([product.m, product.n]).min(processors.max(1)),
            threads: tile.threads(),
            shared: tile.shared_bytes(),
        },
        Form::Stream(rows) => {
            // About eight loads of 16 bytes are under way per thread.
            let ahead = if product.m <= 2 { 8 / rows } else { 1 };
            Body {
                text: constants(&[("ROWS_PER_WARP", rows), ("AHEAD", ahead)]) + GEMV,
                function: "lp_gemv",
                blocks: product.n.div_ceil(8 * rows),
                threads: 256,
                shared: 0,
            }
        }
        Form::Single | Form::Library => Body {
            text: GEMM_F32.to_string(),
            function: "lp_gemm_f32",
            blocks: product.m.div_ceil(64) * product.n.div_ceil(64),
            threads: 256,
            shared: 0,
        },
    }
}

fn why(product: &Product, form: Form) -> String {
    match form {
        Form::Tiles(tile) if tile.warps_k > 1 => format!(
            "Generated for few rows, with everything that follows in its epilogue; {} x {} tiles, every slice of depth {} \
             shared by {} warps, {} stages.",
            tile.bm, tile.bn, tile.bk, tile.warps_k, tile.stages
        ),
        Form::Tiles(tile) => format!(
            "Generated, with everything that follows in its epilogue; {} x {} tiles of depth {}, {} stages.",
            tile.bm, tile.bn, tile.bk, tile.stages
        ),
        Form::Hopper(tile) => format!(
            "Generated for Hopper's copy engine and warpgroup products; {} x {} tiles, {} stages.",
            tile.bm, tile.bn, tile.stages
        ),
        Form::Stream(_) => {
            format!("Generated because {} rows are few: the weights are streamed once.", product.m)
        }
        Form::Single | Form::Library => "Generated in single precision without tensor cores.".into(),
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
        let scale = if product.int8 { format!(" * args.scales[at + {from}]") } else { String::new() };
        let _ = writeln!(
            code,
            "float {name}[{width}];\nLP_UNROLL for (int e = 0; e < {width}; ++e) {name}[e] = sum[{from}]{scale};"
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
