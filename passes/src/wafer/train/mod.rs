//! A training step as wafer programs, placed from the differentiated graph.
//!
//! ```text
//! before            embedding                                   once
//! layer             forward; keeps what its slots say           every layer, first to last
//! after             final norm, head, loss, and their gradients once
//! layer_backward    computes again what was not kept; gradients every layer, last to first
//! end               gradients of the embedding                  once
//! ```
//! The residual stream and its gradient stay in the memory of the PEs between programs. What layers keep either stays
//! there too, beside that of all other layers ([`Kept::Resident`]), or leaves for the weight server while a layer runs
//! forward and comes back while it runs backward ([`Kept::Streamed`]). Gradients of weights leave as they are made.

mod backward;
mod draft;
mod emit;
mod forward;

pub use emit::{StepChoice, StepError, StepWay, choose_step, emit_training, way};

use super::layout::{HeadShape, place_heads, place_tokens};
use super::placed::{Heads, Layout, Path, Placed, Tokens};
use super::tile::Tiles;
use crate::cpu::HostFunction;
use draft::Draft;
use lapidary_models::graph::Slot;
use lapidary_models::{DType, Op, ValueId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use thiserror::Error;

/// Where layers keep what their backward pass reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// In the memory of the PEs.
    Resident,
    /// With the weight server.
    Streamed,
}

/// Why a node has no place on a wafer.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{node} {what}")]
pub struct TrainError {
    /// The node.
    pub node: String,
    /// What it does that has no place, and what would help.
    pub what: String,
}

/// What all programs of a step share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Columns of PEs.
    pub width: u32,
    /// Rows of PEs.
    pub height: u32,
    /// How tokens lie over the rows.
    pub tokens: Tokens,
    /// How heads lie over the columns.
    pub heads: Option<Heads>,
    /// Element type of values.
    pub dtype: DType,
}

impl Frame {
    /// Bytes of a value of this layout in the fullest PE.
    fn bytes(&self, layout: Layout) -> u64 {
        let row = self.tokens.tiles().largest();
        let over = |items: u32, parts: u32| u64::from(Tiles::new(items, parts).largest());
        let elements = match (layout, self.heads) {
            (Layout::Columns { features }, _) => over(features, self.width) * u64::from(row),
            (Layout::HeadColumns { queries }, Some(heads)) => {
                over(heads.features(queries), heads.columns) * u64::from(row)
            }
            (Layout::HeadTokens { queries }, Some(heads)) => {
                over(row, heads.columns) * u64::from(heads.features(queries))
            }
            (_, None) | (Layout::Rows { .. } | Layout::HeadRows { .. }, _) => 0,
        };
        elements * self.dtype.bytes()
    }
}

/// One placed program of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainStage {
    /// `before`, `layer`, `after`, `layer_backward` or `end`; numbered where layers differ.
    pub name: String,
    /// How often it runs.
    pub times: u64,
    /// What was placed.
    pub placed: Placed,
    /// Nodes of the graph that each op stands for.
    pub nodes: Vec<Vec<String>>,
    /// Bytes that other layers keep in the fullest PE while this program runs.
    pub kept_bytes: u64,
}

/// One run of nodes that becomes a program.
struct Piece<'a> {
    name: String,
    times: u64,
    host: &'a HostFunction,
    nodes: Range<usize>,
    argument: Option<ValueId>,
    results: Vec<ValueId>,
    /// Whether layers hold what they keep while it runs.
    between: bool,
}

/// Places the programs of a training step on a grid.
///
/// # Errors
/// [`TrainError`] at a node that has no place.
pub fn place_training(
    functions: &[HostFunction],
    slots: &[Slot],
    grid: (u32, u32),
    kept: Kept,
) -> Result<Vec<TrainStage>, TrainError> {
    let frame = frame(functions, grid)?;
    let mut filled: BTreeMap<usize, Layout> = BTreeMap::new();
    let mut stages = Vec::new();
    let mut own: Vec<Option<BTreeSet<usize>>> = Vec::new();
    for piece in pieces(functions)? {
        let between = piece.between && kept == Kept::Resident;
        let (stage, touched) = place(frame, kept, piece, &mut filled)?;
        stages.push(stage);
        own.push(between.then_some(touched));
    }
    let bytes = |slot: usize| filled.get(&slot).map_or(0, |layout| frame.bytes(*layout));
    for (stage, own) in stages.iter_mut().zip(own) {
        let others = |(n, slot): (usize, &Slot)| {
            let here = u64::from(own.as_ref().is_some_and(|own| own.contains(&n)));
            bytes(n) * slot.times.saturating_sub(here)
        };
        stage.kept_bytes = own.as_ref().map_or(0, |_| slots.iter().enumerate().map(others).sum());
    }
    Ok(stages)
}

fn fault<T>(node: impl Into<String>, what: impl Into<String>) -> Result<T, TrainError> {
    Err(TrainError { node: node.into(), what: what.into() })
}

fn frame(all: &[HostFunction], (width, height): (u32, u32)) -> Result<Frame, TrainError> {
    let Some(main) = all.last().map(|host| &host.function) else {
        return fault("the module", "has no functions");
    };
    let ids = main.arguments.first().map(|ids| main.ty(*ids).shape.clone()).unwrap_or_default();
    let small = |n: u64| u32::try_from(n).ok().filter(|n| (1..=1 << 24).contains(n));
    let sizes = match ids[..] {
        [batch, seq] => small(batch).zip(small(seq)),
        _ => None,
    };
    let Some((sequences, length)) = sizes else {
        return fault("main", "does not begin with as many token ids [B, S] as a wafer counts");
    };
    let tokens = place_tokens(height, sequences, length, 1);
    if tokens.sequences < sequences {
        let what = format!("has {sequences} sequences; each needs a row of PEs, and there are {height}");
        return fault("main", what);
    }
    let functions = || all.iter().map(|host| &host.function);
    let values = functions().flat_map(|f| f.nodes.iter().map(move |node| (f, node)));
    let floats = values.map(|(f, node)| f.ty(node.output)).find(|ty| ty.shape.len() == 3);
    let dtype = floats.map_or(DType::F32, |ty| ty.dtype);
    let scores = |node: &&lapidary_models::Node| matches!(node.op, Op::Scores { .. });
    let found = functions().find_map(|f| f.nodes.iter().find(scores).map(|node| (f, node)));
    let heads = found.map(|(function, node)| {
        let Op::Scores { heads, kv_heads } = node.op else { return None };
        let number = |n: u64| u32::try_from(n).ok().filter(|n| *n > 0);
        let dim = function.ty(node.inputs[0]).shape.last().copied().unwrap_or(0) / heads.max(1);
        let shape = HeadShape { heads: number(heads)?, kv_heads: number(kv_heads)?, dim: number(dim)? };
        Some(place_heads(width, shape))
    });
    let Some(heads) = heads.map_or(Some(None), |heads| heads.map(Some)) else {
        return fault("attention", "has heads that cannot be counted");
    };
    Ok(Frame { width, height, tokens, heads, dtype })
}

/// What main does between the layers, and the layers.
fn pieces(functions: &[HostFunction]) -> Result<Vec<Piece<'_>>, TrainError> {
    let Some(host) = functions.last() else { return fault("the module", "has no functions") };
    let main = &host.function;
    let between = |nodes: Range<usize>, argument: Option<ValueId>, results: Vec<ValueId>| {
        let works = main.nodes[nodes.clone()].iter().any(|node| !matches!(node.op, Op::Param { .. }));
        let (name, between) = match argument {
            None => ("before", false),
            Some(_) if results == main.results => ("end", false),
            Some(_) => ("after", true),
        };
        works.then(|| Piece { name: name.into(), times: 1, host, nodes, argument, results, between })
    };
    let (mut pieces, mut from, mut argument) = (Vec::new(), 0, None);
    for (at, node) in main.nodes.iter().enumerate() {
        let Op::Repeat { function, times, .. } = node.op else { continue };
        pieces.extend(between(from..at, argument, vec![node.inputs[0]]));
        let Some(host) = functions.get(function) else {
            return fault(node.name.clone(), "repeats a function that is not there");
        };
        let f = &host.function;
        let (argument_of, results) = (f.arguments.last().copied(), f.results.clone());
        let (name, nodes, between) = (f.name.clone(), 0..f.nodes.len(), true);
        pieces.push(Piece { name, times, host, nodes, argument: argument_of, results, between });
        (from, argument) = (at + 1, Some(node.output));
    }
    pieces.extend(between(from..main.nodes.len(), argument, main.results.clone()));
    Ok(pieces)
}

fn place(
    frame: Frame,
    kept: Kept,
    piece: Piece<'_>,
    slots: &mut BTreeMap<usize, Layout>,
) -> Result<(TrainStage, BTreeSet<usize>), TrainError> {
    let mut draft = Draft::new(frame, kept, piece.host, slots);
    if let Some(argument) = piece.argument {
        let layout = draft.columns(argument);
        draft.load(argument, "x", "input", layout, Path::Resident);
    }
    for n in piece.nodes {
        draft.at = n;
        draft.place(n)?;
    }
    // The loss is no value on the wafer: it has left.
    let known: Vec<ValueId> = piece.results.into_iter().filter(|value| draft.is_known(*value)).collect();
    for result in known {
        let name = draft.name(result)?;
        draft.store(name, "output", Path::Resident);
    }
    let Frame { width, height, tokens, heads, dtype } = frame;
    let heads =
        heads.filter(|_| draft.values.values().any(|layout| !matches!(layout, Layout::Columns { .. })));
    let (values, ops, nodes, touched) = (draft.values, draft.ops, draft.nodes, draft.touched);
    let placed =
        Placed { width, height, tokens, micro_batches: 1, resident: false, heads, dtype, values, ops };
    Ok((TrainStage { name: piece.name, times: piece.times, placed, nodes, kept_bytes: 0 }, touched))
}

impl Draft<'_> {
    /// Places a node, if it is not placed with another one.
    fn place(&mut self, n: usize) -> Result<(), TrainError> {
        if self.done.contains(&n) {
            return Ok(());
        }
        let node = self.node(n);
        for core in 0..self.cores.len() {
            if self.cores[core].nodes.contains(&n) {
                // It runs at the first of its nodes that finds everything there.
                return self.core(core).map(|_| ());
            }
        }
        // What has a cell for every query and key lives inside attention.
        if self.host.function.ty(node.output).shape.len() == 4 && !matches!(node.op, Op::Backward(_)) {
            return Ok(());
        }
        match &node.op {
            Op::Param { .. } => Ok(()),
            Op::Backward(op) => self.backward(node, op),
            _ if self.forward(node)? => Ok(()),
            op => self.fault(format!("is {}, which has no place in a training step on a wafer", op.name())),
        }
    }
}
