//! From a job to the time of its step: passes of each stage, the pipeline's simulation, and what stands once a step.

use super::data::{Exposed, Traffic, traffic};
use super::job::{Job, Schedule};
use super::pipeline::{Slot, Stages};
use super::prices::{Prices, Stage};
use super::rates::Rates;
use indexmap::IndexMap;

/// The time of a step and what it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Seconds of the step.
    pub step_s: f64,
    /// Named terms, which sum to it.
    pub terms_s: IndexMap<&'static str, f64>,
    /// Forward and backward (with what is computed again) of one layer and micro-batch.
    pub layer_s: (f64, f64),
    /// Share of the step in which the slowest stage's rank waits for others.
    pub bubble: f64,
}

/// What each term may be off by, as a part of it: what the tables it rests on scatter by, and for terms that wait for
/// other ranks what published repetitions of the same run differ by.
const DOUBTS: [(&str, f64); 14] = [
    ("ep_comm", 0.5),
    ("cp_comm", 0.4),
    ("matmul", 0.07),
    ("attention", 0.15),
    ("memory_bound", 0.15),
    ("recompute", 0.1),
    ("tp_comm", 0.25),
    ("host", 0.25),
    ("pp_bubble", 0.25),
    ("pp_comm", 0.5),
    ("dp_comm", 0.4),
    ("optimizer", 0.3),
    ("offload", 0.5),
    ("step", 0.5),
];
/// Doubt about everything at once: clocks, cooling, other jobs on the network (re-runs of one configuration differ by
/// up to 7.6 %).
const COMMON_DOUBT: f64 = 0.06;
/// From one deviation to the interval that should cover nine of ten runs.
const NINE_OF_TEN: f64 = 1.65;
/// How much wider the interval is where no kernel of the device was measured.
const UNMEASURED: f64 = 1.5;

impl Estimate {
    /// Half of the interval around the step, as a part of it.
    pub fn spread(&self, gpu: Option<&lapidary_hardware::Gpu>) -> f64 {
        let share = |name: &str| self.terms_s.get(name).copied().unwrap_or(0.0) / self.step_s;
        let terms: f64 = DOUBTS.iter().map(|(name, doubt)| (share(name) * doubt).powi(2)).sum();
        let measured = gpu.is_some_and(|gpu| lapidary_hardware::price::measured::Measured::of(gpu).is_some());
        let width = NINE_OF_TEN * (terms + COMMON_DOUBT.powi(2)).sqrt();
        if measured { width } else { width * UNMEASURED }
    }
}

/// The time of a job's step; `None` where the machine is no GPU.
pub fn estimate(job: &Job<'_>) -> Option<Estimate> {
    let rates = Rates::new(job, job.machine.gpu()?);
    Some(estimate_by(job, &Prices::of(job, &rates), &traffic(job, &rates)))
}

/// The same by passes and traffic that many jobs share: passes depend on tensor parallelism, micro-batch and sequence
/// parallelism alone, traffic on degrees, stages and sharding.
pub fn estimate_by(job: &Job<'_>, prices: &Prices, traffic: &Traffic) -> Estimate {
    let stages: Vec<Stage> = (0..job.layout.pipeline).map(|index| prices.stage(job, index)).collect();
    let slowest = slowest(&stages);
    let m = job.layout.accumulation;
    let device = &stages[slowest];
    let exposed = traffic.exposed(job.stack, job.physics, device.forward_device(), device.backward_device());
    let times = held_up(&stages, &exposed);
    let pipeline = pipeline(job, &times, message(job));
    let busy = m * sum(times[slowest]);
    let mut terms = IndexMap::new();
    let passes = [device.forward, device.backward];
    terms.insert("matmul", m * passes.iter().map(|pass| pass.products).sum::<f64>());
    terms.insert("attention", m * passes.iter().map(|pass| pass.attention).sum::<f64>());
    let rows = passes.iter().map(|pass| pass.rows).sum::<f64>();
    terms.insert("memory_bound", m * (rows + traffic.accumulate));
    terms.insert("recompute", m * (device.again.device() - device.again.waits()));
    let tensor = device.forward.tensor + device.backward.tensor + device.again.tensor;
    terms.insert("tp_comm", m * tensor);
    terms.insert("cp_comm", m * (device.forward.ring + device.backward.ring + device.again.ring));
    let exchange = device.forward.exchange + device.backward.exchange + device.again.exchange;
    terms.insert("ep_comm", m * exchange);
    terms.insert(
        "host",
        (busy - m * (device.forward_device() + device.backward_device() + exposed.micro_batch())).max(0.0),
    );
    terms.insert("pp_bubble", (pipeline.0 - busy).max(0.0));
    terms.insert("pp_comm", pipeline.1);
    terms.insert("dp_comm", m * exposed.micro_batch() + exposed.step);
    terms.insert("optimizer", traffic.optimizer);
    terms.insert("offload", traffic.host);
    terms.insert("step", once(job));
    let step_s: f64 = terms.values().sum();
    let one = &prices.layer;
    let again = one.again(job.layout.recompute).times(job.layout.again.of(1.0));
    let layer_s = (one.forward.device(), one.backward.device() + again.device());
    Estimate { step_s, layer_s, bubble: terms["pp_bubble"] / step_s, terms_s: terms }
}

/// The stage whose passes take the most; the last of equals.
fn slowest(stages: &[Stage]) -> usize {
    let time = |index: usize| sum(stages[index].seconds);
    (0..stages.len()).max_by(|a, b| time(*a).total_cmp(&time(*b))).unwrap_or(0)
}

/// Seconds of the passes of stages that all wait for gathered weights as the slowest one does.
fn held_up(stages: &[Stage], exposed: &Exposed) -> Vec<(f64, f64)> {
    let both = |stage: &Stage| (stage.seconds.0 + exposed.passes.0, stage.seconds.1 + exposed.passes.1);
    stages.iter().map(both).collect()
}

/// Seconds that a step has beside its passes, traffic and optimizer.
fn once(job: &Job<'_>) -> f64 {
    let nodes = job.machine.nodes.max(1) as f64;
    job.physics.step + job.physics.straggler * nodes.log2()
}

/// Seconds that a job's step is never under, without its simulation: on each stage its own passes behind the first pass
/// into it and before the last ones out of it, and all traffic as [`estimate_by`] has it. Exact for equal stages.
pub fn bound(job: &Job<'_>, prices: &Prices, traffic: &Traffic) -> f64 {
    let (m, ranks) = (job.layout.accumulation, job.layout.pipeline);
    let rounds = rounds(job);
    let message = message(job);
    let exposed = bound_exposed(job, prices, traffic);
    let (mut before, mut most, mut slot) = (0.0, 0.0_f64, 0.0_f64);
    let mut index = 0;
    while index < ranks {
        let next = job.alike_until(index);
        let stage = prices.stage(job, index);
        let (count, own) = ((next - index) as f64, sum(stage.seconds) + exposed.micro_batch());
        let step = own / rounds.chunks as f64 + 2.0 * message;
        let whole = own + 2.0 * message * rounds.chunks as f64;
        most = most.max(before + (count - 1.0) * step + rounds.seen as f64 * whole);
        before += count * step;
        slot = slot.max(whole);
        index = next;
    }
    let pipeline = match job.layout.schedule {
        Schedule::OneForwardOneBackward => (m - rounds.seen as f64) * slot + most,
        Schedule::ZeroBubble1 | Schedule::ZeroBubble2 => m * slot,
    };
    pipeline + m * traffic.accumulate + exposed.step + traffic.optimizer + traffic.host + once(job)
}

/// What the slowest of the stages does not hide, the last of equals.
fn bound_exposed(job: &Job<'_>, prices: &Prices, traffic: &Traffic) -> Exposed {
    let (mut slowest, mut device) = (0.0, (0.0, 0.0));
    let mut index = 0;
    while index < job.layout.pipeline {
        let stage = prices.stage(job, index);
        if sum(stage.seconds) >= slowest {
            (slowest, device) = (sum(stage.seconds), (stage.forward_device(), stage.backward_device()));
        }
        index = job.alike_until(index);
    }
    traffic.exposed(job.stack, job.physics, device.0, device.1)
}

/// Seconds that no stages, sharding or recomputation bring a job's step under: the passes of all stages shared evenly.
pub fn least(job: &Job<'_>, prices: &Prices) -> f64 {
    let plain = prices.whole(job.shape.layers as f64) / job.layout.pipeline as f64;
    job.layout.accumulation * (plain + 2.0 * message(job)) + once(job)
}

/// The passes of a step on a time line, micro-batch by micro-batch; all of them, however many.
pub fn timeline(job: &Job<'_>, seen: impl FnMut(Slot)) -> Option<f64> {
    let rates = Rates::new(job, job.machine.gpu()?);
    let prices = Prices::of(job, &rates);
    let stages_of: Vec<Stage> = (0..job.layout.pipeline).map(|index| prices.stage(job, index)).collect();
    let device = &stages_of[slowest(&stages_of)];
    let traffic = traffic(job, &rates);
    let exposed = traffic.exposed(job.stack, job.physics, device.forward_device(), device.backward_device());
    let times = held_up(&stages_of, &exposed);
    let whole = job.layout.accumulation.round().max(1.0) as usize;
    Some(stages(&times, rounds(job).chunks, message(job)).simulate(whole, seen))
}

fn sum(pair: (f64, f64)) -> f64 {
    pair.0 + pair.1
}

/// Seconds that a message between stages adds to a pass.
fn message(job: &Job<'_>) -> f64 {
    if job.layout.pipeline == 1 {
        return 0.0;
    }
    let node = job.machine.node.devices;
    let across = job.layout.tensor * job.layout.context * job.layout.data >= node;
    let split = job.tp();
    let bytes = lapidary_hardware::Bytes(2.0 * job.tokens() * job.shape.width / split);
    let transfer = lapidary_hardware::price::collective::point_to_point(job.machine, bytes, across);
    (transfer.0 + job.physics.message) * (1.0 - job.stack.pipeline_overlap)
}

/// Micro-batches for each rank that are simulated: by then the order repeats itself at the pace of the slowest stage.
const SIMULATED_ROUNDS: usize = 4;

/// How much of a pipeline is simulated, and in how many chunks a rank.
struct Rounds {
    seen: usize,
    chunks: usize,
}

fn rounds(job: &Job<'_>) -> Rounds {
    let ranks = job.layout.pipeline as usize;
    let whole = job.layout.accumulation.round().max(1.0) as usize;
    let fits = ranks > 1 && whole.is_multiple_of(ranks);
    let chunks = if fits { job.layout.chunks.max(1) as usize } else { 1 };
    Rounds { seen: whole.min(SIMULATED_ROUNDS * ranks), chunks }
}

/// The stages of a pipeline whose ranks hold `chunks` equal parts of their passes.
fn stages(times: &[(f64, f64)], chunks: usize, message: f64) -> Stages {
    let ranks = times.len();
    let part = |time: f64| time / chunks as f64 + message;
    let all = || (0..ranks * chunks).map(|index| times[index % ranks]);
    Stages {
        forward: all().map(|time| part(time.0)).collect(),
        backward: all().map(|time| part(time.1)).collect(),
        ranks,
        message: 0.0,
    }
}

/// Seconds of all micro-batches through the pipeline, and of the exposed messages in them.
fn pipeline(job: &Job<'_>, times: &[(f64, f64)], message: f64) -> (f64, f64) {
    let (m, ranks) = (job.layout.accumulation, times.len());
    if ranks == 1 {
        return (m * sum(times[0]), 0.0);
    }
    let Rounds { seen, chunks } = rounds(job);
    let slot = times.iter().copied().map(sum).fold(0.0, f64::max) + 2.0 * message * chunks as f64;
    let bubble = match job.layout.schedule {
        Schedule::OneForwardOneBackward => {
            stages(times, chunks, message).simulate(seen, |_| ()) - seen as f64 * slot
        }
        Schedule::ZeroBubble1 => (ranks - 1) as f64 * times[ranks / 2].0,
        Schedule::ZeroBubble2 => 0.0,
    };
    let messages = 2.0 * m * message * chunks as f64;
    (m * slot + bubble - messages, messages)
}
