//! Runs a training graph: the loss of a batch and the gradient of every parameter.

use super::backward as back;
use super::ops::{self, Mask, Rotation};
use super::{Oracle, Params, Real, Tensor};
use lapidary_models::op::{Backward, Op};
use lapidary_models::{Function, Node, ValueId};
use std::collections::BTreeMap;

/// Token ids `[B][S]` and what should follow each of them; a negative label does not count.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids.
    pub ids: &'a [Vec<u32>],
    /// Labels.
    pub labels: &'a [Vec<i32>],
}

/// What a training graph computes.
pub struct Step<T> {
    /// Mean cross entropy.
    pub loss: f64,
    /// By canonical name with the layer filled in.
    pub gradients: Params<T>,
    /// Largest number of values that the layers kept at once.
    pub kept: usize,
}

type Values<T> = BTreeMap<ValueId, Tensor<T>>;

/// A batch on its way through a training graph.
pub(super) struct Walk<'o, 'b, T> {
    pub oracle: &'o Oracle<'o, T>,
    pub batch: Batch<'b>,
    pub slots: BTreeMap<(usize, u64), Tensor<T>>,
    pub step: Step<T>,
}

impl<T: Real> Oracle<'_, T> {
    /// Runs a training graph (one of `lapidary_models::autodiff`) on a batch.
    pub fn step(&self, batch: Batch) -> Step<T> {
        let mut walk = Walk::new(self, batch);
        let results = walk.function(self.graph.main(), 0, None);
        walk.step.loss = results.data[0].to_f64();
        walk.step
    }
}

impl<'o, 'b, T: Real> Walk<'o, 'b, T> {
    /// The walk at its start.
    pub fn new(oracle: &'o Oracle<'o, T>, batch: Batch<'b>) -> Walk<'o, 'b, T> {
        let step = Step { loss: 0.0, gradients: Params::new(), kept: 0 };
        Walk { oracle, batch, slots: BTreeMap::new(), step }
    }

    fn function(&mut self, function: &Function, layer: u64, x: Option<Tensor<T>>) -> Tensor<T> {
        let mut values = Values::new();
        if let Some(x) = x {
            values.insert(function.arguments[0], x);
        }
        for node in &function.nodes {
            let result = self.node(node, layer, &values);
            values.insert(node.output, result);
        }
        values[&function.results[0]].clone()
    }

    /// One op.
    pub fn node(&mut self, node: &Node, layer: u64, values: &Values<T>) -> Tensor<T> {
        let input = |i: usize| &values[&node.inputs[i]];
        match node.op {
            Op::Embed => ops::embed(self.batch.ids, input(1)),
            Op::Backward(Backward::EmbedDw { rows }) => {
                back::embed_dw(self.batch.ids, input(1), rows as usize)
            }
            Op::Backward(Backward::CrossEntropy) => back::cross_entropy(input(0), self.batch.labels),
            Op::Backward(Backward::CrossEntropyDx) => back::cross_entropy_dx(input(0), self.batch.labels),
            Op::Repeat { function, first, times, reverse } => {
                let mut layers: Vec<u64> = (first..first + times).collect();
                if reverse {
                    layers.reverse();
                }
                let function = &self.oracle.graph.functions[function];
                layers.iter().fold(input(0).clone(), |x, layer| self.function(function, *layer, Some(x)))
            }
            Op::Backward(Backward::Save { slot }) => {
                self.slots.insert((slot, layer), input(0).clone());
                let kept = self.slots.values().map(|tensor| tensor.data.len()).sum();
                self.step.kept = self.step.kept.max(kept);
                input(0).clone()
            }
            Op::Backward(Backward::Saved { slot }) => self.slots[&(slot, layer)].clone(),
            Op::Backward(Backward::Gradient { param }) => self.gradient(param, layer, input(0)),
            Op::Backward(ref op) => backward(op, &input),
            _ => self.oracle.node(node, layer, values, &mut BTreeMap::new()),
        }
    }

    fn gradient(&mut self, param: usize, layer: u64, dw: &Tensor<T>) -> Tensor<T> {
        let name = self.oracle.graph.params[param].name.replace('*', &layer.to_string());
        let gradients = &mut self.step.gradients;
        match gradients.get_mut(&name) {
            Some(sum) => sum.data.iter_mut().zip(&dw.data).for_each(|(sum, dw)| *sum += *dw),
            None => drop(gradients.insert(name, dw.clone())),
        }
        dw.clone()
    }
}

/// The ops that need nothing but their operands.
fn backward<'v, T: Real>(op: &Backward, input: &dyn Fn(usize) -> &'v Tensor<T>) -> Tensor<T> {
    match *op {
        Backward::LinearDx => back::linear_dx(input(0), input(1)),
        Backward::LinearDw => back::linear_dw(input(0), input(1)),
        Backward::ColumnSum => back::column_sum(input(0)),
        Backward::ActivationDx(f) => ops::zip(input(0), input(1), |x, dy| back::slope(f, x) * dy),
        Backward::NormDx { kind, eps } => back::norm_dx(kind, eps, input(0), input(1), input(2)),
        Backward::NormDw { kind, eps } => back::norm_dw(kind, eps, input(0), input(1)),
        Backward::RopeDx { head_dim, rot_dims, pairing, theta, scaling, offset } => {
            let (head_dim, rot_dims, offset) = (head_dim as usize, rot_dims as usize, offset as usize);
            back::rope_dx(input(0), Rotation { head_dim, rot_dims, pairing, theta, scaling, offset })
        }
        Backward::MaskDx { causal, window, offset } => {
            let (window, offset) = (window as usize, offset as usize);
            back::mask_dx(input(0), Mask { causal, window, alibi: None, heads: None, offset })
        }
        Backward::SoftmaxDx => back::softmax_dx(input(0), input(1)),
        Backward::ValuesDv { heads, kv_heads } => {
            back::values_dv(input(0), input(1), heads as usize, kv_heads as usize)
        }
        Backward::PositionDw { offset, rows } => back::position_dw(input(0), offset as usize, rows as usize),
        Backward::LastTokenDx { seq } => back::last_token_dx(input(0), seq as usize),
        _ => unreachable!("{} needs more than its operands", op.name()),
    }
}
