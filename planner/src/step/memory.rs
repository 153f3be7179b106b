//! Memory of the fullest GPU by class: state, activations by what is recomputed, logits, buffers, allocator.

use super::job::{Job, Layout};
use crate::plan::{Recompute, Sharding};
use indexmap::IndexMap;

const GIB: f64 = 1073741824.0;
/// A run is said to fit only where its bytes times this are there: a wrong `fits` costs a job, a wrong `does not` a try.
/// With it 1 of 211 overflowing layouts of published.csv is judged wrongly.
pub const ROOM: f64 = 1.09;

/// Bytes by class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Occupied {
    /// Weights, gradients and optimizer state.
    pub state: f64,
    /// Weights and gradients that are there as a whole for a while, and buckets of traffic.
    pub buffers: f64,
    /// What layers keep for the backward pass.
    pub activations: f64,
    /// One layer while it is computed again, and its gradients.
    pub working: f64,
    /// Logits and their loss.
    pub logits: f64,
    /// Driver, communicators, libraries.
    pub context: f64,
    /// What the allocator cannot use.
    pub fragmentation: f64,
}

impl Occupied {
    /// All classes together.
    pub fn total(&self) -> f64 {
        self.allocated() + self.context + self.fragmentation
    }

    /// What the program asked for.
    pub fn allocated(&self) -> f64 {
        self.state + self.buffers + self.activations + self.working + self.logits
    }

    /// The classes by name.
    pub fn classes(&self) -> IndexMap<&'static str, f64> {
        IndexMap::from([
            ("state", self.state),
            ("buffers", self.buffers),
            ("activations", self.activations),
            ("working", self.working),
            ("logits", self.logits),
            ("context", self.context),
            ("fragmentation", self.fragmentation),
        ])
    }
}

/// Memory of the fullest stage.
pub fn occupied(job: &Job<'_>) -> Occupied {
    let last = job.layout.pipeline - 1;
    let stages: &[u64] = match last {
        0 => &[0],
        1 => &[0, 1],
        _ => &[0, last, 1],
    };
    let all = stages.iter().map(|stage| of_stage(job, *stage));
    all.fold(Occupied::default(), |best, next| if next.total() > best.total() { next } else { best })
}

/// Memory of a GPU of one stage.
pub fn occupied_by_stage(job: &Job<'_>, stage: u64) -> Occupied {
    of_stage(job, stage)
}

/// Bytes of weights, gradients and optimizer of a rank that holds its part of the layers and nothing else, as
/// Korthikanti et al. count them (arXiv 2205.05198, figure 1).
pub fn layer_state(job: &Job<'_>) -> f64 {
    let layers = job.shape.layers as f64 / job.layout.pipeline as f64;
    let tables = if job.layout.pipeline == 1 { job.shape.table(job.vocab_rows()) } else { 0.0 };
    (layers * (job.shape.layer_parameters() - job.shape.expert_matrices()) / job.tp()
        + layers * job.expert_parameters()
        + tables)
        * state_bytes(job)
}

/// Bytes that the layers of the first stage keep for all micro-batches in flight.
pub fn kept_in_flight(job: &Job<'_>) -> f64 {
    of_stage(job, 0).activations
}

/// The same of a run with tensor parallelism alone, that recomputes nothing.
pub fn kept_by_tensor_parallelism_alone(job: &Job<'_>) -> f64 {
    let mut plain = *job;
    plain.layout.sequence_parallel = false;
    plain.layout.recompute = Recompute::None;
    kept_in_flight(&plain)
}

/// Bytes of a kept gradient.
fn gradients(job: &Job<'_>) -> f64 {
    if job.half { job.stack.memory.gradients_fp16 } else { job.stack.memory.gradients }
}

/// Bytes of the optimizer's state of a parameter.
fn optimizer(job: &Job<'_>) -> f64 {
    if job.half { job.stack.memory.optimizer_fp16 } else { job.stack.memory.optimizer }
}

fn state_bytes(job: &Job<'_>) -> f64 {
    job.stack.memory.weights + gradients(job) + optimizer(job)
}

fn of_stage(job: &Job<'_>, stage: u64) -> Occupied {
    let (stack, layout) = (job.stack, &job.layout);
    let (first, last) = (stage == 0, stage + 1 == layout.pipeline);
    let layers = job.stage_layers(stage);
    let own = layers * (job.shape.layer_matrices() / job.tp() + job.shape.small);
    let (tables, experts) = (tables(job, first, last), layers * job.expert_parameters());
    let (all, bytes) = (own + tables, stack.memory);
    let state = state(job, all, super::data::state_ranks(job, 1))
        + state(job, experts, super::data::state_ranks(job, layout.expert));
    let buffers = match layout.sharding {
        Sharding::Full | Sharding::Hybrid => {
            (3.0 * (own + experts) / layers.max(1.0) + tables) * 2.0 * stack.gather_bytes
        }
        Sharding::None => 0.0,
        _ => bucket(job, tables),
    };
    let in_flight = in_flight(job, stage);
    let kept = kept(job, layers);
    let full = layer_bytes(job, Recompute::None);
    let again = if layout.recompute == Recompute::Full { 1.3 * full } else { 0.3 * full };
    let logits = if last { job.tokens() * logits(job) } else { 0.0 };
    let mut found = Occupied {
        state,
        buffers,
        activations: kept * in_flight,
        working: again + 4.0 * job.tokens() * job.shape.width,
        logits,
        context: driver(job),
        fragmentation: 0.0,
    };
    found.fragmentation = bytes.fragmentation * (found.activations + found.working + found.logits);
    found
}

/// Bytes of driver, libraries and communicators.
pub fn driver(job: &Job<'_>) -> f64 {
    let bytes = &job.stack.memory;
    (bytes.context_gib + communicators(&job.layout) * bytes.communicator_gib) * GIB
}

/// Groups of ranks that a device talks in: data, tensor, pipeline and embeddings, and the ranks of one model.
fn communicators(layout: &Layout) -> f64 {
    let (tensor, pipeline) = (layout.tensor > 1, layout.pipeline > 1);
    1.0 + f64::from(u8::from(tensor))
        + 2.0 * f64::from(u8::from(pipeline))
        + f64::from(u8::from(tensor || pipeline))
}

/// Bytes of a bucket of gradients, as they are summed, and of one of gathered weights.
fn bucket(job: &Job<'_>, tables: f64) -> f64 {
    let elements = job.stack.memory.bucket_elements;
    let largest = if tables > 0.0 { job.shape.table(job.vocab_rows()) } else { 0.0 };
    match elements > 0.0 {
        true => elements.max(largest) * job.gradient_bytes() + 2.0 * elements,
        false => 0.0,
    }
}

/// Bytes of the state of some parameters of a rank whose sharded part is split over `ranks`.
fn state(job: &Job<'_>, parameters: f64, ranks: u64) -> f64 {
    let (optimizer, ranks) = (optimizer(job), ranks as f64);
    let whole = job.stack.memory.weights + gradients(job);
    let sharded = job.stack.memory.sharded_weights + gradients(job);
    match job.layout.sharding {
        // Shards live on the host; what is whole on every rank stays for its passes without the optimizer's state.
        Sharding::Full | Sharding::Hybrid if job.offload => 0.0,
        _ if job.offload => parameters * whole,
        Sharding::None => parameters * (whole + optimizer),
        Sharding::Optimizer | Sharding::OptimizerInNode => parameters * (whole + optimizer / ranks),
        Sharding::Full | Sharding::Hybrid => parameters * (sharded + optimizer) / ranks,
    }
}

fn tables(job: &Job<'_>, first: bool, last: bool) -> f64 {
    let table = job.shape.table(job.vocab_rows());
    let positions = job.shape.positions * job.shape.width;
    match (first, last) {
        (true, true) if !job.shape.tied => 2.0 * table + positions,
        (true, _) => table + positions,
        (false, true) => table,
        (false, false) => 0.0,
    }
}

/// Micro-batches whose activations a stage holds; more with interleaving (arXiv 2205.05198, section 4.2.3).
fn in_flight(job: &Job<'_>, stage: u64) -> f64 {
    let (ranks, chunks) = (job.layout.pipeline, job.layout.chunks.max(1) as f64);
    let m = job.layout.accumulation.ceil();
    let zero_bubble = if job.layout.schedule == super::Schedule::ZeroBubble2 { 2.0 } else { 1.0 };
    if chunks > 1.0 {
        let factor = 1.0 + (ranks - 1) as f64 / (ranks as f64 * chunks);
        return (ranks as f64 * factor).min(m);
    }
    (zero_bubble * (ranks - stage) as f64).min(m)
}

/// Bytes that the layers of a stage keep of one micro-batch.
fn kept(job: &Job<'_>, layers: f64) -> f64 {
    let again = job.layout.again.of(layers);
    layer_bytes(job, job.layout.recompute) * again + layer_bytes(job, Recompute::None) * (layers - again)
}

/// Bytes a layer keeps of one micro-batch: the slots of its differentiated graph, and what the framework keeps beside
/// them. For GPT that is the account of Korthikanti et al. (arXiv 2205.05198, section 4).
fn layer_bytes(job: &Job<'_>, recompute: Recompute) -> f64 {
    let kept = job.work.kept[match recompute {
        Recompute::None => 0,
        Recompute::Selective => 1,
        Recompute::Full => 2,
    }];
    let mut bytes =
        (kept.stream / job.row_split() + kept.split + kept.inner * job.shape.mlp_rows()) * job.sequences();
    if recompute != Recompute::Full {
        bytes += expert_inputs(job);
    }
    bytes
}

/// What experts got to work on, which their weights' gradients read again; in the mean over the layers.
fn expert_inputs(job: &Job<'_>) -> f64 {
    let rows = job.shape.experts.map_or(0.0, |experts| experts.rows());
    job.shape.expert_layers() * rows * 2.0 * job.tokens() * job.shape.width
}

/// Bytes of the logits of a token and of its loss. Gathered ones are there a second time, as the parts that came, and
/// so are a rank's own part of them and of their gradient.
fn logits(job: &Job<'_>) -> f64 {
    let (rows, tp, bytes) = (job.vocab_rows(), job.tp(), job.stack.memory);
    match bytes.gathers_logits && job.layout.tensor > 1 {
        true => rows * tp * (bytes.logits + 2.0) + rows * 4.0,
        false => rows * bytes.logits,
    }
}
