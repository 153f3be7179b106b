//! What a placement uses: memory by class, colours, words and arithmetic by phase.

use super::WaferSpec;
use super::channel::Channel;
use super::kernel::sums;
use super::placed::{OpKind, Placed, PlacedOp};
use lapidary_hardware::price::wafer::Reduce;
use lapidary_runtime_sim::program::{Affine, Direction, HostStream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Account of a generated program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementReport {
    /// Columns of PEs.
    pub width: u32,
    /// Rows of PEs in use.
    pub rows: u32,
    /// Tokens on the wafer at once.
    pub tokens: u64,
    /// Tokens of the fullest row.
    pub tokens_per_row: u32,
    /// Bytes of a PE that buffers may use.
    pub sram_bytes: u64,
    /// Highest byte in use in any PE, plus one.
    pub sram_peak_bytes: u64,
    /// By class.
    pub classes: Vec<ClassReport>,
    /// Sums over lines of PEs: how each is made, and why.
    pub sums: Vec<SumReport>,
    /// Colours in use and what for.
    pub colours: Vec<ColourReport>,
    /// By phase, in order.
    pub phases: Vec<PhaseReport>,
}

/// Memory of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Its name.
    pub name: String,
    /// How many PEs.
    pub pes: u64,
    /// Highest byte in use, plus one.
    pub sram_peak_bytes: u64,
    /// Bytes alive in the fullest phase.
    pub alive_bytes: u64,
    /// The fullest phase.
    pub fullest_phase: String,
    /// Bytes alive by phase.
    #[serde(skip)]
    pub alive_by_phase: Vec<u64>,
}

/// Uses of a colour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColourReport {
    /// Its number.
    pub colour: u8,
    /// Channels and the phases that use them.
    pub channels: Vec<(Channel, Vec<String>)>,
}

/// How a sum over lines of PEs is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SumReport {
    /// The phase.
    pub phase: String,
    /// Which lines.
    pub over: String,
    /// PEs of a line.
    pub pes: u32,
    /// Words of the fullest line.
    pub words: u64,
    /// The way that is taken.
    pub picked: Reduce,
    /// Why.
    pub why: String,
    /// Cycles of every way.
    pub cycles: BTreeMap<String, u64>,
}

impl SumReport {
    /// Sums of an op.
    pub fn of(placed: &Placed, op: &PlacedOp, spec: &WaferSpec) -> Vec<SumReport> {
        let links = sums::links(spec);
        let report = |sum: sums::Sum| {
            let pes = sum.axis.length(placed);
            let cycles = |way: Reduce| (way.name().to_string(), way.cycles(pes.into(), sum.words, links));
            let picked = sum.kind(placed, spec);
            let least = Reduce::ALL.into_iter().min_by_key(|way| cycles(*way).1);
            let why = match least {
                Some(least) if cycles(least).1 < cycles(picked).1 => {
                    format!(
                        "takes least but for a {}, for whose rounds there are not enough colours",
                        least.name()
                    )
                }
                _ => "takes least".into(),
            };
            SumReport {
                phase: op.name.clone(),
                over: sum.axis.name().into(),
                pes,
                words: sum.words,
                picked,
                why,
                cycles: Reduce::ALL.into_iter().map(cycles).collect(),
            }
        };
        sums::of(placed, op).into_iter().map(report).filter(|sum| sum.pes > 1).collect()
    }
}

/// Work of a phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Its name.
    pub name: String,
    /// Kind of the op.
    pub kind: String,
    /// Words that enter the wafer.
    pub words_in: u64,
    /// Words that leave the wafer.
    pub words_out: u64,
    /// Words through the busiest lane, which bound the time from below.
    pub words_busiest_lane: u64,
    /// Multiply-accumulates of linear layers, their derivatives and attention (causal).
    pub macs: u64,
    /// Bytes of a PE that are alive in this phase, in the fullest class.
    pub sram_bytes: u64,
    /// Colours that its routes use.
    pub colours: Vec<u8>,
}

impl PhaseReport {
    /// An account without traffic yet.
    pub fn new(placed: &Placed, phase: usize) -> Self {
        let op = &placed.ops[phase];
        PhaseReport {
            name: op.name.clone(),
            kind: op.kind.name().into(),
            words_in: 0,
            words_out: 0,
            words_busiest_lane: 0,
            macs: macs(placed, &op.kind),
            sram_bytes: 0,
            colours: vec![],
        }
    }

    /// Adds the words of a stream.
    pub fn add(&mut self, stream: &HostStream) {
        for lane in 0..stream.lanes {
            let x = stream.first + lane * stream.step;
            let length = |n: &Affine| n.eval(|var| var.at_place(x, 0).unwrap_or(0)).max(0) as u64;
            let words = stream.dims.iter().map(length).product::<u64>() / u64::from(stream.wire.lanes());
            match stream.direction {
                Direction::In => self.words_in += words,
                Direction::Out => self.words_out += words,
            }
            self.words_busiest_lane = self.words_busiest_lane.max(words);
        }
    }
}

fn macs(placed: &Placed, kind: &OpKind) -> u64 {
    let features =
        |value: &str| placed.values.get(value).map_or(0, |layout| u64::from(placed.features(*layout)));
    let tokens = placed.tokens;
    match kind {
        OpKind::Linear(linear) => {
            let outputs: u64 = linear.outputs.iter().map(|s| features(&s.value)).sum();
            features(&linear.input) * outputs * tokens.total()
        }
        // One token against everything that the cache has room for.
        OpKind::Gemv(linear) => {
            let outputs: u64 = linear.outputs.iter().map(|s| features(&s.value)).sum();
            features(&linear.input) * outputs
        }
        OpKind::CachedAttention(attention) => features(&attention.query) * 2 * u64::from(attention.capacity),
        OpKind::Attention(attention) => {
            let length = u64::from(tokens.length);
            features(&attention.query) * length * (length + 1) * u64::from(tokens.sequences)
        }
        OpKind::Outer(outer) => features(&outer.travelling) * features(&outer.resident) * tokens.total(),
        // Scores and gradients of shares twice, gradients of queries, keys and values.
        OpKind::AttentionDx(attention) => {
            let length = u64::from(tokens.length);
            features(&attention.query) * length * (length + 1) / 2 * 7 * u64::from(tokens.sequences)
        }
        _ => 0,
    }
}

impl fmt::Display for PlacementReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} x {} PEs, {} tokens at once, up to {} a row",
            self.width, self.rows, self.tokens, self.tokens_per_row
        )?;
        writeln!(
            f,
            "{} classes, {} colours, SRAM peak {} of {} bytes",
            self.classes.len(),
            self.colours.len(),
            self.sram_peak_bytes,
            self.sram_bytes
        )?;
        for phase in &self.phases {
            write!(f, "  {:<24} {:<10}", phase.name, phase.kind)?;
            write!(f, " {:>12} words in  {:>16} MACs", phase.words_in, phase.macs)?;
            match phase.words_out {
                0 => writeln!(f)?,
                words => writeln!(f, "  {words:>12} words out")?,
            }
        }
        for sum in &self.sums {
            let ways = Reduce::ALL.map(|way| format!("{} {}", way.name(), sum.cycles[way.name()]));
            writeln!(
                f,
                "  {:<24} sum of {} words over a {} of {}: {} {}: {} cycles",
                sum.phase,
                sum.words,
                sum.over,
                sum.pes,
                sum.picked.name(),
                sum.why,
                ways.join(", ")
            )?;
        }
        Ok(())
    }
}
