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
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, TensorMap, Var};

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
    let table = |name: &str| from(strided(name, 0, &[0, pairs, 1]));
    let (a, b) = (|| slice(&name("a"), 0), || slice(&name("b"), 0));
    let (first, second) = (|| of_head(0), || of_head(second));
    let (cos, sin) = (|| table(&name("cos")), || table(&name("sin")));
    let lengths = || dims([heads, tokens, pairs]);
    Ok(vec![
        op(OpKind::Mul, to(a()), [from(first()), cos()], lengths()),
        op(OpKind::Mul, to(b()), [from(second()), sin()], lengths()),
        op(OpKind::Sub, to(a()), [from(a()), from(b())], lengths()),
        op(OpKind::Mul, to(b()), [from(second()), cos()], lengths()),
        op(OpKind::Fmac, to(second()), [from(first()), sin(), from(b())], lengths()),
        op(OpKind::Mov, to(first()), [from(a())], lengths()),
    ])
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
