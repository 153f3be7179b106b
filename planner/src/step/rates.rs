//! Seconds of single kernels and collectives: the shape decides, tables and machine give the rates.

use super::job::Job;
use super::work::{Contraction, Linear, Side};
use lapidary_hardware::price::collective::{Group, Ring, all_to_all};
use lapidary_hardware::price::measured::Measured;
use lapidary_hardware::{Bytes, Gpu, LinkTopology, Precision};

/// Rates of one device and its links under the constants of a job.
#[derive(Clone, Copy, Debug)]
pub struct Rates<'a> {
    job: &'a Job<'a>,
    measured: Option<&'static Measured>,
    /// Peak operations per second at 16 bits, over the pace of the stack.
    peak: f64,
    /// The same outside tensor cores, which accumulates in 32 bits.
    plain: f64,
    /// Bytes per second of row kernels, over the pace of the stack.
    stream: f64,
    multiprocessors: f64,
    /// Rate of fused attention over that of the table; by itself where there is none.
    attention: Option<f64>,
}

/// What a machine file says of fused attention: over the table's rate at the same shape, else in operations a second.
fn attention(gpu: &Gpu) -> Option<f64> {
    let stated = gpu.sustained.attention?.0;
    match Measured::of(gpu) {
        Some(tables) => Some(stated / tables.attention_rate("flash-2", STATED_HEAD, STATED_LENGTH)?),
        None => Some(stated),
    }
}

/// Head size and sequence that machine files state attention at.
const STATED_HEAD: f64 = 128.0;
const STATED_LENGTH: f64 = 2048.0;

/// Sides of the tiles that a product is cut into, and their rate over the largest one's.
const TILES: [(f64, f64, f64); 5] =
    [(256.0, 128.0, 1.0), (128.0, 256.0, 1.0), (128.0, 128.0, 0.95), (128.0, 64.0, 0.82), (64.0, 64.0, 0.62)];
/// A contraction is split over multiprocessors in parts of this length: hardware/data/a100/gemm.csv shows no gain of
/// finer ones.
const SPLIT: f64 = 4096.0;
/// Rows of queries that one block of flash attention owns.
const FLASH_ROWS: f64 = 128.0;
/// Time of a product whose result is one head wide, over that of one which contracts over a head.
const NARROW: f64 = 0.8;
/// What flash attention reaches of the peak where no table tells.
const FLASH_OF_PEAK: f64 = 0.45;

/// A matrix product `[m, k] x [k, n]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Rows of the result.
    pub m: f64,
    /// Columns of the result.
    pub n: f64,
    /// Length of the contraction.
    pub k: f64,
}

impl Product {
    /// Operations.
    pub fn flops(&self) -> f64 {
        2.0 * self.m * self.n * self.k
    }
}

impl<'a> Rates<'a> {
    /// The rates of a job.
    pub fn new(job: &'a Job<'a>, gpu: &Gpu) -> Rates<'a> {
        let (pace, physics) = (job.stack.pace, job.physics);
        let stated = gpu.peak.get(&Precision::Bf16).map_or(1e14, |peak| peak.0);
        // What a machine file says was reached, over what the devices of the fitted runs reach of their peaks.
        let peak = gpu.sustained.matmul.map_or(stated, |rate| rate.0 / physics.best_product);
        let bandwidth =
            gpu.sustained.memory.map_or(gpu.memory.bandwidth.0, |rate| rate.0 / physics.best_stream);
        Rates {
            job,
            measured: Measured::of(gpu),
            peak: peak / pace,
            plain: gpu.peak.get(&Precision::Fp32).map_or(peak, |plain| plain.0) / pace,
            stream: bandwidth * physics.stream / pace,
            attention: attention(gpu),
            multiprocessors: gpu.multiprocessor.count as f64,
        }
    }

    /// Seconds of a matrix product.
    pub fn product(&self, product: Product) -> f64 {
        let physics = self.job.physics;
        let Product { m, n, k } = product;
        let ideal = product.flops() / (self.peak * physics.product_peak);
        let ramp = 1.0 + physics.product_ramp / k;
        let waves = 1.0 + physics.product_waves * (self.wave_loss(product) - 1.0);
        let aligned = [m, n, k].iter().all(|side| side % 8.0 == 0.0);
        let alignment = if aligned { 1.0 } else { 1.0 / physics.product_unaligned };
        let traffic = 2.0 * (m * k + k * n + m * n) / self.stream;
        (ideal * ramp * waves * alignment).max(traffic) + physics.gap
    }

    /// Time over that of a device whose multiprocessors are all busy all the time, with the best of the tiles.
    fn wave_loss(&self, product: Product) -> f64 {
        let Product { m, n, k } = product;
        let loss = |(rows, columns, rate): (f64, f64, f64)| {
            let tiles = (m / rows).ceil() * (n / columns).ceil();
            let splits = (k / SPLIT).floor().clamp(1.0, (self.multiprocessors / tiles).max(1.0));
            let work = m * n / (rows * columns);
            let slots = (tiles * splits / self.multiprocessors).ceil() * self.multiprocessors;
            slots / splits / work / rate
        };
        TILES.into_iter().map(loss).fold(f64::INFINITY, f64::min)
    }

    /// Seconds of products of linear layers over `tokens` rows.
    pub fn linears(&self, linears: &[Linear], tokens: f64) -> f64 {
        let each = |linear: &Linear| {
            let time = self.product(linear.product(tokens));
            if linear.side == Side::Weight { time / self.job.physics.product_weight_gradient } else { time }
        };
        linears.iter().map(each).sum()
    }

    /// Seconds of attention's contractions of `sequences` sequences as batched products. One whose result is only a
    /// head wide fills tiles about as badly as one that contracts over a head.
    pub fn contractions(&self, contractions: &[Contraction], sequences: f64) -> f64 {
        let (head, keys) = (self.job.shape.head_dim, self.job.batch.seq_len as f64);
        let each = |one: &Contraction| {
            let (flops, bytes) = (one.flops * sequences, one.bytes * sequences);
            let over_head = self.batched(flops, head, bytes);
            if one.over_head { over_head } else { self.batched(flops, keys, bytes).max(over_head * NARROW) }
        };
        contractions.iter().map(each).sum()
    }

    /// Seconds of a batched product of attention that contracts over `k` and moves `bytes`. One whose rows are no multiple
    /// of 8 elements leaves the tensor cores (bigscience-workshop/bigscience, train/tr11-176B-ml/chronicles-prequel.md,
    /// "NHEADs comparison": heads of 108 take a step from 121 to 163 s; vectorch-ai/ScaleLLM issue 48).
    fn batched(&self, flops: f64, k: f64, bytes: f64) -> f64 {
        let physics = self.job.physics;
        let rate = match k % 8.0 == 0.0 {
            true => self.peak * k / (k + physics.batched_ramp),
            false => self.plain,
        };
        (flops / (rate * physics.product_peak)).max(bytes / self.stream) + physics.gap
    }

    /// Seconds of causal flash attention of `sequences` sequences, forward and backward: the table's rate is that of
    /// both together, half of the square counted.
    pub fn flash(&self, forward: &[Contraction], backward: &[Contraction], sequences: f64) -> (f64, f64) {
        let (physics, shape) = (self.job.physics, &self.job.shape);
        // Ranks that share a sequence work on one rank's part of it at a time.
        let ranks = self.job.layout.context as f64;
        let length = self.job.batch.seq_len as f64 / ranks;
        let flops = |pass: &[Contraction]| 0.5 * sequences * pass.iter().map(|one| one.flops).sum::<f64>();
        let (forward, backward) = (flops(forward), flops(backward));
        let table =
            self.measured.and_then(|m| m.attention_rate(self.job.attention.name(), shape.head_dim, length));
        let factor = match self.job.attention {
            super::AttentionKernel::Flash1Triton => physics.flash_triton,
            _ => physics.flash,
        };
        let pace = self.job.stack.pace;
        let rate = match table {
            Some(rate) => rate * self.attention.unwrap_or(1.0) / pace,
            None => self.attention.map_or(self.peak * FLASH_OF_PEAK, |rate| rate / pace),
        };
        let rate = rate * factor;
        let blocks = sequences * ranks * shape.heads / self.job.tp() * (length / FLASH_ROWS).ceil();
        let slots = (blocks / self.multiprocessors).ceil() * self.multiprocessors;
        let time =
            (forward + backward) / rate * if blocks < self.multiprocessors { slots / blocks } else { 1.0 };
        let share = forward / (forward + physics.flash_forward * backward);
        (time * share + physics.gap, time * (1.0 - share) + physics.gap)
    }

    /// Seconds of row kernels that move `bytes`.
    pub fn stream(&self, bytes: f64) -> f64 {
        bytes / self.stream
    }

    /// Seconds of an all-reduce over the tensor-parallel ranks.
    pub fn tensor_all_reduce(&self, bytes: f64) -> f64 {
        let ranks = self.job.layout.tensor;
        if ranks <= 1 {
            return 0.0;
        }
        self.all_reduce(ranks, 1, bytes)
    }

    /// Seconds of an all-reduce over `ranks` ranks `stride` apart. Between nodes NCCL takes a ring through all ranks or two
    /// trees over the nodes, whose edges leave a node's adapters `2 (nodes - 1) / nodes` of the data
    /// (Sanders, Speck and Träff, Parallel Computing 35, 2009; NCCL 2.4).
    pub fn all_reduce(&self, ranks: u64, stride: u64, bytes: f64) -> f64 {
        let nodes = Ring::new(self.job.machine, Group { size: ranks, stride }).nodes;
        self.swept(ranks, stride, bytes, nodes, 1.0)
    }

    /// Seconds of an all-gather of `bytes`, or of a reduce-scatter, which have rings alone.
    pub fn all_gather(&self, ranks: u64, stride: u64, bytes: f64) -> f64 {
        self.swept(ranks, stride, bytes, ranks, 0.5) / 2.0
    }

    /// Seconds that the first byte of a broadcast takes to the last of `ranks` ranks, `stride` apart.
    pub fn broadcast_latency(&self, ranks: u64, stride: u64) -> f64 {
        Ring::new(self.job.machine, Group { size: ranks, stride }).broadcast(Bytes(0.0)).0
    }

    /// Two sweeps of `bytes` over a group, which send `2 (hops - 1) / hops` of them through a node's adapters and `inner`
    /// of them over its links.
    fn swept(&self, ranks: u64, stride: u64, bytes: f64, hops: u64, inner: f64) -> f64 {
        if ranks <= 1 {
            return 0.0;
        }
        let node = self.job.machine.node.devices;
        if ranks * stride <= node {
            return self.inside(ranks, stride, bytes);
        }
        let ring = Ring::new(self.job.machine, Group { size: ranks, stride });
        let part = 2.0 * (hops - 1) as f64 / hops as f64;
        let rate = ring.bandwidth.0 * self.job.physics.outer_collective / self.job.stack.network;
        let near = (node / stride).max(1).min(ranks);
        let latency = ring.all_reduce(Bytes(0.0)).0.min(self.tree_latency(ring));
        let local = if near > 1 { self.inside(near, stride, bytes * inner) } else { 0.0 };
        (bytes * part / rate).max(local) + latency
    }

    /// Two sweeps through a binary tree of nodes.
    fn tree_latency(&self, ring: Ring) -> f64 {
        let inside = self.job.machine.node.devices as f64 * ring.inner_step.0;
        ring.call.0 + 2.0 * ((ring.nodes as f64).log2().ceil() * ring.outer_step.0 + inside)
    }

    /// Seconds in which every one of `ranks` ranks, `stride` apart, sends its part of `bytes` to each other.
    pub fn all_to_all(&self, ranks: u64, stride: u64, bytes: f64) -> f64 {
        let found = all_to_all(self.job.machine, Group { size: ranks, stride }, Bytes(bytes));
        let physics = self.job.physics;
        let across = found.across.0 * self.job.stack.network / physics.outer_collective;
        (found.inside.0 * physics.inner_collective).max(across) + found.latency.0
    }

    fn inside(&self, ranks: u64, stride: u64, bytes: f64) -> f64 {
        let machine = self.job.machine;
        let switch = machine.node.links.as_ref().is_some_and(|l| l.topology == LinkTopology::Switch);
        let table = self.measured.filter(|_| switch && ranks * stride <= machine.node.devices);
        let ring = Ring::new(machine, Group { size: ranks, stride });
        let table = table.and_then(|measured| measured.all_reduce_at(ranks, bytes, ring.bandwidth.0));
        let rule = || ring.all_reduce(Bytes(bytes)).0;
        table.unwrap_or_else(rule) * self.job.physics.inner_collective
    }
}
