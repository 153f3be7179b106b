//! Decisions that are made already, as the search reads them.

use super::gpu::{Degrees, of};
use crate::plan::{GpuPlan, PARTIAL, Recompute, Sharding};
use crate::request::Pins;

/// Values that a plan must have; `None` leaves a decision open.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Only {
    pub tp: Option<u64>,
    pub pp: Option<u64>,
    pub dp: Option<u64>,
    pub cp: Option<u64>,
    pub ep: Option<u64>,
    pub micro_batch: Option<u64>,
    pub sharding: Option<Sharding>,
    /// Recomputation, and whether of a part of the layers.
    pub recompute: Option<(Recompute, bool)>,
    pub recompute_layers: Option<u64>,
    pub sequence_parallel: Option<bool>,
    pub chunks: Option<u64>,
    pub first_layers: Option<u64>,
    pub last_layers: Option<u64>,
}

impl Only {
    /// What the pins of a request fix.
    pub fn of(pins: &Pins) -> Only {
        let number = |key: &str| pins.get(key).and_then(|value| value.parse().ok());
        let word = |key: &str| pins.get(key);
        Only {
            tp: number("tp"),
            pp: number("pp"),
            dp: number("dp"),
            cp: number("cp"),
            ep: number("ep"),
            micro_batch: number("micro-batch"),
            sharding: word("sharding")
                .and_then(|word| Sharding::ALL.into_iter().find(|one| one.name() == word)),
            recompute: word("recompute").and_then(|word| match word {
                PARTIAL => Some((Recompute::Full, true)),
                _ => Recompute::ALL.into_iter().find(|one| one.name() == word).map(|one| (one, false)),
            }),
            recompute_layers: number("recompute-layers"),
            sequence_parallel: word("sequence-parallel").map(|word| word == "on"),
            chunks: number("chunks"),
            first_layers: number("first-stage"),
            last_layers: number("last-stage"),
        }
    }

    /// Whether the degrees alone are allowed.
    pub fn degrees(&self, (tp, cp, pp, dp): Degrees) -> bool {
        open(self.tp, tp) && open(self.cp, cp) && open(self.pp, pp) && open(self.dp, dp)
    }

    /// Whether stages of these sizes are allowed.
    pub fn stages(&self, chunks: u64, first: u64, last: u64) -> bool {
        open(self.chunks, chunks) && open(self.first_layers, first) && open(self.last_layers, last)
    }

    /// Whether this recomputation is allowed.
    pub fn again(&self, recompute: Recompute, layers: Option<u64>) -> bool {
        open(self.recompute, (recompute, layers.is_some()))
            && (self.recompute_layers.is_none() || self.recompute_layers == layers)
    }

    /// Whether a whole plan is allowed.
    pub fn plan(&self, plan: &GpuPlan) -> bool {
        self.degrees(of(plan))
            && open(self.ep, plan.ep)
            && open(self.micro_batch, plan.micro_batch)
            && open(self.sharding, plan.sharding)
            && self.again(plan.recompute, plan.recompute_layers)
            && open(self.sequence_parallel, plan.sequence_parallel)
            && self.stages(plan.chunks, plan.first_layers, plan.last_layers)
    }
}

/// Whether a decision is open or made so.
pub(crate) fn open<T: PartialEq>(wanted: Option<T>, found: T) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}
