//! Closed forms of the kernels, statement by statement: what the fullest processing element spends, and the latency of
//! the row or column that it waits for once. Level `analytic`.
//!
//! The forms follow the generated programs where there is one (forward kernels, `passes/src/wafer/kernel`); those of the
//! backward kernels follow the placement stated at each.

use super::rates::{Area, FUNCTION_CYCLES, Rates};

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

/// Cycles of the derivative by a weight `[outputs, inputs]`, the outer product of the gradients and the inputs that lie
/// in a row, summed over the rows.
///
/// The gradients of a column travel round the row, block by block; each element multiplies the visiting block with
/// its own inputs, sums over its tokens, and adds to what comes from the row above: one word of 32 bits for each
/// weight of the block and the column.
pub fn outer_product(rates: &Rates, area: &Area, inputs: f64, outputs: u64) -> f64 {
    let tokens = area.tokens as f64;
    let block = area.features(outputs);
    let visiting = block * tokens;
    let turn = visiting * rates.packed + rates.neighbour + rates.op(visiting, rates.half);
    let products = rates.op(block * inputs, rates.mixed) + rates.op(block * inputs * tokens, rates.mixed);
    let reduce = block * inputs;
    let turns = (outputs as f64 / block.max(1.0)).min(area.columns as f64);
    turns * (turn + products + reduce) + ring(rates, area) + area.rows as f64 * rates.neighbour
}

/// Cycles of RMSNorm, or LayerNorm with `means`: two words per token run to the end of the row and back.
pub fn norm(rates: &Rates, area: &Area, features: u64, means: bool) -> f64 {
    let (own, tokens) = (area.features(features), area.tokens as f64);
    let words = if means { 2.0 } else { 1.0 } * tokens;
    let sums = rates.op(words, rates.mixed)
        + rates.op(own * tokens, rates.mixed)
        + if means { rates.op(own * tokens, rates.single) } else { 0.0 };
    let deviation = rates.op(words, rates.single)
        + rates.op(tokens, rates.single) * if means { 4.0 } else { 1.0 }
        + rates.function(tokens, FUNCTION_CYCLES.rsqrt);
    let apply = own * rates.op(tokens, rates.single) * if means { 3.0 } else { 2.0 };
    sums + row_exchange(rates, area, words) + deviation + apply
}

/// Cycles of a norm's derivatives by its input and its weight: two sums over the row for each token, their use, and
/// one sum over the tokens for each feature.
pub fn norm_backward(rates: &Rates, area: &Area, features: u64, means: bool) -> f64 {
    let (own, tokens) = (area.features(features), area.tokens as f64);
    let words = if means { 2.0 } else { 1.0 } * tokens;
    let normalised = own * rates.op(tokens, rates.single) * if means { 2.0 } else { 1.0 };
    let sums = rates.op(own * tokens, rates.single) * if means { 2.0 } else { 1.0 };
    let apply = own * rates.op(tokens, rates.single) * if means { 3.0 } else { 2.0 };
    let weighed = own * rates.op(tokens, rates.single);
    normalised + sums + row_exchange(rates, area, words) + weighed + apply
}

/// Cycles of a norm's derivatives by weight and bias, or of a bias's: sums over tokens, reduced down the column.
pub fn column_sum(rates: &Rates, area: &Area, features: u64) -> f64 {
    let own = area.features(features);
    rates.op(area.elements(features), rates.single) + own + area.rows as f64 * (rates.neighbour + 1.0)
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

/// Cycles for `words` words per row to run to its end, and back to all of it.
pub fn row_exchange(rates: &Rates, area: &Area, words: f64) -> f64 {
    let far = area.columns.saturating_sub(1) as f64;
    2.0 * words + far * (rates.neighbour + 1.0) + far * rates.hop + 2.0 * rates.ramp
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
    use super::*;
    use crate::builtin::machine;

    fn wse2() -> (Rates, Area) {
        let wafer = machine("wse2").unwrap().wafer().unwrap().clone();
        (Rates::of(&wafer, true).unwrap(), Area { columns: 750, rows: 990, tokens: 137 })
    }

    #[test]
    fn a_linear_is_never_faster_than_its_arithmetic_nor_than_its_words() {
        let (rates, area) = wse2();
        let cycles = linear(&rates, &area, area.features(4096), 11008);
        let macs = 6.0 * 137.0 / 2.0 * 11008.0;
        assert!(cycles > macs + 137.0 * 11008.0 && cycles < 1.5 * macs, "{cycles} {macs}");
    }

    #[test]
    fn a_weight_gradient_costs_about_what_its_linear_costs() {
        let (rates, area) = wse2();
        let forward = linear(&rates, &area, area.features(4096), 11008);
        let weight = outer_product(&rates, &area, area.features(4096), 11008);
        assert!((0.7..1.2).contains(&(weight / forward)), "{weight} {forward}");
    }

    #[test]
    fn everything_grows_with_tokens_and_shrinks_with_columns() {
        let (rates, area) = wse2();
        let forms: [&dyn Fn(&Area) -> f64; 5] = [
            &|a| linear(&rates, a, a.features(4096), 4096),
            &|a| outer_product(&rates, a, a.features(4096), 4096),
            &|a| norm(&rates, a, 4096, true),
            &|a| norm_backward(&rates, a, 4096, true),
            &|a| pointwise(&rates, a, 4096, 3.0, 16.0),
        ];
        for form in forms {
            assert!(form(&Area { tokens: 2 * area.tokens, ..area }) > form(&area));
            assert!(form(&Area { columns: area.columns / 2, ..area }) > form(&area));
        }
    }
}
