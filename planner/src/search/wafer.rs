//! Every plan for wafers: there are few enough to price them all.

use super::{Evaluated, divisors, order};
use crate::plan::{Degrees, Recompute, WaferMode, WaferPlan};
use crate::recipe::Recipe;
use crate::request::{Batch, Objective};
use crate::wafer::memory::SERVER_BYTES;
use crate::wafer::price::step;
use crate::wafer::release::Release;
use crate::wafer::{REPLICAS, WaferCase, WaferWork};
use lapidary_hardware::{Bytes, HardwareSpec, Wafer};
use lapidary_models::ModelSpec;

/// Where to look.
pub(crate) struct WaferSpace<'a> {
    pub machine: &'a HardwareSpec,
    pub model: &'a ModelSpec,
    pub batch: Batch,
    /// Whether plans must use every system.
    pub all_devices: bool,
    /// Whose kernels run.
    pub release: Release,
}

impl WaferSpace<'_> {
    /// Every plan, ranked.
    pub fn search(&self, wafer: &Wafer, objective: Objective) -> Vec<Evaluated> {
        let mut found = self.wafer_plans(wafer);
        found.sort_by(|a, b| order(a, b, objective));
        found
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
        let (machine, model, recipe) = (self.machine, self.model, &Recipe::MIXED);
        let (batch, release) = (self.batch, self.release);
        let case =
            WaferCase { machine, wafer, model, batch, plan, work, recipe, release, row: None }.spread();
        let cost = step(&case);
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
