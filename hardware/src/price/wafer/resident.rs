//! Closed forms of ops on one token whose parameters and cache stay in memory, statement by statement, as those of
//! [`super::kernel`].

use super::rates::{FUNCTION_CYCLES, Rates};
use super::reduce::line_exchange;

/// Cycles of a product with resident weights: the fullest element multiplies `inputs` with weights of each of the
/// `outputs`, the sums of a line of `line` elements are made and go back to all of it.
pub fn gemv(rates: &Rates, line: u64, inputs: f64, outputs: f64) -> f64 {
    let products = rates.op(outputs, rates.mixed) + rates.op(outputs * inputs, rates.mixed);
    products + line_exchange(rates, line, outputs, outputs) + rates.op(outputs, rates.single)
}

/// Cycles for the one token's rotation: `pairs` of each of `heads` heads in the fullest element, whose angles stream in.
pub fn turn(rates: &Rates, heads: f64, pairs: f64) -> f64 {
    2.0 * pairs + 6.0 * rates.op(heads * pairs, rates.single)
}

/// The fullest element of an attention to a cache: heads over blocks of rows, slots over columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheTile {
    /// Columns.
    pub columns: u64,
    /// Rows of a block of heads.
    pub rows: u64,
    /// Query heads of a block.
    pub heads: f64,
    /// Its key/value heads.
    pub kv: f64,
    /// Features of a head.
    pub own: f64,
    /// Slots of the cache.
    pub slots: f64,
    /// Whether scores depend on the distance: slopes.
    pub slopes: bool,
    /// Whether only a window is seen.
    pub window: bool,
}

/// Cycles of one token's attention to a cache.
pub fn cached_attention(rates: &Rates, tile: &CacheTile) -> f64 {
    let CacheTile { columns, rows, heads, kv, own, slots, .. } = *tile;
    let (scores, each) = (heads * slots, |count: f64| rates.op(count, rates.single));
    let place = 6.0 + if tile.window { 3.0 } else { 0.0 };
    let remember = 2.0 * rates.op(kv * slots * own, rates.single);
    let queries = rates.op(heads * own, rates.half);
    let product = rates.op(scores, rates.mixed) + rates.op(scores * own, rates.mixed);
    let mask = each(scores) * if tile.slopes { 3.0 } else { 2.0 } + rates.op(heads, rates.mixed);
    let softmax = each(scores) + rates.function(scores, FUNCTION_CYCLES.exp);
    let result = heads * (1.0 + own);
    let weigh =
        rates.op(result, rates.mixed) + rates.op(scores, rates.mixed) + rates.op(scores * own, rates.mixed);
    let divide = rates.function(heads, FUNCTION_CYCLES.recip) + each(heads * own);
    let lines = line_exchange(rates, rows, scores, scores)
        + line_exchange(rates, columns, heads, heads)
        + line_exchange(rates, columns, result, result);
    place * each(slots) + remember + queries + product + mask + softmax + weigh + divide + lines
}

#[cfg(test)]
mod tests {
    use super::super::rates::wse2;
    use super::*;

    #[test]
    fn more_elements_make_a_product_shorter_until_the_way_is_longer_than_the_work() {
        let (rates, _) = wse2();
        let side =
            |side: u64| gemv(&rates, side, 4096u64.div_ceil(side) as f64, 4096u64.div_ceil(side) as f64);
        assert!(side(16) > side(64) && side(64) > side(256));
        assert!(side(4000) > side(500));
    }

    #[test]
    fn a_longer_cache_takes_longer() {
        let (rates, _) = wse2();
        let tile = CacheTile {
            columns: 750,
            rows: 30,
            heads: 1.0,
            kv: 1.0,
            own: 6.0,
            slots: 3.0,
            slopes: false,
            window: false,
        };
        let time = cached_attention(&rates, &tile);
        assert!(cached_attention(&rates, &CacheTile { slots: 6.0, ..tile }) > time);
        assert!(cached_attention(&rates, &CacheTile { slopes: true, ..tile }) > time);
        assert!(cached_attention(&rates, &CacheTile { window: true, ..tile }) > time);
    }
}
