//! A stage under construction.

use super::{EmitError, Stage};
use crate::pass::PassError;
use crate::wafer::layout::{HeadShape, place_heads};
use crate::wafer::placed::{Layout, Map, OpKind, Placed, PlacedOp, Tokens};
use crate::wafer::{WaferSpec, generate};
use lapidary_ir::wafer::{Placement, Tile};
use lapidary_ir::{Op, Value};
use lapidary_models::DType;
use lapidary_runtime_sim::text;
use std::collections::{BTreeMap, BTreeSet};

/// What all stages share.
#[derive(Clone, Copy)]
pub struct Frame {
    pub width: u32,
    pub height: u32,
    pub tokens: Tokens,
    pub heads: Option<HeadShape>,
    pub dtype: DType,
}

impl Frame {
    /// What a program says about itself.
    pub fn of(program: Op<'_>) -> Result<Self, PassError> {
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
pub struct Draft<'c> {
    pub frame: Frame,
    pub name: String,
    pub times: u64,
    pub values: BTreeMap<String, Layout>,
    pub ops: Vec<(PlacedOp, Vec<Op<'c>>)>,
    pub names: Vec<(Value<'c>, String)>,
    pub used: BTreeSet<String>,
}

impl<'c> Draft<'c> {
    /// An empty stage.
    pub fn new(frame: Frame, name: &str, times: u64) -> Self {
        let (values, ops, names, used) = (BTreeMap::new(), vec![], vec![], BTreeSet::new());
        Draft { frame, name: name.into(), times, values, ops, names, used }
    }

    /// What is placed, and the ops that each comes from.
    pub fn placed(self) -> (Placed, Vec<Vec<Op<'c>>>) {
        let Frame { width, height, tokens, heads, dtype } = self.frame;
        let heads =
            heads.filter(|_| self.values.values().any(|layout| !matches!(layout, Layout::Columns { .. })));
        let heads = heads.map(|shape| place_heads(width, shape));
        let (ops, sources): (Vec<_>, Vec<_>) = self.ops.into_iter().unzip();
        let (micro_batches, values) = (1, self.values);
        (Placed { width, height, tokens, micro_batches, resident: false, heads, dtype, values, ops }, sources)
    }

    /// Generates the program and writes memory and colours into the placed ops.
    pub fn finish(self, spec: &WaferSpec) -> Result<Stage, EmitError> {
        let (name, times) = (self.name.clone(), self.times);
        let (placed, sources) = self.placed();
        let generated = generate(&placed, spec)
            .map_err(|error| EmitError::Placement { stage: name.clone(), error: Box::new(error) })?;
        for (phase, ops) in generated.report.phases.iter().zip(&sources) {
            for (op, rect) in ops.iter().filter_map(|op| Some((*op, Placement::of(*op)?.rect))) {
                Placement { rect, sram_bytes: phase.sram_bytes, colours: phase.colours.clone() }.store(op);
            }
        }
        let node = |op: &Op<'c>| op.place().node;
        let nodes = sources.iter().map(|ops| ops.iter().filter_map(node).collect()).collect();
        let text = text::print(&generated.program);
        Ok(Stage { name, times, placed, nodes, generated, text })
    }

    /// A name that nothing in this stage has yet.
    pub fn unique(&mut self, wanted: &str) -> String {
        let numbered = (2..).map(|n| format!("{wanted}_{n}"));
        let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
        let name = names.find(|name| !self.used.contains(name)).unwrap_or_default();
        self.used.insert(name.clone());
        name
    }

    /// Appends an op that comes from these placed ops.
    pub fn push(&mut self, name: &str, kind: OpKind, sources: Vec<Op<'c>>) {
        let name = self.unique(name);
        self.ops.push((PlacedOp { name, kind }, sources));
    }

    /// A new value for the result of an op.
    pub fn define(&mut self, value: Value<'c>, wanted: &str, layout: Layout) -> String {
        let name = self.unique(wanted);
        self.values.insert(name.clone(), layout);
        self.names.push((value, name.clone()));
        name
    }

    /// The name of a value.
    pub fn name_of(&self, op: Op<'c>, value: Value<'c>) -> Result<String, PassError> {
        let known = self.names.iter().rev().find(|(known, _)| *known == value);
        known
            .map(|(_, name)| name.clone())
            .ok_or_else(|| PassError::at(op, "it reads a value that no placed op makes"))
    }

    /// Lets `result` take over the memory of `operand`, by way of a copy if the operand is still needed.
    pub fn take_over(
        &mut self,
        op: Op<'c>,
        operand: Value<'c>,
        result: Value<'c>,
    ) -> Result<String, PassError> {
        let old = self.name_of(op, operand)?;
        let later = |user: &Op<'c>| *user != op && op.is_before(*user);
        if !operand.users().iter().any(later) {
            self.names.push((result, old.clone()));
            return Ok(old);
        }
        let layout = self.values.get(&old).copied().unwrap_or(Layout::HeadColumns { queries: true });
        let new = self.define(result, &old, layout);
        self.push(
            &format!("copy.{new}"),
            OpKind::Map(Map { input: old, output: new.clone(), steps: vec![] }),
            vec![],
        );
        Ok(new)
    }
}
