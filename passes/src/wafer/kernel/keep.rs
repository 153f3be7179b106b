//! Copies of a value, one behind the other for every micro-batch, that the host reads after the run.

use super::{Scratch, scratch_name};
use crate::wafer::class::part_of;
use crate::wafer::code::{MICRO_BATCH, dims, from, op, slice, to};
use crate::wafer::error::WaferError;
use crate::wafer::placed::PlacedOp;
use crate::wafer::site::Site;
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, TensorMap, Var};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, value: &str) -> Result<Vec<Stmt>, WaferError> {
    let elements = i64::from(site.elements(site.placed.layout(at, value)?));
    let copy = slice(&scratch_name(&at.name, "copies"), Affine::term(MICRO_BATCH, elements));
    Ok(vec![op(OpKind::Mov, to(copy), [from(slice(value, 0))], dims([elements]))])
}

/// Room for the copies.
pub fn scratch(site: &Site, at: &PlacedOp, value: &str, tensor: &str) -> Result<Vec<Scratch>, WaferError> {
    let layout = site.placed.layout(at, value)?;
    let micro_batches = site.placed.micro_batches;
    let elements = site.elements(layout).saturating_mul(micro_batches);
    let of_one = site.placed.tokens.total() as i64 * i64::from(site.placed.features(layout));
    let store = part_of(site, layout, tensor).map(|part| TensorMap {
        tensor: part.tensor,
        dims: std::iter::once(i64::from(micro_batches).into()).chain(part.dims).collect(),
        index: inner(&part.index).plus(Var::Dim(0), of_one),
    });
    Ok(vec![Scratch { store, ..Scratch::new("copies", site.placed.dtype, elements) }])
}

/// An index with one more dimension before the others.
fn inner(index: &Affine) -> Affine {
    let shift = |(var, factor): (&Var, &i64)| match var {
        Var::Dim(n) => (Var::Dim(n + 1), *factor),
        other => (*other, *factor),
    };
    Affine { base: index.base, terms: index.terms.iter().map(shift).collect() }
}
