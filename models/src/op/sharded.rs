//! The ops of one rank's part of a model: what ranks say to each other, and a lookup in part of a table.

use super::{Backward, Op, embed, expect};
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
    /// `x [.., N] -> [1, rows, N]`, `rows` being those of `x` over the ranks, rounded up: every rank gets its run of the
    /// rows of the sum over the tensor-parallel group; zeros behind the last row.
    ReduceScatter {
        /// Ranks of the group.
        ranks: u64,
    },
    /// `x [1, rows, N] -> [batch, seq, N]`: the rows of all ranks of the tensor-parallel group, in their order.
    GatherRows {
        /// Sequences.
        batch: u64,
        /// Tokens of each.
        seq: u64,
    },
    /// `x [.., N] -> [1, rows, N]`: a run of the rows, zeros behind the last. The rank says nothing.
    TakeRows {
        /// The first row.
        first: u64,
        /// How many.
        rows: u64,
    },
    /// `x [.., N] -> [.., held]`: `length` columns from `first` on, zeros behind them. The rank says nothing.
    Take {
        /// The first column.
        first: u64,
        /// How many.
        length: u64,
        /// Columns of the result.
        held: u64,
    },
    /// `ids i32[B, S], dy [B, S, D] -> [rows, D]`: adds each row of `dy` to the row of its id, in rows
    /// `first..first + rows` of the whole table; what belongs outside of them is left out.
    EmbedPartDw {
        /// The id of the first row.
        first: u64,
        /// Rows of the part.
        rows: u64,
    },
    /// `x -> x`: sends it to a stage of the pipeline, to the rank with the same place in its group, and does not wait.
    Send {
        /// Index of the stage.
        stage: u64,
        /// Messages of a lane arrive in their order; those of different lanes pass one another.
        lane: u64,
    },
    /// `-> x`: what a stage of the pipeline sent. Its type is declared.
    Receive {
        /// Index of the stage.
        stage: u64,
        /// The lane of its [`Sharded::Send`].
        lane: u64,
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
            Sharded::ReduceScatter { .. } => "reduce_scatter",
            Sharded::GatherRows { .. } => "gather_rows",
            Sharded::TakeRows { .. } => "take_rows",
            Sharded::Take { .. } => "take",
            Sharded::EmbedPartDw { .. } => "embed_part_dw",
            Sharded::Send { .. } => "send",
            Sharded::Receive { .. } => "receive",
        }
    }

    /// Whether ranks meet in it.
    pub const fn is_collective(&self) -> bool {
        match self {
            Sharded::AllReduce
            | Sharded::AllGather { .. }
            | Sharded::ReduceScatter { .. }
            | Sharded::GatherRows { .. }
            | Sharded::Send { .. }
            | Sharded::Receive { .. } => true,
            Sharded::EmbedPart { .. }
            | Sharded::TakeRows { .. }
            | Sharded::Take { .. }
            | Sharded::EmbedPartDw { .. } => false,
        }
    }

    pub(super) fn result(&self, operands: &[&TensorType]) -> Result<TensorType, String> {
        match self {
            Sharded::EmbedPart { .. } => embed(operands[0], operands[1]),
            Sharded::AllReduce | Sharded::Send { .. } => Ok(operands[0].clone()),
            Sharded::AllGather { width } => gathered(operands[0], *width),
            Sharded::ReduceScatter { ranks } => {
                expect(*ranks > 0, || "a group of 0 ranks".into())?;
                some_rows(operands[0], rows_of(operands[0])?.div_ceil(*ranks))
            }
            Sharded::GatherRows { batch, seq } => all_rows(operands[0], *batch, *seq),
            Sharded::TakeRows { rows, .. } => some_rows(operands[0], *rows),
            Sharded::Take { first, length, held } => taken(operands[0], *first, *length, *held),
            Sharded::EmbedPartDw { rows, .. } => Backward::EmbedDw { rows: *rows }.result(operands),
            Sharded::Receive { .. } => Err("what is received has a declared type".into()),
        }
    }

    pub(super) const fn arity(&self) -> RangeInclusive<usize> {
        match self {
            Sharded::EmbedPart { .. } | Sharded::EmbedPartDw { .. } => 2..=2,
            Sharded::AllReduce
            | Sharded::AllGather { .. }
            | Sharded::ReduceScatter { .. }
            | Sharded::GatherRows { .. }
            | Sharded::TakeRows { .. }
            | Sharded::Take { .. }
            | Sharded::Send { .. } => 1..=1,
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

/// Rows of a tensor with at least one axis.
fn rows_of(x: &TensorType) -> Result<u64, String> {
    x.last()?;
    Ok(x.shape[..x.shape.len() - 1].iter().fold(1, |n, d| n.saturating_mul(*d)))
}

fn some_rows(x: &TensorType, rows: u64) -> Result<TensorType, String> {
    let found = rows_of(x)?;
    expect(rows <= found, || format!("{rows} rows of {found}"))?;
    Ok(TensorType::new(x.dtype, [1, rows, x.last()?]))
}

fn all_rows(x: &TensorType, batch: u64, seq: u64) -> Result<TensorType, String> {
    let (part, whole) = (rows_of(x)?, batch.saturating_mul(seq));
    expect(part <= whole, || format!("parts of {part} rows make a whole of {whole}"))?;
    Ok(TensorType::new(x.dtype, [batch, seq, x.last()?]))
}

fn taken(x: &TensorType, first: u64, length: u64, held: u64) -> Result<TensorType, String> {
    let width = x.last()?;
    expect(first.saturating_add(length) <= width && length <= held, || {
        format!("columns {first} to {} of {width}, held in {held}", first.saturating_add(length))
    })?;
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("rank checked by last()") = held;
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
        assert_eq!(result(Sharded::Send { stage: 1, lane: 0 }, &[t(&[2, 3, 4])]), Ok(vec![2, 3, 4]));
        assert_eq!(result(Sharded::ReduceScatter { ranks: 4 }, &[t(&[2, 3, 4])]), Ok(vec![1, 2, 4]));
        assert_eq!(result(Sharded::GatherRows { batch: 2, seq: 3 }, &[t(&[1, 2, 4])]), Ok(vec![2, 3, 4]));
        assert_eq!(result(Sharded::TakeRows { first: 2, rows: 2 }, &[t(&[2, 3, 4])]), Ok(vec![1, 2, 4]));
        let take = Sharded::Take { first: 2, length: 1, held: 2 };
        assert_eq!(result(take, &[t(&[2, 3, 4])]), Ok(vec![2, 3, 2]));
        let ids = TensorType::new(DType::I32, [2, 3]);
        assert_eq!(result(Sharded::EmbedPart { first: 9 }, &[ids.clone(), t(&[5, 4])]), Ok(vec![2, 3, 4]));
        let part = Sharded::EmbedPartDw { first: 9, rows: 5 };
        assert_eq!(result(part, &[ids, t(&[2, 3, 4])]), Ok(vec![5, 4]));
    }

    #[test]
    fn refusals_name_the_relation_that_fails() {
        let refusal = |op: Sharded, operands: &[TensorType]| {
            Op::from(op).result(&operands.iter().collect::<Vec<_>>()).unwrap_err()
        };
        let gather = Sharded::AllGather { width: 3 };
        assert_eq!(refusal(gather, &[t(&[2, 4])]), "parts of 4 values make a whole of 3");
        let take = Sharded::Take { first: 2, length: 3, held: 4 };
        assert_eq!(refusal(take, &[t(&[2, 4])]), "columns 2 to 5 of 4, held in 4");
        let rows = Sharded::GatherRows { batch: 1, seq: 2 };
        assert_eq!(refusal(rows, &[t(&[1, 3, 4])]), "parts of 3 rows make a whole of 2");
        assert_eq!(
            refusal(Sharded::Receive { stage: 0, lane: 0 }, &[]),
            "what is received has a declared type"
        );
        assert_eq!(refusal(Sharded::AllReduce, &[]), "all_reduce takes 1..=1 operands, found 0");
    }
}
