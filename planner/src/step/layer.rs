//! One layer of one micro-batch on one rank: kernels of the forward pass, of the backward pass, and of what is
//! computed again. The only file that knows what a backward pass consists of.

use super::job::Job;
use super::rates::Rates;
use super::stack::Traffic;
use crate::plan::Recompute;

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
    /// Kernels launched.
    pub launches: f64,
    /// Collectives that a tensor-parallel group meets at.
    pub meetings: f64,
}

impl Pass {
    /// Seconds that the device is busy.
    pub fn device(&self) -> f64 {
        self.products + self.attention + self.rows + self.tensor
    }

    /// Seconds of the pass: the device's, or the host's where launches take longer. Ranks whose hosts set the pace
    /// also miss each other at collectives, as far as kernels in the queue do not make up for it.
    pub fn seconds(&self, host_launch: f64, serial: f64, skew: f64) -> f64 {
        let device = self.device() + self.launches * serial;
        let missed = (self.meetings * skew - (device - self.tensor)).max(0.0);
        device.max(self.launches * host_launch + missed)
    }

    /// The pass `times` times.
    pub fn times(self, times: f64) -> Pass {
        Pass {
            products: self.products * times,
            attention: self.attention * times,
            rows: self.rows * times,
            tensor: self.tensor * times,
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
    /// What the backward pass computes again.
    pub again: Pass,
}

/// Host time of a collective call in launches: bookkeeping of the process group and its stream.
const LAUNCHES_OF_A_COLLECTIVE: f64 = 2.5;

/// The passes of a layer of a job.
pub fn layer(job: &Job<'_>, rates: &Rates<'_>) -> Layer {
    let (forward_products, backward_products) = products(job, rates);
    let (core_forward, core_backward) = attention(job, rates);
    let rows = rows(job);
    let (sweep, hidden) = collectives(job, rates);
    let launches = job.stack.launches;
    let more = if job.attention.flash() { 0.0 } else { launches.unfused_attention };
    let meetings = if job.layout.tensor > 1 { 2.0 } else { 0.0 };
    let calls = meetings * LAUNCHES_OF_A_COLLECTIVE;
    let forward = Pass {
        products: forward_products,
        attention: core_forward,
        rows: rates.stream(rows.forward) + (launches.forward - 5.0).max(0.0) * job.physics.gap,
        tensor: sweep,
        launches: launches.forward + more + calls,
        meetings,
    };
    let backward = Pass {
        products: backward_products,
        attention: core_backward,
        rows: rates.stream(rows.backward) + (launches.backward - 10.0).max(0.0) * job.physics.gap,
        tensor: sweep - hidden,
        launches: launches.backward + more + calls,
        meetings,
    };
    let again = match job.layout.recompute {
        Recompute::None => Pass::default(),
        Recompute::Selective if job.attention.flash() => {
            Pass { rows: rates.stream(cheap_rows(job)), launches: 3.0, ..Pass::default() }
        }
        Recompute::Selective => Pass { attention: core_forward, launches: more, ..Pass::default() },
        Recompute::Full => forward,
    };
    Layer { forward, backward, again: again.times(job.layout.again_share) }
}

fn products(job: &Job<'_>, rates: &Rates<'_>) -> (f64, f64) {
    let (shape, tp, tokens) = (&job.shape, job.tp(), job.tokens());
    let heads = shape.query_width() + 2.0 * shape.key_width().max(shape.head_dim * tp);
    let linears = [
        (1.0, shape.width, heads / tp),
        (1.0, shape.query_width() / tp, shape.width),
        (shape.ups(), shape.width, shape.inner / tp),
        (1.0, shape.inner / tp, shape.width),
    ];
    let priced = linears.map(|(count, inputs, outputs)| {
        let (forward, backward) = rates.linear(tokens, inputs, outputs);
        (count * forward, count * backward)
    });
    priced.iter().fold((0.0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
}

/// Attention from scores to values.
fn attention(job: &Job<'_>, rates: &Rates<'_>) -> (f64, f64) {
    let (shape, length) = (&job.shape, job.batch.seq_len as f64);
    let (sequences, heads) = (job.layout.micro_batch as f64, shape.heads / job.tp());
    if job.attention.flash() {
        return rates.flash(sequences, heads, shape.head_dim, length);
    }
    let scores = sequences * heads * length * length;
    let softmax = match job.attention {
        super::AttentionKernel::Unfused => job.stack.rows.softmax_unfused,
        _ => job.stack.rows.softmax_fused,
    };
    let flops = 2.0 * scores * shape.head_dim;
    let operands = 2.0 * 2.0 * sequences * heads * length * shape.head_dim;
    let inner = rates.batched(flops, shape.head_dim, 2.0 * scores + operands);
    let outer = rates.batched(flops, length, 2.0 * scores + operands);
    let outer = outer.max(inner * shape_penalty(shape.head_dim));
    let forward = inner + outer + rates.stream(softmax.forward * scores);
    let backward = inner + 3.0 * outer + rates.stream(softmax.backward * scores);
    (forward, backward)
}

/// Ranks that the input of a layer is split over while it waits for its backward pass.
pub fn stream_split(job: &Job<'_>) -> f64 {
    job.row_split()
}

/// A result only one head wide fills tiles as badly as a contraction over one head.
fn shape_penalty(_head_dim: f64) -> f64 {
    0.8
}

/// Bytes of row kernels.
fn rows(job: &Job<'_>) -> Traffic {
    let (shape, rows, tokens, tp) = (&job.shape, &job.stack.rows, job.tokens(), job.tp());
    let stream = tokens * shape.width / job.row_split();
    let inner = tokens * shape.inner / tp;
    let heads = tokens * (shape.query_width() + 2.0 * shape.key_width()) / tp;
    let rotated = tokens * (shape.query_width() + shape.key_width()) / tp;
    let norm = if job.fused_norm { rows.norm } else { rows.norm_unfused };
    let act = if shape.gated { rows.gated } else { rows.activation };
    let residual = if shape.parallel { 1.5 } else { 2.0 };
    let sum = |of: fn(&Traffic) -> f64| {
        2.0 * stream * of(&norm)
            + residual * stream * of(&rows.residual)
            + inner * of(&act)
            + heads * of(&rows.layout)
            + if shape.rotary { rotated * of(&rows.rotary) } else { 0.0 }
    };
    Traffic { forward: sum(|t| t.forward), backward: sum(|t| t.backward) }
}

/// Bytes of the norms and the activation, which selective recomputation runs again beside flash attention.
fn cheap_rows(job: &Job<'_>) -> f64 {
    let (shape, rows, tokens) = (&job.shape, &job.stack.rows, job.tokens());
    let norm = if job.fused_norm { rows.norm } else { rows.norm_unfused };
    let act = if shape.gated { rows.gated } else { rows.activation };
    2.0 * tokens * shape.width / job.row_split() * norm.forward
        + tokens * shape.inner / job.tp() * act.forward
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
