//! How many rows each region gets: those that its weights need, those that its activations need, and of the rest one more
//! again and again for the layers that take longest.

use super::feeder::Feeders;
use super::{Region, WaferError, WaferSpec};
use crate::wafer::analytic;
use crate::wafer::channel::Colours;
use crate::wafer::host::host;
use crate::wafer::memory_peak;
use crate::wafer::placed::{Placed, Tokens};
use lapidary_hardware::Wafer;
use std::collections::BTreeSet;

/// Cycles of a micro-batch in closed form.
pub fn cycles(placed: &Placed, wafer: &Wafer) -> u64 {
    analytic::cycles(placed, wafer).map_or(u64::MAX, |ops| ops.iter().map(|op| op.cycles).sum())
}

/// Shares the rows of the grid out.
///
/// # Errors
/// [`WaferError::Size`] where there are not enough for the least; [`WaferError::Memory`] where no number would do.
pub fn share(regions: &mut [Region], wafer: &Wafer, spec: &WaferSpec, height: u32) -> Result<(), WaferError> {
    let kinds: BTreeSet<usize> = regions.iter().map(|region| region.kind).collect();
    for kind in &kinds {
        let Some(first) = regions.iter().find(|region| region.kind == *kind) else { continue };
        let (rows, feeders) = (least_rows(&first.placed, height, spec)?, feeder_rows(&first.placed, spec)?);
        for region in regions.iter_mut().filter(|region| region.kind == *kind) {
            region.placed = with_rows(&region.placed, rows);
            region.feeder_rows = feeders;
        }
    }
    let used = |regions: &[Region]| regions.iter().map(|r| r.placed.tokens.rows + r.feeder_rows).sum::<u32>();
    let needed = used(regions);
    if needed > height {
        let hint = format!("the {} regions of the model need {needed}", regions.len());
        return Err(WaferError::Size { what: "rows of the grid".into(), found: height.into(), hint });
    }
    // The slowest kind gets a row for each of its regions, as long as there is one and it makes a difference.
    let mut left = height - needed;
    loop {
        let slowest = regions.iter().map(|region| (cycles(&region.placed, wafer), region.kind)).max();
        let Some((slow, kind)) = slowest else { return Ok(()) };
        let many = regions.iter().filter(|region| region.kind == kind).count() as u32;
        let faster = regions.iter().find(|region| region.kind == kind).and_then(|region| {
            let most = (left / many).min(region.placed.tokens.length - region.placed.tokens.rows);
            let more = |n: u32| with_rows(&region.placed, region.placed.tokens.rows + n);
            (1..=most).find(|n| cycles(&more(*n), wafer) < slow)
        });
        let Some(more) = faster else { return Ok(()) };
        left -= more * many;
        for region in regions.iter_mut().filter(|region| region.kind == kind) {
            region.placed = with_rows(&region.placed, region.placed.tokens.rows + more);
        }
    }
}

fn with_rows(placed: &Placed, rows: u32) -> Placed {
    Placed { height: rows, tokens: Tokens { rows, ..placed.tokens }, ..placed.clone() }
}

/// Fewest rows whose memory holds the activations of a sequence.
fn least_rows(placed: &Placed, height: u32, spec: &WaferSpec) -> Result<u32, WaferError> {
    let most = height.min(placed.tokens.length).max(1);
    let mut rows = 1;
    loop {
        match memory_peak(&with_rows(placed, rows), spec) {
            Ok(_) => return Ok(rows),
            Err(WaferError::Memory { .. }) if rows < most => rows += 1,
            Err(fault) => return Err(fault),
        }
    }
}

/// Rows that hold the weights.
fn feeder_rows(placed: &Placed, spec: &WaferSpec) -> Result<u32, WaferError> {
    let host = host(placed, &Colours::default(), spec.bytes_per_cycle)?;
    Ok(Feeders::of(placed, &host.streams, spec).rows())
}
