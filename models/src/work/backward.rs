//! Work of the ops of a backward pass, by the same rules: unfused, every operand read once.
//!
//! A value kept for the backward pass costs nothing when it is kept (it lies where it was written) and is paid for by
//! its readers. A gradient is added up in f32, whatever type it arrives in.

use super::product;
use crate::dtype::DType;
use crate::graph::TensorType;
use crate::op::Backward;

/// Contraction and other operations of an op of the backward pass.
pub(super) fn flops(op: &Backward, operands: &[&TensorType], result: &TensorType) -> (u64, u64) {
    let n = result.elements();
    let read = || operands[0].elements();
    match op {
        Backward::LinearDx => (product([2, n, operands[1].shape[0]]), 0),
        Backward::LinearDw => (product([2, operands[0].elements(), result.shape[1]]), 0),
        Backward::ValuesDv { heads, .. } => (product([2, read(), operands[1].shape[2] / heads]), 0),
        // The largest, the exponentials, their sum and the logarithm; or the difference to the label.
        Backward::CrossEntropy | Backward::CrossEntropyDx | Backward::SoftmaxDx => (0, product([4, read()])),
        Backward::ColumnSum
        | Backward::MaskDx { .. }
        | Backward::PositionDw { .. }
        | Backward::Gradient { .. } => (0, read()),
        Backward::EmbedDw { .. } => (0, operands[1].elements()),
        // The derivative and the product.
        Backward::ActivationDx(_) => (0, n.saturating_mul(2)),
        // Statistics again (2), dy·w, its product with the row and the sum (3), what is subtracted and the scale (3).
        Backward::NormDx { .. } => (0, n.saturating_mul(8)),
        // Statistics again (2), the normalised value (2), times dy and the sum (2).
        Backward::NormDw { .. } => (0, product([6, read()])),
        Backward::RopeDx { rot_dims, head_dim, .. } => (0, product([3, n / head_dim, *rot_dims])),
        Backward::LastTokenDx { .. } | Backward::Save { .. } | Backward::Saved { .. } => (0, 0),
    }
}

/// Bytes read and written by an op of the backward pass.
pub(super) fn traffic(op: &Backward, operands: &[&TensorType], result: &TensorType) -> (u64, u64) {
    let read = operands.iter().fold(0, |sum: u64, t| sum.saturating_add(t.bytes()));
    match op {
        Backward::Save { .. } | Backward::Saved { .. } => (0, 0),
        Backward::Gradient { .. } => {
            let sum = result.elements().saturating_mul(DType::F32.bytes());
            (read.saturating_add(sum), sum)
        }
        _ => (read, result.bytes()),
    }
}

#[cfg(test)]
mod tests {
    use crate::dtype::DType;
    use crate::graph::TensorType;
    use crate::op::{Backward, Op};
    use crate::work::Work;

    fn work(op: &Op, shapes: &[&[u64]]) -> Work {
        let operands: Vec<TensorType> =
            shapes.iter().map(|shape| TensorType::new(DType::Bf16, *shape)).collect();
        let operands: Vec<&TensorType> = operands.iter().collect();
        op.work(&operands, &op.result(&operands).unwrap())
    }

    /// Derived by hand; two bytes each.
    #[test]
    fn each_op_counts_what_it_does_and_moves() {
        let expect = |work: Work, [matmul_flops, vector_flops, bytes_read, bytes_written]: [u64; 4]| {
            assert_eq!(work, Work { matmul_flops, vector_flops, bytes_read, bytes_written });
        };
        // All three products of a linear are of one size: 6 rows, 5 x 8 weights.
        expect(
            work(&Op::Backward(Backward::LinearDx), &[&[2, 3, 5], &[5, 8]]),
            [2 * 6 * 5 * 8, 0, 2 * (30 + 40), 2 * 48],
        );
        expect(
            work(&Op::Backward(Backward::LinearDw), &[&[2, 3, 5], &[2, 3, 8]]),
            [2 * 6 * 5 * 8, 0, 2 * (30 + 48), 2 * 40],
        );
        let dv = Op::Backward(Backward::ValuesDv { heads: 4, kv_heads: 2 });
        expect(work(&dv, &[&[1, 4, 3, 5], &[1, 3, 32]]), [2 * 60 * 8, 0, 2 * (60 + 96), 2 * 80]);
        expect(work(&Op::Backward(Backward::ColumnSum), &[&[2, 3, 5]]), [0, 30, 60, 10]);
        expect(work(&Op::Backward(Backward::SoftmaxDx), &[&[6, 5], &[6, 5]]), [0, 120, 120, 60]);
        // A gradient of 40 values is read, and its sum in four bytes read and written.
        expect(work(&Op::Backward(Backward::Gradient { param: 0 }), &[&[5, 8]]), [0, 40, 80 + 160, 160]);
        expect(work(&Op::Backward(Backward::Save { slot: 0 }), &[&[5, 8]]), [0, 0, 0, 0]);
    }
}
