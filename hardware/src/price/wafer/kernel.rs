//! Closed forms of the kernels, statement by statement: what the fullest processing element spends, and the latency of
//! the row or column that it waits for once. Level `analytic`.
//!
//! The forms follow the generated programs (`passes/src/wafer/kernel`); those of backward kernels are in [`super::backward`].

use super::rates::{Area, FUNCTION_CYCLES, Rates};
use super::reduce::line_exchange;

/// Cycles of a linear with streamed weights: each of the `outputs` takes an AXPY over the tokens of a row for every
/// input feature of a column, and the partial sums one word per token on their way round the row. The latency of
/// that ring is paid once.
///
/// The derivative by the input is the same kernel with inputs and outputs exchanged: the weights stream transposed.
pub fn linear(rates: &Rates, area: &Area, features: f64, outputs: u64) -> f64 {
    let tokens = area.tokens as f64;
    let output = features * rates.op(tokens, rates.mixed) + tokens;
    outputs as f64 * output + ring(rates, area) + area.rows as f64 * rates.hop
}

/// Cycles of RMSNorm, or LayerNorm with `means`: two words per token run to the end of the row and back.
pub fn norm(rates: &Rates, area: &Area, features: u64, means: bool) -> f64 {
    let (own, tokens) = (area.features(features), area.tokens as f64);
    let apply = own * rates.op(tokens, rates.single) * if means { 3.0 } else { 2.0 };
    norm_statistics(rates, area, features, means) + apply
}

/// Cycles for mean and inverse deviation of every token to be in every column.
pub(super) fn norm_statistics(rates: &Rates, area: &Area, features: u64, means: bool) -> f64 {
    let (own, tokens) = (area.features(features), area.tokens as f64);
    let words = if means { 2.0 } else { 1.0 } * tokens;
    let sums = rates.op(words, rates.mixed)
        + rates.op(own * tokens, rates.mixed)
        + if means { rates.op(own * tokens, rates.single) } else { 0.0 };
    let deviation = rates.op(words, rates.single)
        + rates.op(tokens, rates.single) * if means { 4.0 } else { 1.0 }
        + rates.function(tokens, FUNCTION_CYCLES.rsqrt);
    sums + row_exchange(rates, area, words, words) + deviation
}

/// Cycles of `ops` vector ops over every element of a value, one row of a tile at a time, in 32 bits, and of functions
/// that take `functions` cycles per element.
pub fn pointwise(rates: &Rates, area: &Area, features: u64, ops: f64, functions: f64) -> f64 {
    let (own, tokens) = (area.features(features), area.tokens as f64);
    own * (ops * rates.op(tokens, rates.single) + tokens * functions)
}

/// Cycles of a rotary embedding of `pairs` pairs of features in every one of `heads` heads of `tokens` tokens.
pub fn rope(rates: &Rates, heads: f64, tokens: f64, pairs: f64) -> f64 {
    6.0 * rates.op(heads * tokens * pairs, rates.single)
}

/// Cycles for `out` words per row to be summed at its end, and for `back` words to come back to all of it.
pub fn row_exchange(rates: &Rates, area: &Area, out: f64, back: f64) -> f64 {
    line_exchange(rates, area.columns, out, back)
}

/// Cycles for a value of `features` to enter at one edge of the columns or leave at the other, passed on row by row.
pub fn passing(rates: &Rates, area: &Area, features: u64) -> f64 {
    area.rows as f64 * (area.elements(features) * rates.packed.max(1.0) + rates.neighbour)
}

/// The way round a row.
fn ring(rates: &Rates, area: &Area) -> f64 {
    area.columns as f64 * (rates.neighbour + 1.0)
}

#[cfg(test)]
mod tests {
    use super::super::rates::wse2;
    use super::*;

    #[test]
    fn a_linear_is_never_faster_than_its_arithmetic_nor_than_its_words() {
        let (rates, area) = wse2();
        let cycles = linear(&rates, &area, area.features(4096), 11008);
        let macs = 6.0 * 137.0 / 2.0 * 11008.0;
        assert!(cycles > macs + 137.0 * 11008.0 && cycles < 1.5 * macs, "{cycles} {macs}");
    }

    #[test]
    fn everything_grows_with_tokens_and_shrinks_with_columns() {
        let (rates, area) = wse2();
        let forms: [&dyn Fn(&Area) -> f64; 3] =
            [&|a| linear(&rates, a, a.features(4096), 4096), &|a| norm(&rates, a, 4096, true), &|a| {
                pointwise(&rates, a, 4096, 3.0, 16.0)
            }];
        for form in forms {
            assert!(form(&Area { tokens: 2 * area.tokens, ..area }) > form(&area));
            assert!(form(&Area { columns: area.columns / 2, ..area }) > form(&area));
        }
    }
}
