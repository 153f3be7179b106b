//! Which reduction along a row takes least: each is priced from its own steps, and the cheapest is chosen.

use super::{balanced_groups, chain_reduce, tree_reduce, two_phase_reduce};
use crate::FabricSpec;
use crate::program::WaferProgram;
pub use lapidary_hardware::price::wafer::Reduce;
use lapidary_hardware::price::wafer::{self, Links};

/// Whether there is a program of it: trees over a power of two only.
fn is_known(kind: Reduce, pes: u32) -> bool {
    kind != Reduce::Tree || pes.is_power_of_two()
}

/// The program of a reduction over `pes` PEs and vectors of `words`; `None` for a tree over no power of two.
pub fn reduce_program(kind: Reduce, pes: u32, words: u32) -> Option<WaferProgram> {
    is_known(kind, pes).then(|| match kind {
        Reduce::Chain => chain_reduce(pes, words),
        Reduce::Tree => tree_reduce(pes, words),
        Reduce::TwoPhase => two_phase_reduce(&balanced_groups(pes), words),
    })
}

/// The reduction that takes least over `pes` PEs and vectors of `words`, by the price that the compiler picks by.
pub fn pick_reduce(pes: u32, words: u32, fabric: &FabricSpec) -> Reduce {
    let links = Links { hop: fabric.hop_cycles.into(), ramp: fabric.ramp_cycles.into() };
    let known = Reduce::ALL.into_iter().filter(|kind| is_known(*kind, pes));
    wafer::pick_reduce(known, pes.into(), words.into(), links)
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
                    let checked = check(&reduce_program(kind, pes, words)?, &fabric).unwrap();
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
