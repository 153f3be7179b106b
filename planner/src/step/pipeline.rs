//! Pipelines: the order of passes on each rank, an event simulation of it, and a closed form that is never more.

use serde::{Deserialize, Serialize};

/// Seconds of the passes of each rank's chunks, and of the messages between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stages {
    /// Forward of one micro-batch, by virtual stage (chunk-major: chunk 0 of every rank, then chunk 1).
    pub forward: Vec<f64>,
    /// Backward of one micro-batch, by virtual stage.
    pub backward: Vec<f64>,
    /// Ranks.
    pub ranks: usize,
    /// From the end of a pass to the earliest start of the next stage's.
    pub message: f64,
}

/// A pass on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Rank it runs on.
    pub rank: usize,
    /// Virtual stage.
    pub stage: usize,
    /// Micro-batch.
    pub micro_batch: usize,
    /// Whether it is a backward pass.
    pub backward: bool,
    /// Seconds from the start of the step.
    pub start_s: f64,
    /// Seconds from the start of the step.
    pub end_s: f64,
}

/// One entry of a rank's order.
type Entry = (bool, usize, usize);

impl Stages {
    fn chunks(&self) -> usize {
        self.forward.len() / self.ranks
    }

    /// The order of passes on a rank: 1F1B, or interleaved 1F1B where a rank holds several chunks and the
    /// micro-batches divide by the ranks (arXiv 2104.04473, section 2.2).
    fn order(&self, rank: usize, micro_batches: usize) -> Vec<Entry> {
        let (ranks, chunks) = (self.ranks, self.chunks());
        let total = micro_batches * chunks;
        let warm = match chunks {
            1 => ranks - rank - 1,
            _ => (ranks - rank - 1) * 2 + (chunks - 1) * ranks,
        }
        .min(total);
        let place = |k: usize| match chunks {
            1 => (0, k),
            _ => ((k / ranks) % chunks, k / (ranks * chunks) * ranks + k % ranks),
        };
        let forward = |k: usize| {
            let (chunk, micro) = place(k);
            (false, chunk * ranks + rank, micro)
        };
        let backward = |k: usize| {
            let (chunk, micro) = place(k);
            (true, (chunks - 1 - chunk) * ranks + rank, micro)
        };
        let mut order: Vec<Entry> = (0..warm).map(forward).collect();
        for k in warm..total {
            order.push(forward(k));
            order.push(backward(k - warm));
        }
        order.extend((total - warm..total).map(backward));
        order
    }

    /// Runs every rank's order as early as its inputs allow. Ranks keep their order; a pass waits for the one before
    /// it on its rank and for the message with its input.
    pub fn simulate(&self, micro_batches: usize, mut seen: impl FnMut(Slot)) -> f64 {
        let stages = self.forward.len();
        let orders: Vec<Vec<Entry>> = (0..self.ranks).map(|rank| self.order(rank, micro_batches)).collect();
        let mut next = vec![0; self.ranks];
        let mut free = vec![0.0_f64; self.ranks];
        let mut done = vec![[f64::NAN; 2]; stages * micro_batches];
        let at = |stage: usize, micro: usize| micro * stages + stage;
        let mut left: usize = orders.iter().map(Vec::len).sum();
        while left > 0 {
            let before = left;
            for rank in 0..self.ranks {
                while let Some(&(backward, stage, micro)) = orders[rank].get(next[rank]) {
                    let input = match (backward, stage) {
                        (false, 0) => 0.0,
                        (false, _) => done[at(stage - 1, micro)][0] + self.message,
                        (true, _) if stage + 1 == stages => done[at(stage, micro)][0],
                        (true, _) => done[at(stage + 1, micro)][1] + self.message,
                    };
                    if input.is_nan() {
                        break;
                    }
                    let start = input.max(free[rank]);
                    let length = if backward { self.backward[stage] } else { self.forward[stage] };
                    let end = start + length;
                    seen(Slot { rank, stage, micro_batch: micro, backward, start_s: start, end_s: end });
                    done[at(stage, micro)][backward as usize] = end;
                    free[rank] = end;
                    next[rank] += 1;
                    left -= 1;
                }
            }
            if left == before {
                break;
            }
        }
        free.into_iter().fold(0.0, f64::max)
    }

    /// Seconds that no order can beat: on each rank, its own work behind the first pass into it and before the last
    /// passes out of it.
    pub fn bound(&self, micro_batches: usize) -> f64 {
        let m = micro_batches as f64;
        let mut before = 0.0;
        let mut best = 0.0_f64;
        for rank in 0..self.ranks {
            let own: f64 = (0..self.chunks())
                .map(|chunk| {
                    self.forward[chunk * self.ranks + rank] + self.backward[chunk * self.ranks + rank]
                })
                .sum();
            best = best.max(before + m * own);
            before += self.forward[rank] + self.backward[rank] + 2.0 * self.message;
        }
        let through: f64 = self.forward.iter().chain(&self.backward).sum();
        best.max(through + 2.0 * self.message * (self.forward.len() - 1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn even(ranks: usize, chunks: usize, forward: f64, backward: f64) -> Stages {
        let n = ranks * chunks;
        Stages { forward: vec![forward; n], backward: vec![backward; n], ranks, message: 0.0 }
    }

    #[test]
    fn even_stages_idle_as_the_paper_says() {
        let time = even(4, 1, 1.0, 2.0).simulate(8, |_| ());
        assert!((time - 3.0 * (8.0 + 3.0)).abs() < 1e-9, "{time}");
        let time = even(4, 2, 0.5, 1.0).simulate(8, |_| ());
        assert!((time - 3.0 * (8.0 + 3.0 / 2.0)).abs() < 1e-9, "{time}");
    }

    #[test]
    fn one_stage_never_idles() {
        assert_eq!(even(1, 1, 1.0, 2.0).simulate(5, |_| ()), 15.0);
    }

    proptest! {
        #[test]
        fn the_closed_form_is_a_lower_bound_and_every_pass_runs_once(
            times in prop::collection::vec((0.1..4.0f64, 0.1..4.0f64), 1..13),
            chunks in 1usize..4,
            groups in 1usize..5,
            message in 0.0..0.5f64,
        ) {
            let ranks = times.len();
            let cycle = |pick: fn(&(f64, f64)) -> f64| (0..ranks * chunks).map(|i| pick(&times[i % ranks])).collect();
            let stages = Stages { forward: cycle(|t| t.0), backward: cycle(|t| t.1), ranks, message };
            let micro_batches = groups * ranks;
            let mut slots = Vec::new();
            let time = stages.simulate(micro_batches, |slot| slots.push(slot));
            prop_assert_eq!(slots.len(), 2 * micro_batches * ranks * chunks);
            prop_assert!(stages.bound(micro_batches) <= time * (1.0 + 1e-12));
            for rank in 0..ranks {
                let own: Vec<_> = slots.iter().filter(|slot| slot.rank == rank).collect();
                prop_assert!(own.windows(2).all(|pair| pair[0].end_s <= pair[1].start_s + 1e-12));
            }
        }
    }
}
