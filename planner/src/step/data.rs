//! Data parallelism and the optimizer: gradients, gathered weights, the state a rank owns.

use super::job::Job;
use super::physics::Physics;
use super::rates::Rates;
use super::stack::Stack;
use crate::plan::Sharding;

/// Traffic of data parallelism and work of the optimizer in one step, whatever the stage computes beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Once a step, beside the last backward pass.
    behind_backward: f64,
    /// Once a step, beside the first forward pass.
    behind_forward: f64,
    /// Once a step, beside nothing.
    alone: f64,
    /// Of each micro-batch, where weights are sharded.
    gathers: Option<Gathers>,
    /// The optimizer, its clipping and its casts.
    pub optimizer: f64,
    /// Adding a micro-batch's gradients up.
    pub accumulate: f64,
    /// State that lives on the host.
    pub host: f64,
}

/// Gathers and scatters of a micro-batch, of one layer at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Gathers {
    layers: f64,
    gather: f64,
    scatter: f64,
    /// Of the tables outside the layers, beside nothing.
    ends: f64,
}

/// What of it is not hidden.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exposed {
    /// Once a step.
    pub step: f64,
    /// Of each micro-batch.
    pub micro_batch: f64,
}

impl Traffic {
    /// What compute does not hide; `forward` and `backward` are the device's seconds of one micro-batch on the slowest
    /// stage. No compute hides more than all there is of itself.
    pub fn exposed(&self, stack: &Stack, physics: &Physics, forward: f64, backward: f64) -> Exposed {
        let left = |traffic: f64, beside: f64| traffic - (traffic * stack.data_overlap).min(beside);
        let step = left(self.behind_backward, backward) + left(self.behind_forward, forward) + self.alone;
        let Some(one) = self.gathers else { return Exposed { step, micro_batch: 0.0 } };
        let passes = [(one.gather, forward / one.layers), (one.gather + one.scatter, backward / one.layers)];
        let exposed = passes.map(|(traffic, beside)| {
            let behind = (traffic * stack.gather_overlap).min(beside);
            traffic - behind + behind * physics.contention
        });
        Exposed { step, micro_batch: one.layers * (exposed[0] + exposed[1]) + one.ends }
    }
}

/// Bytes per second between host and device, and of the host's optimizer, for one process of a node.
/// PCIe 4.0 x16 reaches about 24 GB/s pinned (NVIDIA bandwidthTest on A100 systems), shared by two devices behind
/// one switch; element-wise PyTorch on the host runs at about 10 GB/s a process with four beside each other (assumed).
const HOST_LINK: f64 = 12e9;
const HOST_STREAM: f64 = 10e9;
/// Bytes that AdamW of single ops moves on the host for a parameter: twelve passes of three operands of 4 bytes.
const HOST_TRAFFIC: f64 = 144.0;

/// Parameters of the fullest stage on one rank: its layers and the tables of the ends.
pub fn parameters(job: &Job<'_>) -> (f64, f64) {
    let (shape, tp, last) = (&job.shape, job.tp(), job.layout.pipeline - 1);
    let table = shape.table(job.vocab_rows());
    let positions = shape.positions * shape.width;
    let stage = |index: u64| {
        let layers = job.stage_layers(index) * (shape.layer_matrices() / tp + shape.small);
        let tables = match (index == 0, index == last) {
            (true, true) if !shape.tied => 2.0 * table + positions,
            (true, _) => table + positions,
            (false, true) => table,
            (false, false) => 0.0,
        };
        (layers, tables)
    };
    let sum = |pair: (f64, f64)| pair.0 + pair.1;
    let best = |a: (f64, f64), b: (f64, f64)| if sum(b) > sum(a) { b } else { a };
    let middle = if last > 1 { stage(1) } else { stage(0) };
    best(best(stage(0), stage(last)), middle)
}

/// Ranks that sum their gradients: those with other data, and those with other tokens of the same sequences.
fn gradient_ranks(job: &Job<'_>) -> u64 {
    job.layout.data * job.layout.context
}

/// Ranks that share the optimizer state.
pub fn state_ranks(job: &Job<'_>) -> u64 {
    let node = (job.machine.node.devices / job.layout.tensor).max(1);
    let ranks = gradient_ranks(job);
    match job.layout.sharding {
        Sharding::None => 1,
        Sharding::Optimizer | Sharding::Full => ranks,
        Sharding::Hybrid | Sharding::OptimizerInNode => node.min(ranks),
    }
}

/// The traffic of a job.
pub fn traffic(job: &Job<'_>, rates: &Rates<'_>) -> Traffic {
    let (layers, tables) = parameters(job);
    let all = layers + tables;
    let owned = all / state_ranks(job) as f64;
    let (ranks, stride) = (gradient_ranks(job), job.layout.tensor);
    let stack = job.stack;
    let mut found = Traffic {
        optimizer: if job.offload { 0.0 } else { rates.stream(stack.optimizer_traffic * owned) },
        accumulate: rates.stream(stack.accumulate_traffic * all),
        ..Traffic::default()
    };
    if job.offload {
        found.host = owned * (HOST_TRAFFIC / HOST_STREAM + 4.0 * stack.gather_bytes / HOST_LINK);
    }
    let sum = |bytes: f64| rates.all_reduce(ranks, stride, bytes);
    match job.layout.sharding {
        Sharding::None => found.behind_backward = sum(job.gradient_bytes() * all),
        Sharding::Optimizer => {
            found.behind_backward = sum(job.gradient_bytes() * all) / 2.0;
            found.behind_forward = sum(2.0 * all) / 2.0;
            found.alone = stack.broadcast * (ranks as f64 - job.machine.node.devices as f64).max(0.0);
        }
        Sharding::OptimizerInNode => {
            found.behind_backward = sum(job.gradient_bytes() * all);
            found.behind_forward = rates.all_reduce(state_ranks(job), stride, 2.0 * all) / 2.0;
        }
        Sharding::Full | Sharding::Hybrid => sharded(job, rates, (layers, tables), &mut found),
    }
    found
}

/// Weights are gathered for each forward and each backward pass, gradients scattered behind it, a layer at a time.
fn sharded(job: &Job<'_>, rates: &Rates<'_>, sizes: (f64, f64), found: &mut Traffic) {
    let (ranks, stride) = (state_ranks(job), job.layout.tensor);
    let stack = job.stack;
    let layers = job.stage_layers(0).max(1.0);
    let half = |bytes: f64| rates.all_reduce(ranks, stride, bytes) / 2.0;
    found.gathers = Some(Gathers {
        layers,
        gather: half(stack.gather_bytes * sizes.0 / layers),
        scatter: half(stack.scatter_bytes * sizes.0 / layers),
        ends: half(stack.gather_bytes * sizes.1),
    });
    let copies = gradient_ranks(job) / ranks.max(1);
    if copies > 1 {
        let bytes = stack.scatter_bytes * (sizes.0 + sizes.1) / ranks as f64;
        found.behind_backward = rates.all_reduce(copies, stride * ranks, bytes);
    }
}
