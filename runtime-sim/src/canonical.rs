//! What code does to time, in a form that can be compared: prices, lengths and counts, and streams by the order of their
//! first use, whatever their colours are called and wherever buffers lie.

use crate::lower::{Instr, Linear, LoweredOp, Sink, Source};

/// A piece of code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canonical {
    /// The code as numbers.
    pub code: Vec<i64>,
    /// Input slots by first use.
    pub inputs: Vec<usize>,
    /// Output slots by first use.
    pub outputs: Vec<usize>,
    /// Lengths and counts that depend on the place, in order.
    pub placed: Vec<Linear>,
}

impl Canonical {
    /// Some code, with lengths that depend on the place beside it.
    pub fn of<'a>(code: impl IntoIterator<Item = &'a Instr>) -> Self {
        let mut canonical = Canonical::default();
        canonical.read(code);
        canonical
    }

    fn read<'a>(&mut self, code: impl IntoIterator<Item = &'a Instr>) {
        for instr in code {
            match instr {
                Instr::Op(op) => self.op(op),
                Instr::Par(ops) => {
                    self.code.extend([1, ops.len() as i64]);
                    ops.iter().for_each(|op| self.op(op));
                }
                Instr::Loop { depth, count, length, .. } => {
                    self.code.extend([2, *depth as i64, *length as i64]);
                    self.length(count);
                }
                Instr::Next { depth, length } => self.code.extend([3, *depth as i64, *length as i64]),
                Instr::Control { slot, .. } => {
                    let rank = rank(&mut self.outputs, *slot);
                    self.code.extend([4, rank]);
                }
                Instr::Activate(task) => self.code.extend([5, *task as i64]),
                Instr::Serial { cycles, times, .. } => {
                    self.code.extend([6, *cycles as i64]);
                    self.length(times);
                }
                Instr::Phase(phase) => self.code.extend([7, *phase as i64]),
                Instr::End => self.code.push(8),
            }
        }
    }

    fn length(&mut self, length: &Linear) {
        let (x, y) = length.uses_place();
        let apart = x || y;
        self.code.push(i64::from(apart));
        length.encode(apart, &mut self.code);
        if apart {
            self.placed.push(length.clone());
        }
    }

    fn op(&mut self, op: &LoweredOp) {
        let price = &op.price;
        self.code.extend([0, price.issue as i64, i64::from(price.step), price.step_cycles as i64]);
        self.code.extend([price.num as i64, price.den as i64, price.group as i64, op.dims.len() as i64]);
        op.dims.iter().for_each(|length| self.length(length));
        for source in &op.src {
            match source {
                Source::In { slot, wire } => {
                    let rank = rank(&mut self.inputs, *slot);
                    self.code.extend([10, rank, i64::from(wire.lanes())]);
                }
                Source::Scalar { slot, .. } => {
                    let rank = rank(&mut self.inputs, *slot);
                    self.code.extend([11, rank]);
                }
                Source::Mem(_) | Source::Trigger { .. } | Source::Const(_) => {}
            }
        }
        if let Sink::Out { slot, wire, .. } = &op.dst {
            let rank = rank(&mut self.outputs, *slot);
            self.code.extend([12, rank, i64::from(wire.lanes())]);
        }
    }
}

/// The place of a slot in the order of first use.
fn rank(slots: &mut Vec<usize>, slot: usize) -> i64 {
    let known = slots.iter().position(|known| *known == slot);
    known.unwrap_or_else(|| {
        slots.push(slot);
        slots.len() - 1
    }) as i64
}
