//! What one processing element does in a cycle, and the share of the wafer that a kernel has: what closed forms are made
//! of. The simulator prices the statements of programs by the same numbers.

use crate::gpu::Precision;
use crate::wafer::Wafer;
use serde::{Deserialize, Serialize};

/// Cycles per element of functions that are not one datapath operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Functions {
    /// `exp`.
    pub exp: u32,
    /// `log`.
    pub log: u32,
    /// `1 / x`.
    pub recip: u32,
    /// `sqrt`.
    pub sqrt: u32,
    /// `1 / sqrt`.
    pub rsqrt: u32,
    /// `tanh`.
    pub tanh: u32,
    /// `erf`.
    pub erf: u32,
}

/// Assumed: no figure is printed for them.
pub const FUNCTION_CYCLES: Functions =
    Functions { exp: 16, log: 16, recip: 8, sqrt: 16, rsqrt: 16, tanh: 24, erf: 24 };

/// Rates of a processing element, in elements per cycle, and what comes on top of them, in cycles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Cycles that a vector op on memory takes beside its elements.
    pub issue: f64,
    /// Operands and result of the element type.
    pub half: f64,
    /// Sources of the element type, sums in 32 bits.
    pub mixed: f64,
    /// A source in 32 bits.
    pub single: f64,
    /// Words of a value on the fabric, packed.
    pub packed: f64,
    /// Cycles from a word's departure at one element to its use at the neighbour.
    pub neighbour: f64,
    /// Cycles of a hop.
    pub hop: f64,
    /// Cycles between core and router, one way.
    pub ramp: f64,
    /// Words that surely fit between two neighbours.
    pub link_words: u64,
    /// Elements of the longest line whose sums may be made by a tree.
    pub longest_tree: u64,
}

impl Rates {
    /// Values of 16 bits with sums in 32, or everything in 32 bits. `None` where the machine has no such arithmetic.
    pub fn of(wafer: &Wafer, narrow: bool) -> Option<Rates> {
        let rate = |precision| wafer.pe.fmac.get(&precision).map(|rate| rate.0);
        let single = rate(Precision::Fp32)?;
        let (half, mixed) =
            if narrow { (rate(Precision::Fp16)?, rate(Precision::Mixed)?) } else { (single, single) };
        let (hop, ramp) = (wafer.router.hop.0 as f64, wafer.router.ramp.0 as f64);
        Some(Rates {
            issue: wafer.pe.call_overhead.0 as f64,
            half,
            mixed,
            single,
            packed: if narrow { 0.5 } else { 1.0 },
            neighbour: 2.0 * ramp + hop,
            hop,
            ramp,
            link_words: wafer.router.link_words(),
            longest_tree: u64::MAX,
        })
    }

    /// A vector op on memory of `elements` at `rate` elements per cycle; nothing where there are none.
    pub fn op(&self, elements: f64, rate: f64) -> f64 {
        if elements > 0.0 { self.issue + elements / rate } else { 0.0 }
    }

    /// A function of `elements` that takes `cycles` each.
    pub fn function(&self, elements: f64, cycles: u32) -> f64 {
        self.op(elements, 1.0 / f64::from(cycles))
    }
}

/// The rectangle that a kernel has, and its fullest row: tokens lie over rows, features over columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Columns of processing elements.
    pub columns: u64,
    /// Rows of processing elements.
    pub rows: u64,
    /// Tokens of the fullest row.
    pub tokens: u64,
}

impl Area {
    /// Features of the fullest column.
    pub fn features(&self, features: u64) -> f64 {
        features.div_ceil(self.columns.max(1)) as f64
    }

    /// Elements of a value of `features` in the fullest processing element.
    pub fn elements(&self, features: u64) -> f64 {
        self.features(features) * self.tokens as f64
    }
}

/// What tests of closed forms are made on: 66 sequences of 2048 tokens, each on 15 rows.
#[cfg(test)]
pub(super) fn wse2() -> (Rates, Area) {
    let wafer = crate::builtin::machine("wse2").unwrap().wafer().unwrap().clone();
    (Rates::of(&wafer, true).unwrap(), Area { columns: 750, rows: 990, tokens: 137 })
}
