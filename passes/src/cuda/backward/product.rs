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
use super::{Made, natural};
use crate::cuda::dag::{Evaluator, Place, cached_line, frequency_tables, signature};
use crate::cuda::matmul_forms::SMALL;
use crate::cuda::row::indent;
use crate::cuda::source::{Signature, c_type, constants, opening};
use crate::cuda::spec::{Anchor, Backward, KernelOp, KernelSpec, Source, ValueId};
use crate::cuda::{Choice, CudaError, LibraryProduct, Operand, Options, RightSide};
use lapidary_runtime_gpu::program::packing::PackGroup;
use lapidary_runtime_gpu::program::{Dtype, PackForm, PackSource, Packing, RowOrder};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const TILES: &str = concat!(include_str!("../device/leave.cuh"), include_str!("../device/product.cuh"));
const SINGLE: &str = include_str!("../device/product_single.cuh");

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
    mnk: [u64; 3],
    dtype: Dtype,
    batch: u64,
    heads: u64,
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
    fn is_aligned(&self) -> bool {
        let vector = self.dtype.vector();
        let side = |side: &Side| side.head.is_multiple_of(vector) && side.round.is_multiple_of(vector);
        side(&self.a) && side(&self.b)
    }

    /// Neighbouring columns that the epilogue handles at once.
    fn run(&self, tiles: bool) -> u64 {
        match tiles {
            true => 8,
            false => [4, 2].into_iter().find(|run| self.out[2].is_multiple_of(*run)).unwrap_or(1),
        }
    }
}

/// A library call where nothing stands behind the product but a residual or a gradient, else a kernel.
pub(super) fn lower(spec: &KernelSpec, product: &Product, options: &Options) -> Result<Choice, CudaError> {
    if let Some(library) = library(spec, product, options)? {
        return Ok(Choice::Library(Box::new(library)));
    }
    let made = kernel(spec, product, options)?;
    let why = match product.dtype == Dtype::Bf16 && product.is_aligned() {
        true => "Generated on tensor cores.",
        false => "Generated without tensor cores.",
    };
    Ok(Choice::Generated(natural(spec, vec![made.finish(spec, true, why)?], Vec::new())))
}

/// The size of a block's part and the blocks that fit a processor.
fn tile(product: &Product, options: &Options) -> (u64, u64) {
    let [m, n, _] = product.mnk;
    let large = m.div_ceil(128) * n.div_ceil(128) * product.batch * product.heads;
    if large >= options.processors { (128, 2) } else { (64, 4) }
}

fn kernel(spec: &KernelSpec, product: &Product, options: &Options) -> Result<Made, CudaError> {
    let tiles = product.dtype == Dtype::Bf16 && product.is_aligned();
    let (size, resident) = if tiles { tile(product, options) } else { (64, 2) };
    let [m, n, k] = product.mnk;
    let run = product.run(tiles);
    let signature = arguments(spec, product)?;
    let mut source = opening(&format!(
        "{}: [{m}, {k}] by [{n}, {k}] for {} sequences of {} heads, {} of them added up; {}. {}",
        spec.name,
        product.batch,
        product.heads,
        product.rounds,
        spec.op_words().join(", "),
        spec.reason
    ));
    source.push_str(&constants(&[
        ("M", m),
        ("N", n),
        ("K", k),
        ("LDA", product.a.pitch),
        ("LDB", product.b.pitch),
        ("A_SHARE", product.a.share),
        ("B_SHARE", product.b.share),
        ("HEADS", product.heads),
        ("ROUNDS", product.rounds),
        ("ROW_BATCH", product.out[0]),
        ("ROW_HEAD", product.out[1]),
        ("COL_HEAD", product.out[2]),
        ("P", run),
    ]));
    let strides = [
        ("A_BATCH", product.a.batch),
        ("A_HEAD", product.a.head),
        ("A_ROUND", product.a.round),
        ("B_BATCH", product.b.batch),
        ("B_HEAD", product.b.head),
        ("B_ROUND", product.b.round),
    ];
    for (name, stride) in strides {
        let _ = writeln!(source, "constexpr long long {name} = {stride};");
    }
    let _ = writeln!(source, "constexpr bool A_DEEP = {}, B_DEEP = {};", product.a.deep, product.b.deep);
    let _ = writeln!(source, "typedef {} Element;", c_type(product.dtype));
    source.push_str(&frequency_tables(spec));
    source.push_str(&signature.structure());
    source.push_str(&epilogue(spec, product, run)?);
    if tiles {
        source.push_str(&constants(&[
            ("BM", size),
            ("BN", size),
            ("BK", 32),
            ("STAGES", 3),
            ("WARPS_M", 2),
            ("WARPS_N", 2),
        ]));
    }
    source.push_str(if tiles { TILES } else { SINGLE });
    let _ = write!(
        source,
        "\nextern \"C\" __global__ void __launch_bounds__(THREADS, {resident}) {}({}) {{\n{}    lp_product(a, b, args);\n}}\n",
        spec.name,
        signature.parameters(),
        signature.bundle()
    );
    let pitch = |deep: bool| if deep { 32 * (size + 8) } else { size * 40 };
    let stages = 3 * 2 * (pitch(product.a.deep) + pitch(product.b.deep));
    let slab = 4 * 16 * (size / 2 + 8) * 4;
    Ok(Made {
        name: spec.name.clone(),
        source,
        grid: [m.div_ceil(size) * n.div_ceil(size), product.batch * product.heads, 1],
        threads: if tiles { 128 } else { 256 },
        shared: if tiles { [stages.max(slab), 0] } else { [0, 4 * (2 * 16 * 68 + 64 * 68)] },
        args: signature.args,
    })
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
fn library(
    spec: &KernelSpec,
    product: &Product,
    options: &Options,
) -> Result<Option<LibraryProduct>, CudaError> {
    let of_weights = product.heads == 1 && product.batch == 1 && product.a.head == 0 && product.out == [0; 3];
    if !options.library || !of_weights || product.mnk[0] <= SMALL || spec.outputs.len() != 1 {
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
