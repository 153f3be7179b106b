//! What training a model on wafers takes: the plan, its rate, the days of each phase, and what binds.

use super::price::ops;
use super::release::{OWN, Release};
use super::{WaferCase, WaferWork};
use crate::plan::{Recompute, WaferPlan};
use crate::recipe::Recipe;
use crate::request::{Batch, Pins, PlanError, PlanRequest};
use crate::{Assumption, Candidate, Degrees, Physical, PlanDocument, plan};
use indexmap::IndexMap;
use lapidary_hardware::{Device, HardwareSpec};
use lapidary_models::ModelSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A published run, as far as it is printed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PublishedRun {
    /// Systems.
    pub systems: u64,
    /// Sequences of a step.
    pub global_batch: u64,
    /// Sequences of a micro-batch on one system.
    pub micro_batch: u64,
    /// Its software release.
    pub release: String,
    /// Steps of each phase.
    pub steps: Vec<u64>,
    /// Where this is printed.
    pub source: String,
}

impl PublishedRun {
    /// The run that trained a model; `None` where none is printed.
    pub fn of(model: &str) -> Option<PublishedRun> {
        let runs: BTreeMap<String, PublishedRun> = toml::from_str(include_str!("runs.toml")).ok()?;
        runs.get(model).cloned()
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// The machine.
    pub machine: &'a HardwareSpec,
    /// Tokens of a sequence.
    pub seq_len: u64,
    /// Systems; those of the published run where absent, or all.
    pub systems: Option<u64>,
    /// Sequences of a step; those of the published run where absent.
    pub global_batch: Option<u64>,
    /// Whose kernels run; those of the published run's release where absent, or this compiler's.
    pub release: Option<Release>,
    /// Tokens of each phase of the training; those of the published run where empty.
    pub tokens: Vec<f64>,
    /// Decisions that are made already.
    pub pins: Pins,
}

/// One phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TrainingPhase {
    /// Tokens.
    pub tokens: f64,
    /// Days at the rate of the plan.
    pub days: f64,
}

/// One op of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlacedOp {
    /// Its node.
    pub node: String,
    /// Why it runs.
    pub phase: lapidary_models::autodiff::work::Phase,
    /// Runs of a micro-batch.
    pub times: u64,
    /// Cycles of one run by this compiler's kernel.
    pub cycles: u64,
    /// Parameters that stream in.
    pub weights: u64,
    /// Gradients that stream out.
    pub gradients: u64,
}

/// A change and what comes of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What is changed.
    pub what: String,
    /// Change of the step's time, percent.
    pub step_pct: f64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainingAnswer {
    /// The published run that fills in what was not asked.
    pub run: Option<String>,
    /// Whose kernels.
    pub release: Assumption,
    /// Sequences of a step.
    pub global_batch: u64,
    /// Tokens of a sequence.
    pub seq_len: u64,
    /// The plan.
    pub plan: Candidate,
    /// Why layers are computed again, or not.
    pub recompute_reason: String,
    /// Phases of the training.
    pub phases: Vec<TrainingPhase>,
    /// What would change the step, alone.
    pub changes: Vec<Change>,
    /// The next best plans.
    pub others: Vec<Candidate>,
    /// Every op of a micro-batch.
    pub ops: Vec<PlacedOp>,
    /// What the prices take for granted.
    pub assumptions: Vec<Assumption>,
}

fn empty(reason: String) -> PlanError {
    PlanError::Empty { pins: String::new(), reason, nearest: None }
}

/// Answers a question.
///
/// # Errors
/// [`PlanError`] for what cannot be planned; the document where no plan fits.
pub fn answer(question: &Question<'_>) -> Result<Result<TrainingAnswer, Box<PlanDocument>>, PlanError> {
    let run = PublishedRun::of(&question.model.name);
    let global = question.global_batch.or(run.as_ref().map(|run| run.global_batch));
    let systems = question.systems.or(run.as_ref().map(|run| run.systems));
    let printed = run.as_ref().and_then(|run| Release::named(&run.release));
    let release = question.release.or(printed).unwrap_or(OWN);
    let request = PlanRequest {
        devices: systems.map(|systems| systems.min(question.machine.devices())),
        global_batch: global,
        seq_len: Some(question.seq_len),
        pins: question.pins.clone(),
        release,
        top: Some(6),
        ..PlanRequest::new(question.model, question.machine)
    };
    let document = plan(&request, &Physical::default())?;
    let Some(chosen) = document.chosen().cloned() else { return Ok(Err(Box::new(document))) };
    let Degrees::Wafer(degrees) = chosen.degrees else {
        return Err(empty("the machine has no wafer".into()));
    };
    let batch = Batch { global: document.inputs.global_batch, seq_len: question.seq_len };
    let work = WaferWork::new(question.model, question.seq_len).map_err(empty)?;
    let price = Price { question, batch, work: &work, plan: degrees, release };
    let rate = chosen.tokens_per_s.unwrap_or(f64::NAN);
    let tokens = match (&question.tokens[..], &run) {
        ([], Some(run)) => run
            .steps
            .iter()
            .map(|steps| *steps as f64 * run.global_batch as f64 * question.seq_len as f64)
            .collect(),
        (given, _) => given.to_vec(),
    };
    let phase = |tokens: f64| TrainingPhase { tokens, days: tokens / rate / 86400.0 };
    let feasible = |other: &&Candidate| other.feasible() && other.name != chosen.name;
    Ok(Ok(TrainingAnswer {
        run: run.map(|run| run.source),
        release: release.assumption(),
        global_batch: batch.global,
        seq_len: batch.seq_len,
        recompute_reason: reason(&price, &chosen),
        phases: tokens.into_iter().map(phase).collect(),
        changes: price.changes(),
        ops: price.ops(),
        others: document.candidates.iter().filter(feasible).take(5).cloned().collect(),
        assumptions: document.assumptions.clone(),
        plan: chosen,
    }))
}

/// Why the plan keeps what it keeps.
fn reason(price: &Price<'_>, chosen: &Candidate) -> String {
    let size = |bytes: f64| format!("{:.1} GiB", bytes / 1024f64.powi(3));
    let degrees = price.plan;
    let all = WaferPlan { recompute: Recompute::None, checkpoint_every: 1, outside: false, ..degrees };
    let needed =
        Price { plan: all, ..*price }.with(price.question.machine, OWN, |case| case.memory().total().0);
    let (needed, capacity) = (size(needed.unwrap_or(f64::NAN)), size(chosen.memory_capacity_bytes as f64));
    if degrees.recompute == Recompute::None {
        return format!("none: all that the backward pass reads takes {needed} of {capacity}");
    }
    let kept = size(chosen.memory_bytes.get("activations").copied().unwrap_or(0) as f64);
    let every = match degrees.checkpoint_every {
        1 => "every layer".to_string(),
        every => format!("every {every} layers"),
    };
    let place = match degrees.outside {
        true => format!("which leave through the links and come back, {kept} at a time"),
        false => format!("{kept} that stay on the wafer"),
    };
    format!(
        "keeping all that the backward pass reads would take {needed} of {capacity}: layers are computed again from the inputs of {every}, {place}"
    )
}

#[derive(Clone, Copy)]
struct Price<'a> {
    question: &'a Question<'a>,
    batch: Batch,
    work: &'a WaferWork,
    plan: WaferPlan,
    release: Release,
}

impl Price<'_> {
    fn with<T>(
        &self,
        machine: &HardwareSpec,
        release: Release,
        of: impl Fn(&WaferCase<'_>) -> T,
    ) -> Option<T> {
        let wafer = machine.wafer()?;
        let (model, batch, plan, work, recipe) =
            (self.question.model, self.batch, self.plan, self.work, &Recipe::MIXED);
        Some(of(&WaferCase { machine, wafer, model, batch, plan, work, recipe, release, row: None }.spread()))
    }

    fn ops(&self) -> Vec<PlacedOp> {
        let layers = self.question.model.n_layers;
        let list = self.with(self.question.machine, self.release, |case| {
            let (layer, ends) = ops(case);
            let all = layer.iter().map(|op| (op, layers)).chain(ends.iter().map(|op| (op, 1)));
            all.map(|(priced, times)| PlacedOp {
                node: priced.op.node.clone(),
                phase: priced.op.phase,
                times,
                cycles: priced.cycles.round() as u64,
                weights: priced.op.weights as u64,
                gradients: priced.op.gradients as u64,
            })
            .collect::<Vec<_>>()
        });
        list.unwrap_or_default()
    }

    /// What twice the links, the other printed clock, this compiler's own kernels or twice the rate of arithmetic would do.
    fn changes(&self) -> Vec<Change> {
        let base = self.question.machine;
        let time = |machine: &HardwareSpec, release| {
            self.with(machine, release, |case| super::price::step(case).time().0)
        };
        let Some(now) = time(base, self.release) else { return Vec::new() };
        let changed = |edit: &dyn Fn(&mut lapidary_hardware::Wafer)| {
            let mut machine = base.clone();
            if let Device::Wafer(wafer) = &mut machine.device {
                edit(wafer);
            }
            machine
        };
        let mut changes = Vec::new();
        let mut tell = |what: String, machine: &HardwareSpec, release: Release| {
            let then = time(machine, release).unwrap_or(now);
            changes.push(Change { what, step_pct: (then / now - 1.0) * 100.0 });
        };
        let links = changed(&|wafer| wafer.ingress.iter_mut().for_each(|links| links.links *= 2));
        tell("twice the links into a system".into(), &links, self.release);
        let products = changed(&|wafer| wafer.pe.fmac.values_mut().for_each(|rate| rate.0 *= 2.0));
        tell("twice the arithmetic of an element".into(), &products, self.release);
        if let Some((name, clock)) = base.wafer().and_then(|wafer| wafer.clocks.get(1)) {
            let slower = changed(&|wafer| wafer.clocks.swap(0, 1));
            tell(format!("the other printed clock, {name} {:.2} GHz", clock.0 / 1e9), &slower, self.release);
        }
        if self.release != OWN {
            tell("this compiler's kernels in place of the release's".into(), base, OWN);
        }
        changes
    }
}

/// Terms of a plan, the heaviest first.
pub fn heaviest(plan: &Candidate) -> Vec<(&str, f64)> {
    let terms: &IndexMap<String, f64> = &plan.terms_s;
    let mut list: Vec<(&str, f64)> = terms
        .iter()
        .filter(|(_, seconds)| **seconds > 0.0)
        .map(|(name, seconds)| (name.as_str(), *seconds))
        .collect();
    list.sort_by(|a, b| b.1.total_cmp(&a.1));
    list
}
