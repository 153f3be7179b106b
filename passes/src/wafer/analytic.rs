//! The cycles of placed ops in closed form, by the price rules that planner and simulator share: what a plan is priced
//! with before there is a program, whose own closed form is the simulator's level `analytic`.
//!
//! An op takes what its fullest PE spends on it and the latency of its row once; ops follow one another. Queues,
//! shared links and the ways in which PEs wait for each other within an op are left to levels `flow` and `event`.

use super::WaferSpec;
use super::kernel::sums;
use super::placed::{
    Activation, CachedAttention, Layout, Linear, Map, NormKind, OpKind, Path, Placed, PlacedOp, RowHeads,
    Step,
};
use super::tile::Tiles;
use lapidary_hardware::Wafer;
use lapidary_hardware::price::wafer::{
    Area, CacheTile, FUNCTION_CYCLES, HeadTile, Rates, Ring, attention, attention_backward, cached_attention,
    column_sum, gather, gemv, linear, loss, loss_backward, norm, norm_backward, norm_weight, outer_product,
    passing, pointwise, rope, turn,
};
use lapidary_models::dtype::DType;
use serde::Serialize;

/// Cycles of one op.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpCycles {
    /// Its name.
    pub name: String,
    /// Kind of the op.
    pub kind: &'static str,
    /// Cycles.
    pub cycles: u64,
}

/// Cycles of every op of a placed computation, in order; `None` where the wafer lacks the arithmetic.
pub fn cycles(placed: &Placed, wafer: &Wafer) -> Option<Vec<OpCycles>> {
    let narrow = matches!(placed.dtype, DType::F16 | DType::Bf16);
    let spec = sums::affordable(placed, &WaferSpec::of(wafer, wafer.clock()));
    let rates = Rates { longest_tree: spec.longest_tree.into(), ..Rates::of(wafer, narrow)? };
    let tokens = u64::from(placed.tokens.tiles().largest());
    let area = Area { columns: u64::from(placed.width), rows: u64::from(placed.rows()), tokens };
    let account = Account { placed, rates, area };
    let price = |op: &PlacedOp| OpCycles {
        name: op.name.clone(),
        kind: op.kind.name(),
        cycles: account.op(&op.kind).round() as u64,
    };
    Some(placed.ops.iter().map(price).collect())
}

struct Account<'a> {
    placed: &'a Placed,
    rates: Rates,
    area: Area,
}

impl Account<'_> {
    fn op(&self, kind: &OpKind) -> f64 {
        match kind {
            OpKind::Input { value, path: Path::Stream, .. }
            | OpKind::Output { value, path: Path::Stream, .. } => {
                passing(&self.rates, &self.area, self.features(value))
            }
            OpKind::Input { value, path: Path::Shared, .. }
            | OpKind::Output { value, path: Path::Shared, .. } => {
                let layout = self.placed.values.get(value);
                layout.map_or(0.0, |layout| self.placed.fullest(*layout) as f64 + self.rates.neighbour)
            }
            OpKind::Input { .. } | OpKind::Output { .. } => 0.0,
            OpKind::Keep { value, .. } => self.rates.op(self.elements(value), self.rates.half),
            OpKind::Linear(op) => {
                let outputs = op.outputs.iter().map(|segment| self.features(&segment.value)).sum();
                let biased = op.outputs.iter().filter(|segment| segment.bias.is_some());
                let biases: f64 = biased
                    .map(|segment| {
                        pointwise(&self.rates, &self.area, self.features(&segment.value), 1.0, 0.0)
                    })
                    .sum();
                linear(&self.rates, &self.area, self.own(&op.input), outputs)
                    + self.rings(op, outputs)
                    + biases
            }
            OpKind::Gemv(op) => self.gemv(op),
            OpKind::Turn(op) => self.row_heads(&op.value).map_or(0.0, |(heads, queries)| {
                let pairs = heads.pair_tiles().largest();
                turn(&self.rates, heads.count(queries).into(), pairs.into())
            }),
            OpKind::CachedAttention(op) => {
                self.cache(op).map_or(0.0, |tile| cached_attention(&self.rates, &tile))
            }
            OpKind::Norm(op) => {
                norm(&self.rates, &self.area, self.features(&op.input), op.kind == NormKind::Layer)
            }
            OpKind::NormDx(op) => {
                norm_backward(&self.rates, &self.area, self.features(&op.input), op.kind == NormKind::Layer)
            }
            OpKind::NormDw(op) => {
                norm_weight(&self.rates, &self.area, self.features(&op.input), op.kind == NormKind::Layer)
            }
            OpKind::Outer(op) => {
                outer_product(&self.rates, &self.area, self.own(&op.resident), self.features(&op.travelling))
            }
            OpKind::ColumnSum(op) => column_sum(&self.rates, &self.area, self.own(&op.input)),
            OpKind::Loss(op) => loss(&self.rates, &self.area, self.features(&op.logits)),
            OpKind::LossDx(op) => loss_backward(&self.rates, &self.area, self.features(&op.logits)),
            OpKind::TableDw(op) => passing(&self.rates, &self.area, self.features(&op.value)),
            OpKind::AttentionDx(_) => self.heads().map_or(0.0, |tile| attention_backward(&self.rates, &tile)),
            OpKind::Gather(op) => {
                let queries =
                    self.placed.values.get(&op.input) == Some(&Layout::HeadTokens { queries: true });
                self.heads().map_or(0.0, |tile| gather(&self.rates, &tile, queries))
            }
            OpKind::Rope(op) => self.heads().map_or(0.0, |tile| {
                let queries =
                    self.placed.values.get(&op.value) == Some(&Layout::HeadTokens { queries: true });
                let heads = tile.kv * if queries { tile.ways } else { 1.0 };
                rope(&self.rates, heads, tile.tokens(), f64::from(op.rotated) / 2.0)
            }),
            OpKind::Attention(_) => self.heads().map_or(0.0, |tile| attention(&self.rates, &tile)),
            OpKind::Map(op) => self.map(op),
        }
    }

    /// A row of a tile comes in from its element type; the steps and the way back are in 32 bits.
    fn map(&self, op: &Map) -> f64 {
        let (ops, functions) = op.steps.iter().map(step).fold((1.0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        // Over rows, a line has as few features as if there were as many rows as columns.
        let over_rows = self.placed.values.get(&op.input).is_some_and(|layout| layout.is_over_rows());
        let area = if over_rows { Area { columns: self.area.rows, ..self.area } } else { self.area };
        let features = self.features(&op.input);
        let load = area.features(features) * self.rates.op(self.area.tokens as f64, self.rates.mixed);
        load + pointwise(&self.rates, &area, features, ops, f64::from(functions))
    }

    /// What the outputs of a linear layer wait for their way round the row, where columns keep them by tokens.
    fn rings(&self, op: &Linear, outputs: u64) -> f64 {
        let mut layouts = op.outputs.iter().filter_map(|segment| self.placed.values.get(&segment.value));
        let (Some(heads), true) =
            (self.placed.heads, layouts.any(|layout| matches!(layout, Layout::HeadTokens { .. })))
        else {
            return 0.0;
        };
        let tokens = self.area.tokens as f64;
        let output = self.own(&op.input) * self.rates.op(tokens, self.rates.mixed) + tokens;
        let ring = Ring {
            columns: self.area.columns,
            block: heads.columns.into(),
            dim: heads.dim.into(),
            tokens: self.area.tokens,
            link_words: self.rates.link_words,
            neighbour: self.rates.ring_neighbour(),
            output,
        };
        (ring.period() - output) * outputs as f64
    }

    /// Features of the outputs lie over the axis that the input's do not.
    fn gemv(&self, op: &Linear) -> f64 {
        let layouts = op.outputs.iter().filter_map(|segment| self.placed.values.get(&segment.value));
        let outputs: u64 = layouts.map(|layout| self.placed.fullest(*layout)).sum();
        let input = self.placed.values.get(&op.input);
        let inputs = input.map_or(0, |layout| self.placed.fullest(*layout));
        let over_rows = input.is_some_and(|layout| layout.is_over_rows());
        let line = if over_rows { self.area.rows } else { self.area.columns };
        let biased = op.outputs.iter().filter(|segment| segment.bias.is_some()).count() as f64;
        let biases =
            biased * self.rates.op(outputs as f64 / op.outputs.len().max(1) as f64, self.rates.single);
        gemv(&self.rates, line, inputs as f64, outputs as f64) + biases
    }

    fn row_heads(&self, value: &str) -> Option<(RowHeads, bool)> {
        match self.placed.values.get(value) {
            Some(Layout::HeadRows { heads, queries }) => Some((*heads, *queries)),
            _ => None,
        }
    }

    fn cache(&self, op: &CachedAttention) -> Option<CacheTile> {
        let (heads, _) = self.row_heads(&op.query)?;
        Some(CacheTile {
            columns: self.area.columns,
            rows: heads.blocks().size.into(),
            heads: heads.count(true).into(),
            kv: heads.count(false).into(),
            own: heads.own(0).into(),
            slots: Tiles::new(op.capacity, self.placed.width).largest().into(),
            slopes: !op.slopes.is_empty(),
            window: op.window.is_some(),
        })
    }

    /// Features of a value over a whole row.
    fn features(&self, value: &str) -> u64 {
        self.placed.values.get(value).map_or(0, |layout| u64::from(self.placed.features(*layout)))
    }

    /// Features of a value in the fullest column.
    fn own(&self, value: &str) -> f64 {
        match (self.placed.values.get(value), self.placed.heads) {
            (Some(Layout::HeadColumns { queries }), Some(heads)) => {
                f64::from(Tiles::new(heads.features(*queries), heads.columns).largest())
            }
            (Some(layout), _) if layout.is_over_rows() => self.placed.fullest(*layout) as f64,
            _ => self.area.features(self.features(value)),
        }
    }

    /// Elements of a value in the fullest PE.
    fn elements(&self, value: &str) -> f64 {
        let Some(Layout::HeadTokens { queries }) = self.placed.values.get(value) else {
            return self.own(value) * self.area.tokens as f64;
        };
        let features = self.placed.heads.map_or(0, |heads| heads.features(*queries));
        self.heads().map_or(0.0, |tile| tile.tokens() * f64::from(features))
    }

    fn heads(&self) -> Option<HeadTile> {
        let heads = self.placed.heads?;
        let row = self.placed.tokens.tiles().largest();
        Some(HeadTile {
            columns: f64::from(heads.columns),
            kv: f64::from(heads.kv),
            ways: f64::from(heads.ways),
            dim: f64::from(heads.dim),
            row: f64::from(row),
            rounds: f64::from(self.placed.tokens.rows),
            sequences: 1.0,
        })
    }
}

/// Vector ops of a step and cycles of its functions, as the kernel writes them.
fn step(step: &Step) -> (f64, u32) {
    match step {
        Step::Scale(_) | Step::Add(_) | Step::Mul(_) | Step::Activation(Activation::Relu) => (1.0, 0),
        Step::Activation(Activation::Relu2) => (2.0, 0),
        Step::Activation(Activation::Silu) => (3.0, FUNCTION_CYCLES.exp + FUNCTION_CYCLES.recip),
        Step::Activation(Activation::Gelu) => (3.0, FUNCTION_CYCLES.erf),
        Step::Activation(Activation::GeluTanh) => (5.0, FUNCTION_CYCLES.tanh),
        Step::Slope(Activation::Relu) => (3.0, 0),
        Step::Slope(Activation::Relu2) => (2.0, 0),
        Step::Slope(Activation::Silu) => (5.0, FUNCTION_CYCLES.exp + FUNCTION_CYCLES.recip),
        Step::Slope(Activation::Gelu) => (6.0, FUNCTION_CYCLES.erf + FUNCTION_CYCLES.exp),
        Step::Slope(Activation::GeluTanh) => (11.0, FUNCTION_CYCLES.tanh),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wafer::{Workload, generate, place_layer};
    use lapidary_hardware::builtin::machine;
    use lapidary_models::ModelSpec;
    use lapidary_models::builtin;
    use lapidary_runtime_sim::{FabricSpec, check, event, flow};
    use std::collections::BTreeMap;

    /// A built-in model made small; head widths stay even for its rotation.
    fn small(name: &str, heads: u64, dim: u64, ffn: u64) -> ModelSpec {
        let base = builtin(name).unwrap();
        let mut model = ModelSpec { d_model: heads * dim, n_heads: heads, head_dim: dim, d_ff: ffn, ..base };
        model.n_kv_heads = heads / (model.n_heads / model.n_kv_heads.min(heads)).max(1);
        if let lapidary_models::spec::Position::Rope(rope) = &mut model.pos {
            rope.rot_dims = rope.rot_dims.min(dim);
        }
        model
    }

    /// All query heads share one head of keys and values.
    fn one_key(model: ModelSpec) -> ModelSpec {
        ModelSpec { n_kv_heads: 1, ..model }
    }

    /// Event, flow and analytic cycles of a layer, and those of its ops in closed form.
    fn levels(model: &ModelSpec, (width, height): (u32, u32), sequences: u32, length: u32) -> [f64; 4] {
        let cs2 = machine("cs2").unwrap();
        let wafer = cs2.wafer().unwrap();
        let spec = WaferSpec::of(wafer, wafer.clock());
        let work = Workload { width, height, sequences, length, dtype: DType::Bf16 };
        let placed = place_layer(model, work, &spec).unwrap();
        let program = generate(&placed, &spec).unwrap().program;
        let checked = check(&program, &FabricSpec::wse2()).unwrap();
        let event = event::simulate(&checked, BTreeMap::new()).unwrap().report;
        let flow = flow::time(&checked).unwrap();
        let ops = cycles(&placed, wafer).unwrap();
        for op in &ops {
            let phase = event.phases.iter().find(|phase| phase.name == op.name);
            println!("  {:12} {:8} {:?}", op.name, op.cycles, phase.map(|phase| (phase.start, phase.end)));
        }
        let closed = ops.iter().map(|op| op.cycles).sum::<u64>();
        let analytic = lapidary_runtime_sim::analytic::time(&checked).unwrap();
        [event.cycles, flow.cycles, analytic.cycles, closed].map(|cycles| cycles as f64)
    }

    /// Event is the judge; flow is within 5 % of it, analytic within 15 %.
    #[test]
    fn three_levels_agree_on_layers_that_are_small_enough() {
        let cases = [
            (small("crystalcoder", 4, 16, 172), (16, 12), 2, 96),
            (small("llama-2-7b", 4, 16, 160), (12, 8), 1, 128),
            (small("gpt3-1.3b", 2, 32, 256), (8, 8), 2, 64),
            (small("gpt-j-6b", 4, 16, 256), (24, 8), 4, 64),
            // Fewer tokens in a row than a head has columns, and rows of unequal length.
            (small("crystalcoder", 4, 16, 172), (24, 16), 1, 32),
            (small("crystalcoder", 4, 16, 172), (24, 16), 1, 40),
            (small("llama-2-7b", 4, 16, 160), (32, 24), 1, 64),
            (small("llama-2-7b", 4, 16, 160), (40, 12), 1, 70),
            // One head of keys and values over the whole row, whose ring has room for all outputs that it takes.
            (one_key(small("llama-2-7b", 6, 16, 192)), (24, 16), 3, 24),
            (one_key(small("crystalcoder", 8, 8, 172)), (32, 24), 2, 17),
            (one_key(small("llama-2-7b", 6, 8, 128)), (31, 16), 3, 60),
            (small("crystalcoder", 4, 16, 172), (8, 8), 1, 17),
        ];
        for (model, grid, sequences, length) in cases {
            let [event, flow, analytic, closed] = levels(&model, grid, sequences, length);
            let line = format!(
                "{} on {grid:?}: event {event}, flow {flow}, analytic {analytic}, ops {closed}",
                model.name
            );
            println!("{line}");
            assert!((flow / event - 1.0).abs() < 0.05, "{line}");
            assert!([analytic, closed].iter().all(|cycles| (cycles / event - 1.0).abs() < 0.15), "{line}");
        }
    }

    /// The layer whose cycles at level flow stand in the README: 30,579,091.
    #[test]
    fn a_layer_of_crystalcoder_takes_what_level_flow_says() {
        let cs2 = machine("cs2").unwrap();
        let wafer = cs2.wafer().unwrap();
        let spec = WaferSpec::of(wafer, wafer.clock());
        let work = Workload { width: 750, height: 994, sequences: 66, length: 2048, dtype: DType::Bf16 };
        let placed = place_layer(&builtin("crystalcoder").unwrap(), work, &spec).unwrap();
        let ops = cycles(&placed, wafer).unwrap();
        let all: u64 = ops.iter().map(|op| op.cycles).sum();
        println!("{ops:?}");
        assert!((all as f64 / 30_579_091.0 - 1.0).abs() < 0.15, "{all}: {ops:?}");
    }
}
