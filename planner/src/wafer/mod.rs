//! Plans for wafers: what a wafer computes for one micro-batch, its memory and its time.

pub mod memory;
pub mod ops;
pub mod price;
pub mod published;
pub mod release;
pub mod training;

use crate::memory::Memory;
use crate::plan::{Recompute, WaferMode, WaferPlan};
use crate::recipe::Recipe;
use crate::request::Batch;
use lapidary_hardware::price::wafer::{Area, HeadTile, Rates};
use lapidary_hardware::{HardwareSpec, Wafer};
use lapidary_models::autodiff::Recompute as Again;
use lapidary_models::{Dims, Graph, Mode, ModelSpec};
use ops::{StepOps, WaferOp};
use release::Release;

/// Groups of columns that a wafer may be cut into, each with all weights passing it and tokens of its own. More would
/// want a weight at more columns at once than links enter the wafer; assumed.
pub const REPLICAS: [u64; 2] = [1, 2];

/// Work of a training step on one wafer: what does not depend on the batch.
#[derive(Clone, Debug)]
pub struct WaferWork {
    /// With everything kept but the inside of attention, whose scores no memory holds.
    pub keeping: StepOps,
    /// With layers computed again from their inputs.
    pub again: StepOps,
    /// Parameters of the model.
    pub parameters: f64,
}

impl WaferWork {
    /// The work on sequences of `seq_len`.
    ///
    /// # Errors
    /// The dimension that a graph refuses, as a sentence.
    pub fn new(spec: &ModelSpec, seq_len: u64) -> Result<WaferWork, String> {
        let dims = Dims { batch: 1, seq: seq_len, cached: 0 };
        let graph = Graph::build(spec, Mode::Forward, dims).map_err(|error| error.to_string())?;
        Ok(WaferWork {
            keeping: StepOps::new(spec, seq_len, Again::Selective)?,
            again: StepOps::new(spec, seq_len, Again::Full)?,
            parameters: graph.parameters() as f64,
        })
    }
}

/// A wafer plan with everything a price may ask for.
#[derive(Clone, Copy, Debug)]
pub struct WaferCase<'a> {
    /// The machine.
    pub machine: &'a HardwareSpec,
    /// Its wafer.
    pub wafer: &'a Wafer,
    /// The model.
    pub model: &'a ModelSpec,
    /// The work of a step.
    pub batch: Batch,
    /// The decisions.
    pub plan: WaferPlan,
    /// The ops of a step.
    pub work: &'a WaferWork,
    /// Bytes a parameter.
    pub recipe: &'a Recipe,
    /// Whose kernels run.
    pub release: Release,
    /// Tokens of the fullest row, where sequences do not have all rows that there are for them.
    pub row: Option<u64>,
}

/// Sizes of rows looked at behind the best one so far.
const LOOKS: u32 = 8;

impl WaferCase<'_> {
    /// Memory of one wafer by class.
    pub fn memory(&self) -> Memory {
        memory::memory(self)
    }

    /// The ops under the plan's recomputation.
    pub fn ops(&self) -> &StepOps {
        if self.plan.recompute == Recompute::Full { &self.work.again } else { &self.work.keeping }
    }

    /// The rectangle of a replica, without the rows that hold the weights of a pipeline. Sequences get whole rows; where two of them would not get two rows each, they follow
    /// one another over the rows without a gap.
    pub fn area(&self) -> Area {
        let usable = &self.wafer.fabric.usable;
        let feeders = memory::Feeders::of(self).rows(self.model.n_layers);
        let rows = usable.height.saturating_sub(feeders).max(1);
        let columns = (usable.width / self.plan.replicas.max(1)).max(1);
        let (sequences, length) = (self.plan.micro_batch.max(1), self.batch.seq_len);
        let all = rows.saturating_mul(self.plan.replicas.max(1));
        let tokens = self.row.unwrap_or_else(|| match all / sequences {
            0 | 1 => sequences.saturating_mul(length).div_ceil(all),
            each => length.div_ceil(each.min(length.max(1))),
        });
        Area { columns, rows, tokens: tokens.max(1) }
    }

    /// Gives each sequence as many of its rows as take the fewest cycles. A weight costs a row a number of cycles beside
    /// those of its tokens, which speaks for all rows; keys and values pass every row of their sequence at a cost of their own
    /// beside those of tokens, which speaks for few. Fewer rows have to hold more.
    pub fn spread(self) -> Self {
        let (length, fullest) = (self.batch.seq_len, self.area().tokens);
        if fullest >= length || self.plan.mode != WaferMode::WeightStreaming {
            return self;
        }
        let (mut best, mut least, mut looks) = (self, self.cycles(), 0);
        // Sizes of rows that are no larger than their number asks for.
        let sizes = (fullest + 1..=length).filter(|row| length.div_ceil(length.div_ceil(*row)) == *row);
        for row in sizes {
            let case = WaferCase { row: Some(row), ..self };
            let cycles = case.cycles();
            if cycles < least && case.memory().total() <= self.wafer.sram() {
                (best, least, looks) = (case, cycles, 0);
            } else if looks == LOOKS {
                break;
            }
            looks += 1;
        }
        best
    }

    /// Cycles of a micro-batch in this compiler's kernels, if nothing is waited for.
    fn cycles(&self) -> f64 {
        let Some(rates) = Rates::of(self.wafer, true) else { return f64::INFINITY };
        let (area, heads, ops) = (self.area(), self.heads(), self.ops());
        let all = |ops: &[WaferOp]| ops.iter().map(|op| op.kernel.cycles(&rates, &area, &heads)).sum::<f64>();
        self.model.n_layers as f64 * all(&ops.layer) + all(&ops.ends)
    }

    /// How heads lie over a replica.
    pub fn heads(&self) -> HeadTile {
        let (model, area) = (self.model, self.area());
        let (heads, kv_heads) = (model.n_heads, model.n_kv_heads);
        HeadTile::new(area.columns, heads, kv_heads, model.head_dim, area.tokens, self.batch.seq_len)
    }
}
