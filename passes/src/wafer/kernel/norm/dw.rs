//! Derivative of a norm by its weight.
//!
//! The statistics are those of the norm, made again by one exchange over the row. Every PE sums the products of its
//! normalised features and their gradients over its tokens; the sums run down the column and out at the south edge.

use super::statistics::Statistics;
use super::width;
use crate::wafer::code::{dims, from, number, op, repeat, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::kernel::{Scratch, scratch_name, stream};
use crate::wafer::placed::{NormDw, PlacedOp};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Stmt, Var};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, norm: &NormDw) -> Result<Vec<Stmt>, WaferError> {
    let k = statistics(site, at, norm)?;
    let result = scratch_name(&at.name, "result");
    let gradient = from(slice(&norm.gradient, Affine::term(Var::Loop(0), k.tokens)));
    let row = from(slice(&scratch_name(&at.name, "row"), 0));
    let one = || strided(&result, Affine::from(Var::Loop(0)), &[0]);
    let mut body = k.statements();
    body.push(op(OpKind::Mov, to(slice(&result, 0)), [number(0.0)], dims([k.features])));
    let mut feature = k.normalised();
    feature.push(op(OpKind::Fmac, to(one()), [row, gradient, from(one())], dims([k.tokens])));
    body.extend(repeat(k.features, feature));
    body.extend(stream::sums(site, slice(&result, 0), k.features));
    Ok(body)
}

/// Sums over the row and over the tokens.
pub fn scratch(site: &Site, at: &PlacedOp, norm: &NormDw) -> Result<Vec<Scratch>, WaferError> {
    let k = statistics(site, at, norm)?;
    let mut scratch = k.scratch();
    scratch.push(Scratch::new("result", DType::F32, k.features as u32));
    Ok(scratch)
}

fn statistics<'a>(site: &'a Site<'a>, at: &PlacedOp, norm: &'a NormDw) -> Result<Statistics<'a>, WaferError> {
    let width = width(site, at, &[&norm.input, &norm.gradient])?;
    Ok(Statistics::new(site, at, &norm.input, norm.kind, norm.eps, width))
}
