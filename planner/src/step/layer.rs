//! One layer of one micro-batch on one rank: the seconds of the kernels that its differentiated graph is made of
//! ([`super::work`]), forward, backward and computed again.

use super::job::Job;
use super::rates::Rates;
use super::work::PassWork;
use crate::plan::Recompute;
use lapidary_hardware::Bytes;
use lapidary_hardware::price::collective::point_to_point;

/// Seconds of a pass by what they are spent on, and its launches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pass {
    /// Matrix products.
    pub products: f64,
    /// Attention.
    pub attention: f64,
    /// Row kernels.
    pub rows: f64,
    /// Exposed tensor-parallel collectives.
    pub tensor: f64,
    /// Exposed keys and values on their way round the ranks that share a sequence.
    pub ring: f64,
    /// Kernels launched.
    pub launches: f64,
    /// Collectives that a tensor-parallel group meets at.
    pub meetings: f64,
}

impl Pass {
    /// Seconds that the device is busy.
    pub fn device(&self) -> f64 {
        self.products + self.attention + self.rows + self.tensor + self.ring
    }

    /// Seconds of the pass: the device's, or the host's where launches take longer. Ranks whose hosts set the pace
    /// also miss each other at collectives, as far as kernels in the queue do not make up for it.
    pub fn seconds(&self, host_launch: f64, skew: f64) -> f64 {
        let device = self.device();
        let missed = (self.meetings * skew - (device - self.tensor - self.ring)).max(0.0);
        device.max(self.launches * host_launch + missed)
    }

    /// The pass `times` times.
    pub fn times(self, times: f64) -> Pass {
        Pass {
            products: self.products * times,
            attention: self.attention * times,
            rows: self.rows * times,
            tensor: self.tensor * times,
            ring: self.ring * times,
            launches: self.launches * times,
            meetings: self.meetings * times,
        }
    }
}

impl std::ops::Add for Pass {
    type Output = Pass;

    fn add(self, other: Pass) -> Pass {
        Pass {
            products: self.products + other.products,
            attention: self.attention + other.attention,
            rows: self.rows + other.rows,
            tensor: self.tensor + other.tensor,
            ring: self.ring + other.ring,
            launches: self.launches + other.launches,
            meetings: self.meetings + other.meetings,
        }
    }
}

/// The passes of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Layer {
    /// Forward.
    pub forward: Pass,
    /// Backward, without what is computed again.
    pub backward: Pass,
    /// What selective recomputation and what full recomputation computes again.
    again: [Pass; 2],
}

impl Layer {
    /// What the backward pass computes again.
    pub fn again(&self, recompute: Recompute) -> Pass {
        match recompute {
            Recompute::None => Pass::default(),
            Recompute::Selective => self.again[0],
            Recompute::Full => self.again[1],
        }
    }
}

/// Host time of a collective call in launches: bookkeeping of the process group and its stream.
const LAUNCHES_OF_A_COLLECTIVE: f64 = 2.5;

/// The passes of a layer of a job.
pub fn layer(job: &Job<'_>, rates: &Rates<'_>) -> Layer {
    let work = job.work;
    let (core_forward, core_backward) = attention(job, rates);
    let (sweep, hidden) = collectives(job, rates);
    let launches = job.stack.launches;
    let more = if job.attention.flash() { 0.0 } else { launches.unfused_attention };
    let meetings = if job.layout.tensor > 1 { 2.0 } else { 0.0 };
    let rounds = (job.layout.context - 1) as f64;
    let calls = (meetings + rounds) * LAUNCHES_OF_A_COLLECTIVE;
    let pass =
        |work: &PassWork, (attention, ring): (f64, f64), tensor: f64, count: f64, unpriced: f64| Pass {
            products: rates.linears(&work.linears, job.tokens()),
            attention,
            rows: rows(job, rates, work) + (count - unpriced).max(0.0) * job.physics.gap,
            tensor,
            ring,
            launches: count + more + calls,
            meetings,
        };
    let forward =
        pass(&work.forward, (core_forward, ring(job, core_forward, 1.0)), sweep, launches.forward, 5.0);
    let backward = pass(
        &work.backward,
        (core_backward, ring(job, core_backward, 2.0)),
        sweep - hidden,
        launches.backward,
        10.0,
    );
    let selective = match job.attention.flash() {
        true => Pass { rows: rows(job, rates, &work.selective), launches: 3.0, ..Pass::default() },
        false => Pass { attention: unfused(job, rates, &work.selective), launches: more, ..Pass::default() },
    };
    let full = pass(&work.full, (core_forward, ring(job, core_forward, 1.0)), sweep, launches.forward, 5.0);
    Layer { forward, backward, again: [selective, full] }
}

/// Keys and values that travel round the ranks of a sequence (arXiv 2310.01889) while attention works on those that are
/// there: what of their way it does not hide. The backward pass sends their gradients along. The causal mask is taken to
/// be dealt evenly over the ranks.
fn ring(job: &Job<'_>, attention: f64, times: f64) -> f64 {
    let ranks = job.layout.context;
    if ranks <= 1 {
        return 0.0;
    }
    let across = ranks * job.layout.tensor > job.machine.node.devices;
    let bytes = times * 2.0 * 2.0 * job.tokens() * job.shape.key_width() / job.tp();
    let message = point_to_point(job.machine, Bytes(bytes), across).0;
    (ranks - 1) as f64 * (message - attention / ranks as f64).max(0.0)
}

/// Attention from scores to values.
fn attention(job: &Job<'_>, rates: &Rates<'_>) -> (f64, f64) {
    let work = job.work;
    match job.attention.flash() {
        true => rates.flash(&work.forward.core, &work.backward.core, job.sequences()),
        false => (unfused(job, rates, &work.forward), unfused(job, rates, &work.backward)),
    }
}

/// Attention whose scores go through memory: batched products and row kernels.
fn unfused(job: &Job<'_>, rates: &Rates<'_>, work: &PassWork) -> f64 {
    let sequences = job.sequences();
    rates.contractions(&work.core, sequences) + rates.stream(work.score_bytes * sequences)
}

/// Row kernels outside attention's core.
fn rows(job: &Job<'_>, rates: &Rates<'_>, work: &PassWork) -> f64 {
    rates.stream((work.stream_bytes / job.row_split() + work.split_bytes) * job.sequences())
}

/// Tensor-parallel collectives of a pass, and what of the backward pass's hides behind weight gradients. Sequence
/// parallelism scatters and gathers instead, which moves the same, and gathers once more in the backward pass.
fn collectives(job: &Job<'_>, rates: &Rates<'_>) -> (f64, f64) {
    if job.layout.tensor <= 1 {
        return (0.0, 0.0);
    }
    let bytes = 2.0 * job.tokens() * job.shape.width;
    let count = if job.shape.parallel { 1.0 } else { 2.0 };
    let sweep = count * rates.tensor_all_reduce(bytes);
    (sweep, sweep * job.stack.tensor_overlap)
}
