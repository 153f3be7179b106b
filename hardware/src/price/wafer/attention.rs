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
    /// Tokens of a processing element.
    pub tokens: f64,
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
            tokens: in_row.div_ceil(wide) as f64,
            rounds: if whole { 1.0 } else { length.div_ceil(tokens.max(1)) as f64 },
            sequences: if whole { tokens as f64 / length as f64 } else { 1.0 },
        }
    }

    fn queries(&self) -> f64 {
        self.kv * self.ways * self.tokens
    }

    fn scores(&self) -> f64 {
        self.queries() * self.tokens
    }

    /// Elements of the keys, or of the values, of a block of tokens.
    fn keys(&self) -> f64 {
        self.kv * self.dim * self.tokens
    }

    /// Sends `narrow` values and `wide` ones of 32 bits to a neighbour, takes as many, and puts them in place.
    fn turn(&self, rates: &Rates, narrow: f64, wide: f64) -> f64 {
        let copies = rates.op(narrow, rates.half) + rates.op(wide, rates.single);
        narrow * rates.packed + wide + rates.neighbour + copies
    }

    /// A round sees a block from every column, turn by turn, and passes them to the row below.
    fn rounds(&self, block: f64, turn: f64) -> f64 {
        self.sequences * self.rounds * (self.columns * (block + turn) + turn)
    }
}

/// Cycles of causal attention with an online softmax. The last row of a sequence sees all of it and ends last.
pub fn attention(rates: &Rates, tile: &HeadTile) -> f64 {
    let (scores, queries, dim) = (tile.scores(), tile.queries(), tile.dim);
    let weigh = rates.op(queries * dim, rates.single) + rates.op(scores * dim, rates.mixed);
    let block = product(rates, tile) + soften(rates, tile) + weigh;
    let rounds = tile.rounds(block, tile.turn(rates, 2.0 * tile.keys(), 0.0));
    let begin = rates.op(queries * dim, rates.half)
        + rates.op(queries * dim, rates.mixed)
        + 2.0 * rates.op(tile.keys(), rates.half);
    let end = rates.function(queries, FUNCTION_CYCLES.recip) + rates.op(queries * dim, rates.single);
    rounds + tile.sequences * (begin + end + turns(rates, tile, queries * dim))
}

/// Cycles of attention's derivatives by queries, keys and values, with the scores computed again. Keys and values go by
/// twice. First every query finds its softmax and the sum of shares times their gradients: two products. Then the scores
/// and the gradients of the shares again, and those of queries, keys and values: five products; the gradients of keys
/// and values travel with their block in 32 bits and come home by the same way.
pub fn attention_backward(rates: &Rates, tile: &HeadTile) -> f64 {
    let (scores, queries, dim) = (tile.scores(), tile.queries(), tile.dim);
    let (results, keys) = (queries * dim, tile.keys());
    let weigh = rates.op(queries, rates.single) + rates.op(scores, rates.single);
    let statistics = 2.0 * product(rates, tile) + soften(rates, tile) + weigh;
    let first = tile.rounds(statistics, tile.turn(rates, 2.0 * keys, 0.0));
    let softmax = 3.0 * rates.op(scores, rates.single) + rates.function(scores, FUNCTION_CYCLES.exp);
    let gradients = 2.0 * product(rates, tile) + 3.0 * rates.op(scores * dim, rates.mixed) + softmax;
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

/// A product of all own queries with all keys of a block, over the features of a head.
fn product(rates: &Rates, tile: &HeadTile) -> f64 {
    rates.op(tile.scores(), rates.mixed) + rates.op(tile.scores() * tile.dim, rates.mixed)
}

/// The online softmax of a block.
fn soften(rates: &Rates, tile: &HeadTile) -> f64 {
    let (scores, queries) = (tile.scores(), tile.queries());
    3.0 * rates.op(scores, rates.single)
        + rates.function(scores, FUNCTION_CYCLES.exp)
        + 4.0 * rates.op(queries, rates.single)
        + rates.function(queries, FUNCTION_CYCLES.exp)
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
        let (block, wide) = match backward {
            false => (keys.max(results) * 2.0, 0.0),
            true => (keys * 2.0, 2.0 * keys * 4.0 + self.scores() * 4.0 + self.queries() * 4.0),
        };
        2.0 * block + self.scores() * 6.0 + self.queries() * 16.0 + results * 4.0 + wide
    }
}
