//! Builds regions without counting indices by hand.
use lapidary_passes::cuda::spec::*;
use lapidary_runtime_gpu::program::Dtype;

/// A region under construction.
pub struct Region {
    pub spec: KernelSpec,
    pub dtype: Dtype,
}

impl Region {
    pub fn new(name: &str, anchor: Anchor, dtype: Dtype) -> Region {
        let (inputs, ops, outputs) = (Vec::new(), Vec::new(), Vec::new());
        Region {
            spec: KernelSpec { name: name.into(), anchor, inputs, ops, outputs, reason: "test.".into() },
            dtype,
        }
    }

    /// Inputs come before operations.
    pub fn input(&mut self, shape: &[u64]) -> ValueId {
        self.given(self.dtype, shape)
    }

    /// An input of another element type.
    pub fn given(&mut self, dtype: Dtype, shape: &[u64]) -> ValueId {
        self.typed(TensorType::new(dtype, shape), Source::Activation)
    }

    pub fn ids(&mut self, shape: &[u64]) -> ValueId {
        self.typed(TensorType::new(Dtype::I32, shape), Source::Activation)
    }

    pub fn param(&mut self, name: &str, shape: &[u64]) -> ValueId {
        let source = Source::Param { name: name.into(), scale: 1.0 };
        self.typed(TensorType::new(self.dtype, shape), source)
    }

    fn typed(&mut self, ty: TensorType, source: Source) -> ValueId {
        assert!(self.spec.ops.is_empty(), "inputs come before operations");
        self.spec.inputs.push(Input { ty, source });
        self.spec.inputs.len() - 1
    }

    /// Adds an operation with a result of this shape; losses and gradients are f32.
    pub fn shaped(&mut self, op: KernelOp, operands: &[ValueId], shape: &[u64]) -> ValueId {
        use Backward::{CrossEntropy, Gradient, LogSum, RowProducts};
        let single =
            matches!(op, KernelOp::Backward(CrossEntropy | Gradient { .. } | LogSum | RowProducts { .. }));
        let dtype = if single { Dtype::F32 } else { self.dtype };
        self.spec.ops.push(OpSpec { op, operands: operands.to_vec(), ty: TensorType::new(dtype, shape) });
        self.spec.inputs.len() + self.spec.ops.len() - 1
    }

    /// Adds an operation; the result has the first operand's shape unless the operation changes it.
    pub fn op(&mut self, op: KernelOp, operands: &[ValueId]) -> ValueId {
        let first = self.spec.ty(operands[0]).shape.clone();
        let shape = match &op {
            KernelOp::Linear => [&first[..first.len() - 1], &self.spec.ty(operands[1]).shape[..1]].concat(),
            KernelOp::Embed | KernelOp::EmbedPart { .. } => {
                [&first[..], &self.spec.ty(operands[1]).shape[1..]].concat()
            }
            KernelOp::LastToken => vec![first[0], 1, first[2]],
            KernelOp::KvAppend { cached, .. } => vec![first[0], first[1] + cached, first[2]],
            KernelOp::Scores { heads, .. } => {
                vec![first[0], *heads, first[1], self.spec.ty(operands[1]).shape[1]]
            }
            KernelOp::Values { heads, kv_heads } => {
                vec![first[0], first[2], self.spec.ty(operands[1]).shape[2] / kv_heads * heads]
            }
            _ => first,
        };
        self.shaped(op, operands, &shape)
    }

    pub fn finish(mut self, outputs: &[ValueId]) -> KernelSpec {
        self.spec.outputs = outputs.to_vec();
        self.spec
    }
}
