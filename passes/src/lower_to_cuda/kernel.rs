//! One `nn.fused` as the plain data that the CUDA emitters take.

use crate::cuda::spec::{
    ActivationFn, Input, KernelOp, KernelSpec, Mask, NormKind, OpSpec, Pairing, Rope, RopeScaling, Source,
    TensorType, ValueId,
};
use crate::cuda::{Anchor, spec as cuda};
use crate::pass::PassError;
use crate::view::read_op;
use lapidary_ir::{Op as IrOp, Value as IrValue};
use lapidary_models::op::{Backward, Sharded};
use lapidary_models::spec::{self, Activation};
use lapidary_models::{DType, Op};
use lapidary_runtime_gpu::program::Dtype;

/// A kernel and the IR values that its activation inputs stand for.
pub struct Region<'c> {
    /// The `nn.fused`.
    pub op: IrOp<'c>,
    /// What it computes.
    pub spec: KernelSpec,
    /// One value of the function per activation input.
    pub activations: Vec<IrValue<'c>>,
    /// The places of the activations, once they are known.
    pub args: Vec<usize>,
    /// The places of the results, once they are known.
    pub results: Vec<usize>,
}

/// Reads an `nn.fused`; `name` is a C identifier.
///
/// # Errors
/// [`PassError::Refused`] at ops and types that GPU programs do not know.
pub fn region<'c>(op: IrOp<'c>, name: String) -> Result<Region<'c>, PassError> {
    let Some(block) = op.region_block(0) else { return Err(PassError::at(op, "a kernel without a body")) };
    let mut reader = Reader::default();
    for (outer, inner) in op.operands().into_iter().zip(block.arguments()) {
        reader.input(op, outer, inner)?;
    }
    let (terminator, body): (Vec<IrOp<'c>>, Vec<IrOp<'c>>) =
        block.ops().into_iter().partition(|op| op.is("nn.yield"));
    body.into_iter().try_for_each(|inner| reader.op(inner))?;
    let yielded = terminator.iter().flat_map(|op| op.operands());
    let outputs = yielded.filter_map(|value| reader.find(value)).collect();
    let reason = op.text("reason").unwrap_or_default().to_string();
    let spec =
        KernelSpec { name, anchor: anchor(op), inputs: reader.inputs, ops: reader.ops, outputs, reason };
    Ok(Region { op, spec, activations: reader.activations, args: Vec::new(), results: Vec::new() })
}

#[derive(Default)]
struct Reader<'c> {
    known: Vec<IrValue<'c>>,
    inputs: Vec<Input>,
    activations: Vec<IrValue<'c>>,
    ops: Vec<OpSpec>,
}

impl<'c> Reader<'c> {
    /// The layer's number is no input of a kernel: launches advance through layers by themselves.
    fn input(&mut self, op: IrOp<'c>, outer: IrValue<'c>, inner: IrValue<'c>) -> Result<(), PassError> {
        if inner.tensor().is_none() && inner.shape().is_empty() {
            return Ok(());
        }
        let source = match outer.defining_op().filter(|maker| maker.is("nn.param")) {
            Some(param) => Source::Param {
                name: param.text("name").unwrap_or_default().to_string(),
                scale: param.f64("scale").unwrap_or(1.0),
            },
            None => {
                self.activations.push(outer);
                Source::Activation
            }
        };
        self.inputs.push(Input { ty: ty(op, inner)?, source });
        self.known.push(inner);
        Ok(())
    }

    fn op(&mut self, op: IrOp<'c>) -> Result<(), PassError> {
        let kind = read_op(op).map_err(|what| PassError::at(op, what))?;
        let param = op.text("name").unwrap_or_default();
        let kind = kernel_op(&kind, param)
            .ok_or_else(|| PassError::at(op, format!("{} has no kernel on this GPU target", op.name())))?;
        let operands: Vec<ValueId> = op.operands().into_iter().filter_map(|value| self.find(value)).collect();
        let Some(result) = op.result(0) else { return Ok(()) };
        let mut ty = ty(op, result)?;
        if let KernelOp::Backward(cuda::Backward::Gradient { .. }) = kind {
            ty.dtype = Dtype::F32;
        }
        self.ops.push(OpSpec { op: kind, operands, ty });
        self.known.push(result);
        Ok(())
    }

    fn find(&self, value: IrValue<'c>) -> Option<ValueId> {
        self.known.iter().position(|known| *known == value)
    }
}

fn anchor(op: IrOp<'_>) -> Anchor {
    match op.word("anchor") {
        Some("matmul") => Anchor::Matmul,
        Some("attention") => Anchor::Attention,
        Some("row") => Anchor::Row,
        Some("gather") => Anchor::Gather,
        _ => Anchor::Elementwise,
    }
}

/// The type of a region's result in memory: sums that go into a gradient are f32.
///
/// # Errors
/// As [`ty`].
pub fn result_type(region: &Region<'_>, i: usize) -> Result<TensorType, PassError> {
    let output = region.spec.outputs.get(i).copied();
    output
        .map(|value| region.spec.ty(value).clone())
        .ok_or_else(|| PassError::at(region.op, "a result without a value"))
}

/// The type of a value, if GPU programs know it.
///
/// # Errors
/// [`PassError::Refused`] at `op` for other element types.
pub fn ty(op: IrOp<'_>, value: IrValue<'_>) -> Result<TensorType, PassError> {
    let found = value.tensor().and_then(|tensor| memory_type(&tensor));
    found.ok_or_else(|| PassError::at(op, format!("GPU kernels hold bf16 and f32, found {}", value.ty())))
}

/// A model's type as GPU programs have it; none for element types that they do not know.
pub fn memory_type(ty: &lapidary_models::TensorType) -> Option<TensorType> {
    let dtype = match ty.dtype {
        DType::Bf16 => Dtype::Bf16,
        DType::F32 => Dtype::F32,
        DType::I32 => Dtype::I32,
        DType::F16 => return None,
    };
    Some(TensorType { dtype, shape: ty.shape.clone() })
}

fn kernel_op(op: &Op, param: &str) -> Option<KernelOp> {
    Some(match *op {
        Op::Embed => KernelOp::Embed,
        Op::Position { offset } => KernelOp::Position { offset },
        Op::Linear => KernelOp::Linear,
        Op::Bias => KernelOp::Bias,
        Op::Add => KernelOp::Add,
        Op::Mul => KernelOp::Mul,
        Op::Scale { by, .. } => KernelOp::Scale { by },
        Op::Activation(function) => KernelOp::Activation(activation(function)),
        Op::Norm { kind, eps } => KernelOp::Norm { kind: norm(kind), eps },
        Op::Rope { head_dim, rot_dims, pairing, theta, scaling, offset } => {
            KernelOp::Rope(rope(head_dim, rot_dims, pairing, theta, scaling, offset))
        }
        Op::KvAppend { cache, cached } => KernelOp::KvAppend { cache: cache.name().to_string(), cached },
        Op::Scores { heads, kv_heads } => KernelOp::Scores { heads, kv_heads },
        Op::Mask { causal, window, alibi, heads, offset } => KernelOp::Mask(Mask {
            causal,
            window,
            alibi: alibi.is_some(),
            alibi_scaling: alibi.unwrap_or(1.0),
            heads: heads.map(|run| [run.first, run.of]),
            offset,
        }),
        Op::Softmax => KernelOp::Softmax,
        Op::Values { heads, kv_heads } => KernelOp::Values { heads, kv_heads },
        Op::LastToken => KernelOp::LastToken,
        Op::Sharded(Sharded::EmbedPart { first }) => KernelOp::EmbedPart { first },
        Op::Sharded(Sharded::EmbedPartDw { first, .. }) => {
            KernelOp::Backward(cuda::Backward::EmbedDw { first })
        }
        Op::Param { .. } | Op::Repeat { .. } | Op::Sharded(_) => return None,
        Op::Backward(ref op) => KernelOp::Backward(backward(op, param)?),
    })
}

fn backward(op: &Backward, param: &str) -> Option<cuda::Backward> {
    Some(match *op {
        Backward::CrossEntropy => cuda::Backward::CrossEntropy,
        Backward::CrossEntropyDx => cuda::Backward::CrossEntropyDx,
        Backward::LinearDx => cuda::Backward::LinearDx,
        Backward::LinearDw => cuda::Backward::LinearDw,
        Backward::ColumnSum => cuda::Backward::ColumnSum,
        Backward::ActivationDx(function) => cuda::Backward::ActivationDx(activation(function)),
        Backward::NormDx { kind, eps } => cuda::Backward::NormDx { kind: norm(kind), eps },
        Backward::NormDw { kind, eps } => cuda::Backward::NormDw { kind: norm(kind), eps },
        Backward::RopeDx { head_dim, rot_dims, pairing, theta, scaling, offset } => {
            cuda::Backward::RopeDx(rope(head_dim, rot_dims, pairing, theta, scaling, offset))
        }
        Backward::MaskDx { causal, window, offset } => cuda::Backward::MaskDx(Mask {
            causal,
            window,
            alibi: false,
            alibi_scaling: 1.0,
            heads: None,
            offset,
        }),
        Backward::SoftmaxDx => cuda::Backward::SoftmaxDx,
        Backward::ValuesDv { heads, kv_heads } => cuda::Backward::ValuesDv { heads, kv_heads },
        Backward::EmbedDw { .. } => cuda::Backward::EmbedDw { first: 0 },
        Backward::PositionDw { offset, .. } => cuda::Backward::PositionDw { offset },
        Backward::Gradient { .. } => cuda::Backward::Gradient { param: param.to_string() },
        // Values that layers keep have a place of their own; a training graph reads every position.
        Backward::Save { .. } | Backward::Saved { .. } | Backward::LastTokenDx { .. } => return None,
    })
}

fn rope(
    head_dim: u64,
    rot_dims: u64,
    pairing: spec::Pairing,
    theta: f64,
    scaling: spec::RopeScaling,
    offset: u64,
) -> Rope {
    let (pairing, scaling) = (pairing_of(pairing), scaling_of(scaling));
    Rope { head_dim, rot_dims, pairing, theta, offset, scaling }
}

fn activation(function: Activation) -> ActivationFn {
    match function {
        Activation::Silu => ActivationFn::Silu,
        Activation::Gelu => ActivationFn::Gelu,
        Activation::GeluTanh => ActivationFn::GeluTanh,
        Activation::Relu => ActivationFn::Relu,
        Activation::Relu2 => ActivationFn::Relu2,
    }
}

fn norm(kind: spec::NormKind) -> NormKind {
    match kind {
        spec::NormKind::Rms => NormKind::Rms,
        spec::NormKind::Layer => NormKind::Layer,
    }
}

fn pairing_of(pairing: spec::Pairing) -> Pairing {
    match pairing {
        spec::Pairing::Half => Pairing::Half,
        spec::Pairing::Interleaved => Pairing::Interleaved,
    }
}

fn scaling_of(scaling: spec::RopeScaling) -> RopeScaling {
    match scaling {
        spec::RopeScaling::None => RopeScaling::None,
        spec::RopeScaling::Linear { factor } => RopeScaling::Linear { factor },
        spec::RopeScaling::Llama3 { factor, low_freq, high_freq, original_max } => {
            // Context lengths are far below 2^53, where f64 stops counting.
            RopeScaling::Llama3 { factor, low_freq, high_freq, original: original_max as f64 }
        }
    }
}
