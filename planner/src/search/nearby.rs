//! The smallest change to a plan that does not fit that makes it fit.

use super::gpu::{Degrees as Split, GpuSpace, of};
use super::only::Only;
use crate::plan::{Degrees, GpuPlan, Recompute};

impl GpuSpace<'_> {
    /// The fitting plan with the fewest other decisions, as those decisions; pinned ones stay. Degrees are changed only
    /// where nothing under the plan's own fits, the nearest first.
    pub fn smallest_change(&self, plan: &GpuPlan, only: &Only) -> Option<String> {
        let own = of(plan);
        let away = |degrees: &Split| {
            let ratio = |a: u64, b: u64| (a as f64 / b as f64).log2().abs();
            let pairs = [(degrees.0, own.0), (degrees.1, own.1), (degrees.2, own.2)];
            let changed = pairs.iter().filter(|(a, b)| a != b).count();
            (changed, pairs.iter().map(|(a, b)| ratio(*a, *b)).sum::<f64>())
        };
        let mut all = self.degrees(only);
        all.retain(|degrees| self.impossible(*degrees).is_none());
        all.sort_by(|a, b| {
            let (one, other) = (away(a), away(b));
            one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)).then(a.cmp(b))
        });
        let nearest = all.into_iter().find_map(|degrees| self.nearest_under(plan, degrees, only))?;
        let (from, to) = (Degrees::Gpu(*plan).settings(), Degrees::Gpu(nearest).settings());
        let old = |name: &str| from.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        // Lengths of stages follow their number.
        let follows = |name: &str| name.ends_with("-stage") && plan.pp != nearest.pp;
        let differ = to.iter().filter(|(name, value)| !follows(name) && old(name).as_ref() != Some(value));
        let changes = differ.map(|(name, value)| match old(name) {
            Some(old) => format!("{name} {value} instead of {old}"),
            None => format!("{name} {value}"),
        });
        Some(changes.collect::<Vec<_>>().join(", "))
    }

    /// The fitting plan under some degrees that is nearest to another.
    fn nearest_under(&self, plan: &GpuPlan, degrees: Split, only: &Only) -> Option<GpuPlan> {
        let (work, capacity) = (self.work(degrees.0)?, self.machine.device.memory().0);
        let mut best: Option<(usize, u64, GpuPlan)> = None;
        for node in self.nodes(degrees, only) {
            for stages in self.stages(&node, only) {
                for sharding in self.shardings(&node.plan, only) {
                    for recompute in Recompute::ALL {
                        let all = GpuSpace::again(stages.most, recompute, only);
                        for recompute_layers in all.filter(|layers| layers.is_none_or(u64::is_power_of_two)) {
                            let other = GpuPlan {
                                sharding,
                                recompute,
                                recompute_layers,
                                chunks: stages.chunks,
                                first_layers: stages.first,
                                last_layers: stages.last,
                                ..node.plan
                            };
                            let far = Degrees::Gpu(*plan).distance(&Degrees::Gpu(other));
                            let step = plan.micro_batch.abs_diff(other.micro_batch);
                            if best.as_ref().is_some_and(|(known, near, _)| (*known, *near) <= (far, step)) {
                                continue;
                            }
                            if GpuSpace::bytes(&self.job(&other, work)) <= capacity {
                                best = Some((far, step, other));
                            }
                        }
                    }
                }
            }
        }
        best.map(|(_, _, plan)| plan)
    }
}
