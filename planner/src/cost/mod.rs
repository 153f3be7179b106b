//! Prices of plans: the trait that the search sees, and cost as named terms.

pub mod compute;
pub mod data;
pub mod optimizer;
pub mod physical;
pub mod pipeline;
pub mod roofline;
pub mod tensor;

use crate::assumption::Assumption;
use crate::memory::{Memory, memory};
use crate::plan::GpuPlan;
use crate::rank::RankWork;
use crate::recipe::Recipe;
use crate::request::Batch;
use crate::step::Work;
use crate::wafer::WaferCase;
use indexmap::IndexMap;
use lapidary_hardware::{HardwareSpec, Seconds};
use lapidary_models::ModelSpec;
use serde::{Deserialize, Serialize};

/// What a term is about: the answer to what binds a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// Memory bandwidth.
    Memory,
    /// Links and network.
    Network,
    /// Idle stages.
    Pipeline,
    /// What enters and leaves a wafer.
    Ingress,
    /// The host: launches, its optimizer, what stands once a step.
    Host,
}

impl Bound {
    /// The word in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Bound::Compute => "compute",
            Bound::Memory => "memory",
            Bound::Network => "network",
            Bound::Pipeline => "pipeline",
            Bound::Ingress => "ingress",
            Bound::Host => "host",
        }
    }
}

/// Time of one step as the sum of named terms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Terms in the order of the table; together the time of the step.
    pub terms: IndexMap<&'static str, (Bound, Seconds)>,
}

impl Cost {
    /// Time of the step.
    pub fn time(&self) -> Seconds {
        self.terms.values().map(|(_, seconds)| *seconds).sum()
    }

    /// What takes the most of it; the first of equals.
    pub fn bound(&self) -> Bound {
        let mut sums: IndexMap<Bound, Seconds> = IndexMap::new();
        for (bound, seconds) in self.terms.values() {
            *sums.entry(*bound).or_insert(Seconds::ZERO) += *seconds;
        }
        let start = (Bound::Compute, Seconds::ZERO);
        sums.into_iter().fold(start, |best, sum| if sum.1 > best.1 { sum } else { best }).0
    }
}

/// A GPU plan with everything a term may ask for.
#[derive(Clone, Copy, Debug)]
pub struct GpuCase<'a> {
    /// The machine, cut to the devices of the plan.
    pub machine: &'a HardwareSpec,
    /// The model.
    pub model: &'a ModelSpec,
    /// The work of a step.
    pub batch: Batch,
    /// The decisions.
    pub plan: GpuPlan,
    /// What one rank computes for one micro-batch.
    pub work: &'a RankWork,
    /// What one rank does for one sequence under the model's software, where the cost model reads that.
    pub account: Option<&'a Work>,
    /// Bytes a parameter.
    pub recipe: &'a Recipe,
}

impl GpuCase<'_> {
    /// Layers of one stage.
    pub fn stage_layers(&self) -> f64 {
        (self.model.n_layers / self.plan.pp) as f64
    }

    /// Micro-batches of a step.
    pub fn micro_batches(&self) -> f64 {
        self.plan.accumulation as f64
    }
}

/// What the search asks.
pub trait CostModel {
    /// Its name, printed beside every figure.
    fn name(&self) -> &'static str;
    /// What it takes for granted on a machine, beside the machine's own numbers and the recipe.
    fn assumptions(&self, machine: &HardwareSpec) -> Vec<Assumption>;
    /// What one rank among `tp` does for one sequence, for models that price more than kernels at their roofs.
    ///
    /// # Errors
    /// What does not divide, as a sentence.
    fn account(&self, _model: &ModelSpec, _tp: u64, _seq_len: u64) -> Result<Option<Work>, String> {
        Ok(None)
    }
    /// Time of a step on GPUs.
    fn gpu(&self, case: &GpuCase<'_>) -> Cost;
    /// Memory of the fullest GPU.
    fn memory(&self, case: &GpuCase<'_>) -> Memory {
        let shard_ranks = data::shard_ranks(case.machine, &case.plan);
        memory(case.work, &case.plan, case.model.n_layers, shard_ranks, case.recipe)
    }
    /// Time of a step on wafers.
    fn wafer(&self, case: &WaferCase<'_>) -> Cost;
}

/// Share of the step in which a pipeline idles.
pub fn pipeline_share(cost: &Cost) -> f64 {
    let idle = cost.terms.values().filter(|(bound, _)| *bound == Bound::Pipeline).map(|(_, s)| *s);
    idle.sum::<Seconds>() / cost.time()
}
