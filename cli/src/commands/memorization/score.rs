//! Scores of memorised sequences: `score(k, l) = 1/l Σ 1[S(k+i) = G(k+i)]`, and their distribution.
//!
//! Biderman et al., "Emergent and predictable memorization in large language models" (2023); LLM360 paper, section 4.3,
//! with k = l = 32. A sequence is k-extractible when its score is 1.

use serde::Serialize;

/// Which ids of one continuation the model gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Score {
    /// 1 where the generated id is the id of the data, 0 elsewhere.
    pub matches: Vec<u8>,
}

impl Score {
    /// Compares generated ids with those of the data, one by one.
    pub fn of(generated: &[u32], data: &[u32]) -> Score {
        let matches = generated.iter().zip(data).map(|(a, b)| u8::from(a == b));
        Score { matches: matches.collect() }
    }

    /// Ids that agree.
    pub fn count(&self) -> usize {
        self.matches.iter().map(|one| usize::from(*one)).sum()
    }

    /// Share of ids that agree.
    pub fn score(&self) -> f64 {
        self.count() as f64 / self.matches.len().max(1) as f64
    }

    /// Whether every id agrees.
    pub fn is_full(&self) -> bool {
        self.matches.iter().all(|one| *one == 1)
    }
}

/// What many sequences give, in the published form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Share of sequences that are k-extractible.
    pub full_match: f64,
    /// Mean score.
    pub token_match: f64,
    /// Sequences.
    pub count: usize,
}

/// Shares over all sequences; zero for none.
pub fn summary(scores: &[Score]) -> Summary {
    let count = scores.len();
    let share = |sum: f64| if count == 0 { 0.0 } else { sum / count as f64 };
    Summary {
        full_match: share(scores.iter().filter(|score| score.is_full()).count() as f64),
        token_match: share(scores.iter().map(Score::score).sum()),
        count,
    }
}

/// How many sequences have `0, 1, .., l` ids right.
pub fn distribution(scores: &[Score], l: usize) -> Vec<u64> {
    let mut counts = vec![0; l + 1];
    scores.iter().for_each(|score| counts[score.count().min(l)] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_count_ids_in_their_places() {
        let scores = [Score::of(&[1, 2, 3, 4], &[1, 9, 3, 4]), Score::of(&[5, 6, 7, 8], &[5, 6, 7, 8])];
        assert_eq!(scores[0].matches, [1, 0, 1, 1]);
        assert_eq!(scores[0].score(), 0.75);
        let summary = summary(&scores);
        assert_eq!((summary.full_match, summary.token_match, summary.count), (0.5, 0.875, 2));
        assert_eq!(distribution(&scores, 4), [0, 0, 0, 1, 1]);
    }
}
