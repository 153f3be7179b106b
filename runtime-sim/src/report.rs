//! What a simulation found: cycles first, and what they were spent on.

use crate::heat::HeatMap;
use crate::program::{Coord, Port};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Result of timing a program at any level.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `event`, `flow` or `analytic`.
    pub level: String,
    /// From the start until the last PE is done and the last word has left.
    pub cycles: u64,
    /// `cycles` at `clock_hz`.
    pub seconds: f64,
    /// The clock assumed.
    pub clock_hz: f64,
    /// PEs that have a class.
    pub pes: u64,
    /// Share of all PE cycles in which elements were moved or computed.
    pub pe_busy_pct: f64,
    /// Most memory used by a PE.
    pub sram_peak_bytes: u64,
    /// The class of that PE.
    pub sram_peak_class: String,
    /// The link with the most words.
    pub hottest_link: Option<HotLink>,
    /// Words sent by PEs, hosts and switches.
    pub words: u64,
    /// Words times links crossed.
    pub word_hops: u64,
    /// Words that entered from the host.
    pub host_in_words: u64,
    /// Words that left to the host.
    pub host_out_words: u64,
    /// Least cycles that the host links need for these words; a bound outside the wafer.
    pub host_cycles: u64,
    /// Cycles of the PE that finished last, by cause; they add up to its time.
    pub terms: BTreeMap<String, u64>,
    /// Cycles of the chain of work, words and room that ended last, by cause; they add up to `cycles`. Empty where it
    /// was not asked for.
    pub critical_path: BTreeMap<String, u64>,
    /// Classes in program order.
    pub classes: Vec<ClassReport>,
    /// Phases in program order: first entry and last exit.
    pub phases: Vec<PhaseReport>,
    /// Where on the grid.
    pub heat: HeatMap,
    /// Figures without a printed source that the result depends on.
    pub assumptions: Vec<Assumption>,
    /// What this level leaves out for this program: the result may be off where it matters.
    pub limits: Vec<String>,
}

/// A link and what passed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotLink {
    /// The router it leaves.
    pub at: Coord,
    /// Through which port.
    pub port: Port,
    /// Words that passed.
    pub words: u64,
    /// Share of cycles with a word.
    pub load_pct: f64,
}

/// One class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Its name.
    pub name: String,
    /// Number of PEs.
    pub pes: u64,
    /// Share of PE cycles in which elements were moved or computed.
    pub busy_pct: f64,
    /// Memory in use: end of the last buffer.
    pub sram_bytes: u64,
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Its name.
    pub name: String,
    /// When the first PE entered it.
    pub start: u64,
    /// When the last PE left it.
    pub end: u64,
}

/// An unprinted figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assumption {
    /// Its name in the fabric's description.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// Where it comes from.
    pub source: String,
}

/// The unprinted figures of a fabric.
pub fn assumptions(spec: &crate::FabricSpec) -> Vec<Assumption> {
    let row = |name: &str, value: u32, unit: &str, source: &str| Assumption {
        name: name.into(),
        value: f64::from(value),
        unit: unit.into(),
        source: source.into(),
    };
    let f = spec.function_cycles;
    vec![
        row("op_issue", spec.op_issue, "cycles", "SDK-simulator rows of @fmuls: n + 6"),
        row("stream_issue", spec.stream_issue, "cycles", "assumed: hidden by microthreads"),
        row("task_activation", spec.task_activation, "cycles", "fitted on stencils in the SDK's simulator"),
        row("queue_out", spec.queue_out, "words", "quoted queue sizes"),
        row("queue_in", spec.queue_in, "words", "quoted queue sizes"),
        row("queue_hop", spec.queue_hop, "words", "assumed"),
        row("function_cycles.exp", f.exp, "cycles per element", "assumed"),
        row("function_cycles.recip", f.recip, "cycles per element", "assumed"),
        row("function_cycles.rsqrt", f.rsqrt, "cycles per element", "assumed"),
        row("function_cycles.tanh", f.tanh, "cycles per element", "assumed"),
        row("function_cycles.erf", f.erf, "cycles per element", "assumed"),
    ]
}
