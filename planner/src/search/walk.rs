//! Branch and bound over the plans for GPUs.
//!
//! Nodes are taken by the least time that any plan under them can have ([`least`]). Under a node each plan's memory is
//! weighed and its closed form ([`bound`], never more than the simulated time) is held against the worst of the plans
//! that are kept; only what passes both is simulated. So the best plans are those of a search that simulates them all.
//! What is kept does not grow with the space: the best, one per kind; and for degrees under which nothing fits the plan
//! that is over by the least.

use super::gpu::{Degrees, GpuSpace, Node, Stages, of};
use super::only::Only;
use crate::plan::{GpuPlan, Recompute, Sharding};
use crate::request::Objective;
use crate::step::data::Traffic;
use crate::step::estimate::{bound, least};
use crate::step::prices::Prices;
use crate::step::{Again, Job, Work};
use std::collections::BTreeMap;

/// What a search counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Plans looked at one by one: the closed form of their time, and their memory.
    pub evaluated: u64,
    /// Of these, found to be over a device's memory.
    pub over: u64,
    /// Of these, simulated.
    pub simulated: u64,
    /// Plans left out with the node that they are under, or with one that computes more layers again and is over.
    pub left_out: u64,
    /// Degrees that cannot be built.
    pub impossible: u64,
}

/// A plan that is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Kept {
    pub plan: GpuPlan,
    pub seconds: f64,
    pub bytes: f64,
}

/// What a search finds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The best plans by rank, one per kind.
    pub best: Vec<Kept>,
    /// Of degrees under which nothing fits, the plan that is over by the least.
    pub over: BTreeMap<Degrees, Kept>,
    /// Degrees of which plans were left out without a look, and what they take at least.
    pub beaten: BTreeMap<Degrees, f64>,
    /// Degrees that cannot be built.
    pub impossible: Vec<Degrees>,
    pub tally: Tally,
    /// Whether it was not stopped.
    pub complete: bool,
}

/// A search.
pub(crate) struct Walk<'a> {
    pub space: &'a GpuSpace<'a>,
    pub only: Only,
    pub objective: Objective,
    /// Plans to keep.
    pub top: usize,
    /// Asked before each node; `true` ends the search.
    pub stop: &'a dyn Fn() -> bool,
}

/// Rounding of sums that a closed form and a simulation add up in another order.
const ROUNDING: f64 = 1e-9;

impl Walk<'_> {
    /// Searches.
    pub fn run(&self) -> Found {
        let mut found = Found { complete: true, ..Found::default() };
        let mut fits: BTreeMap<Degrees, bool> = BTreeMap::new();
        let nodes = self.nodes(&mut found);
        for (node, least, prices) in &nodes {
            if (self.stop)() {
                found.complete = false;
                break;
            }
            let degrees = of(&node.plan);
            if self.objective == Objective::StepTime && *least > self.worst(&found) {
                found.tally.left_out += self.space.leaves(node, &self.only);
                let known = found.beaten.entry(degrees).or_insert(*least);
                *known = known.min(*least);
                continue;
            }
            let Some(work) = self.space.work(node.plan.tp) else { continue };
            let fit = Visit { walk: self, node, work, prices }.run(&mut found);
            *fits.entry(degrees).or_default() |= fit;
        }
        // Degrees some of whose plans were not looked at are beaten, not refused.
        let unknown = |degrees: &Degrees| found.beaten.contains_key(degrees);
        let over =
            found.over.iter().filter(|(degrees, _)| fits.get(degrees) == Some(&false) && !unknown(degrees));
        found.over = over.map(|(degrees, kept)| (*degrees, *kept)).collect();
        found.beaten.retain(|degrees, _| fits.get(degrees) != Some(&true));
        found
    }

    /// Every node with the least time of its plans and their prices, the most promising first.
    fn nodes(&self, found: &mut Found) -> Vec<(Node, f64, Prices)> {
        let mut nodes = Vec::new();
        let mut known: BTreeMap<(u64, u64, u64, u64, bool), Prices> = BTreeMap::new();
        for degrees in self.space.degrees(&self.only) {
            let tp = degrees.0;
            let Some(work) = self.space.work(tp).filter(|_| self.space.impossible(degrees).is_none()) else {
                found.impossible.push(degrees);
                found.tally.impossible += 1;
                continue;
            };
            for node in self.space.nodes(degrees, &self.only) {
                let plan = &node.plan;
                let key = (tp, degrees.1, plan.ep, plan.micro_batch, plan.sequence_parallel);
                let prices = *known.entry(key).or_insert_with(|| self.space.prices(&node, work));
                let least = least(&self.space.job(&node.plan, work), &prices);
                nodes.push((node, least, prices));
            }
        }
        nodes.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.plan.cmp(&b.0.plan)));
        nodes
    }

    /// The worst of the plans that are kept, where as many are kept as are wanted; what is worse is of no use.
    fn worst(&self, found: &Found) -> f64 {
        match found.best.get(self.top.saturating_sub(1)) {
            Some(kept) => self.worth(kept) * (1.0 + ROUNDING),
            None => f64::INFINITY,
        }
    }

    fn worth(&self, kept: &Kept) -> f64 {
        match self.objective {
            Objective::StepTime => kept.seconds,
            Objective::Memory => kept.bytes,
        }
    }

    /// The order of plans: by the objective, then by the other quantity, then by their decisions.
    fn before(&self, a: &Kept, b: &Kept) -> bool {
        let key = |kept: &Kept| match self.objective {
            Objective::StepTime => (kept.seconds, kept.bytes),
            Objective::Memory => (kept.bytes, kept.seconds),
        };
        let (one, other) = (key(a), key(b));
        one.0.total_cmp(&other.0).then(one.1.total_cmp(&other.1)).then(a.plan.cmp(&b.plan)).is_lt()
    }

    fn keep(&self, found: &mut Found, kept: Kept) {
        let place = found.best.partition_point(|other| self.before(other, &kept));
        if place < self.top {
            found.best.insert(place, kept);
            found.best.truncate(self.top);
        }
    }
}

/// The plans under one node.
struct Visit<'a> {
    walk: &'a Walk<'a>,
    node: &'a Node,
    work: &'a Work,
    prices: &'a Prices,
}

impl Visit<'_> {
    /// Looks at all of them; whether any fits.
    fn run(&self, found: &mut Found) -> bool {
        let (space, only) = (self.walk.space, &self.walk.only);
        let stages = space.stages(self.node, only);
        let mut fits = false;
        for sharding in space.shardings(&self.node.plan, only) {
            let plan = |one: &Stages| GpuPlan {
                sharding,
                chunks: one.chunks,
                first_layers: one.first,
                last_layers: one.last,
                ..self.node.plan
            };
            // Of one kind: cuts without chunks, then those of each number of chunks.
            for kind in stages.chunk_by(|a, b| a.chunks == b.chunks) {
                let traffic: Vec<Traffic> =
                    kind.iter().map(|one| space.traffic(&plan(one), self.work)).collect();
                for recompute in Recompute::ALL {
                    let mut best: Option<Kept> = None;
                    for (one, traffic) in kind.iter().zip(&traffic) {
                        let base = GpuPlan { recompute, ..plan(one) };
                        fits |= self.recomputations(&base, one.most, traffic, &mut best, found);
                    }
                    if let Some(kept) = best {
                        self.walk.keep(found, kept);
                    }
                }
            }
        }
        fits
    }

    /// Every number of layers to compute again under one cut and sharding; whether any fits. The plan that computes all
    /// again takes the least memory, so it says whether the others are worth a look.
    fn recomputations(
        &self,
        base: &GpuPlan,
        most: u64,
        traffic: &Traffic,
        best: &mut Option<Kept>,
        found: &mut Found,
    ) -> bool {
        let (space, only) = (self.walk.space, &self.walk.only);
        let capacity = space.machine.device.memory().0;
        let mut job = space.job(base, self.work);
        let count = GpuSpace::again(most, base.recompute, only).count() as u64;
        let Some(largest) = GpuSpace::again(most, base.recompute, only).last() else { return false };
        set(&mut job, largest);
        let bytes = GpuSpace::bytes(&job);
        if bytes > capacity {
            (found.tally.evaluated, found.tally.over) = (found.tally.evaluated + 1, found.tally.over + 1);
            found.tally.left_out += count - 1;
            let seconds = bound(&job, self.prices, traffic);
            refuse(found, Kept { plan: GpuPlan { recompute_layers: largest, ..*base }, seconds, bytes });
            return false;
        }
        found.tally.evaluated += count;
        for layers in GpuSpace::again(most, base.recompute, only) {
            set(&mut job, layers);
            let plan = GpuPlan { recompute_layers: layers, ..*base };
            self.candidate(&job, plan, traffic, best, found);
        }
        true
    }

    fn candidate(
        &self,
        job: &Job<'_>,
        plan: GpuPlan,
        traffic: &Traffic,
        best: &mut Option<Kept>,
        found: &mut Found,
    ) {
        let walk = self.walk;
        let worst = walk
            .worst(found)
            .min(best.as_ref().map_or(f64::INFINITY, |kept| walk.worth(kept) * (1.0 + ROUNDING)));
        if walk.objective == Objective::StepTime && bound(job, self.prices, traffic) > worst {
            return;
        }
        let bytes = GpuSpace::bytes(job);
        if bytes > walk.space.machine.device.memory().0 {
            found.tally.over += 1;
            return;
        }
        if walk.objective == Objective::Memory && bytes > worst {
            return;
        }
        found.tally.simulated += 1;
        let kept = Kept { plan, seconds: GpuSpace::seconds(job, self.prices, traffic), bytes };
        if best.as_ref().is_none_or(|known| walk.before(&kept, known)) {
            *best = Some(kept);
        }
    }
}

fn set(job: &mut Job<'_>, layers: Option<u64>) {
    job.layout.again = Again::Layers(layers.unwrap_or(u64::MAX));
}

/// Keeps the plan of its degrees that is over by the least.
fn refuse(found: &mut Found, kept: Kept) {
    let degrees = of(&kept.plan);
    let known = found.over.entry(degrees).or_insert(kept);
    if (kept.bytes, kept.seconds) < (known.bytes, known.seconds) {
        *known = kept;
    }
}

/// The baseline of a user who takes what Megatron-LM offers: no chunks, stages as they divide.
pub(crate) fn plain(only: Only, sharding: Sharding) -> Only {
    Only { sharding: Some(sharding), chunks: Some(1), ..only }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::physical::Physical;
    use crate::request::Batch;
    use crate::step::estimate::estimate_by;
    use lapidary_hardware::{Bytes, Device, HardwareSpec, builtin::machine};
    use lapidary_models::{ModelSpec, spec::Position};
    use proptest::prelude::*;

    fn model(layers: u64, heads: u64, head_dim: u64, inner: u64, vocab: u64) -> ModelSpec {
        let mut model = lapidary_models::builtin("amber").unwrap();
        (model.n_layers, model.n_heads, model.n_kv_heads, model.head_dim) = (layers, heads, heads, head_dim);
        (model.d_model, model.d_ff, model.vocab) = (heads * head_dim, inner, vocab);
        if let Position::Rope(rope) = &mut model.pos {
            rope.rot_dims = head_dim;
        }
        model
    }

    fn cluster(devices: u64, gib: f64) -> HardwareSpec {
        let mut cluster = machine("amber-cluster").unwrap().with_devices(devices).unwrap();
        if let Device::Gpu(gpu) = &mut cluster.device {
            gpu.memory.capacity = Bytes(gib * 1024f64.powi(3));
        }
        cluster
    }

    /// Every plan of a space, simulated; `None` for the seconds of those that do not fit.
    fn everything(space: &GpuSpace<'_>) -> Vec<(Kept, f64, bool)> {
        let (only, capacity) = (Only::default(), space.machine.device.memory().0);
        let mut all = Vec::new();
        for degrees in space.degrees(&only) {
            let Some(work) = space.work(degrees.0) else { continue };
            if space.impossible(degrees).is_some() {
                continue;
            }
            for node in space.nodes(degrees, &only) {
                let prices = space.prices(&node, work);
                let under = least(&space.job(&node.plan, work), &prices);
                for one in space.stages(&node, &only) {
                    for sharding in space.shardings(&node.plan, &only) {
                        for recompute in Recompute::ALL {
                            for recompute_layers in GpuSpace::again(one.most, recompute, &only) {
                                let plan = GpuPlan {
                                    sharding,
                                    recompute,
                                    recompute_layers,
                                    chunks: one.chunks,
                                    first_layers: one.first,
                                    last_layers: one.last,
                                    ..node.plan
                                };
                                let job = space.job(&plan, work);
                                let traffic = space.traffic(&plan, work);
                                let seconds = estimate_by(&job, &prices, &traffic).step_s;
                                let closed = bound(&job, &prices, &traffic);
                                assert!(closed <= seconds * (1.0 + ROUNDING), "{plan}: {closed} {seconds}");
                                assert!(under <= closed * (1.0 + ROUNDING), "{plan}: {under} {closed}");
                                let bytes = GpuSpace::bytes(&job);
                                all.push((Kept { plan, seconds, bytes }, closed, bytes <= capacity));
                            }
                        }
                    }
                }
            }
        }
        all
    }

    /// The best of each kind among all plans.
    fn best_of_all(walk: &Walk<'_>, all: &[(Kept, f64, bool)]) -> Vec<Kept> {
        let mut kinds: BTreeMap<_, Kept> = BTreeMap::new();
        for (kept, _, _) in all.iter().filter(|(_, _, fits)| *fits) {
            let p = &kept.plan;
            let kind = (of(p), p.ep, p.micro_batch, p.sequence_parallel, p.chunks, p.sharding, p.recompute);
            let known = kinds.entry(kind).or_insert(*kept);
            if walk.before(kept, known) {
                *known = *kept;
            }
        }
        let mut best: Vec<Kept> = kinds.into_values().collect();
        best.sort_by(
            |a, b| if walk.before(a, b) { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater },
        );
        best.truncate(walk.top);
        best
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Against the simulation of every plan: the same best plans, the same refusals, and no closed form above its
        /// simulation, on models and clusters of any size.
        #[test]
        fn the_search_finds_what_a_search_of_everything_finds(
            layers in 1u64..9, heads in prop::sample::select(vec![2u64, 4, 6, 8]), head_dim in prop::sample::select(vec![16u64, 64]),
            inner in 1u64..40, vocab in 100u64..80000, devices in prop::sample::select(vec![1u64, 2, 4, 8, 16]),
            local in 1u64..7, seq in prop::sample::select(vec![64u64, 512, 2048, 4096]), room in 0.0f64..1.0,
            stack in prop::sample::select(vec!["lapidary", "megatron-2022", "fsdp-eager", "internevo"]),
            memory in any::<bool>(), top in 1usize..6,
        ) {
            let model = model(layers, heads, head_dim, inner * 16, vocab);
            // Between what holds the context alone and what holds everything.
            let cluster = cluster(devices, 1.2 + 4.0 * room);
            let physical = Physical::of(stack).unwrap();
            let batch = Batch { global: devices * local, seq_len: seq };
            let space = GpuSpace::new(&cluster, cluster.gpu().unwrap(), &model, batch, &physical);
            let objective = if memory { Objective::Memory } else { Objective::StepTime };
            let walk = Walk { space: &space, only: Only::default(), objective, top, stop: &|| false };
            let (found, all) = (walk.run(), everything(&space));
            let wanted = best_of_all(&walk, &all);
            let plans = |kept: &[Kept]| kept.iter().map(|kept| kept.plan.to_string()).collect::<Vec<_>>();
            prop_assert_eq!(plans(&found.best), plans(&wanted));
            for degrees in found.over.keys() {
                let own = |plan: &GpuPlan| of(plan) == *degrees;
                prop_assert!(all.iter().all(|(kept, _, fits)| !fits || !own(&kept.plan)));
            }
            prop_assert_eq!(found.tally.evaluated + found.tally.left_out, all.len() as u64);
            prop_assert!(found.complete);
        }
    }

    #[test]
    fn a_search_that_is_stopped_keeps_the_best_so_far() {
        let (model, cluster) =
            (lapidary_models::builtin("amber").unwrap(), machine("amber-cluster").unwrap());
        let physical = Physical::default();
        let batch = Batch { global: 2240, seq_len: 2048 };
        let space = GpuSpace::new(&cluster, cluster.gpu().unwrap(), &model, batch, &physical);
        let asked = std::cell::Cell::new(0);
        let after = |nodes: u32| {
            let asked = &asked;
            asked.set(0);
            move || {
                asked.set(asked.get() + 1);
                asked.get() > nodes
            }
        };
        let seconds = |nodes| {
            let stop = after(nodes);
            let walk = Walk {
                space: &space,
                only: Only::default(),
                objective: Objective::StepTime,
                top: 1,
                stop: &stop,
            };
            let found = walk.run();
            (found.best.first().map_or(f64::INFINITY, |kept| kept.seconds), found.complete)
        };
        let times: Vec<f64> = [3, 10, 100].into_iter().map(|nodes| seconds(nodes).0).collect();
        assert!(times.windows(2).all(|pair| pair[1] <= pair[0]) && times[2].is_finite(), "{times:?}");
        assert_eq!((seconds(3).1, seconds(u32::MAX).1), (false, true));
        assert_eq!(seconds(0).0, f64::INFINITY);
    }
}
