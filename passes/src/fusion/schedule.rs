//! An order in which kernels can run, if there is one.

use crate::fusion::flow::Flow;
use crate::fusion::traffic::Set;
use std::collections::{BTreeMap, BTreeSet};

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The region with this index.
    Region(usize),
    /// The parameter or repeat at this node.
    Keep(usize),
}

/// Regions and the nodes in no region, in an order where everything comes after what it needs; earlier nodes first
/// among those that are ready. `None` when two regions need each other.
pub fn schedule(flow: &Flow, regions: &[&Set]) -> Option<Vec<Step>> {
    let owner = owners(flow, regions);
    let pairs: BTreeSet<(Step, Step)> = (0..owner.len())
        .flat_map(|n| flow.before(n).map(move |before| (before, n)))
        .map(|(before, n)| (owner[before], owner[n]))
        .filter(|(before, step)| before != step)
        .collect();
    let mut waits: BTreeMap<Step, usize> = owner.iter().map(|step| (*step, 0)).collect();
    pairs.iter().for_each(|(_, step)| *waits.entry(*step).or_default() += 1);
    let placed = |step: Step| (first(step, regions), step);
    let mut ready: BTreeSet<(usize, Step)> =
        waits.iter().filter(|(_, count)| **count == 0).map(|(step, _)| placed(*step)).collect();
    let mut order = Vec::with_capacity(waits.len());
    while let Some((_, step)) = ready.pop_first() {
        order.push(step);
        for (_, waiting) in pairs.range((step, Step::Region(0))..=(step, Step::Keep(usize::MAX))) {
            let count = waits.entry(*waiting).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                ready.insert(placed(*waiting));
            }
        }
    }
    (order.len() == waits.len()).then_some(order)
}

fn owners(flow: &Flow, regions: &[&Set]) -> Vec<Step> {
    let mut owner: Vec<Step> = (0..flow.function.nodes.len()).map(Step::Keep).collect();
    for (region, nodes) in regions.iter().enumerate() {
        nodes.iter().for_each(|n| owner[*n] = Step::Region(region));
    }
    owner
}

fn first(step: Step, regions: &[&Set]) -> usize {
    match step {
        Step::Region(region) => regions[region].first().copied().unwrap_or(0),
        Step::Keep(n) => n,
    }
}
