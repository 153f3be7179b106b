//! Reads placed ops, one after the other, into the stage in hand.

use super::draft::{Draft, Frame};
use crate::pass::PassError;
use crate::wafer::kernel::attention::distance::slopes;
use crate::wafer::placed::{
    Activation, Attention, Layout, Linear, Map, Norm, NormKind, OpKind, Pairing, Parameter, Path, PlacedOp,
    Rope, Segment, Source, Step,
};
use lapidary_ir::wafer::Tile;
use lapidary_ir::{Op, Value};
use lapidary_models::spec::{self, RopeScaling};

/// Reads the ops of a program.
pub struct Reader<'c> {
    /// What all stages share.
    pub frame: Frame,
    /// The stage in hand.
    pub draft: Draft<'c>,
    /// The stages before it.
    pub done: Vec<Draft<'c>>,
    /// The running layer, where layers are unrolled.
    pub layer: Option<u64>,
}

impl<'c> Reader<'c> {
    /// Ends the stage in hand, makes one of the repeated layer, and begins the next.
    pub fn stage(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let (body, operand, result) = repeated(op)?;
        let times = op.i64("times").map_or(0, |times| times.max(0) as u64);
        self.outputs(op, &[operand])?;
        let arguments = body.arguments();
        let [argument] = arguments[..] else { return Err(PassError::at(op, "a repeat carries one value")) };
        self.begin("layer", times, argument)?;
        self.layer_body(body)?;
        self.begin("after", 1, result)
    }

    /// Puts the layers into the stage in hand, one after the other.
    pub fn unroll(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let (body, operand, result) = repeated(op)?;
        let mut carried = self.draft.name_of(op, operand)?;
        for layer in 0..op.i64("times").map_or(0, |times| times.max(0) as u64) {
            self.layer = Some(layer);
            let arguments = body.arguments();
            let [argument] = arguments[..] else {
                return Err(PassError::at(op, "a repeat carries one value"));
            };
            self.draft.names.push((argument, carried));
            for op in body.ops().into_iter().filter(|op| !op.is("wafer.yield")) {
                self.op(op)?;
            }
            carried = self.yielded(body, op)?;
        }
        self.layer = None;
        self.draft.names.push((result, carried));
        Ok(())
    }

    fn layer_body(&mut self, body: lapidary_ir::Block<'c>) -> Result<(), PassError> {
        for op in body.ops() {
            match op.is("wafer.yield") {
                true => self.outputs(op, &op.operands())?,
                false => self.op(op)?,
            }
        }
        Ok(())
    }

    fn yielded(&self, body: lapidary_ir::Block<'c>, op: Op<'c>) -> Result<String, PassError> {
        let value = body.terminator().and_then(|last| last.operand(0));
        value.map_or_else(
            || Err(PassError::at(op, "its body yields nothing")),
            |value| self.draft.name_of(op, value),
        )
    }

    /// Begins a stage that finds a value in its memory.
    fn begin(&mut self, name: &str, times: u64, value: Value<'c>) -> Result<(), PassError> {
        let next = Draft::new(self.frame, name, times);
        self.done.push(std::mem::replace(&mut self.draft, next));
        let Some(tile) = Tile::of(value.ty()) else { return Ok(()) };
        let value = self.draft.define(value, "x", columns(tile));
        let (tensor, source, path) = ("input".to_owned(), Source::Caller, Path::Resident);
        self.draft.push("input", OpKind::Input { value, tensor, source, path }, vec![]);
        Ok(())
    }

    /// Leaves values in memory for the host or the next stage.
    pub fn outputs(&mut self, op: Op<'c>, values: &[Value<'c>]) -> Result<(), PassError> {
        for value in values {
            let name = self.draft.name_of(op, *value)?;
            let tensor = self.draft.unique("output");
            self.draft.push("store", OpKind::Output { value: name, tensor, path: Path::Resident }, vec![]);
        }
        Ok(())
    }

    /// Reads one placed op.
    pub fn op(&mut self, op: Op<'c>) -> Result<(), PassError> {
        match op.name() {
            "wafer.weight" => Ok(()),
            "wafer.embed" => self.embed(op),
            "wafer.position" => self.position(op),
            "wafer.linear" => self.linear(op),
            "wafer.norm" => self.norm(op),
            "wafer.rope" => self.rope(op),
            "wafer.kv_append" => self.kv_append(op),
            "wafer.attention" => self.attention(op),
            "wafer.map" => self.map(op),
            other => Err(PassError::at(
                op,
                format!("{other} has no kernel on the wafer yet: compile the forward graph"),
            )),
        }
    }

    fn parameter(&self, op: Op<'c>, index: usize) -> Result<Parameter, PassError> {
        let weight = op.operand(index).and_then(Value::defining_op).filter(|op| op.is("wafer.weight"));
        let weight = weight.ok_or_else(|| PassError::at(op, format!("its operand {index} is no weight")))?;
        let name = weight.text("name").unwrap_or_default();
        let name = match self.layer {
            Some(layer) => name.replacen('*', &layer.to_string(), 1),
            None => name.to_owned(),
        };
        Ok(Parameter { name, scale: weight.f64("scale").unwrap_or(1.0) })
    }

    fn operand(op: Op<'c>, index: usize) -> Result<Value<'c>, PassError> {
        op.operand(index).ok_or_else(|| PassError::at(op, format!("it has no operand {index}")))
    }

    fn result(op: Op<'c>) -> Result<(Value<'c>, Tile), PassError> {
        let result = op.result(0).and_then(|value| Some((value, Tile::of(value.ty())?)));
        result.ok_or_else(|| PassError::at(op, "its result lies nowhere"))
    }

    /// What an op is called in phases: the node it comes from, without the layer, or its kind.
    fn label(&self, op: Op<'c>) -> String {
        let node = op.place().node.unwrap_or_default();
        let node = node.strip_prefix("layers.*.").unwrap_or(&node);
        let label = if node.is_empty() { op.name().trim_start_matches("wafer.") } else { node };
        match self.layer {
            Some(layer) => format!("{layer}.{label}"),
            None => label.to_owned(),
        }
    }

    fn embed(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let table = self.parameter(op, 1)?;
        self.host_rows(op, "embed", Source::Lookup { table }).map(|_| ())
    }

    /// A tile of rows that the host looks up.
    fn host_rows(&mut self, op: Op<'c>, name: &str, source: Source) -> Result<String, PassError> {
        let (result, tile) = Self::result(op)?;
        let value = self.draft.define(result, name, columns(tile));
        let tensor = self.draft.unique(&format!("{value}.rows"));
        let path = Path::Resident;
        let kind = OpKind::Input { value: value.clone(), tensor, source, path };
        self.draft.push(&format!("load.{value}"), kind, vec![op]);
        Ok(value)
    }

    fn position(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let x = self.draft.name_of(op, Self::operand(op, 0)?)?;
        let offset = op.i64("offset").map_or(0, |offset| offset.max(0) as u64);
        let source = Source::Positions { table: self.parameter(op, 1)?, offset };
        let value = self.host_rows(op, "position", source)?;
        let map = Map { input: x, output: value.clone(), steps: vec![Step::Add(value)] };
        self.draft.push("add.position", OpKind::Map(map), vec![op]);
        Ok(())
    }

    fn norm(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let input = self.draft.name_of(op, Self::operand(op, 0)?)?;
        let bias = op.operand(2).map(|_| self.parameter(op, 2)).transpose()?;
        let kind = match op.word("kind") {
            Some("layer") => NormKind::Layer,
            _ => NormKind::Rms,
        };
        let (result, tile) = Self::result(op)?;
        let label = self.label(op);
        let layout = columns(tile);
        let output = self.draft.define(result, &format!("{label}.out"), layout);
        let eps = op.f64("eps").unwrap_or(0.0);
        let norm = Norm { input, output, kind, eps, weight: self.parameter(op, 1)?, bias };
        self.draft.push(&label, OpKind::Norm(norm), vec![op]);
        Ok(())
    }

    /// A linear layer, together with the others that read the same value and write alike: q, k, v; gate, up.
    fn linear(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let (result, _) = Self::result(op)?;
        let parts = LinearParts::of(op)?;
        let input = self.draft.name_of(op, parts.x)?;
        if let Some(residual) = parts.residual {
            let output = self.draft.take_over(op, residual, result)?;
            let segment = self.segment(op, &parts, output)?;
            let label = self.label(op);
            let linear = Linear { input, outputs: vec![segment], accumulate: true };
            self.draft.push(&label, OpKind::Linear(linear), vec![op]);
            return Ok(());
        }
        let siblings = self.siblings(op, &parts)?;
        if siblings.first() != Some(&op) {
            return Ok(());
        }
        let mut outputs = Vec::new();
        for sibling in &siblings {
            let (result, _) = Self::result(*sibling)?;
            let layout = layout_of(*sibling, result)?;
            let wanted = format!("{}.out", self.label(*sibling));
            let value = self.draft.define(result, &wanted, layout);
            outputs.push(self.segment(*sibling, &LinearParts::of(*sibling)?, value)?);
        }
        let label = self.joined_label(&siblings);
        self.draft.push(&label, OpKind::Linear(Linear { input, outputs, accumulate: false }), siblings);
        Ok(())
    }

    fn segment(&self, op: Op<'c>, parts: &LinearParts<'c>, value: String) -> Result<Segment, PassError> {
        let bias = parts.bias.map(|index| self.parameter(op, index)).transpose()?;
        Ok(Segment { value, weight: self.parameter(op, 1)?, transposed: false, bias })
    }

    /// Linear layers of the block with the same input and the same kind of output, in order.
    fn siblings(&self, op: Op<'c>, parts: &LinearParts<'c>) -> Result<Vec<Op<'c>>, PassError> {
        let (result, _) = Self::result(op)?;
        let layout = layout_of(op, result)?;
        let mut siblings = Vec::new();
        for other in op.block().map_or_else(Vec::new, |block| block.ops()) {
            if !other.is("wafer.linear") {
                continue;
            }
            let (result, _) = Self::result(other)?;
            let other_parts = LinearParts::of(other)?;
            let alike = match (layout, layout_of(other, result)?) {
                (Layout::HeadTokens { .. }, Layout::HeadTokens { .. }) => true,
                (one, another) => one == another,
            };
            if other_parts.x == parts.x && other_parts.residual.is_none() && alike {
                siblings.push(other);
            }
        }
        Ok(siblings)
    }

    /// `attn.q`, `attn.k` and `attn.v` are `attn.q_k_v`.
    fn joined_label(&self, ops: &[Op<'c>]) -> String {
        let labels: Vec<String> = ops.iter().map(|op| self.label(*op)).collect();
        let last = |label: &String| label.rsplit('.').next().unwrap_or_default().to_owned();
        let first = labels.first().cloned().unwrap_or_default();
        let rest: Vec<String> = labels.iter().skip(1).map(last).collect();
        std::iter::once(first).chain(rest).collect::<Vec<_>>().join("_")
    }

    fn rope(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let (result, _) = Self::result(op)?;
        let value = self.draft.take_over(op, Self::operand(op, 0)?, result)?;
        let count = |name: &str| op.i64(name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        let number = |name: &str| op.f64(name).unwrap_or(1.0);
        let scaling = match op.word("scaling") {
            Some("linear") => RopeScaling::Linear { factor: number("factor") },
            Some("llama3") => RopeScaling::Llama3 {
                factor: number("factor"),
                low_freq: number("low_freq"),
                high_freq: number("high_freq"),
                original_max: count("original_max"),
            },
            _ => RopeScaling::None,
        };
        let interleaved = op.word("pairing") == Some("interleaved");
        let pairing = if interleaved { spec::Pairing::Interleaved } else { spec::Pairing::Half };
        let rope = spec::Rope { theta: number("theta"), rot_dims: count("rot_dims"), pairing, scaling };
        let rope = Rope {
            value,
            rotated: u32::try_from(rope.rot_dims).unwrap_or(u32::MAX),
            pairing: if interleaved { Pairing::Interleaved } else { Pairing::Half },
            frequencies: rope.inverse_frequencies().into_iter().map(f64::from).collect(),
            offset: i64::try_from(count("offset")).unwrap_or(i64::MAX),
            back: false,
        };
        let label = self.label(op);
        self.draft.push(&label, OpKind::Rope(rope), vec![op]);
        Ok(())
    }

    fn kv_append(&mut self, op: Op<'c>) -> Result<(), PassError> {
        if op.i64("cached").unwrap_or(0) != 0 {
            let fault = "decoding against a cache has no kernel on the wafer yet: compile the forward or prefill graph";
            return Err(PassError::at(op, fault));
        }
        let name = self.draft.name_of(op, Self::operand(op, 0)?)?;
        self.draft.names.push((Self::result(op)?.0, name));
        Ok(())
    }

    fn attention(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let refuse = |what: &str| Err(PassError::at(op, format!("{what} has no kernel on the wafer yet")));
        let length = i64::from(self.frame.tokens.length);
        if !op.flag("causal") {
            return refuse("attention to later tokens");
        }
        let heads = self.frame.heads.map_or(0, |shape| shape.heads);
        let factor = op.f64("alibi_scaling").unwrap_or(1.0);
        let slopes = if op.flag("alibi") { slopes(heads, factor) } else { vec![] };
        let window = op.i64("window").filter(|window| *window > 0 && *window < length);
        let window = window.and_then(|window| u32::try_from(window).ok());
        let [query, key, value] = [0, 1, 2].map(|index| Self::operand(op, index));
        let (query, key, value) = (query?, key?, value?);
        // The kernel scales the queries in place.
        let query = self.draft.take_over(op, query, query)?;
        let (key, value) = (self.draft.name_of(op, key)?, self.draft.name_of(op, value)?);
        let label = self.label(op);
        let output = self.draft.define(
            Self::result(op)?.0,
            &format!("{label}.out"),
            Layout::HeadColumns { queries: true },
        );
        let scale = op.f64("scale").unwrap_or(1.0);
        self.draft.push(
            &label,
            OpKind::Attention(Attention { query, key, value, output, scale, slopes, window }),
            vec![op],
        );
        Ok(())
    }

    fn map(&mut self, op: Op<'c>) -> Result<(), PassError> {
        let step = |other: Option<String>| match (op.word("fn"), other) {
            (Some("add"), Some(other)) => Some(Step::Add(other)),
            (Some("mul"), Some(other)) => Some(Step::Mul(other)),
            (Some("scale"), _) => op.f64("by").map(Step::Scale),
            (Some("silu"), _) => Some(Step::Activation(Activation::Silu)),
            (Some("gelu"), _) => Some(Step::Activation(Activation::Gelu)),
            (Some("gelu_tanh"), _) => Some(Step::Activation(Activation::GeluTanh)),
            (Some("relu"), _) => Some(Step::Activation(Activation::Relu)),
            (Some("relu2"), _) => Some(Step::Activation(Activation::Relu2)),
            _ => None,
        };
        let (result, _) = Self::result(op)?;
        let operand = Self::operand(op, 0)?;
        let other = op.operand(1).map(|value| self.draft.name_of(op, value)).transpose()?;
        let step = step(other).ok_or_else(|| PassError::at(op, "its function is not known"))?;
        // A step on what the op before has just made joins that op's chain.
        let input = self.draft.name_of(op, operand)?;
        if let Some((PlacedOp { kind: OpKind::Map(map), .. }, sources)) = self.draft.ops.last_mut()
            && map.output == input
            && operand.has_one_use()
            && step.operand() != Some(&map.output)
        {
            map.steps.push(step);
            sources.push(op);
            self.draft.names.push((result, input));
            return Ok(());
        }
        let later = |user: &Op<'c>| *user != op && op.is_before(*user);
        let output = if operand.users().iter().any(later) {
            let layout =
                self.draft.values.get(&input).copied().unwrap_or(Layout::HeadColumns { queries: true });
            let wanted = format!("{}.out", self.label(op));
            self.draft.define(result, &wanted, layout)
        } else {
            self.draft.names.push((result, input.clone()));
            input.clone()
        };
        let label = self.label(op);
        self.draft.push(&label, OpKind::Map(Map { input, output, steps: vec![step] }), vec![op]);
        Ok(())
    }
}

/// Operands of a linear layer.
struct LinearParts<'c> {
    x: Value<'c>,
    /// Operand number of the bias.
    bias: Option<usize>,
    residual: Option<Value<'c>>,
}

impl<'c> LinearParts<'c> {
    fn of(op: Op<'c>) -> Result<Self, PassError> {
        let operands = op.operands();
        let x = *operands.first().ok_or_else(|| PassError::at(op, "it has no operand"))?;
        // Tiles and tensors tell bias and residual apart.
        let bias = operands.iter().skip(2).position(|value| value.tensor().is_some()).map(|at| at + 2);
        let residual = operands.iter().skip(2).find(|value| value.tensor().is_none()).copied();
        Ok(LinearParts { x, bias, residual })
    }
}

/// How the result of a linear layer lies: by tokens if it feeds attention, over all columns otherwise.
fn layout_of<'c>(op: Op<'c>, value: Value<'c>) -> Result<Layout, PassError> {
    let tile = Tile::of(value.ty()).ok_or_else(|| PassError::at(op, "its result lies nowhere"))?;
    let mut value = value;
    loop {
        let users = value.users();
        if let Some(attention) = users.iter().find(|user| user.is("wafer.attention")) {
            return Ok(Layout::HeadTokens { queries: attention.operand(0) == Some(value) });
        }
        let next = users.iter().find(|user| user.is("wafer.rope") || user.is("wafer.kv_append"));
        match next.and_then(|user| user.result(0)) {
            Some(result) => value = result,
            None => return Ok(columns(tile)),
        }
    }
}

/// Features over all columns; sizes beyond 32 bits stay beyond what [`super::generate`] takes.
fn columns(tile: Tile) -> Layout {
    Layout::Columns { features: u32::try_from(tile.features).unwrap_or(u32::MAX) }
}

fn repeated<'c>(op: Op<'c>) -> Result<(lapidary_ir::Block<'c>, Value<'c>, Value<'c>), PassError> {
    let parts = op.region_block(0).zip(op.operand(0)).zip(op.result(0));
    parts
        .map(|((body, operand), result)| (body, operand, result))
        .ok_or_else(|| PassError::at(op, "a repeat carries one value"))
}
