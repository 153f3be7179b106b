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
    /// Of the forward and of the backward pass of each micro-batch.
    pub passes: (f64, f64),
}

impl Exposed {
    /// Of each micro-batch.
    pub fn micro_batch(&self) -> f64 {
        self.passes.0 + self.passes.1
    }
}

impl Traffic {
    /// What compute does not hide; `forward` and `backward` are the device's seconds of one micro-batch on the slowest
    /// stage. No compute hides more than all there is of itself.
    pub fn exposed(&self, stack: &Stack, physics: &Physics, forward: f64, backward: f64) -> Exposed {
        let left = |traffic: f64, beside: f64| traffic - (traffic * stack.data_overlap).min(beside);
        let step = left(self.behind_backward, backward) + left(self.behind_forward, forward) + self.alone;
        let Some(one) = self.gathers else { return Exposed { step, passes: (0.0, 0.0) } };
        let passes = [(one.gather, forward / one.layers), (one.gather + one.scatter, backward / one.layers)];
        let exposed = passes.map(|(traffic, beside)| {
            let behind = (traffic * stack.gather_overlap).min(beside);
            traffic - behind + behind * physics.contention
        });
        Exposed { step, passes: (one.layers * exposed[0] + one.ends, one.layers * exposed[1]) }
    }
}

/// Parameters of a stage on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Parameters {
    /// Of its layers, without experts.
    layers: f64,
    /// Of the experts of its layers.
    experts: f64,
    /// Of the tables of the ends.
    tables: f64,
}

impl Parameters {
    fn all(&self) -> f64 {
        self.layers + self.experts + self.tables
    }
}

/// Parameters of the fullest stage on one rank.
fn parameters(job: &Job<'_>) -> Parameters {
    let (shape, tp, last) = (&job.shape, job.tp(), job.layout.pipeline - 1);
    let table = shape.table(job.vocab_rows());
    let positions = shape.positions * shape.width;
    let stage = |index: u64| {
        let layers = job.stage_layers(index);
        let tables = match (index == 0, index == last) {
            (true, true) if !shape.tied => 2.0 * table + positions,
            (true, _) => table + positions,
            (false, true) => table,
            (false, false) => 0.0,
        };
        Parameters {
            layers: layers * (shape.layer_matrices() / tp + shape.small),
            experts: layers * job.expert_parameters(),
            tables,
        }
    };
    let best = |a: Parameters, b: Parameters| if b.all() > a.all() { b } else { a };
    let middle = if last > 1 { stage(1) } else { stage(0) };
    best(best(stage(0), stage(last)), middle)
}

/// Ranks that sum their gradients: those with other data, and those with other tokens of the same sequences.
fn gradient_ranks(job: &Job<'_>) -> u64 {
    job.layout.data * job.layout.context
}

/// Ranks that share the state of parameters which every `apart`-th data-parallel rank holds: 1 for those that all hold,
/// the ranks of expert parallelism for experts.
pub fn state_ranks(job: &Job<'_>, apart: u64) -> u64 {
    let node = (job.machine.node.devices / (job.layout.tensor * apart)).max(1);
    let ranks = (gradient_ranks(job) / apart).max(1);
    match job.layout.sharding {
        Sharding::None => 1,
        Sharding::Optimizer | Sharding::Full => ranks,
        Sharding::Hybrid | Sharding::OptimizerInNode => node.min(ranks),
    }
}

/// The traffic of a job.
pub fn traffic(job: &Job<'_>, rates: &Rates<'_>) -> Traffic {
    let held = parameters(job);
    let (common, apart) = (held.layers + held.tables, job.layout.expert);
    let owned = common / state_ranks(job, 1) as f64 + held.experts / state_ranks(job, apart) as f64;
    let (ranks, stride) = (gradient_ranks(job), job.layout.tensor);
    let stack = job.stack;
    let mut found = Traffic {
        optimizer: if job.offload { 0.0 } else { rates.stream(stack.optimizer_traffic * owned) },
        accumulate: rates.stream(stack.accumulate_traffic * held.all()),
        ..Traffic::default()
    };
    if job.offload {
        found.host = on_host(job, owned);
    }
    // Experts are summed over the ranks that hold the same ones.
    let both = |one: &dyn Fn(u64, u64, f64) -> f64, bytes: f64| {
        one(ranks, stride, bytes * common) + one(ranks / apart, stride * apart, bytes * held.experts)
    };
    let sum = |bytes: f64| both(&|n, apart, bytes| rates.all_reduce(n, apart, bytes), bytes);
    let gather = |bytes: f64| both(&|n, apart, bytes| rates.all_gather(n, apart, bytes), bytes);
    match job.layout.sharding {
        Sharding::None => found.behind_backward = sum(job.gradient_bytes()),
        Sharding::Optimizer => {
            found.behind_forward = gather(2.0);
            match stack.owners_broadcast {
                false => found.behind_backward = gather(job.gradient_bytes()),
                true => {
                    found.behind_backward = sum(job.gradient_bytes());
                    found.alone = owners(job, ranks) * rates.broadcast_latency(ranks, stride);
                }
            }
        }
        Sharding::OptimizerInNode => {
            found.behind_backward = sum(job.gradient_bytes());
            let shared = |bytes: f64, apart: u64| {
                rates.all_gather(state_ranks(job, apart), stride * apart, 2.0 * bytes)
            };
            found.behind_forward = shared(common, 1) + shared(held.experts, apart);
        }
        Sharding::Full | Sharding::Hybrid => sharded(job, rates, held, &mut found),
    }
    found
}

/// Ranks that own parameters where tensors are dealt out whole: those of a stage's layers with both norms, and the ends'.
fn owners(job: &Job<'_>, ranks: u64) -> f64 {
    let tensors = job.stage_layers(0) * (job.work.forward.linears.len() + 2) as f64 + 3.0;
    tensors.min(ranks as f64)
}

/// Seconds of a step for state that lives on the host: its optimizer, and weights and gradients on their way. A machine
/// without a host is refused before ([`crate::request::PlanError::Host`]).
fn on_host(job: &Job<'_>, owned: f64) -> f64 {
    let Some(host) = &job.machine.node.host else { return 0.0 };
    let (optimizer, link) = (job.stack.host_optimizer_traffic, 4.0 * job.stack.gather_bytes);
    owned * (optimizer / host.memory_bandwidth.0 + link / host.bandwidth.0)
}

/// Weights are gathered for each forward and each backward pass, gradients scattered behind it, a layer at a time.
fn sharded(job: &Job<'_>, rates: &Rates<'_>, held: Parameters, found: &mut Traffic) {
    let (stride, apart, stack) = (job.layout.tensor, job.layout.expert, job.stack);
    let layers = job.stage_layers(0).max(1.0);
    let half = |bytes: f64, apart: u64| rates.all_gather(state_ranks(job, apart), stride * apart, bytes);
    let layer =
        |bytes: f64| half(bytes * held.layers / layers, 1) + half(bytes * held.experts / layers, apart);
    found.gathers = Some(Gathers {
        layers,
        gather: layer(stack.gather_bytes),
        scatter: layer(stack.scatter_bytes),
        ends: half(stack.gather_bytes * held.tables, 1),
    });
    let repeated = |parameters: f64, apart: u64| {
        let ranks = state_ranks(job, apart);
        let copies = gradient_ranks(job) / apart / ranks.max(1);
        let bytes = stack.scatter_bytes * parameters / ranks as f64;
        if copies > 1 { rates.all_reduce(copies, stride * apart * ranks, bytes) } else { 0.0 }
    };
    found.behind_backward = repeated(held.layers + held.tables, 1) + repeated(held.experts, apart);
}
