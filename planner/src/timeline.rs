//! A step of a plan on a time line: every pass of every stage as the event simulation runs it, what stands behind them
//! once a step, and what each stage holds. Also in the trace format that Chrome and Perfetto read.

use crate::cost::physical::Physical;
use crate::plan::GpuPlan;
use crate::request::{PlanError, PlanRequest};
use crate::step::data::traffic;
use crate::step::estimate::{estimate_by, timeline as passes};
use crate::step::memory::occupied_by_stage;
use crate::step::pipeline::Slot;
use crate::step::prices::Prices;
use crate::step::rates::Rates;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Passes that a time line holds at most; of longer steps the first micro-batches are shown.
const MOST_PASSES: u64 = 20_000;

/// One step of one plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// The plan, with all its decisions.
    pub plan: String,
    /// Seconds of the step, as it is priced.
    pub step_s: f64,
    /// Micro-batches of the step.
    pub micro_batches: u64,
    /// Micro-batches that are shown.
    pub shown: u64,
    /// Seconds of the passes that are shown.
    pub passes_s: f64,
    /// The passes.
    pub passes: Vec<Slot>,
    /// What stands behind the passes once a step, in order, seconds.
    pub once_s: IndexMap<String, f64>,
    /// The stages.
    pub stages: Vec<StageUse>,
}

/// What one stage holds and does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageUse {
    /// Its place in the pipeline.
    pub stage: u64,
    /// Its layers.
    pub layers: u64,
    /// Seconds of a forward pass over one micro-batch.
    pub forward_s: f64,
    /// Seconds of a backward pass, with what is computed again.
    pub backward_s: f64,
    /// Share of the passes' time in which it waits.
    pub idle: f64,
    /// Memory by class, without the room that a plan leaves.
    pub memory_bytes: IndexMap<String, u64>,
}

/// The time line of a plan; `None` where the model or the machine has none.
///
/// # Errors
/// As [`crate::plan()`] for inputs that cannot be planned for.
pub fn timeline(
    request: &PlanRequest<'_>,
    physical: &Physical,
    plan: &GpuPlan,
) -> Result<Option<Timeline>, PlanError> {
    let (machine, batch) = request.resolve()?;
    let Ok(work) = physical.account(request.model, plan.tp, batch.seq_len) else { return Ok(None) };
    let Some(gpu) = machine.gpu() else { return Ok(None) };
    let each = 2 * plan.pp * plan.chunks;
    let rounds = (MOST_PASSES / each / plan.pp).max(1) * plan.pp;
    let shown = plan.accumulation.min(rounds);
    let job = physical.job(request.model, &machine, batch, plan, &work);
    let mut seen = job;
    seen.layout.accumulation = shown as f64;
    let mut slots = Vec::new();
    let passes_s = passes(&seen, |slot| slots.push(slot)).unwrap_or(0.0);
    let rates = Rates::new(&job, gpu);
    let (prices, traffic) = (Prices::of(&job, &rates), traffic(&job, &rates));
    let found = estimate_by(&job, &prices, &traffic);
    let mut once: IndexMap<String, f64> =
        IndexMap::from([("accumulate".to_string(), plan.accumulation as f64 * traffic.accumulate)]);
    for name in ["dp_comm", "optimizer", "offload", "step"] {
        once.insert(name.to_string(), found.terms_s[name]);
    }
    once.retain(|_, seconds| *seconds > 0.0);
    let stage = |index: u64| {
        let (one, held) = (prices.stage(&job, index), occupied_by_stage(&job, index));
        let own = slots.iter().filter(|slot| slot.rank as u64 == index);
        let busy: f64 = own.map(|slot| slot.end_s - slot.start_s).sum();
        StageUse {
            stage: index,
            layers: job.stage_layers(index) as u64,
            forward_s: one.seconds.0,
            backward_s: one.seconds.1,
            idle: if passes_s > 0.0 { 1.0 - busy / passes_s } else { 0.0 },
            memory_bytes: held
                .classes()
                .into_iter()
                .map(|(name, bytes)| (name.to_string(), bytes.ceil() as u64))
                .collect(),
        }
    };
    let stages = (0..plan.pp).map(stage).collect();
    Ok(Some(Timeline {
        plan: plan.to_string(),
        step_s: found.step_s,
        micro_batches: plan.accumulation,
        shown,
        passes_s,
        once_s: once,
        stages,
        passes: slots,
    }))
}

impl Timeline {
    /// The time line in the trace event format: a process for the step, a thread for each stage, a complete event for
    /// each pass, times in microseconds.
    pub fn to_chrome(&self) -> Value {
        let mut events =
            vec![json!({"ph": "M", "name": "process_name", "pid": 0, "args": {"name": self.plan}})];
        events.extend(self.stages.iter().map(|stage| {
            let name = format!("stage {}: {} layers", stage.stage, stage.layers);
            json!({"ph": "M", "name": "thread_name", "pid": 0, "tid": stage.stage, "args": {"name": name}})
        }));
        let event = |name: String, kind: &str, tid: u64, from: f64, to: f64| json!({"ph": "X", "name": name, "cat": kind, "pid": 0, "tid": tid, "ts": from * 1e6, "dur": (to - from) * 1e6});
        events.extend(self.passes.iter().map(|slot| {
            let kind = if slot.backward { "backward" } else { "forward" };
            event(format!("{kind} {}", slot.micro_batch), kind, slot.rank as u64, slot.start_s, slot.end_s)
        }));
        let mut from = self.passes_s;
        for (name, seconds) in &self.once_s {
            let all = self.stages.iter();
            events.extend(all.map(|stage| event(name.clone(), "once", stage.stage, from, from + seconds)));
            from += seconds;
        }
        json!({"displayTimeUnit": "ms", "traceEvents": events})
    }
}
