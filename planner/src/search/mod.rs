//! Looks for the best plans and keeps the reasons against the others.
//!
//! Plans for GPUs are found by branch and bound ([`walk`]) over the decisions of [`gpu`]; plans for wafers are all
//! priced ([`wafer`]).

pub(crate) mod gpu;
pub(crate) mod nearby;
pub(crate) mod only;
pub(crate) mod wafer;
pub(crate) mod walk;

use crate::cost::Cost;
use crate::document::ErrorBar;
use crate::memory::Memory;
use crate::plan::Degrees;
use crate::request::Objective;
use lapidary_hardware::Bytes;
use std::cmp::Ordering;

/// A plan that was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Evaluated {
    pub degrees: Degrees,
    pub cost: Option<Cost>,
    pub memory: Memory,
    pub verdict: Verdict,
    /// What its time may be off by.
    pub bar: Option<ErrorBar>,
}

/// Whether a plan can be used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    Feasible,
    /// Memory is over by this much.
    Over(Bytes),
    /// It cannot be built; the reason as a sentence. Only the degrees count.
    Impossible(String),
}

impl Evaluated {
    pub fn feasible(&self) -> bool {
        self.verdict == Verdict::Feasible
    }

    fn impossible(degrees: Degrees, reason: String) -> Evaluated {
        Evaluated {
            degrees,
            cost: None,
            memory: Memory::default(),
            verdict: Verdict::Impossible(reason),
            bar: None,
        }
    }

    fn priced(degrees: Degrees, cost: Cost, memory: Memory, capacity: Bytes) -> Evaluated {
        let over = memory.total() - capacity;
        let verdict = if over.0 > 0.0 { Verdict::Over(over) } else { Verdict::Feasible };
        Evaluated { degrees, cost: Some(cost), memory, verdict, bar: None }
    }
}

/// Feasible plans by the objective, then rejected ones by what they are over, then impossible ones; names last,
/// so that the order is the same every time.
pub(crate) fn order(a: &Evaluated, b: &Evaluated, objective: Objective) -> Ordering {
    let key = |plan: &Evaluated| {
        let time = plan.cost.as_ref().map_or(f64::INFINITY, |cost| cost.time().0);
        let bytes = plan.memory.total().0;
        match (&plan.verdict, objective) {
            (Verdict::Feasible, Objective::StepTime) => (0, time, bytes),
            (Verdict::Feasible, Objective::Memory) => (0, bytes, time),
            (Verdict::Over(over), _) => (1, over.0, time),
            (Verdict::Impossible(_), _) => (2, 0.0, 0.0),
        }
    };
    let (a_key, b_key) = (key(a), key(b));
    let numbers = a_key.0.cmp(&b_key.0).then(a_key.1.total_cmp(&b_key.1)).then(a_key.2.total_cmp(&b_key.2));
    numbers.then(a.degrees.cmp(&b.degrees))
}

/// Divisors of a number, ascending.
pub(crate) fn divisors(n: u64) -> Vec<u64> {
    let small: Vec<u64> = (1..).take_while(|d| d * d <= n).filter(|d| n.is_multiple_of(*d)).collect();
    let large: Vec<u64> = small.iter().rev().map(|d| n / d).filter(|d| d * d > n).collect();
    small.into_iter().chain(large).collect()
}
