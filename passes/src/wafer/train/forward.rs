//! Ops of a forward pass, as the first pass of a layer or computed again in its backward program.

use super::TrainError;
use super::draft::Draft;
use crate::wafer::kernel::attention::distance::slopes;
use crate::wafer::placed::{
    Activation, Attention, Layout, Linear, Map, Norm, NormKind, OpKind, Pairing, Parameter, Path, Rope,
    Segment, Source, Step,
};
use lapidary_models::op::Backward;
use lapidary_models::{Node, Op, ValueId, spec};

/// The scores of an attention, from queries and keys to the values that they weigh.
pub struct Scores {
    pub query: ValueId,
    pub key: ValueId,
    pub scale: f64,
    pub slopes: Vec<f64>,
    pub window: Option<u32>,
    /// The nodes between.
    pub nodes: Vec<usize>,
}

impl Draft<'_> {
    /// Places a node of a forward pass; `false` for another kind of node.
    pub fn forward(&mut self, node: &Node) -> Result<bool, TrainError> {
        let (n, first) = (self.at, node.inputs.first().copied());
        match (&node.op, first) {
            (Op::Embed, _) => {
                let table = self.parameter(node.inputs[1])?;
                self.rows(node.output, "embed", Source::Lookup { table });
            }
            (Op::Position { offset }, Some(x)) => {
                let table = self.parameter(node.inputs[1])?;
                let x = self.name(x)?;
                let rows = self.rows(node.output, "position", Source::Positions { table, offset: *offset });
                let map = Map { input: x, output: rows.clone(), steps: vec![Step::Add(rows)] };
                self.push("add.position", OpKind::Map(map), &[n]);
            }
            (Op::Linear, _) => self.linear(n)?,
            (Op::Norm { kind, eps }, Some(x)) => self.norm(node, x, norm_kind(*kind), *eps)?,
            (Op::Rope { .. }, Some(x)) => self.rope(node, x, false)?,
            (Op::KvAppend { cached: 0, .. }, Some(x)) => {
                let name = self.name(x)?;
                self.call(node.output, &name);
            }
            (Op::Add, Some(a)) => {
                let b = self.name(node.inputs[1])?;
                self.map(a, vec![Step::Add(b)], &[n])?;
            }
            (Op::Mul, Some(a)) => {
                let b = self.name(node.inputs[1])?;
                self.map(a, vec![Step::Mul(b)], &[n])?;
            }
            (Op::Scale { by, .. }, Some(x)) => self.map(x, vec![Step::Scale(*by)], &[n])?,
            (Op::Activation(function), Some(x)) => {
                self.map(x, vec![Step::Activation(activation(*function))], &[n])?;
            }
            (Op::Values { .. }, Some(p)) => self.attention(node, p)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Rows that the host looks up.
    fn rows(&mut self, value: ValueId, name: &str, source: Source) -> String {
        let value = self.define(value, name, self.columns(value));
        let tensor = self.unique(&format!("{value}.rows"));
        let kind = OpKind::Input { value: value.clone(), tensor, source, path: Path::Resident };
        let at = self.at;
        self.push(&format!("load.{value}"), kind, &[at]);
        value
    }

    fn norm(&mut self, node: &Node, x: ValueId, kind: NormKind, eps: f64) -> Result<(), TrainError> {
        let weight = self.parameter(node.inputs[1])?;
        let bias = node.inputs.get(2).map(|bias| self.parameter(*bias)).transpose()?;
        let input = self.name(x)?;
        let output = self.define(node.output, &format!("{}.out", node.name), self.columns(node.output));
        let at = self.at;
        self.push(&node.name, OpKind::Norm(Norm { input, output, kind, eps, weight, bias }), &[at]);
        Ok(())
    }

    /// A rotation, forward or back, in place.
    pub fn rope(&mut self, node: &Node, x: ValueId, back: bool) -> Result<(), TrainError> {
        let (Op::Rope { rot_dims, pairing, theta, scaling, offset, .. }
        | Op::Backward(Backward::RopeDx { rot_dims, pairing, theta, scaling, offset, .. })) = &node.op
        else {
            return self.fault("is no rotation");
        };
        let name = self.name(x)?;
        let value = self.own(&name);
        self.call(node.output, &value);
        let (rot_dims, pairing) = (*rot_dims, *pairing);
        let rope = spec::Rope { theta: *theta, rot_dims, pairing, scaling: *scaling };
        let rope = Rope {
            value,
            rotated: u32::try_from(rot_dims).unwrap_or(u32::MAX),
            pairing: match pairing {
                spec::Pairing::Half => Pairing::Half,
                spec::Pairing::Interleaved => Pairing::Interleaved,
            },
            frequencies: rope.inverse_frequencies().into_iter().map(f64::from).collect(),
            offset: i64::try_from(*offset).unwrap_or(i64::MAX),
            back,
        };
        let at = self.at;
        self.push(&node.name, OpKind::Rope(rope), &[at]);
        Ok(())
    }

    /// A linear layer with the bias and the residual behind it, or together with those that read the same value.
    fn linear(&mut self, n: usize) -> Result<(), TrainError> {
        let input = self.node(n).inputs[0];
        if self.residual(n).is_some() {
            return self.onto_residual(n);
        }
        let layout = self.layout_of(n);
        let alike = |other: &usize| {
            let node = self.node(*other);
            node.op == Op::Linear
                && node.inputs[0] == input
                && !self.done.contains(other)
                && self.residual(*other).is_none()
                && match (layout, self.layout_of(*other)) {
                    (Layout::HeadTokens { .. }, Layout::HeadTokens { .. }) => true,
                    (one, another) => one == another,
                }
        };
        let siblings: Vec<usize> = (n..self.host.function.nodes.len()).filter(alike).collect();
        let name = self.over_columns(input)?;
        let mut outputs = Vec::new();
        let mut nodes = Vec::new();
        for sibling in &siblings {
            let (bias, last) = self.bias(*sibling);
            let label = self.node(*sibling).name.clone();
            let (weight, layout) = (self.parameter(self.node(*sibling).inputs[1])?, self.layout_of(*sibling));
            let value = self.define(last, &format!("{label}.out"), layout);
            let of_bias = bias.map(|n| self.parameter(self.node(n).inputs[1])).transpose()?;
            outputs.push(Segment { value, weight, transposed: false, bias: of_bias });
            nodes.extend([Some(*sibling), bias].into_iter().flatten());
        }
        self.done.extend(&nodes);
        let label = self.joined(&siblings);
        self.push(&label, OpKind::Linear(Linear { input: name, outputs, accumulate: false }), &nodes);
        Ok(())
    }

    /// `attn.q`, `attn.k` and `attn.v` are `attn.q_k_v`.
    fn joined(&self, nodes: &[usize]) -> String {
        let labels: Vec<&str> = nodes.iter().map(|n| self.node(*n).name.as_str()).collect();
        let rest = labels.iter().skip(1).map(|label| label.rsplit('.').next().unwrap_or_default());
        labels.first().copied().into_iter().chain(rest).collect::<Vec<_>>().join("_")
    }

    /// The bias behind a linear layer, and the value that the two make.
    fn bias(&self, n: usize) -> (Option<usize>, ValueId) {
        let output = self.node(n).output;
        let bias = self.only_user(output).filter(|user| {
            let node = self.node(*user);
            node.op == Op::Bias && node.inputs[0] == output
        });
        (bias, bias.map_or(output, |bias| self.node(bias).output))
    }

    /// The sum behind a linear layer with a value that is there already.
    fn residual(&self, n: usize) -> Option<(usize, ValueId)> {
        let last = self.bias(n).1;
        let add = self.only_user(last).filter(|user| self.node(*user).op == Op::Add)?;
        let other = self.node(add).inputs.iter().copied().find(|value| *value != last)?;
        self.is_known(other).then_some((add, other))
    }

    /// A linear layer, or its derivative by the input, that starts from a residual.
    pub fn onto_residual(&mut self, n: usize) -> Result<(), TrainError> {
        let Some((add, other)) = self.residual(n) else { return self.fault("is added to nothing") };
        let (node, bias) = (self.node(n), self.bias(n).0);
        let transposed = node.op == Op::Backward(Backward::LinearDx);
        self.done.extend([Some(n), bias, Some(add)].into_iter().flatten());
        let input = self.over_columns(node.inputs[0])?;
        let old = self.over_columns(other)?;
        let value = self.own(&old);
        self.call(self.node(add).output, &value);
        let weight = self.parameter(node.inputs[1])?;
        let of_bias = bias.map(|n| self.parameter(self.node(n).inputs[1])).transpose()?;
        let segment = Segment { value, weight, transposed, bias: of_bias };
        let nodes: Vec<usize> = [Some(n), bias, Some(add)].into_iter().flatten().collect();
        let linear = Linear { input, outputs: vec![segment], accumulate: true };
        self.push(&node.name, OpKind::Linear(linear), &nodes);
        Ok(())
    }

    /// Whether a linear layer, or its derivative by the input, is added to a value that is there.
    pub fn joins_residual(&self, n: usize) -> bool {
        self.residual(n).is_some()
    }

    /// How the result of a linear layer lies: by tokens if attention reads it, over all columns otherwise.
    pub fn layout_of(&self, n: usize) -> Layout {
        let output = self.node(n).output;
        match self.head_use(output) {
            Some(queries) => Layout::HeadTokens { queries },
            None => self.columns(output),
        }
    }

    /// Whether attention reads a value, by query heads or by key/value heads.
    fn head_use(&self, value: ValueId) -> Option<bool> {
        self.users(value).into_iter().find_map(|n| {
            let node = self.node(n);
            let first = node.inputs.first() == Some(&value);
            match node.op {
                Op::Scores { .. } => Some(first),
                Op::Values { .. } if !first => Some(false),
                Op::Backward(Backward::ValuesDv { .. }) if !first => Some(true),
                Op::Rope { .. } | Op::Bias | Op::KvAppend { .. } | Op::Scale { .. } if first => {
                    self.head_use(node.output)
                }
                _ => None,
            }
        })
    }

    fn attention(&mut self, node: &Node, p: ValueId) -> Result<(), TrainError> {
        let Some(scores) = self.scores(p) else {
            return self.fault("weighs values by something that is no softmax of masked scores");
        };
        self.done.extend(&scores.nodes);
        let (query, key, value) =
            (self.name(scores.query)?, self.name(scores.key)?, self.name(node.inputs[1])?);
        // The kernel scales the queries in place.
        let query = self.own(&query);
        let wanted = format!("{}.out", node.name);
        let output = self.define(node.output, &wanted, Layout::HeadColumns { queries: true });
        let Scores { scale, slopes, window, mut nodes, .. } = scores;
        nodes.push(self.at);
        let kind = OpKind::Attention(Attention { query, key, value, output, scale, slopes, window });
        self.push(&node.name, kind, &nodes);
        Ok(())
    }

    /// From the shares of a softmax back to the scores.
    pub fn scores(&self, p: ValueId) -> Option<Scores> {
        let softmax = self.maker(p).filter(|n| self.node(*n).op == Op::Softmax)?;
        let (mut nodes, mut scale, mut mask) = (vec![softmax], 1.0, None);
        let mut at = self.node(softmax).inputs[0];
        loop {
            let n = self.maker(at)?;
            nodes.push(n);
            let node = self.node(n);
            match &node.op {
                Op::Scale { by, .. } => scale *= by,
                Op::Mask { causal: true, window, alibi, heads: None, offset: 0 } => {
                    mask = Some((*window, *alibi))
                }
                Op::Scores { heads, .. } => {
                    let (window, alibi) = mask?;
                    let length = u64::from(self.frame.tokens.length);
                    let window = Some(window).filter(|window| (1..length).contains(window));
                    let heads = u32::try_from(*heads).ok()?;
                    let slopes = alibi.map_or(vec![], |factor| slopes(heads, factor));
                    let window = window.and_then(|window| u32::try_from(window).ok());
                    let (query, key) = (node.inputs[0], node.inputs[1]);
                    return Some(Scores { query, key, scale, slopes, window, nodes });
                }
                _ => return None,
            }
            at = node.inputs[0];
        }
    }

    /// The parameter whose gradient a value is, and the node that adds it.
    pub fn gradient_of(&mut self, value: ValueId) -> Result<(Parameter, usize), TrainError> {
        let found = self.users(value).into_iter().find_map(|n| match self.node(n).op {
            Op::Backward(Backward::Gradient { param }) => Some((self.param(param), n)),
            _ => None,
        });
        match found {
            Some(found) => Ok(found),
            None => self.fault("makes the gradient of no parameter"),
        }
    }
}

/// The norm of a graph as a placed one.
pub fn norm_kind(kind: spec::NormKind) -> NormKind {
    match kind {
        spec::NormKind::Rms => NormKind::Rms,
        spec::NormKind::Layer => NormKind::Layer,
    }
}

/// The function of a graph as a placed one.
pub fn activation(function: spec::Activation) -> Activation {
    match function {
        spec::Activation::Silu => Activation::Silu,
        spec::Activation::Gelu => Activation::Gelu,
        spec::Activation::GeluTanh => Activation::GeluTanh,
        spec::Activation::Relu => Activation::Relu,
        spec::Activation::Relu2 => Activation::Relu2,
    }
}
