//! Straight pieces of code that only compute on memory, with lengths that never change: their cost is one sum.

use crate::lower::{Env, Instr, Linear, LoweredClass, LoweredOp, Source};

/// The cost of the instructions from one to the next that is none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Index of the instruction behind them.
    pub next: usize,
    /// Cycles that compute.
    pub busy: f64,
    /// Cycles that start ops.
    pub issue: f64,
}

/// By task and instruction: the work that begins there.
pub type Works = Vec<Vec<Option<Work>>>;

/// The works of a class.
pub fn works(class: &LoweredClass) -> Works {
    class.tasks.iter().map(|task| of_code(&task.code)).collect()
}

fn of_code(code: &[Instr]) -> Vec<Option<Work>> {
    let mut works: Vec<Option<Work>> = vec![None; code.len() + 1];
    for (pc, instr) in code.iter().enumerate().rev() {
        if let Instr::Op(op) = instr
            && let Some((busy, issue)) = cost(op)
        {
            let rest = works[pc + 1].unwrap_or(Work { next: pc + 1, ..Work::default() });
            works[pc] = Some(Work { next: rest.next, busy: rest.busy + busy, issue: rest.issue + issue });
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
