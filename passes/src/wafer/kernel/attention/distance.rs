//! What depends on how far a key is from a query: ALiBi's slopes and sliding windows.
//!
//! Blocks do not carry their positions. A PE knows from which column and row each block comes, and so counts along: the
//! first token of the visiting block, relative to the own row, is kept in `origin`. Softmax does not mind a constant
//! per query, so ALiBi adds slope x position of the key instead of slope x distance.

use super::{Kernel, MASKED, Scores};
use crate::wafer::code::{dims, from, number, op, strided, to};
use crate::wafer::kernel::{Scratch, scratch_name};
use crate::wafer::placed::PlacedOp;
use crate::wafer::site::{HeadSite, Site};
use crate::wafer::tile::Tiles;
use lapidary_models::dtype::DType;
use lapidary_runtime_sim::program::{Affine, OpKind, Operand, Stmt, TensorMap, Var};

/// Whether an attention asks for distances.
pub fn is_needed(scores: &Scores) -> bool {
    scores.window.is_some() || !scores.slopes.is_empty()
}

/// ALiBi's slopes of `heads` heads, times `factor`: powers of 2^(-8/n) for n heads, n a power of two; the others take
/// every second slope of twice as many heads (Press et al., 2021).
pub fn slopes(heads: u32, factor: f64) -> Vec<f64> {
    let slope = |head: u32, of: u32| factor * (-8.0 * f64::from(head + 1) / f64::from(of)).exp2();
    let whole = heads.checked_ilog2().map_or(0, |log| 1 << log);
    let rest = (0..heads - whole).map(|head| slope(2 * head, 2 * whole));
    (0..whole).map(|head| slope(head, whole)).chain(rest).collect()
}

/// Tables and counters.
pub fn scratch(site: &Site, at: &PlacedOp, scores: &Scores, head: &HeadSite, largest: u32) -> Vec<Scratch> {
    if !is_needed(scores) {
        return vec![];
    }
    let heads = if scores.slopes.is_empty() { 0 } else { head.shape.kv * head.shape.ways };
    let gaps = if scores.window.is_some() { head.tokens().saturating_mul(largest) } else { 0 };
    let loaded = |name, elements: u32, tensor: &str, first: Affine| {
        let tensor = scratch_name(&at.name, tensor);
        let load =
            TensorMap { tensor, dims: vec![i64::from(elements).into()], index: first.plus(Var::Dim(0), 1) };
        Scratch { load: Some(load), ..Scratch::new(name, DType::F32, elements) }
    };
    let block = head.shape.column_blocks().block_of_x();
    let row = site.placed.tokens.tiles();
    let first = |tokens: u32| {
        let tiles = Tiles::new(tokens, head.shape.columns);
        tiles.start_at(head.shape.column_blocks().local_x(), head.column)
    };
    vec![
        loaded("steps", largest, "count", 0.into()),
        loaded("here", 1, "count", head.first_token()),
        loaded("large", 1, "count", first(row.largest())),
        loaded("small", 1, "count", first(row.base())),
        loaded("slopes", heads, "slopes", block * i64::from(heads)),
        Scratch::new("row", DType::F32, 1),
        Scratch::new("origin", DType::F32, 1),
        Scratch::new("places", DType::F32, largest),
        Scratch::new("gaps", DType::F32, gaps),
    ]
}

impl Kernel<'_> {
    fn counts(&self) -> bool {
        is_needed(&self.scores)
    }

    fn counter(&self, kind: OpKind, by: i64, counter: &str) -> Stmt {
        op(kind, to(self.all(counter)), [from(self.all(counter)), number(by as f64)], dims([1]))
    }

    /// The own block is the visiting one.
    pub fn start_at_home(&self) -> Vec<Stmt> {
        if !self.counts() {
            return vec![];
        }
        vec![
            op(OpKind::Mov, to(self.all("row")), [number(0.0)], dims([1])),
            op(OpKind::Mov, to(self.all("origin")), [from(self.all("here"))], dims([1])),
        ]
    }

    /// The visiting block is that of the own column in the row above, which has `tokens` tokens.
    pub fn start_above(&self, tokens: u32) -> Vec<Stmt> {
        if !self.counts() {
            return vec![];
        }
        let large = tokens == self.site.placed.tokens.tiles().largest();
        let first = from(self.all(if large { "large" } else { "small" }));
        vec![
            self.counter(OpKind::Sub, i64::from(tokens), "row"),
            op(OpKind::Add, to(self.all("origin")), [from(self.all("row")), first], dims([1])),
        ]
    }

    /// The next block comes from the column before, and has `keys` tokens.
    pub fn step_back(&self, keys: i64) -> Vec<Stmt> {
        if self.counts() { vec![self.counter(OpKind::Sub, keys, "origin")] } else { vec![] }
    }

    /// The next block comes from the last column of a row of `tokens` tokens.
    pub fn wrap(&self, tokens: u32) -> Vec<Stmt> {
        if self.counts() { vec![self.counter(OpKind::Add, i64::from(tokens), "origin")] } else { vec![] }
    }

    /// Adds what the distance to the `keys` keys of the visiting block makes of the scores.
    pub fn weigh_distance(&self, keys: i64) -> Vec<Stmt> {
        if !self.counts() {
            return vec![];
        }
        let origin = from(strided(&self.name("origin"), 0, &[0]));
        let mut body =
            vec![op(OpKind::Add, to(self.all("places")), [from(self.all("steps")), origin], dims([keys]))];
        if !self.scores.slopes.is_empty() {
            let slopes = from(strided(&self.name("slopes"), 0, &[1, 0, 0]));
            let places = from(strided(&self.name("places"), 0, &[0, 0, 1]));
            body.push(self.add_to_scores(slopes, places, keys));
        }
        if let Some(window) = self.scores.window {
            body.extend(self.hide_beyond(i64::from(window), keys));
        }
        body
    }

    fn add_to_scores(&self, a: Operand, b: Operand, keys: i64) -> Stmt {
        let lengths = dims([self.query_heads(), self.tokens(), keys]);
        op(OpKind::Fmac, to(self.all("scores")), [a, b, from(self.all("scores"))], lengths)
    }

    /// Hides keys that are `window` or more before the query: the gap beyond the window, cut to 0 or 1, times minus
    /// infinity.
    fn hide_beyond(&self, window: i64, keys: i64) -> Vec<Stmt> {
        let gaps = || self.all("gaps");
        let both = || dims([self.tokens(), keys]);
        let with = |kind, operand| op(kind, to(gaps()), [from(gaps()), operand], both());
        let queries = from(strided(&self.name("steps"), 0, &[1, 0]));
        let here = from(strided(&self.name("here"), 0, &[0, 0]));
        let of_head = from(strided(&self.name("gaps"), 0, &[0, keys, 1]));
        vec![
            op(OpKind::Add, to(gaps()), [queries, here], both()),
            with(OpKind::Sub, from(strided(&self.name("places"), 0, &[0, 1]))),
            with(OpKind::Sub, number((window - 1) as f64)),
            with(OpKind::Max, number(0.0)),
            with(OpKind::Min, number(1.0)),
            self.add_to_scores(of_head, number(MASKED), keys),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_the_published_ones() {
        assert_eq!(slopes(8, 1.0), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        let twelve = slopes(12, 1.0);
        assert_eq!(twelve[..8], slopes(8, 1.0)[..]);
        assert_eq!(twelve[8..], [0, 2, 4, 6].map(|i| slopes(16, 1.0)[i]));
        assert!(slopes(0, 1.0).is_empty());
    }
}
