//! Sum of a value over all tokens, for each feature: the derivative by a bias. Every PE sums over its own tokens; the
//! sums run down the column and out at the south edge.

use super::{Scratch, scratch_name, stream};
use crate::wafer::code::{dims, from, number, op, slice, strided, to};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{ColumnSum, Layout, PlacedOp};
use crate::wafer::site::Site;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{OpKind, Stmt};

/// Statements of one PE.
pub fn code(site: &Site, at: &PlacedOp, sum: &ColumnSum) -> Result<Vec<Stmt>, WaferError> {
    let features = features(site, at, sum)?;
    let result = scratch_name(&at.name, "result");
    let sums = || strided(&result, 0, &[1, 0]);
    let value = from(slice(&sum.input, 0));
    let lengths = dims([features, i64::from(site.tokens())]);
    let mut body = vec![
        op(OpKind::Mov, to(slice(&result, 0)), [number(0.0)], dims([features])),
        op(OpKind::Add, to(sums()), [from(sums()), value], lengths),
    ];
    body.extend(stream::sums(site, slice(&result, 0), features));
    Ok(body)
}

/// One sum per feature.
pub fn scratch(site: &Site, at: &PlacedOp, sum: &ColumnSum) -> Result<Vec<Scratch>, WaferError> {
    Ok(vec![Scratch::new("result", DType::F32, features(site, at, sum)? as u32)])
}

fn features(site: &Site, at: &PlacedOp, sum: &ColumnSum) -> Result<i64, WaferError> {
    let layout = site.placed.layout(at, &sum.input)?;
    if matches!(layout, Layout::HeadTokens { .. }) {
        let detail = format!("{} must lie with features over columns", sum.input);
        return Err(WaferError::Layout { op: at.name.clone(), detail });
    }
    Ok(i64::from(site.features(layout).0))
}
