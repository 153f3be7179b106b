//! Maximal-update parametrisation: what training needs per parameter, and how inference gets rid of it.
//!
//! **Training.** With m = d_model / base_width, the rule of Cerebras' model zoo (release 1.9.1, which trained
//! CrystalCoder) gives hidden matrices the learning rate η/m and the initial deviation σ/√m, those that write to the
//! residual stream σ/√(2·L·m); embeddings, biases and norms keep η; biases and norms do not decay. Decay is
//! multiplied by the parameter's own learning rate. The multipliers stay in the graph as ops: folding them would
//! change Adam's steps.
//!
//! **Inference.** The multipliers are constants, so they can be moved into the weights. Write s for the factor on
//! the embedding, t for the one on the logits, a for the one on the scores, r for the one on each half-block.
//!
//! - Scores: a·(q·k) = (a·q)·k, and q is linear in its projection, also after rotation. So the weight and
//!   bias of the query projection take a.
//! - *Untied head.* The embedding (and position) table takes s, the head takes t, the two projections that
//!   write to the residual stream take r.
//! - *Tied head.* One table is used at two scales, so neither can go into it. Instead the whole residual stream
//!   is kept divided by s: x' = x / s. The embedding then needs no factor, and what is added to the stream is divided
//!   by s, so the two projections that write to it take r / s. Each reader of the stream is a norm, and
//!   norm(x / s; eps / s²) = norm(x; eps) for RMSNorm and LayerNorm alike, so every eps takes 1 / s². The final norm's
//!   weight and bias take t. Without a final norm nothing could take t·s, so both factors stay ops.
//!
//! The tests of the workspace show folded = unfolded to 1e-10 in f64 on random specifications.

use crate::graph::{Function, Graph, Param, ValueId};
use crate::op::{Op, ScaleRole};
use crate::spec::{AttentionScale, ModelSpec, Mup};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a training run does with one parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParamRule {
    /// Canonical name; `*` stands for the layer.
    pub name: String,
    /// Factor on the learning rate.
    pub lr_mult: f64,
    /// Factor on the weight decay, which is further multiplied by the parameter's own learning rate.
    pub wd_mult: f64,
    /// Mean of the initial values: 1 for the weights of norms.
    pub init_mean: f64,
    /// Standard deviation of the initial values, a normal distribution cut off at two deviations; 0 for constants.
    pub init_std: f64,
}

/// Deviation of every matrix without muP: `initializer_range` of the published LLaMA and GPT-2 configs.
const PLAIN_STD: f64 = 0.02;

/// A rule for every parameter of the graph, in its order. Without muP, every learning rate is the same.
pub fn parameter_table(spec: &ModelSpec) -> Vec<ParamRule> {
    let dims = crate::Dims { batch: 1, seq: 1, cached: 0 };
    let params = Graph::build(spec, crate::Mode::Forward, dims).map_or(Vec::new(), |graph| graph.params);
    params.iter().map(|param| rule(spec, param)).collect()
}

fn rule(spec: &ModelSpec, param: &Param) -> ParamRule {
    let rule = |lr_mult, wd_mult, init_mean, init_std| ParamRule {
        name: param.name.clone(),
        lr_mult,
        wd_mult,
        init_mean,
        init_std,
    };
    let stem = param.name.trim_start_matches("layers.*.");
    match (stem, spec.mup) {
        _ if stem.ends_with("norm.weight") => rule(1.0, 0.0, 1.0, 0.0),
        _ if stem.ends_with(".bias") => rule(1.0, 0.0, 0.0, 0.0),
        (_, None) => rule(1.0, 1.0, 0.0, PLAIN_STD),
        ("embed.weight" | "position.weight" | "head.weight", Some(mup)) => rule(1.0, 1.0, 0.0, mup.init_std),
        (_, Some(mup)) => {
            let m = fan_in_ratio(spec, &mup, stem);
            let writes_to_stream = matches!(stem, "attn.out.weight" | "mlp.down.weight");
            let depth = if writes_to_stream { 2.0 * spec.n_layers as f64 } else { 1.0 };
            rule(1.0 / m, 1.0, 0.0, mup.init_std / (depth * m).sqrt())
        }
    }
}

/// How many times wider than the proxy's the input of a matrix is.
fn fan_in_ratio(spec: &ModelSpec, mup: &Mup, stem: &str) -> f64 {
    match (stem, mup.base_ffn) {
        ("mlp.down.weight", Some(base_ffn)) => spec.d_ff as f64 / base_ffn as f64,
        _ => mup.width_mult(spec),
    }
}

/// Constant factors moved from ops into weights and epsilons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fold {
    /// Canonical name (`*` for the layer) to the factor that its values take when they are loaded.
    pub scales: BTreeMap<String, f64>,
    /// Factor on the eps of every norm.
    pub eps: f64,
    /// Whether the factors on the embedding and on the logits stay ops: a tied head without a final norm.
    pub keeps_ends: bool,
}

/// How inference gets rid of the constant factors of `spec`; none where it has none.
pub fn inference_fold(spec: &ModelSpec) -> Option<Fold> {
    let factors = spec.multipliers;
    let attention = folded_attention(spec);
    if attention == 1.0 && [factors.embedding, factors.logits, factors.residual] == [1.0; 3] {
        return None;
    }
    let mut fold = if spec.head.tied { tied(spec) } else { untied(spec) };
    fold.take(&["layers.*.attn.q.weight", "layers.*.attn.q.bias"], attention);
    Some(fold.only_parameters_of(spec))
}

/// muP's factor on the scores; the usual one stays with the attention kernel.
fn folded_attention(spec: &ModelSpec) -> f64 {
    let mup_power = spec.attn.scale == AttentionScale::HeadDimPower(-1.0);
    if spec.mup.is_some() && mup_power { spec.attention_scale() } else { 1.0 }
}

const STREAM_WRITERS: [&str; 4] = [
    "layers.*.attn.out.weight",
    "layers.*.attn.out.bias",
    "layers.*.mlp.down.weight",
    "layers.*.mlp.down.bias",
];

fn tied(spec: &ModelSpec) -> Fold {
    let (s, t, r) = (spec.multipliers.embedding, spec.multipliers.logits, spec.multipliers.residual);
    let keeps_ends = !spec.norm.final_norm;
    let stream = if keeps_ends { 1.0 } else { s };
    let mut fold = Fold { scales: BTreeMap::new(), eps: 1.0 / (stream * stream), keeps_ends };
    fold.take(&STREAM_WRITERS, r / stream);
    fold.take(&["final_norm.weight", "final_norm.bias"], t);
    fold
}

fn untied(spec: &ModelSpec) -> Fold {
    let mut fold = Fold { scales: BTreeMap::new(), eps: 1.0, keeps_ends: false };
    fold.take(&["embed.weight", "position.weight"], spec.multipliers.embedding);
    fold.take(&["head.weight", "head.bias"], spec.multipliers.logits);
    fold.take(&STREAM_WRITERS, spec.multipliers.residual);
    fold
}

impl Fold {
    fn take(&mut self, names: &[&str], factor: f64) {
        if factor != 1.0 {
            self.scales.extend(names.iter().map(|name| (name.to_string(), factor)));
        }
    }

    fn only_parameters_of(mut self, spec: &ModelSpec) -> Fold {
        let table = parameter_table(spec);
        self.scales.retain(|name, _| table.iter().any(|rule| rule.name == *name));
        self
    }

    /// The factor that the values of a parameter take.
    pub fn scale(&self, param: &str) -> f64 {
        self.scales.get(param).copied().unwrap_or(1.0)
    }

    /// The graph without the folded ops; its parameters still have to take [`Fold::scales`].
    pub fn apply(&self, graph: &Graph) -> Graph {
        let functions = graph.functions.iter().map(|function| self.without_scales(function)).collect();
        Graph { functions, ..graph.clone() }
    }

    fn without_scales(&self, function: &Function) -> Function {
        let mut instead: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let mut folded = Function { nodes: Vec::new(), ..function.clone() };
        for node in &function.nodes {
            let mut node = node.clone();
            for input in &mut node.inputs {
                *input = *instead.get(input).unwrap_or(input);
            }
            match self.op(&node.op) {
                Some(op) => folded.nodes.push(crate::Node { op, ..node }),
                None => drop(instead.insert(node.output, node.inputs[0])),
            }
        }
        for result in &mut folded.results {
            *result = *instead.get(result).unwrap_or(result);
        }
        folded
    }

    fn keeps(&self, role: ScaleRole) -> bool {
        use ScaleRole::{Attention, Embedding, MupEmbedding, MupOutput, Output};
        let end = matches!(role, Embedding | MupEmbedding | Output | MupOutput);
        role == Attention || (end && self.keeps_ends)
    }

    /// What becomes of an op; nothing where its factor went into the weights.
    fn op(&self, op: &Op) -> Option<Op> {
        match *op {
            Op::Norm { kind, eps } => Some(Op::Norm { kind, eps: eps * self.eps }),
            Op::Scale { role, .. } if self.keeps(role) => Some(op.clone()),
            Op::Scale { .. } => None,
            _ => Some(op.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::builtin;

    fn rule_of(table: &[ParamRule], name: &str) -> (f64, f64, f64, f64) {
        let rule =
            table.iter().find(|rule| rule.name == name).unwrap_or_else(|| panic!("no rule for {name}"));
        (rule.lr_mult, rule.wd_mult, rule.init_mean, rule.init_std)
    }

    /// params.yaml of CrystalCoder: 0.073, 0.01825, 0.00228125; hidden learning rates times 0.0625.
    #[test]
    fn crystalcoder_trains_with_its_published_numbers() {
        let table = parameter_table(&builtin("crystalcoder").unwrap());
        assert_eq!(rule_of(&table, "embed.weight"), (1.0, 1.0, 0.0, 0.073));
        assert_eq!(rule_of(&table, "layers.*.attn.q.weight"), (0.0625, 1.0, 0.0, 0.01825));
        assert_eq!(rule_of(&table, "layers.*.mlp.gate.weight"), (0.0625, 1.0, 0.0, 0.01825));
        assert_eq!(rule_of(&table, "layers.*.mlp.down.weight").0, 0.0625);
        assert!((rule_of(&table, "layers.*.mlp.down.weight").3 - 0.002_281_25).abs() < 1e-15);
        assert!((rule_of(&table, "layers.*.attn.out.weight").3 - 0.002_281_25).abs() < 1e-15);
        assert_eq!(rule_of(&table, "layers.*.attn_norm.weight"), (1.0, 0.0, 1.0, 0.0));
        assert_eq!(rule_of(&table, "layers.*.mlp.up.bias"), (1.0, 0.0, 0.0, 0.0));
    }

    #[test]
    fn amber_trains_every_matrix_alike() {
        let spec = builtin("amber").unwrap();
        let table = parameter_table(&spec);
        assert_eq!(rule_of(&table, "layers.*.mlp.down.weight"), rule_of(&table, "head.weight"));
        assert_eq!(inference_fold(&spec), None);
    }

    #[test]
    fn crystalcoder_folds_as_derived() {
        let spec = builtin("crystalcoder").unwrap();
        let fold = inference_fold(&spec).unwrap();
        assert_eq!(fold.scale("layers.*.attn.q.bias"), 1.0 / 128.0);
        assert_eq!(fold.scale("layers.*.attn.out.weight"), 1.0 / 14.6);
        assert_eq!(fold.scale("layers.*.mlp.down.bias"), 1.0 / 14.6);
        assert_eq!(fold.scale("final_norm.bias"), 0.13875);
        assert_eq!(
            (fold.eps, fold.keeps_ends, fold.scale("embed.weight")),
            (1.0 / (14.6 * 14.6), false, 1.0)
        );
        let dims = crate::Dims { batch: 1, seq: 4, cached: 0 };
        let graph = fold.apply(&Graph::build(&spec, crate::Mode::Forward, dims).unwrap());
        let scales =
            graph.functions.iter().flat_map(|f| &f.nodes).filter(|n| matches!(n.op, Op::Scale { .. }));
        assert_eq!(scales.count(), 0, "no multiplier remains");
    }
}
