//! Walks a graph node by node.

use super::ops::{self, Mask, Rotation};
use super::{Params, Real, Tensor};
use lapidary_models::op::{Cache as CacheHalf, Op};
use lapidary_models::{Function, Graph, Node, ValueId};
use std::collections::BTreeMap;

/// Keys and values of earlier tokens, by layer and half (`k`, `v`).
pub type Cache<T> = BTreeMap<(u64, &'static str), Tensor<T>>;

/// What a run computed.
pub struct Run<T> {
    /// The result of `main`.
    pub logits: Tensor<T>,
    /// Every node's result in order: `embed`, `hidden.0`, `layers.0.attn.q`, ..
    pub trace: Vec<(String, Tensor<T>)>,
}

impl<T> Run<T> {
    /// A traced tensor by name.
    pub fn get(&self, name: &str) -> Option<&Tensor<T>> {
        self.trace.iter().find(|(traced, _)| traced == name).map(|(_, tensor)| tensor)
    }
}

/// A graph and the values of its parameters.
pub struct Oracle<'a, T> {
    /// What to compute.
    pub graph: &'a Graph,
    /// With what.
    pub params: &'a Params<T>,
}

type Values<T> = BTreeMap<ValueId, Tensor<T>>;

impl<T: Real> Oracle<'_, T> {
    /// Runs the graph on token ids `[B][S]`; prefill and decode read and extend the cache.
    pub fn run(&self, ids: &[Vec<u32>], cache: &mut Cache<T>) -> Run<T> {
        let main = self.graph.main();
        let mut trace = Vec::new();
        let mut values = Values::new();
        for node in &main.nodes {
            let result = match node.op {
                Op::Embed => ops::embed(ids, &values[&node.inputs[1]]),
                Op::Repeat { function, times, .. } => self.layers(
                    &self.graph.functions[function],
                    times,
                    &values[&node.inputs[0]],
                    cache,
                    &mut trace,
                ),
                _ => self.node(node, 0, &values, cache),
            };
            keep(&mut trace, "", node, &result);
            values.insert(node.output, result);
        }
        Run { logits: values[&main.results[0]].clone(), trace }
    }

    fn layers(
        &self,
        function: &Function,
        times: u64,
        x: &Tensor<T>,
        cache: &mut Cache<T>,
        trace: &mut Vec<(String, Tensor<T>)>,
    ) -> Tensor<T> {
        let mut x = x.clone();
        for layer in 0..times {
            trace.push((format!("hidden.{layer}"), x.clone()));
            let mut values = Values::from([(function.arguments[0], x)]);
            for node in &function.nodes {
                let result = self.node(node, layer, &values, cache);
                keep(trace, &format!("layers.{layer}."), node, &result);
                values.insert(node.output, result);
            }
            x = values[&function.results[0]].clone();
        }
        trace.push((format!("hidden.{times}"), x.clone()));
        x
    }

    /// One op of a forward pass.
    pub(super) fn node(
        &self,
        node: &Node,
        layer: u64,
        values: &Values<T>,
        cache: &mut Cache<T>,
    ) -> Tensor<T> {
        let input = |i: usize| &values[&node.inputs[i]];
        match node.op {
            Op::Param { param } => self.param(param, layer),
            Op::Position { offset } => ops::position(input(0), input(1), offset as usize),
            Op::Linear => ops::linear(input(0), input(1)),
            Op::Bias => ops::bias(input(0), input(1)),
            Op::Add => ops::zip(input(0), input(1), |a, b| a + b),
            Op::Mul => ops::zip(input(0), input(1), |a, b| a * b),
            Op::Scale { by, .. } => input(0).map(|x| x * T::from_f64(by)),
            Op::Activation(function) => input(0).map(|x| ops::activation(function, x)),
            Op::Norm { kind, eps } => {
                let bias = node.inputs.get(2).map(|id| &values[id]);
                ops::norm(kind, eps, input(0), input(1), bias)
            }
            Op::Rope { head_dim, rot_dims, pairing, theta, scaling, offset } => {
                let (head_dim, rot_dims, offset) = (head_dim as usize, rot_dims as usize, offset as usize);
                ops::rope(input(0), Rotation { head_dim, rot_dims, pairing, theta, scaling, offset })
            }
            Op::KvAppend { cache: half, cached } => append(cache, layer, half, cached, input(0)),
            Op::Scores { heads, kv_heads } => {
                ops::scores(input(0), input(1), heads as usize, kv_heads as usize)
            }
            Op::Mask { causal, window, alibi, heads, offset } => {
                let (window, offset) = (window as usize, offset as usize);
                let heads = heads.map(|run| (run.first as usize, run.of as usize));
                ops::mask(input(0), Mask { causal, window, alibi, heads, offset })
            }
            Op::Softmax => ops::softmax(input(0)),
            Op::Values { heads, kv_heads } => {
                ops::values(input(0), input(1), heads as usize, kv_heads as usize)
            }
            Op::LastToken => ops::last_token(input(0)),
            _ => unreachable!("{} stands in main or in a training graph", node.op.name()),
        }
    }

    fn param(&self, param: usize, layer: u64) -> Tensor<T> {
        let name = self.graph.params[param].name.replace('*', &layer.to_string());
        self.params.get(&name).unwrap_or_else(|| panic!("no values for {name}")).clone()
    }
}

fn keep<T: Real>(trace: &mut Vec<(String, Tensor<T>)>, prefix: &str, node: &Node, result: &Tensor<T>) {
    if !matches!(node.op, Op::Param { .. }) {
        trace.push((format!("{prefix}{}", node.name), result.clone()));
    }
}

fn append<T: Real>(
    cache: &mut Cache<T>,
    layer: u64,
    half: CacheHalf,
    cached: u64,
    new: &Tensor<T>,
) -> Tensor<T> {
    let key = (layer, half.name());
    let old = cache.get(&key);
    assert_eq!(old.map_or(0, |old| old.shape[1]), cached as usize, "rows in the cache of layer {layer}");
    let whole = ops::append(old, new);
    cache.insert(key, whole.clone());
    whole
}
