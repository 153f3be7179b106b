//! The plans that an answer is about: the best, the baselines, and what stands for every rejected kind.

use crate::baseline::{one_system, wafer_first};
use crate::cost::physical::Physical;
use crate::document::{Beaten, Counts};
use crate::plan::{Degrees, GpuPlan, Sharding};
use crate::request::{Batch, PlanRequest};
use crate::search::gpu::{Degrees as Split, GpuSpace, of, with};
use crate::search::only::Only;
use crate::search::wafer::WaferSpace;
use crate::search::walk::{Found, Walk, plain};
use crate::search::{Evaluated, Verdict, order};
use lapidary_hardware::{Gpu, HardwareSpec, Wafer};
use std::collections::{BTreeMap, BTreeSet};

/// Plans by rank, and what is to be said of them.
#[derive(Debug, Default)]
pub(crate) struct Ranking {
    /// Feasible plans by rank, then rejected ones.
    pub plans: Vec<Evaluated>,
    /// Those that keep to the pins.
    pub allowed: Vec<usize>,
    /// Those that the document shows.
    pub kept: Vec<usize>,
    /// Plans that a user would try without a planner.
    pub baselines: BTreeMap<usize, &'static str>,
    /// What makes a plan fit that does not.
    pub changes: BTreeMap<usize, String>,
    /// The best plan without the pins.
    pub free: Option<Evaluated>,
    pub beaten: Vec<Beaten>,
    pub counts: Counts,
    pub complete: bool,
}

impl Ranking {
    /// The plans of a request.
    pub fn new(
        request: &PlanRequest<'_>,
        machine: &HardwareSpec,
        batch: Batch,
        physical: &Physical,
        stop: &dyn Fn() -> bool,
    ) -> Ranking {
        match (machine.gpu(), machine.wafer()) {
            (Some(gpu), _) => {
                let space = GpuSpace::new(machine, gpu, request.model, batch, physical);
                OfGpus { request, space: &space, only: Only::of(&request.pins), stop }.ranking()
            }
            (None, Some(wafer)) => of_wafers(request, machine, batch, wafer),
            (None, None) => Ranking::default(),
        }
    }

    /// The best plan of a machine that keeps to the pins, as its decisions; `None` where nothing fits.
    pub fn best(
        request: &PlanRequest<'_>,
        machine: &HardwareSpec,
        batch: Batch,
        physical: &Physical,
    ) -> Option<Degrees> {
        let devices_as_asked =
            PlanRequest { devices: request.devices.map(|_| machine.devices()), ..request.clone() };
        match (machine.gpu(), machine.wafer()) {
            (Some(gpu), _) => best_of_gpus(request, machine, gpu, batch, physical),
            (None, Some(wafer)) => {
                let ranked = wafer_space(&devices_as_asked, machine, batch).search(wafer, request.objective);
                let wanted = |plan: &&Evaluated| plan.feasible() && request.pins.allow(&plan.degrees);
                ranked.iter().find(wanted).map(|plan| plan.degrees)
            }
            (None, None) => None,
        }
    }
}

fn best_of_gpus(
    request: &PlanRequest<'_>,
    machine: &HardwareSpec,
    gpu: &Gpu,
    batch: Batch,
    physical: &Physical,
) -> Option<Degrees> {
    let space = GpuSpace::new(machine, gpu, request.model, batch, physical);
    let only = Only::of(&request.pins);
    let walk = Walk { space: &space, only, objective: request.objective, top: 1, stop: &|| false };
    walk.run().best.first().map(|kept| Degrees::Gpu(kept.plan))
}

/// A ranking of plans for GPUs in the making.
struct OfGpus<'a> {
    request: &'a PlanRequest<'a>,
    space: &'a GpuSpace<'a>,
    only: Only,
    stop: &'a dyn Fn() -> bool,
}

impl OfGpus<'_> {
    fn walk(&self, only: Only, top: usize) -> Found {
        let objective = self.request.objective;
        Walk { space: self.space, only, objective, top, stop: self.stop }.run()
    }

    fn ranking(&self) -> Ranking {
        let baselines = [("pure-fsdp", self.pure_fsdp()), ("megatron-default", self.megatron_default())];
        let found = self.walk(self.only, self.request.top.unwrap_or(usize::MAX));
        let mut plans: Vec<GpuPlan> = found.best.iter().map(|kept| kept.plan).collect();
        plans.extend(found.over.values().map(|kept| kept.plan));
        let layers = self.space.model.n_layers;
        plans.extend(found.impossible.iter().map(|degrees| with(*degrees, layers)));
        plans.extend(baselines.iter().filter_map(|(_, plan)| *plan));
        plans.sort();
        plans.dedup();
        let mut ranked: Vec<Evaluated> = plans.iter().map(|plan| self.space.evaluated(plan)).collect();
        ranked.sort_by(|a, b| order(a, b, self.request.objective));
        let place = |plan: GpuPlan| ranked.iter().position(|one| one.degrees == Degrees::Gpu(plan));
        let named = baselines.iter().filter_map(|(name, plan)| Some((place((*plan)?)?, *name)));
        let baselines: BTreeMap<usize, &'static str> = named.collect();
        let over = (0..ranked.len()).filter(|index| matches!(ranked[*index].verdict, Verdict::Over(_)));
        let changes = over.filter_map(|index| Some((index, self.change(&ranked[index])?))).collect();
        let free = match self.request.pins.is_empty() {
            true => None,
            false => self.walk(Only::default(), 1).best.first().map(|kept| self.space.evaluated(&kept.plan)),
        };
        let mut beaten: Vec<Beaten> = found.beaten.iter().map(beaten).collect();
        beaten.sort_by(|a, b| a.at_least_s.total_cmp(&b.at_least_s).then_with(|| a.name.cmp(&b.name)));
        Ranking {
            allowed: (0..ranked.len()).filter(|index| self.allows(&ranked[*index])).collect(),
            kept: (0..ranked.len()).collect(),
            counts: counts(&found),
            complete: found.complete,
            plans: ranked,
            baselines,
            changes,
            free,
            beaten,
        }
    }

    fn change(&self, plan: &Evaluated) -> Option<String> {
        match plan.degrees {
            Degrees::Gpu(degrees) => self.space.smallest_change(&degrees, &self.only),
            Degrees::Wafer(_) => None,
        }
    }

    fn allows(&self, plan: &Evaluated) -> bool {
        match (plan.degrees, &plan.verdict) {
            (Degrees::Gpu(degrees), Verdict::Impossible(_)) => self.only.degrees(of(&degrees)),
            (Degrees::Gpu(degrees), _) => self.only.plan(&degrees),
            (Degrees::Wafer(_), _) => false,
        }
    }

    /// The best fully sharded plan without tensor or pipeline parallelism; where none can be built, the plan over all
    /// devices as data-parallel ranks says why.
    fn pure_fsdp(&self) -> Option<GpuPlan> {
        let only =
            Only { tp: Some(1), cp: Some(1), pp: Some(1), sharding: Some(Sharding::Full), ..Only::default() };
        let world = self.space.machine.devices();
        let refused = GpuPlan::of_degrees(1, 1, world, self.space.model.n_layers);
        self.baseline(only).or_else(|| self.space.impossible((1, 1, 1, world)).map(|_| refused))
    }

    /// Tensor parallelism over a node, the fewest stages that fit, a distributed optimizer over the rest
    /// (arXiv 2104.04473, takeaways 1 and 2); no chunks.
    fn megatron_default(&self) -> Option<GpuPlan> {
        let (space, all) = (self.space, self.space.degrees(&Only::default()));
        let built = || all.iter().filter(|degrees| degrees.1 == 1 && space.impossible(**degrees).is_none());
        let tp = built().map(|(tp, ..)| *tp).filter(|tp| *tp <= space.machine.node.devices).max()?;
        let of_stages = |(tp, cp, pp, dp): &Split| {
            let sharding = if *dp > 1 { Sharding::Optimizer } else { Sharding::None };
            self.baseline(plain(
                Only { tp: Some(*tp), cp: Some(*cp), pp: Some(*pp), ..Only::default() },
                sharding,
            ))
        };
        let plans: Vec<GpuPlan> = built().filter(|degrees| degrees.0 == tp).filter_map(of_stages).collect();
        let fits = |plan: &&GpuPlan| space.evaluated(plan).feasible();
        plans.iter().find(fits).or(plans.last()).copied()
    }

    /// The best plan of a kind, or where none fits the one that is over by the least.
    fn baseline(&self, only: Only) -> Option<GpuPlan> {
        let found =
            Walk { space: self.space, only, objective: self.request.objective, top: 1, stop: &|| false }
                .run();
        let over = found.over.values().min_by(|a, b| a.bytes.total_cmp(&b.bytes));
        found.best.first().or(over).map(|kept| kept.plan)
    }
}

fn beaten((degrees, at_least_s): (&Split, &f64)) -> Beaten {
    Beaten { name: with(*degrees, 1).tag(), at_least_s: *at_least_s }
}

fn counts(found: &Found) -> Counts {
    let tally = found.tally;
    let evaluated = tally.evaluated + tally.impossible;
    let rejected = tally.over + tally.impossible;
    Counts {
        evaluated,
        feasible: evaluated - rejected,
        rejected,
        simulated: tally.simulated,
        left_out: tally.left_out,
    }
}

fn wafer_space<'a>(request: &PlanRequest<'a>, machine: &'a HardwareSpec, batch: Batch) -> WaferSpace<'a> {
    let all_devices = request.devices.is_some();
    WaferSpace { machine, model: request.model, batch, all_devices, release: request.release }
}

fn of_wafers(request: &PlanRequest<'_>, machine: &HardwareSpec, batch: Batch, wafer: &Wafer) -> Ranking {
    let plans = wafer_space(request, machine, batch).search(wafer, request.objective);
    let allows = |plan: &Evaluated| match plan.verdict {
        Verdict::Impossible(_) => request.pins.allow_degrees(&plan.degrees),
        _ => request.pins.allow(&plan.degrees),
    };
    let allowed: Vec<usize> = (0..plans.len()).filter(|index| allows(&plans[*index])).collect();
    let feasible = allowed.iter().filter(|index| plans[**index].feasible()).count() as u64;
    let evaluated = allowed.len() as u64;
    let baselines: BTreeMap<usize, &'static str> =
        one_system(&plans).into_iter().map(|index| (index, "one-system")).collect();
    let kept = wafer_kept(request, &plans, &allowed, &baselines);
    let over = kept.iter().filter(|index| matches!(plans[**index].verdict, Verdict::Over(_)));
    let changes = over.filter_map(|index| Some((*index, wafer_change(&plans, &allowed, *index)?))).collect();
    Ranking {
        counts: Counts {
            evaluated,
            feasible,
            rejected: evaluated - feasible,
            simulated: evaluated,
            left_out: 0,
        },
        free: plans.first().cloned(),
        complete: true,
        beaten: Vec::new(),
        plans,
        allowed,
        kept,
        baselines,
        changes,
    }
}

/// The best feasible plans, the baselines, and the nearest plan of each kind (systems, mode, what is kept where) without one.
fn wafer_kept(
    request: &PlanRequest<'_>,
    plans: &[Evaluated],
    allowed: &[usize],
    baselines: &BTreeMap<usize, &'static str>,
) -> Vec<usize> {
    let top = request.top.unwrap_or(usize::MAX);
    let feasible = allowed.iter().copied().filter(|index| plans[*index].feasible());
    let mut kept: BTreeSet<usize> = feasible.take(top).collect();
    kept.extend(baselines.keys());
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for index in allowed.iter().copied() {
        let first_of_its_kind = seen.insert(wafer_first(&plans[index].degrees));
        if !plans[index].feasible() && (first_of_its_kind || request.top.is_none()) {
            kept.insert(index);
        }
    }
    kept.into_iter().collect()
}

/// The feasible plan with the fewest other decisions, as those decisions; pinned ones stay.
fn wafer_change(plans: &[Evaluated], allowed: &[usize], index: usize) -> Option<String> {
    let plan = &plans[index];
    let feasible = allowed.iter().map(|index| &plans[*index]).filter(|other| other.feasible());
    let nearest = feasible.min_by_key(|other| plan.degrees.distance(&other.degrees))?;
    let settings = plan.degrees.settings().into_iter().zip(nearest.degrees.settings());
    let differ = settings.filter(|((_, from), (_, to))| from != to);
    let changes = differ.map(|((name, from), (_, to))| format!("{name} {to} instead of {from}"));
    Some(changes.collect::<Vec<_>>().join(", "))
}
