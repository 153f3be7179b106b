//! Programs for one new token after the other: parameters of all layers, and keys and values of all tokens so far, stay in
//! the memory of the PEs.
//!
//! ```text
//! before --x--> layer (its weights and cache) --x--> layer --x--> .. --x--> after --> logits of the token
//! ```
//! All PEs work on each layer: a product reads features over columns and makes features over rows, the next one the other
//! way round (see [`super::placed::Layout::Rows`]). The ops are those of the forward pass, so decoding computes what a pass
//! over the whole sequence computes for its last token. Programs do not depend on the position: it comes as data.

use super::error::WaferError;
use super::layout::{HeadShape, place_heads};
use super::pipeline::Layers;
use super::placed::{
    Attention, CachedAttention, Heads, Layout, Linear, Map, Norm, OpKind, Pairing, Path, Placed, PlacedOp,
    Rope, RowHeads, Source, Tokens, Turn,
};
use super::{Generated, WaferSpec, generate, resident_bytes};
use std::collections::BTreeMap;

/// One program of a decoding step.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeStage {
    /// `before`, `layer` or `after`.
    pub name: String,
    /// How often it runs.
    pub times: u64,
    /// What was placed.
    pub placed: Placed,
    /// The program, its host tensors and its report.
    pub generated: Generated,
}

/// The programs of a decoding step.
#[derive(Clone, Debug, PartialEq)]
pub struct Decode {
    /// In the order of execution.
    pub stages: Vec<DecodeStage>,
    /// Tokens that the cache has room for.
    pub capacity: u32,
    /// Which feature of the model's keys (and values) stands at each place of a row of the cache.
    pub cache_order: Vec<u32>,
}

/// Places one token of a model whose forward pass is `stages`, with room for `capacity` tokens.
///
/// # Errors
/// [`WaferError::Memory`] where parameters and cache do not fit; [`WaferError::Unsupported`] where products do not alternate.
pub fn decode(stages: Vec<Layers>, capacity: u32, spec: &WaferSpec) -> Result<Decode, WaferError> {
    let mut placed = Vec::new();
    for Layers { name, times, placed: forward } in stages {
        placed.push((name, times, Draft::new(forward, capacity).finish()?));
    }
    let order =
        placed.iter().flat_map(|(.., placed)| placed.values.values()).find_map(|layout| match layout {
            Layout::HeadRows { heads, queries: false } => Some(heads.order(false)),
            _ => None,
        });
    let own: Vec<u64> =
        placed.iter().map(|(.., placed)| resident_bytes(placed, spec)).collect::<Result<_, _>>()?;
    let all: u64 = placed.iter().zip(&own).map(|((_, times, _), bytes)| times * bytes).sum();
    let generated = placed.into_iter().zip(own).map(|((name, times, placed), own)| {
        // What the other programs keep is there while this one runs.
        let spec = WaferSpec { kept_bytes: all - own, ..spec.clone() };
        let generated = generate(&placed, &spec)?;
        Ok(DecodeStage { name, times, placed, generated })
    });
    let stages = generated.collect::<Result<_, WaferError>>()?;
    Ok(Decode { stages, capacity, cache_order: order.unwrap_or_default() })
}

/// A program under construction.
struct Draft {
    forward: Placed,
    capacity: u32,
    heads: Option<RowHeads>,
    values: BTreeMap<String, Layout>,
}

impl Draft {
    fn new(forward: Placed, capacity: u32) -> Self {
        let turning = forward.ops.iter().find_map(|op| match &op.kind {
            OpKind::Rope(rope) => Some((rope.rotated / 2, rope.pairing)),
            _ => None,
        });
        let (pairs, pairing) = turning.unwrap_or((0, Pairing::Half));
        let heads = forward.heads.map(|heads| RowHeads {
            heads: rows_of(forward.height, heads, pairs),
            pairs,
            pairing,
        });
        Draft { forward, capacity, heads, values: BTreeMap::new() }
    }

    fn finish(mut self) -> Result<Placed, WaferError> {
        let forward = std::mem::take(&mut self.forward.ops);
        let ops = forward.into_iter().map(|op| self.op(op)).collect::<Result<Vec<_>, _>>()?;
        let Placed { width, height, dtype, .. } = self.forward;
        let tokens = Tokens { sequences: 1, length: 1, rows: 1 };
        let (micro_batches, resident, heads) = (1, true, None);
        Ok(Placed { width, height, tokens, micro_batches, resident, heads, dtype, values: self.values, ops })
    }

    fn op(&mut self, op: PlacedOp) -> Result<PlacedOp, WaferError> {
        let PlacedOp { name, kind } = op;
        let kind = match kind {
            OpKind::Input { value, tensor, source, .. } => {
                self.put(&value, Layout::Columns { features: self.features(&value) });
                let path = if source == Source::Caller { Path::Resident } else { Path::Shared };
                OpKind::Input { value, tensor, source, path }
            }
            OpKind::Output { value, tensor, .. } => {
                let path = if self.layout(&value).is_over_rows() { Path::Shared } else { Path::Resident };
                OpKind::Output { value, tensor, path }
            }
            OpKind::Linear(linear) => self.product(linear)?,
            OpKind::Norm(norm) => self.norm(norm),
            OpKind::Map(map) => self.map(map),
            OpKind::Rope(Rope { value, frequencies, .. }) => OpKind::Turn(Turn { value, frequencies }),
            OpKind::Attention(attention) => self.attention(attention)?,
            other => return Err(unsupported(format!("{name} ({}) for one token", other.name()))),
        };
        Ok(PlacedOp { name, kind })
    }

    fn put(&mut self, value: &str, layout: Layout) {
        self.values.insert(value.into(), layout);
    }

    fn layout(&self, value: &str) -> Layout {
        self.values.get(value).copied().unwrap_or(Layout::Columns { features: 0 })
    }

    fn features(&self, value: &str) -> u32 {
        self.forward.values.get(value).map_or(0, |layout| self.forward.features(*layout))
    }

    fn norm(&mut self, norm: Norm) -> OpKind {
        self.put(&norm.output, self.layout(&norm.input));
        OpKind::Norm(norm)
    }

    fn map(&mut self, map: Map) -> OpKind {
        self.put(&map.output, self.layout(&map.input));
        OpKind::Map(map)
    }

    /// Outputs lie over the axis that the input does not lie over.
    fn product(&mut self, linear: Linear) -> Result<OpKind, WaferError> {
        let to_rows = !self.layout(&linear.input).is_over_rows();
        for segment in &linear.outputs {
            let features = self.features(&segment.value);
            let layout = match (self.forward.values.get(&segment.value), self.heads) {
                (Some(Layout::HeadTokens { queries }), Some(heads)) => {
                    Layout::HeadRows { heads, queries: *queries }
                }
                _ if to_rows => Layout::Rows { features },
                _ => Layout::Columns { features },
            };
            let known = self.values.get(&segment.value).filter(|_| linear.accumulate);
            if layout.is_over_rows() != to_rows || known.is_some_and(|known| *known != layout) {
                return Err(unsupported(format!(
                    "{} as a second product over one axis",
                    segment.weight.name
                )));
            }
            self.put(&segment.value, layout);
        }
        Ok(OpKind::Gemv(linear))
    }

    fn attention(&mut self, attention: Attention) -> Result<OpKind, WaferError> {
        let Attention { query, key, value, output, scale, slopes, window } = attention;
        let heads = self.heads.ok_or_else(|| unsupported("attention without heads".into()))?;
        self.put(&output, Layout::HeadRows { heads, queries: true });
        let capacity = self.capacity;
        Ok(OpKind::CachedAttention(CachedAttention {
            query,
            key,
            value,
            output,
            scale,
            slopes,
            window,
            capacity,
        }))
    }
}

/// As many blocks of rows as the heads of all columns would get; a row without a feature would have nothing to do.
fn rows_of(height: u32, heads: Heads, pairs: u32) -> Heads {
    let Heads { blocks, kv, ways, dim, .. } = heads;
    let shape = HeadShape { heads: blocks * kv * ways, kv_heads: blocks * kv, dim };
    let placed = place_heads(height, shape);
    let most = pairs.max(dim.saturating_sub(2 * pairs)).max(1);
    Heads { columns: placed.columns.min(most), ..placed }
}

fn unsupported(what: String) -> WaferError {
    WaferError::Unsupported { what, hint: "recompute the whole sequence".into() }
}
