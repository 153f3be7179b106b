//! Fusion: which ops of a function become one kernel, why, and what that saves.
//!
//! Plain data in, plain data out: a [`Function`] and [`Rules`] give a [`FusionPlan`]. The pass of this name
//! (`crate::fuse`) reads the function from the IR and writes the plan into it.

pub mod class;
pub mod flow;
pub mod grow;
pub mod legality;
pub mod reason;
pub mod rules;
mod schedule;
pub mod traffic;

pub use grow::{Merge, Refusal};
pub use legality::Anchor;
pub use rules::{Rule, Rules};
pub use schedule::Step;

use flow::Flow;
use lapidary_models::Function;
use std::collections::BTreeSet;

/// Ops that become one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Unique in its function.
    pub name: String,
    /// Indices of nodes, in execution order.
    pub nodes: Vec<usize>,
    /// What gives the kernel its loop.
    pub anchor: Anchor,
    /// Memory traffic of the ops one by one, in bytes.
    pub bytes_before: u64,
    /// Memory traffic of the kernel, in bytes.
    pub bytes_after: u64,
    /// What is saved, in words.
    pub reason: String,
}

impl Region {
    /// Memory traffic that the region saves, in bytes.
    pub const fn saved_bytes(&self) -> u64 {
        self.bytes_before.saturating_sub(self.bytes_after)
    }
}

/// The kernels of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusionPlan {
    /// Every node but parameters and repeats is in exactly one region; in an order in which they can run.
    pub regions: Vec<Region>,
    /// The regions with parameters and repeats between them, in an order in which all can run.
    pub steps: Vec<Step>,
    /// How they grew.
    pub merges: Vec<Merge>,
    /// What was refused.
    pub refusals: Vec<Refusal>,
}

/// Plans the kernels of a function.
pub fn plan(function: &Function, rules: &Rules) -> FusionPlan {
    let flow = Flow::new(function);
    let grown = grow::grow(&flow, rules);
    let mut names = BTreeSet::new();
    let regions =
        grown.regions.iter().map(|(nodes, anchor)| region(&flow, nodes, *anchor, &mut names)).collect();
    FusionPlan { regions, steps: grown.steps, merges: grown.merges, refusals: grown.refusals }
}

fn region(flow: &Flow, nodes: &traffic::Set, anchor: Anchor, names: &mut BTreeSet<String>) -> Region {
    let wanted = reason::region_name(flow, nodes, anchor);
    let alone = |n: &usize| traffic::traffic(flow, &traffic::Set::from([*n]));
    Region {
        name: unique(wanted, names),
        nodes: nodes.iter().copied().collect(),
        anchor,
        bytes_before: nodes.iter().map(alone).fold(0, u64::saturating_add),
        bytes_after: traffic::traffic(flow, nodes),
        reason: reason::of_region(flow, nodes),
    }
}

fn unique(wanted: String, names: &mut BTreeSet<String>) -> String {
    let free = (1..).map(|n| if n == 1 { wanted.clone() } else { format!("{wanted}.{n}") });
    let name = free.into_iter().find(|name| !names.contains(name)).unwrap_or(wanted);
    names.insert(name.clone());
    name
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
