//! Cuts a training step into the stages of a pipeline: ranges of layers, each forwards and backwards.
//!
//! ```text
//! main:  before  layers  | middle: norm, head, loss and back |  layers backwards  behind
//! range 0 has what is before and behind, the last range the middle; in between messages on lanes of their own:
//!   range v to v + 1    the stream forwards, lane 2v        range v + 1 to v    its derivative, lane 2v + 1
//! ```

use super::super::{ShardError, stage_layers};
use crate::graph::{Function, Graph, Node, Slot, Value, ValueId};
use crate::op::{Op, Sharded};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What a stage has of a training step.
pub struct Cut {
    /// What it computes for one micro-batch. Its layers count from 0.
    pub graph: Graph,
    /// Which layers of the whole model they are.
    pub layers: Vec<u64>,
    /// Parameters that another stage has as well.
    pub tied: BTreeSet<String>,
}

/// The part of a stage that runs `chunks` ranges of layers.
///
/// # Errors
/// [`ShardError::Unsupported`] for a graph that does not run its layers forwards and then backwards.
pub fn training(graph: &Graph, stages: u64, chunks: u64, stage: u64) -> Result<Cut, ShardError> {
    let ends = Ends::of(graph)?;
    let ranges = stages * chunks;
    let own: Vec<u64> = (0..chunks).map(|chunk| chunk * stages + stage).collect();
    let layers_of = |range: &u64| stage_layers(graph.n_layers, ranges, *range);
    let layers: Vec<u64> = own.iter().flat_map(layers_of).collect();
    let cutter = Cutter {
        whole: graph.main(),
        ends: &ends,
        stages,
        ranges,
        layers: &layers,
        made: Function { values: Vec::new(), nodes: Vec::new(), results: Vec::new(), ..graph.main().clone() },
        known: BTreeMap::new(),
    };
    let main = cutter.main(&own, layers_of);
    let mut functions = graph.functions.clone();
    let at = functions.len() - 1;
    functions[at] = main;
    let kept = |slot: &Slot| {
        let inside: Vec<u64> = (slot.first..slot.first + slot.times).collect();
        let local = |layer: &u64| layers.iter().position(|own| own == layer).map(|at| at as u64);
        let local: Vec<u64> = inside.iter().filter_map(local).collect();
        Slot { first: local.first().copied().unwrap_or(0), times: local.len() as u64, ..slot.clone() }
    };
    let slots = graph.slots.iter().map(kept).collect();
    let cut = Graph { n_layers: layers.len() as u64, functions, slots, ..graph.clone() };
    Ok(Cut { graph: cut, layers, tied: tied(graph, &ends, stages, stage) })
}

/// Parameters outside of layers that the first stage and the last one read.
fn tied(graph: &Graph, ends: &Ends, stages: u64, stage: u64) -> BTreeSet<String> {
    if stages == 1 || (stage > 0 && stage + 1 < stages) {
        return BTreeSet::new();
    }
    let main = graph.main();
    let names = |ranges: &[Range<usize>]| -> BTreeSet<String> {
        let nodes = ranges.iter().flat_map(|range| &main.nodes[range.clone()]);
        let read = nodes.flat_map(|node| &node.inputs).filter_map(|id| {
            let maker = main.nodes.iter().find(|maker| maker.output == *id)?;
            if let Op::Param { param } = maker.op { Some(graph.params[param].name.clone()) } else { None }
        });
        read.collect()
    };
    let first = names(&[ends.before.clone(), ends.behind.clone()]);
    first.intersection(&names(std::slice::from_ref(&ends.middle))).cloned().collect()
}

/// Where main does what.
struct Ends {
    before: Range<usize>,
    forwards: Vec<usize>,
    middle: Range<usize>,
    backwards: Vec<usize>,
    behind: Range<usize>,
}

impl Ends {
    fn of(graph: &Graph) -> Result<Ends, ShardError> {
        let main = graph.main();
        let repeats = |back: bool| -> Vec<usize> {
            let nodes = main.nodes.iter().enumerate();
            let wanted = |node: &Node| matches!(node.op, Op::Repeat { reverse, .. } if reverse == back);
            nodes.filter(|(_, node)| wanted(node)).map(|(n, _)| n).collect()
        };
        let (forwards, backwards) = (repeats(false), repeats(true));
        let ends = |list: &[usize]| list.first().copied().zip(list.last().copied());
        match ends(&forwards).zip(ends(&backwards)) {
            Some(((first, last), (back, end))) if last < back => Ok(Ends {
                before: 0..first,
                middle: last + 1..back,
                behind: end + 1..main.nodes.len(),
                forwards,
                backwards,
            }),
            _ => {
                let what = "layers do not run once forwards and then once backwards".into();
                Err(ShardError::Unsupported { node: main.name.clone(), what })
            }
        }
    }
}

struct Cutter<'g> {
    whole: &'g Function,
    ends: &'g Ends,
    stages: u64,
    /// Ranges of layers of all stages.
    ranges: u64,
    layers: &'g [u64],
    made: Function,
    /// Values of the stage for those of the whole.
    known: BTreeMap<ValueId, ValueId>,
}

impl Cutter<'_> {
    fn main(mut self, own: &[u64], layers_of: impl Fn(&u64) -> Range<u64>) -> Function {
        self.made.arguments.clear();
        for argument in &self.whole.arguments {
            let id = self.value(*argument);
            self.made.arguments.push(id);
            self.known.insert(*argument, id);
        }
        let last = self.ranges - 1;
        for range in own {
            self.forwards(*range, &layers_of(range));
            if *range == last {
                self.copy(self.ends.middle.clone());
            }
        }
        for range in own.iter().rev() {
            self.backwards(*range, &layers_of(range));
        }
        let end = self.made.nodes.iter().rev().find(|node| !matches!(node.op, Op::Param { .. }));
        let results = match own.contains(&last) {
            true => self.whole.results.iter().map(|id| self.known[id]).collect(),
            false => end.map(|node| node.output).into_iter().collect(),
        };
        Function { results, ..self.made }
    }

    fn stage_of(&self, range: u64) -> u64 {
        range % self.stages
    }

    fn forwards(&mut self, range: u64, layers: &Range<u64>) {
        let (first, last) = (self.ends.forwards[0], self.ends.forwards[self.ends.forwards.len() - 1]);
        let (given, made) = (self.whole.nodes[first].inputs[0], self.whole.nodes[last].output);
        let mut x = match range {
            0 => {
                self.copy(self.ends.before.clone());
                self.known[&given]
            }
            _ => self.receive(given, range - 1, 2 * (range - 1)),
        };
        for n in self.ends.forwards.clone() {
            x = self.repeat(n, layers, x);
        }
        self.known.insert(made, x);
        if range + 1 < self.ranges {
            self.send(x, range + 1, 2 * range);
        }
    }

    fn backwards(&mut self, range: u64, layers: &Range<u64>) {
        let (first, last) = (self.ends.backwards[0], self.ends.backwards[self.ends.backwards.len() - 1]);
        let (given, made) = (self.whole.nodes[first].inputs[0], self.whole.nodes[last].output);
        let mut dy = match range + 1 == self.ranges {
            true => self.known[&given],
            false => self.receive(given, range + 1, 2 * range + 1),
        };
        for n in self.ends.backwards.clone() {
            dy = self.repeat(n, layers, dy);
        }
        self.known.insert(made, dy);
        match range {
            0 => self.copy(self.ends.behind.clone()),
            _ => self.send(dy, range - 1, 2 * (range - 1) + 1),
        }
    }

    /// A value of the type of one of the whole.
    fn value(&mut self, like: ValueId) -> ValueId {
        self.made.values.push(Value { ty: self.whole.ty(like).clone() });
        ValueId(self.made.values.len() - 1)
    }

    fn push(&mut self, name: String, op: impl Into<Op>, inputs: Vec<ValueId>, output: ValueId) {
        self.made.nodes.push(Node { name, op: op.into(), inputs, output });
    }

    fn receive(&mut self, like: ValueId, range: u64, lane: u64) -> ValueId {
        let output = self.value(like);
        let op = Sharded::Receive { stage: self.stage_of(range), lane };
        self.push(format!("pipeline.receive.{lane}"), op, Vec::new(), output);
        output
    }

    fn send(&mut self, x: ValueId, range: u64, lane: u64) {
        self.made.values.push(Value { ty: self.made.ty(x).clone() });
        let output = ValueId(self.made.values.len() - 1);
        let op = Sharded::Send { stage: self.stage_of(range), lane };
        self.push(format!("pipeline.send.{lane}"), op, vec![x], output);
    }

    /// The layers of a repeat that are in a range, under the numbers that the stage gives them.
    fn repeat(&mut self, n: usize, layers: &Range<u64>, x: ValueId) -> ValueId {
        let node = &self.whole.nodes[n];
        let Op::Repeat { function, first, times, reverse } = node.op else { return x };
        let inside = first.max(layers.start)..(first + times).min(layers.end);
        let Some(local) = self.layers.iter().position(|own| inside.contains(own)) else { return x };
        let op = Op::Repeat { function, first: local as u64, times: inside.end - inside.start, reverse };
        let output = self.value(node.output);
        let name = match self.ranges > self.stages {
            true => format!("{}.{}", node.name, inside.start),
            false => node.name.clone(),
        };
        self.push(name, op, vec![x], output);
        output
    }

    /// Nodes of the whole, and before each the parameters that it reads.
    fn copy(&mut self, nodes: Range<usize>) {
        for n in nodes {
            let node = self.whole.nodes[n].clone();
            if matches!(node.op, Op::Param { .. }) {
                continue;
            }
            for input in &node.inputs {
                self.parameter(*input);
            }
            let inputs = node.inputs.iter().map(|id| self.known[id]).collect();
            let output = self.value(node.output);
            self.known.insert(node.output, output);
            self.push(node.name, node.op, inputs, output);
        }
    }

    fn parameter(&mut self, id: ValueId) {
        let node = self.whole.nodes.iter().find(|node| node.output == id);
        if let Some(node) = node.filter(|node| matches!(node.op, Op::Param { .. }))
            && !self.known.contains_key(&id)
        {
            let output = self.value(id);
            self.known.insert(id, output);
            self.push(node.name.clone(), node.op.clone(), Vec::new(), output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autodiff::{Policy, Recompute, training as differentiated};
    use crate::graph::Dims;
    use crate::op::Backward;

    fn gives(op: &Op) -> bool {
        matches!(op, Op::Backward(Backward::Gradient { .. }))
    }

    /// Every layer is in one range, and every gradient of an end is made by one stage, tied ones by two.
    #[test]
    fn stages_share_the_layers_and_the_ends() {
        let spec = crate::builtin("amber").unwrap();
        let dims = Dims { batch: 1, seq: 8, cached: 0 };
        let policy = Policy::Uniform(Recompute::Selective);
        let graph = differentiated(&spec, dims, &policy).unwrap().graph;
        for (stages, chunks) in [(1, 1), (4, 1), (4, 2), (3, 11)] {
            let cuts: Vec<Cut> =
                (0..stages).map(|stage| training(&graph, stages, chunks, stage).unwrap()).collect();
            let mut layers: Vec<u64> = cuts.iter().flat_map(|cut| cut.layers.clone()).collect();
            layers.sort_unstable();
            assert_eq!(layers, (0..32).collect::<Vec<u64>>(), "{stages} {chunks}");
            let given = |cut: &Cut| cut.graph.main().nodes.iter().filter(|node| gives(&node.op)).count();
            let whole = graph.main().nodes.iter().filter(|node| gives(&node.op)).count();
            assert_eq!(cuts.iter().map(given).sum::<usize>(), whole, "{stages} {chunks}");
        }
    }
}
