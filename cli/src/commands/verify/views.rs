//! Where the stored tensors are in a compiled model, and with which factor.
//!
//! Passes move factors into weights (`mup-fold` carries a tied model's whole residual stream divided by the embedding's
//! factor), so a value on the device may be a multiple of the stored one. The multiples are read from the module: from
//! what became of the norms' eps and from the factors that its parameters take.
//!
//! A fused kernel keeps its inner values in registers. What a half-block adds to the stream is then the difference of
//! the stream behind and before it, which is written.

use super::device::{Trace, traced};
use lapidary_models::{Function, ModelSpec, Node, Op, ValueId};
use lapidary_passes::cpu::{HostFunction, HostModule};

/// How a stored tensor is made from values of the device.
#[derive(Clone, Debug, PartialEq)]
pub enum Recipe {
    /// A value times a factor.
    Value {
        /// Name in the trace.
        name: String,
        /// Brings it to the stored scale.
        factor: f64,
    },
    /// The difference of two values times a factor.
    Difference {
        /// Name of the minuend.
        of: String,
        /// Name of the subtrahend.
        minus: String,
        /// Brings it to the stored scale.
        factor: f64,
    },
}

/// A stored tensor and the ways to it, the straightest first.
pub struct View {
    /// Name of the stored tensor.
    pub stored: String,
    /// Name of the node that makes it, and its op.
    pub node: (String, &'static str),
    /// The ways.
    pub recipes: Vec<Recipe>,
}

/// A tensor as the device has it.
pub struct Found {
    /// Values of all tokens.
    pub data: Vec<f64>,
    /// What it was made from, where that is more than the value itself.
    pub from: Option<String>,
}

impl View {
    /// Whether a traced value is needed.
    pub fn wants(&self, name: &str) -> bool {
        self.recipes.iter().any(|recipe| match recipe {
            Recipe::Value { name: wanted, .. } => wanted == name,
            Recipe::Difference { of, minus, .. } => of == name || minus == name,
        })
    }

    /// The tensor out of a trace; none when no way leads to it.
    pub fn find(&self, trace: &Trace) -> Option<Found> {
        if self.stored == "logits" {
            return Some(Found { data: trace.logits.clone(), from: None });
        }
        self.recipes.iter().find_map(|recipe| recipe.make(trace))
    }
}

impl Recipe {
    fn make(&self, trace: &Trace) -> Option<Found> {
        match self {
            Recipe::Value { name, factor } => {
                let data = trace.values.get(name)?.iter().map(|x| x * factor).collect();
                let from = (*factor != 1.0).then(|| format!("{name} x {factor:.6}"));
                Some(Found { data, from })
            }
            Recipe::Difference { of, minus, factor } => {
                let pairs = trace.values.get(of)?.iter().zip(trace.values.get(minus)?);
                let data = pairs.map(|(a, b)| (a - b) * factor).collect();
                let times = if *factor == 1.0 { String::new() } else { format!(" x {factor:.6}") };
                Some(Found { data, from: Some(format!("({of} - {minus}){times}")) })
            }
        }
    }
}

/// The factors and names of one module.
pub struct Views<'m> {
    spec: &'m ModelSpec,
    module: &'m HostModule,
}

impl<'m> Views<'m> {
    /// The views into a module of `spec`.
    pub fn new(spec: &'m ModelSpec, module: &'m HostModule) -> Self {
        Views { spec, module }
    }

    /// The view of a stored tensor.
    pub fn of(&self, stored: &str) -> View {
        let (at, recipes) = match stored {
            "block0.norm1" => self.norm("attn_norm"),
            "block0.norm2" if self.has("mlp_norm") => self.norm("mlp_norm"),
            "block0.norm2" => self.norm("attn_norm"),
            "block0.attn" => self.half("attn.out", "attn.multiplier", "attn.residual", &self.hidden(0)),
            "block0.mlp" => {
                self.half("mlp.down", "mlp.multiplier", "mlp.residual", &traced(Some(0), "attn.residual"))
            }
            "final_norm" => self.final_norm(),
            "logits" => (self.result(&self.module.main), Vec::new()),
            _ => {
                let hidden = stored.strip_prefix("hidden.").and_then(|at| at.parse().ok()).unwrap_or(0);
                let name = self.hidden(hidden);
                (name.clone(), vec![Recipe::Value { name, factor: self.stream() }])
            }
        };
        let op = self.op(&at);
        View { stored: stored.into(), node: (at, op), recipes }
    }

    /// What the residual stream has to be multiplied with: every norm that reads it divides its eps by the square.
    fn stream(&self) -> f64 {
        match self.node("attn_norm").map(|node| &node.op) {
            Some(Op::Norm { eps, .. }) => (self.spec.norm.eps / eps).sqrt(),
            _ => 1.0,
        }
    }

    /// Where the input of layer `at` is, or the result of the last one.
    fn hidden(&self, at: usize) -> String {
        match at {
            0 => self.stream_input(),
            _ => traced(Some(at - 1), &self.result(&self.module.layer)),
        }
    }

    fn stream_input(&self) -> String {
        let main = &self.module.main.function;
        let repeat = main.nodes.iter().find(|node| matches!(node.op, Op::Repeat { .. }));
        let maker = repeat.and_then(|node| maker(main, *node.inputs.first()?));
        maker.map_or_else(String::new, |node| node.name.clone())
    }

    fn result(&self, host: &HostFunction) -> String {
        let maker = host.function.results.first().and_then(|id| maker(&host.function, *id));
        maker.map_or_else(String::new, |node| node.name.clone())
    }

    fn node(&self, name: &str) -> Option<&'m Node> {
        self.module.layer.function.nodes.iter().find(|node| node.name == name)
    }

    fn has(&self, name: &str) -> bool {
        self.node(name).is_some()
    }

    fn op(&self, name: &str) -> &'static str {
        let inner = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
        let (function, name) = match inner {
            Some((_, inner)) => (&self.module.layer.function, inner),
            None => (&self.module.main.function, name),
        };
        function.nodes.iter().find(|node| node.name == name).map_or("", |node| node.op.name())
    }

    fn norm(&self, name: &str) -> (String, Vec<Recipe>) {
        let factor = 1.0 / scale(&self.module.layer, self.node(name));
        let name = traced(Some(0), name);
        (name.clone(), vec![Recipe::Value { name, factor }])
    }

    /// What one half of the first block adds to the stream, without the residual factor.
    fn half(&self, linear: &str, multiplier: &str, sum: &str, before: &str) -> (String, Vec<Recipe>) {
        let biased = format!("{linear}.bias");
        let name = if self.has(&biased) { &biased } else { linear };
        let scale = scale(&self.module.layer, self.node(linear));
        let residual = self.spec.multipliers.residual;
        let value = |name: &str, factor| Recipe::Value { name: traced(Some(0), name), factor };
        let mut recipes = vec![value(name, 1.0 / scale)];
        if self.has(multiplier) {
            recipes.push(value(multiplier, 1.0 / (scale * residual)));
        }
        let (of, minus) = (traced(Some(0), sum), before.to_string());
        recipes.push(Recipe::Difference { of, minus, factor: self.stream() / residual });
        (traced(Some(0), name), recipes)
    }

    /// The last norm; where a factor was put behind it, both may be one kernel.
    fn final_norm(&self) -> (String, Vec<Recipe>) {
        let main = &self.module.main.function;
        let Some(norm) = main.nodes.iter().find(|node| matches!(node.op, Op::Norm { .. })) else {
            return (String::new(), Vec::new());
        };
        let factor = 1.0 / scale(&self.module.main, Some(norm));
        let mut recipes = vec![Recipe::Value { name: norm.name.clone(), factor }];
        let scaled = main.nodes.iter().filter(|node| node.inputs.first() == Some(&norm.output));
        recipes.extend(scaled.filter_map(|node| match node.op {
            Op::Scale { by, .. } => Some(Recipe::Value { name: node.name.clone(), factor: factor / by }),
            _ => None,
        }));
        (norm.name.clone(), recipes)
    }
}

fn maker(function: &Function, value: ValueId) -> Option<&Node> {
    function.nodes.iter().find(|node| node.output == value)
}

/// The factor that the weight of a node takes when it is loaded.
fn scale(host: &HostFunction, node: Option<&Node>) -> f64 {
    let weight = node.and_then(|node| maker(&host.function, *node.inputs.get(1)?));
    match weight.map(|node| &node.op) {
        Some(Op::Param { param }) => host.params.get(*param).map_or(1.0, |param| param.scale),
        _ => 1.0,
    }
}
