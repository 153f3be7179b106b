//! What the generator has to know about a wafer.

use lapidary_hardware::unit::Hertz;
use lapidary_hardware::{Precision, Wafer};
use lapidary_models::dtype::DType;

/// What the generator has to know about a wafer.
#[derive(Clone, Debug, PartialEq)]
pub struct WaferSpec {
    /// Bytes of a PE's memory.
    pub sram_bytes: u64,
    /// Banks of it.
    pub banks: u64,
    /// Bytes of a bank's word: neighbouring words lie in neighbouring banks.
    pub bank_word: u64,
    /// Bytes kept free for code: an assumption, there is no printed figure for it.
    pub code_bytes: u64,
    /// Bytes kept for what layers keep between programs.
    pub kept_bytes: u64,
    /// Routable colours.
    pub colours: u32,
    /// Bytes that can enter (and leave) the wafer in a cycle.
    pub bytes_per_cycle: f64,
    /// Cycles by which a PE of a chain is behind the one before: up and down the ramp, the hop, the operation.
    pub hop_cycles: u64,
    /// Cycles between core and router, one way.
    pub ramp_cycles: u64,
    /// Words that surely fit between two neighbours.
    pub link_words: u64,
    /// PEs of the longest line whose sums may be made by a tree: each of its rounds takes a colour.
    pub longest_tree: u32,
    /// Cycles that a vector operation takes beside its elements.
    pub issue_cycles: u64,
    /// Multiply-accumulates per cycle into f32 of 16-bit operands.
    pub narrow_macs: f64,
    /// Multiply-accumulates per cycle of f32 operands.
    pub wide_macs: f64,
}

/// Bytes kept for the code of a PE: the statements of a whole layer are a few hundred instructions.
const CODE_BYTES: u64 = 4096;

impl WaferSpec {
    /// The figures of a described wafer at a clock. Without links the edge is taken to carry a word per column.
    pub fn of(wafer: &Wafer, clock: Hertz) -> Self {
        let macs = |precision| wafer.pe.fmac.get(&precision).map_or(1.0, |rate| rate.0);
        let edge = wafer.fabric.usable.width as f64 * wafer.router.word.0;
        WaferSpec {
            sram_bytes: wafer.pe.sram.0 as u64,
            banks: wafer.pe.banks,
            bank_word: wafer.pe.bank_word.0 as u64,
            code_bytes: CODE_BYTES,
            kept_bytes: 0,
            colours: wafer.router.colours as u32,
            bytes_per_cycle: wafer.ingress.as_ref().map_or(edge, |links| links.bandwidth().0 / clock.0),
            hop_cycles: 2 * wafer.router.ramp.0 + wafer.router.hop.0 + 1,
            ramp_cycles: wafer.router.ramp.0,
            link_words: wafer.router.link_words(),
            longest_tree: u32::MAX,
            issue_cycles: wafer.pe.call_overhead.0,
            narrow_macs: macs(Precision::Mixed),
            wide_macs: macs(Precision::Fp32),
        }
    }

    /// Multiply-accumulates per cycle into f32.
    pub fn macs_per_cycle(&self, operands: DType) -> f64 {
        match operands {
            DType::F16 | DType::Bf16 => self.narrow_macs,
            DType::F32 | DType::I32 => self.wide_macs,
        }
    }

    /// Bytes for buffers.
    pub fn buffer_bytes(&self) -> u64 {
        self.sram_bytes.saturating_sub(self.code_bytes).saturating_sub(self.kept_bytes)
    }
}
