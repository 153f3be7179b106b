//! The `cuda` dialect from Rust: programs, buffers, kernels, launches, repeats.
//!
//! What an op means stands in `ir/docs/cuda.md`.

use crate::at::{At, New};
use crate::context::IrContext;
use crate::error::IrError;
use crate::handle::missing;
use crate::nn::Anchor;
use crate::raw::{Block, Op, Value};
use lapidary_models::TensorType;
use melior::ir::attribute::DictionaryAttribute;
use melior::ir::{Attribute, Identifier, Type};

/// Who provides a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BufferKind {
    /// Weights: loaded once, read only.
    Param,
    /// Set by the caller before a run.
    Input,
    /// Read by the caller after a run.
    Output,
    /// Temporary: lives in the arena for part of a run.
    Arena,
    /// Keys and values: keeps its contents from run to run.
    Cache,
}

impl BufferKind {
    /// Every kind, in the order of the dialect.
    pub const ALL: [BufferKind; 5] =
        [BufferKind::Param, BufferKind::Input, BufferKind::Output, BufferKind::Arena, BufferKind::Cache];

    /// The word in the IR.
    pub const fn name(self) -> &'static str {
        match self {
            BufferKind::Param => "param",
            BufferKind::Input => "input",
            BufferKind::Output => "output",
            BufferKind::Arena => "arena",
            BufferKind::Cache => "cache",
        }
    }

    /// The kind of a `cuda.buffer`.
    pub fn of(buffer: Op<'_>) -> Option<BufferKind> {
        let word = buffer.word("kind")?;
        BufferKind::ALL.into_iter().find(|kind| kind.name() == word)
    }
}

/// A `cuda.buffer` to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// Unique name.
    pub name: String,
    /// Who provides it.
    pub kind: BufferKind,
    /// Bytes of everything, padding and all layers included.
    pub bytes: u64,
    /// Number of slices, for buffers with one slice per layer.
    pub layers: Option<u64>,
    /// Shape and element type of one slice.
    pub ty: TensorType,
}

/// A `cuda.kernel` to be, without its body.
#[derive(Clone, Debug)]
pub struct Kernel<'c> {
    /// Unique name.
    pub name: String,
    /// The op that gives it its loop.
    pub anchor: Anchor,
    /// Whether a library routine computes it, rather than text of ours.
    pub library: bool,
    /// Name of the kernel form, or of the routine.
    pub variant: String,
    /// Tile sizes and the like, by name.
    pub params: Vec<(String, Attribute<'c>)>,
    /// Why this form.
    pub reason: String,
}

/// Grid, block and dynamic shared memory of a generated kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u64,
}

fn count(cx: &IrContext, value: u64) -> Attribute<'_> {
    cx.i64(i64::try_from(value).unwrap_or(i64::MAX))
}

fn with_body<'c>(op: Op<'c>, inputs: &[Type<'c>]) -> Result<(Op<'c>, Block<'c>), IrError> {
    let body = op.add_block(0, inputs).ok_or_else(|| missing(op, "body"))?;
    Ok((op, body))
}

/// `cuda.program` with an empty body.
///
/// # Errors
/// [`IrError::Invalid`] if the op cannot be made.
pub fn program<'c>(at: At<'c>, name: &str, arch: &str) -> Result<(Op<'c>, Block<'c>), IrError> {
    let cx = at.context();
    let new =
        New::of("cuda.program", &[]).with("sym_name", cx.text(name)).with("arch", cx.text(arch)).regions(1);
    with_body(at.create(&new)?, &[])
}

/// `cuda.buffer`; its value is a memref of one slice.
///
/// # Errors
/// [`IrError::Invalid`] if the bytes are fewer than the shape needs.
pub fn buffer<'c>(at: At<'c>, buffer: &Buffer) -> Result<Value<'c>, IrError> {
    let cx = at.context();
    let memory = cx.parse_type(&buffer.ty.to_string().replacen("tensor", "memref", 1))?;
    let new = New::of("cuda.buffer", &[memory])
        .with("name", cx.text(&buffer.name))
        .with("kind", cx.parse_attribute(&format!("#cuda<buffer_kind {}>", buffer.kind.name()))?)
        .with("bytes", count(cx, buffer.bytes))
        .with_some("layers", buffer.layers.map(|layers| count(cx, layers)));
    let op = at.create(&new)?;
    op.result(0).ok_or_else(|| missing(op, "result"))
}

/// `cuda.kernel` with a body that takes these types; end the body with `nn.yield`.
///
/// # Errors
/// [`IrError::Invalid`] if the op cannot be made.
pub fn kernel<'c>(
    at: At<'c>,
    kernel: &Kernel<'c>,
    inputs: &[Type<'c>],
) -> Result<(Op<'c>, Block<'c>), IrError> {
    let cx = at.context();
    let params: Vec<_> =
        kernel.params.iter().map(|(name, value)| (Identifier::new(cx.melior(), name), *value)).collect();
    let kind = if kernel.library { "library" } else { "generated" };
    let new = New::of("cuda.kernel", &[])
        .with("sym_name", cx.text(&kernel.name))
        .with("anchor", cx.parse_attribute(&format!("#nn<anchor {}>", kernel.anchor.name()))?)
        .with("kind", cx.parse_attribute(&format!("#cuda<kernel_kind {kind}>"))?)
        .with("variant", cx.text(&kernel.variant))
        .with("params", DictionaryAttribute::new(cx.melior(), &params).into())
        .with("reason", cx.text(&kernel.reason))
        .regions(1);
    with_body(at.create(&new)?, inputs)
}

/// `cuda.launch`; `extent` is for generated kernels, library routines have none.
///
/// # Errors
/// [`IrError::Invalid`] if the extent is beyond CUDA's limits.
pub fn launch<'c>(
    at: At<'c>,
    kernel: &str,
    extent: Option<Extent>,
    inputs: &[Value<'c>],
    outputs: &[Value<'c>],
) -> Result<Op<'c>, IrError> {
    let cx = at.context();
    let sizes = |sizes: [u32; 3]| cx.i64s(&sizes.map(i64::from));
    let segments = cx.parse_attribute(&format!("array<i32: {}, {}>", inputs.len(), outputs.len()))?;
    let new = New::of("cuda.launch", &[])
        .reads(inputs)
        .reads(outputs)
        .with("kernel", cx.symbol(kernel))
        .with_some("grid", extent.map(|extent| sizes(extent.grid)))
        .with_some("block", extent.map(|extent| sizes(extent.block)))
        .with("shared", count(cx, extent.map_or(0, |extent| extent.shared_bytes)))
        .with("operandSegmentSizes", segments);
    at.create(&new)
}

/// `cuda.repeat` with a body whose argument is the layer's number.
///
/// # Errors
/// [`IrError::Invalid`] if the op cannot be made.
pub fn repeat(at: At<'_>, times: u64) -> Result<(Op<'_>, Block<'_>), IrError> {
    let cx = at.context();
    let new = New::of("cuda.repeat", &[]).with("times", count(cx, times)).regions(1);
    with_body(at.create(&new)?, &[cx.index()])
}
