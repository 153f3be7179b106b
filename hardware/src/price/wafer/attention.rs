//! Closed forms of attention and of its backward pass: blocks of keys and values travel past the queries.

use super::rates::{FUNCTION_CYCLES, Rates};

/// How heads lie over a rectangle: each block of columns has whole key/value heads, and the tokens of a row lie over the
/// columns of a block. Counts are those of the fullest processing element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadTile {
    /// Columns of a block.
    pub columns: f64,
    /// Key/value heads of a block.
    pub kv: f64,
    /// Query heads that share one.
    pub ways: f64,
    /// Features of a head.
    pub dim: f64,
    /// Tokens of a row, of one sequence.
    pub row: f64,
    /// Rows that the last row of a sequence sees, its own included.
    pub rounds: f64,
    /// Sequences that a row has one after the other; a part of one where a sequence has several rows.
    pub sequences: f64,
}

impl HeadTile {
    /// Lays `heads` query and `kv_heads` key/value heads of `dim` features over `columns`, and sequences of `length` over
    /// rows of `tokens` tokens.
    pub fn new(columns: u64, heads: u64, kv_heads: u64, dim: u64, tokens: u64, length: u64) -> HeadTile {
        let kv_heads = kv_heads.max(1);
        let most = kv_heads.min(columns.max(1));
        let blocks = (1..=most).rev().find(|blocks| kv_heads.is_multiple_of(*blocks)).unwrap_or(1);
        let of_block = (kv_heads / blocks) * (heads / kv_heads).max(1) * dim;
        let wide = (columns / blocks).clamp(1, of_block.max(1));
        let whole = tokens >= length;
        let in_row = if whole { length } else { tokens };
        HeadTile {
            columns: wide as f64,
            kv: (kv_heads / blocks) as f64,
            ways: (heads / kv_heads) as f64,
            dim: dim as f64,
            row: in_row as f64,
            rounds: if whole { 1.0 } else { length.div_ceil(tokens.max(1)) as f64 },
            sequences: if whole { tokens as f64 / length as f64 } else { 1.0 },
        }
    }

    /// Tokens of the fullest processing element.
    pub fn tokens(&self) -> f64 {
        (self.row / self.columns).ceil()
    }

    fn queries(&self) -> f64 {
        self.kv * self.ways * self.tokens()
    }

    /// Elements of the keys, or of the values, of the fullest block of tokens: all blocks travel at its size.
    fn keys(&self) -> f64 {
        self.kv * self.dim * self.tokens()
    }

    /// Cycles of a round on blocks, by what one of so many keys takes. Blocks without keys only travel, but where some
    /// column attends, its neighbours wait, unless the `words` of a turn fit between them.
    fn attended(&self, rates: &Rates, words: f64, block: impl Fn(f64) -> f64) -> f64 {
        let few = (self.row / self.columns).floor();
        let ahead = (rates.link_words as f64 / words.max(1.0)).floor();
        let large = steps(self.columns, self.row - few * self.columns, ahead);
        let rest = if few > 0.0 { (self.columns - large) * block(few) } else { 0.0 };
        rest + if large > 0.0 { large * block(few + 1.0) } else { 0.0 }
    }

    /// Sends `narrow` values and `wide` ones of 32 bits to a neighbour, takes as many, and puts them in place.
    fn turn(&self, rates: &Rates, narrow: f64, wide: f64) -> f64 {
        let copies = rates.op(narrow, rates.half) + rates.op(wide, rates.single);
        narrow * rates.packed + wide + rates.neighbour + copies
    }

    /// Rounds of `attends` cycles on blocks: one from every column, turn by turn, and once more to the row below.
    fn rounds(&self, attends: f64, turn: f64) -> f64 {
        self.sequences * self.rounds * (attends + (self.columns + 1.0) * turn)
    }
}

/// Turns of a ring of `columns` in which those who set the pace attend, where the first `holding` columns have tokens and
/// columns may be `ahead` turns before the next one.
///
/// At turn `t` of a round column `c` has the block of column `c - t`, and a turn begins when the neighbour before is done
/// with the one before, and the next one with the one `ahead` turns earlier. The longest way through such a round keeps to
/// columns that attend: first up to the last of them, on to its last turn, then down to the first ones, which have their
/// second half of blocks by then, or a smaller part if the way down takes more turns.
fn steps(columns: f64, holding: f64, ahead: f64) -> f64 {
    let lost = (((ahead + 1.0) * (columns - holding) + ahead) / (ahead + 2.0)).floor();
    if holding > 0.0 { (2.0 * holding - 1.0).min(columns - lost) } else { 0.0 }
}

/// Vector ops of the fullest processing element at a block of `keys` keys.
struct Block<'a> {
    rates: &'a Rates,
    scores: f64,
    queries: f64,
    dim: f64,
}

impl<'a> Block<'a> {
    fn new(rates: &'a Rates, tile: &HeadTile, keys: f64) -> Block<'a> {
        let queries = tile.queries();
        Block { rates, scores: queries * keys, queries, dim: tile.dim }
    }

    /// A product of all own queries with all keys, over the features of a head.
    fn product(&self) -> f64 {
        self.rates.op(self.scores, self.rates.mixed) + self.weighed()
    }

    /// Vectors of a head added up by their scores.
    fn weighed(&self) -> f64 {
        self.rates.op(self.scores * self.dim, self.rates.mixed)
    }

    /// The online softmax.
    fn soften(&self) -> f64 {
        3.0 * self.rates.op(self.scores, self.rates.single)
            + self.rates.function(self.scores, FUNCTION_CYCLES.exp)
            + 4.0 * self.rates.op(self.queries, self.rates.single)
            + self.rates.function(self.queries, FUNCTION_CYCLES.exp)
    }

    /// Scores, softmax, and the values added to results that shrink to the new maximum.
    fn result(&self) -> f64 {
        let shrink = self.rates.op(self.queries * self.dim, self.rates.single);
        self.product() + self.soften() + shrink + self.weighed()
    }

    /// Maximum and sum of the softmax, and the sum of its shares times their gradients: two products.
    fn statistics(&self) -> f64 {
        let weigh =
            self.rates.op(self.queries, self.rates.single) + self.rates.op(self.scores, self.rates.single);
        2.0 * self.product() + self.soften() + weigh
    }

    /// Scores and the gradients of the shares again, and the gradients of queries, keys and values: five products.
    fn gradients(&self) -> f64 {
        let softmax = 3.0 * self.rates.op(self.scores, self.rates.single)
            + self.rates.function(self.scores, FUNCTION_CYCLES.exp);
        2.0 * self.product() + 3.0 * self.weighed() + softmax
    }
}

/// Cycles of causal attention with an online softmax. The last row of a sequence sees all of it and ends last.
pub fn attention(rates: &Rates, tile: &HeadTile) -> f64 {
    let results = tile.queries() * tile.dim;
    let words = 2.0 * tile.keys() * rates.packed;
    let attends = tile.attended(rates, words, |keys| Block::new(rates, tile, keys).result());
    let rounds = tile.rounds(attends, tile.turn(rates, 2.0 * tile.keys(), 0.0));
    let begin = rates.op(results, rates.half)
        + rates.op(results, rates.mixed)
        + 2.0 * rates.op(tile.keys(), rates.half);
    let end = rates.function(tile.queries(), FUNCTION_CYCLES.recip) + rates.op(results, rates.single);
    rounds + tile.sequences * (begin + end + turns(rates, tile, results))
}

/// Cycles of attention's derivatives by queries, keys and values, with the scores computed again. Keys and values go by
/// twice. First every query finds its softmax and the sum of shares times their gradients: two products. Then the scores
/// and the gradients of the shares again, and those of queries, keys and values: five products; the gradients of keys
/// and values travel with their block in 32 bits and come home by the same way.
pub fn attention_backward(rates: &Rates, tile: &HeadTile) -> f64 {
    let (queries, keys) = (tile.queries(), tile.keys());
    let results = queries * tile.dim;
    let words = 2.0 * keys * rates.packed;
    let statistics = tile.attended(rates, words, |keys| Block::new(rates, tile, keys).statistics());
    let first = tile.rounds(statistics, tile.turn(rates, 2.0 * keys, 0.0));
    let words = words + 2.0 * keys;
    let gradients = tile.attended(rates, words, |keys| Block::new(rates, tile, keys).gradients());
    let turn = tile.turn(rates, 2.0 * keys, 0.0) + tile.turn(rates, 0.0, 2.0 * keys);
    let second = tile.rounds(gradients, turn);
    let blocks = 4.0 * rates.op(keys, rates.half);
    let cleared = 3.0 * rates.op(queries, rates.mixed)
        + rates.op(results, rates.mixed)
        + rates.op(2.0 * keys, rates.mixed);
    let softmaxes = rates.function(queries, FUNCTION_CYCLES.recip)
        + rates.function(queries, FUNCTION_CYCLES.log)
        + 2.0 * rates.op(queries, rates.single);
    let kept = rates.op(results, rates.single) + 2.0 * rates.op(keys, rates.single);
    let ends = rates.op(results, rates.half) + blocks + cleared + softmaxes + kept;
    first + second + tile.sequences * ends
}

/// Cycles for a value to get from the tokens of a head block's columns to its features: of the query heads or of the
/// key/value heads.
pub fn gather(rates: &Rates, tile: &HeadTile, queries: bool) -> f64 {
    let elements = if queries { tile.queries() * tile.dim } else { tile.keys() };
    tile.sequences * (rates.op(elements, rates.half) + turns(rates, tile, elements))
}

/// Elements travel once more round the block, so that each column gets its own features.
fn turns(rates: &Rates, tile: &HeadTile, elements: f64) -> f64 {
    let own = elements / tile.columns;
    tile.columns * (tile.turn(rates, elements, 0.0) + rates.op(own, rates.half))
}

impl HeadTile {
    /// Bytes of a processing element that attention needs beside its operands: two blocks in turn, scores, shares and
    /// sums in 32 bits; in the backward pass the gradients of the shares and those that travel as well.
    pub fn scratch_bytes(&self, backward: bool) -> f64 {
        let results = self.queries() * self.dim;
        let keys = 2.0 * self.keys();
        let scores = self.queries() * self.tokens();
        let (block, wide) = match backward {
            false => (keys.max(results) * 2.0, 0.0),
            true => (keys * 2.0, 2.0 * keys * 4.0 + scores * 4.0 + self.queries() * 4.0),
        };
        2.0 * block + scores * 6.0 + self.queries() * 16.0 + results * 4.0 + wide
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest way through many rounds, turn by turn.
    fn longest(columns: usize, holding: usize, ahead: usize) -> usize {
        const ROUNDS: usize = 40;
        let (mut best, mut all) = (vec![0; columns], Vec::new());
        for turn in 0..ROUNDS * columns {
            let block = |c: usize| (c + columns - turn % columns) % columns;
            let done: Vec<usize> =
                (0..columns).map(|c| best[c] + usize::from(c < holding && block(c) < holding)).collect();
            all.push(done);
            let before = |c: usize| all[turn][(c + columns - 1) % columns];
            let room = |c: usize| turn.checked_sub(ahead).map_or(0, |turn| all[turn][(c + 1) % columns]);
            best = (0..columns).map(|c| all[turn][c].max(before(c)).max(room(c))).collect();
        }
        (best.into_iter().max().unwrap_or(0) as f64 / ROUNDS as f64).round() as usize
    }

    #[test]
    fn rings_with_few_tokens_attend_in_as_many_turns_as_the_longest_way_has() {
        for columns in [6, 8, 23, 31] {
            for (holding, ahead) in
                (1..=columns).flat_map(|holding| (0..4).map(move |ahead| (holding, ahead)))
            {
                let told = steps(columns as f64, holding as f64, ahead as f64);
                let longest = longest(columns, holding, ahead) as f64;
                assert_eq!(told, longest, "{holding} of {columns}, {ahead} turns ahead");
            }
        }
        assert_eq!(steps(6.0, 0.0, 0.0), 0.0);
        assert_eq!(steps(31.0, 12.0, 1e6), 12.0, "who never waits for room");
    }
}
