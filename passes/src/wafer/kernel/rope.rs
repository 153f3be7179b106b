//! Rotary position embedding: local, because a PE holds all features of a head for its tokens.
//!
//! Half-split and interleaved pairs differ only in the strides of the slices. Cosines and sines of the PE's own
//! positions are constant tables, computed by the host and there from the beginning. The derivative turns back: the same
//! code with the tables of the opposite angles.

use super::{Scratch, scratch_name};
use crate::wafer::code::{dims, from, op, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Layout, Pairing, PlacedOp, Rope};
use crate::wafer::site::{HeadSite, Site};
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Slice, Stmt, TensorMap, Var};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, rope: &Rope) -> Result<Vec<Stmt>, WaferError> {
    let Some((head, heads)) = shape(site, at, rope)? else { return Ok(vec![]) };
    let (tokens, dim, pairs) =
        (i64::from(head.tokens()), i64::from(head.shape.dim), i64::from(rope.rotated / 2));
    let name = |scratch: &str| scratch_name(&at.name, scratch);
    let (second, step) = match rope.pairing {
        Pairing::Half => (pairs, 1),
        Pairing::Interleaved => (1, 2),
    };
    let of_head = |first: i64| strided(&rope.value, first, &[tokens * dim, dim, step]);
    let table = |table: &str| strided(&name(table), 0, &[0, pairs, 1]);
    let scratch = ["a", "b"].map(name);
    let halves = [of_head(0), of_head(second)];
    Ok(turned(halves, [table("cos"), table("sin")], &scratch, &dims([heads, tokens, pairs])).into())
}

/// Turns two halves of features in place: `(x, y)` becomes `(x cos - y sin, x sin + y cos)`, by way of two buffers of
/// scratch; all of them walk over `lengths`.
pub(super) fn turned(
    [x, y]: [Slice; 2],
    [cos, sin]: [Slice; 2],
    scratch: &[String; 2],
    lengths: &[Affine],
) -> [Stmt; 6] {
    let [a, b] = [0, 1].map(|half| slice(&scratch[half], 0));
    let [x, y, cos, sin, a, b] = [&x, &y, &cos, &sin, &a, &b];
    let two = |kind, into: &Slice, left: &Slice, right: &Slice| {
        op(kind, to(into.clone()), [from(left.clone()), from(right.clone())], lengths.to_vec())
    };
    let add = [from(x.clone()), from(sin.clone()), from(b.clone())];
    [
        two(OpKind::Mul, a, x, cos),
        two(OpKind::Mul, b, y, sin),
        two(OpKind::Sub, a, a, b),
        two(OpKind::Mul, b, y, cos),
        op(OpKind::Fmac, to(y.clone()), add, lengths.to_vec()),
        op(OpKind::Mov, to(x.clone()), [from(a.clone())], lengths.to_vec()),
    ]
}

/// Two halves of the turned features, and the tables.
pub fn scratch(site: &Site, at: &PlacedOp, rope: &Rope) -> Result<Vec<Scratch>, WaferError> {
    let Some((head, heads)) = shape(site, at, rope)? else { return Ok(vec![]) };
    let pairs = rope.rotated / 2;
    let table = head.tokens().saturating_mul(pairs);
    let half = table.saturating_mul(heads as u32);
    let load = |tensor: &str| Some(positions(site, &head, scratch_name(&at.name, tensor), pairs));
    Ok(vec![
        Scratch::new("a", DType::F32, half),
        Scratch::new("b", DType::F32, half),
        Scratch { load: load("cos"), ..Scratch::new("cos", DType::F32, table) },
        Scratch { load: load("sin"), ..Scratch::new("sin", DType::F32, table) },
    ])
}

/// Rows of a table of `pairs` columns for the positions of the PE's tokens.
fn positions(site: &Site, head: &HeadSite, tensor: String, pairs: u32) -> TensorMap {
    let first = site.first_position() + head.first_token();
    let pairs = i64::from(pairs);
    let index = (first * pairs).plus(Var::Dim(0), pairs).plus(Var::Dim(1), 1);
    TensorMap { tensor, dims: vec![Affine::constant(i64::from(head.tokens())), pairs.into()], index }
}

/// The PE's place in its head block and the number of heads, `None` outside the blocks.
fn shape(site: &Site, at: &PlacedOp, rope: &Rope) -> Result<Option<(HeadSite, i64)>, WaferError> {
    let heads = site.placed.heads(&at.name)?;
    let Layout::HeadTokens { queries } = site.placed.layout(at, &rope.value)? else {
        let detail = format!("{} must lie over the tokens of heads", rope.value);
        return Err(WaferError::Layout { op: at.name.clone(), detail });
    };
    if rope.frequencies.len() as u64 * 2 != u64::from(rope.rotated) {
        let detail = format!(
            "{} frequencies for {} rotated features; each turns two",
            rope.frequencies.len(),
            rope.rotated
        );
        return Err(WaferError::Layout { op: at.name.clone(), detail });
    }
    if rope.rotated % 2 == 1 || rope.rotated > heads.dim {
        let detail =
            format!("{} rotated features of {} are not an even part of a head", rope.rotated, heads.dim);
        return Err(WaferError::Layout { op: at.name.clone(), detail });
    }
    let count = if queries { heads.kv * heads.ways } else { heads.kv };
    Ok(site.head().map(|head| (head, i64::from(count))))
}
