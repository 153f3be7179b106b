//! Products of a backward pass: by a weight the other way (dX), by what went in (dW), and those of attention one by one.
//!
//! All of them are one form, `out(m, n) = Σ a(m, k) b(n, k)`, over operands that lie with their rows along the depth or with
//! one row per step of depth.
//!
//! | operation | a | b | m, n, k |
//! |---|---|---|---|
//! | `linear_dx` | dy | w, a row per step | rows, inputs, outputs |
//! | `linear_dw` | dy, a row per step | x, a row per step | outputs, inputs, rows |
//! | `scores` | q of a head | k | queries, keys, width |
//! | `values` | p | v, a row per step | queries, width, keys |
//! | `values_dv` | p, a row per step | y, a row per step | keys, width, queries; heads that share keys add up |
use super::product_forms::{Form, LARGE, Tile, choose_form, forms};
use super::{Made, natural};
use crate::cuda::dag::{Evaluator, Place, cached_line, frequency_tables, signature};
use crate::cuda::matmul_forms::{HopperTile, SMALL};
use crate::cuda::row::indent;
use crate::cuda::source::{Machine, Signature, WarpgroupProduct, c_type, constants, opening_for};
use crate::cuda::spec::{Anchor, Backward, KernelOp, KernelSpec, Source, TensorType, ValueId};
use crate::cuda::{Choice, CudaError, GeneratedKernel, LibraryProduct, Operand, Options, RightSide};
use lapidary_runtime_gpu::program::packing::PackGroup;
use lapidary_runtime_gpu::program::{Access, Dtype, PackForm, PackSource, Packing, RowOrder};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const PRODUCT: &str = concat!(include_str!("../device/leave.cuh"), include_str!("../device/product.cuh"));
const SINGLE: &str = include_str!("../device/product_single.cuh");
const JOIN: &str = include_str!("../device/product_join.cuh");
const HOPPER_TEXT: &str = concat!(
    include_str!("../device/tiles.cuh"),
    include_str!("../device/leave.cuh"),
    include_str!("../device/gemm_90.cuh")
);

/// What stands in the epilogue's place where a block has a part of the depth.
const PART: &str = "\
// A part's sums, P neighbouring columns of one row.
LP_DEVICE void lp_epilogue(const Args& args, int row, int col, const float (&sum)[P]) {
    lp_store(args.parts + ((long long)blockIdx.z * M + row) * PART_PITCH + col, P, sum);
}
";

/// Two kernels and what lies between them.
type Split = (Vec<GeneratedKernel>, Vec<TensorType>);

/// Where an operand lies: one row per step of depth or not, elements between rows, between sequences, heads and rounds,
/// and how many heads share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side {
    value: ValueId,
    deep: bool,
    pitch: u64,
    batch: u64,
    head: u64,
    share: u64,
    round: u64,
}

/// A product with its loops.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Product {
    result: ValueId,
    a: Side,
    b: Side,
    pub(super) mnk: [u64; 3],
    pub(super) dtype: Dtype,
    pub(super) batch: u64,
    pub(super) heads: u64,
    rounds: u64,
    /// Rows of the result between sequences and heads, columns between heads.
    out: [u64; 3],
}

impl Product {
    /// The product that a region is built around, if it is one of a backward pass.
    pub(super) fn of(spec: &KernelSpec) -> Result<Option<Product>, CudaError> {
        if spec.anchor != Anchor::Matmul {
            return Ok(None);
        }
        let mut found = spec.results().filter_map(|id| Product::at(spec, id));
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(product), None) => {
                let inputs =
                    [product.a.value, product.b.value].iter().all(|&value| value < spec.inputs.len());
                match inputs {
                    true => Ok(Some(product)),
                    false => Err(spec
                        .unsupported("operations in front of a product", "give them a region of their own")),
                }
            }
            (Some(_), Some(_)) => Err(spec.unsupported("two products in one region", "split the region")),
        }
    }

    fn at(spec: &KernelSpec, result: ValueId) -> Option<Product> {
        let op = spec.op(result)?;
        let (x, y) = (*op.operands.first()?, *op.operands.get(1)?);
        let (first, second) = (spec.ty(x), spec.ty(y));
        let flat = |value: ValueId, deep: bool| {
            let pitch = spec.ty(value).pitch();
            Side { value, deep, pitch, batch: 0, head: 0, share: 1, round: 0 }
        };
        let plain = |a, b, mnk| Product {
            result,
            a,
            b,
            mnk,
            dtype: first.dtype,
            batch: 1,
            heads: 1,
            rounds: 1,
            out: [0, 0, 0],
        };
        match op.op {
            KernelOp::Backward(Backward::LinearDx) => {
                Some(plain(flat(x, false), flat(y, true), [first.rows(), second.cols(), first.cols()]))
            }
            KernelOp::Backward(Backward::LinearDw) => {
                Some(plain(flat(x, true), flat(y, true), [first.cols(), second.cols(), first.rows()]))
            }
            KernelOp::Scores { heads, kv_heads } => {
                let (ratio, d) = (heads / kv_heads.max(1), first.cols() / heads.max(1));
                let (s, l) = (first.shape[1], second.shape[1]);
                let a = Side { batch: s * first.pitch(), head: d, ..flat(x, false) };
                let b = Side { batch: l * second.pitch(), head: d, share: ratio, ..flat(y, false) };
                let out = [heads * s, s, 0];
                Some(Product { batch: first.shape[0], heads, out, ..plain(a, b, [s, l, d]) })
            }
            KernelOp::Values { heads, kv_heads } => {
                let (ratio, d) = (heads / kv_heads.max(1), second.cols() / kv_heads.max(1));
                let (s, l) = (first.shape[2], first.shape[3]);
                let a = Side { batch: heads * s * first.pitch(), head: s * first.pitch(), ..flat(x, false) };
                let b = Side { batch: l * second.pitch(), head: d, share: ratio, ..flat(y, true) };
                Some(Product { batch: first.shape[0], heads, out: [s, 0, d], ..plain(a, b, [s, d, l]) })
            }
            KernelOp::Backward(Backward::ValuesDv { heads, kv_heads }) => {
                let (rounds, d) = (heads / kv_heads.max(1), second.cols() / heads.max(1));
                let (s, l) = (first.shape[2], first.shape[3]);
                let slice = s * first.pitch();
                let a = Side { batch: heads * slice, head: rounds * slice, round: slice, ..flat(x, true) };
                let b = Side { batch: s * second.pitch(), head: rounds * d, round: d, ..flat(y, true) };
                let grid = Product {
                    batch: first.shape[0],
                    heads: kv_heads,
                    out: [l, 0, d],
                    ..plain(a, b, [l, d, s])
                };
                Some(Product { rounds, ..grid })
            }
            _ => None,
        }
    }

    /// Whether every row and head begins on 16 bytes.
    pub(super) fn is_aligned(&self) -> bool {
        let vector = self.dtype.vector();
        let side = |side: &Side| side.head.is_multiple_of(vector) && side.round.is_multiple_of(vector);
        side(&self.a) && side(&self.b)
    }

    /// Whether it is one product, of whole operands.
    pub(super) fn of_weights(&self) -> bool {
        self.heads == 1 && self.batch == 1 && self.rounds == 1 && self.a.head == 0 && self.out == [0; 3]
    }

    /// Neighbouring columns that the epilogue handles at once.
    fn run(&self, tiles: bool) -> u64 {
        match tiles {
            true => 8,
            false => [4, 2].into_iter().find(|run| self.out[2].is_multiple_of(*run)).unwrap_or(1),
        }
    }
}

/// The form that was chosen, or the library's call where it is that.
pub(super) fn lower(spec: &KernelSpec, product: &Product, options: &Options) -> Result<Choice, CudaError> {
    let library = library(spec, product)?;
    let (form, choice) = choose_form(spec, product, library.is_some(), options);
    let (mut kernels, scratch) = match (form, library) {
        (Form::Library, Some(library)) => {
            return Ok(Choice::Library(Box::new(LibraryProduct { choice: Some(choice), ..library })));
        }
        (Form::Tiles(tile), _) => (vec![tiles(spec, product, tile)?], Vec::new()),
        (Form::Split(parts), _) => split(spec, product, parts)?,
        (Form::Hopper(tile), _) => (vec![hopper(spec, product, tile, options.processors)?], Vec::new()),
        (Form::Single | Form::Library, _) => (vec![single(spec, product)?], Vec::new()),
    };
    kernels[0].choice = Some(choice);
    Ok(Choice::Generated(natural(spec, kernels, scratch)))
}

/// The names of all forms that can compute a product.
pub(super) fn form_names(
    spec: &KernelSpec,
    product: &Product,
    options: &Options,
) -> Result<Vec<String>, CudaError> {
    let plain = library(spec, product)?.is_some();
    Ok(forms(product, plain, options).into_iter().map(|(name, _)| name).collect())
}

/// The paragraph, and what every form is told about the product.
fn opening(spec: &KernelSpec, product: &Product, machine: Machine<'_>, run: u64) -> String {
    let [m, n, k] = product.mnk;
    let paragraph = format!(
        "{}: [{m}, {k}] by [{n}, {k}] for {} sequences of {} heads, {} of them added up; {}. {}",
        spec.name,
        product.batch,
        product.heads,
        product.rounds,
        spec.op_words().join(", "),
        spec.reason
    );
    opening_for(machine, &paragraph) + &constants(&[("M", m), ("N", n), ("K", k), ("P", run)])
}

/// Where both sides lie.
fn sides(product: &Product) -> String {
    let (a, b) = (&product.a, &product.b);
    let mut text = constants(&[
        ("LDA", a.pitch),
        ("LDB", b.pitch),
        ("A_SHARE", a.share),
        ("B_SHARE", b.share),
        ("HEADS", product.heads),
        ("ROUNDS", product.rounds),
        ("ROW_BATCH", product.out[0]),
        ("ROW_HEAD", product.out[1]),
        ("COL_HEAD", product.out[2]),
    ]);
    for (name, side) in [("A", a), ("B", b)] {
        for (what, stride) in [("BATCH", side.batch), ("HEAD", side.head), ("ROUND", side.round)] {
            let _ = writeln!(text, "constexpr long long {name}_{what} = {stride};");
        }
    }
    let _ = writeln!(text, "constexpr bool A_DEEP = {}, B_DEEP = {};", a.deep, b.deep);
    let _ = writeln!(text, "typedef {} Element;", c_type(product.dtype));
    text
}

/// What the epilogue reads and writes, and the epilogue.
fn behind(
    spec: &KernelSpec,
    product: &Product,
    signature: &Signature,
    run: u64,
) -> Result<String, CudaError> {
    Ok(frequency_tables(spec) + &signature.structure() + &epilogue(spec, product, run)?)
}

fn tile_constants(tile: Tile, parts: u64) -> String {
    constants(&[
        ("BM", tile.bm),
        ("BN", tile.bn),
        ("BK", 32),
        ("STAGES", 3),
        ("WARPS_M", 2),
        ("WARPS_N", tile.warps_n),
        ("SPLITS", parts),
    ])
}

/// Dynamic shared memory of a block: three slices, or each warp's corner.
fn tile_bytes(product: &Product, tile: Tile) -> u64 {
    let pitch = |deep: bool, size: u64| if deep { 32 * (size + 8) } else { size * 40 };
    let stages = 3 * 2 * (pitch(product.a.deep, tile.bm) + pitch(product.b.deep, tile.bn));
    let slab = 2 * tile.warps_n * 16 * (tile.bn / tile.warps_n + 8) * 4;
    stages.max(slab)
}

/// An entry point that calls one function.
fn entry(name: &str, bounds: &str, signature: &Signature, call: &str) -> String {
    format!(
        "\nextern \"C\" __global__ void __launch_bounds__({bounds}) {name}({}) {{\n{}    {call};\n}}\n",
        signature.parameters(),
        signature.bundle()
    )
}

fn tiles(spec: &KernelSpec, product: &Product, tile: Tile) -> Result<GeneratedKernel, CudaError> {
    let run = product.run(true);
    let signature = arguments(spec, product)?;
    let mut source = opening(spec, product, Machine::Ampere, run) + &sides(product);
    source.push_str(&behind(spec, product, &signature, run)?);
    source.push_str(&(tile_constants(tile, 1) + PRODUCT));
    let bounds = format!("THREADS, {}", tile.resident);
    source.push_str(&entry(&spec.name, &bounds, &signature, "lp_product(a, b, args)"));
    let [m, n, _] = product.mnk;
    let made = Made {
        name: spec.name.clone(),
        source,
        grid: [m.div_ceil(tile.bm) * n.div_ceil(tile.bn), product.batch * product.heads, 1],
        threads: 64 * tile.warps_n,
        shared: [tile_bytes(product, tile), 0],
        args: signature.args,
    };
    made.finish(spec, true, "Generated on tensor cores.")
}

fn single(spec: &KernelSpec, product: &Product) -> Result<GeneratedKernel, CudaError> {
    let run = product.run(false);
    let signature = arguments(spec, product)?;
    let mut source = opening(spec, product, Machine::Ampere, run) + &sides(product);
    source.push_str(&(behind(spec, product, &signature, run)? + SINGLE));
    source.push_str(&entry(&spec.name, "THREADS, 2", &signature, "lp_product(a, b, args)"));
    let [m, n, _] = product.mnk;
    let made = Made {
        name: spec.name.clone(),
        source,
        grid: [m.div_ceil(64) * n.div_ceil(64), product.batch * product.heads, 1],
        threads: 256,
        shared: [0, 4 * (2 * 16 * 68 + 64 * 68)],
        args: signature.args,
    };
    made.finish(spec, true, "Generated without tensor cores.")
}

/// A block for each part of the depth, which leaves its sums, and a kernel that adds them in one order.
fn split(spec: &KernelSpec, product: &Product, parts: u64) -> Result<Split, CudaError> {
    let run = product.run(true);
    let [m, n, _] = product.mnk;
    let pitch = n.next_multiple_of(run);
    let sums = TensorType::new(Dtype::F32, &[parts, m, pitch]);
    let kept = constants(&[("PART_PITCH", pitch), ("SPLITS", parts)]);
    let both = arguments(spec, product)?;
    let mut first = Signature::default();
    let mut rest = Signature::default();
    first.append(both.range(..2));
    first.write(Operand::Scratch(0), Access::Write, Dtype::F32, "parts");
    rest.read(Operand::Scratch(0), Dtype::F32, "parts");
    rest.append(both.range(2..));
    let mut source = opening(spec, product, Machine::Ampere, run) + &sides(product) + &first.structure();
    let _ = writeln!(source, "constexpr int PART_PITCH = {pitch};\n{PART}");
    source.push_str(&(tile_constants(LARGE, parts) + PRODUCT));
    let bounds = format!("THREADS, {}", LARGE.resident);
    source.push_str(&entry(&spec.name, &bounds, &first, "lp_product(a, b, args)"));
    let made = Made {
        name: spec.name.clone(),
        source,
        grid: [m.div_ceil(LARGE.bm) * n.div_ceil(LARGE.bn), 1, parts],
        threads: 64 * LARGE.warps_n,
        shared: [tile_bytes(product, LARGE), 0],
        args: first.args,
    };
    let summed =
        made.finish(spec, true, &format!("Generated on tensor cores, the depth in {parts} parts."))?;

    let name = format!("{}_join", spec.name);
    let mut source = opening(spec, product, Machine::Ampere, run) + &sides(product) + &kept;
    source.push_str(&(behind(spec, product, &rest, run)? + JOIN));
    source.push_str(&entry(&name, "THREADS", &rest, "lp_join_parts(parts, args)"));
    let blocks = m.saturating_mul(n.div_ceil(run)).div_ceil(256);
    let made = Made { name, source, grid: [blocks, 1, 1], threads: 256, shared: [0, 0], args: rest.args };
    let joined = made.finish(spec, false, "Adds the parts of the depth.")?;
    let joined = GeneratedKernel { flops: parts * m * n, bytes: parts * m * pitch * 4, ..joined };
    Ok((vec![summed, joined], vec![sums]))
}

fn hopper(
    spec: &KernelSpec,
    product: &Product,
    tile: HopperTile,
    processors: u64,
) -> Result<GeneratedKernel, CudaError> {
    let run = product.run(true);
    let [m, n, k] = product.mnk;
    let (a, b) = (&product.a, &product.b);
    let mut signature = arguments(spec, product)?;
    signature.fetch(0, tile.boxes(a.deep, [m, k], a.pitch, tile.bm));
    signature.fetch(1, tile.boxes(b.deep, [n, k], b.pitch, tile.bn));
    let products = [WarpgroupProduct { columns: tile.bn, held: false }];
    let mut source = opening(spec, product, Machine::Hopper(&products), run);
    let _ = writeln!(source, "typedef {} Element;", c_type(product.dtype));
    source.push_str(&behind(spec, product, &signature, run)?);
    source.push_str(&(tile.constants([a.deep, b.deep]) + HOPPER_TEXT));
    source.push_str(&entry(&spec.name, "THREADS, 1", &signature, "lp_gemm_90(a, b, args)"));
    let made = Made {
        name: spec.name.clone(),
        source,
        grid: [tile.blocks([m, n]).min(processors.max(1)), 1, 1],
        threads: tile.threads(),
        shared: [tile.shared_bytes(), 0],
        args: signature.args,
    };
    made.finish(spec, true, "Generated for Hopper's copy engine and warpgroup products.")
}

/// The two sides first, then what the epilogue reads and writes.
fn arguments(spec: &KernelSpec, product: &Product) -> Result<Signature, CudaError> {
    let sides = [(product.a.value, "a"), (product.b.value, "b")];
    let only_here = |value: ValueId| spec.users(value) == [product.result];
    let bound: BTreeSet<ValueId> =
        sides.iter().map(|side| side.0).filter(|&value| only_here(value)).collect();
    let mut all = Signature::default();
    for (value, name) in sides {
        let operand = match &spec.inputs[value].source {
            Source::Activation => Operand::Input(value),
            Source::Param { .. } => Operand::Param(weight(spec, value)?, product.dtype),
        };
        all.read(operand, product.dtype, name);
    }
    let rest = signature(spec, &bound, &Default::default())?;
    all.args.extend(rest.args);
    all.names.extend(rest.names);
    all.types.extend(rest.types);
    Ok(all)
}

/// A weight as the model has it.
fn weight(spec: &KernelSpec, input: ValueId) -> Result<Packing, CudaError> {
    let (ty, source) = (&spec.inputs[input].ty, &spec.inputs[input].source);
    let Source::Param { name, scale } = source else {
        return Err(spec.malformed("a weight that is no parameter"));
    };
    let source = PackSource { name: name.clone(), rows: ty.rows(), scale: *scale, order: RowOrder::Natural };
    let groups = vec![PackGroup { first_row: 0, sources: vec![source] }];
    Ok(Packing { groups, rows: ty.rows(), cols: ty.cols(), pitch: ty.pitch(), form: PackForm::Values })
}

fn epilogue(spec: &KernelSpec, product: &Product, run: u64) -> Result<String, CudaError> {
    let ty = spec.ty(product.result);
    let mut evaluator = Evaluator {
        spec,
        pointers: "args.",
        rows: ty.rows(),
        sequence: crate::cuda::dag::sequence(spec),
        width: run,
        paired: false,
        done: BTreeSet::new(),
        declare: true,
    };
    let place = Place::here("");
    let name = evaluator.name(product.result, &place);
    let mut code = match ty.cols().is_multiple_of(run) {
        true => format!("constexpr int valid = {run};\n"),
        false => format!("const int valid = {0} - col < {run} ? {0} - col : {run};\n", ty.cols()),
    };
    let _ =
        writeln!(code, "float {name}[{run}];\nLP_UNROLL for (int e = 0; e < {run}; ++e) {name}[e] = sum[e];");
    evaluator.provide(product.result, &place);
    for &output in &spec.outputs {
        code.push_str(&evaluator.value(output, &place)?);
    }
    for output in 0..spec.outputs.len() {
        code.push_str(&evaluator.store(output, &place)?);
    }
    Ok(format!(
        "\n// What follows the product, on P neighbouring columns of one row.\n\
         LP_DEVICE void lp_epilogue(const Args& args, int row, int col, const float (&sum)[P]) {{\n{}{}}}\n\n",
        cached_line(spec, "args."),
        indent(&code, 1)
    ))
}

/// The library's product, if it is plain, with a residual, or straight into a gradient.
fn library(spec: &KernelSpec, product: &Product) -> Result<Option<LibraryProduct>, CudaError> {
    if !product.of_weights() || product.mnk[0] <= SMALL || spec.outputs.len() != 1 {
        return Ok(None);
    }
    let mut tail = (product.result, 1.0, None, false);
    while tail.0 != spec.outputs[0] {
        let users = spec.users(tail.0);
        let (Some(&user), 1) = (users.first(), users.len()) else { return Ok(None) };
        let Some(op) = spec.op(user) else { return Ok(None) };
        match &op.op {
            KernelOp::Scale { by } if tail.2.is_none() => tail.1 *= by,
            KernelOp::Backward(Backward::Gradient { .. }) => tail.3 = true,
            KernelOp::Add if tail.2.is_none() => {
                let other = op.operands.iter().copied().find(|&operand| operand != tail.0);
                let given =
                    |value: &ValueId| spec.inputs.get(*value).is_some_and(|i| i.source == Source::Activation);
                let Some(other) = other.filter(given) else { return Ok(None) };
                tail.2 = Some(other);
            }
            _ => return Ok(None),
        }
        tail.0 = user;
    }
    let w = match spec.inputs[product.b.value].source {
        Source::Activation => RightSide::Input(product.b.value),
        Source::Param { .. } => RightSide::Param(weight(spec, product.b.value)?),
    };
    let work = spec.work();
    let reason = match (tail.3, tail.2) {
        (true, _) => "product into a gradient: the library adds to it in f32",
        (false, Some(_)) => "product with a residual: the library adds it as C",
        (false, None) => "plain product: the library's own kernels fit",
    };
    Ok(Some(LibraryProduct {
        mnk: product.mnk,
        dtype: product.dtype,
        a: product.a.value,
        lda: product.a.pitch,
        ldw: product.b.pitch,
        deep: [product.a.deep, product.b.deep],
        w,
        bias: None,
        residual: tail.2,
        adds: tail.3,
        alpha: tail.1,
        flops: work.flops,
        bytes: work.bytes,
        choice: None,
        reason: reason.into(),
    }))
}
