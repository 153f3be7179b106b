//! Ops on one token whose parameters, and the keys and values of the tokens before it, stay in memory.
//!
//! Features lie over the columns of PEs or over their rows, in turn: a product reads one and makes the other, so that
//! every product is a sum over lines of one axis and nothing else moves.

use super::{Heads, Pairing};
use crate::wafer::tile::{Blocks, Tiles};
use serde::{Deserialize, Serialize};

/// Attention heads over blocks of neighbouring rows. A row holds the same features of every head of its block, pairs that
/// turn together side by side: first the first halves of its pairs, then the second halves, then features that do not turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowHeads {
    /// The heads; its columns are rows here.
    pub heads: Heads,
    /// Pairs of a head that turn.
    pub pairs: u32,
    /// Which features make a pair.
    pub pairing: Pairing,
}

impl RowHeads {
    /// Rows over blocks.
    pub fn blocks(self) -> Blocks {
        self.heads.column_blocks()
    }

    /// Heads of a block.
    pub fn count(self, queries: bool) -> u32 {
        self.heads.kv * if queries { self.heads.ways } else { 1 }
    }

    /// Pairs of a head over the rows of a block.
    pub fn pair_tiles(self) -> Tiles {
        Tiles::new(self.pairs, self.heads.columns)
    }

    /// Features of a head that do not turn, over the rows of a block.
    pub fn rest_tiles(self) -> Tiles {
        Tiles::new(self.heads.dim - 2 * self.pairs, self.heads.columns)
    }

    /// Features of a head in a row of a block.
    pub fn own(self, row: u32) -> u32 {
        2 * self.pair_tiles().size(row) + self.rest_tiles().size(row)
    }

    /// Which feature of the model stands at each place of this layout.
    pub fn order(self, queries: bool) -> Vec<u32> {
        let (count, dim) = (self.count(queries), self.heads.dim);
        let (pairs, rest) = (self.pair_tiles(), self.rest_tiles());
        let of_pair = |pair: u32, second: u32| match self.pairing {
            Pairing::Half => pair + second * self.pairs,
            Pairing::Interleaved => 2 * pair + second,
        };
        let in_row = |row: u32| {
            let own = move || pairs.start(row)..pairs.start(row) + pairs.size(row);
            let still = rest.start(row)..rest.start(row) + rest.size(row);
            let turning = (0..2).flat_map(move |second| own().map(move |pair| of_pair(pair, second)));
            turning.chain(still.map(|n| 2 * self.pairs + n)).collect::<Vec<u32>>()
        };
        let mut order = Vec::new();
        for block in 0..self.heads.blocks {
            for row in 0..self.heads.columns {
                let features = in_row(row);
                for head in 0..count {
                    let first = (block * count + head) * dim;
                    order.extend(features.iter().map(|feature| first + feature));
                }
            }
        }
        order
    }
}

/// A rotary embedding of one token, in place; the angles of its position stream in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The value turned, [`super::Layout::HeadRows`].
    pub value: String,
    /// Angle per position of each pair, in radians.
    pub frequencies: Vec<f64>,
}

/// Attention of one token to those before it, whose keys and values stay in memory, and to itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CachedAttention {
    /// The query, [`super::Layout::HeadRows`] with `queries`; scaled in place.
    pub query: String,
    /// The key, [`super::Layout::HeadRows`].
    pub key: String,
    /// The value, [`super::Layout::HeadRows`].
    pub value: String,
    /// The result, [`super::Layout::HeadRows`] with `queries`.
    pub output: String,
    /// Factor of the scores.
    pub scale: f64,
    /// ALiBi: one slope per query head, times the distance; empty without.
    pub slopes: Vec<f64>,
    /// How many keys a query sees, itself included; all earlier ones if absent.
    pub window: Option<u32>,
    /// Tokens that the cache has room for.
    pub capacity: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_one_place_and_pairs_share_a_row() {
        let heads = Heads { blocks: 2, columns: 3, kv: 1, ways: 2, dim: 10 };
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let rows = RowHeads { heads, pairs: 4, pairing };
            let order = rows.order(true);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..40).collect::<Vec<u32>>());
            // The first row of a block has two pairs of each head and one feature that does not turn.
            let second = if pairing == Pairing::Half { [4, 5] } else { [1, 3] };
            let first = if pairing == Pairing::Half { [0, 1] } else { [0, 2] };
            assert_eq!(order[..5], [first[0], first[1], second[0], second[1], 8]);
            assert_eq!(rows.own(0), 5);
        }
    }
}
