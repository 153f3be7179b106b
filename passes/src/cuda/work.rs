//! What a kernel costs: floating-point operations, and the bytes it cannot avoid to move.
//!
//! Counted per element: 1 for add, mul, scale, bias, position; 4 for an activation; 3 for a rotation; 5 for a norm; 4 for
//! softmax; 2 per multiply-add of a product. Causal attention counts only the scores that are looked at.
use super::spec::{Backward, KernelOp, KernelSpec, OpSpec};

/// Operations and bytes of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub flops: u64,
    pub bytes: u64,
}

impl KernelSpec {
    /// Every input read once, every output written once.
    pub(crate) fn work(&self) -> Work {
        let flops = self.results().fold(0u64, |sum, id| sum.saturating_add(self.flops(id)));
        let read: u64 = (0..self.inputs.len()).map(|i| self.bytes_read(i)).sum();
        let written: u64 = self.outputs.iter().map(|&id| self.bytes_written(id)).sum();
        Work { flops, bytes: read + written }
    }

    fn flops(&self, id: usize) -> u64 {
        let Some(op) = self.op(id) else { return 0 };
        let n = op.ty.elements();
        match &op.op {
            KernelOp::Embed
            | KernelOp::EmbedPart { .. }
            | KernelOp::KvAppend { .. }
            | KernelOp::LastToken => 0,
            KernelOp::Position { .. } | KernelOp::Bias | KernelOp::Add | KernelOp::Mul => n,
            KernelOp::Scale { .. } => self.seen(&op.ty.shape, n),
            KernelOp::Mask(_) => self.seen(&op.ty.shape, n),
            KernelOp::Activation(_) => 4 * n,
            KernelOp::Rope(_) => 3 * n,
            KernelOp::Norm { .. } => 5 * n,
            KernelOp::Softmax => 4 * self.seen(&op.ty.shape, n),
            KernelOp::Linear => n.saturating_mul(2 * self.ty(op.operands[1]).cols()),
            KernelOp::Scores { heads, .. } => {
                let head_dim = self.ty(op.operands[0]).cols() / (*heads).max(1);
                self.seen(&op.ty.shape, n).saturating_mul(2 * head_dim)
            }
            KernelOp::Backward(kind) => self.backward_flops(kind, op),
            KernelOp::Values { .. } => {
                let p = self.ty(op.operands[0]);
                let per_head = op.ty.cols() / p.shape.get(1).copied().unwrap_or(1).max(1);
                self.seen(&p.shape, p.elements()).saturating_mul(2 * per_head)
            }
        }
    }

    /// As [`lapidary_models`] counts them: products 2 per multiply-add, sums and statistics by the element read.
    fn backward_flops(&self, kind: &Backward, op: &OpSpec) -> u64 {
        let read = |i: usize| self.ty(op.operands[i]).elements();
        let n = op.ty.elements();
        match kind {
            Backward::LinearDx => n.saturating_mul(2 * self.ty(op.operands[0]).cols()),
            Backward::LinearDw => n.saturating_mul(2 * self.ty(op.operands[0]).rows()),
            Backward::ValuesDv { heads, .. } => {
                let p = self.ty(op.operands[0]);
                let head_dim = self.ty(op.operands[1]).cols() / (*heads).max(1);
                self.seen(&p.shape, p.elements()).saturating_mul(2 * head_dim)
            }
            Backward::CrossEntropy | Backward::CrossEntropyDx | Backward::SoftmaxDx => 4 * read(0),
            // The sum is made along with the softmax; that one costs what it costs.
            Backward::LogSum => 0,
            Backward::SoftmaxOf => 4 * self.seen(&op.ty.shape, n),
            Backward::RowProducts { .. } => 2 * read(0),
            Backward::ColumnSum
            | Backward::MaskDx(_)
            | Backward::PositionDw { .. }
            | Backward::Gradient { .. } => read(0),
            Backward::EmbedDw { .. } => read(1),
            Backward::ActivationDx(_) => 2 * n,
            Backward::NormDx { .. } => 8 * n,
            Backward::NormDw { .. } => 6 * read(0),
            Backward::RopeDx(_) => 3 * n,
        }
    }

    /// Of `n` scores [b, h, s, l], those that the region's mask lets through.
    fn seen(&self, shape: &[u64], n: u64) -> u64 {
        let mask = self.ops.iter().find_map(|op| match &op.op {
            KernelOp::Mask(mask) => Some(mask),
            _ => None,
        });
        let (Some(mask), [b, h, s, l]) = (mask, shape) else { return n };
        let most = if mask.window > 0 { mask.window.min(*l) } else { *l };
        if !mask.causal {
            return b * h * s * most;
        }
        // Query i sees min(offset + i + 1, most) keys: a ramp of `ramp` queries, then a plateau.
        let ramp = most.saturating_sub(mask.offset).min(*s);
        let on_ramp = u128::from(ramp) * (2 * u128::from(mask.offset) + u128::from(ramp) + 1) / 2;
        let seen = on_ramp + u128::from(s - ramp) * u128::from(most);
        u64::try_from(u128::from(b * h) * seen).unwrap_or(u64::MAX)
    }

    fn bytes_read(&self, input: usize) -> u64 {
        let ty = &self.inputs[input].ty;
        let table_rows = self.ops.iter().find_map(|op| match op.op {
            KernelOp::Embed | KernelOp::EmbedPart { .. } if op.operands[1] == input => Some(op.ty.rows()),
            KernelOp::Position { .. } if op.operands[1] == input => op.ty.shape.iter().rev().nth(1).copied(),
            _ => None,
        });
        let last_only = self
            .users(input)
            .iter()
            .all(|&user| self.op(user).is_some_and(|op| op.op == KernelOp::LastToken));
        let rows = match table_rows {
            Some(rows) => rows,
            None if last_only && ty.shape.len() == 3 => ty.shape[0],
            None => ty.rows(),
        };
        rows * ty.cols() * ty.dtype.bytes()
    }

    fn bytes_written(&self, id: usize) -> u64 {
        let ty = match self.op(id) {
            Some(op) if matches!(op.op, KernelOp::KvAppend { .. }) => self.ty(op.operands[0]),
            _ => self.ty(id),
        };
        // A gradient is read before it is written.
        let times = if self.gradient(id).is_some() { 2 } else { 1 };
        times * ty.elements() * ty.dtype.bytes()
    }
}
