//! What a plan's time owes to each assumption: the step priced again with one number moved at a time.

use crate::cost::physical::Physical;
use crate::plan::GpuPlan;
use crate::request::{PlanError, PlanRequest};
use crate::step::{Physics, estimate};
use lapidary_hardware::HardwareSpec;
use serde::Serialize;

/// How far a number is moved, as a part of it.
pub const MOVED: f64 = 0.1;

/// One number's weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The number.
    pub name: String,
    /// Change of the step when it is smaller by [`MOVED`], percent.
    pub smaller_pct: f64,
    /// Change of the step when it is larger by [`MOVED`], percent.
    pub larger_pct: f64,
}

/// Changes a machine by a factor.
type Change = fn(&mut HardwareSpec, f64);

/// Numbers of a machine that are moved.
const OF_MACHINE: [(&str, Change); 3] = [
    ("network.adapter-bandwidth", |machine, by| {
        if let Some(network) = machine.network.as_mut() {
            network.adapter_bandwidth = network.adapter_bandwidth * by;
        }
    }),
    ("network.step-latency", |machine, by| {
        if let Some(network) = machine.network.as_mut() {
            network.step_latency = network.step_latency * by;
        }
    }),
    ("node.links.bandwidth", |machine, by| {
        if let Some(links) = machine.node.links.as_mut() {
            links.bandwidth = links.bandwidth * by;
        }
    }),
];

/// The numbers that move a plan's step, the heaviest first; those that do not move it are left out.
///
/// # Errors
/// As [`crate::plan()`] for inputs that cannot be planned for.
pub fn sensitivity(
    request: &PlanRequest<'_>,
    model: &Physical,
    plan: &GpuPlan,
) -> Result<Vec<Sensitivity>, PlanError> {
    let (machine, batch) = request.resolve()?;
    let Ok(work) = model.account(request.model, plan.tp, batch.seq_len) else { return Ok(Vec::new()) };
    let time = |physical: &Physical, machine: &HardwareSpec| {
        estimate(&physical.job(request.model, machine, batch, plan, &work)).map_or(0.0, |found| found.step_s)
    };
    let base = time(model, &machine);
    let percent = |moved: f64| (moved / base - 1.0) * 100.0;
    let mut list = Vec::new();
    for name in Physics::NAMES {
        let with = |by: f64| {
            let mut changed = model.clone();
            if let Some(value) = changed.physics.get_mut(name) {
                *value *= by;
            }
            percent(time(&changed, &machine))
        };
        list.push(entry(name, with));
    }
    for (name, change) in OF_MACHINE {
        let with = |by: f64| {
            let mut changed = machine.clone();
            change(&mut changed, by);
            percent(time(model, &changed))
        };
        list.push(entry(name, with));
    }
    let pace = |by: f64| {
        let mut changed = model.clone();
        changed.stack.pace *= by;
        percent(time(&changed, &machine))
    };
    list.push(entry("software.pace", pace));
    let weight = |entry: &Sensitivity| entry.smaller_pct.abs().max(entry.larger_pct.abs());
    list.retain(|entry| weight(entry) > 1e-3);
    list.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then_with(|| a.name.cmp(&b.name)));
    Ok(list)
}

fn entry(name: &str, with: impl Fn(f64) -> f64) -> Sensitivity {
    Sensitivity { name: name.to_string(), smaller_pct: with(1.0 - MOVED), larger_pct: with(1.0 + MOVED) }
}
