//! The decisions of a plan for GPUs, in the order in which the search takes them: degrees, ranks that share experts,
//! micro-batch and sequence parallelism ([`Node`]); then chunks and stages, sharding, and how many layers are computed again.

use super::Evaluated;
use super::divisors;
use super::only::{Only, open};
use crate::accuracy::error_bar;
use crate::cost::physical::Physical;
use crate::document::ErrorBar;
use crate::plan::{GpuPlan, Recompute, Sharding};
use crate::request::Batch;
use crate::step::data::{Traffic, traffic};
use crate::step::estimate::{estimate, estimate_by};
use crate::step::memory::ROOM;
use crate::step::prices::Prices;
use crate::step::rates::Rates;
use crate::step::stack::Fitted;
use crate::step::{Job, Work, occupied};
use lapidary_hardware::{Gpu, HardwareSpec};
use lapidary_models::ModelSpec;
use std::collections::BTreeMap;

/// Where to look, with what plans of one tensor-parallel degree share.
pub(crate) struct GpuSpace<'a> {
    pub machine: &'a HardwareSpec,
    pub gpu: &'a Gpu,
    pub model: &'a ModelSpec,
    pub batch: Batch,
    pub physical: &'a Physical,
    /// What a rank does, by tensor-parallel degree; or why there is none.
    works: BTreeMap<u64, Result<Work, String>>,
}

/// Degrees of tensor, context, pipeline and data parallelism.
pub(crate) type Degrees = (u64, u64, u64, u64);

/// The degrees of a plan.
pub(crate) fn of(plan: &GpuPlan) -> Degrees {
    (plan.tp, plan.cp, plan.pp, plan.dp)
}

/// A plan with degrees and nothing else decided.
pub(crate) fn with((tp, cp, pp, dp): Degrees, layers: u64) -> GpuPlan {
    GpuPlan { cp, ..GpuPlan::of_degrees(tp, pp, dp, layers) }
}

/// Tokens that a rank keeps of a sequence at least: the space leaves out plans whose blocks of keys are smaller.
const LEAST_TOKENS: u64 = 1024;

/// A plan whose stages, sharding and recomputation are still open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub plan: GpuPlan,
}

/// Chunks a rank, and layers of the first and of the last stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stages {
    pub chunks: u64,
    pub first: u64,
    pub last: u64,
    /// Layers of the longest stage.
    pub most: u64,
}

/// How many layers fewer than an even share the first and the last stage are tried with: embedding and head stand there.
const LIGHTER_FIRST: u64 = 2;
const LIGHTER_LAST: u64 = 4;

impl<'a> GpuSpace<'a> {
    /// The space of a machine.
    pub fn new(
        machine: &'a HardwareSpec,
        gpu: &'a Gpu,
        model: &'a ModelSpec,
        batch: Batch,
        physical: &'a Physical,
    ) -> GpuSpace<'a> {
        let work = |tp: u64| (tp, physical.account(model, tp, batch.seq_len));
        let works = divisors(machine.devices()).into_iter().map(work).collect();
        GpuSpace { machine, gpu, model, batch, physical, works }
    }

    /// What a rank among `tp` does.
    pub fn work(&self, tp: u64) -> Option<&Work> {
        self.works.get(&tp)?.as_ref().ok()
    }

    /// All degrees that multiply to the devices.
    pub fn degrees(&self, only: &Only) -> Vec<Degrees> {
        let world = self.machine.devices();
        let mut all = Vec::new();
        for tp in divisors(world) {
            for cp in divisors(world / tp).into_iter().filter(|cp| self.shares(*cp)) {
                let rest = world / tp / cp;
                all.extend(divisors(rest).into_iter().map(|pp| (tp, cp, pp, rest / pp)));
            }
        }
        all.retain(|degrees| only.degrees(*degrees));
        all
    }

    /// Whether so many ranks may share a sequence: two blocks each, so that the causal mask is dealt evenly, no fewer
    /// tokens than make sense, and attention as one kernel.
    fn shares(&self, cp: u64) -> bool {
        let length = self.batch.seq_len;
        cp == 1
            || (self.physical.stack.attention.flash()
                && length.is_multiple_of(2 * cp)
                && length / cp >= LEAST_TOKENS)
    }

    /// Why no plan has these degrees.
    pub fn impossible(&self, (tp, _, pp, dp): Degrees) -> Option<String> {
        let (layers, global) = (self.model.n_layers, self.batch.global);
        if pp > layers {
            return Some(format!("{layers} layers are fewer than {pp} stages"));
        }
        if !global.is_multiple_of(dp) {
            return Some(format!("a global batch of {global} does not divide by dp {dp}"));
        }
        self.works.get(&tp).and_then(|work| work.as_ref().err().cloned())
    }

    /// Micro-batches and sequence parallelism under some degrees.
    pub fn nodes(&self, degrees: Degrees, only: &Only) -> Vec<Node> {
        let (tp, cp, _, dp) = degrees;
        let local = self.batch.global / dp;
        let splits_rows = tp > 1 && self.batch.seq_len.is_multiple_of(tp * cp);
        let choices: &[bool] = if splits_rows { &[true, false] } else { &[false] };
        let base = with(degrees, self.model.n_layers);
        let mut nodes = Vec::new();
        for ep in self.expert_ranks(degrees).into_iter().filter(|found| open(only.ep, *found)) {
            nodes.extend(GpuSpace::nodes_of(local, choices, GpuPlan { ep, ..base }, only));
        }
        nodes
    }

    /// Ranks that may share the experts of a layer: they divide both, and hold whole sequences.
    fn expert_ranks(&self, (_, cp, _, dp): Degrees) -> Vec<u64> {
        match self.model.experts.filter(|_| cp == 1) {
            Some(experts) => {
                divisors(dp).into_iter().filter(|ep| experts.count.is_multiple_of(*ep)).collect()
            }
            None => vec![1],
        }
    }

    fn nodes_of(local: u64, choices: &[bool], base: GpuPlan, only: &Only) -> Vec<Node> {
        let mut nodes = Vec::new();
        for micro_batch in divisors(local).into_iter().filter(|found| open(only.micro_batch, *found)) {
            for rows in choices.iter().copied().filter(|found| open(only.sequence_parallel, *found)) {
                let accumulation = local / micro_batch;
                let plan = GpuPlan { micro_batch, accumulation, sequence_parallel: rows, ..base };
                nodes.push(Node { plan });
            }
        }
        nodes
    }

    /// Ways to cut the layers into stages: in chunks where layers and micro-batches divide, else with lighter ends.
    pub fn stages(&self, node: &Node, only: &Only) -> Vec<Stages> {
        let (layers, pp) = (self.model.n_layers, node.plan.pp);
        let even = layers / pp;
        let mut all = if pp == 1 {
            vec![Stages { chunks: 1, first: layers, last: layers, most: layers }]
        } else {
            splits(layers, pp)
        };
        if pp > 1 && layers.is_multiple_of(pp) && node.plan.accumulation.is_multiple_of(pp) {
            let chunks = divisors(even).into_iter().filter(|chunks| *chunks > 1);
            all.extend(chunks.map(|chunks| Stages { chunks, first: even, last: even, most: even }));
        }
        all.retain(|one| only.stages(one.chunks, one.first, one.last));
        all
    }

    /// Shardings that mean something for some degrees.
    pub fn shardings(&self, plan: &GpuPlan, only: &Only) -> Vec<Sharding> {
        let dp = plan.dp * plan.cp;
        let per_node = self.machine.node.devices / plan.tp;
        let means = |sharding: &Sharding| match sharding {
            Sharding::None => true,
            Sharding::Optimizer | Sharding::Full => dp > 1,
            Sharding::OptimizerInNode => false,
            Sharding::Hybrid => per_node > 1 && dp > per_node && dp.is_multiple_of(per_node),
        };
        Sharding::ALL.into_iter().filter(means).filter(|found| open(only.sharding, *found)).collect()
    }

    /// Recomputations of stages of up to `most` layers, by kind: none, selective, full of one layer to all.
    pub fn again(most: u64, kind: Recompute, only: &Only) -> impl Iterator<Item = Option<u64>> {
        let some = if kind == Recompute::Full { 1..most } else { 1..1 };
        let only = *only;
        some.map(Some).chain([None]).filter(move |layers| only.again(kind, *layers))
    }

    /// Plans under a node.
    pub fn leaves(&self, node: &Node, only: &Only) -> u64 {
        let shardings = self.shardings(&node.plan, only).len() as u64;
        let kinds = |most: u64| {
            Recompute::ALL
                .into_iter()
                .map(|kind| GpuSpace::again(most, kind, only).count() as u64)
                .sum::<u64>()
        };
        self.stages(node, only).iter().map(|one| shardings * kinds(one.most)).sum()
    }

    /// The job of a plan.
    pub fn job<'b>(&'b self, plan: &GpuPlan, work: &'b Work) -> Job<'b> {
        self.physical.job(self.model, self.machine, self.batch, plan, work)
    }

    /// What the plans of a node share.
    pub fn prices(&self, node: &Node, work: &Work) -> Prices {
        let job = self.job(&node.plan, work);
        Prices::of(&job, &Rates::new(&job, self.gpu))
    }

    /// Traffic of a plan.
    pub fn traffic(&self, plan: &GpuPlan, work: &Work) -> Traffic {
        let job = self.job(plan, work);
        traffic(&job, &Rates::new(&job, self.gpu))
    }

    /// Bytes of a plan with the room it must leave.
    pub fn bytes(job: &Job<'_>) -> f64 {
        occupied(job).total() * ROOM
    }

    /// Seconds of a plan's step, its pipeline simulated.
    pub fn seconds(job: &Job<'_>, prices: &Prices, traffic: &Traffic) -> f64 {
        estimate_by(job, prices, traffic).step_s
    }

    /// A plan with everything that a document says of it.
    pub fn evaluated(&self, plan: &GpuPlan) -> Evaluated {
        let degrees = crate::plan::Degrees::Gpu(*plan);
        if let Some(reason) = self.impossible(of(plan)) {
            return Evaluated::impossible(degrees, reason);
        }
        let priced = self.work(plan.tp).and_then(|work| {
            let job = self.job(plan, work);
            Some((estimate(&job)?, job))
        });
        let Some((found, job)) = priced else {
            return Evaluated::impossible(degrees, "the machine has no GPU".to_string());
        };
        let (percent, bar, like) = error_bar(&job.layout, &self.physical.stack);
        let bar = ErrorBar {
            percent,
            like: like.to_string(),
            runs: bar.runs as u64,
            groups: bar.groups as u64,
            unmeasured_software: self.physical.stack.fitted == Fitted::Nothing,
        };
        let capacity = self.machine.device.memory();
        Evaluated {
            bar: Some(bar),
            ..Evaluated::priced(degrees, Physical::cost(&found), Physical::memory(&job), capacity)
        }
    }
}

/// Stages whose ends are as long as the others or some layers lighter.
fn splits(layers: u64, pp: u64) -> Vec<Stages> {
    let share = layers.div_ceil(pp);
    let mut all = Vec::new();
    for last in (share.saturating_sub(LIGHTER_LAST).max(1)..=share).rev() {
        for first in
            (share.saturating_sub(LIGHTER_FIRST).max(1)..=share + u64::from(pp == 2) * LIGHTER_LAST).rev()
        {
            let inner = layers.saturating_sub(first + last);
            let whole = first + last + inner == layers;
            let longest = if pp > 2 { inner.div_ceil(pp - 2) } else { 0 };
            let each = if pp > 2 { inner >= pp - 2 && longest <= share + 1 } else { inner == 0 };
            if whole && each {
                all.push(Stages { chunks: 1, first, last, most: longest.max(first).max(last) });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::job::split_layers;

    #[test]
    fn stages_hold_every_layer_once() {
        for layers in 1..70 {
            for pp in 2..=layers {
                let all = splits(layers, pp);
                assert!(!all.is_empty(), "{layers} layers on {pp} stages");
                for one in all {
                    let of = |stage| split_layers(layers, pp, (one.first, one.last), stage);
                    assert_eq!((0..pp).map(of).sum::<u64>(), layers);
                    assert_eq!((0..pp).map(of).max(), Some(one.most));
                    assert!((0..pp).all(|stage| of(stage) > 0));
                }
            }
        }
    }
}
