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
    let mut waits: BTreeMap<Step, BTreeSet<Step>> =
        owner.values().map(|step| (*step, BTreeSet::new())).collect();
    for (n, step) in &owner {
        let needs = flow.before(*n).filter_map(|before| owner.get(&before)).filter(|other| *other != step);
        waits.entry(*step).or_default().extend(needs.copied());
    }
    let mut left: BTreeSet<(usize, Step)> = waits.keys().map(|step| (first(*step, regions), *step)).collect();
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let ready = *left.iter().find(|(_, step)| waits[step].is_empty())?;
        left.remove(&ready);
        order.push(ready.1);
        waits.values_mut().for_each(|needs| {
            needs.remove(&ready.1);
        });
    }
    Some(order)
}

fn owners(flow: &Flow, regions: &[&Set]) -> BTreeMap<usize, Step> {
    let mut owner: BTreeMap<usize, Step> =
        (0..flow.function.nodes.len()).map(|n| (n, Step::Keep(n))).collect();
    for (region, nodes) in regions.iter().enumerate() {
        owner.extend(nodes.iter().map(|n| (*n, Step::Region(region))));
    }
    owner
}

fn first(step: Step, regions: &[&Set]) -> usize {
    match step {
        Step::Region(region) => regions[region].first().copied().unwrap_or(0),
        Step::Keep(n) => n,
    }
}
