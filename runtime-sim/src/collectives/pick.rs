//! Which reduction along a row takes least: each is priced from its own steps, and the cheapest is chosen.

use super::{balanced_groups, chain_reduce, tree_reduce, two_phase_reduce};
use crate::FabricSpec;
use crate::program::WaferProgram;

/// A reduction along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Sums pass from neighbour to neighbour.
    Chain,
    /// Sums meet pairwise; a power of two.
    Tree,
    /// Chains inside groups, then a chain over their first PEs.
    TwoPhase,
}

impl Reduce {
    /// All kinds.
    pub const ALL: [Reduce; 3] = [Reduce::Chain, Reduce::Tree, Reduce::TwoPhase];

    /// The program over `pes` PEs and vectors of `words`; `None` for a tree over no power of two.
    pub fn program(self, pes: u32, words: u32) -> Option<WaferProgram> {
        match self {
            Reduce::Chain => Some(chain_reduce(pes, words)),
            Reduce::Tree => pes.is_power_of_two().then(|| tree_reduce(pes, words)),
            Reduce::TwoPhase => Some(two_phase_reduce(&balanced_groups(pes), words)),
        }
    }

    /// Cycles by its steps: the words that the busiest PE takes in one after the other, the way of the farthest sum, and
    /// a ramp up, a ramp down and an addition for each time that a sum is handed on.
    pub fn cycles(self, pes: u32, words: u32, fabric: &FabricSpec) -> u64 {
        let (words, far) =
            (u64::from(words), u64::from(pes.saturating_sub(1)) * u64::from(fabric.hop_cycles));
        let handed_on = 2 * u64::from(fabric.ramp_cycles) + 1;
        let (taken, times) = match self {
            Reduce::Chain => (1, pes.saturating_sub(1)),
            Reduce::Tree => (pes.max(1).ilog2(), pes.max(1).ilog2()),
            Reduce::TwoPhase => {
                let groups = balanced_groups(pes);
                let last = groups.last().copied().unwrap_or(1);
                (2, last - 1 + groups.len() as u32 - 1)
            }
        };
        words * u64::from(taken) + far + handed_on * u64::from(times)
    }
}

/// The reduction that takes least over `pes` PEs and vectors of `words`.
pub fn pick_reduce(pes: u32, words: u32, fabric: &FabricSpec) -> Reduce {
    let known = Reduce::ALL.into_iter().filter(|kind| *kind != Reduce::Tree || pes.is_power_of_two());
    known.min_by_key(|kind| kind.cycles(pes, words, fabric)).unwrap_or(Reduce::Chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, event};
    use std::collections::BTreeMap;

    /// At level event nothing else is faster by more than 2 % or two cycles.
    #[test]
    fn the_reduction_picked_is_the_fastest_at_level_event() {
        let fabric = FabricSpec::wse2();
        let mut picked = Vec::new();
        for pes in [2, 4, 8, 11, 16, 32, 50, 64, 128] {
            for words in [1, 2, 8, 32, 128, 512, 1024] {
                let time = |kind: Reduce| {
                    let checked = check(&kind.program(pes, words)?, &fabric).unwrap();
                    Some(event::simulate(&checked, BTreeMap::new()).unwrap().report.cycles)
                };
                let best = Reduce::ALL.into_iter().filter_map(time).min().unwrap();
                let kind = pick_reduce(pes, words, &fabric);
                let own = time(kind).unwrap();
                assert!(
                    own <= best + 2 || own as f64 <= 1.02 * best as f64,
                    "{pes} x {words}: {own}, {best}"
                );
                if !picked.contains(&kind) {
                    picked.push(kind);
                }
            }
        }
        assert_eq!(picked.len(), Reduce::ALL.len(), "each is the best somewhere: {picked:?}");
    }
}
