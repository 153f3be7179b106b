//! One layer of one micro-batch on one rank: the seconds of the kernels that its differentiated graph is made of
//! ([`super::work`]), forward, backward and computed again.

use super::experts;
use super::job::Job;
use super::rates::Rates;
use super::work::{Linear, PassWork};
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
    /// Tokens on their way to their experts and back.
    pub exchange: f64,
    /// Kernels launched.
    pub launches: f64,
    /// Collectives that a tensor-parallel group meets at.
    pub meetings: f64,
}

impl Pass {
    /// Seconds that the device is busy.
    pub fn device(&self) -> f64 {
        self.products + self.attention + self.rows + self.waits()
    }

    /// Seconds of it in which it waits for other ranks.
    pub fn waits(&self) -> f64 {
        self.tensor + self.ring + self.exchange
    }

    /// Seconds of the pass: the device's, or the host's where launches take longer.
    ///
    /// Ranks of a group miss each other at collectives. Where hosts set the pace, kernels make up for what fits between
    /// them. On devices it is felt the less the further hosts and devices are apart: a host that is ahead has filled a
    /// queue, a device that is ahead waits anyway.
    pub fn seconds(&self, pace: &Pace) -> f64 {
        let (device, host) = (self.device(), self.launches * pace.host_launch);
        let apart = self.meetings * pace.skew;
        if apart == 0.0 {
            return device.max(host);
        }
        let missed = (apart - (device - self.waits())).max(0.0);
        let felt = apart * (-pace.lead * (device - host).abs() / apart).exp();
        (device + felt).max(host + missed)
    }

    /// The pass `times` times.
    pub fn times(self, times: f64) -> Pass {
        Pass {
            products: self.products * times,
            attention: self.attention * times,
            rows: self.rows * times,
            tensor: self.tensor * times,
            ring: self.ring * times,
            exchange: self.exchange * times,
            launches: self.launches * times,
            meetings: self.meetings * times,
        }
    }
}

/// What the hosts of a job do to its passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Seconds of a launch.
    pub host_launch: f64,
    /// Seconds by which the ranks of a group miss each other at a collective.
    pub skew: f64,
    /// Part of a lead of hosts over devices, or of devices over hosts, that makes up for that; at most 1.
    pub lead: f64,
}

impl Pace {
    /// The same where ranks never miss each other.
    pub fn in_step(&self) -> Pace {
        Pace { skew: 0.0, ..*self }
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
            exchange: self.exchange + other.exchange,
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
            products: products(job, rates, work),
            attention,
            rows: rows(job, rates, work)
                + experts::rows(job, rates)
                + (count - unpriced).max(0.0) * job.physics.gap,
            tensor,
            ring,
            exchange: experts::exchange(job, rates),
            launches: count + more + calls + experts::launches(job, work),
            meetings: meetings + experts::meetings(job),
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
        true => Pass {
            products: products(job, rates, &work.selective),
            rows: rows(job, rates, &work.selective),
            launches: if work.selective.linears.is_empty() { 3.0 } else { launches.forward },
            ..Pass::default()
        },
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

/// Bytes of an element of a sum in 32 bits that a 16-bit part is added to.
const ADDED: f64 = 10.0;

/// Seconds of adding up what attention finds with each rank's keys: outputs forward, gradients of queries, keys and
/// values backward, in 32 bits as flash attention's own blocks are.
fn merges(job: &Job<'_>, rates: &Rates<'_>) -> (f64, f64) {
    let rounds = (job.layout.context - 1) as f64;
    let elements = |width: f64| rounds * job.tokens() * width / job.tp();
    let (queries, keys) = (job.shape.heads * job.shape.head_dim, job.shape.key_width());
    (rates.stream(ADDED * elements(queries)), rates.stream(ADDED * elements(queries + 2.0 * keys)))
}

/// Attention from scores to values.
fn attention(job: &Job<'_>, rates: &Rates<'_>) -> (f64, f64) {
    let work = job.work;
    let (merged_forward, merged_backward) = merges(job, rates);
    match job.attention.flash() {
        true => {
            let (forward, backward) = rates.flash(&work.forward.core, &work.backward.core, job.sequences());
            (forward + merged_forward, backward + merged_backward)
        }
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
    let inner = work.inner_bytes * job.shape.mlp_rows();
    rates.stream((work.stream_bytes / job.row_split() + work.split_bytes + inner) * job.sequences())
}

/// Products of linear layers, those of experts in the mean over the layers.
fn products(job: &Job<'_>, rates: &Rates<'_>, work: &PassWork) -> f64 {
    let share = job.shape.expert_layers();
    if share == 0.0 {
        return rates.linears(&work.linears, job.tokens());
    }
    let (mlp, other): (Vec<Linear>, Vec<Linear>) = work.linears.iter().partition(|linear| linear.mlp);
    rates.linears(&other, job.tokens())
        + (1.0 - share) * rates.linears(&mlp, job.tokens())
        + share * experts::products(job, rates, &mlp)
}

/// Tensor-parallel collectives of a pass, and what of the backward pass's hides behind weight gradients. Sequence
/// parallelism scatters and gathers instead, which moves the same, and gathers once more in the backward pass.
fn collectives(job: &Job<'_>, rates: &Rates<'_>) -> (f64, f64) {
    if job.layout.tensor <= 1 {
        return (0.0, 0.0);
    }
    let bytes = 2.0 * job.tokens() * job.shape.width;
    let count = if job.shape.parallel { 1.0 } else { 2.0 };
    // The sum behind experts is over the rows that they worked on.
    let experts = job.shape.expert_layers();
    let routed =
        experts * job.shape.experts.map_or(0.0, |experts| rates.tensor_all_reduce(bytes * experts.rows()));
    let sweep = (count - experts) * rates.tensor_all_reduce(bytes) + routed;
    (sweep, sweep * job.stack.tensor_overlap)
}
