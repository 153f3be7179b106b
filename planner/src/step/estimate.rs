//! From a job to the time of its step: passes of each stage, the pipeline's simulation, and what stands once a step.

use super::data::data;
use super::ends::{embedding, head};
use super::job::{Job, Schedule};
use super::layer::{Layer, Pass, layer};
use super::pipeline::Stages;
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
const DOUBTS: [(&str, f64); 12] = [
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

/// A stage's passes over one micro-batch.
#[derive(Clone, Copy, Debug, Default)]
struct Stage {
    forward: Pass,
    backward: Pass,
    again: Pass,
    /// Seconds of the forward and of the backward pass.
    seconds: (f64, f64),
}

impl Stage {
    /// Adds passes that run one behind the other.
    fn add(&mut self, forward: Pass, backward: Pass, again: Pass, job: &Job<'_>) {
        let host = job.physics.host_launch * job.stack.host;
        let skew = job.physics.skew * job.tp().min(job.machine.node.devices as f64);
        self.forward = self.forward + forward;
        self.backward = self.backward + backward;
        self.again = self.again + again;
        self.seconds.0 += forward.seconds(host, skew);
        self.seconds.1 += (backward + again).seconds(host, skew);
    }

    fn device(&self) -> f64 {
        self.forward.device() + self.backward.device() + self.again.device()
    }
}

/// The time of a job's step; `None` where the machine is no GPU.
pub fn estimate(job: &Job<'_>) -> Option<Estimate> {
    let gpu = job.machine.gpu()?;
    let rates = Rates::new(job, gpu);
    let one = layer(job, &rates);
    let stages: Vec<Stage> = (0..job.layout.pipeline).map(|index| stage(job, &rates, &one, index)).collect();
    let times: Vec<(f64, f64)> = stages.iter().map(|stage| stage.seconds).collect();
    let slowest = (0..times.len()).max_by(|a, b| sum(times[*a]).total_cmp(&sum(times[*b])))?;
    let m = job.layout.accumulation;
    let device = &stages[slowest];
    let parallel =
        data(job, &rates, device.forward.device(), device.backward.device() + device.again.device());
    let message = message(job);
    let pipeline = pipeline(job, &times, message);
    let busy = m * sum(times[slowest]);
    let mut terms = IndexMap::new();
    let passes = [device.forward, device.backward];
    terms.insert("matmul", m * passes.iter().map(|pass| pass.products).sum::<f64>());
    terms.insert("attention", m * passes.iter().map(|pass| pass.attention).sum::<f64>());
    terms
        .insert("memory_bound", m * (passes.iter().map(|pass| pass.rows).sum::<f64>() + parallel.accumulate));
    terms.insert("recompute", m * (device.again.device() - device.again.tensor));
    let tensor = device.forward.tensor + device.backward.tensor + device.again.tensor;
    terms.insert("tp_comm", m * tensor);
    terms.insert("host", busy - m * device.device());
    terms.insert("pp_bubble", pipeline.0 - busy);
    terms.insert("pp_comm", pipeline.1);
    terms.insert("dp_comm", m * parallel.micro_batch + parallel.step);
    terms.insert("optimizer", parallel.optimizer);
    terms.insert("offload", parallel.host);
    let nodes = job.machine.nodes.max(1) as f64;
    terms.insert("step", job.physics.step + job.physics.straggler * nodes.log2());
    let step_s: f64 = terms.values().sum();
    let layer_s = (one.forward.device(), one.backward.device() + one.again.device());
    Some(Estimate { step_s, layer_s, bubble: terms["pp_bubble"] / step_s, terms_s: terms })
}

fn sum(pair: (f64, f64)) -> f64 {
    pair.0 + pair.1
}

fn stage(job: &Job<'_>, rates: &Rates<'_>, one: &Layer, index: u64) -> Stage {
    let layers = job.stage_layers(index);
    let mut stage = Stage::default();
    stage.add(one.forward.times(layers), one.backward.times(layers), one.again.times(layers), job);
    let ends = [(index == 0, embedding(job, rates)), (index + 1 == job.layout.pipeline, head(job, rates))];
    for (_, end) in ends.iter().filter(|(here, _)| *here) {
        stage.add(end.forward, end.backward, Pass::default(), job);
    }
    stage
}

/// Seconds that a message between stages adds to a pass.
fn message(job: &Job<'_>) -> f64 {
    if job.layout.pipeline == 1 {
        return 0.0;
    }
    let node = job.machine.node.devices;
    let across = job.layout.tensor * job.layout.data >= node;
    let split = job.tp();
    let bytes = lapidary_hardware::Bytes(2.0 * job.tokens() * job.shape.width / split);
    let transfer = lapidary_hardware::price::collective::point_to_point(job.machine, bytes, across);
    (transfer.0 + job.physics.message) * (1.0 - job.stack.pipeline_overlap)
}

/// Micro-batches for each rank that are simulated: by then the order repeats itself at the pace of the slowest stage.
const SIMULATED_ROUNDS: usize = 4;

/// Seconds of all micro-batches through the pipeline, and of the exposed messages in them.
fn pipeline(job: &Job<'_>, times: &[(f64, f64)], message: f64) -> (f64, f64) {
    let m = job.layout.accumulation;
    let ranks = times.len();
    if ranks == 1 {
        return (m * sum(times[0]), 0.0);
    }
    let whole = m.round().max(1.0) as usize;
    let fits = whole.is_multiple_of(ranks);
    let chunks = if fits { job.layout.chunks.max(1) as usize } else { 1 };
    let part = |time: f64| time / chunks as f64;
    let virtual_stages = || (0..ranks * chunks).map(|index| times[index % ranks]);
    let stages = Stages {
        forward: virtual_stages().map(|time| part(time.0) + message).collect(),
        backward: virtual_stages().map(|time| part(time.1) + message).collect(),
        ranks,
        message: 0.0,
    };
    let slot = times.iter().copied().map(sum).fold(0.0, f64::max) + 2.0 * message * chunks as f64;
    let bubble = match job.layout.schedule {
        Schedule::OneForwardOneBackward => {
            let seen = whole.min(SIMULATED_ROUNDS * ranks);
            stages.simulate(seen, |_| ()) - seen as f64 * slot
        }
        Schedule::ZeroBubble1 => (ranks - 1) as f64 * times[ranks / 2].0,
        Schedule::ZeroBubble2 => 0.0,
    };
    let messages = 2.0 * m * message * chunks as f64;
    (m * slot + bubble - messages, messages)
}
