//! The ring of a row on which the columns of a head block keep the sums of a linear layer by tokens.
//!
//! Every column of the block keeps the sums of some tokens of each output. They have gone round the whole row, from the
//! column after the one that keeps them, so a column meets an output twice: the front, tokens whose ring begins nearby,
//! and, `held` outputs later, the back, tokens that have come round.

use super::rates::Rates;

/// The ring of a row and what an output takes on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ring {
    /// Columns of the row.
    pub columns: u64,
    /// Columns of a head block.
    pub block: u64,
    /// Features of a head: as many outputs are held as divide them.
    pub dim: u64,
    /// Tokens of the fullest row.
    pub tokens: u64,
    /// Words that surely fit between two neighbours.
    pub link_words: u64,
    /// Cycles from a word's departure at one column to its departure at the next.
    pub neighbour: f64,
    /// Cycles that the fullest column spends on an output.
    pub output: f64,
}

impl Ring {
    /// Outputs whose fronts are under way before the first back is done: a divisor of the features of a head, and enough
    /// for their arithmetic to cover the way round, as far as [`room`](Self::room) goes.
    pub fn held(&self) -> u64 {
        if self.block <= 1 {
            return 1;
        }
        let wanted = (self.way() / self.output.max(1.0)).ceil() as u64 + 1;
        let divisors = || (1..=self.dim.min(self.room())).filter(|held| self.dim.is_multiple_of(*held));
        divisors().find(|held| *held >= wanted).or(divisors().next_back()).unwrap_or(1)
    }

    /// The most outputs that can be held without a deadlock, at least the one that streams through.
    ///
    /// Let `p` be how many words of the row's order a column has handled, a token of an output counting as one word
    /// wherever it is kept. A column waits for room only when it is `link_words` ahead of the next, and only where the
    /// ring closes does it count from `held - 1` outputs behind. If all wait for room, these leads add up to no more than
    /// what the ring closes by: `columns * link_words <= (held - 1) * tokens`. A column that waits for words, or for
    /// weights that another row has not taken, waits for one that is not ahead of it, so no other circle closes.
    pub fn room(&self) -> u64 {
        (self.columns * self.link_words).div_ceil(self.tokens.max(1)).max(1)
    }

    /// Cycles of an output when many follow each other: its arithmetic, or the way round with the arithmetic that lies on
    /// it, once for all the outputs held.
    pub fn period(&self) -> f64 {
        let round = (self.way() + self.output) / self.held() as f64;
        if self.block <= 1 { self.output } else { self.output.max(round) }
    }

    fn way(&self) -> f64 {
        self.columns as f64 * self.neighbour
    }
}

impl Rates {
    /// Cycles by which a column of a ring is behind the one before. The ring is folded over its row: neighbours are two
    /// hops apart.
    pub fn ring_neighbour(&self) -> f64 {
        self.neighbour + self.hop + 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const FOLDED: Ring =
        Ring { columns: 24, block: 24, dim: 16, tokens: 5, link_words: 8, neighbour: 7.0, output: 45.0 };

    #[test]
    fn as_many_outputs_are_held_as_cover_the_way_round() {
        assert_eq!((FOLDED.held(), FOLDED.period()), (8, 45.0));
        let narrow = Ring { dim: 4, ..FOLDED };
        assert_eq!((narrow.held(), narrow.period()), (4, 53.25));
        let alone = Ring { block: 1, ..FOLDED };
        assert_eq!((alone.held(), alone.period()), (1, 45.0));
        let crowded = Ring { tokens: 200, output: 150.0, ..FOLDED };
        assert_eq!((crowded.room(), crowded.held(), crowded.period()), (1, 1, 318.0));
    }

    /// One thing a column does: it takes a word from the column before, sends one to the next, or both.
    #[derive(Clone, Copy)]
    struct Turn {
        takes: bool,
        sends: bool,
    }

    /// What a column of the ring does for so many outputs, word by word, as the kernel orders it.
    fn turns(ring: &Ring, column: u64, starts: &[u64], outputs: u64, held: u64) -> Vec<Turn> {
        let (pass, begin, keep) = (
            Turn { takes: true, sends: true },
            Turn { takes: false, sends: true },
            Turn { takes: true, sends: false },
        );
        let several = |turn, count: u64| vec![turn; count as usize];
        let (all, blocks) = (ring.tokens, ring.columns / ring.block);
        let start = |column: u64| starts[column as usize];
        let last = ring.block - 1;
        let mut body = vec![];
        let passed = |before_me: bool| match before_me {
            true => [several(pass, start(last)), several(begin, all - start(last))].concat(),
            false => several(pass, all),
        };
        for block in 0..blocks {
            let of_next = (block + 1) * ring.block % ring.columns == column;
            if column / ring.block != block {
                (0..outputs).for_each(|_| body.extend(passed(of_next)));
                continue;
            }
            let own = column % ring.block;
            let closing = of_next && own == 0;
            for round in 0..outputs + held {
                if round >= held {
                    body.extend(several(keep, start(own + 1) - start(own)));
                    let left = if closing { start(last) } else { all };
                    body.extend(several(pass, left - start(own + 1)));
                    body.extend(several(begin, all - left));
                }
                if round < outputs {
                    let begun = start(own) - start(own.saturating_sub(1));
                    body.extend(several(pass, start(own) - begun));
                    body.extend(several(begin, begun));
                }
            }
        }
        body
    }

    /// Whether columns with queues of `link_words` come to the end, whatever their speed.
    fn ends(ring: &Ring, held: u64) -> bool {
        let (few, more) = (ring.tokens / ring.block, ring.tokens % ring.block);
        let starts: Vec<u64> = (0..=ring.block).map(|part| part * few + part.min(more)).collect();
        let outputs = 3 * held;
        let mut left: Vec<VecDeque<Turn>> =
            (0..ring.columns).map(|column| turns(ring, column, &starts, outputs, held).into()).collect();
        let mut queues = vec![0; ring.columns as usize];
        let mut moved = true;
        while moved {
            moved = false;
            for column in 0..left.len() {
                let before = (column + left.len() - 1) % left.len();
                while let Some(turn) = left[column].front().copied() {
                    let full = turn.sends && queues[column] == ring.link_words;
                    if full || (turn.takes && queues[before] == 0) {
                        break;
                    }
                    queues[before] -= u64::from(turn.takes);
                    queues[column] += u64::from(turn.sends);
                    left[column].pop_front();
                    moved = true;
                }
            }
        }
        left.iter().all(VecDeque::is_empty)
    }

    #[test]
    fn rings_never_lock_with_as_many_outputs_as_there_is_room_for() {
        let mut locked = 0;
        for (columns, block) in [(3, 3), (6, 6), (6, 3), (7, 3), (8, 5), (9, 3), (12, 12), (12, 4)] {
            for (tokens, link_words) in [(1, 1), (2, 8), (3, 2), (5, 8), (7, 3), (12, 8), (13, 1), (40, 8)] {
                let ring = Ring { columns, block, tokens, link_words, ..FOLDED };
                assert!((1..=ring.room()).all(|held| ends(&ring, held)), "{ring:?} has less room");
                locked += u32::from(!ends(&ring, 4 * ring.room() + 4));
            }
        }
        assert!(locked > 30, "{locked} of 64 rings lock when far more is held");
    }
}
