//! Cuts a graph into the stages of a pipeline, at the repeat of its layers.

mod training;

pub(super) use training::{Cut, training};

use super::ShardError;
use crate::graph::{Function, Graph, Node, Value, ValueId};
use crate::op::{Op, Sharded};
use std::collections::BTreeSet;
use std::ops::Range;

/// The graph of one stage: what stands before the layers belongs to the first, what stands behind them to the last.
/// Layers count from 0 in every stage.
pub(super) fn stage(
    graph: &Graph,
    stages: u64,
    stage: u64,
    layers: &Range<u64>,
) -> Result<Graph, ShardError> {
    let main = graph.main();
    let repeats = main.nodes.iter().enumerate().filter(|(_, node)| matches!(node.op, Op::Repeat { .. }));
    let repeats: Vec<usize> = repeats.map(|(n, _)| n).collect();
    let [repeat] = repeats[..] else {
        let what = format!("{} repeats, expected one that runs all layers", repeats.len());
        return Err(ShardError::Unsupported { node: main.name.clone(), what });
    };
    let cutter = Cutter { main, repeat, stage, last: stage + 1 == stages };
    let mut functions = graph.functions.clone();
    let at = functions.len() - 1;
    functions[at] = cutter.function(layers.end - layers.start);
    Ok(Graph { n_layers: layers.end - layers.start, functions, ..graph.clone() })
}

struct Cutter<'g> {
    main: &'g Function,
    /// The node that repeats the layers.
    repeat: usize,
    stage: u64,
    last: bool,
}

impl Cutter<'_> {
    fn function(&self, layers: u64) -> Function {
        let keeps = self.kept();
        let mut cut = Function { nodes: Vec::new(), ..self.main.clone() };
        if self.stage > 0 {
            cut.arguments.clear();
            let name = "pipeline.receive".to_string();
            let op = Op::Sharded(Sharded::Receive { stage: self.stage - 1, lane: 0 });
            cut.nodes.push(Node { name, op, inputs: Vec::new(), output: self.stream() });
        }
        for n in keeps {
            let mut node = self.main.nodes[n].clone();
            if let Op::Repeat { first, times, .. } = &mut node.op {
                (*first, *times) = (0, layers);
            }
            cut.nodes.push(node);
        }
        if !self.last {
            let x = self.main.nodes[self.repeat].output;
            let output = ValueId(cut.values.len());
            cut.values.push(Value { ty: cut.ty(x).clone() });
            let op = Op::Sharded(Sharded::Send { stage: self.stage + 1, lane: 0 });
            cut.nodes.push(Node { name: "pipeline.send".into(), op, inputs: vec![x], output });
            cut.results = vec![output];
        }
        cut
    }

    /// What the layers read.
    fn stream(&self) -> ValueId {
        self.main.nodes[self.repeat].inputs[0]
    }

    /// The nodes that the stage needs, in order: a walk from its result back to what it gets.
    fn kept(&self) -> BTreeSet<usize> {
        let repeated = self.main.nodes[self.repeat].output;
        let mut wanted: Vec<ValueId> = if self.last { self.main.results.clone() } else { vec![repeated] };
        let mut kept = BTreeSet::new();
        while let Some(value) = wanted.pop() {
            let received = self.stage > 0 && value == self.stream();
            let maker = self.main.nodes.iter().position(|node| node.output == value);
            if let Some(n) = maker.filter(|_| !received)
                && kept.insert(n)
            {
                wanted.extend(&self.main.nodes[n].inputs);
            }
        }
        kept
    }
}
