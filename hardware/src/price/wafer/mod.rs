//! What operations on a wafer take, in cycles of its clock.

mod attention;
mod backward;
mod kernel;
mod rates;
mod reduce;
mod resident;
mod ring;

pub use attention::{HeadTile, attention, attention_backward, gather};
pub use backward::{column_sum, loss, loss_backward, norm_backward, norm_weight, outer_product};
pub use kernel::{linear, norm, passing, pointwise, rope};
pub use rates::{Area, FUNCTION_CYCLES, Functions, Rates};
pub use reduce::{Links, Reduce, balanced_groups, line_exchange, pick_reduce};
pub use resident::{CacheTile, cached_attention, gemv, turn};
pub use ring::Ring;

use crate::gpu::Precision;
use crate::unit::{Bytes, Cycles, Seconds};
use crate::wafer::{Ingress, Router, Wafer};

/// A vector operation over `elements` by one processing element: its call overhead and the elements at the
/// SIMD rate of the precision (wafer-microbench: n + 6 cycles for an fp32 multiply). `None` where the
/// machine has no such arithmetic.
pub fn vector_op(wafer: &Wafer, elements: u64, precision: Precision) -> Option<Cycles> {
    let rate = wafer.pe.fmac.get(&precision)?.0;
    Some(wafer.pe.call_overhead + Cycles((elements as f64 / rate).ceil() as u64))
}

/// The first word from one core to another `hops` away: up the ramp, across, down the ramp
/// (arXiv 2404.15888, latency term).
pub fn first_word(router: &Router, hops: u64) -> Cycles {
    router.ramp * 2 + router.hop * hops
}

/// A stream of `words` to a core `hops` away: the first word, then one word per cycle.
pub fn stream(router: &Router, words: u64, hops: u64) -> Cycles {
    first_word(router, hops) + Cycles(words.saturating_sub(1))
}

/// Data into or out of one system over all its links.
pub fn ingress(ingress: &Ingress, bytes: Bytes) -> Seconds {
    bytes / ingress.bandwidth()
}

/// A weight-streamed linear of `weights` on `columns` x `rows` processing elements.
///
/// Tokens lie over rows, input features over columns. A weight is broadcast down its column and triggers one
/// multiply-accumulate over the tokens of a row in each core; the partial sums of an output chain along the row
/// at one word per cycle. Per column: `k` features, `n` tokens a core, so a weight takes
/// `n/r + overhead + n/k` cycles with `r` multiply-accumulates per cycle (first-order account; the
/// efficiency is `1 / (1 + r o / n + r / k)`). `None` where the machine has no such arithmetic.
pub fn streamed_linear(wafer: &Wafer, linear: StreamedLinear, precision: Precision) -> Option<Cycles> {
    let columns = wafer.fabric.usable.width;
    let rows = wafer.fabric.usable.height;
    let features = linear.inputs.div_ceil(columns);
    let tokens = linear.tokens.div_ceil(rows);
    let weights = features.saturating_mul(linear.outputs);
    let multiply = vector_op(wafer, tokens, precision)?;
    let reduce = tokens.saturating_mul(linear.outputs);
    Some(Cycles(weights.saturating_mul(multiply.0).saturating_add(reduce)))
}

/// Sizes of a streamed linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamedLinear {
    /// Features that enter, spread over the columns.
    pub inputs: u64,
    /// Features that leave.
    pub outputs: u64,
    /// Tokens on the wafer, spread over the rows.
    pub tokens: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::machine;

    fn wse2() -> Wafer {
        machine("wse2").unwrap().wafer().unwrap().clone()
    }

    #[test]
    fn vector_ops_match_the_simulator_rows() {
        let wafer = wse2();
        assert_eq!(vector_op(&wafer, 1028, Precision::Fp32), Some(Cycles(1034)));
        assert_eq!(vector_op(&wafer, 5124, Precision::Fp32), Some(Cycles(5130)));
        assert_eq!(vector_op(&wafer, 1024, Precision::Fp16), Some(Cycles(262)));
        assert_eq!(vector_op(&wafer, 8, Precision::Int8), None);
    }

    #[test]
    fn a_stream_pays_two_ramps_its_hops_and_a_cycle_a_word() {
        let wafer = wse2();
        assert_eq!(first_word(&wafer.router, 10), Cycles(14));
        assert_eq!(stream(&wafer.router, 100, 10), Cycles(113));
    }

    #[test]
    fn four_hundred_megabytes_enter_in_under_three_milliseconds() {
        let cs2 = machine("cs2").unwrap();
        let links = cs2.wafer().unwrap().ingress.as_ref().unwrap();
        let time = ingress(links, Bytes(403e6));
        assert!((time.0 - 2.7e-3).abs() < 1e-4, "{time}");
    }

    #[test]
    fn streamed_linears_are_never_faster_than_their_arithmetic() {
        let wafer = wse2();
        let linear = StreamedLinear { inputs: 4096, outputs: 11008, tokens: 66 * 2048 };
        let cycles = streamed_linear(&wafer, linear, Precision::Mixed).unwrap();
        let macs = 4096.0 * 11008.0 * 66.0 * 2048.0;
        let floor = macs / (2.0 * wafer.fabric.usable.pes() as f64);
        assert!(cycles.0 as f64 >= floor && (cycles.0 as f64) < 2.0 * floor, "{cycles} {floor}");
    }
}
