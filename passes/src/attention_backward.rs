//! Finds the backward pass of an attention whose softmax is computed again: the ops that one kernel can run without a
//! matrix of scores in memory.
//!
//! ```text
//! scores(q, k) -> factors, mask -> softmax = p         p, dp -> softmax_dx -> mask_dx, factors = ds
//! scores(dy, v) = dp                                   values(ds, k) = dq
//! values_dv(p, dy) = dv                                values_dv(ds, q) = dk
//! ```
//! Everything of shape `[B, H, S, L]` must stay inside. A softmax that is kept from the forward pass is in memory anyway,
//! and its backward pass stays op by op.

use lapidary_models::op::Backward;
use lapidary_models::{Function, Node, Op, ValueId};
use std::collections::BTreeSet;

/// One backward pass, by node indices and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Core {
    /// Every node of it.
    pub nodes: BTreeSet<usize>,
    /// Queries, keys, values, derivative by the result.
    pub operands: [ValueId; 4],
    /// The nodes that make the derivatives by queries, keys, values.
    pub results: [usize; 3],
    /// Factors and masks between the scores and the softmax, in order.
    pub before: Vec<usize>,
    /// Heads and key-value heads.
    pub heads: (u64, u64),
}

/// Every such backward pass of a function.
pub fn cores(function: &Function) -> Vec<Core> {
    let find = Finder { function };
    let softmaxes = function.nodes.iter().filter(|node| node.op == Op::Backward(Backward::SoftmaxDx));
    softmaxes.filter_map(|node| find.core(node)).collect()
}

struct Finder<'f> {
    function: &'f Function,
}

impl<'f> Finder<'f> {
    fn node(&self, n: usize) -> &'f Node {
        &self.function.nodes[n]
    }

    fn maker(&self, value: ValueId) -> Option<usize> {
        self.function.nodes.iter().position(|node| node.output == value)
    }

    /// The nodes that read a value; none where the function returns it.
    fn users(&self, value: ValueId) -> Vec<usize> {
        let nodes = self.function.nodes.iter().enumerate();
        match self.function.results.contains(&value) {
            true => Vec::new(),
            false => nodes.filter(|(_, node)| node.inputs.contains(&value)).map(|(n, _)| n).collect(),
        }
    }

    fn only_user(&self, value: ValueId) -> Option<usize> {
        match self.users(value)[..] {
            [user] => Some(user),
            _ => None,
        }
    }

    fn core(&self, softmax_dx: &Node) -> Option<Core> {
        let (p, dp) = (softmax_dx.inputs[0], softmax_dx.inputs[1]);
        let softmax_at = self.maker(softmax_dx.output)?;
        let (softmax, dp_at) = (self.maker(p)?, self.maker(dp)?);
        let (scores, before) = self.before(softmax)?;
        let (last, after) = self.after(softmax_dx.output)?;
        let Op::Scores { heads, kv_heads } = self.node(scores).op else { return None };
        let of_values = |wanted: &Op| *wanted == Op::Values { heads, kv_heads };
        let of_values_dv = |wanted: &Op| *wanted == Op::Backward(Backward::ValuesDv { heads, kv_heads });
        let (q, k) = (self.node(scores).inputs[0], self.node(scores).inputs[1]);
        let same_heads = self.node(dp_at).op == self.node(scores).op;
        let (dy, v) = (*self.node(dp_at).inputs.first()?, *self.node(dp_at).inputs.get(1)?);
        let (dv, _) = self.pair(p, |n| of_values_dv(&self.node(n).op), |n| n == softmax_at)?;
        let (dk, dq) =
            self.pair(last, |n| of_values_dv(&self.node(n).op), |n| of_values(&self.node(n).op))?;
        let fits = same_heads
            && self.only_user(dp) == Some(softmax_at)
            && self.node(dv).inputs == [p, dy]
            && self.node(dk).inputs == [last, q]
            && self.node(dq).inputs == [last, k]
            && self.factor(&before) == self.factor(&after);
        let all =
            [softmax_at, softmax, dp_at, scores, dq, dk, dv].into_iter().chain(before.clone()).chain(after);
        let nodes = all.collect();
        fits.then_some(Core {
            nodes,
            operands: [q, k, v, dy],
            results: [dq, dk, dv],
            before,
            heads: (heads, kv_heads),
        })
    }

    /// The two users of a value, told apart by what they are.
    fn pair(
        &self,
        value: ValueId,
        first: impl Fn(usize) -> bool,
        second: impl Fn(usize) -> bool,
    ) -> Option<(usize, usize)> {
        match self.users(value)[..] {
            [a, b] if first(a) && second(b) => Some((a, b)),
            [a, b] if first(b) && second(a) => Some((b, a)),
            _ => None,
        }
    }

    /// From a softmax back to its scores, over factors and at most one mask that nobody else reads.
    fn before(&self, softmax: usize) -> Option<(usize, Vec<usize>)> {
        if self.node(softmax).op != Op::Softmax {
            return None;
        }
        let mut between = Vec::new();
        let mut value = self.node(softmax).inputs[0];
        loop {
            let at = self.maker(value).filter(|_| self.only_user(value).is_some())?;
            match self.node(at).op {
                Op::Scores { .. } => {
                    between.reverse();
                    return Some((at, between));
                }
                Op::Scale { .. } => between.push(at),
                Op::Mask { .. } if !self.any_mask(&between) => between.push(at),
                _ => return None,
            }
            value = self.node(at).inputs[0];
        }
    }

    fn any_mask(&self, nodes: &[usize]) -> bool {
        nodes.iter().any(|n| matches!(self.node(*n).op, Op::Mask { .. }))
    }

    /// From a softmax's derivative on to the derivative by the scores, over factors and masks.
    fn after(&self, mut value: ValueId) -> Option<(ValueId, Vec<usize>)> {
        let mut between = Vec::new();
        loop {
            let Some(user) = self.only_user(value) else { return Some((value, between)) };
            match self.node(user).op {
                Op::Backward(Backward::MaskDx { .. }) | Op::Scale { .. } => between.push(user),
                _ => return Some((value, between)),
            }
            value = self.node(user).output;
        }
    }

    /// The product of the factors among some nodes.
    fn factor(&self, nodes: &[usize]) -> f64 {
        let mut factors: Vec<f64> = nodes
            .iter()
            .filter_map(|n| match self.node(*n).op {
                Op::Scale { by, .. } => Some(by),
                _ => None,
            })
            .collect();
        factors.sort_by(f64::total_cmp);
        factors.iter().product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_models::autodiff::{Policy, Recompute, training};
    use lapidary_models::{Dims, builtin};

    fn names(model: &str, policy: Recompute) -> Vec<String> {
        let dims = Dims { batch: 1, seq: 8, cached: 0 };
        let graph = training(&builtin(model).unwrap(), dims, &Policy::Uniform(policy)).unwrap().graph;
        let backward = &graph.functions[1];
        let found = cores(backward);
        found.iter().flat_map(|core| &core.nodes).map(|n| backward.nodes[*n].name.clone()).collect()
    }

    #[test]
    fn all_that_is_as_large_as_the_scores_is_inside() {
        for model in ["amber", "llama-3-8b", "jais-13b", "mistral-7b"] {
            assert_eq!(
                names(model, Recompute::Selective),
                [
                    "attn.scores.again",
                    "attn.scale.again",
                    "attn.mask.again",
                    "attn.softmax.again",
                    "attn.values.dp",
                    "attn.values.dv",
                    "attn.softmax.dx",
                    "attn.mask.dx",
                    "attn.scale.dx",
                    "attn.scores.dq",
                    "attn.scores.dk"
                ],
                "{model}"
            );
        }
    }

    #[test]
    fn a_softmax_that_was_kept_has_no_core() {
        assert!(names("amber", Recompute::None).is_empty());
        assert_eq!(names("amber", Recompute::Full).len(), 11);
    }
}
