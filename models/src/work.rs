//! What an operation costs before anyone knows the machine: arithmetic and traffic.
//!
//! A multiply-add counts as two operations, as in the peak rates that vendors print. Pointwise
//! transcendentals count as one operation each: their cost is in the traffic. Bytes assume that every operand
//! is read once and the result written once, which is what an unfused kernel does.

use crate::graph::TensorType;
use crate::op::Op;
use serde::{Deserialize, Serialize};
use std::iter::Sum;
use std::ops::{Add, Mul};

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
        }
    }

    fn traffic(&self, operands: &[&TensorType], result: &TensorType) -> (u64, u64) {
        let written = result.bytes();
        match self {
            Op::Param { .. } | Op::Repeat { .. } => (0, 0),
            Op::Embed => (operands[0].bytes().saturating_add(written), written),
            Op::Position { .. } => {
                let rows = product([result.shape[1], result.shape[2], result.dtype.bytes()]);
                (operands[0].bytes().saturating_add(rows), written)
            }
            Op::KvAppend { .. } => (operands[0].bytes(), operands[0].bytes()),
            Op::LastToken => (written, written),
            _ => (operands.iter().fold(0, |sum: u64, t| sum.saturating_add(t.bytes())), written),
        }
    }
}

fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.iter().fold(1, |product: u64, f| product.saturating_mul(*f))
}
