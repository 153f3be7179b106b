//! Activations that enter at the north edge or leave at the south edge, passed on from row to row; and sums over all rows,
//! which leave there too.
//!
//! Tokens go by in their order; a row keeps (or adds) its own and passes the others on. Which tokens those are needs no
//! switches: counts are affine in the row.

use crate::wafer::channel::Channel;
use crate::wafer::code::{dims, from, op, send, slice, strided, to, words};
use crate::wafer::error::WaferError;
use crate::wafer::placed::{Layout, Placed, PlacedOp};
use crate::wafer::site::Site;
use lapidary_runtime_sim::program::{Affine, OpKind, Slice, Stmt, Wire};

/// Keeps the tokens of this row, then passes on those of the rows below.
pub fn enter(site: &Site, at: &PlacedOp, value: &str) -> Result<Vec<Stmt>, WaferError> {
    let (features, tokens) = shape(site, at, value)?;
    let come = || words(site.channel(Channel::Enter(site.north_parity())), site.wire());
    let on = send(site.channel(Channel::Enter(site.parity())), site.wire());
    let own = to(strided(value, 0, &[1, tokens]));
    let below = Affine::constant(site.placed.tokens.total() as i64 - tokens) - site.first_token();
    let mut body = vec![op(OpKind::Mov, own, [come()], vec![tokens.into(), features.into()])];
    if site.at.y + 1 < site.placed.rows() {
        body.push(op(OpKind::Mov, on, [come()], vec![below, features.into()]));
    }
    Ok(body)
}

/// Passes on the tokens of the rows above, then sends those of this row.
pub fn leave(site: &Site, at: &PlacedOp, value: &str) -> Result<Vec<Stmt>, WaferError> {
    let (features, tokens) = shape(site, at, value)?;
    let come = words(site.channel(Channel::Leave(site.north_parity())), site.wire());
    let on = || send(site.channel(Channel::Leave(site.parity())), site.wire());
    let own = from(strided(value, 0, &[1, tokens]));
    let mut body = Vec::new();
    if site.at.y > 0 {
        body.push(op(OpKind::Mov, on(), [come], vec![site.first_token(), features.into()]));
    }
    body.push(op(OpKind::Mov, on(), [own], vec![tokens.into(), features.into()]));
    Ok(body)
}

/// Takes the own features of the one token, which all rows of a column read.
pub fn enter_shared(site: &Site, at: &PlacedOp, value: &str) -> Result<Vec<Stmt>, WaferError> {
    let (features, _) = shape(site, at, value)?;
    let come = words(site.weights(), site.wire());
    Ok(vec![op(OpKind::Mov, to(slice(value, 0)), [come], dims([features]))])
}

/// The way out at the east edge of the rows that have features of a value.
pub fn aside(placed: &Placed, value: &str) -> Channel {
    let features = placed.values.get(value).map_or(0, |layout| placed.features(*layout));
    Channel::Aside(features.min(placed.rows()))
}

/// Sends the own features of the one token from the last column, which has them as all columns do.
pub fn leave_shared(site: &Site, at: &PlacedOp, value: &str) -> Result<Vec<Stmt>, WaferError> {
    let layout = site.placed.layout(at, value)?;
    if !layout.is_over_rows() {
        let detail = format!("{value} must lie over rows to leave at the east edge");
        return Err(WaferError::Layout { op: at.name.clone(), detail });
    }
    let on = send(site.channel(aside(site.placed, value)), Wire::F32);
    let own = dims([site.features(layout).0.into()]);
    Ok(if site.is_last() { vec![op(OpKind::Mov, on, [from(slice(value, 0))], own)] } else { vec![] })
}

fn shape(site: &Site, at: &PlacedOp, value: &str) -> Result<(i64, i64), WaferError> {
    let layout = site.placed.layout(at, value)?;
    if !matches!(layout, Layout::Columns { .. }) {
        let detail = format!("{value} must lie over all columns to enter or leave");
        return Err(WaferError::Layout { op: at.name.clone(), detail });
    }
    Ok((i64::from(site.features(layout).0), i64::from(site.tokens())))
}

/// Sends sums of this PE down the column, each added to those of the rows above, and out at the south edge in f32.
pub fn sums(site: &Site, own: Slice, count: i64) -> Vec<Stmt> {
    let come = words(site.channel(Channel::Leave(site.north_parity())), Wire::F32);
    let on = send(site.channel(Channel::Leave(site.parity())), Wire::F32);
    vec![match site.at.y {
        0 => op(OpKind::Mov, on, [from(own)], dims([count])),
        _ => op(OpKind::Add, on, [from(own), come], dims([count])),
    }]
}
