//! Level *analytic*: the same program and the same prices in closed form, statement by statement.
//!
//! Every PE's code falls into pieces, its outermost statements: what one costs, which words it reads and sends, and when
//! within it, are sums of products of counts and prices, whatever the counts are. A piece begins when the one before is
//! done and when its words come in time, the first for its first read and the last for its last one. Pieces that wait
//! for each other in a circle, such as those of a ring, run side by side: together they take as long as the PE with
//! most work, and the way once round. Where they exchange words turn by turn, a turn begins when the one before has its
//! words and the next one room for them. Of rows in a line, those between the first periods and the last one are skipped as at
//! level flow, and the last one must end as the first ones say. Left out beside what level flow leaves out: how PEs wait for each other within a
//! piece. A program whose PEs wait for room in queues for ever is refused as at level flow.

mod order;
mod pieces;
mod solve;
mod turns;

use crate::check::Checked;
use crate::flow::{Engine, FlowError, Skip, timed_by};
use crate::program::WaferProgram;
use crate::report::Report;
use crate::trace::Trace;

/// Name of the level in reports.
const LEVEL: &str = "analytic";

/// Times a checked program in closed form.
///
/// # Errors
/// [`FlowError::LeftOut`] for routes with switch positions and control tasks, [`FlowError::Standstill`] where PEs wait for
/// room in queues for ever.
pub fn time(program: &Checked<WaferProgram>) -> Result<Report, FlowError> {
    time_traced(program).map(|(report, _)| report)
}

/// As [`time`], with the phases of one PE of each class as tracks.
///
/// # Errors
/// As [`time`].
pub fn time_traced(program: &Checked<WaferProgram>) -> Result<(Report, Trace), FlowError> {
    let (report, trace) =
        timed_by(program, &mut |engine: &mut Engine, skips: &[Skip]| solve::solve(engine, skips))?;
    Ok((Report { level: LEVEL.into(), ..report }, trace))
}
