//! Straight pieces of code that only compute on memory, with lengths that never change: their cost is one sum.

use crate::lower::{Env, Instr, Linear, LoweredClass, LoweredOp, Source, segments};
use crate::parallel;

/// The cost of the instructions from one to the next that is none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Number of instructions.
    pub count: usize,
    /// Cycles that compute.
    pub busy: f64,
    /// Cycles that start ops.
    pub issue: f64,
}

/// By number of a segment and instruction in it: the work that begins there.
pub type Works = Vec<Vec<Option<Work>>>;

/// The works of all segments of some classes.
pub fn works(classes: &[LoweredClass]) -> Works {
    parallel::map(&segments(classes), |segment| of_code(&segment.instrs))
}

fn of_code(code: &[Instr]) -> Vec<Option<Work>> {
    let mut works: Vec<Option<Work>> = vec![None; code.len() + 1];
    for (pc, instr) in code.iter().enumerate().rev() {
        if let Instr::Op(op) = instr
            && let Some((busy, issue)) = cost(op)
        {
            let rest = works[pc + 1].unwrap_or_default();
            works[pc] =
                Some(Work { count: rest.count + 1, busy: rest.busy + busy, issue: rest.issue + issue });
        }
    }
    works
}

/// Busy and issue cycles of an op on memory whose lengths never change.
fn cost(op: &LoweredOp) -> Option<(f64, f64)> {
    let waits = op.streams() || op.src.iter().any(|s| matches!(s, Source::Scalar { .. }));
    let lengths: Option<Vec<u64>> =
        op.dims.iter().map(|d: &Linear| d.as_constant().map(|n| n.max(0) as u64)).collect();
    let elements: u64 = lengths.filter(|_| !waits)?.into_iter().product();
    let price = (op.memory_cycles(&Env::default()) as f64, op.price.issue as f64);
    Some(if elements > 0 { price } else { (0.0, 0.0) })
}
