//! A training step of a spread model: every stage takes its turns, every group goes through its nodes side by side.

use super::{Ranks, Values, embed_part, met, taken};
use crate::interpret::Oracle;
use crate::train::{Batch, Walk};
use crate::{Params, Real, Tensor, backward as back};
use lapidary_models::op::{Op, Sharded};
use lapidary_models::shard::schedule::Turn;
use lapidary_models::shard::{Shard, numbered};
use lapidary_models::{Function, Node};
use std::collections::{BTreeMap, VecDeque};

/// Messages between stages, by sender, receiver and lane.
type Mail<T> = BTreeMap<(u64, u64, u64), VecDeque<Vec<Tensor<T>>>>;

/// One group on its way through a micro-batch.
struct Walkers<'o, 'b, T> {
    walks: Vec<Walk<'o, 'b, T>>,
    values: Vec<Values<T>>,
}

/// One stage while it runs.
struct Stage<'r> {
    index: u64,
    shards: Vec<&'r Shard>,
    /// The first node of each segment of main, and the end.
    segments: Vec<usize>,
    turns: &'r [Turn],
    done: usize,
}

impl<T: Real> Ranks<'_, T> {
    /// Runs a training step: every stage takes its turns on the micro-batches as soon as what it waits for is there. The
    /// loss and the gradients are those of the mean over all micro-batches, as the whole model has them.
    ///
    /// # Panics
    /// When the parts do not fit together, or the turns lock.
    pub fn step(&self, turns: &[Vec<Turn>], micros: &[Batch<'_>]) -> (f64, Params<T>) {
        let oracles: Vec<Vec<Oracle<'_, T>>> = self.stages.iter().map(|group| oracles(group)).collect();
        let mut walkers: Vec<Vec<Walkers<'_, '_, T>>> = oracles
            .iter()
            .map(|group| micros.iter().map(|batch| Walkers::new(group, *batch)).collect())
            .collect();
        let mut stages: Vec<Stage<'_>> = Vec::new();
        for (group, turns) in self.stages.iter().zip(turns) {
            stages.push(Stage::new(stages.len(), group, turns));
        }
        let mut mail = Mail::new();
        while stages.iter().any(|stage| stage.done < stage.turns.len()) {
            let moved =
                stages.iter_mut().zip(&mut walkers).map(|(stage, walkers)| stage.go(walkers, &mut mail));
            assert!(moved.filter(|moved| *moved).count() > 0, "the stages wait for one another");
        }
        assert!(mail.values().all(VecDeque::is_empty), "a message that nobody reads");
        let all: f64 = micros.iter().map(labels).sum();
        let mut gradients = Params::new();
        let mut loss = 0.0;
        for (stage, walkers) in stages.iter().zip(&walkers) {
            for (walkers, batch) in walkers.iter().zip(micros) {
                let share = labels(batch) / all;
                loss += share * walkers.loss(stage);
                for (rank, (walk, shard)) in walkers.walks.iter().zip(&stage.shards).enumerate() {
                    walk.step.gradients.iter().for_each(|(name, gradient)| {
                        collect(&mut gradients, shard, rank, name, &gradient.map(|x| x * T::from_f64(share)));
                    });
                }
            }
        }
        (loss, gradients)
    }
}

fn oracles<'r, T: Real>(group: &'r [(&'r Shard, Params<T>)]) -> Vec<Oracle<'r, T>> {
    group.iter().map(|(shard, params)| Oracle { graph: &shard.graph, params }).collect()
}

fn labels(batch: &Batch<'_>) -> f64 {
    batch.labels.iter().flatten().filter(|label| **label >= 0).count() as f64
}

/// Adds a rank's gradient to that of the whole model: parts and summands where they belong, what all ranks have once.
fn collect<T: Real>(all: &mut Params<T>, shard: &Shard, rank: usize, name: &str, found: &Tensor<T>) {
    let starred = numbered(name).map_or_else(|| name.to_string(), |(_, rest)| format!("layers.*.{rest}"));
    let part = shard.part_of(name);
    if part.is_none() && rank > 0 && !shard.summed.contains(&starred) {
        return;
    }
    let mut shape: Vec<u64> = found.shape.iter().map(|n| *n as u64).collect();
    let mut data = found.data.clone();
    if let Some(part) = part {
        shape[part.axis] = part.whole;
        data = vec![T::from_f64(0.0); shape.iter().product::<u64>() as usize];
        part.place(&shape, &found.data, &mut data);
    }
    let tensor = Tensor::new(shape.iter().map(|n| *n as usize).collect(), data);
    match all.get_mut(&shard.whole_name(name)) {
        Some(sum) => sum.data.iter_mut().zip(&tensor.data).for_each(|(sum, x)| *sum += *x),
        None => drop(all.insert(shard.whole_name(name), tensor)),
    }
}

impl<'o, 'b, T: Real> Walkers<'o, 'b, T> {
    fn new(group: &'o [Oracle<'o, T>], batch: Batch<'b>) -> Walkers<'o, 'b, T> {
        let walks = group.iter().map(|oracle| Walk::new(oracle, batch)).collect();
        Walkers { walks, values: vec![Values::new(); group.len()] }
    }

    /// The loss where the stage makes one.
    fn loss(&self, stage: &Stage<'_>) -> f64 {
        let main = stage.shards[0].graph.main();
        let made = main.nodes.iter().find(|node| node.op.name() == "cross_entropy");
        made.map_or(0.0, |node| self.values[0][&node.output].data[0].to_f64())
    }

    /// One function of all ranks, side by side.
    fn layer(&mut self, functions: &[&Function], layer: u64, x: Vec<Tensor<T>>) -> Vec<Tensor<T>> {
        let start = |(f, x): (&&Function, Tensor<T>)| Values::from([(f.arguments[0], x)]);
        let mut values: Vec<Values<T>> = functions.iter().zip(x).map(start).collect();
        for n in 0..functions[0].nodes.len() {
            let nodes: Vec<&Node> = functions.iter().map(|f| &f.nodes[n]).collect();
            let results = self.node(&nodes, layer, &values);
            for ((node, values), result) in nodes.iter().zip(&mut values).zip(results) {
                values.insert(node.output, result);
            }
        }
        functions.iter().zip(&values).map(|(f, values)| values[&f.results[0]].clone()).collect()
    }

    /// One op of every rank, or what they say to each other.
    fn node(&mut self, nodes: &[&Node], layer: u64, values: &[Values<T>]) -> Vec<Tensor<T>> {
        let kinds: Vec<&str> = nodes.iter().map(|node| node.op.name()).collect();
        assert!(kinds.iter().all(|kind| *kind == kinds[0]), "ranks of a group do the same: {kinds:?}");
        let operands = |i: usize| -> Vec<Tensor<T>> {
            nodes.iter().zip(values).map(|(node, v)| v[&node.inputs[i]].clone()).collect()
        };
        match &nodes[0].op {
            Op::Repeat { times, reverse, .. } => {
                let functions: Vec<&Function> = nodes.iter().zip(&self.walks).map(called).collect();
                let turns = 0..*times;
                let layers: Vec<u64> = if *reverse { turns.rev().collect() } else { turns.collect() };
                let Op::Repeat { first, .. } = nodes[0].op else { unreachable!("just looked") };
                layers.into_iter().fold(operands(0), |x, layer| self.layer(&functions, first + layer, x))
            }
            Op::Sharded(op) if op.is_collective() => met(op, &operands(0)),
            Op::Sharded(Sharded::Take { .. } | Sharded::TakeRows { .. }) => {
                nodes.iter().zip(operands(0)).map(|(node, x)| taken(&node.op, &x)).collect()
            }
            Op::Sharded(Sharded::EmbedPart { .. }) => {
                let ids = self.walks[0].batch.ids;
                nodes.iter().zip(operands(1)).map(|(node, table)| embed_part(ids, &table, &node.op)).collect()
            }
            Op::Sharded(Sharded::EmbedPartDw { .. }) => {
                let ids = self.walks[0].batch.ids;
                nodes.iter().zip(operands(1)).map(|(node, dy)| embed_part_dw(ids, &dy, &node.op)).collect()
            }
            _ => {
                let ranks = self.walks.iter_mut().zip(nodes).zip(values);
                ranks.map(|((walk, node), values)| walk.node(node, layer, values)).collect()
            }
        }
    }
}

fn called<'r, T>((node, walk): (&&Node, &Walk<'r, '_, T>)) -> &'r Function {
    let Op::Repeat { function, .. } = node.op else { unreachable!("the caller looked") };
    &walk.oracle.graph.functions[function]
}

/// Adds what belongs to rows of the part; the rest is other ranks'.
fn embed_part_dw<T: Real>(ids: &[Vec<u32>], dy: &Tensor<T>, op: &Op) -> Tensor<T> {
    let Op::Sharded(Sharded::EmbedPartDw { first, rows }) = *op else { unreachable!("the caller looked") };
    let most = ids.iter().flatten().max().map_or(0, |id| *id as usize + 1).max((first + rows) as usize);
    let all = back::embed_dw(ids, dy, most);
    let width = dy.width();
    let data = all.data[first as usize * width..][..rows as usize * width].to_vec();
    Tensor::new(vec![rows as usize, width], data)
}

impl<'r> Stage<'r> {
    fn new<T>(index: usize, group: &'r [(&'r Shard, Params<T>)], turns: &'r [Turn]) -> Stage<'r> {
        let main = group[0].0.graph.main();
        let receives = |node: &Node| matches!(node.op, Op::Sharded(Sharded::Receive { .. }));
        let starts = main.nodes.iter().enumerate().filter(|(_, node)| receives(node)).map(|(n, _)| n);
        let mut segments: Vec<usize> = std::iter::once(0).chain(starts).chain([main.nodes.len()]).collect();
        // A stage that begins with a receive has no segment before it.
        segments.dedup();
        let shards = group.iter().map(|(shard, _)| *shard).collect();
        Stage { index: index as u64, shards, segments, turns, done: 0 }
    }

    /// Takes turns as long as what they wait for is there; whether it took any.
    fn go<T: Real>(&mut self, walkers: &mut [Walkers<'_, '_, T>], mail: &mut Mail<T>) -> bool {
        let before = self.done;
        while let Some(turn) = self.turns.get(self.done).copied() {
            let range = self.segments[turn.segment as usize]..self.segments[turn.segment as usize + 1];
            let first = &self.shards[0].graph.main().nodes[range.start];
            if let Op::Sharded(Sharded::Receive { stage, lane }) = first.op
                && mail.get(&(stage, self.index, lane)).is_none_or(VecDeque::is_empty)
            {
                break;
            }
            range.for_each(|n| self.node(n, &mut walkers[turn.micro as usize], mail));
            self.done += 1;
        }
        self.done > before
    }

    fn node<T: Real>(&self, n: usize, walkers: &mut Walkers<'_, '_, T>, mail: &mut Mail<T>) {
        let nodes: Vec<&Node> = self.shards.iter().map(|shard| &shard.graph.main().nodes[n]).collect();
        let mut values = std::mem::take(&mut walkers.values);
        let results = match nodes[0].op {
            Op::Sharded(Sharded::Receive { stage, lane }) => {
                let heard = mail.get_mut(&(stage, self.index, lane)).and_then(VecDeque::pop_front);
                heard.expect("the caller looked")
            }
            Op::Sharded(Sharded::Send { stage, lane }) => {
                let told: Vec<Tensor<T>> =
                    nodes.iter().zip(&values).map(|(node, v)| v[&node.inputs[0]].clone()).collect();
                mail.entry((self.index, stage, lane)).or_default().push_back(told.clone());
                told
            }
            _ => walkers.node(&nodes, 0, &values),
        };
        for ((node, values), result) in nodes.iter().zip(&mut values).zip(results) {
            values.insert(node.output, result);
        }
        walkers.values = values;
    }
}
