//! Kernels that only a backward pass has: products that go the other way, sums over all rows, tables, losses, attention.
//!
//! Element-wise and row operations of a backward pass are evaluated by [`super::dag`] like those of a forward pass; what is
//! here sums over an axis that its result does not have. Every sum has one order: no kernel adds through memory at once with
//! another block, so each run gives the same bits.
use super::spec::{Anchor, Backward, KernelOp, KernelSpec, OpSpec, ValueId};
use super::{Choice, CudaError, Generated, GeneratedKernel, KernelArg, Options};
use lapidary_runtime_gpu::program::RowOrder;

mod attention;
mod attention_joint;
mod columns;
mod loss;
mod product;
mod product_forms;
mod tables;

pub(crate) use attention::Core;

/// Lowers a region that no kernel of a forward pass holds; none for the others.
///
/// # Errors
/// [`CudaError::Unsupported`] for a region of such an operation that has no form.
pub(crate) fn lower(spec: &KernelSpec, options: &Options) -> Result<Option<Choice>, CudaError> {
    if spec.anchor == Anchor::Attention
        && spec.ops.iter().any(|op| op.op == KernelOp::Backward(Backward::SoftmaxDx))
    {
        return attention::lower(spec).map(Choice::Generated).map(Some);
    }
    if let Some(product) = product::Product::of(spec)? {
        return product::lower(spec, &product, options).map(Some);
    }
    let Some(first) = spec.ops.first() else { return Ok(None) };
    let KernelOp::Backward(op) = &first.op else { return Ok(None) };
    let generated = match op {
        Backward::CrossEntropy | Backward::CrossEntropyDx => loss::lower(spec, options.spread)?,
        Backward::ColumnSum | Backward::NormDw { .. } => columns::lower(spec)?,
        Backward::EmbedDw { first } => tables::embed(spec, *first)?,
        Backward::PositionDw { .. } => tables::positions(spec)?,
        _ => return Ok(None),
    };
    Ok(Some(Choice::Generated(generated)))
}

/// The names of all forms of a region that [`lower`] takes; none for the others.
///
/// # Errors
/// [`CudaError`] for a region that no form holds.
pub(crate) fn form_names(spec: &KernelSpec, options: &Options) -> Result<Option<Vec<String>>, CudaError> {
    if spec.ops.iter().any(|op| op.op == KernelOp::Backward(Backward::SoftmaxDx)) {
        return Ok(Some(Vec::new()));
    }
    let product = product::Product::of(spec)?;
    product.map(|product| product::form_names(spec, &product, options)).transpose()
}

/// Whether the first operation's sum goes into a gradient behind it, or out as it is.
///
/// # Errors
/// [`CudaError::Unsupported`] where anything else follows.
fn adds(spec: &KernelSpec) -> Result<bool, CudaError> {
    match takers(spec)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(spec.unsupported("several gradients behind one product", "give it a region of its own")),
    }
}

/// How many gradients take the first operation's sum; 0 where it goes out as it is. Two layers that add to the same
/// stream, as in a parallel block, have one derivative by both of their biases.
///
/// # Errors
/// [`CudaError::Unsupported`] where anything else follows.
fn takers(spec: &KernelSpec) -> Result<usize, CudaError> {
    let first = spec.inputs.len();
    let gradients = spec.ops.get(1..).unwrap_or_default();
    let takes = |op: &OpSpec| {
        matches!(op.op, KernelOp::Backward(Backward::Gradient { .. })) && op.operands.last() == Some(&first)
    };
    let last = first + gradients.len();
    let wanted = if gradients.is_empty() { first..=first } else { first + 1..=last };
    if gradients.iter().all(takes) && spec.outputs.iter().copied().eq(wanted) {
        return Ok(gradients.len());
    }
    let words = spec.op_words().join(", ");
    Err(spec.unsupported(
        format!("{words} as one sum over rows"),
        "give what is not a gradient a region of its own",
    ))
}

/// The input behind an operand of the first operation.
fn input(spec: &KernelSpec, i: usize) -> Result<ValueId, CudaError> {
    let operand = spec.ops.first().and_then(|op| op.operands.get(i)).copied();
    operand.filter(|value| *value < spec.inputs.len()).ok_or_else(|| spec.malformed("an operand is no input"))
}

/// What a kernel of this folder is, apart from its arguments and its size.
struct Made {
    name: String,
    source: String,
    grid: [u64; 3],
    threads: u64,
    shared: [u64; 2],
    args: Vec<KernelArg>,
}

impl Made {
    /// The kernel; the region's work is booked on its `first` one.
    fn finish(self, spec: &KernelSpec, first: bool, why: &str) -> Result<GeneratedKernel, CudaError> {
        let work = spec.work();
        let axis = |n: u64| u32::try_from(n).ok().filter(|n| *n < 1 << 31);
        let [Some(x), Some(y), Some(z)] = self.grid.map(axis) else {
            return Err(spec.unsupported(format!("{:?} blocks", self.grid), "reduce the batch or the width"));
        };
        Ok(GeneratedKernel {
            name: self.name,
            source: self.source,
            grid: [x, y, z],
            block: [self.threads as u32, 1, 1],
            shared_bytes: self.shared[0],
            static_shared_bytes: self.shared[1],
            args: self.args,
            flops: if first { work.flops } else { 0 },
            bytes: if first { work.bytes } else { 0 },
            choice: None,
            reason: format!("{} {why}", spec.reason).trim().to_string(),
        })
    }
}

fn natural(spec: &KernelSpec, kernels: Vec<GeneratedKernel>, scratch: Vec<super::TensorType>) -> Generated {
    Generated { kernels, scratch, output_orders: vec![RowOrder::Natural; spec.outputs.len()] }
}
