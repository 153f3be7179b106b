//! A `wafer` module as programs: placed ops to plain data, and from there to [`super::generate`].
//!
//! A module with a repeated layer becomes up to three stages, each a program of its own with the residual stream resident
//! at its borders: what comes before the layers, one layer (to be run as often as the repeat says), and what comes after.
//! [`Scope::Whole`] unrolls the layers into one program instead, for models small enough to be simulated whole.

use super::kernel::attention::distance::slopes;
use super::layout::{HeadShape, place_heads};
use super::placed::{
    Activation, Attention, Layout, Linear, Map, Norm, NormKind, OpKind, Pairing, Parameter, Path, Placed,
    PlacedOp, Rope, Segment, Source, Step, Tokens,
};
use super::{Generated, WaferError, WaferSpec, generate};
use crate::pass::PassError;
use lapidary_hardware::HardwareSpec;
use lapidary_ir::wafer::{Placement, Tile};
use lapidary_ir::{Module, Op, Value};
use lapidary_models::DType;
use lapidary_models::spec::{self, RopeScaling};
use lapidary_runtime_sim::text;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// How much of the module one program covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// A stage per program; a repeated layer is one stage.
    #[default]
    Stages,
    /// The whole model in one program.
    Whole,
}

/// What to emit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmitOptions {
    /// How much one program covers.
    pub scope: Scope,
}

/// The programs of a module.
#[derive(Clone, Debug, PartialEq)]
pub struct WaferArtifact {
    /// In the order of execution.
    pub stages: Vec<Stage>,
}

/// One program.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// `before`, `layer`, `after` or `model`.
    pub name: String,
    /// How often it runs.
    pub times: u64,
    /// What was placed.
    pub placed: Placed,
    /// The program, its host tensors and its report.
    pub generated: Generated,
    /// The program as `.wafer` text.
    pub text: String,
}

impl WaferArtifact {
    /// The stage with the most arithmetic: the layer, unless there is none.
    pub fn main(&self) -> Option<&Stage> {
        let macs = |stage: &&Stage| -> u128 {
            let all = stage.generated.report.phases.iter().map(|phase| u128::from(phase.macs)).sum::<u128>();
            all * u128::from(stage.times)
        };
        self.stages.iter().rev().max_by_key(macs)
    }
}

/// Why there is no program.
#[derive(Debug, Error)]
pub enum EmitError {
    /// The module is not of the form that is needed; each diagnostic says where and why.
    #[error(transparent)]
    Module(#[from] PassError),
    /// The placement does not fit the machine.
    #[error("stage {stage}: {error}")]
    Placement {
        /// The stage.
        stage: String,
        /// What is wrong.
        error: Box<WaferError>,
    },
    /// The machine is no wafer.
    #[error("{machine} has no wafer to place anything on")]
    Machine {
        /// Its name.
        machine: String,
    },
}

/// Emits the programs of a module that `lower-to-wafer` has placed, and writes into each placed op how much memory its
/// phase needs and which colours it uses.
///
/// # Errors
/// [`EmitError::Module`] at ops that have no kernel on the wafer; [`EmitError::Placement`] where memory or colours run out.
pub fn emit(
    module: &Module<'_>,
    machine: &HardwareSpec,
    options: &EmitOptions,
) -> Result<WaferArtifact, EmitError> {
    let wafer = machine.wafer().ok_or_else(|| EmitError::Machine { machine: machine.name.clone() })?;
    let spec = WaferSpec::of(wafer, wafer.clock());
    let drafts = read(module, options.scope)?;
    let stages = drafts.into_iter().map(|draft| draft.finish(&spec)).collect::<Result<_, _>>()?;
    Ok(WaferArtifact { stages })
}

/// The placed computations of a module, by stage.
fn read<'c>(module: &Module<'c>, scope: Scope) -> Result<Vec<Draft<'c>>, PassError> {
    let program = module.op().walk().into_iter().find(|op| op.is("wafer.program"));
    let program = program
        .ok_or_else(|| PassError::at(module.op(), "there is no wafer.program: run `lower-to-wafer`"))?;
    let body = program.region_block(0).map_or_else(Vec::new, |block| block.ops());
    let frame = Frame::of(program)?;
    let mut reader = Reader { frame, draft: Draft::new(frame, "before", 1), done: vec![], layer: None };
    for op in body {
        match op.name() {
            "wafer.repeat" if scope == Scope::Stages => reader.stage(op)?,
            "wafer.repeat" => reader.unroll(op)?,
            "wafer.return" => reader.outputs(op, &op.operands())?,
            _ => reader.op(op)?,
        }
    }
    if scope == Scope::Whole {
        reader.draft.name = "model".into();
    }
    reader.done.push(reader.draft);
    // A stage without an op that computes only renames the stream that enters the next.
    reader.done.retain(|draft| {
        draft.ops.iter().any(|(op, _)| !matches!(op.kind, OpKind::Input { .. } | OpKind::Output { .. }))
    });
    Ok(reader.done)
}

/// What all stages share.
#[derive(Clone, Copy)]
struct Frame {
    width: u32,
    height: u32,
    tokens: Tokens,
    heads: Option<HeadShape>,
    dtype: DType,
}

impl Frame {
    fn of(program: Op<'_>) -> Result<Self, PassError> {
        let fault = |what: &str| PassError::at(program, what);
        let number = |n: u64| {
            u32::try_from(n).map_err(|_| PassError::at(program, format!("{n} is more than a wafer counts")))
        };
        let grid = program.i64s("grid").unwrap_or_default();
        let [width, height] = grid[..] else { return Err(fault("it has no grid")) };
        let ids =
            program.region_block(0).and_then(|block| block.argument(0)).map(Value::shape).unwrap_or_default();
        let [sequences, length] = ids[..] else { return Err(fault("it begins with token ids [B, S]")) };
        let results = || program.walk().into_iter().flat_map(Op::results);
        let tile =
            results().find_map(|value| Tile::of(value.ty())).ok_or_else(|| fault("it places nothing"))?;
        let heads =
            program.walk().into_iter().find(|op| op.is("wafer.attention")).map(heads_of).transpose()?;
        let rows = number(tile.rows / sequences.max(1))?;
        let tokens = Tokens { sequences: number(sequences)?, length: number(length)?, rows };
        Ok(Frame {
            width: number(width as u64)?,
            height: number(height as u64)?,
            tokens,
            heads,
            dtype: tile.dtype,
        })
    }
}

fn heads_of(op: Op<'_>) -> Result<HeadShape, PassError> {
    let count = |name: &str| op.i64(name).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let query = op.operand(0).and_then(|value| Tile::of(value.ty()));
    let shape = count("heads").zip(count("kv_heads")).zip(query);
    let ((heads, kv_heads), query) = shape.ok_or_else(|| PassError::at(op, "its heads cannot be counted"))?;
    let dim = u32::try_from(query.features / u64::from(heads)).unwrap_or(u32::MAX);
    Ok(HeadShape { heads, kv_heads, dim })
}

/// A stage under construction.
struct Draft<'c> {
    frame: Frame,
    name: String,
    times: u64,
    values: BTreeMap<String, Layout>,
    ops: Vec<(PlacedOp, Vec<Op<'c>>)>,
    names: Vec<(Value<'c>, String)>,
    used: BTreeSet<String>,
}

impl<'c> Draft<'c> {
    fn new(frame: Frame, name: &str, times: u64) -> Self {
        let (values, ops, names, used) = (BTreeMap::new(), vec![], vec![], BTreeSet::new());
        Draft { frame, name: name.into(), times, values, ops, names, used }
    }

    fn finish(self, spec: &WaferSpec) -> Result<Stage, EmitError> {
        let Frame { width, height, tokens, heads, dtype } = self.frame;
        let heads =
            heads.filter(|_| self.values.values().any(|layout| !matches!(layout, Layout::Columns { .. })));
        let heads = heads.map(|shape| place_heads(width, shape));
        let (ops, sources): (Vec<_>, Vec<_>) = self.ops.into_iter().unzip();
        let placed = Placed { width, height, tokens, heads, dtype, values: self.values, ops };
        let generated = generate(&placed, spec)
            .map_err(|error| EmitError::Placement { stage: self.name.clone(), error: Box::new(error) })?;
        for (phase, ops) in generated.report.phases.iter().zip(&sources) {
            for (op, rect) in ops.iter().filter_map(|op| Some((*op, Placement::of(*op)?.rect))) {
                Placement { rect, sram_bytes: phase.sram_bytes, colours: phase.colours.clone() }.store(op);
            }
        }
        let text = text::print(&generated.program);
        Ok(Stage { name: self.name, times: self.times, placed, generated, text })
    }

    /// A name that nothing in this stage has yet.
    fn unique(&mut self, wanted: &str) -> String {
        let numbered = (2..).map(|n| format!("{wanted}_{n}"));
        let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
        let name = names.find(|name| !self.used.contains(name)).unwrap_or_default();
        self.used.insert(name.clone());
        name
    }

    fn push(&mut self, name: &str, kind: OpKind, sources: Vec<Op<'c>>) {
        let name = self.unique(name);
        self.ops.push((PlacedOp { name, kind }, sources));
    }

    /// A new value for the result of an op.
    fn define(&mut self, value: Value<'c>, wanted: &str, layout: Layout) -> String {
        let name = self.unique(wanted);
        self.values.insert(name.clone(), layout);
        self.names.push((value, name.clone()));
        name
    }

    fn name_of(&self, op: Op<'c>, value: Value<'c>) -> Result<String, PassError> {
        let known = self.names.iter().rev().find(|(known, _)| *known == value);
        known
            .map(|(_, name)| name.clone())
            .ok_or_else(|| PassError::at(op, "it reads a value that no placed op makes"))
    }

    /// Lets `result` take over the memory of `operand`, by way of a copy if the operand is still needed.
    fn take_over(&mut self, op: Op<'c>, operand: Value<'c>, result: Value<'c>) -> Result<String, PassError> {
        let old = self.name_of(op, operand)?;
        let later = |user: &Op<'c>| *user != op && op.is_before(*user);
        if !operand.users().iter().any(later) {
            self.names.push((result, old.clone()));
            return Ok(old);
        }
        let layout = self.values.get(&old).copied().unwrap_or(Layout::HeadColumns);
        let new = self.define(result, &old, layout);
        self.push(
            &format!("copy.{new}"),
            OpKind::Map(Map { input: old, output: new.clone(), steps: vec![] }),
            vec![],
        );
        Ok(new)
    }
}

struct Reader<'c> {
    frame: Frame,
    draft: Draft<'c>,
    done: Vec<Draft<'c>>,
    /// The running layer, where layers are unrolled.
    layer: Option<u64>,
}

impl<'c> Reader<'c> {
    /// Ends the stage in hand, makes one of the repeated layer, and begins the next.
    fn stage(&mut self, op: Op<'c>) -> Result<(), PassError> {
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
    fn unroll(&mut self, op: Op<'c>) -> Result<(), PassError> {
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
    fn outputs(&mut self, op: Op<'c>, values: &[Value<'c>]) -> Result<(), PassError> {
        for value in values {
            let name = self.draft.name_of(op, *value)?;
            let tensor = self.draft.unique("output");
            self.draft.push("store", OpKind::Output { value: name, tensor, path: Path::Resident }, vec![]);
        }
        Ok(())
    }

    fn op(&mut self, op: Op<'c>) -> Result<(), PassError> {
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
        Ok(Segment { value, weight: self.parameter(op, 1)?, bias })
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
        let output = self.draft.define(Self::result(op)?.0, &format!("{label}.out"), Layout::HeadColumns);
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
            let layout = self.draft.values.get(&input).copied().unwrap_or(Layout::HeadColumns);
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
