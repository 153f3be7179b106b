//! Closed forms of the backward kernels and of the loss, statement by statement, as those of [`super::kernel`].

use super::kernel::{norm_statistics, row_exchange};
use super::rates::{Area, FUNCTION_CYCLES, Rates};

/// Cycles of the derivative by a weight: the outer product of a value that stays, `own` features of it in the fullest
/// column, and one of `travelling` features whose columns go round the row, block by block, at the size of the largest.
/// Each element multiplies the visiting block with its own features and sums over its tokens; the products run down the
/// column, one word in 32 bits each. Rows are behind one another by the way to the neighbour.
pub fn outer_product(rates: &Rates, area: &Area, own: f64, travelling: u64) -> f64 {
    let (columns, tokens) = (area.columns.max(1), area.tokens as f64);
    let visiting = area.features(travelling) * tokens;
    let copy = rates.op(visiting, rates.half);
    let turn = visiting * rates.packed + rates.neighbour + copy;
    let meet = |features: u64| {
        let products = own * features as f64;
        rates.op(products, rates.mixed) + rates.op(products * tokens, rates.mixed) + products
    };
    let (base, extra) = (travelling / columns, travelling % columns);
    let met = extra as f64 * meet(base + 1) + (columns - extra) as f64 * meet(base);
    copy + (columns - 1) as f64 * turn + met + down(rates, area)
}

/// Cycles of a sum over all tokens for each of `own` features in the fullest column, reduced down the column.
pub fn column_sum(rates: &Rates, area: &Area, own: f64) -> f64 {
    let sums = rates.op(own * area.tokens as f64, rates.single);
    rates.op(own, rates.mixed) + sums + own + down(rates, area)
}

/// Cycles of a norm's derivative by its input: two sums over the row for each token, or four with `means`, at once; two
/// numbers come back, or three.
pub fn norm_backward(rates: &Rates, area: &Area, features: u64, means: bool) -> f64 {
    let (own, tokens) = (area.features(features), area.tokens as f64);
    let (out, back) = if means { (4.0 * tokens, 3.0 * tokens) } else { (2.0 * tokens, 2.0 * tokens) };
    let each = rates.op(tokens, rates.single);
    let tile =
        rates.op(own * tokens, rates.mixed) + if means { rates.op(own * tokens, rates.single) } else { 0.0 };
    let sums = rates.op(out, rates.mixed) + tile + own * each * if means { 3.0 } else { 2.0 };
    let factors = rates.op(out, rates.single)
        + each * if means { 14.0 } else { 5.0 }
        + rates.function(tokens, FUNCTION_CYCLES.rsqrt);
    sums + row_exchange(rates, area, out, back) + factors + own * 3.0 * each
}

/// Cycles of a norm's derivative by its weight: the statistics again, and a sum over the tokens for each feature, reduced
/// down the column.
pub fn norm_weight(rates: &Rates, area: &Area, features: u64, means: bool) -> f64 {
    let (own, tokens) = (area.features(features), area.tokens as f64);
    let products = own * rates.op(tokens, rates.single) * if means { 3.0 } else { 2.0 };
    let reduce = rates.op(own, rates.mixed) + own + down(rates, area);
    norm_statistics(rates, area, features, means) + products + reduce
}

/// Cycles of the cross entropy over a `vocabulary`.
pub fn loss(rates: &Rates, area: &Area, vocabulary: u64) -> f64 {
    let (own, tokens) = (area.features(vocabulary), area.tokens as f64);
    let each = rates.op(tokens, rates.single);
    let feature = 7.0 * each + rates.function(tokens, FUNCTION_CYCLES.exp);
    let losses = 3.0 * each + rates.function(tokens, FUNCTION_CYCLES.log);
    let sums = rates.op(2.0 * tokens, rates.mixed) + each + own * feature;
    maxima(rates, area, vocabulary)
        + sums
        + row_exchange(rates, area, 2.0 * tokens, 0.0)
        + losses
        + down(rates, area)
}

/// Cycles of the derivative of the cross entropy by the logits.
pub fn loss_backward(rates: &Rates, area: &Area, vocabulary: u64) -> f64 {
    let (own, tokens) = (area.features(vocabulary), area.tokens as f64);
    let each = rates.op(tokens, rates.single);
    let exp = rates.function(tokens, FUNCTION_CYCLES.exp);
    let sums = rates.op(tokens, rates.mixed) + each + own * (2.0 * each + exp);
    let exchange = row_exchange(rates, area, tokens, tokens) + rates.function(tokens, FUNCTION_CYCLES.recip);
    maxima(rates, area, vocabulary) + sums + exchange + own * (8.0 * each + exp)
}

/// The largest logit of every token, in every column.
fn maxima(rates: &Rates, area: &Area, vocabulary: u64) -> f64 {
    let tokens = area.tokens as f64;
    rates.op(tokens, rates.mixed)
        + rates.op(area.elements(vocabulary), rates.single)
        + row_exchange(rates, area, tokens, tokens)
}

/// The way of a sum from the first row to the edge.
fn down(rates: &Rates, area: &Area) -> f64 {
    area.rows as f64 * (rates.neighbour + 1.0)
}

#[cfg(test)]
mod tests {
    use super::super::linear;
    use super::super::rates::wse2;
    use super::*;

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
            &|a| outer_product(&rates, a, a.features(4096), 4096),
            &|a| norm_backward(&rates, a, 4096, true),
            &|a| norm_weight(&rates, a, 4096, true),
            &|a| loss(&rates, a, 32032),
            &|a| loss_backward(&rates, a, 32032),
        ];
        for form in forms {
            assert!(form(&Area { tokens: 2 * area.tokens, ..area }) > form(&area));
            assert!(form(&Area { columns: area.columns / 2, ..area }) > form(&area));
        }
    }
}
