//! Looks at every plan there is, prices and ranks it, and keeps the reasons.

use crate::cost::{Cost, CostModel, GpuCase};
use crate::memory::Memory;
use crate::plan::{Degrees, GpuPlan, Recompute, Sharding, WaferMode, WaferPlan};
use crate::rank::{RankWork, RankWorks};
use crate::recipe::Recipe;
use crate::request::{Batch, Objective};
use crate::step::Work;
use crate::wafer::memory::SERVER_BYTES;
use crate::wafer::release::Release;
use crate::wafer::{REPLICAS, WaferCase, WaferWork};
use lapidary_hardware::{Bytes, HardwareSpec, Wafer};
use lapidary_models::ModelSpec;
use std::cmp::Ordering;

/// A plan that was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Evaluated {
    pub degrees: Degrees,
    pub cost: Option<Cost>,
    pub memory: Memory,
    pub verdict: Verdict,
}

/// Whether a plan can be used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    Feasible,
    /// Memory is over by this much.
    Over(Bytes),
    /// It cannot be built; the reason as a sentence. Only the degrees count.
    Impossible(String),
}

impl Evaluated {
    pub fn feasible(&self) -> bool {
        self.verdict == Verdict::Feasible
    }

    fn impossible(degrees: Degrees, reason: String) -> Evaluated {
        Evaluated { degrees, cost: None, memory: Memory::default(), verdict: Verdict::Impossible(reason) }
    }

    fn priced(degrees: Degrees, cost: Cost, memory: Memory, capacity: Bytes) -> Evaluated {
        let over = memory.total() - capacity;
        let verdict = if over.0 > 0.0 { Verdict::Over(over) } else { Verdict::Feasible };
        Evaluated { degrees, cost: Some(cost), memory, verdict }
    }
}

/// Where to look.
pub(crate) struct Space<'a> {
    pub machine: &'a HardwareSpec,
    pub model: &'a ModelSpec,
    pub batch: Batch,
    pub cost_model: &'a dyn CostModel,
    pub recipe: &'a Recipe,
    /// Whether wafer plans must use every device.
    pub all_devices: bool,
    /// Whose kernels run on wafers.
    pub release: Release,
}

impl Space<'_> {
    /// Every plan, ranked.
    pub fn search(&self, objective: Objective) -> Vec<Evaluated> {
        let mut found = match self.machine.wafer() {
            Some(wafer) => self.wafer_plans(wafer),
            None => self.gpu_plans(),
        };
        found.sort_by(|a, b| order(a, b, objective));
        found
    }

    fn gpu_plans(&self) -> Vec<Evaluated> {
        let world = self.machine.devices();
        let mut found = Vec::new();
        for tp in divisors(world) {
            let rank = self.rank(tp);
            for pp in divisors(world / tp) {
                self.gpu_degrees(tp, pp, world / tp / pp, &rank, &mut found);
            }
        }
        found
    }

    /// What a rank does, whatever the micro-batch.
    fn rank(&self, tp: u64) -> Result<(RankWorks, Option<Work>), String> {
        let seq_len = self.batch.seq_len;
        let works = RankWorks::new(self.model, tp, seq_len)?;
        Ok((works, self.cost_model.account(self.model, tp, seq_len)?))
    }

    fn gpu_degrees(
        &self,
        tp: u64,
        pp: u64,
        dp: u64,
        rank: &Result<(RankWorks, Option<Work>), String>,
        found: &mut Vec<Evaluated>,
    ) {
        let impossible = |reason: String| {
            let (sharding, recompute) = (Sharding::None, Recompute::None);
            let plan = GpuPlan { tp, pp, dp, micro_batch: 1, accumulation: 1, sharding, recompute };
            Evaluated::impossible(Degrees::Gpu(plan), reason)
        };
        if let Some(reason) = self.indivisible(pp, dp) {
            found.push(impossible(reason));
            return;
        }
        let (works, account) = match rank {
            Ok(rank) => rank,
            Err(reason) => {
                found.push(impossible(reason.clone()));
                return;
            }
        };
        let local = self.batch.global / dp;
        for micro_batch in divisors(local) {
            let work = works.at(micro_batch);
            for (sharding, recompute) in self.variants(tp, pp, dp) {
                let accumulation = local / micro_batch;
                let plan = GpuPlan { tp, pp, dp, micro_batch, accumulation, sharding, recompute };
                found.push(self.gpu_plan(plan, &work, account.as_ref()));
            }
        }
    }

    fn indivisible(&self, pp: u64, dp: u64) -> Option<String> {
        let (layers, global) = (self.model.n_layers, self.batch.global);
        if !layers.is_multiple_of(pp) {
            return Some(format!("{layers} layers do not divide by pp {pp}"));
        }
        (!global.is_multiple_of(dp)).then(|| format!("a global batch of {global} does not divide by dp {dp}"))
    }

    /// Shardings that mean something for these degrees, with every recomputation. Gathering shards is not
    /// combined with a pipeline, which would gather again for every micro-batch of every stage.
    fn variants(&self, tp: u64, pp: u64, dp: u64) -> Vec<(Sharding, Recompute)> {
        let per_node = self.machine.node.devices / tp;
        let means = |sharding: Sharding| match sharding {
            Sharding::None => true,
            Sharding::Optimizer => dp > 1,
            Sharding::Full => dp > 1 && pp == 1,
            Sharding::OptimizerInNode => false,
            Sharding::Hybrid => pp == 1 && per_node > 1 && dp > per_node && dp.is_multiple_of(per_node),
        };
        let shardings = Sharding::ALL.into_iter().filter(|sharding| means(*sharding));
        shardings.flat_map(|sharding| Recompute::ALL.map(|recompute| (sharding, recompute))).collect()
    }

    fn gpu_plan(&self, plan: GpuPlan, work: &RankWork, account: Option<&Work>) -> Evaluated {
        let (machine, model, recipe) = (self.machine, self.model, self.recipe);
        let case = GpuCase { machine, model, batch: self.batch, plan, work, account, recipe };
        let cost = self.cost_model.gpu(&case);
        Evaluated::priced(Degrees::Gpu(plan), cost, self.cost_model.memory(&case), machine.device.memory())
    }

    fn wafer_plans(&self, wafer: &Wafer) -> Vec<Evaluated> {
        let devices = self.machine.devices();
        let work = match WaferWork::new(self.model, self.batch.seq_len) {
            Ok(work) => work,
            Err(reason) => return vec![Evaluated::impossible(Degrees::Wafer(first_plan(devices)), reason)],
        };
        let counts = divisors(self.batch.global).into_iter().filter(|systems| *systems <= devices);
        let counts: Vec<u64> = counts.filter(|systems| !self.all_devices || *systems == devices).collect();
        if counts.is_empty() {
            let reason =
                format!("a global batch of {} does not divide by {devices} systems", self.batch.global);
            return vec![Evaluated::impossible(Degrees::Wafer(first_plan(devices)), reason)];
        }
        let mut found = Vec::new();
        for systems in counts {
            let local = self.batch.global / systems;
            for micro_batch in divisors(local) {
                for plan in wafer_plans(self.model, systems, micro_batch, local / micro_batch) {
                    found.push(self.wafer_plan(plan, &work, wafer));
                }
            }
        }
        found
    }

    fn wafer_plan(&self, plan: WaferPlan, work: &WaferWork, wafer: &Wafer) -> Evaluated {
        let degrees = Degrees::Wafer(plan);
        if let Some(reason) = self.unservable(plan, work, wafer) {
            return Evaluated::impossible(degrees, reason);
        }
        let (machine, model, recipe) = (self.machine, self.model, self.recipe);
        let (batch, release) = (self.batch, self.release);
        let case = WaferCase { machine, wafer, model, batch, plan, work, recipe, release };
        let cost = self.cost_model.wafer(&case);
        Evaluated::priced(degrees, cost, case.memory(), wafer.sram())
    }

    /// What outside the wafer stands against a plan.
    fn unservable(&self, plan: WaferPlan, work: &WaferWork, wafer: &Wafer) -> Option<String> {
        if plan.mode == WaferMode::LayerPipelined {
            return None;
        }
        if wafer.ingress.is_none() {
            return Some(format!("{} states no [ingress] to stream weights through", self.machine.name));
        }
        let server = self.machine.weight_server.as_ref()?;
        let state = Bytes(work.parameters * SERVER_BYTES);
        (state > server.capacity)
            .then(|| format!("the weight server holds {}, the training state takes {state}", server.capacity))
    }
}

/// Every way to keep or compute again what a backward pass needs, on one replica or more, in both modes.
pub(crate) fn wafer_plans(
    model: &ModelSpec,
    systems: u64,
    micro_batch: u64,
    accumulation: u64,
) -> Vec<WaferPlan> {
    let base = WaferPlan { micro_batch, accumulation, ..first_plan(systems) };
    let segments = std::iter::successors(Some(1u64), |every| Some(every * 2));
    let segments = segments.take_while(|every| *every <= model.n_layers);
    let full = WaferPlan { recompute: Recompute::Full, ..base };
    let mut plans: Vec<WaferPlan> =
        segments.map(|checkpoint_every| WaferPlan { checkpoint_every, ..full }).collect();
    plans.push(WaferPlan { outside: true, ..full });
    plans.push(base);
    let wide = plans.iter().flat_map(|plan| REPLICAS.map(|replicas| WaferPlan { replicas, ..*plan }));
    let mut all: Vec<WaferPlan> = wide.collect();
    let pipelined = WaferPlan { mode: WaferMode::LayerPipelined, ..base };
    all.extend([pipelined, WaferPlan { recompute: Recompute::Full, ..pipelined }]);
    all
}

/// One sequence at a time on this many systems, everything kept.
fn first_plan(systems: u64) -> WaferPlan {
    WaferPlan {
        systems,
        micro_batch: 1,
        accumulation: 1,
        mode: WaferMode::WeightStreaming,
        recompute: Recompute::None,
        checkpoint_every: 1,
        replicas: 1,
        outside: false,
    }
}

/// Feasible plans by the objective, then rejected ones by what they are over, then impossible ones; names last,
/// so that the order is the same every time.
fn order(a: &Evaluated, b: &Evaluated, objective: Objective) -> Ordering {
    let key = |plan: &Evaluated| {
        let time = plan.cost.as_ref().map_or(f64::INFINITY, |cost| cost.time().0);
        let bytes = plan.memory.total().0;
        match (&plan.verdict, objective) {
            (Verdict::Feasible, Objective::StepTime) => (0, time, bytes),
            (Verdict::Feasible, Objective::Memory) => (0, bytes, time),
            (Verdict::Over(over), _) => (1, over.0, time),
            (Verdict::Impossible(_), _) => (2, 0.0, 0.0),
        }
    };
    let (a_key, b_key) = (key(a), key(b));
    let numbers = a_key.0.cmp(&b_key.0).then(a_key.1.total_cmp(&b_key.1)).then(a_key.2.total_cmp(&b_key.2));
    numbers.then(a.degrees.cmp(&b.degrees))
}

/// Divisors of a number, ascending.
pub(crate) fn divisors(n: u64) -> Vec<u64> {
    let small: Vec<u64> = (1..).take_while(|d| d * d <= n).filter(|d| n.is_multiple_of(*d)).collect();
    let large: Vec<u64> = small.iter().rev().map(|d| n / d).filter(|d| d * d > n).collect();
    small.into_iter().chain(large).collect()
}
