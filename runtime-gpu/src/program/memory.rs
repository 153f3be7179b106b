//! The memory plan: temporary buffers share one arena, each only while it is alive.
//!
//! [`lifetimes`] says from the steps when each buffer is alive; [`plan_memory`] is a plain function over intervals that
//! places the largest buffers first, each into the tightest gap between the placed ones it is alive with.
use crate::program::{Access, Step};
use std::collections::BTreeMap;

/// Every offset is a multiple of this many bytes, the alignment that a device allocation has as well.
pub const ALIGNMENT: u64 = 256;

/// A buffer's size and the first and last position (both included) at which it is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Size in bytes.
    pub bytes: u64,
    /// First position.
    pub first: usize,
    /// Last position, not before `first`.
    pub last: usize,
}

impl Interval {
    /// Whether the two are alive at one moment.
    pub fn meets(&self, other: &Interval) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Where each buffer lies, in the order of the intervals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Byte offset of each buffer.
    pub offsets: Vec<u64>,
    /// Size of the arena.
    pub peak_bytes: u64,
    /// Size without sharing.
    pub naive_bytes: u64,
    /// Most bytes alive at one moment: no plan can be smaller.
    pub live_bytes: u64,
}

/// Places the intervals in an arena so that no two that are alive together overlap.
pub fn plan_memory(intervals: &[Interval]) -> MemoryPlan {
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(intervals[i].bytes), intervals[i].first, i));
    let mut offsets = vec![0; intervals.len()];
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let mut busy: Vec<(u64, u64)> = placed
            .iter()
            .filter(|&&j| intervals[j].meets(&intervals[i]))
            .map(|&j| (offsets[j], offsets[j] + aligned(intervals[j].bytes)))
            .collect();
        busy.sort_unstable();
        offsets[i] = tightest_gap(&busy, aligned(intervals[i].bytes));
        placed.push(i);
    }
    let peak_bytes =
        (0..intervals.len()).map(|i| offsets[i] + aligned(intervals[i].bytes)).max().unwrap_or(0);
    let naive_bytes = intervals.iter().map(|i| aligned(i.bytes)).sum();
    MemoryPlan { offsets, peak_bytes, naive_bytes, live_bytes: most_alive(intervals) }
}

fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// The offset of the smallest gap in the sorted busy ranges that holds `bytes`, or the end of the last range.
fn tightest_gap(busy: &[(u64, u64)], bytes: u64) -> u64 {
    let mut best: Option<(u64, u64)> = None;
    let mut end = 0;
    for &(from, to) in busy {
        if from > end && from - end >= bytes && best.is_none_or(|(gap, _)| from - end < gap) {
            best = Some((from - end, end));
        }
        end = end.max(to);
    }
    best.map_or(end, |(_, offset)| offset)
}

fn most_alive(intervals: &[Interval]) -> u64 {
    let alive_at = |at: usize| -> u64 {
        intervals.iter().filter(|i| i.first <= at && at <= i.last).map(|i| aligned(i.bytes)).sum()
    };
    intervals.iter().map(|i| alive_at(i.first)).max().unwrap_or(0)
}

/// When each buffer named by the steps is alive. Positions count launches and products in order, a repeat's body once.
/// A buffer that enters a repeat from outside, or that a round leaves for the next one, is alive during the whole repeat.
pub fn lifetimes(steps: &[Step]) -> BTreeMap<String, (usize, usize)> {
    let mut walk = Walk::default();
    walk.steps(steps);
    walk.uses.iter().map(|(name, uses)| (name.clone(), walk.lifetime(uses))).collect()
}

#[derive(Default)]
struct Walk {
    position: usize,
    uses: BTreeMap<String, Vec<(usize, Access)>>,
    repeats: Vec<(usize, usize)>,
}

impl Walk {
    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            if let Step::Repeat { body, .. } = step {
                let start = self.position;
                self.steps(body);
                self.repeats.push((start, self.position.saturating_sub(1).max(start)));
                continue;
            }
            for arg in step.args() {
                self.uses.entry(arg.buffer.clone()).or_default().push((self.position, arg.access));
            }
            self.position += 1;
        }
    }

    fn lifetime(&self, uses: &[(usize, Access)]) -> (usize, usize) {
        let mut first = uses.iter().map(|u| u.0).min().unwrap_or(0);
        let mut last = uses.iter().map(|u| u.0).max().unwrap_or(0);
        for &(start, end) in &self.repeats {
            let mut inside = uses.iter().filter(|u| start <= u.0 && u.0 <= end);
            let Some(earliest) = inside.next() else { continue };
            let at_first = uses.iter().filter(|u| u.0 == earliest.0);
            let carried = at_first.clone().any(|u| u.1 != Access::Write);
            if first < start || carried {
                first = first.min(start);
                last = last.max(end);
            }
        }
        (first, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn interval(bytes: u64, first: usize, last: usize) -> Interval {
        Interval { bytes, first, last }
    }

    #[test]
    fn buffers_that_never_meet_share_their_place() {
        let plan = plan_memory(&[interval(1000, 0, 1), interval(1000, 2, 3), interval(10, 0, 3)]);
        assert_eq!(plan.offsets[0], plan.offsets[1]);
        assert_eq!((plan.peak_bytes, plan.naive_bytes, plan.live_bytes), (1280, 2304, 1280));
    }

    proptest! {
        #[test]
        fn no_two_overlap_while_alive_and_the_bounds_hold(
            raw in proptest::collection::vec((1u64..100_000, 0usize..40, 0usize..12), 1..60)
        ) {
            let intervals: Vec<Interval> = raw.iter().map(|&(b, f, l)| interval(b, f, f + l)).collect();
            let plan = plan_memory(&intervals);
            for i in 0..intervals.len() {
                prop_assert_eq!(plan.offsets[i] % ALIGNMENT, 0);
                for j in 0..i {
                    let apart = plan.offsets[i] + intervals[i].bytes <= plan.offsets[j]
                        || plan.offsets[j] + intervals[j].bytes <= plan.offsets[i];
                    prop_assert!(apart || !intervals[i].meets(&intervals[j]), "{} and {}", i, j);
                }
            }
            prop_assert!(plan.live_bytes <= plan.peak_bytes && plan.peak_bytes <= plan.naive_bytes);
        }
    }
}
