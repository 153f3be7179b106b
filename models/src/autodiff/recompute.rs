//! Keeps less for the backward pass and computes the rest again.
//!
//! | policy | computed again | what a layer keeps |
//! |---|---|---|
//! | `none` | nothing | everything that a backward op reads |
//! | `selective` | the core of attention: scores, scale, mask, softmax | queries, keys, values, not the `[B, H, S, L]` tensors |
//! | `full` | everything that a backward op reads | the layer's input |
//!
//! Selective recomputation is that of Korthikanti et al. (arXiv 2205.05198, section 5): the tensors that grow with
//! the square of the length cost little to make again. A policy is a set of nodes that run again; where the backward
//! function reads the result of one, the node is copied there, and so on down to values that are kept. Only what is read is
//! computed again, so `full` does not repeat the last product of a layer. The copies compute the same numbers from the
//! same operands: gradients do not change by a bit.

use super::differentiate::{BACKWARD, LAYER, saving, slot};
use super::draft::Draft;
use crate::graph::{Function, Graph, GraphError, Param, Slot, ValueId};
use crate::op::{Backward, Op};
use crate::work::Work;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Behind the name of a forward node that runs again for one backward op alone.
pub(super) const AGAIN: &str = ".again";

/// What a layer computes again in its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// From scores to softmax.
    Selective,
    /// Everything from the layer's input.
    Full,
}

impl Recompute {
    /// Every policy, from the most kept to the least.
    pub const ALL: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full];

    /// The name in reports and options.
    pub const fn name(self) -> &'static str {
        match self {
            Recompute::None => "none",
            Recompute::Selective => "selective",
            Recompute::Full => "full",
        }
    }
}

/// A policy for every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// All layers alike.
    Uniform(Recompute),
    /// One for each layer, first layer first.
    PerLayer(Vec<Recompute>),
}

impl Policy {
    /// Runs of layers with one policy: the policy, the first layer, how many.
    fn segments(&self, layers: u64) -> Result<Vec<(Recompute, u64, u64)>, GraphError> {
        let policies = match self {
            Policy::Uniform(policy) => return Ok(vec![(*policy, 0, layers)]),
            Policy::PerLayer(policies) => policies,
        };
        if policies.len() as u64 != layers {
            let what = format!("a policy for each of {layers} layers is needed");
            return Err(GraphError::Dimension { dim: "recompute", value: policies.len() as u64, what });
        }
        let mut segments: Vec<(Recompute, u64, u64)> = Vec::new();
        for (layer, policy) in (0..).zip(policies) {
            match segments.last_mut() {
                Some((last, _, times)) if last == policy => *times += 1,
                _ => segments.push((*policy, layer, 1)),
            }
        }
        Ok(segments)
    }
}

/// What recomputation saves and costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecomputeReport {
    /// Bytes that all layers keep.
    pub saved_bytes: u64,
    /// Work that all layers do again.
    pub again: Work,
    /// Runs of layers with one policy.
    pub segments: Vec<SegmentReport>,
}

/// What recomputation saves and costs in each layer of a run of layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentReport {
    /// The first layer.
    pub first: u64,
    /// How many layers.
    pub times: u64,
    /// What is computed again.
    pub policy: Recompute,
    /// Bytes that one layer keeps.
    pub saved_bytes: u64,
    /// Bytes that one layer does not keep, against no recomputation.
    pub spared_bytes: u64,
    /// Work that one layer does again.
    pub again: Work,
    /// Names of the nodes that run again, in order.
    pub nodes: Vec<String>,
    /// What it buys for what, in words.
    pub reason: String,
}

/// Applies a policy to a training graph that keeps everything, as [`super::differentiate`] makes it.
///
/// # Errors
/// [`GraphError::Dimension`] when a policy by layer does not name every layer; [`GraphError::NoDerivative`] when the
/// graph is not such a graph.
pub fn recompute(training: &Graph, policy: &Policy) -> Result<(Graph, RecomputeReport), GraphError> {
    just_differentiated(training)?;
    let source = Source::of(training);
    let mut graph = Graph { slots: Vec::new(), functions: Vec::new(), ..training.clone() };
    let mut segments = Vec::new();
    for (policy, first, times) in policy.segments(training.n_layers)? {
        let variant = source.variant(policy, graph.slots.len())?;
        segments.push(source.report(&variant, policy, (first, times)));
        graph.slots.extend(variant.kept.iter().map(|value| slot(&source.layer, *value, (first, times))));
        let layer = saving(&source.layer, &variant.kept, graph.slots.len() - variant.kept.len());
        graph.functions.extend(named(segments.len(), layer, variant.backward));
    }
    number_slots(&mut graph.slots);
    graph.functions.push(segmented(training.main(), &segments));
    let total = |each: fn(&SegmentReport) -> Work| segments.iter().map(|s| each(s) * s.times).sum();
    let saved_bytes = graph.slots.iter().map(|slot| slot.ty.bytes().saturating_mul(slot.times)).sum();
    let report = RecomputeReport { saved_bytes, again: total(|s| s.again), segments };
    Ok((graph, report))
}

/// Bytes that one layer keeps and operations that it does again, under each policy of [`Recompute::ALL`].
pub(super) fn costs(training: &Graph) -> Result<[(u64, u64); 3], GraphError> {
    just_differentiated(training)?;
    let source = Source::of(training);
    let mut costs = [(0, 0); 3];
    for (cost, policy) in costs.iter_mut().zip(Recompute::ALL) {
        let report = source.report(&source.variant(policy, 0)?, policy, (0, 1));
        *cost = (report.saved_bytes, report.again.flops());
    }
    Ok(costs)
}

fn just_differentiated(training: &Graph) -> Result<(), GraphError> {
    if training.functions.len() != 3 || !matches!(training.mode, crate::Mode::Train) {
        let why = "recomputation applies to a graph just differentiated";
        return Err(GraphError::NoDerivative { node: training.name.clone(), op: "repeat", why });
    }
    Ok(())
}

/// Functions of the second and further segments carry its number.
fn named(segment: usize, layer: Function, backward: Function) -> [Function; 2] {
    let name = |base: &str| if segment == 1 { base.to_string() } else { format!("{base}_{segment}") };
    let [forward, back] = [name("layer"), name("layer_backward")];
    [Function { name: forward, ..layer }, Function { name: back, ..backward }]
}

/// Slots of further segments carry a number, so that every name stands once.
fn number_slots(slots: &mut [Slot]) {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for slot in slots {
        let count = seen.entry(slot.name.clone()).and_modify(|count| *count += 1).or_insert(1);
        if *count > 1 {
            slot.name = format!("{}.{count}", slot.name);
        }
    }
}

/// The main function with one repeat for each segment in place of one for all layers.
fn segmented(main: &Function, segments: &[SegmentReport]) -> Function {
    let empty = Function { nodes: Vec::new(), results: Vec::new(), ..main.clone() };
    let mut draft = Draft::continuing(empty);
    let mut now: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for node in &main.nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|id| *now.get(id).unwrap_or(id)).collect();
        let ty = main.ty(node.output).clone();
        let mut value = inputs.first().copied();
        match node.op {
            Op::Repeat { reverse, .. } => {
                for (index, segment) in in_order(segments, reverse) {
                    let (first, times, function) =
                        (segment.first, segment.times, 2 * index + usize::from(reverse));
                    let op = Op::Repeat { function, first, times, reverse };
                    let operands: Vec<ValueId> = value.into_iter().collect();
                    value = Some(draft.declared(&node.name, op, &operands, ty.clone()));
                }
            }
            _ => value = Some(draft.declared(&node.name, node.op.clone(), &inputs, ty)),
        }
        now.extend(value.map(|value| (node.output, value)));
    }
    let results = main.results.iter().map(|id| *now.get(id).unwrap_or(id)).collect();
    draft.finish(results)
}

fn in_order(segments: &[SegmentReport], reverse: bool) -> Vec<(usize, &SegmentReport)> {
    let mut order: Vec<_> = segments.iter().enumerate().collect();
    if reverse {
        order.reverse();
    }
    order
}

/// The functions of a layer that keeps everything.
struct Source<'g> {
    params: &'g [Param],
    /// The forward function, without its saves.
    layer: Function,
    backward: &'g Function,
    /// The value of `layer` that each slot holds.
    held: Vec<ValueId>,
    saved_bytes: u64,
}

/// A backward function under a policy.
struct Variant {
    backward: Function,
    kept: Vec<ValueId>,
    again: Vec<usize>,
}

impl<'g> Source<'g> {
    fn of(training: &'g Graph) -> Source<'g> {
        let saving = &training.functions[LAYER];
        let mut held = vec![ValueId(0); training.slots.len()];
        for node in &saving.nodes {
            if let Op::Backward(Backward::Save { slot }) = node.op {
                held[slot] = node.inputs[0];
            }
        }
        let forward = |op: &Op| !matches!(op, Op::Backward(Backward::Save { .. }));
        let nodes = saving.nodes.iter().filter(|node| forward(&node.op)).cloned().collect();
        let layer = Function { nodes, ..saving.clone() };
        let saved_bytes = training.slots.iter().map(|slot| slot.ty.bytes()).sum();
        Source { params: &training.params, layer, backward: &training.functions[BACKWARD], held, saved_bytes }
    }

    fn variant(&self, policy: Recompute, first_slot: usize) -> Result<Variant, GraphError> {
        let dy = self.backward.ty(self.backward.arguments[0]).clone();
        let draft = Draft::with_argument(&self.backward.name, true, dy);
        let mut copy = Copy {
            source: self,
            repeats: self.repeated(policy),
            first_slot,
            now: BTreeMap::from([(self.backward.arguments[0], draft.function().arguments[0])]),
            draft,
            found: BTreeMap::new(),
            core: self.core_of_attention(),
            apart: BTreeMap::new(),
            kept: Vec::new(),
            again: Vec::new(),
        };
        self.backward.nodes.iter().try_for_each(|node| copy.node(node))?;
        let results = self.backward.results.iter().map(|id| copy.now[id]).collect();
        copy.again.sort_unstable();
        Ok(Variant { backward: copy.draft.finish(results), kept: copy.kept, again: copy.again })
    }

    /// Which nodes of the layer a policy runs again.
    fn repeated(&self, policy: Recompute) -> Vec<bool> {
        match policy {
            Recompute::None => vec![false; self.layer.nodes.len()],
            Recompute::Full => vec![true; self.layer.nodes.len()],
            Recompute::Selective => self.core_of_attention(),
        }
    }

    /// Nodes from the scores up to the values, without them.
    fn core_of_attention(&self) -> Vec<bool> {
        let mut within = vec![false; self.layer.values.len()];
        for node in &self.layer.nodes {
            let follows = node.inputs.iter().any(|input| within[input.0]);
            let starts = matches!(node.op, Op::Scores { .. });
            within[node.output.0] = starts || (follows && !matches!(node.op, Op::Values { .. }));
        }
        self.layer.nodes.iter().map(|node| within[node.output.0]).collect()
    }

    fn report(&self, variant: &Variant, policy: Recompute, (first, times): (u64, u64)) -> SegmentReport {
        let saved_bytes = variant.kept.iter().map(|value| self.layer.ty(*value).bytes()).sum();
        let spared_bytes = self.saved_bytes.saturating_sub(saved_bytes);
        let nodes = || variant.again.iter().map(|index| &self.layer.nodes[*index]);
        let work =
            |node: &crate::Node| node.op.work(&self.layer.operand_types(node), self.layer.ty(node.output));
        let again: Work = nodes().map(work).sum();
        let forward: Work = self.layer.nodes.iter().map(work).sum();
        let names = nodes().map(|node| node.name.clone()).collect();
        let reason = reason(policy, spared_bytes, self.saved_bytes, again, forward);
        SegmentReport { first, times, policy, saved_bytes, spared_bytes, again, nodes: names, reason }
    }
}

fn reason(policy: Recompute, spared: u64, all: u64, again: Work, forward: Work) -> String {
    let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let price = format!(
        "{:.1} MB a layer less ({:.1} % of {:.1} MB) for {:.3} GFLOP more ({:.1} % of its forward pass)",
        spared as f64 / 1e6,
        share(spared, all),
        all as f64 / 1e6,
        again.flops() as f64 / 1e9,
        share(again.flops(), forward.flops()),
    );
    match policy {
        Recompute::None => format!("nothing runs again: a layer keeps {:.1} MB", all as f64 / 1e6),
        Recompute::Selective => format!("scores, mask and softmax run again from queries and keys: {price}"),
        Recompute::Full => format!("the layer runs again from its input: {price}"),
    }
}

/// A backward function while it is copied.
struct Copy<'s, 'g> {
    source: &'s Source<'g>,
    repeats: Vec<bool>,
    first_slot: usize,
    draft: Draft,
    /// Value of the old backward function to value of the new one.
    now: BTreeMap<ValueId, ValueId>,
    /// Value of the layer to value of the new backward function.
    found: BTreeMap<ValueId, ValueId>,
    /// Nodes from the scores up to the values.
    core: Vec<bool>,
    /// Values of the core that were computed for the backward pass alone.
    apart: BTreeMap<ValueId, ValueId>,
    kept: Vec<ValueId>,
    again: Vec<usize>,
}

impl Copy<'_, '_> {
    fn node(&mut self, node: &crate::Node) -> Result<(), GraphError> {
        let value = match node.op {
            Op::Param { param } => self.draft.param(self.source.params, param),
            Op::Backward(Backward::Saved { slot }) => self.read(self.source.held[slot])?,
            _ => {
                let inputs: Vec<ValueId> = node.inputs.iter().map(|id| self.now[id]).collect();
                self.draft.node(&node.name, node.op.clone(), &inputs)?
            }
        };
        self.now.insert(node.output, value);
        Ok(())
    }

    /// A value that a backward op reads. The core of attention is computed for its backward pass alone: shared with a
    /// forward pass that runs again, its tensors would have to be in memory between the two.
    fn read(&mut self, value: ValueId) -> Result<ValueId, GraphError> {
        let layer = &self.source.layer;
        let producer = layer.nodes.iter().position(|node| node.output == value);
        let Some(index) = producer.filter(|index| self.repeats[*index] && self.core[*index]) else {
            return self.find(value);
        };
        if let Some(found) = self.apart.get(&value) {
            return Ok(*found);
        }
        let node = &layer.nodes[index];
        let inputs: Result<Vec<ValueId>, GraphError> =
            node.inputs.iter().map(|input| self.read(*input)).collect();
        self.again.push(index);
        let found = self.draft.node(&format!("{}{AGAIN}", node.name), node.op.clone(), &inputs?)?;
        self.apart.insert(value, found);
        Ok(found)
    }

    /// A value of the layer: found before, computed again, or kept.
    fn find(&mut self, value: ValueId) -> Result<ValueId, GraphError> {
        if let Some(found) = self.found.get(&value) {
            return Ok(*found);
        }
        let layer = &self.source.layer;
        let producer = layer.nodes.iter().position(|node| node.output == value);
        let found = match producer.map(|index| (index, &layer.nodes[index])) {
            Some((_, node)) if let Op::Param { param } = node.op => {
                self.draft.param(self.source.params, param)
            }
            Some((index, node)) if self.repeats[index] => {
                let inputs: Result<Vec<ValueId>, GraphError> =
                    node.inputs.iter().map(|input| self.find(*input)).collect();
                self.again.push(index);
                self.draft.node(&node.name, node.op.clone(), &inputs?)?
            }
            _ => self.keep(value),
        };
        self.found.insert(value, found);
        Ok(found)
    }

    fn keep(&mut self, value: ValueId) -> ValueId {
        let slot = super::differentiate::slot(&self.source.layer, value, (0, 0));
        let op = Op::Backward(Backward::Saved { slot: self.first_slot + self.kept.len() });
        self.kept.push(value);
        self.draft.declared(&format!("{}.saved", slot.name), op, &[], slot.ty)
    }
}
