//! What a wafer's fabric and PEs can do per cycle: the numbers behind every price rule of the simulator.

use crate::program::{OpKind, Serial};
use lapidary_hardware::price::wafer::{FUNCTION_CYCLES, Functions};
use lapidary_hardware::{Precision, Statements, Wafer};
use serde::{Deserialize, Serialize};

/// Figures of one kind of wafer. Cycles are the truth; the clock only turns them into seconds.
///
/// Sources are given per field; "assumed" marks figures without a printed value, which are calibrated against
/// published measurements and must be listed in reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FabricSpec {
    /// Name of the wafer, for reports.
    pub name: String,
    /// Largest usable width in PEs.
    pub max_width: u32,
    /// Largest usable height in PEs.
    pub max_height: u32,
    /// Clock in hertz.
    pub clock_hz: f64,
    /// Memory of a PE in bytes.
    pub sram_bytes: u32,
    /// Memory banks of a PE. Neighbouring words lie in neighbouring banks; banks that agree modulo half their number
    /// share a port.
    pub banks: u32,
    /// Bytes of a bank's word.
    pub bank_word: u32,
    /// Routable colours.
    pub colours: u8,
    /// Switch positions per colour and router.
    pub switch_positions: usize,
    /// Cycles for a word from one router to the next.
    pub hop_cycles: u32,
    /// Cycles for a word between a processor and its router, each way (T_R).
    pub ramp_cycles: u32,
    /// Words per cycle over one link, one direction.
    pub link_words_per_cycle: u32,
    /// Words that the queue from processor to router holds, per colour.
    pub queue_out: u32,
    /// Words that a router holds per colour and hop.
    pub queue_hop: u32,
    /// Words that the queue from router to processor holds, per colour.
    pub queue_in: u32,
    /// Elements per cycle when all operands are 16-bit.
    pub simd_half: u32,
    /// Elements per cycle when sources are 16-bit and only the accumulator or destination is f32.
    pub simd_mixed: u32,
    /// Elements per cycle when a source is f32.
    pub simd_single: u32,
    /// Cycles before the first element of an op without a streaming fabric operand. From `@fmuls`: n + 6.
    pub op_issue: u32,
    /// Cycles before the first element of an op with a streaming fabric operand. Assumed hidden: microthreads are set
    /// up before their data arrive.
    pub stream_issue: u32,
    /// Cycles to start a data, control or local task.
    pub task_activation: u32,
    /// Cycles to load a descriptor of several dimensions, as a program says it.
    pub descriptor: u32,
    /// Cycles to start an asynchronous transfer, as a program says it.
    pub transfer: u32,
    /// Elements that the streaming ops of a parallel group move in a cycle together; `None` where each has a datapath of
    /// its own and the ramp alone limits them, as the published cost model of collectives counts.
    pub moves_per_cycle: Option<u32>,
    /// 32-bit sums of two vectors in memory per cycle.
    pub sums_per_cycle: u32,
    /// Whether ops take whole SIMD groups of each row, and no more of a vector than one 64-bit read a cycle brings.
    pub whole_groups: bool,
    /// Cycles that 4 elements of a 32-bit multiply-accumulate take whose sum and destination are one slice.
    pub shared_register_macs: u32,
    /// Cycles per element of functions that are not one datapath operation. Assumed.
    pub function_cycles: FunctionCycles,
    /// Words per cycle that may enter the whole wafer from the host, and as many that may leave, if that is limited.
    pub host_words_per_cycle: Option<f64>,
}

/// Cycles per element of each function without a datapath operation of its own: those that closed forms use.
pub type FunctionCycles = Functions;

/// Cycles per element if `kind` is such a function.
pub fn function_cycles(cycles: &FunctionCycles, kind: OpKind) -> Option<u32> {
    match kind {
        OpKind::Exp => Some(cycles.exp),
        OpKind::Log => Some(cycles.log),
        OpKind::Recip => Some(cycles.recip),
        OpKind::Sqrt => Some(cycles.sqrt),
        OpKind::Rsqrt => Some(cycles.rsqrt),
        OpKind::Tanh => Some(cycles.tanh),
        OpKind::Erf => Some(cycles.erf),
        _ => None,
    }
}

impl FabricSpec {
    /// The WSE-2 of a CS-2, as `lapidary_hardware` describes it.
    pub fn wse2() -> Self {
        FabricSpec {
            name: "wse2".into(),
            max_width: 750,
            max_height: 994,
            clock_hz: 1.1e9,
            sram_bytes: 48 * 1024,
            banks: 8,
            bank_word: 4,
            colours: 24,
            switch_positions: 4,
            hop_cycles: 1,
            ramp_cycles: 2,
            link_words_per_cycle: 1,
            queue_out: 2,
            queue_hop: 2,
            queue_in: 6,
            simd_half: 4,
            simd_mixed: 2,
            simd_single: 1,
            op_issue: 6,
            stream_issue: 0,
            task_activation: 1,
            descriptor: 6,
            transfer: 7,
            moves_per_cycle: None,
            sums_per_cycle: 1,
            whole_groups: false,
            shared_register_macs: 4,
            function_cycles: FUNCTION_CYCLES,
            host_words_per_cycle: Some(12.0 * 12.5e9 / 4.0 / 1.1e9),
        }
    }

    /// Whether a grid of this size fits on the wafer, turned by a quarter if need be.
    pub fn holds(&self, width: u32, height: u32) -> bool {
        let fits = |w: u32, h: u32| w <= self.max_width && h <= self.max_height;
        width > 0 && height > 0 && (fits(width, height) || fits(height, width))
    }

    /// Least cycles that the host's links need for these words each way.
    pub fn host_cycles(&self, words_in: u64, words_out: u64) -> u64 {
        let most = words_in.max(words_out) as f64;
        self.host_words_per_cycle.map_or(0, |rate| (most / rate).ceil() as u64)
    }

    /// Cycles of one piece of work beside vector operations.
    pub fn serial_cycles(&self, what: Serial) -> u32 {
        match what {
            Serial::Code => 1,
            Serial::Descriptors => self.descriptor,
            Serial::Transfers => self.transfer,
            Serial::Tasks => self.task_activation,
        }
    }

    /// Bytes after which an address has the same port again.
    pub fn port_period(&self) -> i64 {
        i64::from(self.bank_word.max(1)) * i64::from((self.banks / 2).max(1))
    }

    /// The machine for programs that say themselves how they set up descriptors, start transfers and run tasks: ops cost
    /// what they cost with their descriptors in registers, and concurrent transfers share a datapath. `None` where the
    /// file of the machine does not price statements.
    pub fn by_statement(wafer: &Wafer) -> Option<Self> {
        let costs: &Statements = wafer.pe.statements.as_ref()?;
        let issue = costs.vector_issue.0 as u32;
        Some(FabricSpec {
            op_issue: issue,
            stream_issue: issue,
            moves_per_cycle: Some(costs.moves_per_cycle.0 as u32),
            sums_per_cycle: costs.sums_per_cycle.0 as u32,
            whole_groups: true,
            shared_register_macs: costs.shared_register_macs.0 as u32,
            ..FabricSpec::from(wafer)
        })
    }

    /// Seconds that `cycles` take.
    pub fn seconds(&self, cycles: u64) -> f64 {
        cycles as f64 / self.clock_hz
    }
}

impl From<&Wafer> for FabricSpec {
    /// Takes every figure that a machine file has; queues are the first of each kind. What no file prints stays as
    /// documented on the fields.
    fn from(wafer: &Wafer) -> Self {
        let base = FabricSpec::wse2();
        let rate = |p: Precision, otherwise: u32| wafer.pe.fmac.get(&p).map_or(otherwise, |r| r.0 as u32);
        let queue = |q: &[u64], otherwise: u32| q.first().map_or(otherwise, |d| *d as u32);
        let cost = |of: fn(&Statements) -> u64, otherwise: u32| {
            wafer.pe.statements.as_ref().map_or(otherwise, |costs| of(costs) as u32)
        };
        let clock = wafer.clock().0;
        let words = |bytes: f64| bytes / wafer.router.word.0 / clock;
        FabricSpec {
            name: wafer.architecture.clone(),
            max_width: wafer.fabric.usable.width as u32,
            max_height: wafer.fabric.usable.height as u32,
            clock_hz: clock,
            sram_bytes: wafer.pe.sram.0 as u32,
            banks: wafer.pe.banks as u32,
            bank_word: wafer.pe.bank_word.0 as u32,
            colours: wafer.router.colours as u8,
            switch_positions: wafer.router.switch_positions as usize,
            hop_cycles: wafer.router.hop.0 as u32,
            ramp_cycles: wafer.router.ramp.0 as u32,
            queue_out: queue(&wafer.router.output_queues, base.queue_out),
            queue_in: queue(&wafer.router.input_queues, base.queue_in),
            simd_half: rate(Precision::Fp16, base.simd_half),
            simd_mixed: rate(Precision::Mixed, base.simd_mixed),
            simd_single: rate(Precision::Fp32, base.simd_single),
            op_issue: wafer.pe.call_overhead.0 as u32,
            task_activation: cost(|c| c.task_activation.0, base.task_activation),
            descriptor: cost(|c| c.descriptor.0, base.descriptor),
            transfer: cost(|c| c.transfer.0, base.transfer),
            host_words_per_cycle: wafer.ingress.as_ref().map(|i| words(i.bandwidth().0)),
            ..base
        }
    }
}

impl Default for FabricSpec {
    fn default() -> Self {
        FabricSpec::wse2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_file_of_the_cs2_says_what_is_assumed_here() {
        let machine = lapidary_hardware::builtin::machine("cs2").unwrap();
        let fabric = FabricSpec::from(machine.wafer().unwrap());
        let rate = |f: &FabricSpec| f.host_words_per_cycle.unwrap();
        assert!((rate(&fabric) - rate(&FabricSpec::wse2())).abs() < 1e-9);
        let same = FabricSpec { host_words_per_cycle: FabricSpec::wse2().host_words_per_cycle, ..fabric };
        assert_eq!(same, FabricSpec::wse2());
    }

    #[test]
    fn a_wafer_can_be_turned() {
        let wafer = FabricSpec::wse2();
        assert!(
            wafer.holds(750, 994) && wafer.holds(994, 750) && !wafer.holds(994, 751) && !wafer.holds(0, 1)
        );
    }
}
