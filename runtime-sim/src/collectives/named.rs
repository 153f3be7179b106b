//! Collectives by the names that the published cost model gives them (arXiv 2404.15888).

use super::{
    balanced_groups, broadcast, broadcast_2d, chain_reduce, reduce_broadcast, ring_all_reduce, star_reduce,
    tree_reduce, two_phase_reduce, xy_reduce,
};
use crate::program::WaferProgram;

/// A collective over a row of PEs, or over a square of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collective {
    /// Everybody sends to the root.
    Star,
    /// Sums pass from neighbour to neighbour.
    Chain,
    /// Sums meet pairwise; a power of two.
    Tree,
    /// Chains of about the square root, then a chain over their heads.
    TwoPhase,
    /// One vector to a row.
    Broadcast,
    /// A chain, and its sum to everybody.
    ReduceBroadcast,
    /// Parts of the vector travel the ring twice.
    RingAllReduce,
    /// One vector to a square.
    Broadcast2d,
    /// Chains along rows, then along a column.
    XyReduce,
}

const NAMES: [(&str, Collective); 9] = [
    ("star", Collective::Star),
    ("chain", Collective::Chain),
    ("tree", Collective::Tree),
    ("two_phase", Collective::TwoPhase),
    ("broadcast_1d", Collective::Broadcast),
    ("reduce_bcast_chain", Collective::ReduceBroadcast),
    ("ring_allreduce", Collective::RingAllReduce),
    ("bcast_2d_PxP", Collective::Broadcast2d),
    ("xy_chain_reduce_PxP", Collective::XyReduce),
];

impl Collective {
    /// The collective of a name.
    pub fn named(name: &str) -> Option<Collective> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, collective)| *collective)
    }

    /// Every name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// Its program for rows of `pes` PEs and vectors of `words`; `None` for a tree over no power of two, and where there
    /// is nothing to send or nobody to send it to.
    pub fn program(self, pes: u32, words: u32) -> Option<WaferProgram> {
        if pes < 2 || words == 0 {
            return None;
        }
        Some(match self {
            Collective::Star => star_reduce(pes, words),
            Collective::Chain => chain_reduce(pes, words),
            Collective::Tree if !pes.is_power_of_two() => return None,
            Collective::Tree => tree_reduce(pes, words),
            Collective::TwoPhase => two_phase_reduce(&balanced_groups(pes), words),
            Collective::Broadcast => broadcast(pes, words),
            Collective::ReduceBroadcast => reduce_broadcast(pes, words),
            Collective::RingAllReduce => ring_all_reduce(pes, words),
            Collective::Broadcast2d => broadcast_2d(pes, pes, words),
            Collective::XyReduce => xy_reduce(pes, words),
        })
    }
}

/// Words times links that a collective moves: what simulating it word by word costs.
pub fn word_hops(collective: Collective, pes: u32, words: u32) -> u64 {
    let (pes, words) = (u64::from(pes), u64::from(words));
    match collective {
        Collective::Star => words * pes * pes / 2,
        Collective::Tree => words * pes * u64::from(pes.max(2).ilog2()) / 2,
        Collective::Broadcast2d | Collective::XyReduce => words * pes * pes,
        Collective::Chain | Collective::Broadcast => words * pes,
        Collective::TwoPhase | Collective::ReduceBroadcast => 2 * words * pes,
        Collective::RingAllReduce => 4 * words * pes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_published_ones_and_programs_are_there_where_they_can_be() {
        for name in Collective::names() {
            assert!(Collective::named(name).unwrap().program(8, 3).is_some(), "{name}");
        }
        assert_eq!(Collective::named("hypercube"), None);
        assert_eq!(Collective::Tree.program(6, 1), None);
        assert_eq!(Collective::Chain.program(1, 1), None);
        assert_eq!(Collective::Chain.program(4, 0), None);
    }
}
