//! Grows regions by merging, the most saved bytes first.
//!
//! Every op starts as a region. Candidates are regions joined by a value, and siblings that read the same value;
//! the legal one that saves most is merged, and all is looked at again, until no merge is left. Ties go to
//! what follows a contraction (its epilogue is free) and last to what precedes one, then to the smaller kernel (it
//! needs fewer registers), then to the earlier ops, so the result depends on nothing but the function and the rules.

use crate::fusion::class::{Class, class};
use crate::fusion::flow::Flow;
use crate::fusion::legality::{Anchor, kernel};
use crate::fusion::reason;
use crate::fusion::rules::{Rule, Rules};
use crate::fusion::schedule::{Step, schedule};
use crate::fusion::traffic::{Set, traffic};
use lapidary_models::op::Backward;
use lapidary_models::{Op, ValueId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// A merge that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The rule that allows it.
    pub rule: Rule,
    /// The ops of both sides, earlier region first.
    pub sides: [Vec<String>; 2],
    /// Bytes that the merge saves.
    pub saved_bytes: u64,
    /// What is saved, in words.
    pub reason: String,
}

/// A merge that would save memory traffic and is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The ops of both sides, earlier region first.
    pub sides: [Vec<String>; 2],
    /// Bytes that it would save.
    pub saved_bytes: u64,
    /// Why not.
    pub reason: String,
}

/// Regions that cannot grow further, and how they came about.
pub struct Grown {
    /// Sets of nodes with their anchors, in an order in which they can run.
    pub regions: Vec<(Set, Anchor)>,
    /// The same order with the nodes in no region between them.
    pub steps: Vec<Step>,
    /// Merges, in the order they were made.
    pub merges: Vec<Merge>,
    /// Merges that were refused at the end, most bytes first.
    pub refusals: Vec<Refusal>,
}

/// Two regions that might become one.
struct Candidate {
    saved: u64,
    pair: [usize; 2],
    union: Set,
}

/// What was found out about sets of nodes: every round of merging looks at most of the pairs of the round before.
struct Known<'a, 'f> {
    flow: &'a Flow<'f>,
    traffic: RefCell<BTreeMap<Set, u64>>,
    kernels: RefCell<BTreeMap<Set, Result<Anchor, String>>>,
}

impl Known<'_, '_> {
    fn traffic(&self, nodes: &Set) -> u64 {
        if let Some(bytes) = self.traffic.borrow().get(nodes) {
            return *bytes;
        }
        let bytes = traffic(self.flow, nodes);
        self.traffic.borrow_mut().insert(nodes.clone(), bytes);
        bytes
    }

    fn kernel(&self, nodes: &Set) -> Result<Anchor, String> {
        if let Some(kernel) = self.kernels.borrow().get(nodes) {
            return kernel.clone();
        }
        let kernel = kernel(self.flow, nodes);
        self.kernels.borrow_mut().insert(nodes.clone(), kernel.clone());
        kernel
    }
}

/// Merges until nothing legal saves a byte.
pub fn grow(flow: &Flow, rules: &Rules) -> Grown {
    let single = |n: usize| (class(flow.op(n)) != Class::Outside).then(|| Set::from([n]));
    let cores: Vec<&Set> = match rules.allows(Rule::Attention) {
        true => flow.cores.iter().map(|core| &core.nodes).collect(),
        false => Vec::new(),
    };
    let free = |n: &usize| !cores.iter().any(|core| core.contains(n));
    let mut parts: Vec<Set> = (0..flow.function.nodes.len()).filter(free).filter_map(single).collect();
    parts.extend(cores.iter().map(|core| (*core).clone()));
    let mut merges: Vec<Merge> = cores.iter().map(|core| whole(flow, core)).collect();
    let known = Known { flow, traffic: RefCell::default(), kernels: RefCell::default() };
    let refusals = loop {
        let mut refusals = Vec::new();
        let mut legal = None;
        for candidate in candidates(&known, &parts) {
            match judge(&known, rules, &parts, &candidate) {
                Ok(rule) => {
                    legal = Some((candidate, rule));
                    break;
                }
                Err(why) => refusals.push(refusal(flow, &parts, &candidate, why)),
            }
        }
        let Some((candidate, rule)) = legal else { break refusals };
        merges.push(merge(flow, &parts, &candidate, rule));
        let [a, b] = candidate.pair;
        parts[a] = candidate.union;
        parts.remove(b);
    };
    let (regions, steps) = ordered(flow, parts);
    Grown { regions, steps, merges, refusals }
}

/// The backward pass of an attention, which becomes one kernel at once: half of it saves nothing.
fn whole(flow: &Flow, core: &Set) -> Merge {
    let (products, rest): (Vec<usize>, Vec<usize>) =
        core.iter().partition(|n| matches!(class(flow.op(**n)), Class::Contraction | Class::Alone));
    let names = |nodes: &[usize]| nodes.iter().map(|n| flow.node(*n).name.clone()).collect();
    let apart = core.iter().map(|n| traffic(flow, &Set::from([*n]))).fold(0, u64::saturating_add);
    let saved_bytes = apart.saturating_sub(traffic(flow, core));
    let reason = reason::of_region(flow, core);
    let reason = format!("saves {}: {reason}", reason::bytes_text(saved_bytes));
    Merge { rule: Rule::Attention, sides: [names(&products), names(&rest)], saved_bytes, reason }
}

/// Regions renumbered in the order in which they run.
fn ordered(flow: &Flow, parts: Vec<Set>) -> (Vec<(Set, Anchor)>, Vec<Step>) {
    let sets: Vec<&Set> = parts.iter().collect();
    let mut steps = schedule(flow, &sets).unwrap_or_default();
    let mut regions = Vec::with_capacity(parts.len());
    for step in &mut steps {
        if let Step::Region(part) = step {
            let nodes = parts[*part].clone();
            *part = regions.len();
            let anchor = kernel(flow, &nodes).unwrap_or(Anchor::Elementwise);
            regions.push((nodes, anchor));
        }
    }
    (regions, steps)
}

/// Pairs that share a value, the best first.
fn candidates(known: &Known, parts: &[Set]) -> Vec<Candidate> {
    let flow = known.flow;
    let pairs = pairs(flow, parts);
    let weigh = |pair: [usize; 2]| {
        let [a, b] = pair.map(|part| &parts[part]);
        let union: Set = a.union(b).copied().collect();
        let apart = known.traffic(a).saturating_add(known.traffic(b));
        Candidate { saved: apart.saturating_sub(known.traffic(&union)), pair, union }
    };
    let mut found: Vec<Candidate> = pairs.into_iter().map(weigh).filter(|c| c.saved > 0).collect();
    let rank = |c: &Candidate| match c.pair.map(|part| contracts(flow, &parts[part])) {
        [true, _] => 0,
        [false, false] => 1,
        [false, true] => 2,
    };
    found.sort_by_key(|c| (std::cmp::Reverse(c.saved), rank(c), c.union.len(), c.pair));
    found
}

/// Pairs of which a value goes from one to the other, or that read the same rows: linears over one left operand, row
/// kernels over one value.
fn pairs(flow: &Flow, parts: &[Set]) -> BTreeSet<[usize; 2]> {
    let mut part_of = vec![None; flow.function.nodes.len()];
    for (part, nodes) in parts.iter().enumerate() {
        nodes.iter().for_each(|n| part_of[*n] = Some(part));
    }
    let mut readers: BTreeMap<(bool, ValueId), Vec<usize>> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for (n, part) in part_of.iter().enumerate().filter_map(|(n, part)| part.map(|part| (n, part))) {
        let (node, op) = (flow.node(n), flow.op(n));
        let makers = node.inputs.iter().filter_map(|value| part_of[flow.maker(*value)?]);
        found.extend(makers.filter(|maker| *maker != part).map(|maker| [maker.min(part), maker.max(part)]));
        if *op == Op::Linear || class(op) == Class::Row {
            let same = readers.entry((*op == Op::Linear, node.inputs[0])).or_default();
            found.extend(same.iter().filter(|other| **other != part).map(|o| [part.min(*o), part.max(*o)]));
            same.push(part);
        }
    }
    found
}

/// The rule that allows a merge, or why there is none.
fn judge(known: &Known, rules: &Rules, parts: &[Set], candidate: &Candidate) -> Result<Rule, String> {
    let flow = known.flow;
    let anchor = known.kernel(&candidate.union)?;
    let rule = rule_of(flow, parts, candidate, anchor);
    if !rules.allows(rule) {
        return Err(format!("rule `{rule}` is off"));
    }
    let [a, b] = candidate.pair;
    let others =
        parts.iter().enumerate().filter(|(part, _)| *part != a && *part != b).map(|(_, nodes)| nodes);
    let merged: Vec<&Set> = others.chain([&candidate.union]).collect();
    match schedule(flow, &merged) {
        Some(_) => Ok(rule),
        None => Err("a path leaves the kernel and comes back into it".into()),
    }
}

fn rule_of(flow: &Flow, parts: &[Set], candidate: &Candidate, anchor: Anchor) -> Rule {
    let [a, b] = candidate.pair.map(|part| &parts[part]);
    let only = |part: &Set, wanted: Class| part.iter().all(|n| class(flow.op(*n)) == wanted);
    if only(a, Class::Store) || only(b, Class::Store) {
        return Rule::Cache;
    }
    match anchor {
        Anchor::Attention => Rule::Attention,
        Anchor::Gather => Rule::Gather,
        Anchor::Row => Rule::Row,
        Anchor::Elementwise => Rule::Elementwise,
        Anchor::Matmul if contracts(flow, a) && contracts(flow, b) => Rule::Siblings,
        Anchor::Matmul if rotates(flow, a) || rotates(flow, b) => Rule::Rotation,
        Anchor::Matmul => Rule::Epilogue,
    }
}

fn rotates(flow: &Flow, part: &Set) -> bool {
    let rotation = |op: &Op| matches!(op, Op::Rope { .. } | Op::Backward(Backward::RopeDx { .. }));
    !contracts(flow, part) && part.iter().any(|n| rotation(flow.op(*n)))
}

fn contracts(flow: &Flow, part: &Set) -> bool {
    part.iter().any(|n| class(flow.op(*n)) == Class::Contraction)
}

fn sides(flow: &Flow, parts: &[Set], pair: [usize; 2]) -> [Vec<String>; 2] {
    pair.map(|part| parts[part].iter().map(|n| flow.node(*n).name.clone()).collect())
}

fn merge(flow: &Flow, parts: &[Set], candidate: &Candidate, rule: Rule) -> Merge {
    let [a, b] = candidate.pair.map(|part| &parts[part]);
    Merge {
        rule,
        sides: sides(flow, parts, candidate.pair),
        saved_bytes: candidate.saved,
        reason: reason::of_merge(flow, a, b, candidate.saved),
    }
}

fn refusal(flow: &Flow, parts: &[Set], candidate: &Candidate, reason: String) -> Refusal {
    Refusal { sides: sides(flow, parts, candidate.pair), saved_bytes: candidate.saved, reason }
}
