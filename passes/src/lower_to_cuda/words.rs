//! The words of GPU programs as those of the `cuda` dialect.

use crate::cuda;
use lapidary_ir::cuda::{BufferKind, Extent};
use lapidary_ir::{Op as IrOp, nn};
use lapidary_models::DType;
use lapidary_runtime_gpu::program::{self, Dtype, Step};

/// Grid and block of a launch; none for library calls.
pub fn extent(step: &Step) -> Option<Extent> {
    match step {
        Step::Launch(launch) => {
            Some(Extent { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes })
        }
        _ => None,
    }
}

/// The model's name of a parameter; with another load-time factor it is another parameter.
pub fn parameter_name(param: IrOp<'_>) -> String {
    let name = param.text("name").unwrap_or_default();
    match param.f64("scale") {
        Some(scale) if scale != 1.0 => format!("{name} x {scale}"),
        _ => name.to_string(),
    }
}

/// A symbol that prints without quotes.
pub fn symbol(name: &str) -> String {
    let word: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if word.is_empty() { "program".into() } else { word }
}

/// The anchor as the dialect knows it.
pub const fn anchor(anchor: cuda::Anchor) -> nn::Anchor {
    match anchor {
        cuda::Anchor::Row => nn::Anchor::Row,
        cuda::Anchor::Elementwise => nn::Anchor::Elementwise,
        cuda::Anchor::Gather => nn::Anchor::Gather,
        cuda::Anchor::Matmul => nn::Anchor::Matmul,
        cuda::Anchor::Attention => nn::Anchor::Attention,
    }
}

/// The kind of a buffer as the dialect knows it.
pub const fn kind(kind: program::BufferKind) -> BufferKind {
    match kind {
        program::BufferKind::Param | program::BufferKind::Weight => BufferKind::Param,
        program::BufferKind::Input => BufferKind::Input,
        program::BufferKind::Output => BufferKind::Output,
        program::BufferKind::Arena => BufferKind::Arena,
        program::BufferKind::Cache | program::BufferKind::State | program::BufferKind::Kept => {
            BufferKind::Cache
        }
    }
}

/// The element type as models know it; none for quantised weights, which only device parameters have.
pub const fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::Bf16 => Some(DType::Bf16),
        Dtype::F32 => Some(DType::F32),
        Dtype::I32 => Some(DType::I32),
        Dtype::I8 => None,
    }
}
