//! Data parallelism and the optimizer: gradients, gathered weights, the state a rank owns.

use super::job::Job;
use super::rates::Rates;
use crate::plan::Sharding;

/// Seconds of data parallelism and of the optimizer in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Data {
    /// Exposed traffic, once a step.
    pub step: f64,
    /// Exposed traffic of each micro-batch.
    pub micro_batch: f64,
    /// The optimizer, its clipping and its casts.
    pub optimizer: f64,
    /// Adding a micro-batch's gradients up.
    pub accumulate: f64,
    /// State that lives on the host.
    pub host: f64,
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

/// Ranks that share the optimizer state.
pub fn state_ranks(job: &Job<'_>) -> u64 {
    let node = (job.machine.node.devices / job.layout.tensor).max(1);
    match job.layout.sharding {
        Sharding::None => 1,
        Sharding::Optimizer | Sharding::Full => job.layout.data,
        Sharding::Hybrid | Sharding::OptimizerInNode => node.min(job.layout.data),
    }
}

/// The terms of data parallelism. `forward` and `backward` are the seconds of compute of one micro-batch on the
/// fullest stage.
pub fn data(job: &Job<'_>, rates: &Rates<'_>, forward: f64, backward: f64) -> Data {
    let (layers, tables) = parameters(job);
    let all = layers + tables;
    let owned = all / state_ranks(job) as f64;
    let (ranks, stride) = (job.layout.data, job.layout.tensor);
    let stack = job.stack;
    let mut found = Data {
        optimizer: if job.offload { 0.0 } else { rates.stream(stack.optimizer_traffic * owned) },
        accumulate: rates.stream(stack.accumulate_traffic * all),
        ..Data::default()
    };
    if job.offload {
        found.host = owned * (HOST_TRAFFIC / HOST_STREAM + 4.0 * stack.gather_bytes / HOST_LINK);
    }
    let sum = |bytes: f64| rates.all_reduce(ranks, stride, bytes);
    let hidden = |traffic: f64, beside: f64| (traffic * stack.data_overlap).min(beside);
    match job.layout.sharding {
        Sharding::None => {
            let traffic = sum(job.gradient_bytes() * all);
            found.step = traffic - hidden(traffic, backward);
        }
        Sharding::Optimizer => {
            let scatter = sum(job.gradient_bytes() * all) / 2.0;
            let gather = sum(2.0 * all) / 2.0;
            found.step = scatter - hidden(scatter, backward) + gather - hidden(gather, forward);
            found.step += stack.broadcast * (ranks as f64 - job.machine.node.devices as f64).max(0.0);
        }
        Sharding::OptimizerInNode => {
            let traffic = sum(job.gradient_bytes() * all);
            let own = state_ranks(job);
            let gather = rates.all_reduce(own, stride, 2.0 * all) / 2.0;
            found.step = traffic - hidden(traffic, backward) + gather - hidden(gather, forward);
        }
        Sharding::Full | Sharding::Hybrid => {
            sharded(job, rates, (layers, tables), (forward, backward), &mut found)
        }
    }
    found
}

/// Weights are gathered for each forward and each backward pass, gradients scattered behind it, a layer at a time.
fn sharded(job: &Job<'_>, rates: &Rates<'_>, sizes: (f64, f64), compute: (f64, f64), found: &mut Data) {
    let (ranks, stride) = (state_ranks(job), job.layout.tensor);
    let stack = job.stack;
    let count = job.stage_layers(0).max(1.0);
    let half = |bytes: f64| rates.all_reduce(ranks, stride, bytes) / 2.0;
    let (gather, scatter) =
        (half(stack.gather_bytes * sizes.0 / count), half(stack.scatter_bytes * sizes.0 / count));
    let ends = half(stack.gather_bytes * sizes.1);
    let passes = [(gather, compute.0 / count), (gather + scatter, compute.1 / count)];
    let exposed = passes.map(|(traffic, beside)| {
        let behind = (traffic * stack.gather_overlap).min(beside);
        traffic - behind + behind * job.physics.contention
    });
    found.micro_batch = count * (exposed[0] + exposed[1]) + ends;
    let copies = job.layout.data / ranks.max(1);
    if copies > 1 {
        let across = rates.all_reduce(
            copies,
            stride * ranks,
            stack.scatter_bytes * (sizes.0 + sizes.1) / ranks as f64,
        );
        found.step = across - (across * stack.data_overlap).min(compute.1);
    }
}
