//! Makes the ops of one rank's part of a model.

use super::build::{Built, count, result};
use crate::at::{At, New};
use crate::raw::Value;
use lapidary_models::TensorType;
use lapidary_models::op::Sharded;

/// The op of a part of a model; `ty` is what `nn.receive` gets, the others' result follows.
///
/// # Errors
/// [`crate::IrError::Invalid`] with the dialect's message when shapes or attributes do not fit.
pub fn sharded<'c>(at: At<'c>, op: &Sharded, operands: &[Value<'c>], ty: &TensorType) -> Built<'c> {
    let name = format!("nn.{}", op.name());
    let new = match op {
        Sharded::Receive { .. } => New::of(&name, &[at.context().tensor(ty)]),
        _ => New::inferred(&name),
    };
    let new = new.reads(operands);
    let new = match *op {
        Sharded::EmbedPart { first } => new.with("first", count(at, first)),
        Sharded::AllReduce => new,
        Sharded::AllGather { width } => new.with("width", count(at, width)),
        Sharded::ReduceScatter { ranks } => new.with("ranks", count(at, ranks)),
        Sharded::GatherRows { batch, seq } => new.with("batch", count(at, batch)).with("seq", count(at, seq)),
        Sharded::TakeRows { first, rows } | Sharded::EmbedPartDw { first, rows } => {
            new.with("first", count(at, first)).with("rows", count(at, rows))
        }
        Sharded::Take { first, length, held } => new
            .with("first", count(at, first))
            .with("length", count(at, length))
            .with("held", count(at, held)),
        Sharded::Send { stage, lane } | Sharded::Receive { stage, lane } => {
            new.with("stage", count(at, stage)).with("lane", count(at, lane))
        }
    };
    result(at, &new)
}
