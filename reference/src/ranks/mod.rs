//! Walks the parts of a spread model side by side: what ranks say to each other is a sum, a concatenation or a hand-over
//! of tensors that all lie here.

mod train;

use super::interpret::{Cache, Oracle};
use super::{Params, Real, Tensor, ops};
use lapidary_models::op::{Op, Sharded};
use lapidary_models::shard::{Shard, numbered};
use lapidary_models::{Function, Node, ValueId};
use std::collections::BTreeMap;

/// All ranks of one replica: stages of the pipeline, each with the ranks of its tensor-parallel group in order.
pub struct Ranks<'a, T> {
    stages: Vec<Vec<(&'a Shard, Params<T>)>>,
}

type Values<T> = BTreeMap<ValueId, Tensor<T>>;

/// One group while it runs: values and cache of every rank.
struct Group<'r, T> {
    ranks: Vec<Oracle<'r, T>>,
    caches: &'r mut [Cache<T>],
}

impl<'a, T: Real> Ranks<'a, T> {
    /// Gives every rank its part of the whole model's parameters.
    ///
    /// # Panics
    /// When a parameter is missing.
    pub fn new(stages: &'a [Vec<Shard>], whole: &Params<T>) -> Ranks<'a, T> {
        let rank = |shard: &'a Shard| (shard, params(shard, whole));
        Ranks { stages: stages.iter().map(|group| group.iter().map(rank).collect()).collect() }
    }

    /// Runs all stages on token ids `[B][S]`; `caches` are those of the ranks, stage by stage. Returns what every rank of
    /// the last stage has in the end.
    ///
    /// # Panics
    /// When the parts do not fit together.
    pub fn run(&self, ids: &[Vec<u32>], caches: &mut [Vec<Cache<T>>]) -> Vec<Tensor<T>> {
        let mut passed = Vec::new();
        for (stage, caches) in self.stages.iter().zip(caches) {
            let ranks = stage.iter().map(|(shard, params)| Oracle { graph: &shard.graph, params }).collect();
            passed = Group { ranks, caches }.main(ids, passed);
        }
        passed
    }
}

fn params<T: Real>(shard: &Shard, whole: &Params<T>) -> Params<T> {
    let mut own = Params::new();
    for (name, tensor) in whole {
        let local = match numbered(name) {
            Some((layer, rest)) => match shard.layers.iter().position(|own| *own == layer) {
                Some(at) => format!("layers.{at}.{rest}"),
                None => continue,
            },
            None => name.clone(),
        };
        let shape: Vec<u64> = tensor.shape.iter().map(|n| *n as u64).collect();
        let part = shard.part_of(name).map(|part| Tensor {
            shape: part.shape(&shape).into_iter().map(|n| n as usize).collect(),
            data: part.cut(&shape, 1, &tensor.data, T::from_f64(0.0)),
        });
        own.insert(local, part.unwrap_or_else(|| tensor.clone()));
    }
    own
}

impl<T: Real> Group<'_, T> {
    fn main(&mut self, ids: &[Vec<u32>], received: Vec<Tensor<T>>) -> Vec<Tensor<T>> {
        let mains: Vec<&Function> = self.ranks.iter().map(|rank| rank.graph.main()).collect();
        let mut values: Vec<Values<T>> = vec![Values::new(); mains.len()];
        for n in 0..mains[0].nodes.len() {
            let nodes: Vec<&Node> = mains.iter().map(|main| &main.nodes[n]).collect();
            let each = |f: &dyn Fn(&Node, &Values<T>) -> Tensor<T>| -> Vec<Tensor<T>> {
                nodes.iter().zip(&values).map(|(node, values)| f(node, values)).collect()
            };
            let results = match &nodes[0].op {
                Op::Sharded(Sharded::Receive { .. }) => received.clone(),
                Op::Embed => each(&|node, v| ops::embed(ids, &v[&node.inputs[1]])),
                Op::Sharded(Sharded::EmbedPart { .. }) => {
                    each(&|node, v| embed_part(ids, &v[&node.inputs[1]], &node.op))
                }
                Op::Repeat { times, .. } => {
                    let x = each(&|node, v| v[&node.inputs[0]].clone());
                    (0..*times).fold(x, |x, layer| self.layer(layer, x))
                }
                _ => self.step(&nodes, 0, &values),
            };
            for ((node, values), result) in nodes.iter().zip(&mut values).zip(results) {
                values.insert(node.output, result);
            }
        }
        mains.iter().zip(&values).map(|(main, values)| values[&main.results[0]].clone()).collect()
    }

    fn layer(&mut self, layer: u64, x: Vec<Tensor<T>>) -> Vec<Tensor<T>> {
        let layers: Vec<&Function> = self.ranks.iter().map(|rank| rank.graph.layer()).collect();
        let start = |(f, x): (&&Function, Tensor<T>)| Values::from([(f.arguments[0], x)]);
        let mut values: Vec<Values<T>> = layers.iter().zip(x).map(start).collect();
        for n in 0..layers[0].nodes.len() {
            let nodes: Vec<&Node> = layers.iter().map(|layer| &layer.nodes[n]).collect();
            let results = self.step(&nodes, layer, &values);
            for ((node, values), result) in nodes.iter().zip(&mut values).zip(results) {
                values.insert(node.output, result);
            }
        }
        layers.iter().zip(&values).map(|(layer, values)| values[&layer.results[0]].clone()).collect()
    }

    /// One op of every rank, or what they say to each other.
    fn step(&mut self, nodes: &[&Node], layer: u64, values: &[Values<T>]) -> Vec<Tensor<T>> {
        let kinds: Vec<&str> = nodes.iter().map(|node| node.op.name()).collect();
        assert!(kinds.iter().all(|kind| *kind == kinds[0]), "ranks of a group do the same: {kinds:?}");
        let parts =
            || nodes.iter().zip(values).map(|(node, v)| v[&node.inputs[0]].clone()).collect::<Vec<_>>();
        match &nodes[0].op {
            Op::Sharded(Sharded::Send { .. }) => parts(),
            Op::Sharded(op) if op.is_collective() => met(op, &parts()),
            Op::Sharded(Sharded::Take { .. } | Sharded::TakeRows { .. }) => {
                nodes.iter().zip(parts()).map(|(node, x)| taken(&node.op, &x)).collect()
            }
            _ => {
                let ranks = self.ranks.iter().zip(self.caches.iter_mut());
                let ranks = ranks.zip(nodes).zip(values);
                ranks.map(|(((rank, cache), node), values)| rank.node(node, layer, values, cache)).collect()
            }
        }
    }
}

/// What every rank of a group has of what all of them tell.
fn met<T: Real>(op: &Sharded, parts: &[Tensor<T>]) -> Vec<Tensor<T>> {
    let sum = || parts[1..].iter().fold(parts[0].clone(), |sum, x| ops::zip(&sum, x, |a, b| a + b));
    match *op {
        Sharded::AllReduce => vec![sum(); parts.len()],
        Sharded::AllGather { width } => vec![side_by_side(parts, width as usize); parts.len()],
        Sharded::ReduceScatter { ranks } => {
            let sum = sum();
            let rows = (sum.data.len() / sum.width()).div_ceil(ranks as usize);
            (0..ranks as usize).map(|rank| run_of_rows(&sum, rank * rows, rows)).collect()
        }
        Sharded::GatherRows { batch, seq } => {
            let width = parts[0].width();
            let (batch, seq) = (batch as usize, seq as usize);
            let all = parts.iter().flat_map(|part| part.data.iter().copied());
            let data: Vec<T> = all.take(batch * seq * width).collect();
            vec![Tensor { shape: vec![batch, seq, width], data }; parts.len()]
        }
        _ => unreachable!("{} is met by stages", op.name()),
    }
}

/// The part of a value that a rank goes on with.
fn taken<T: Real>(op: &Op, x: &Tensor<T>) -> Tensor<T> {
    match *op {
        Op::Sharded(Sharded::TakeRows { first, rows }) => run_of_rows(x, first as usize, rows as usize),
        Op::Sharded(Sharded::Take { first, length, held }) => {
            let (first, length, held) = (first as usize, length as usize, held as usize);
            x.map_rows(held, |row| {
                let padding = std::iter::repeat_n(T::from_f64(0.0), held - length);
                row[first..first + length].iter().copied().chain(padding).collect()
            })
        }
        _ => unreachable!("{} takes nothing", op.name()),
    }
}

/// `[1, rows, N]` from row `first` on, zeros behind the last.
fn run_of_rows<T: Real>(x: &Tensor<T>, first: usize, rows: usize) -> Tensor<T> {
    let width = x.width();
    let mut data: Vec<T> = x.data.iter().skip(first * width).take(rows * width).copied().collect();
    data.resize(rows * width, T::from_f64(0.0));
    Tensor { shape: vec![1, rows, width], data }
}

/// Rows of the parts after one another, cut off at `width`.
fn side_by_side<T: Real>(parts: &[Tensor<T>], width: usize) -> Tensor<T> {
    let mut shape = parts[0].shape.clone();
    let part = shape.pop().unwrap_or(1);
    let rows: usize = shape.iter().product();
    let row =
        |r: usize| parts.iter().flat_map(move |x| x.data[r * part..][..part].iter().copied()).take(width);
    let data: Vec<T> = (0..rows).flat_map(row).collect();
    shape.push(width);
    Tensor { shape, data }
}

fn embed_part<T: Real>(ids: &[Vec<u32>], table: &Tensor<T>, op: &Op) -> Tensor<T> {
    let Op::Sharded(Sharded::EmbedPart { first }) = *op else { unreachable!("the caller looked") };
    let (rows, width) = (table.shape[0] as u64, table.shape[1]);
    let row = |id: &u32| match u64::from(*id).checked_sub(first).filter(|at| *at < rows) {
        Some(at) => table.data[at as usize * width..][..width].to_vec(),
        None => vec![T::from_f64(0.0); width],
    };
    let data = ids.iter().flatten().flat_map(row).collect();
    Tensor { shape: vec![ids.len(), ids[0].len(), width], data }
}
