//! From a request to a document: what is kept, how it is named, and what would help where nothing fits.

use crate::assumption::{Assumption, of_machine};
use crate::baseline::names;
use crate::cost::physical::Physical;
use crate::document::{Candidate, Inputs, Nearest, PlanDocument, SCHEMA, VERSION};
use crate::plan::Degrees;
use crate::rank::sequence_flops;
use crate::ranking::Ranking;
use crate::recipe::Recipe;
use crate::request::{Batch, DEFAULT_BATCH_TOKENS, Pins, PlanError, PlanRequest};
use crate::search::{Evaluated, Verdict};
use crate::wafer::price::busy_share;
use crate::warnings;
use lapidary_hardware::{Bytes, HardwareSpec, Precision};
use lapidary_models::ModelSpec;

/// How many times as many devices are tried where nothing fits.
const GROWTH: [u64; 6] = [2, 4, 8, 16, 32, 64];

/// Ranks the plans of a request.
///
/// # Errors
/// [`PlanError`] for inputs that cannot be planned for. A model that fits nowhere is no error: then `chosen`
/// is absent and `nearest` says what would help.
pub fn plan(request: &PlanRequest<'_>, physical: &Physical) -> Result<PlanDocument, PlanError> {
    plan_until(request, physical, &|| false)
}

/// The same, until `stop` says so: then the best so far is chosen and the document is not `complete`.
///
/// # Errors
/// As [`plan`].
pub fn plan_until(
    request: &PlanRequest<'_>,
    physical: &Physical,
    stop: &dyn Fn() -> bool,
) -> Result<PlanDocument, PlanError> {
    let (machine, batch) = request.resolve()?;
    check_arithmetic(&machine, request.model)?;
    if request.model.experts.is_some() && machine.gpu().is_none() {
        return Err(PlanError::Experts { model: request.model.name.clone(), what: "wafers" });
    }
    if physical.offload && machine.gpu().is_some() && machine.node.host.is_none() {
        return Err(PlanError::Host { machine: machine.name });
    }
    let ranking = Ranking::new(request, &machine, batch, physical, stop);
    Answer::new(request, &machine, batch, physical, &ranking).document()
}

/// The arithmetic that a plan's peak and prices are taken from.
fn precision(machine: &HardwareSpec, model: &ModelSpec) -> Precision {
    if machine.wafer().is_some() { Precision::Mixed } else { Precision::of(model.dtype.compute) }
}

fn check_arithmetic(machine: &HardwareSpec, model: &ModelSpec) -> Result<(), PlanError> {
    let wanted = precision(machine, model);
    let also = if machine.wafer().is_some() { Precision::Fp32 } else { wanted };
    match [wanted, also].into_iter().find(|precision| machine.device.peak(*precision).is_none()) {
        None => Ok(()),
        Some(lacking) => Err(PlanError::Arithmetic {
            device: machine.device.product().to_string(),
            precision: lacking.name().to_string(),
        }),
    }
}

struct Answer<'a> {
    request: &'a PlanRequest<'a>,
    machine: &'a HardwareSpec,
    batch: Batch,
    physical: &'a Physical,
    ranking: &'a Ranking,
    names: Vec<String>,
    sequence_flops: f64,
    parameters: u64,
}

impl<'a> Answer<'a> {
    fn new(
        request: &'a PlanRequest<'a>,
        machine: &'a HardwareSpec,
        batch: Batch,
        physical: &'a Physical,
        ranking: &'a Ranking,
    ) -> Answer<'a> {
        let (sequence_flops, parameters) = sequence_flops(request.model, batch.seq_len).unwrap_or_default();
        let names = names(&ranking.plans);
        Answer { request, machine, batch, physical, ranking, names, sequence_flops, parameters }
    }

    fn document(&self) -> Result<PlanDocument, PlanError> {
        let ranking = self.ranking;
        let Some(first) = ranking.allowed.first().copied() else {
            return Err(PlanError::Empty {
                pins: self.request.pins.to_string(),
                reason: self.no_pin_reason(),
                nearest: self.loosened(),
            });
        };
        let best = Some(first).filter(|index| ranking.plans[*index].feasible());
        Ok(PlanDocument {
            schema: SCHEMA.to_string(),
            version: VERSION,
            cost_model: self.physical.name().to_string(),
            inputs: self.inputs(),
            chosen: best.map(|index| self.names[index].clone()),
            counts: ranking.counts,
            complete: ranking.complete,
            beaten: ranking.beaten.clone(),
            candidates: ranking.kept.iter().map(|index| self.candidate(*index)).collect(),
            nearest: if best.is_none() { Some(self.nearest(first)) } else { None },
            pin_loss_pct: best.and_then(|index| self.pin_loss(index)),
            warnings: best.map(|index| self.warnings(index)).unwrap_or_default(),
            assumptions: self.assumptions(),
        })
    }

    fn no_pin_reason(&self) -> String {
        let (devices, global) = (self.machine.devices(), self.batch.global);
        match self.machine.wafer() {
            Some(_) => format!(
                "systems, micro-batch and accumulation multiply to the global batch of {global} on at most {devices} systems"
            ),
            None => format!(
                "tp, pp and dp multiply to {devices} devices, and a micro-batch divides {global} / dp sequences"
            ),
        }
    }

    fn assumptions(&self) -> Vec<Assumption> {
        let mut list = Vec::new();
        if self.request.global_batch.is_none() {
            let source = "Llama 2 (arXiv 2307.09288, section 2.2), rounded up to a multiple of the devices";
            list.push(Assumption::new("default-batch", DEFAULT_BATCH_TOKENS as f64, "tokens", source));
        }
        list.extend(self.physical.assumptions(self.machine));
        if self.machine.wafer().is_some() {
            list.extend(Recipe::MIXED.state_assumptions());
            list.push(self.request.release.assumption());
        }
        let wanted = precision(self.machine, self.request.model);
        let peak = format!("device.peak.{}", wanted.name());
        list.extend(of_machine(self.machine, &peak));
        list
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            model: self.request.model.name.clone(),
            parameters: self.parameters,
            machine: self.machine.name.clone(),
            device: self.machine.device.product().to_string(),
            devices: self.machine.devices(),
            devices_per_node: self.machine.node.devices,
            global_batch: self.batch.global,
            seq_len: self.batch.seq_len,
            objective: self.request.objective,
            pins: self.request.pins.clone(),
        }
    }

    fn candidate(&self, index: usize) -> Candidate {
        let plan = &self.ranking.plans[index];
        let time = plan.cost.as_ref().map(|cost| cost.time().0);
        let wafer = matches!(plan.degrees, Degrees::Wafer(_));
        let busy = plan.cost.as_ref().filter(|_| wafer).map(busy_share);
        let terms = plan.cost.iter().flat_map(|cost| &cost.terms);
        Candidate {
            name: self.names[index].clone(),
            baseline: self.ranking.baselines.get(&index).map(|name| name.to_string()),
            degrees: plan.degrees,
            step_time_s: time,
            error_bar: plan.bar.clone(),
            tokens_per_s: time.map(|time| self.batch.tokens() / time),
            mfu: time.map(|time| self.mfu(plan, time)),
            busy_share: busy,
            memory_bytes: plan
                .memory
                .0
                .iter()
                .map(|(name, bytes)| (name.to_string(), whole(*bytes)))
                .collect(),
            memory_total_bytes: plan.memory.0.values().map(|bytes| whole(*bytes)).sum(),
            memory_capacity_bytes: whole(self.machine.device.memory()),
            terms_s: terms.map(|(name, (_, seconds))| (name.to_string(), seconds.0)).collect(),
            bound_by: plan.cost.as_ref().map(|cost| cost.bound().name().to_string()),
            rejected_by: self.rejection(plan),
            smallest_change: self.ranking.changes.get(&index).cloned(),
        }
    }

    fn mfu(&self, plan: &Evaluated, time: f64) -> f64 {
        let devices = match plan.degrees {
            Degrees::Gpu(plan) => plan.world(),
            Degrees::Wafer(plan) => plan.systems,
        };
        let peak = self.machine.device.peak(precision(self.machine, self.request.model));
        let peak = peak.map_or(f64::INFINITY, |peak| peak.0) * devices as f64;
        self.sequence_flops * self.batch.global as f64 / (peak * time)
    }

    fn rejection(&self, plan: &Evaluated) -> Option<String> {
        match &plan.verdict {
            Verdict::Feasible => None,
            Verdict::Impossible(reason) => Some(reason.clone()),
            Verdict::Over(over) => {
                let (class, bytes) = plan.memory.largest();
                let (total, capacity) = (plan.memory.total(), self.machine.device.memory());
                let (bytes, total, over, capacity) = (gib(bytes), gib(total), gib(*over), gib(capacity));
                Some(format!(
                    "memory: {total} is {over} over the {capacity} of a device; {class} is the largest part with {bytes}"
                ))
            }
        }
    }

    fn pin_loss(&self, index: usize) -> Option<f64> {
        let time = |plan: &Evaluated| plan.cost.as_ref().map(|cost| cost.time().0);
        let free = self.ranking.free.as_ref().filter(|_| !self.request.pins.is_empty())?;
        Some((time(&self.ranking.plans[index])? / time(free)? - 1.0) * 100.0)
    }

    fn warnings(&self, index: usize) -> Vec<String> {
        let plan = &self.ranking.plans[index];
        let mut list = match plan.degrees {
            Degrees::Gpu(degrees) => {
                let (cost, memory) = (plan.cost.as_ref(), plan.memory.total());
                warnings::of_gpus(self.machine, self.request.model, &degrees, cost, memory)
            }
            Degrees::Wafer(_) => Vec::new(),
        };
        if !self.ranking.complete {
            list.push("the search was stopped: this is the best plan so far".to_string());
        }
        list
    }

    fn nearest(&self, index: usize) -> Nearest {
        let plan = &self.ranking.plans[index];
        let built = plan.cost.is_some();
        let mut would_fit = Vec::new();
        let free = self.ranking.free.as_ref().filter(|free| free.feasible());
        if let Some(free) = free.filter(|_| !self.request.pins.is_empty()) {
            would_fit.push(format!("{} without the pins", free.degrees));
        }
        if matches!(plan.verdict, Verdict::Over(_)) {
            would_fit.push(format!("a device with {}", gib(plan.memory.total())));
        }
        would_fit.extend(self.divided());
        would_fit.extend(self.grown());
        Nearest {
            name: built.then(|| self.names[index].clone()),
            rejected_by: self.rejection(plan).unwrap_or_default(),
            would_fit,
        }
    }

    /// The best plan without the first of the pins that alone stands in the way, else without any.
    fn loosened(&self) -> Option<String> {
        let best = |pins: Pins| {
            let request = PlanRequest { pins, ..self.request.clone() };
            Ranking::best(&request, self.machine, self.batch, self.physical)
        };
        let without = |(key, value): (&str, &str)| {
            Some(format!("{} without {key}={value}", best(self.request.pins.without(key))?))
        };
        let one = self.request.pins.pairs().find_map(without);
        one.or_else(|| Some(format!("{} without the pins", best(Pins::default())?)))
    }

    /// The nearest global batch that gives every device the same work, where the asked one does not and a plan then
    /// fits.
    fn divided(&self) -> Option<String> {
        let (devices, asked) = (self.machine.devices(), self.batch.global);
        let global = asked.saturating_add(devices / 2) / devices * devices;
        if global == asked || global == 0 {
            return None;
        }
        let batch = Batch { global, ..self.batch };
        let found = Ranking::best(self.request, self.machine, batch, self.physical)?;
        Some(format!("a global batch of {global}: {found}"))
    }

    /// The first machine of more nodes on which the model fits.
    fn grown(&self) -> Option<String> {
        GROWTH.iter().find_map(|times| {
            let devices = self.machine.devices().checked_mul(*times)?;
            let machine = self.machine.with_devices(devices).ok()?;
            let global = self.batch.global.max(1).next_multiple_of(devices);
            let batch = Batch { global, ..self.batch };
            let found = Ranking::best(self.request, &machine, batch, self.physical)?;
            Some(format!("{devices} devices: {found} with a global batch of {global}"))
        })
    }
}

fn whole(bytes: Bytes) -> u64 {
    bytes.0.ceil() as u64
}

fn gib(bytes: Bytes) -> String {
    format!("{:.2} GiB", bytes.0 / 1024f64.powi(3))
}
