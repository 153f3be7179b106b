//! The ops of one rank's part of a model: what ranks say to each other, and a lookup in part of a table.

use super::{Op, embed, expect};
use crate::graph::TensorType;
use std::ops::RangeInclusive;

/// One operation that only a part of a model holds. Operand shapes stand in the comment, then the result's. The ranks of a
/// tensor-parallel group run the same ops in the same order.
#[derive(Clone, Debug, PartialEq)]
pub enum Sharded {
    /// `ids i32[B, S], table [rows, D] -> [B, S, D]`: row lookup in rows `first..first + rows` of the whole table; zero for
    /// an id outside of them.
    EmbedPart {
        /// The id of the first row.
        first: u64,
    },
    /// `x -> ` same shape: the sum over the ranks of the tensor-parallel group.
    AllReduce,
    /// `x [.., N] -> [.., width]`: the parts of all ranks of the tensor-parallel group side by side, in their order; what
    /// lies beyond `width` is padding and is dropped.
    AllGather {
        /// Length of the last axis of the result.
        width: u64,
    },
    /// `x -> x`: sends it to a stage of the pipeline, to the rank with the same place in its group.
    Send {
        /// Index of the stage.
        stage: u64,
    },
    /// `-> x`: what a stage of the pipeline sent. Its type is declared.
    Receive {
        /// Index of the stage.
        stage: u64,
    },
}

impl From<Sharded> for Op {
    fn from(op: Sharded) -> Op {
        Op::Sharded(op)
    }
}

impl Sharded {
    /// The name as the IR writes it, without the dialect.
    pub const fn name(&self) -> &'static str {
        match self {
            Sharded::EmbedPart { .. } => "embed_part",
            Sharded::AllReduce => "all_reduce",
            Sharded::AllGather { .. } => "all_gather",
            Sharded::Send { .. } => "send",
            Sharded::Receive { .. } => "receive",
        }
    }

    /// Whether ranks meet in it.
    pub const fn is_collective(&self) -> bool {
        !matches!(self, Sharded::EmbedPart { .. })
    }

    pub(super) fn result(&self, operands: &[&TensorType]) -> Result<TensorType, String> {
        match self {
            Sharded::EmbedPart { .. } => embed(operands[0], operands[1]),
            Sharded::AllReduce | Sharded::Send { .. } => Ok(operands[0].clone()),
            Sharded::AllGather { width } => gathered(operands[0], *width),
            Sharded::Receive { .. } => Err("what is received has a declared type".into()),
        }
    }

    pub(super) const fn arity(&self) -> RangeInclusive<usize> {
        match self {
            Sharded::EmbedPart { .. } => 2..=2,
            Sharded::AllReduce | Sharded::AllGather { .. } | Sharded::Send { .. } => 1..=1,
            Sharded::Receive { .. } => 0..=0,
        }
    }
}

fn gathered(x: &TensorType, width: u64) -> Result<TensorType, String> {
    let part = x.last()?;
    expect(width >= part, || format!("parts of {part} values make a whole of {width}"))?;
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("rank checked by last()") = width;
    Ok(TensorType { dtype: x.dtype, shape })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    fn t(shape: &[u64]) -> TensorType {
        TensorType::new(DType::F32, shape)
    }

    #[test]
    fn shapes_follow_from_the_operands() {
        let result = |op: Sharded, operands: &[TensorType]| {
            Op::from(op).result(&operands.iter().collect::<Vec<_>>()).map(|ty| ty.shape)
        };
        assert_eq!(result(Sharded::AllGather { width: 7 }, &[t(&[2, 3, 4])]), Ok(vec![2, 3, 7]));
        assert_eq!(result(Sharded::AllReduce, &[t(&[2, 3, 4])]), Ok(vec![2, 3, 4]));
        assert_eq!(result(Sharded::Send { stage: 1 }, &[t(&[2, 3, 4])]), Ok(vec![2, 3, 4]));
        let ids = TensorType::new(DType::I32, [2, 3]);
        assert_eq!(result(Sharded::EmbedPart { first: 9 }, &[ids, t(&[5, 4])]), Ok(vec![2, 3, 4]));
    }

    #[test]
    fn refusals_name_the_relation_that_fails() {
        let refusal = |op: Sharded, operands: &[TensorType]| {
            Op::from(op).result(&operands.iter().collect::<Vec<_>>()).unwrap_err()
        };
        let gather = Sharded::AllGather { width: 3 };
        assert_eq!(refusal(gather, &[t(&[2, 4])]), "parts of 4 values make a whole of 3");
        assert_eq!(refusal(Sharded::Receive { stage: 0 }, &[]), "what is received has a declared type");
        assert_eq!(refusal(Sharded::AllReduce, &[]), "all_reduce takes 1..=1 operands, found 0");
    }
}
