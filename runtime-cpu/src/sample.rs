//! Picks the next token from logits: greedily, or at random with a seed.

/// How tokens are picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 picks the largest.
    pub temperature: f32,
    /// Only this many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities reach this sum; 1 for all.
    pub top_p: f32,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token; of equals, the lowest id.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };
}

/// Picks tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    pub fn new(sampling: Sampling) -> Sampler {
        Sampler { sampling, state: sampling.seed }
    }

    /// The next token. Logits that are not numbers count as impossible.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature <= 0.0 {
            return greedy(logits);
        }
        let likeliest = self.candidates(logits);
        let total: f64 = likeliest.iter().map(|(_, p)| p).sum();
        let mut left = self.uniform() * total;
        for (token, p) in &likeliest {
            left -= p;
            if left < 0.0 {
                return *token;
            }
        }
        likeliest.last().map_or_else(|| greedy(logits), |(token, _)| *token)
    }

    /// Tokens that may be picked with their relative probabilities, the likeliest first, equals by id.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let temperature = f64::from(self.sampling.temperature);
        let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let weight = |x: f32| ((f64::from(x) - top) / temperature).exp();
        let mut all: Vec<(u32, f64)> = (0..).zip(logits).map(|(id, x)| (id, weight(*x))).collect();
        all.retain(|(_, p)| *p > 0.0);
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.sampling.top_k > 0 {
            all.truncate(self.sampling.top_k);
        }
        let enough = f64::from(self.sampling.top_p) * all.iter().map(|(_, p)| p).sum::<f64>();
        let mut reached = 0.0;
        let kept = all.iter().take_while(|(_, p)| {
            let wanted = reached < enough;
            reached += p;
            wanted
        });
        let kept = kept.count().max(1);
        all.truncate(kept);
        all
    }

    /// The next number in `[0, 1)`, by SplitMix64 (Steele, Lea and Flood, 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The id of the largest logit, the lowest among equals; 0 where there are no numbers.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, x) in (0..).zip(logits) {
        if *x > best.1 {
            best = (id, *x);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0, f32::NAN]), 1);
        assert_eq!(Sampler::new(Sampling::GREEDY).pick(&[-2.0, -1.0]), 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_temperature_shows_in_frequencies() {
        let logits = [0.0, 1.0, 2.0];
        let sampling = Sampling { temperature: 0.5, seed: 7, ..Sampling::GREEDY };
        let run = || {
            let mut sampler = Sampler::new(sampling);
            (0..4000).map(|_| sampler.pick(&logits)).collect::<Vec<_>>()
        };
        let picked = run();
        assert_eq!(picked, run());
        let share = picked.iter().filter(|t| **t == 2).count() as f64 / 4000.0;
        let weights: Vec<f64> = logits.iter().map(|x| (f64::from(*x) * 2.0).exp()).collect();
        assert!((share - weights[2] / weights.iter().sum::<f64>()).abs() < 0.02);
    }

    #[test]
    fn top_k_and_top_p_leave_the_likeliest() {
        let logits = [0.0, 5.0, 5.0, 4.0];
        let ids = |top_k, top_p| {
            let sampler = Sampler::new(Sampling { temperature: 1.0, top_k, top_p, seed: 0 });
            sampler.candidates(&logits).iter().map(|(id, _)| *id).collect::<Vec<_>>()
        };
        assert_eq!(ids(2, 1.0), [1, 2]);
        assert_eq!(ids(0, 0.4), [1]);
        assert_eq!(ids(0, 0.9), [1, 2, 3]);
        assert_eq!(ids(0, 0.0), [1]);
    }
}
