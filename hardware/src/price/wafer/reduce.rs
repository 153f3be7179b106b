//! Sums over a line of processing elements: three ways to make one, what each takes, and which is picked.
//!
//! ```text
//! chain       every element adds its own to what its neighbour sends          few elements, long vectors
//! tree        sums meet pairwise, then pairs of pairs ..                      short vectors
//! two phases  chains inside groups of about the square root, then over them   in between
//! ```

use super::rates::Rates;
use serde::{Deserialize, Serialize};

/// How sums of a line are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduce {
    /// Sums pass from neighbour to neighbour.
    Chain,
    /// Sums meet pairwise.
    Tree,
    /// Chains inside groups, then a chain over the groups.
    TwoPhase,
}

/// Cycles of a hop and of a ramp, one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// Of a hop between routers.
    pub hop: u64,
    /// Between core and router.
    pub ramp: u64,
}

impl Reduce {
    /// Every way, in the order in which equals are picked.
    pub const ALL: [Reduce; 3] = [Reduce::Chain, Reduce::Tree, Reduce::TwoPhase];

    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Reduce::Chain => "chain",
            Reduce::Tree => "tree",
            Reduce::TwoPhase => "two-phase",
        }
    }

    /// Cycles for vectors of `words` over `pes` elements: the words that the busiest element takes in one after the other,
    /// the way of the farthest sum, and a ramp up, a ramp down and an addition for each time that a sum is handed on.
    pub fn cycles(self, pes: u64, words: u64, links: Links) -> u64 {
        let (taken, times) = self.steps(pes);
        words * taken + pes.saturating_sub(1) * links.hop + (2 * links.ramp + 1) * times
    }

    /// How often the busiest element takes a vector in, and how often the farthest sum is handed on.
    fn steps(self, pes: u64) -> (u64, u64) {
        match self {
            _ if pes < 2 => (0, 0),
            Reduce::Chain => (1, pes - 1),
            Reduce::Tree => (rounds(pes), rounds(pes)),
            Reduce::TwoPhase => {
                let groups = balanced_groups(pes as u32);
                let last = groups.last().copied().unwrap_or(1);
                (2, u64::from(last) - 1 + groups.len() as u64 - 1)
            }
        }
    }
}

/// Rounds of a tree.
fn rounds(pes: u64) -> u64 {
    u64::from(pes.max(1).next_power_of_two().ilog2())
}

/// The way that takes least among `known`; of equals the first.
pub fn pick_reduce(known: impl IntoIterator<Item = Reduce>, pes: u64, words: u64, links: Links) -> Reduce {
    known.into_iter().min_by_key(|kind| kind.cycles(pes, words, links)).unwrap_or(Reduce::Chain)
}

/// Cycles for a vector of `out` words to be summed over a line of `pes` elements in the way that takes least, and for
/// `back` words to come back to all of them at once.
pub fn line_exchange(rates: &Rates, pes: u64, out: f64, back: f64) -> f64 {
    if pes < 2 {
        return 0.0;
    }
    let links = Links { hop: rates.hop as u64, ramp: rates.ramp as u64 };
    let words = out as u64;
    let known = Reduce::ALL.into_iter().filter(|kind| *kind != Reduce::Tree || pes <= rates.longest_tree);
    let there = pick_reduce(known, pes, words, links).cycles(pes, words, links) as f64;
    let far = (pes - 1) as f64;
    there + if back > 0.0 { back + far * rates.hop + 2.0 * rates.ramp } else { 0.0 }
}

/// Sizes of groups for two phases over a line of `pes`, that of the root first: as many groups as the nearest whole number
/// to the square root, of as many elements.
///
/// What a line is shorter, the root's group is smaller, so that no sum travels farther than the line is long. What it is
/// longer goes to groups near the root: each has a step more than its farther neighbour before the sum of the others
/// comes by.
pub fn balanced_groups(pes: u32) -> Vec<u32> {
    let floor = pes.isqrt();
    let side = if pes > floor * floor + floor { floor + 1 } else { floor }.max(1);
    let mut left = pes.saturating_sub(side * side);
    let mut groups: Vec<u32> = (0..side)
        .map(|number| {
            let more = left.min(side - 1 - number);
            left -= more;
            side + more
        })
        .collect();
    let mut over = groups.iter().sum::<u32>().saturating_sub(pes);
    for group in &mut groups {
        let less = over.min(*group);
        *group -= less;
        over -= less;
    }
    groups.retain(|group| *group > 0);
    if left > 0 {
        groups.insert(0, left);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: Links = Links { hop: 1, ramp: 2 };

    #[test]
    fn groups_are_whole_and_the_last_sum_comes_no_later_than_that_of_the_farthest() {
        for pes in 1..1000 {
            let groups = balanced_groups(pes);
            assert_eq!(groups.iter().sum::<u32>(), pes);
            let count = groups.len() as u32;
            let depth = (0..).zip(&groups).map(|(number, size)| number + size - 1).max().unwrap();
            assert!(depth <= 2 * count.max(pes.isqrt()), "{pes}: {groups:?}");
        }
        assert_eq!(balanced_groups(128), [18, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11]);
        assert_eq!(balanced_groups(8), [2, 3, 3]);
    }

    #[test]
    fn short_vectors_take_the_tree_long_ones_the_chain() {
        let pick = |pes, words| pick_reduce(Reduce::ALL, pes, words, LINKS);
        assert_eq!(
            [pick(64, 1), pick(64, 64), pick(64, 4096)],
            [Reduce::Tree, Reduce::TwoPhase, Reduce::Chain]
        );
        assert_eq!(Reduce::Chain.cycles(4, 10, LINKS), 10 + 3 + 15);
        assert_eq!(Reduce::Tree.cycles(5, 10, LINKS), 30 + 4 + 15);
    }
}
