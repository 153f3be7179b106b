//! What an operation costs before anyone knows the machine: arithmetic and traffic.
//!
//! A multiply-add counts as two operations, as in the peak rates that vendors print. Pointwise
//! transcendentals count as one operation each: their cost is in the traffic. Bytes assume that every operand
//! is read once and the result written once, which is what an unfused kernel does. A causal mask saves nothing here:
//! scores are computed in full, as an unfused kernel computes them.

use crate::graph::TensorType;
use crate::op::{Op, Sharded};
use serde::{Deserialize, Serialize};
use std::iter::Sum;
use std::ops::{Add, Mul};

mod backward;

/// Arithmetic and memory traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Floating-point operations of contractions (tensor-core work).
    pub matmul_flops: u64,
    /// Floating-point operations of everything else.
    pub vector_flops: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
}

impl Work {
    /// All floating-point operations.
    pub const fn flops(&self) -> u64 {
        self.matmul_flops.saturating_add(self.vector_flops)
    }

    /// All memory traffic in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes_read.saturating_add(self.bytes_written)
    }
}

impl Add for Work {
    type Output = Work;
    fn add(self, other: Work) -> Work {
        Work {
            matmul_flops: self.matmul_flops.saturating_add(other.matmul_flops),
            vector_flops: self.vector_flops.saturating_add(other.vector_flops),
            bytes_read: self.bytes_read.saturating_add(other.bytes_read),
            bytes_written: self.bytes_written.saturating_add(other.bytes_written),
        }
    }
}

impl Mul<u64> for Work {
    type Output = Work;
    fn mul(self, times: u64) -> Work {
        Work {
            matmul_flops: self.matmul_flops.saturating_mul(times),
            vector_flops: self.vector_flops.saturating_mul(times),
            bytes_read: self.bytes_read.saturating_mul(times),
            bytes_written: self.bytes_written.saturating_mul(times),
        }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Work>>(items: I) -> Work {
        items.fold(Work::default(), Work::add)
    }
}

impl Op {
    /// Work of one unfused execution. A parameter costs nothing by itself: its reader pays.
    /// A repeat costs nothing here: [`crate::Function::node_work`] multiplies its body.
    pub fn work(&self, operands: &[&TensorType], result: &TensorType) -> Work {
        let (matmul_flops, vector_flops) = self.flops(operands, result);
        let (bytes_read, bytes_written) = self.traffic(operands, result);
        Work { matmul_flops, vector_flops, bytes_read, bytes_written }
    }

    fn flops(&self, operands: &[&TensorType], result: &TensorType) -> (u64, u64) {
        let n = result.elements();
        match self {
            Op::Linear => (product([2, n, operands[1].shape[1]]), 0),
            Op::Scores { heads, .. } => (product([2, n, operands[0].shape[2] / heads]), 0),
            Op::Values { .. } => (product([2, n, operands[0].shape[3]]), 0),
            Op::Bias | Op::Add | Op::Mul | Op::Scale { .. } | Op::Position { .. } | Op::Activation(_) => {
                (0, n)
            }
            Op::Mask { alibi, .. } => (0, if alibi.is_some() { n.saturating_mul(2) } else { n }),
            Op::Norm { .. } => (0, n.saturating_mul(4)),
            Op::Softmax => (0, n.saturating_mul(4)),
            Op::Rope { rot_dims, head_dim, .. } => (0, product([3, n / head_dim, *rot_dims])),
            Op::Param { .. } | Op::Embed | Op::KvAppend { .. } | Op::LastToken | Op::Repeat { .. } => (0, 0),
            // What a collective costs is the network's; the additions of a sum happen on its way.
            Op::Sharded(_) => (0, 0),
            Op::Backward(op) => backward::flops(op, operands, result),
        }
    }

    fn traffic(&self, operands: &[&TensorType], result: &TensorType) -> (u64, u64) {
        let written = result.bytes();
        match self {
            Op::Param { .. } | Op::Repeat { .. } => (0, 0),
            Op::Embed | Op::Sharded(Sharded::EmbedPart { .. }) => {
                (operands[0].bytes().saturating_add(written), written)
            }
            Op::Position { .. } => {
                let rows = product([result.shape[1], result.shape[2], result.dtype.bytes()]);
                (operands[0].bytes().saturating_add(rows), written)
            }
            Op::KvAppend { .. } => (operands[0].bytes(), operands[0].bytes()),
            Op::LastToken => (written, written),
            Op::Backward(op) => backward::traffic(op, operands, result),
            _ => (operands.iter().fold(0, |sum: u64, t| sum.saturating_add(t.bytes())), written),
        }
    }
}

fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.iter().fold(1, |product: u64, f| product.saturating_mul(*f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::spec::{NormKind, Pairing, RopeScaling};

    fn work(op: &Op, shapes: &[&[u64]]) -> Work {
        let operands: Vec<TensorType> =
            shapes.iter().map(|shape| TensorType::new(DType::Bf16, *shape)).collect();
        let operands: Vec<&TensorType> = operands.iter().collect();
        op.work(&operands, &op.result(&operands).unwrap())
    }

    fn expect(work: Work, [matmul_flops, vector_flops, bytes_read, bytes_written]: [u64; 4]) {
        assert_eq!(work, Work { matmul_flops, vector_flops, bytes_read, bytes_written });
    }

    /// Derived by hand; two bytes each.
    #[test]
    fn each_op_counts_what_it_does_and_moves() {
        expect(work(&Op::Linear, &[&[2, 3, 8], &[5, 8]]), [2 * 6 * 5 * 8, 0, 2 * (48 + 40), 2 * 30]);
        let scores = Op::Scores { heads: 4, kv_heads: 2 };
        expect(work(&scores, &[&[1, 3, 32], &[1, 5, 16]]), [2 * 4 * 3 * 5 * 8, 0, 2 * (96 + 80), 2 * 60]);
        let values = Op::Values { heads: 4, kv_heads: 2 };
        expect(work(&values, &[&[1, 4, 3, 5], &[1, 5, 16]]), [2 * 96 * 5, 0, 2 * (60 + 80), 2 * 96]);
        expect(work(&Op::Softmax, &[&[1, 4, 3, 5]]), [0, 4 * 60, 120, 120]);
        expect(work(&Op::Norm { kind: NormKind::Rms, eps: 1e-5 }, &[&[2, 8], &[8]]), [0, 64, 2 * 24, 32]);
        let (head_dim, rot_dims, theta, offset) = (8, 4, 1e4, 0);
        let (pairing, scaling) = (Pairing::Half, RopeScaling::None);
        let rope = Op::Rope { head_dim, rot_dims, pairing, theta, scaling, offset };
        expect(work(&rope, &[&[1, 3, 16]]), [0, 3 * 6 * 4, 96, 96]);
    }

    /// The old rows of a cache stay where they are; a position table is read once for the whole batch.
    #[test]
    fn what_stays_in_place_is_not_moved() {
        let append = Op::KvAppend { cache: crate::op::Cache::Key, cached: 1000 };
        expect(work(&append, &[&[2, 1, 16]]), [0, 0, 64, 64]);
        expect(work(&Op::Position { offset: 0 }, &[&[4, 3, 8], &[10, 8]]), [0, 96, 2 * (96 + 24), 2 * 96]);
        expect(work(&Op::LastToken, &[&[2, 9, 16]]), [0, 0, 64, 64]);
    }

    #[test]
    fn sums_saturate_instead_of_wrapping() {
        let huge = Work { matmul_flops: u64::MAX, vector_flops: 1, bytes_read: u64::MAX, bytes_written: 1 };
        assert_eq!((huge + huge).flops(), u64::MAX);
        assert_eq!((huge * 3).bytes(), u64::MAX);
    }
}
