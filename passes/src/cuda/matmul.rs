//! Products: which linears share a left side, how their weights are packed, and who computes them.
//!
//! Linears of one region that read the same `x` become one product. Their weight rows are packed below each other
//! (*segments*: q, k, v); two linears whose results meet in one operation (gate and up) are one segment with alternating
//! rows, so that a pair of accumulators is at hand where it is needed. A segment with a half-split rotation is packed with
//! the two columns of each pair next to each other within every head; q and k leave in that order, attention does not mind
//! (their products are the same), and the cache keeps rotated keys in it.
use super::dag::sequence;
use super::matmul_forms::{Form, choose_form, forms};
use super::matmul_source::emit;
use super::spec::{KernelOp, KernelSpec, Pairing, Source, ValueId};
use super::{Choice, CudaError, Generated, LibraryProduct, Options, RightSide};
use lapidary_runtime_gpu::program::packing::PackGroup;
use lapidary_runtime_gpu::program::{Dtype, PackForm, PackSource, Packing, RowOrder};
use std::collections::{BTreeMap, BTreeSet};

/// Segments start at multiples of this many packed rows: no run of accumulators crosses a border.
const SEGMENT_ALIGNMENT: u64 = 16;

/// One or two linears whose results stay together, and what follows them.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// The linears, in the order of their alternating rows.
    pub linears: Vec<ValueId>,
    /// Columns of each linear's result.
    pub cols: u64,
    /// First packed row.
    pub first: u64,
    /// Indices of the region's outputs that come from here.
    pub outputs: Vec<usize>,
    /// Order of the packed rows within heads.
    pub order: RowOrder,
}

impl Segment {
    /// Packed row after the last one, padding included.
    pub fn end(&self) -> u64 {
        self.first + (self.cols * self.linears.len() as u64).next_multiple_of(SEGMENT_ALIGNMENT)
    }
}

/// All linears of a region as one product `[m, k] x [n, k]^T`.
#[derive(Debug, Clone)]
pub(crate) struct Product {
    /// Input index of the left side.
    pub x: ValueId,
    /// Rows.
    pub m: u64,
    /// Packed columns, padding between segments included.
    pub n: u64,
    /// Depth.
    pub k: u64,
    /// Elements between rows of the left side.
    pub lda: u64,
    /// Element at which its first row starts.
    pub first_element: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Rows of one sequence.
    pub sequence: u64,
    /// From the first packed row to the last.
    pub segments: Vec<Segment>,
    /// Column order of vectors that belong to permuted segments.
    pub vector_orders: BTreeMap<ValueId, RowOrder>,
    /// Whether the weights are whole numbers with a scale for each packed row.
    pub int8: bool,
}

/// Lowers a region of products to a kernel or a library call.
pub(crate) fn lower(spec: &KernelSpec, options: &Options) -> Result<Choice, CudaError> {
    let product = Product::of(spec, options)?;
    let library = library(spec, &product)?;
    let (form, choice) = choose_form(&product, product.key(spec), library.is_some(), options);
    if let (Form::Library, Some(library)) = (form, library) {
        return Ok(Choice::Library(Box::new(LibraryProduct { choice: Some(choice), ..library })));
    }
    let kernel = emit(spec, &product, form, choice, options.processors)?;
    let mut output_orders = vec![RowOrder::Natural; spec.outputs.len()];
    for segment in &product.segments {
        segment.outputs.iter().for_each(|&output| output_orders[output] = segment.order);
    }
    Ok(Choice::Generated(Generated { kernels: vec![kernel], scratch: Vec::new(), output_orders }))
}

/// The names of all forms that can compute a region's products; empty for a region without any.
pub(crate) fn form_names(spec: &KernelSpec, options: &Options) -> Result<Vec<String>, CudaError> {
    let product = Product::of(spec, options)?;
    let plain = library(spec, &product)?.is_some();
    Ok(forms(&product, plain, options).iter().map(Form::name).collect())
}

impl Product {
    fn of(spec: &KernelSpec, options: &Options) -> Result<Product, CudaError> {
        let is_linear = |&id: &ValueId| spec.op(id).is_some_and(|op| op.op == KernelOp::Linear);
        let linears: Vec<ValueId> = spec.results().filter(is_linear).collect();
        let Some(&first) = linears.first() else {
            return Err(spec.malformed("a matmul region without a linear"));
        };
        let left = operand(spec, first, 0);
        if linears.iter().any(|&linear| operand(spec, linear, 0) != left) {
            return Err(
                spec.unsupported("linears with different left sides in one region", "split the region")
            );
        }
        let (x, lda, first_element) = left_side(spec, left)?;
        let (segments, vector_orders) = segments(spec, &linears)?;
        let (m, k) = (spec.ty(left).rows(), spec.ty(left).cols());
        let n = segments.last().map_or(0, Segment::end);
        let dtype = spec.ty(x).dtype;
        for &linear in &linears {
            let weight = &spec.inputs.get(operand(spec, linear, 1)).map(|input| input.ty.clone());
            let good =
                weight.as_ref().is_some_and(|w| w.shape == [spec.ty(linear).cols(), k] && w.dtype == dtype);
            if !good {
                return Err(spec.malformed(format!(
                    "linear {linear}: weight {weight:?} for a left side of {k} columns"
                )));
            }
        }
        if m >= 1 << 31 || n >= 1 << 31 {
            return Err(spec.unsupported(format!("a product of {m} x {n}"), "reduce the batch or the width"));
        }
        Ok(Product {
            x,
            m,
            n,
            k,
            lda,
            first_element,
            dtype,
            sequence: sequence(spec),
            segments,
            vector_orders,
            int8: int8(spec, &linears, dtype, options)?,
        })
    }

    /// Element type of the stored weights.
    pub fn weight_dtype(&self) -> Dtype {
        if self.int8 { Dtype::I8 } else { self.dtype }
    }

    /// Elements between packed rows of weights.
    pub fn weight_pitch(&self) -> u64 {
        self.k.next_multiple_of(self.weight_dtype().vector())
    }

    /// By how much whole numbers with their scales are less than the weights of the model.
    pub fn bytes_saved(&self) -> u64 {
        let rows: u64 = self.segments.iter().map(|s| s.cols * s.linears.len() as u64).sum();
        let less = rows * self.k * (self.dtype.bytes() - 1);
        if self.int8 { less.saturating_sub(4 * rows) } else { 0 }
    }

    /// The name under which measured choices are kept: what decides how fast the forms are.
    pub fn key(&self, spec: &KernelSpec) -> String {
        let weights = if self.int8 { "int8" } else { self.dtype.word() };
        let (m, n, k) = (self.m, self.n, self.k);
        format!("{m}x{n}x{k} {} by {weights}: {}", self.dtype.word(), spec.op_words().join(", "))
    }

    /// How the weights of all linears become one matrix.
    pub fn packing(&self, spec: &KernelSpec) -> Result<Packing, CudaError> {
        let mut groups = Vec::new();
        for segment in &self.segments {
            let sources: Result<Vec<PackSource>, CudaError> =
                segment.linears.iter().map(|&linear| weight_source(spec, linear, segment)).collect();
            groups.push(PackGroup { first_row: segment.first, sources: sources? });
        }
        let (rows, cols, pitch) = (self.n, self.k, self.weight_pitch());
        Ok(Packing { groups, rows, cols, pitch, form: PackForm::Values })
    }
}

/// Whether a region's weights are stored as whole numbers: those of layers, where the caller asks for it.
fn int8(spec: &KernelSpec, linears: &[ValueId], dtype: Dtype, options: &Options) -> Result<bool, CudaError> {
    let in_layers = linears.iter().all(|&linear| {
        matches!(&spec.inputs[operand(spec, linear, 1)].source, Source::Param { name, .. } if name.contains('*'))
    });
    match options.int8 && in_layers {
        true if dtype != Dtype::Bf16 => Err(spec
            .unsupported("int8 weights beside activations that are not bf16", "use bf16, or leave int8 out")),
        int8 => Ok(int8),
    }
}

fn operand(spec: &KernelSpec, value: ValueId, i: usize) -> ValueId {
    spec.op(value).map_or(0, |op| op.operands[i])
}

/// The input behind the left side, its row distance and where its first row starts: the last token of each sequence is a
/// row of the same input at a greater distance.
fn left_side(spec: &KernelSpec, left: ValueId) -> Result<(ValueId, u64, u64), CudaError> {
    let (x, sequence) = match spec.op(left) {
        None => (left, 1),
        Some(op) if op.op == KernelOp::LastToken => {
            (op.operands[0], spec.ty(op.operands[0]).shape.get(1).copied().unwrap_or(1))
        }
        Some(op) => {
            let what = format!("{} before a linear in one kernel", op.op.word());
            return Err(spec.unsupported(what, "give it a region of its own"));
        }
    };
    if x >= spec.inputs.len() || spec.inputs[x].source != Source::Activation {
        return Err(spec.unsupported("a left side that is not an activation", "split the region"));
    }
    let pitch = spec.ty(x).pitch();
    Ok((x, pitch * sequence, pitch * (sequence - 1)))
}

fn weight_source(spec: &KernelSpec, linear: ValueId, segment: &Segment) -> Result<PackSource, CudaError> {
    let weight = operand(spec, linear, 1);
    match spec.inputs.get(weight).map(|input| &input.source) {
        Some(Source::Param { name, scale }) => {
            Ok(PackSource { name: name.clone(), rows: segment.cols, scale: *scale, order: segment.order })
        }
        _ => Err(spec.unsupported("a linear whose weight is computed", "weights are parameters")),
    }
}

/// Every value that `value` depends on, itself included.
fn slice(spec: &KernelSpec, value: ValueId) -> BTreeSet<ValueId> {
    let mut seen = BTreeSet::from([value]);
    let mut todo = vec![value];
    while let Some(op) = todo.pop().and_then(|id| spec.op(id)) {
        for &operand in &op.operands {
            if seen.insert(operand) && spec.op(operand).is_some() {
                todo.push(operand);
            }
        }
    }
    seen
}

type Orders = BTreeMap<ValueId, RowOrder>;

fn segments(spec: &KernelSpec, linears: &[ValueId]) -> Result<(Vec<Segment>, Orders), CudaError> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut orders = Orders::new();
    for (index, &output) in spec.outputs.iter().enumerate() {
        let slice = slice(spec, output);
        let used: Vec<ValueId> = linears.iter().copied().filter(|linear| slice.contains(linear)).collect();
        if let Some(known) = segments.iter_mut().find(|segment| segment.linears == used) {
            known.outputs.push(index);
            if order_of(spec, &slice)? != known.order {
                return Err(
                    spec.unsupported("one linear leaves both rotated and unrotated", "split the region")
                );
            }
            continue;
        }
        let shared =
            segments.iter().any(|segment| segment.linears.iter().any(|linear| used.contains(linear)));
        let cols = used.first().map_or(0, |&linear| spec.ty(linear).cols());
        let even = used.iter().all(|&linear| spec.ty(linear).cols() == cols);
        if used.is_empty() || used.len() > 2 || shared || !even {
            let what = format!("an output that depends on {} linears in this way", used.len());
            return Err(spec.unsupported(what, "at most two linears of equal width may meet"));
        }
        let order = order_of(spec, &slice)?;
        if !order.is_natural() && (used.len() > 1 || !note_vectors(spec, &slice, order, &mut orders)) {
            return Err(spec.unsupported("a rotation beside a residual or a gate", "split the region"));
        }
        let first = segments.last().map_or(0, Segment::end);
        segments.push(Segment { linears: used, cols, first, outputs: vec![index], order });
    }
    if segments.iter().map(|segment| segment.linears.len()).sum::<usize>() != linears.len() {
        return Err(spec.malformed("a linear whose result is not used"));
    }
    Ok((segments, orders))
}

/// The packed order that a slice's rotations ask for.
fn order_of(spec: &KernelSpec, slice: &BTreeSet<ValueId>) -> Result<RowOrder, CudaError> {
    let mut orders = slice.iter().filter_map(|&id| match spec.op(id).map(|op| &op.op) {
        Some(KernelOp::Rope(rope)) if rope.pairing == Pairing::Half => {
            Some(RowOrder::RotaryPairs { head_dim: rope.head_dim, rot_dims: rope.rot_dims })
        }
        Some(KernelOp::Rope(_)) => Some(RowOrder::Natural),
        _ => None,
    });
    let order = orders.next().unwrap_or_default();
    if orders.any(|other| other != order) {
        return Err(spec.unsupported("different rotations after one linear", "split the region"));
    }
    Ok(order)
}

/// Remembers that the slice's vectors are in the permuted order; false if the slice also reads activations by column.
fn note_vectors(spec: &KernelSpec, slice: &BTreeSet<ValueId>, order: RowOrder, orders: &mut Orders) -> bool {
    for &id in slice {
        match spec.op(id).map(|op| (&op.op, &op.operands)) {
            Some((KernelOp::Bias, operands)) => {
                orders.insert(operands[1], order);
            }
            Some((KernelOp::Add | KernelOp::Mul | KernelOp::Position { .. }, _)) => return false,
            _ => {}
        }
    }
    true
}

/// The library's product for this region, if it is plain or has only a bias and a residual behind it.
fn library(spec: &KernelSpec, product: &Product) -> Result<Option<LibraryProduct>, CudaError> {
    let plain =
        product.segments.len() == 1 && product.segments[0].linears.len() == 1 && product.first_element == 0;
    if !plain || product.int8 || spec.outputs.len() != 1 {
        return Ok(None);
    }
    let Some(tail) = Tail::follow(spec, product.segments[0].linears[0]) else { return Ok(None) };
    let bias = tail.bias.map(|bias| spec.plain_packing(bias, RowOrder::Natural)).transpose()?;
    let segment = &product.segments[0];
    let work = spec.work();
    let sources = vec![weight_source(spec, segment.linears[0], segment)?];
    let pitch = product.k.next_multiple_of(product.dtype.vector());
    let groups = vec![PackGroup { first_row: 0, sources }];
    let reason = match (&bias, tail.residual) {
        (None, None) => "plain product: the library's own kernels fit",
        (Some(_), None) => "product with a bias: the library's bias epilogue fits",
        (None, Some(_)) => "product with a residual: the library adds it as C",
        (Some(_), Some(_)) => "product with bias and residual: the library's bias epilogue and C fit",
    };
    Ok(Some(LibraryProduct {
        mnk: [product.m, segment.cols, product.k],
        dtype: product.dtype,
        a: product.x,
        lda: spec.inputs[product.x].ty.pitch(),
        ldw: pitch,
        deep: [false, false],
        w: RightSide::Param(Packing {
            groups,
            rows: segment.cols,
            cols: product.k,
            pitch,
            form: PackForm::Values,
        }),
        bias,
        residual: tail.residual,
        adds: false,
        alpha: tail.alpha,
        flops: work.flops,
        bytes: work.bytes,
        choice: None,
        reason: reason.into(),
    }))
}

/// What follows a linear, as far as `alpha`, a bias and a residual can say it.
struct Tail {
    alpha: f64,
    bias: Option<ValueId>,
    residual: Option<ValueId>,
}

impl Tail {
    fn follow(spec: &KernelSpec, linear: ValueId) -> Option<Tail> {
        let mut tail = Tail { alpha: 1.0, bias: None, residual: None };
        let mut value = linear;
        while value != spec.outputs[0] {
            let users = spec.users(value);
            let [user] = users.as_slice() else { return None };
            let op = spec.op(*user)?;
            let fresh = tail.bias.is_none() && tail.residual.is_none();
            match &op.op {
                KernelOp::Scale { by } if fresh => tail.alpha *= by,
                KernelOp::Bias if tail.bias.is_none() && op.operands[0] == value => {
                    tail.bias = Some(op.operands[1])
                }
                KernelOp::Add if tail.residual.is_none() => {
                    let other = *op.operands.iter().find(|&&operand| operand != value)?;
                    if spec.inputs.get(other)?.source != Source::Activation {
                        return None;
                    }
                    tail.residual = Some(other);
                }
                _ => return None,
            }
            value = *user;
        }
        spec.users(value).is_empty().then_some(tail)
    }
}
